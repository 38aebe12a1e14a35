/* train_plan.c - what stage_train will do, from the configuration and headers alone. */
#include "analysis/train_job.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    if (status == 0 && sae_check_plain(&s, err)) status = error_context(err, "%s", path);
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

int train_plan_open(struct train_plan *p, const struct run_config *c, struct device *dev, const struct samples *s, size_t first,
                    size_t count, int at_once, struct error *err) {
    const struct checkpoint_options files = {.base = c->base};
    struct checkpoint model;
    int status = -1;
    memset(p, 0, sizeof *p);
    p->first = first, p->count = count;
    p->total = lround(c->passes * (double)count);
    if (p->total < 1) return fail(err, "\"train.passes\": %g of %zu samples is less than one sample", c->passes, count);
    if (checkpoint_open(&model, c->model, &files, err)) goto done;
    const struct checkpoint_config *m = &model.config;
    if (!m->has_llm) {
        fail(err, "%s: a vision tower alone has no residual stream to train on; \"model\" must be a language or vision-language model",
             c->model);
        goto done;
    }
    p->d = m->llm.C, p->k = c->k, p->model_layers = m->llm.L;
    p->has_tower = m->has_tower;
    if (c->regimes[REGIME_IMAGE] && !p->has_tower) {
        fail(err, "%s: \"regimes\": image needs a vision-language model, this is a plain language model; leave it out", c->model);
        goto done;
    }
    p->settings = train_defaults;
    p->settings.lr = c->lr, p->settings.unit_norm_decoder = c->unit_norm_decoder, p->settings.remove_parallel = c->remove_parallel;
    p->settings.bf16_products = c->bf16_products, p->settings.max_batch = c->batch;
    if (read_layers(p, c, m->llm.L, err) || read_features(p, c, err)) goto done;
    status = train_memory_place(p, c, &model, dev, s, at_once, err);
done:
    checkpoint_close(&model);
    return status;
}

void train_plan_free(struct train_plan *p) {
    free(p->layers), free(p->base_features), free(p->random_features);
    memset(p, 0, sizeof *p);
}
