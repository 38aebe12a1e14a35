/* attribute.c - scores of all heads from two passes and a gradient (attribute.h):
 *   score[l,h,t] = (z_clean - z_corrupt)[l,t,h] . dm/dz[l,t,h]
 * The gradient is that of the corrupt run, of the clean run, or the mean of those between them. */
#include "analysis/attribute_pass.h"
#include "host/file.h"
#include "host/progress.h"
#include "kernels/activation.h"
#include "kernels/attribution.h"
#include "host/check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const attribute_corruption_names[] = {"mean", "zero", "swap", "prompt", NULL};

int attribute_work_open(struct attribute_work *w, const struct attribute_job *j, struct error *err) {
    *w = (struct attribute_work){.job = j, .m = j->m, .dev = j->m->dev, .H = j->m->n_heads, .D = j->m->head_dim, .C = j->m->d_model};
    w->layers = j->sets[j->n_sets - 1].layer + 1;
    CHECK(w->layers <= j->m->n_layers, "layer %d of %d", w->layers - 1, j->m->n_layers);
    if (attribute_metrics_open(w, err)) return -1;
    return j->corruption == CORRUPT_MEAN ? attribute_mean_row(w, err) : 0;
}

void attribute_work_close(struct attribute_work *w) {
    struct buffer *buffers[] = {&w->staging, &w->stream, &w->z[0], &w->z[1], &w->scores, &w->dx, &w->dots, &w->seeds, &w->work};
    attribute_metrics_close(w);
    llama_tape_free(&w->tape, w->dev);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) buffer_free(buffers[i], w->dev);
    free(w->mean_row);
}

/* ---- one forward pass ---- */
static int store_z(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    const size_t count = (size_t)rows * (size_t)width;
    (void)b, (void)err;
    device_copy(dev, (act_t *)context + (size_t)layer * count, x, count * sizeof(act_t));
    return 0;
}

int attribute_forward(struct attribute_work *w, struct llama_rows *rows, const struct attribute_run *run, struct error *err) {
    const int n_sets = w->job->n_sets, S = run->b->n_samples;
    const size_t count = (size_t)run->b->n_tokens * (size_t)w->C;
    struct probe *list = memory_take((size_t)(n_sets + w->layers) + 1, sizeof *list);
    struct attribute_reading *readings = memory_take((size_t)n_sets, sizeof *readings);
    int n = 0;
    if (run->edit) list[n++] = *run->edit;
    for (int l = 0; run->z && l < w->layers; l++) list[n++] = (struct probe){PROBE_ATTN_Z, l, store_z, run->z}; /* the pass ends there */
    for (int i = 0; i < n_sets; i++) {
        const int layer = w->job->sets[i].layer;
        if (layer < run->from) continue;
        readings[i] = (struct attribute_reading){w, i, run->after, run->m + (size_t)i * (size_t)S,
                                                 run->seeds ? (act_t *)w->seeds.data + (size_t)i * count : NULL};
        list[n++] = (struct probe){PROBE_RESID_POST, layer, attribute_read, &readings[i]};
    }
    const struct probes probes = {list, n, run->b};
    rows->stream = run->stream;
    rows->from = run->from;
    rows->keep = run->keep ? w->tape.layer : NULL;
    const int status = llama_forward(w->m->llm, w->dev, rows, &probes, NULL, err);
    free(list);
    free(readings);
    return status;
}

/* ---- scores of one batch ---- */
struct scoring { /* a probe's context in the backward pass */
    struct attribute_work *w;
    float factor;
};

static int add_seed(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    const size_t count = (size_t)rows * (size_t)width;
    (void)layer, (void)b, (void)err;
    residual_add(dev, x, x, context, count);
    return 0;
}

static int score(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    const struct scoring *s = context;
    const struct attribute_work *w = s->w;
    const size_t z = (size_t)layer * (size_t)rows * (size_t)width, to = (size_t)layer * (size_t)rows * (size_t)w->H;
    (void)b, (void)err;
    head_scores(dev, (real_t *)w->scores.data + to, (const act_t *)w->z[CLEAN].data + z, (const act_t *)w->z[CORRUPT].data + z, x, rows,
                w->H, w->D, s->factor);
    return 0;
}

/* Adds factor * scores under the gradient of the run on the tape. */
static int backward(struct attribute_work *w, const struct llama_rows *rows, const struct batch *b, float factor, struct error *err) {
    const int n_sets = w->job->n_sets;
    const size_t count = (size_t)b->n_tokens * (size_t)w->C;
    struct scoring s = {w, factor};
    struct probe *list = memory_take((size_t)n_sets + 1, sizeof *list);
    list[0] = (struct probe){PROBE_ATTN_Z, -1, score, &s};
    for (int i = 0; i < n_sets; i++)
        list[1 + i] = (struct probe){PROBE_RESID_POST, w->job->sets[i].layer, add_seed, (act_t *)w->seeds.data + (size_t)i * count};
    const struct probes probes = {list, n_sets + 1, b};
    device_zero(w->dev, w->dx.data, count * sizeof(act_t));
    const int status = llama_backward(w->m->llm, w->dev, rows, &w->tape, w->dx.data, &probes, NULL, err);
    free(list);
    return status;
}

/* A run from hook_embed = mix of the pair's: corrupt + at (clean - corrupt). Then its gradient, where it counts. */
static int run_at(struct attribute_work *w, const struct attribute_pair *p, struct llama_rows *rows, double at, act_t *z, float factor,
                  double *m, struct error *err) {
    const int side = at > 0 ? CLEAN : CORRUPT;
    const size_t count = (size_t)p->b[side]->n_tokens * (size_t)w->C;
    const bool keep = factor != 0;
    float *mix = NULL;
    if (at > 0 && at < 1) {
        mix = memory_take(count, sizeof *mix);
        for (size_t i = 0; i < count; i++)
            mix[i] = (float)((double)p->embed[CORRUPT][i] + at * ((double)p->embed[CLEAN][i] - (double)p->embed[CORRUPT][i]));
    }
    const struct attribute_run run = {
        .b = p->b[side], .after = p->after[side], .stream = w->stream.data, .z = z, .keep = keep, .seeds = keep, .m = m};
    int status = attribute_put(w, w->stream.data, mix ? mix : p->embed[side], count, err);
    if (status == 0) status = attribute_forward(w, rows, &run, err);
    if (status == 0 && keep) status = backward(w, rows, run.b, factor, err);
    free(mix);
    return status;
}

/* Room for a batch of N rows; half of what is free is left to the activations that the gradient needs. */
static int reserve(struct attribute_work *w, int N, struct error *err) {
    const size_t n = (size_t)N, C = (size_t)w->C, L = (size_t)w->layers, z = L * n * (size_t)(w->H * w->D) * sizeof(act_t);
    if (buffer_reserve(&w->stream, w->dev, n * C * sizeof(act_t), "a stream", err) ||
        buffer_reserve(&w->dx, w->dev, n * C * sizeof(act_t), "its gradient", err) ||
        buffer_reserve(&w->z[CLEAN], w->dev, z, "hook_z of the clean run", err) ||
        buffer_reserve(&w->z[CORRUPT], w->dev, z, "hook_z of the corrupt run", err) ||
        buffer_reserve(&w->seeds, w->dev, (size_t)w->job->n_sets * n * C * sizeof(act_t), "the metric's gradient", err) ||
        buffer_reserve(&w->scores, w->dev, L * n * (size_t)w->H * sizeof(real_t), "the heads' scores", err))
        return -1;
    device_zero(w->dev, w->scores.data, L * n * (size_t)w->H * sizeof(real_t));
    return llama_tape_reserve(&w->tape, w->m->llm, w->dev, N, w->layers, w->tape.memory.bytes + device_memory_free(w->dev) / 2, err);
}

int attribute_score_pair(struct attribute_work *w, const struct attribute_pair *p, double *m[2], struct error *err) {
    const struct attribute_job *j = w->job;
    struct llama_rows rows;
    act_t *z[2];
    if (reserve(w, p->b[CLEAN]->n_tokens, err) || model_rows(w->m, p->b[CLEAN], &rows, err)) return -1;
    z[CLEAN] = w->z[CLEAN].data, z[CORRUPT] = w->z[CORRUPT].data;
    const int last = j->gradient == GRADIENT_CLEAN ? CLEAN : CORRUPT, first = 1 - last; /* the gradient's run needs both z */
    const float factor = j->gradient == GRADIENT_PATH ? 0.0f : 1.0f;
    if (run_at(w, p, &rows, first == CLEAN, z[first], 0, m[first], err) ||
        run_at(w, p, &rows, last == CLEAN, z[last], factor, m[last], err))
        return -1;
    double *unused = memory_take((size_t)j->n_sets * (size_t)p->b[CLEAN]->n_samples, sizeof *unused);
    int status = 0;
    for (int k = 0; j->gradient == GRADIENT_PATH && k < j->steps && status == 0; k++)
        status = run_at(w, p, &rows, (k + 0.5) / j->steps, NULL, 1.0f / (float)j->steps, unused, err);
    free(unused);
    return status;
}

/* ---- all batches ---- */
static double sum_sets(const struct attribute_work *w, const double *m, int S, int i) {
    double sum = 0;
    for (int k = 0; k < w->job->n_sets; k++) sum += m[(size_t)k * (size_t)S + (size_t)i];
    return sum;
}

/* One sample's scores (layers, H, T) out of the batch's (layers, N, H), and into the sums over samples. */
static float *sample_scores(const struct attribute_work *w, struct attribution *a, const float *all, const struct attribute_pair *p,
                            int i) {
    const struct batch *b = p->b[CLEAN];
    const int from = b->cu_seqlens[i], T = b->cu_seqlens[i + 1] - from, N = b->n_tokens, H = w->H;
    float *out = memory_take((size_t)(w->layers * H) * (size_t)T, sizeof *out);
    int behind = 0;
    for (int t = 0; t < T; t++) behind += p->after[CLEAN][from + t];
    for (int l = 0; l < w->layers; l++)
        for (int h = 0; h < H; h++) {
            const size_t head = (size_t)(l * H + h);
            double sum = 0, size = 0;
            for (int t = 0; t < T; t++) {
                const float v = all[((size_t)l * (size_t)N + (size_t)(from + t)) * (size_t)H + (size_t)h];
                out[head * (size_t)T + (size_t)t] = v;
                sum += (double)v;
                if (p->after[CLEAN][from + t]) size += fabs((double)v);
            }
            a->signed_score[head] += sum;
            a->mean_abs[head] += behind ? size / behind : 0;
        }
    return out;
}

static int attribute_batch(struct attribute_work *w, struct attribution *a, size_t first, size_t n, struct error *err) {
    struct attribute_pair p;
    const int S = (int)n;
    double *m[2] = {memory_take((size_t)w->job->n_sets * n, sizeof(double)), memory_take((size_t)w->job->n_sets * n, sizeof(double))};
    int status = attribute_pair_make(w, &p, first, n, err);
    if (status == 0) status = attribute_score_pair(w, &p, m, err);
    if (status == 0) {
        const size_t count = (size_t)w->layers * (size_t)p.b[CLEAN]->n_tokens * (size_t)w->H;
        float *all = memory_take(count, sizeof *all);
        device_download(w->dev, all, w->scores.data, count * sizeof *all);
        for (int i = 0; i < S; i++) {
            const double metric[2] = {sum_sets(w, m[CLEAN], S, i), sum_sets(w, m[CORRUPT], S, i)};
            float *out = sample_scores(w, a, all, &p, i);
            for (int run = CLEAN; run <= CORRUPT; run++) a->metric[run] += metric[run];
            if (w->job->sample)
                w->job->sample(w->job->context, first + (size_t)i, out, p.b[CLEAN]->cu_seqlens[i + 1] - p.b[CLEAN]->cu_seqlens[i], metric);
            else
                free(out);
        }
        free(all);
    }
    attribute_pair_free(&p);
    free(m[0]);
    free(m[1]);
    return status;
}

int attribute(const struct attribute_job *j, struct attribution *a, struct error *err) {
    struct attribute_work w;
    struct progress progress;
    const size_t total = j->samples->count, size = (size_t)j->batch;
    int status = attribute_work_open(&w, j, err);
    const size_t heads = (size_t)(w.layers * w.H);
    *a = (struct attribution){.layers = w.layers, .heads = w.H};
    a->signed_score = memory_take(heads, sizeof *a->signed_score);
    a->mean_abs = memory_take(heads, sizeof *a->mean_abs);
    progress_start(&progress, "attribute", "samples", (long)total);
    for (size_t first = 0; first < total && status == 0; first += size) {
        const size_t n = total - first < size ? total - first : size;
        status = stop_signal ? 128 + stop_signal : attribute_batch(&w, a, first, n, err);
        progress_update(&progress, (long)(first + n), NULL);
    }
    progress_end(&progress);
    const double share = total ? 1 / (double)total : 0;
    for (size_t i = 0; i < heads; i++) a->signed_score[i] *= share, a->mean_abs[i] *= share;
    a->metric[CLEAN] *= share, a->metric[CORRUPT] *= share;
    if (status == 0 && j->exact) status = attribute_patch(&w, a, err);
    attribute_work_close(&w);
    return status;
}

void attribution_free(struct attribution *a) {
    free(a->signed_score);
    free(a->mean_abs);
    free(a->exact);
    memset(a, 0, sizeof *a);
}
