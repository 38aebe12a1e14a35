/* evaluate_fvu.c - how well every dictionary reconstructs samples it was not trained on (rows of `layers`).
 *
 *   fvu           sum |x - x_hat|^2 / sum |x - mean|^2 over the kept tokens of all validation samples (papers.md 4.3): squared errors
 *                 added in double, mean and variance of the batches merged in double (Chan, Golub & LeVeque 1983)
 *   fvu_as_coded  the authors' code (papers.md 1.2), a mean over batches of 8 samples padded to the longest, bos dropped: with N kept
 * tokens and mu their mean, recon = sum |x - x_hat|^2 / N, var = (sum over kept |x - mu|^2 + (positions - N) |mu|^2) / N, recon / (var +
 * 1e-8): masked and padded positions enter var as zeros l0            positive codes a token;  dead_features: no positive code on any of
 * these tokens, nor in the last train.dead_window rows of training Kept tokens are those of the regime. "base" is the base dictionary as
 * training starts from it (TopK with train.k, so that l0 is that of the others), on all tokens but bos; with pictures "base_image" and
 * "base_text" tell the two apart; "base_native" is the base dictionary with its own activation function where that is another. */
#include "analysis/train_job.h"
#include "host/file.h"
#include "models/ahead.h"
#include "host/tensors.h"
#include "host/check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/activation.h"
#include "kernels/sae_ops.h"

enum { CHUNK = EVALUATION_CHUNK, MASKS = 3, MAX_SUBJECTS = REGIME_COUNT + MASKS + 1 };
static const enum regime mask_regime[MASKS] = {REGIME_FULL, REGIME_IMAGE, REGIME_TEXT};

struct moments { /* of one layer and mask */
    long n;
    double *mean, *m2; /* (d) */
};
struct subject { /* one dictionary under one mask */
    char regime[16];
    int mask;
    struct sae *sae; /* borrowed from the layer */
    double error, coded;
    long coded_batches, positive;
    double *energy; /* (M) device */
    int64_t *fired; /* (M) device */
    int64_t *since; /* (M) host: rows since a feature fired in training, NULL for the base */
};
struct layer {
    int layer, n_saes, n_subjects;
    struct sae saes[REGIME_COUNT + 2];
    struct moments moments[MASKS];
    struct subject subjects[MAX_SUBJECTS];
};
struct evaluation {
    const struct run_config *c;
    const struct train_plan *p;
    struct device *dev;
    struct layer *layers; /* of the group */
    int n_layers, d;
    /* of the batch under way */
    int rows_room, kept[MASKS], longest[MASKS];
    int *index[MASKS];                     /* device (rows_room) */
    void *x;                               /* (rows_room, d) act_t */
    float *mean, *variance, *variance_sum; /* device (d), (d), (1) */
    float *host_mean, *host_variance;
    /* of a chunk */
    size_t slots;               /* rows x codes */
    int slots_features, active; /* active: most active features of a JumpReLU row so far */
    int *indices, *counts, *offsets, *entries;
    float *values, *row_error;
    uint8_t *group;
    void *csc, *encode; /* encode: scratch that every dictionary borrows */
    size_t encode_bytes, csc_bytes;
    float *host_error;
    int *host_counts;
};

int firing_save(struct sae_trainer *t, const char *dir, struct error *err) {
    struct safetensors_writer *w = NULL;
    int M = sae_trainer_sae(t)->M;
    const int64_t shape = M;
    double rows = (double)sae_trainer_rows(t);
    char *path = path_join(dir, "sparsity.safetensors");
    int status = safetensors_writer_open(&w, path, err);
    free(path);
    if (status) return -1;
    int64_t *fired = memory_take((size_t)M, sizeof *fired), *since = memory_take((size_t)M, sizeof *since);
    float *sparsity = memory_take((size_t)M, sizeof *sparsity);
    sae_trainer_firing(t, fired, since);
    for (int f = 0; f < M; f++) {
        sparsity[f] = (float)log10((double)fired[f] / rows + 1e-10);
        since[f] = fired[f] == 0 ? INT64_MAX : since[f];
    }
    free(fired);
    safetensors_writer_give(w, "sparsity", DTYPE_F32, 1, &shape, sparsity);
    safetensors_writer_give(w, "rows_since_fired", DTYPE_I64, 1, &shape, since);
    return safetensors_writer_commit(w, err);
}

static int64_t *firing_load(const char *dir, int M, struct error *err) {
    struct tensors *st = NULL;
    int64_t *since = NULL;
    const int64_t shape = M;
    char *path = path_join(dir, "sparsity.safetensors");
    if (tensors_open(&st, path, err) == 0) {
        const struct tensor *t = tensors_require(st, "rows_since_fired", 1, &shape, err);
        if (t && t->dtype != DTYPE_I64)
            fail(err, "%s: tensor rows_since_fired: expected I64, found %s", path, dtype_name(t->dtype));
        else if (t) {
            since = memory_take((size_t)M, sizeof *since);
            tensor_copy(t, since);
        }
    }
    tensors_close(st);
    free(path);
    return since;
}

/* ---- memory ---- */

static void *take(struct evaluation *e, size_t bytes, bool zero, struct error *err) {
    void *p = device_alloc(e->dev, bytes);
    if (!p)
        fail(err, "%s: the evaluation needs %zu more bytes, %zu are free; use a smaller \"train.layers_at_once\"", device_name(e->dev),
             bytes, device_memory_free(e->dev));
    else if (zero)
        device_zero(e->dev, p, bytes);
    return p;
}

static void free_rows(struct evaluation *e) {
    for (int m = 0; m < MASKS; m++) {
        device_free(e->dev, e->index[m]);
        e->index[m] = NULL;
    }
    device_free(e->dev, e->x);
    e->x = NULL;
    e->rows_room = 0;
}

static int reserve_rows(struct evaluation *e, int rows, struct error *err) {
    if (rows <= e->rows_room) return 0;
    free_rows(e);
    for (int m = 0; m < MASKS; m++)
        if (!(e->index[m] = take(e, (size_t)rows * sizeof(int), false, err))) return -1;
    if (!(e->x = take(e, (size_t)rows * (size_t)e->d * sizeof(act_t), false, err))) return -1;
    e->rows_room = rows;
    return 0;
}

static void free_slots(struct evaluation *e) {
    void *device[] = {e->indices, e->counts, e->offsets, e->entries, e->values, e->row_error, e->group, e->csc, e->encode};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) device_free(e->dev, device[i]);
    free(e->host_error), free(e->host_counts);
    e->indices = e->counts = e->offsets = e->entries = NULL;
    e->values = e->row_error = e->host_error = NULL;
    e->group = NULL, e->csc = e->encode = NULL, e->host_counts = NULL;
    e->encode_bytes = e->csc_bytes = e->slots = 0;
    e->slots_features = 0;
}

/* Buffers for n rows of K slots; those that are there are kept when large enough. */
static int reserve_slots(struct evaluation *e, const struct sae *s, int n, int K, struct error *err) {
    int M = s->M;
    const size_t slots = (size_t)n * (size_t)K, encode = sae_scratch_bytes(s, n, K), csc = OP(sae_csc_scratch)(n, M, K);
    if (slots <= e->slots && M <= e->slots_features && encode <= e->encode_bytes && csc <= e->csc_bytes) return 0;
    const size_t most = slots > e->slots ? slots : e->slots, most_encode = encode > e->encode_bytes ? encode : e->encode_bytes,
                 most_csc = csc > e->csc_bytes ? csc : e->csc_bytes;
    M = M > e->slots_features ? M : e->slots_features;
    free_slots(e);
    if (!(e->indices = take(e, most * sizeof(int), false, err)) || !(e->values = take(e, most * sizeof(float), false, err)) ||
        !(e->entries = take(e, most * sizeof(int), false, err)) || !(e->offsets = take(e, ((size_t)M + 1) * sizeof(int), false, err)) ||
        !(e->counts = take(e, CHUNK * sizeof(int), false, err)) || !(e->row_error = take(e, CHUNK * sizeof(float), false, err)) ||
        !(e->group = take(e, CHUNK, true, err)) || !(e->csc = take(e, most_csc, false, err)) ||
        !(e->encode = take(e, most_encode, false, err)))
        return -1;
    e->host_error = memory_take(CHUNK, sizeof(float)), e->host_counts = memory_take(CHUNK, sizeof(int));
    e->slots = most, e->slots_features = M, e->encode_bytes = most_encode, e->csc_bytes = most_csc;
    return 0;
}

/* ---- one batch ---- */

/* Codes of the first rows of x; K slots a row are in use. Returns how many rows, -1 with err. JumpReLU rows with more active features than
 * slots: once more with enough, and fewer rows, so that memory stays what evaluation_slots says. */
static int encode_rows(struct evaluation *e, struct sae *s, const void *x, int n, int *K, struct error *err) {
    const bool fixed = sae_fixed_k(s->activation);
    const size_t room = (size_t)CHUNK * (size_t)evaluation_slots(e->c);
    *K = fixed ? s->K : e->active > EVALUATION_ACTIVE ? e->active : EVALUATION_ACTIVE;
    for (;;) {
        int most = 0;
        if (*K > s->M) *K = s->M;
        if ((size_t)n * (size_t)*K > room) n = room > (size_t)*K ? (int)(room / (size_t)*K) : 1;
        if (reserve_slots(e, s, n, *K, err)) return -1;
        s->scratch = e->encode, s->scratch_bytes = e->encode_bytes, s->scratch_borrowed = true, s->max_rows = n;
        sae_encode(s, e->indices, e->values, e->counts, x, n, *K);
        if (fixed) return n;
        device_download(e->dev, e->host_counts, e->counts, (size_t)n * sizeof(int));
        for (int i = 0; i < n; i++) most = e->host_counts[i] > most ? e->host_counts[i] : most;
        if (most <= *K) return n;
        e->active = *K = most;
    }
}

static int measure(struct evaluation *e, struct subject *u, int n, double variance, double mean_squared, int positions, struct error *err) {
    struct sae *s = u->sae;
    double error = 0;
    for (int first = 0, rows; first < n; first += rows) {
        int K;
        const act_t *x = (const act_t *)e->x + (size_t)first * (size_t)e->d;
        rows = encode_rows(e, s, x, n - first < CHUNK ? n - first : CHUNK, &K, err);
        if (rows < 0) return -1;
        OP(sae_row_error)(e->dev, e->row_error, x, e->indices, e->values, s->D, s->b_d, rows, e->d, K);
        OP(sae_csc)(e->dev, e->offsets, e->entries, e->indices, rows, s->M, K, e->csc);
        OP(sae_feature_stats)(e->dev, u->energy, u->fired, e->offsets, e->entries, e->values, e->group, 1, rows, s->M, K);
        device_download(e->dev, e->host_error, e->row_error, (size_t)rows * sizeof(float));
        for (int i = 0; i < rows; i++) error += (double)e->host_error[i];
    }
    u->error += error;
    u->coded += error / n / ((variance + (double)(positions - n) * mean_squared) / n + 1e-8);
    u->coded_batches++;
    return 0;
}

static void merge_moments(struct moments *m, const float *mean, const float *variance, int n, int d) {
    double a = (double)m->n, b = n;
    for (int i = 0; i < d; i++) {
        double delta = (double)mean[i] - m->mean[i];
        m->m2[i] += (double)variance[i] + delta * delta * a * b / (a + b);
        m->mean[i] += delta * b / (a + b);
    }
    m->n += n;
}

static int measure_mask(struct evaluation *e, struct layer *l, int mask, const void *x, int samples, struct error *err) {
    int n = e->kept[mask];
    size_t d = (size_t)e->d;
    double variance = 0, mean_squared = 0;
    bool wanted = false;
    for (int i = 0; i < l->n_subjects; i++) wanted = wanted || l->subjects[i].mask == mask;
    if (n == 0 || !wanted) return 0;
    OP(gather_rows)(e->dev, e->x, x, e->index[mask], n, e->d);
    OP(sae_moments)(e->dev, e->mean, e->variance, e->variance_sum, e->x, n, e->d);
    device_download(e->dev, e->host_mean, e->mean, d * sizeof(float));
    device_download(e->dev, e->host_variance, e->variance, d * sizeof(float));
    for (size_t i = 0; i < d; i++) {
        variance += (double)e->host_variance[i];
        mean_squared += (double)e->host_mean[i] * (double)e->host_mean[i];
    }
    merge_moments(&l->moments[mask], e->host_mean, e->host_variance, n, e->d);
    for (int i = 0; i < l->n_subjects; i++)
        if (l->subjects[i].mask == mask && measure(e, &l->subjects[i], n, variance, mean_squared, samples * e->longest[0], err)) return -1;
    return 0;
}

static int at_layer(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    struct evaluation *e = context;
    int slot = 0;
    (void)dev;
    while (slot < e->n_layers && e->layers[slot].layer != layer) slot++;
    CHECK(slot < e->n_layers && width == e->d && rows == b->n_tokens, "layer=%d width=%d rows=%d", layer, width, rows);
    for (int mask = 0; mask < MASKS; mask++)
        if (measure_mask(e, &e->layers[slot], mask, x, b->n_samples, err)) return -1;
    return 0;
}

/* Index lists of the masks; longest[0]: positions of the longest sample without its bos. */
static int select_rows(struct evaluation *e, const struct batch *b, struct error *err) {
    if (reserve_rows(e, b->n_tokens, err)) return -1;
    int *list = memory_take((size_t)b->n_tokens, sizeof *list);
    for (int mask = 0; mask < MASKS; mask++) {
        e->kept[mask] = e->longest[mask] = 0;
        for (int s = 0; s < b->n_samples; s++) {
            int before = e->kept[mask];
            for (int i = b->cu_seqlens[s]; i < b->cu_seqlens[s + 1]; i++)
                if (regime_takes(mask_regime[mask], b->kinds[i])) list[e->kept[mask]++] = i;
            if (e->kept[mask] - before > e->longest[mask]) e->longest[mask] = e->kept[mask] - before;
        }
        device_upload(e->dev, e->index[mask], list, (size_t)e->kept[mask] * sizeof *list);
    }
    free(list);
    return 0;
}

/* ---- a group of layers ---- */

static int add_subject(struct evaluation *e, struct layer *l, struct sae *sae, const char *regime, int mask, struct error *err) {
    struct subject *u = &l->subjects[l->n_subjects++];
    *u = (struct subject){.mask = mask, .sae = sae};
    snprintf(u->regime, sizeof u->regime, "%s", regime);
    u->energy = take(e, (size_t)sae->M * sizeof *u->energy, true, err);
    u->fired = take(e, (size_t)sae->M * sizeof *u->fired, true, err);
    return u->energy && u->fired ? 0 : -1;
}

/* topk: as training starts from it; else as its format defines it. *native: its own activation function is another. */
static int open_dictionary(struct evaluation *e, struct layer *l, const char *path, bool topk, bool *native, struct error *err) {
    struct sae_host host;
    int status = -1;
    if (!path || sae_load(&host, path, err)) return -1;
    *native = host.activation != SAE_TOPK || host.K != e->c->k;
    if (host.d != e->d)
        fail(err, "%s: expected a dictionary of width %d, found %d", path, e->d, host.d);
    else if (sae_check_plain(&host, err))
        error_context(err, "%s", path);
    else if (!topk || sae_make_topk(&host, e->c->k, err) == 0)
        status = sae_upload(&l->saes[l->n_saes], e->dev, &host, 0, e->c->bf16_products, err);
    sae_host_free(&host);
    l->n_saes += status == 0;
    return status;
}

static int open_trained(struct evaluation *e, struct layer *l, enum regime r, struct error *err) {
    static const int mask_of[REGIME_COUNT] = {0, 1, 2, 0};
    char *path = run_sae_path(e->c, r, l->layer);
    bool native;
    int status = open_dictionary(e, l, path, false, &native, err);
    if (status == 0) status = add_subject(e, l, &l->saes[l->n_saes - 1], regime_names[r], mask_of[r], err);
    if (status == 0 && !(l->subjects[l->n_subjects - 1].since = firing_load(path, l->saes[l->n_saes - 1].M, err))) status = -1;
    free(path);
    return status;
}

static int open_base(struct evaluation *e, struct layer *l, struct error *err) {
    static const char *const names[MASKS] = {"base", "base_image", "base_text"};
    char *path = run_base_sae_path(e->c, l->layer, err);
    bool native;
    int status = open_dictionary(e, l, path, true, &native, err);
    for (int m = 0; m < MASKS && status == 0; m++)
        if (m == 0 || e->p->has_tower) status = add_subject(e, l, &l->saes[l->n_saes - 1], names[m], m, err);
    if (status == 0 && native)
        status =
            open_dictionary(e, l, path, false, &native, err) || add_subject(e, l, &l->saes[l->n_saes - 1], "base_native", 0, err) ? -1 : 0;
    free(path);
    return status;
}

static int open_layer(struct evaluation *e, struct layer *l, int layer, struct error *err) {
    l->layer = layer;
    for (int m = 0; m < MASKS; m++) {
        l->moments[m].mean = memory_take((size_t)e->d, sizeof(double));
        l->moments[m].m2 = memory_take((size_t)e->d, sizeof(double));
    }
    for (int r = 0; r < REGIME_COUNT; r++)
        if (e->c->regimes[r] && open_trained(e, l, (enum regime)r, err)) return -1;
    return e->c->saes ? open_base(e, l, err) : 0;
}

static void close_layer(struct evaluation *e, struct layer *l) {
    for (int i = 0; i < l->n_subjects; i++) {
        device_free(e->dev, l->subjects[i].energy);
        device_free(e->dev, l->subjects[i].fired);
        free(l->subjects[i].since);
    }
    for (int i = 0; i < l->n_saes; i++) sae_free(&l->saes[i]);
    for (int m = 0; m < MASKS; m++) free(l->moments[m].mean), free(l->moments[m].m2);
}

static void finish_subject(struct evaluation *e, const struct layer *l, struct subject *u, struct layer_row *row) {
    int M = u->sae->M;
    const struct moments *m = &l->moments[u->mask];
    int64_t *fired = memory_take((size_t)M, sizeof *fired);
    double variance = 0;
    long dead = 0, positive = 0;
    device_download(e->dev, fired, u->fired, (size_t)M * sizeof *fired);
    for (int f = 0; f < M; f++) {
        positive += fired[f];
        dead += fired[f] == 0 && (!u->since || u->since[f] >= e->c->dead_window);
    }
    for (int i = 0; i < e->d; i++) variance += m->m2[i];
    free(fired);
    *row = (struct layer_row){.layer = l->layer, .regime = u->regime, .tokens = m->n, .dead_features = dead, .features = M};
    row->fvu = m->n > 0 && variance > 0 ? u->error / variance : NAN;
    row->fvu_as_coded = u->coded_batches > 0 ? u->coded / (double)u->coded_batches : NAN;
    row->l0 = m->n > 0 ? (double)positive / (double)m->n : NAN;
}

static int stream(struct evaluation *e, struct model *model, const struct samples *samples, size_t first, size_t count,
                  struct progress *progress, long before, struct error *err) {
    struct probe *probes = memory_take((size_t)e->n_layers, sizeof *probes);
    struct ahead ahead = {.m = model, .s = samples, .with_answer = true};
    int status = 0;
    for (int l = 0; l < e->n_layers; l++)
        probes[l] = (struct probe){.point = PROBE_RESID_POST, .layer = e->layers[l].layer, .run = at_layer, .context = e};
    for (size_t at = 0; at < count && status == 0 && !stop_signal; at += EVALUATION_SAMPLES) {
        struct batch b = {0};
        size_t n = count - at < EVALUATION_SAMPLES ? count - at : EVALUATION_SAMPLES;
        if (ahead_next(&ahead, &b, first + at, EVALUATION_SAMPLES, first + count, err)) {
            status = -1;
            break;
        }
        status = select_rows(e, &b, err) || model_forward(model, &b, probes, e->n_layers, NULL, err) ? -1 : 0;
        batch_free(&b);
        progress_update(progress, before + (long)(at + n), NULL);
    }
    ahead_end(&ahead);
    free(probes);
    return status;
}

static int evaluate_group(struct evaluation *e, const int *layers, int n, const struct samples *samples, size_t first, size_t count,
                          struct progress *progress, long before, sqlite3 *db, struct error *err) {
    const struct model_options options = {.layers = layers[n - 1] + 1, .base = e->c->base};
    struct model model = {0};
    int status = -1;
    e->layers = memory_take((size_t)n, sizeof *e->layers);
    e->n_layers = n;
    if (model_open(&model, e->dev, e->c->model, &options, err)) goto done;
    for (int l = 0; l < n; l++)
        if (open_layer(e, &e->layers[l], layers[l], err)) goto done;
    if (stream(e, &model, samples, first, count, progress, before, err)) goto done;
    for (int l = 0; l < n && !stop_signal; l++) {
        char line[256] = "";
        for (int i = 0; i < e->layers[l].n_subjects; i++) {
            struct layer_row row;
            finish_subject(e, &e->layers[l], &e->layers[l].subjects[i], &row);
            if (run_db_layer(db, &row, err)) goto done;
            size_t used = strlen(line); /* all of it stands in run.db; here one line a layer, the part that says how well it went */
            if (strncmp(row.regime, "base_", 5) != 0)
                snprintf(line + used, sizeof line - used, "%s%s %.4f", used ? ", " : "", row.regime, row.fvu);
        }
        log_note("layer %2d: fvu %s", layers[l], line);
    }
    status = 0;
done:
    for (int l = 0; l < n; l++) close_layer(e, &e->layers[l]);
    free(e->layers);
    if (model.dir) model_close(&model);
    return status;
}

int evaluate_fvu(const struct run_config *c, const struct train_plan *p, struct device *dev, sqlite3 *db, struct error *err) {
    struct evaluation e = {.c = c, .p = p, .dev = dev, .d = p->d};
    struct samples samples = {0};
    struct progress progress;
    size_t first, count, d = (size_t)p->d;
    int status = -1;
    if (run_samples(c, true, &samples, &first, &count, err)) return -1;
    e.host_mean = memory_take(d, sizeof(float)), e.host_variance = memory_take(d, sizeof(float));
    if (!(e.mean = take(&e, d * sizeof(float), false, err)) || !(e.variance = take(&e, d * sizeof(float), false, err)) ||
        !(e.variance_sum = take(&e, sizeof(float), false, err)))
        goto done;
    if (run_db_exec(db, err, "BEGIN IMMEDIATE")) goto done;
    status = run_db_exec(db, err, "DELETE FROM layers");
    progress_start(&progress, "evaluate", "samples", (long)count * p->n_groups);
    for (int g = 0; g < p->n_groups && status == 0 && !stop_signal; g++) {
        int begin = g * p->layers_at_once, n = p->n_layers - begin < p->layers_at_once ? p->n_layers - begin : p->layers_at_once;
        status = evaluate_group(&e, p->layers + begin, n, &samples, first, count, &progress, (long)count * g, db, err);
    }
    progress_end(&progress);
    if (status == 0 && stop_signal) status = 128 + stop_signal;
    if (status == 0) status = run_db_exec(db, err, "COMMIT");
    if (status) sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
done:
    free_rows(&e), free_slots(&e);
    device_free(dev, e.mean), device_free(dev, e.variance), device_free(dev, e.variance_sum);
    free(e.host_mean), free(e.host_variance);
    samples_free(&samples);
    return status;
}
