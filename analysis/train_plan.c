/* train_plan.c - what stage_train will do and what it needs, from headers alone, printed before any work. */
#include "analysis/train_job.h"
#include "host/file.h"
#include "host/tensors.h"
#include "models/config.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct needs { /* bytes */
    size_t model, activations, step, per_layer_saes, per_layer_block, fixed;
};

static int read_layers(struct train_plan *p, const struct run_config *c, int model_layers, struct error *err) {
    p->n_layers = c->n_layers > 0 ? c->n_layers : model_layers;
    p->layers = memory_take((size_t)p->n_layers, sizeof *p->layers);
    for (int i = 0; i < p->n_layers; i++) {
        p->layers[i] = c->n_layers > 0 ? c->layers[i] : i;
        if (p->layers[i] >= model_layers)
            return fail(err, "\"layers\": %d is no layer of %s, which has 0 to %d", p->layers[i], c->model, model_layers - 1);
    }
    return 0;
}

static int peek_base(struct train_plan *p, const struct run_config *c, int slot, struct error *err) {
    struct sae_host s;
    int layer = p->layers[slot];
    char *path = run_base_sae_path(c, layer, err);
    if (!path) return -1;
    int status = sae_peek(&s, path, err);
    if (status == 0 && s.d != p->d)
        status = fail(err, "%s: expected a dictionary of width %d as %s has, found %d", path, p->d, c->model, s.d);
    if (status == 0 && s.layer >= 0 && s.layer != layer) log_note("%s: its own hook is %s, used here for layer %d", path, s.hook, layer);
    if (status == 0 && c->k > s.M) status = fail(err, "%s: \"train.k\" is %d, the dictionary has %d features", path, c->k, s.M);
    p->base_features[slot] = status == 0 ? s.M : 0;
    free(path);
    return status;
}

static int read_features(struct train_plan *p, const struct run_config *c, struct error *err) {
    p->base_features = memory_take((size_t)p->n_layers, sizeof *p->base_features);
    p->random_features = memory_take((size_t)p->n_layers, sizeof *p->random_features);
    for (int i = 0; i < p->n_layers; i++) {
        if (c->saes && peek_base(p, c, i, err)) return -1;
        p->random_features[i] = c->features > 0 ? c->features : c->saes ? p->base_features[i] : 8 * p->d;
        for (int r = 0; r < REGIME_COUNT; r++)
            if (c->regimes[r] && train_plan_features(p, (enum regime)r, i) > p->largest)
                p->largest = train_plan_features(p, (enum regime)r, i);
    }
    if (c->k > p->largest)
        return fail(err, "\"train.k\" is %d, the dictionaries have %d features; give a smaller k or more \"train.features\"", c->k,
                    p->largest);
    return 0;
}

int train_plan_features(const struct train_plan *p, enum regime r, int slot) {
    return r == REGIME_RANDOM ? p->random_features[slot] : p->base_features[slot];
}

static int model_bytes(const char *dir, size_t *bytes, struct error *err) {
    struct tensors *st = NULL;
    if (tensors_open(&st, dir, err)) return -1;
    *bytes = 0;
    for (int i = 0; i < tensors_count(st); i++) *bytes += tensors_at(st, i)->count * sizeof(act_t);
    tensors_close(st);
    return 0;
}

static void count_needs(struct needs *n, const struct train_plan *p, const struct run_config *c, const struct checkpoint_config *m) {
    /* tokens of a forward pass: pictures and about 128 of text a sample */
    size_t patches = m->has_tower && m->clip.P > 0 ? (size_t)(m->clip.S / m->clip.P) * (size_t)(m->clip.S / m->clip.P) : 0;
    size_t tokens = (size_t)c->forward_samples * (patches + 128);
    n->activations = tokens * (size_t)(10 * m->llm.C + 3 * m->llm.F) * sizeof(act_t);
    if (patches) n->activations += (size_t)c->forward_samples * (patches + 1) * (size_t)(10 * m->clip.C + 3 * m->clip.F) * sizeof(act_t);
    n->step = sae_workspace_bytes(p->d, p->largest, p->k, c->batch) + (size_t)c->batch * (size_t)p->d * sizeof(act_t) +
              (size_t)c->ring_rows * sizeof(int);
    n->per_layer_block = ring_bytes_per_layer((int)c->ring_rows, p->d);
    n->per_layer_saes = 0;
    for (int i = 0; i < p->n_layers; i++) {
        size_t bytes = 0;
        for (int r = 0; r < REGIME_COUNT; r++)
            if (c->regimes[r]) bytes += sae_trainer_bytes(p->d, train_plan_features(p, (enum regime)r, i), c->bf16_products);
        n->per_layer_saes = bytes > n->per_layer_saes ? bytes : n->per_layer_saes;
    }
    n->fixed = n->model + n->activations + n->step;
}

static const char *human(char out[32], size_t bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double x = (double)bytes;
    int u = 0;
    for (; x >= 1000 && u < 4; u++) x /= 1000;
    snprintf(out, 32, x < 10 && u > 0 ? "%.2f %s" : x < 100 && u > 0 ? "%.1f %s" : "%.0f %s", x, units[u]);
    return out;
}

static int place(struct train_plan *p, const struct run_config *c, struct device *dev, const struct needs *n, int at_once,
                 struct error *err) {
    char a[32], b[32], e[32], f[32], g[32], h[32], i[32];
    size_t free_bytes = device_memory_free(dev), usable = free_bytes / 100 * 95, each = n->per_layer_saes + n->per_layer_block;
    int regimes = 0;
    for (int r = 0; r < REGIME_COUNT; r++) regimes += c->regimes[r];
    if (usable < n->fixed + each)
        return fail(err,
                    "%s: training one layer needs %zu bytes (model %zu, activations %zu, scratch of a step %zu, %d dictionaries with Adam "
                    "%zu, block %zu), %zu are free; use fewer regimes, "
                    "a smaller \"train.ring_rows\" or \"train.batch\"",
                    device_name(dev), n->fixed + each, n->model, n->activations, n->step, regimes, n->per_layer_saes, n->per_layer_block,
                    free_bytes);
    size_t fit = (usable - n->fixed) / each;
    int wanted = at_once > 0 ? at_once : c->layers_at_once > 0 ? c->layers_at_once : p->n_layers;
    p->layers_at_once = wanted < p->n_layers ? wanted : p->n_layers;
    if (fit < (size_t)p->layers_at_once) {
        if (at_once > 0 || c->layers_at_once > 0)
            return fail(err, "%s: %d layers at once need %zu bytes, %zu are free; %zu would fit", device_name(dev), p->layers_at_once,
                        n->fixed + (size_t)p->layers_at_once * each, free_bytes, fit);
        p->layers_at_once = (int)fit;
    }
    p->n_groups = (p->n_layers + p->layers_at_once - 1) / p->layers_at_once;
    log_note("train: %d layers x %d regimes, width %d, up to %d features, k %d; %zu samples, %ld to stream", p->n_layers, regimes, p->d,
             p->largest, p->k, p->count, p->total);
    log_note("memory: model %s, activations about %s, scratch %s; a layer: dictionaries and Adam %s, block of %ld rows %s; %d layers at "
             "once: %s of %s free on %s",
             human(a, n->model), human(b, n->activations), human(e, n->step), human(f, n->per_layer_saes), c->ring_rows,
             human(g, n->per_layer_block), p->layers_at_once, human(h, n->fixed + (size_t)p->layers_at_once * each), human(i, free_bytes),
             device_name(dev));
    if (p->n_groups > 1)
        log_note("not all layers at once: the samples are streamed %d times, for %d layers each", p->n_groups, p->layers_at_once);
    return 0;
}

int train_plan_open(struct train_plan *p, const struct run_config *c, struct device *dev, size_t first, size_t count, int at_once,
                    struct error *err) {
    struct checkpoint_config m;
    struct needs n = {0};
    memset(p, 0, sizeof *p);
    p->first = first, p->count = count;
    p->total = lround(c->passes * (double)count);
    if (p->total < 1) return fail(err, "\"train.passes\": %g of %zu samples is less than one sample", c->passes, count);
    if (config_open(&m, c->model, err)) return -1;
    if (!m.has_llm)
        return fail(err,
                    "%s: a vision tower alone has no residual stream to train on; \"model\" must be a language or vision-language model",
                    c->model);
    p->d = m.llm.C, p->k = c->k;
    p->has_tower = m.layout == LAYOUT_LLAVA || m.layout == LAYOUT_LLAVA_HF;
    if (c->regimes[REGIME_IMAGE] && !p->has_tower)
        return fail(err, "%s: \"regimes\": image needs a vision-language model, this is a plain language model; leave it out", c->model);
    p->settings = train_defaults;
    p->settings.lr = c->lr, p->settings.unit_norm_decoder = c->unit_norm_decoder, p->settings.remove_parallel = c->remove_parallel;
    p->settings.bf16_products = c->bf16_products, p->settings.max_batch = c->batch;
    if (read_layers(p, c, m.llm.L, err) || read_features(p, c, err) || model_bytes(c->model, &n.model, err)) return -1;
    count_needs(&n, p, c, &m);
    return place(p, c, dev, &n, at_once, err);
}

void train_plan_free(struct train_plan *p) {
    free(p->layers), free(p->base_features), free(p->random_features);
    memset(p, 0, sizeof *p);
}
