/* attribute_metric.c - what attribution differentiates (attribute_pass.h): over rows h behind the image and the set's features f
 *   direction  m = sum h . d_f               dm/dh = sum_f d_f
 *   code       m = sum z_f(h)                dm/dh = sum of E_f over features that are active in h (gates held, as autograd has it) */
#include "analysis/attribute_pass.h"
#include "host/file.h"
#include "kernels/activation.h"
#include "kernels/attribution.h"
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1024, SLOTS = 128 }; /* rows encoded at once; code slots a row to begin with where their number is open */

struct attribute_metric {
    const struct attribute_set *set;
    float *vector;     /* (C) sum of decoder rows, on the host */
    real_t *direction; /* the same on the device */
    struct sae sae;    /* code only */
    uint8_t *wanted;   /* (M) */
};

static int open_one(struct attribute_work *w, struct attribute_metric *k, struct error *err) {
    const struct attribute_set *s = k->set;
    const size_t C = (size_t)w->C;
    if (s->sae->d != w->C)
        return fail(err,
                    "the dictionary has rows of %d, the model's residual stream is %d wide; give the dictionary of this model's layer %d",
                    s->sae->d, w->C, s->layer);
    if (w->job->code && sae_check_plain(s->sae, err)) return error_context(err, "--metric code");
    k->vector = memory_take(C, sizeof *k->vector);
    k->wanted = memory_take((size_t)s->sae->M, 1);
    double *sum = memory_take(C, sizeof *sum);
    for (int i = 0; i < s->n; i++) {
        k->wanted[s->features[i]] = 1;
        for (size_t c = 0; c < C; c++) sum[c] += (double)s->sae->D[(size_t)s->features[i] * C + c];
    }
    for (size_t c = 0; c < C; c++) k->vector[c] = (float)sum[c];
    free(sum);
    if (w->job->code) return sae_upload(&k->sae, w->dev, s->sae, CHUNK, false, err);
    k->direction = device_alloc(w->dev, C * sizeof *k->direction);
    if (!k->direction) return fail(err, "out of memory on %s: a direction of %d numbers", device_name(w->dev), w->C);
    device_upload(w->dev, k->direction, k->vector, C * sizeof *k->vector);
    return 0;
}

int attribute_metrics_open(struct attribute_work *w, struct error *err) {
    w->metric = memory_take((size_t)w->job->n_sets, sizeof *w->metric);
    for (int i = 0; i < w->job->n_sets; i++) {
        w->metric[i].set = &w->job->sets[i];
        if (open_one(w, &w->metric[i], err)) return -1;
    }
    return 0;
}

void attribute_metrics_close(struct attribute_work *w) {
    for (int i = 0; w->metric && i < w->job->n_sets; i++) {
        struct attribute_metric *k = &w->metric[i];
        device_free(w->dev, k->direction);
        if (k->sae.dev) sae_free(&k->sae);
        free(k->vector);
        free(k->wanted);
    }
    free(w->metric);
}

/* ---- direction ---- */
static int read_direction(const struct attribute_reading *r, const act_t *x, const struct batch *b, struct error *err) {
    struct attribute_work *w = r->w;
    const struct attribute_metric *k = &w->metric[r->set];
    const int N = b->n_tokens;
    const size_t C = (size_t)w->C;
    if (buffer_reserve(&w->dots, w->dev, (size_t)N * sizeof(real_t), "a metric's rows", err)) return -1;
    row_dots(w->dev, w->dots.data, x, k->direction, N, w->C);
    float *dots = memory_take((size_t)N, sizeof *dots);
    device_download(w->dev, dots, w->dots.data, (size_t)N * sizeof *dots);
    for (int i = 0; i < b->n_samples; i++)
        for (int t = b->cu_seqlens[i]; t < b->cu_seqlens[i + 1]; t++)
            if (r->after[t]) r->m[i] += (double)dots[t];
    free(dots);
    if (!r->seed) return 0;
    float *seed = memory_take((size_t)N * C, sizeof *seed);
    for (int t = 0; t < N; t++)
        if (r->after[t]) memcpy(seed + (size_t)t * C, k->vector, C * sizeof *seed);
    const int status = attribute_put(w, r->seed, seed, (size_t)N * C, err);
    free(seed);
    return status;
}

/* ---- code ---- */
struct codes { /* of a chunk of rows, placed in work */
    act_t *x;
    int *list, *indices, *counts, K;
    real_t *values;
};

static int take_codes(struct attribute_work *w, struct codes *c, int K, struct error *err) {
    for (int placing = 0; placing < 2; placing++) {
        struct arena a = {.base = placing ? w->work.data : NULL};
        c->x = arena_acts(&a, CHUNK, (size_t)w->C);
        c->list = arena_take(&a, CHUNK * sizeof(int));
        c->indices = arena_take(&a, (size_t)CHUNK * (size_t)K * sizeof(int));
        c->values = arena_take(&a, (size_t)CHUNK * (size_t)K * sizeof(real_t));
        c->counts = arena_take(&a, CHUNK * sizeof(int));
        if (!placing && buffer_reserve(&w->work, w->dev, a.used, "codes", err)) return -1;
    }
    c->K = K;
    return 0;
}

/* Codes of the n rows of x in list (host); where a row has more than there are slots, once more with enough. */
static int encode(struct attribute_work *w, struct sae *sae, struct codes *c, const act_t *x, const int *list, int n, struct error *err) {
    for (int most = c->K;; most = 0) {
        device_upload(w->dev, c->list, list, (size_t)n * sizeof *list);
        gather_rows(w->dev, c->x, x, c->list, n, w->C);
        sae_encode(sae, c->indices, c->values, c->counts, c->x, n, c->K);
        if (sae_fixed_k(sae->activation) || most == 0) return 0;
        int *counts = memory_take((size_t)n, sizeof *counts);
        device_download(w->dev, counts, c->counts, (size_t)n * sizeof *counts);
        for (int i = 0; i < n; i++) most = counts[i] > most ? counts[i] : most;
        free(counts);
        if (most == c->K) return 0;
        if (take_codes(w, c, most, err)) return -1;
    }
}

static int read_code(const struct attribute_reading *r, const act_t *x, const struct batch *b, struct error *err) {
    struct attribute_work *w = r->w;
    struct attribute_metric *k = &w->metric[r->set];
    const size_t C = (size_t)w->C, N = (size_t)b->n_tokens;
    const int K = sae_fixed_k(k->sae.activation) ? k->sae.K : k->sae.M < SLOTS ? k->sae.M : SLOTS;
    int *rows = memory_take(2 * N, sizeof *rows), *sample = rows + N, n = 0, status = -1;
    float *seed = r->seed ? memory_take(N * C, sizeof *seed) : NULL;
    struct codes c;
    for (int i = 0; i < b->n_samples; i++)
        for (int t = b->cu_seqlens[i]; t < b->cu_seqlens[i + 1]; t++)
            if (r->after[t]) rows[n] = t, sample[n++] = i;
    if (take_codes(w, &c, K, err)) goto cleanup;
    for (int first = 0; first < n; first += CHUNK) {
        const int count = n - first < CHUNK ? n - first : CHUNK;
        if (encode(w, &k->sae, &c, x, rows + first, count, err)) goto cleanup;
        const size_t slots = (size_t)count * (size_t)c.K;
        int *indices = memory_take(slots, sizeof *indices);
        float *values = memory_take(slots, sizeof *values);
        device_download(w->dev, indices, c.indices, slots * sizeof *indices);
        device_download(w->dev, values, c.values, slots * sizeof *values);
        for (size_t e = 0; e < slots; e++) {
            const size_t at = (size_t)first + e / (size_t)c.K;
            if (indices[e] < 0 || !k->wanted[indices[e]] || values[e] == 0) continue;
            r->m[sample[at]] += (double)values[e];
            const float *E = k->set->sae->E + (size_t)indices[e] * C;
            for (size_t d = 0; seed && d < C; d++) seed[(size_t)rows[at] * C + d] += E[d];
        }
        free(indices);
        free(values);
    }
    status = seed ? attribute_put(w, r->seed, seed, N * C, err) : 0;
cleanup:
    free(rows);
    free(seed);
    return status;
}

int attribute_read(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    const struct attribute_reading *r = context;
    (void)dev, (void)layer, (void)rows, (void)width;
    memset(r->m, 0, (size_t)b->n_samples * sizeof *r->m);
    return r->w->job->code ? read_code(r, x, b, err) : read_direction(r, x, b, err);
}
