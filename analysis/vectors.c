/* vectors.c - see vectors.h. Rows leave the device a batch at a time; sums are kept in double. */
#include "analysis/vectors.h"
#include "host/file.h"
#include "host/progress.h"
#include "kernels/activation.h"
#include "models/ahead.h"
#include "models/arena.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "kernels/sae_ops.h"

double vector_norm(const float *v, int width) {
    double square = 0;
    for (int c = 0; c < width; c++) square += (double)v[c] * (double)v[c];
    return sqrt(square);
}

void mmdiff_scale(float *v, const float *direction, int width, double beta) {
    const double norm = vector_norm(v, width), length = vector_norm(direction, width);
    double dot = 0;
    for (int c = 0; c < width; c++) dot += (double)v[c] / norm * ((double)direction[c] / length);
    for (int c = 0; c < width; c++) v[c] = (float)((double)v[c] / norm + (beta - 1) * dot * ((double)direction[c] / length));
}

void mmdiff_sum(float *v, const float *direction, int width, double alpha, double gamma) {
    const double length = vector_norm(direction, width);
    for (int c = 0; c < width; c++) v[c] = (float)(alpha * (double)v[c] + gamma * ((double)direction[c] / length));
}

/* ---- the last rows of prompts, at every layer ---- */
struct capture {
    struct buffer work; /* (S) i32 rows, (S, C) act, (S, C) real */
    float *rows;        /* host (L, S, C) */
    int S, C;
    int passes; /* since the batch began: only the prompts' is looked at */
    int *index;
    act_t *act;
    real_t *real;
};

static int find_rows(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    struct capture *c = context;
    (void)layer, (void)x, (void)rows;
    if (c->passes++) return 0;
    c->S = b->n_samples, c->C = width;
    const size_t S = (size_t)c->S;
    for (int placing = 0; placing < 2; placing++) {
        struct arena a = {.base = placing ? c->work.data : NULL};
        c->index = arena_take(&a, S * sizeof(int));
        c->act = arena_acts(&a, S, (size_t)width);
        c->real = arena_take(&a, S * (size_t)width * sizeof(real_t));
        if (!placing && buffer_reserve(&c->work, dev, a.used, "the last rows of a batch", err)) return -1;
    }
    int *last = memory_take(S, sizeof *last);
    for (int i = 0; i < c->S; i++) last[i] = b->cu_seqlens[i + 1] - 1;
    device_upload(dev, c->index, last, S * sizeof *last);
    free(last);
    return 0;
}

static int take_rows(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    struct capture *c = context;
    const size_t n = (size_t)c->S * (size_t)c->C;
    (void)rows, (void)width, (void)b, (void)err;
    if (c->passes > 1) return 0;
    gather_rows(dev, c->act, x, c->index, c->S, c->C);
    real_from_act(dev, c->real, c->act, n);
    device_download(dev, c->rows + (size_t)layer * n, c->real, n * sizeof *c->rows);
    return 0;
}

/* ---- CAA ---- */
struct sums {
    double *side[2]; /* (L, C): wrong, right */
    long n[2];
};

static void add_row(struct sums *u, const struct capture *c, int L, int i, int right) {
    u->n[right]++;
    for (int l = 0; l < L; l++)
        for (int k = 0; k < c->C; k++)
            u->side[right][(size_t)l * (size_t)c->C + (size_t)k] +=
                (double)c->rows[((size_t)l * (size_t)c->S + (size_t)i) * (size_t)c->C + (size_t)k];
}

/* The other of yes and no in the same letters. */
static const char *opposite(const char *answer) {
    static const char *const pairs[][2] = {{"Yes", "No"}, {"yes", "no"}, {"YES", "NO"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        for (int j = 0; j < 2; j++)
            if (!strcmp(answer, pairs[i][j])) return pairs[i][1 - j];
    return NULL;
}

static int answers_of(const struct sample *s, const char *path, const char *pair[2], struct error *err) {
    const char **list = NULL;
    pair[1] = s->label == 1 ? "Yes" : s->label == 0 ? "No" : s->answer;
    if (!pair[1]) {
        const int n = references_of(s, &list, err);
        if (n < 0) return error_context(err, "%s, line %ld", path, s->line);
        pair[1] = n ? list[0] : NULL;
        free(list);
    }
    const char *incorrect = json_string_value(json_object_get(s->json, "incorrect"));
    pair[0] = incorrect ? incorrect : pair[1] ? opposite(pair[1]) : NULL;
    if (pair[0] && pair[1]) return 0;
    return fail(err, "%s, line %ld: needs %s to tell right from wrong", path, s->line,
                pair[1] ? "the key 'incorrect', a wrong answer (its answer is neither yes nor no)," : "an 'answer' (or a VSR label)");
}

/* Right and wrong answers appended, two samples a line. */
static int pass_answers(struct model *m, struct capture *c, const struct probe *probes, int n, const struct samples *s, size_t first,
                        size_t count, struct sums *u, struct error *err) {
    struct samples both = {.at = memory_take(2 * count, sizeof *both.at), .count = 2 * count, .path = s->path};
    struct batch b = {0};
    int status = 0;
    for (size_t i = 0; i < count && status == 0; i++) {
        const char *pair[2];
        status = answers_of(&s->at[first + i], s->path, pair, err);
        for (size_t j = 0; j < 2 && status == 0; j++) {
            both.at[2 * i + j] = s->at[first + i];
            both.at[2 * i + j].answer = (char *)(uintptr_t)pair[j]; /* read only */
        }
    }
    if (status == 0) status = model_batch(m, &b, &both, 0, both.count, true, err) || model_forward(m, &b, probes, n, NULL, err) ? -1 : 0;
    for (int i = 0; i < c->S && status == 0; i++) add_row(u, c, m->n_layers, i, i % 2);
    batch_free(&b);
    free(both.at);
    return status;
}

static int pass_outcomes(struct model *m, struct capture *c, const struct probe *probes, int n, const struct samples *s, size_t first,
                         size_t count, enum evaluation_task task, struct sums *u, struct error *err) {
    struct evaluation e = {.task = task};
    const int status = evaluate_samples(m, s, first, count, probes, n, (int)count, &e, err);
    for (size_t i = 0; i < e.count && status == 0; i++)
        if (!isnan(e.at[i].score)) add_row(u, c, m->n_layers, (int)i, e.at[i].score >= 0.5);
    evaluation_free(&e);
    return status;
}

int caa_make(struct caa *c, struct model *m, const struct samples *s, size_t first, size_t count, enum contrast contrast,
             enum evaluation_task task, int batch, struct error *err) {
    const size_t size = (size_t)m->n_layers * (size_t)m->d_model;
    struct capture capture = {.rows = memory_take(2 * (size_t)batch * size, sizeof(float))};
    const struct probe probes[] = {{PROBE_EMBED, -1, find_rows, &capture}, {PROBE_RESID_POST, -1, take_rows, &capture}};
    struct sums u = {.side = {memory_take(size, sizeof(double)), memory_take(size, sizeof(double))}};
    struct progress progress;
    int status = 0;
    *c = (struct caa){.layers = m->n_layers, .width = m->d_model};
    progress_start(&progress, "contrast", "samples", (long)count);
    for (size_t at = 0; at < count && status == 0; at += (size_t)batch) {
        const size_t n = count - at < (size_t)batch ? count - at : (size_t)batch;
        capture.passes = 0;
        status = stop_signal                    ? 128 + stop_signal
                 : contrast == CONTRAST_ANSWERS ? pass_answers(m, &capture, probes, 2, s, first + at, n, &u, err)
                                                : pass_outcomes(m, &capture, probes, 2, s, first + at, n, task, &u, err);
        progress_update(&progress, (long)(at + n), NULL);
    }
    progress_end(&progress);
    c->negative = u.n[0], c->positive = u.n[1];
    if (status == 0 && (!u.n[0] || !u.n[1]))
        status = fail(err, "%s: the model answers all of its %ld scored lines %s, so there is nothing to contrast; give other lines",
                      s->path, u.n[0] + u.n[1], u.n[0] ? "wrong" : "right");
    if (status == 0) {
        c->vectors = memory_take(size, sizeof *c->vectors);
        for (size_t i = 0; i < size; i++) c->vectors[i] = (float)(u.side[1][i] / (double)u.n[1] - u.side[0][i] / (double)u.n[0]);
    }
    buffer_free(&capture.work, m->dev);
    free(capture.rows), free(u.side[0]), free(u.side[1]);
    return status;
}

void caa_free(struct caa *c) {
    free(c->vectors);
    *c = (struct caa){0};
}

/* ---- means of heads ---- */
struct column_sums {
    struct buffer work; /* mean, channel variance, (width) each; its sum */
    double *sum;        /* (L, width) */
    float *host;        /* (width) */
};

static int add_columns(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b,
                       struct error *err) {
    struct column_sums *c = context;
    const size_t W = (size_t)width;
    (void)b;
    if (buffer_reserve(&c->work, dev, (2 * W + 1) * sizeof(real_t), "column means", err)) return -1;
    real_t *mean = c->work.data;
    sae_moments(dev, mean, mean + W, mean + 2 * W, x, rows, width);
    device_download(dev, c->host, mean, W * sizeof *c->host);
    for (size_t i = 0; i < W; i++) c->sum[(size_t)layer * W + i] += (double)rows * (double)c->host[i];
    return 0;
}

int head_means(float *means, struct model *m, const struct samples *s, size_t first, size_t count, int batch, struct error *err) {
    const size_t width = (size_t)m->n_heads * (size_t)m->head_dim, size = (size_t)m->n_layers * width;
    struct column_sums c = {.sum = memory_take(size, sizeof *c.sum), .host = memory_take(width, sizeof *c.host)};
    const struct probe probe = {PROBE_ATTN_Z, -1, add_columns, &c};
    struct progress progress;
    struct ahead ahead = {.m = m, .s = s};
    double tokens = 0;
    int status = 0;
    progress_start(&progress, "means", "samples", (long)count);
    for (size_t at = 0; at < count && status == 0; at += (size_t)batch) {
        const size_t n = count - at < (size_t)batch ? count - at : (size_t)batch;
        struct batch b = {0};
        status = stop_signal ? 128 + stop_signal : ahead_next(&ahead, &b, first + at, (size_t)batch, first + count, err);
        if (status == 0) status = model_forward(m, &b, &probe, 1, NULL, err);
        tokens += b.n_tokens;
        batch_free(&b);
        progress_update(&progress, (long)(at + n), NULL);
    }
    progress_end(&progress);
    ahead_end(&ahead);
    for (size_t i = 0; i < size && status == 0; i++) means[i] = (float)(c.sum[i] / tokens);
    buffer_free(&c.work, m->dev);
    free(c.sum), free(c.host);
    return status;
}
