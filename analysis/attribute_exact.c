/* attribute_exact.c - heads patched for true: m(corrupt run with the head's z of the clean run) - m(corrupt). Layers below the head
 * are run once for all; the heads of a layer go together, one copy of the batch for each (attribute_pass.h). */
#include "analysis/attribute_pass.h"
#include "analysis/paired.h"
#include "host/file.h"
#include "host/progress.h"
#include "kernels/attribution.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ROWS = 8192 }; /* of the copies that run together */

static int by_size(const void *a, const void *b) {
    const struct attribute_exact *x = a, *y = b;
    const double p = fabs(x->estimate), q = fabs(y->estimate);
    if (p != q) return p < q ? 1 : -1;
    return x->layer != y->layer ? x->layer - y->layer : x->head - y->head;
}

static int by_place(const void *a, const void *b) {
    const struct attribute_exact *x = a, *y = b;
    return x->layer != y->layer ? x->layer - y->layer : x->head - y->head;
}

/* The N heads of largest |signed|, falling; then N others drawn with the seed, by layer and head. */
static void choose(struct attribution *a, int N, uint64_t seed) {
    const int total = a->layers * a->heads, top = N < total ? N : total, drawn = N < total - top ? N : total - top;
    struct attribute_exact *all = memory_take((size_t)total, sizeof *all);
    for (int i = 0; i < total; i++) all[i] = (struct attribute_exact){i / a->heads, i % a->heads, 0, a->signed_score[i]};
    qsort(all, (size_t)total, sizeof *all, by_size);
    struct attribute_exact *rest = all + top;
    qsort(rest, (size_t)(total - top), sizeof *rest, by_place);
    for (int i = 0; i < drawn; i++) { /* the first steps of a Fisher-Yates shuffle */
        const size_t k = (size_t)i + random_below(&seed, (size_t)(total - top - i));
        const struct attribute_exact kept = rest[i];
        rest[i] = rest[k];
        rest[k] = kept;
    }
    qsort(rest, (size_t)drawn, sizeof *rest, by_place);
    a->exact = all;
    a->n_exact = top + drawn;
}

/* `copies` of a batch's tokens end to end, as model_rows and the metric look at them. */
static void repeat(struct batch *to, uint8_t **after, const struct batch *b, const uint8_t *b_after, int copies) {
    const size_t N = (size_t)b->n_tokens, n = (size_t)copies;
    *to = (struct batch){.n_samples = copies * b->n_samples, .n_tokens = copies * b->n_tokens, .longest = b->longest};
    to->cu_seqlens = memory_take(n * (size_t)b->n_samples + 1, sizeof *to->cu_seqlens);
    to->source = memory_take(n * N, sizeof *to->source);
    to->position = memory_take(n * N, sizeof *to->position);
    *after = memory_take(n * N, 1);
    for (int r = 0; r < copies; r++) {
        const size_t at = (size_t)r * N;
        memcpy(to->source + at, b->source, N * sizeof *to->source);
        memcpy(to->position + at, b->position, N * sizeof *to->position);
        memcpy(*after + at, b_after, N);
        for (int i = 0; i < b->n_samples; i++) to->cu_seqlens[r * b->n_samples + i + 1] = r * b->n_tokens + b->cu_seqlens[i + 1];
    }
}

struct patch { /* a probe's context: copy r of the batch gets head[r] of the clean run */
    const struct attribute_work *w;
    const act_t *clean; /* (N, H*D), of the layer */
    const int *head;
    int N, copies;
};

static int put_heads(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    const struct patch *p = context;
    (void)layer, (void)rows, (void)b, (void)err;
    for (int r = 0; r < p->copies; r++)
        head_copy(dev, (act_t *)x + (size_t)r * (size_t)p->N * (size_t)width, p->clean, p->head[r], p->N, p->w->H, p->w->D);
    return 0;
}

/* Heads at[0 .. copies) of one layer; adds each one's effect, summed over the batch's samples. m: the corrupt run's metric. */
static int patch_layer(struct attribute_work *w, const struct attribute_pair *p, struct attribute_exact *const *at, int copies,
                       const double *m, struct error *err) {
    const struct batch *b = p->b[CORRUPT];
    const int layer = at[0]->layer, N = b->n_tokens, S = b->n_samples, n_sets = w->job->n_sets;
    const size_t stream = (size_t)N * (size_t)w->C, z = (size_t)N * (size_t)(w->H * w->D);
    struct batch all;
    struct llama_rows rows;
    uint8_t *after;
    int *head = memory_take((size_t)copies, sizeof *head);
    double *patched = memory_take((size_t)n_sets * (size_t)copies * (size_t)S, sizeof *patched);
    repeat(&all, &after, b, p->after[CORRUPT], copies);
    for (int r = 0; r < copies; r++) head[r] = at[r]->head;
    struct patch patch = {w, (const act_t *)w->z[CLEAN].data + (size_t)layer * z, head, N, copies};
    const struct probe edit = {PROBE_ATTN_Z, layer, put_heads, &patch};
    int status = buffer_reserve(&w->stream, w->dev, (size_t)copies * stream * sizeof(act_t), "copies of a batch", err);
    for (int r = 0; status == 0 && r < copies; r++)
        device_copy(w->dev, (act_t *)w->stream.data + (size_t)r * stream, w->tape.layer[layer].x, stream * sizeof(act_t));
    const struct attribute_run run = {.b = &all, .after = after, .stream = w->stream.data, .from = layer, .edit = &edit, .m = patched};
    if (status == 0) status = model_rows(w->m, &all, &rows, err);
    if (status == 0) status = attribute_forward(w, &rows, &run, err);
    for (int k = 0; status == 0 && k < n_sets; k++)
        for (int r = 0; w->job->sets[k].layer >= layer && r < copies; r++)
            for (int i = 0; i < S; i++)
                at[r]->effect += patched[(size_t)k * (size_t)all.n_samples + (size_t)(r * S + i)] - m[(size_t)k * (size_t)S + (size_t)i];
    free(after);
    free(head);
    free(patched);
    batch_free(&all);
    return status;
}

/* Clean and corrupt runs of the pair once more: hook_z of the one, the residual stream before every layer of the other, its metric. */
static int run_pair(struct attribute_work *w, const struct attribute_pair *p, double *m, struct error *err) {
    struct llama_rows rows;
    const int N = p->b[CLEAN]->n_tokens;
    const size_t stream = (size_t)N * (size_t)w->C;
    const size_t z = (size_t)w->layers * (size_t)N * (size_t)(w->H * w->D) * sizeof(act_t);
    if (model_rows(w->m, p->b[CLEAN], &rows, err) || llama_tape_reserve(&w->tape, w->m->llm, w->dev, N, w->layers, 0, err) ||
        buffer_reserve(&w->stream, w->dev, stream * sizeof(act_t), "a stream", err) ||
        buffer_reserve(&w->z[CLEAN], w->dev, z, "hook_z of the clean run", err))
        return -1;
    for (int run = CLEAN; run <= CORRUPT; run++) {
        const struct attribute_run r = {.b = p->b[run],
                                        .after = p->after[run],
                                        .stream = w->stream.data,
                                        .z = run == CLEAN ? w->z[CLEAN].data : NULL,
                                        .keep = run == CORRUPT,
                                        .m = m};
        if (attribute_put(w, w->stream.data, p->embed[run], stream, err) || attribute_forward(w, &rows, &r, err)) return -1;
    }
    return 0;
}

static int patch_batch(struct attribute_work *w, struct attribute_exact **order, int n, size_t first, size_t count, struct error *err) {
    struct attribute_pair p;
    double *m = memory_take((size_t)w->job->n_sets * count, sizeof *m);
    int status = attribute_pair_make(w, &p, first, count, err);
    if (status == 0) status = run_pair(w, &p, m, err);
    const int N = status ? 1 : p.b[CLEAN]->n_tokens, most = N < MOST_ROWS ? MOST_ROWS / N : 1;
    for (int i = 0, copies; i < n && status == 0; i += copies) {
        copies = 1;
        while (i + copies < n && copies < most && order[i + copies]->layer == order[i]->layer) copies++;
        status = patch_layer(w, &p, order + i, copies, m, err);
    }
    attribute_pair_free(&p);
    free(m);
    return status;
}

static int by_layer(const void *a, const void *b) {
    return by_place(*(struct attribute_exact *const *)a, *(struct attribute_exact *const *)b);
}

int attribute_patch(struct attribute_work *w, struct attribution *a, struct error *err) {
    const size_t total = w->job->samples->count, size = (size_t)w->job->batch;
    struct progress progress;
    int status = 0;
    choose(a, w->job->exact, w->job->seed);
    struct attribute_exact **order = memory_take((size_t)a->n_exact, sizeof(struct attribute_exact *));
    for (int i = 0; i < a->n_exact; i++) order[i] = &a->exact[i];
    qsort(order, (size_t)a->n_exact, sizeof *order, by_layer);
    progress_start(&progress, "patch heads", "samples", (long)total);
    for (size_t first = 0; first < total && status == 0; first += size) {
        const size_t n = total - first < size ? total - first : size;
        status = stop_signal ? 128 + stop_signal : patch_batch(w, order, a->n_exact, first, n, err);
        progress_update(&progress, (long)(first + n), NULL);
    }
    progress_end(&progress);
    for (int i = 0; i < a->n_exact; i++) a->exact[i].effect /= (double)(total ? total : 1);
    free(order);
    return status;
}
