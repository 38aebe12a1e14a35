/* trainer.c - one dictionary being trained.
 *
 * A step (Gao et al. 2024 for TopK, papers.md 1.2 for the loss):
 *   moments of the batch -> K largest pre-activations -> x_hat, loss, gradient of the codes -> feature-major view
 *   -> gradient, Adam and unit norm of each feature in one pass -> Adam of the decoder bias
 * No gradient of E or D and no dense (rows, M) tensor ever exists. */
#include "sae/trainer.h"
#include "host/file.h"
#include "host/tensors.h"
#include "host/check.h"
#include <stdlib.h>
#include <string.h>

#include "kernels/sae_ops.h"

enum { POLL_STEPS = 16 };

const struct train_settings train_defaults = {
    .lr = 2e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .unit_norm_decoder = true, .max_batch = 4096};

struct sae_workspace {
    struct device *dev;
    int d, M, K, max_batch;
    float *mean, *channel_variance, *sums;   /* (d), (d), {variance_sum, error_sum} */
    int *indices, *offsets, *entries;        /* (B, K), (M + 1), (B K) */
    float *values, *dvalues, *g, *row_error; /* (B, K), (B, K), (B, d), (B) */
    uint8_t *group;                          /* (B), zeros: one group */
    void *csc, *encode;
    size_t encode_bytes;
    float *host_values; /* (B, K) */
};

struct sae_trainer {
    struct device *dev;
    struct sae sae;
    struct sae_workspace *work;
    bool owns_work;
    struct train_settings settings;
    float *m_E, *v_E, *m_D, *v_D, *m_be, *v_be, *m_bd, *v_bd;
    double *energy;         /* (M) device */
    int64_t *fired;         /* (M) device: positive codes so far */
    int64_t *polled, *last; /* (M) host: `fired` at the last poll; rows trained on when last seen to have grown, -1: never */
    long steps, rows;
    char hook[128];
};

struct piece {
    void *slot; /* address of the pointer */
    size_t bytes;
};

static size_t round_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

static size_t encode_bytes(const struct sae_workspace *w) {
    const struct sae shape = {.activation = SAE_TOPK, .d = w->d, .M = w->M};
    return sae_scratch_bytes(&shape, w->max_batch, w->K);
}

/* The same list measures and places. */
static int workspace_pieces(struct sae_workspace *w, struct piece *p) {
    size_t d = (size_t)w->d, M = (size_t)w->M, B = (size_t)w->max_batch, BK = B * (size_t)w->K;
    const struct piece list[] = {
        {&w->mean, d * sizeof(real_t)},
        {&w->channel_variance, d * sizeof(real_t)},
        {&w->sums, 2 * sizeof(real_t)},
        {&w->indices, BK * sizeof(int)},
        {&w->offsets, (M + 1) * sizeof(int)},
        {&w->entries, BK * sizeof(int)},
        {&w->values, BK * sizeof(real_t)},
        {&w->dvalues, BK * sizeof(real_t)},
        {&w->g, B * d * sizeof(real_t)},
        {&w->row_error, B * sizeof(real_t)},
        {&w->group, B},
        {&w->csc, OP(sae_csc_scratch)(w->max_batch, w->M, w->K)},
        {&w->encode, encode_bytes(w)},
    };
    memcpy(p, list, sizeof list);
    return (int)(sizeof list / sizeof *list);
}

static int trainer_pieces(struct sae_trainer *t, struct piece *p) {
    size_t d = (size_t)t->sae.d, M = (size_t)t->sae.M;
    const struct piece list[] = {
        {&t->m_E, M * d * sizeof(real_t)}, {&t->v_E, M * d * sizeof(real_t)}, {&t->m_D, M * d * sizeof(real_t)},
        {&t->v_D, M * d * sizeof(real_t)}, {&t->m_be, M * sizeof(real_t)},    {&t->v_be, M * sizeof(real_t)},
        {&t->m_bd, d * sizeof(real_t)},    {&t->v_bd, d * sizeof(real_t)},    {&t->energy, M * sizeof(double)},
        {&t->fired, M * sizeof(int64_t)},
    };
    memcpy(p, list, sizeof list);
    return (int)(sizeof list / sizeof *list);
}

enum { MAX_PIECES = 16 };

static size_t pieces_bytes(const struct piece *p, int n) {
    size_t sum = 0;
    for (int i = 0; i < n; i++) sum += round_up(p[i].bytes);
    return sum;
}

static int pieces_take(struct device *dev, const struct piece *p, int n, const char *what, struct error *err) {
    for (int i = 0; i < n; i++) {
        void *taken = device_alloc(dev, p[i].bytes);
        memcpy(p[i].slot, &taken, sizeof taken);
        if (!taken)
            return fail(err, "%s: %s needs %zu bytes, %zu are free; use a smaller batch or fewer layers", device_name(dev), what,
                        pieces_bytes(p, n), device_memory_free(dev));
        device_zero(dev, taken, p[i].bytes);
    }
    return 0;
}

static void pieces_free(struct device *dev, const struct piece *p, int n) {
    for (int i = 0; i < n; i++) {
        void *taken;
        memcpy(&taken, p[i].slot, sizeof taken);
        device_free(dev, taken);
    }
}

size_t sae_workspace_bytes(int d, int M, int K, int max_batch) {
    struct sae_workspace w = {.d = d, .M = M, .K = K, .max_batch = max_batch};
    struct piece p[MAX_PIECES];
    int n = workspace_pieces(&w, p);
    return pieces_bytes(p, n);
}

size_t sae_trainer_bytes(int d, int M, bool bf16_products) {
    struct sae_trainer t = {.sae = {.d = d, .M = M}};
    struct piece p[MAX_PIECES];
    int n = trainer_pieces(&t, p);
    return pieces_bytes(p, n) + sae_device_bytes(d, M, bf16_products);
}

int sae_workspace_open(struct sae_workspace **out, struct device *dev, int d, int M, int K, int max_batch, struct error *err) {
    struct sae_workspace *w = memory_take(1, sizeof *w);
    struct piece p[MAX_PIECES];
    w->dev = dev, w->d = d, w->M = M, w->K = K, w->max_batch = max_batch;
    w->encode_bytes = encode_bytes(w);
    w->host_values = memory_take((size_t)max_batch * (size_t)K, sizeof *w->host_values);
    int n = workspace_pieces(w, p);
    *out = w;
    if (pieces_take(dev, p, n, "the scratch of a training step", err) == 0) return 0;
    sae_workspace_close(w);
    *out = NULL;
    return -1;
}

void sae_workspace_close(struct sae_workspace *w) {
    struct piece p[MAX_PIECES];
    if (!w) return;
    pieces_free(w->dev, p, workspace_pieces(w, p));
    free(w->host_values);
    free(w);
}

int sae_trainer_open(struct sae_trainer **out, struct device *dev, const struct sae_host *start, const struct train_settings *settings,
                     struct sae_workspace *shared, struct error *err) {
    struct sae_trainer *t = memory_take(1, sizeof *t);
    struct piece p[MAX_PIECES];
    *out = NULL;
    CHECK(start->activation == SAE_TOPK && start->K >= 1 && !start->rank_scale, "K=%d", start->K);
    CHECK(!shared || (shared->d == start->d && shared->M >= start->M && shared->K >= start->K && shared->max_batch >= settings->max_batch),
          "d=%d M=%d K=%d", start->d, start->M, start->K);
    t->dev = dev;
    t->settings = *settings;
    memcpy(t->hook, start->hook, sizeof t->hook);
    t->sae.d = start->d, t->sae.M = start->M;
    if (sae_upload(&t->sae, dev, start, 0, settings->bf16_products, err)) goto failed;
    if (pieces_take(dev, p, trainer_pieces(t, p), "Adam's state of a dictionary", err)) goto failed;
    t->work = shared;
    if (!shared) {
        if (sae_workspace_open(&t->work, dev, start->d, start->M, start->K, settings->max_batch, err)) goto failed;
        t->owns_work = true;
    }
    t->sae.scratch = t->work->encode, t->sae.scratch_bytes = t->work->encode_bytes, t->sae.scratch_borrowed = true;
    t->sae.max_rows = settings->max_batch;
    t->polled = memory_take((size_t)start->M, sizeof *t->polled);
    t->last = memory_take((size_t)start->M, sizeof *t->last);
    for (int f = 0; f < start->M; f++) t->last[f] = -1;
    *out = t;
    return 0;
failed:
    sae_trainer_close(t);
    return -1;
}

void sae_trainer_close(struct sae_trainer *t) {
    struct piece p[MAX_PIECES];
    if (!t) return;
    pieces_free(t->dev, p, trainer_pieces(t, p));
    sae_free(&t->sae);
    if (t->owns_work) sae_workspace_close(t->work);
    free(t->polled), free(t->last);
    free(t);
}

static void read_metrics(struct sae_trainer *t, int n, struct train_metrics *metrics) {
    struct sae_workspace *w = t->work;
    float sums[2];
    size_t slots = (size_t)n * (size_t)t->sae.K, positive = 0;
    device_download(t->dev, sums, w->sums, sizeof sums);
    device_download(t->dev, w->host_values, w->values, slots * sizeof *w->host_values);
    for (size_t i = 0; i < slots; i++) positive += w->host_values[i] > 0;
    metrics->loss = metrics->fvu = (double)sums[1] / ((double)sums[0] + 1e-8);
    metrics->l0 = (double)positive / n;
    metrics->step = t->steps;
    metrics->rows = n;
}

static void poll_firing(struct sae_trainer *t) {
    size_t M = (size_t)t->sae.M;
    int64_t *now = memory_take(M, sizeof *now);
    device_download(t->dev, now, t->fired, M * sizeof *now);
    for (size_t f = 0; f < M; f++)
        if (now[f] != t->polled[f]) {
            t->polled[f] = now[f];
            t->last[f] = t->rows;
        }
    free(now);
}

void sae_trainer_step(struct sae_trainer *t, const void *x, int n, struct train_metrics *metrics) {
    struct sae *s = &t->sae;
    struct sae_workspace *w = t->work;
    const struct sae_adam adam = {.lr = t->settings.lr,
                                  .beta1 = t->settings.beta1,
                                  .beta2 = t->settings.beta2,
                                  .eps = t->settings.eps,
                                  .step = t->steps + 1,
                                  .unit_norm_decoder = t->settings.unit_norm_decoder,
                                  .remove_parallel = t->settings.remove_parallel};
    CHECK(n >= 1 && n <= t->settings.max_batch, "n=%d max_batch=%d", n, t->settings.max_batch);
    OP(sae_moments)(t->dev, w->mean, w->channel_variance, w->sums, x, n, s->d);
    sae_encode(s, w->indices, w->values, NULL, x, n, s->K);
    OP(sae_decode_backward)
    (t->dev, w->g, w->dvalues, w->sums + 1, w->row_error, x, w->indices, w->values, s->D, s->b_d, w->sums, n, s->d, s->K);
    OP(sae_csc)(t->dev, w->offsets, w->entries, w->indices, n, s->M, s->K, w->csc);
    OP(sae_feature_stats)(t->dev, t->energy, t->fired, w->offsets, w->entries, w->values, w->group, 1, n, s->M, s->K);
    if (metrics) read_metrics(t, n, metrics);
    OP(sae_update)
    (t->dev, s->E, s->D, s->b_e, t->m_E, t->v_E, t->m_D, t->v_D, t->m_be, t->v_be, s->E_low, w->offsets, w->entries, w->values, w->dvalues,
     w->g, x, &adam, n, s->d, s->M, s->K);
    OP(sae_update_bias)(t->dev, s->b_d, t->m_bd, t->v_bd, w->g, &adam, n, s->d);
    t->steps++;
    t->rows += n;
    if (t->steps % POLL_STEPS == 0) poll_firing(t);
}

struct sae *sae_trainer_sae(struct sae_trainer *t) {
    return &t->sae;
}
long sae_trainer_steps(const struct sae_trainer *t) { return t->steps; }
long sae_trainer_rows(const struct sae_trainer *t) { return t->rows; }

/* Looks at the counters without moving the poll, so that asking changes nothing. */
void sae_trainer_firing(struct sae_trainer *t, int64_t *fired, int64_t *since) {
    device_download(t->dev, fired, t->fired, (size_t)t->sae.M * sizeof *fired);
    for (int f = 0; f < t->sae.M; f++) {
        long last = fired[f] != t->polled[f] ? t->rows : (long)t->last[f];
        since[f] = last < 0 ? t->rows : t->rows - last;
    }
}

int sae_trainer_dead(struct sae_trainer *t, long window) {
    size_t M = (size_t)t->sae.M;
    int64_t *fired = memory_take(M, sizeof *fired), *since = memory_take(M, sizeof *since);
    int dead = 0;
    sae_trainer_firing(t, fired, since);
    for (size_t f = 0; f < M; f++) dead += fired[f] == 0 || since[f] >= window;
    free(fired), free(since);
    return dead;
}

static float *fetch(struct sae_trainer *t, const float *src, size_t n) {
    float *copy = memory_take(n, sizeof *copy);
    device_download(t->dev, copy, src, n * sizeof *copy);
    return copy;
}

int sae_trainer_download(struct sae_trainer *t, struct sae_host *out, struct error *err) {
    size_t M = (size_t)t->sae.M, d = (size_t)t->sae.d;
    (void)err;
    memset(out, 0, sizeof *out);
    out->format = SAE_FORMAT_SAELENS;
    out->activation = SAE_TOPK;
    out->d = t->sae.d, out->M = t->sae.M, out->K = t->sae.K, out->layer = -1;
    memcpy(out->hook, t->hook, sizeof out->hook);
    out->E = fetch(t, t->sae.E, M * d);
    out->D = fetch(t, t->sae.D, M * d);
    out->b_e = fetch(t, t->sae.b_e, M);
    out->b_d = fetch(t, t->sae.b_d, d);
    return 0;
}

struct state_entry {
    const char *name;
    float *device;
    size_t n;
};

static int state_entries(struct sae_trainer *t, struct state_entry *e) {
    size_t M = (size_t)t->sae.M, d = (size_t)t->sae.d;
    const struct state_entry list[] = {
        {"E", t->sae.E, M * d}, {"D", t->sae.D, M * d}, {"b_e", t->sae.b_e, M}, {"b_d", t->sae.b_d, d},
        {"m_E", t->m_E, M * d}, {"v_E", t->v_E, M * d}, {"m_D", t->m_D, M * d}, {"v_D", t->v_D, M * d},
        {"m_be", t->m_be, M},   {"v_be", t->v_be, M},   {"m_bd", t->m_bd, d},   {"v_bd", t->v_bd, d},
    };
    memcpy(e, list, sizeof list);
    return (int)(sizeof list / sizeof *list);
}

enum { MAX_ENTRIES = 12 };

int sae_trainer_save(struct sae_trainer *t, const char *path, struct error *err) {
    struct safetensors_writer *w = NULL;
    struct state_entry e[MAX_ENTRIES];
    const int64_t M = t->sae.M, three = 3;
    const int64_t counts[3] = {t->steps, t->rows, t->sae.K};
    if (safetensors_writer_open(&w, path, err)) return -1;
    int64_t *fired = memory_take((size_t)M, sizeof *fired);
    device_download(t->dev, fired, t->fired, (size_t)M * sizeof *fired);
    safetensors_writer_metadata(w, "format", "stagediff training state 1");
    int n = state_entries(t, e);
    for (int i = 0; i < n; i++)
        safetensors_writer_give(w, e[i].name, DTYPE_F32, 1, (const int64_t[]){(int64_t)e[i].n}, fetch(t, e[i].device, e[i].n));
    safetensors_writer_give(w, "fired", DTYPE_I64, 1, &M, fired);
    safetensors_writer_add(w, "fired_polled", DTYPE_I64, 1, &M, t->polled);
    safetensors_writer_add(w, "fired_last", DTYPE_I64, 1, &M, t->last);
    safetensors_writer_add(w, "counts", DTYPE_I64, 1, &three, counts);
    return safetensors_writer_commit(w, err);
}

static int load_longs(const struct tensors *st, const char *name, int64_t *dst, int64_t n, struct error *err) {
    const struct tensor *x = tensors_require(st, name, 1, &n, err);
    if (!x) return -1;
    if (x->dtype != DTYPE_I64)
        return fail(err, "%s: tensor %s: expected I64, found %s; not a training state", x->file, name, dtype_name(x->dtype));
    tensor_copy(x, dst);
    return 0;
}

static int load_state(struct sae_trainer *t, const struct tensors *st, const char *path, struct error *err) {
    struct state_entry e[MAX_ENTRIES];
    size_t M = (size_t)t->sae.M;
    int64_t counts[3];
    int n = state_entries(t, e), status = -1;
    int64_t *fired = memory_take(M, sizeof *fired);
    float *staged = memory_take(M * (size_t)t->sae.d, sizeof *staged);
    if (load_longs(st, "counts", counts, 3, err) || load_longs(st, "fired", fired, t->sae.M, err) ||
        load_longs(st, "fired_polled", t->polled, t->sae.M, err) || load_longs(st, "fired_last", t->last, t->sae.M, err))
        goto done;
    if (counts[2] != t->sae.K) {
        fail(err, "%s: state of k = %lld, expected k = %d; delete it to start again", path, (long long)counts[2], t->sae.K);
        goto done;
    }
    for (int i = n - 1; i >= 0; i--) { /* E last: `staged` then holds it for its bf16 copy */
        const int64_t count = (int64_t)e[i].n;
        const struct tensor *x = tensors_require(st, e[i].name, 1, &count, err);
        if (!x) goto done;
        tensor_to_f32(x, 0, e[i].n, staged);
        device_upload(t->dev, e[i].device, staged, e[i].n * sizeof *staged);
    }
    sae_refresh_low(&t->sae, staged);
    device_upload(t->dev, t->fired, fired, M * sizeof *fired);
    t->steps = (long)counts[0], t->rows = (long)counts[1];
    status = 0;
done:
    free(fired), free(staged);
    return status;
}

int sae_trainer_load(struct sae_trainer *t, const char *path, struct error *err) {
    struct tensors *st = NULL;
    if (tensors_open(&st, path, err)) return -1;
    int status = load_state(t, st, path, err);
    tensors_close(st);
    return status;
}
