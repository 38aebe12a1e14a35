/* attribution.c - attribution patching of one sample: clean pass, corrupt pass, gradient, scores of every head, by the code of
 * `stagediff attribute`; random weights, 9 rows of 10 are the picture's. Verified against the metric's central difference along
 * clean - corrupt at one head. Peer: bench/peers/attribution.py. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/attribute_pass.h"
#include "bench/bench.h"
#include "kernels/attribution.h"
#include "host/check.h"
#include "models/state.h"

static struct llama llama;
static struct model_state state;
static struct model model;
static struct sae_host sae;
static struct batch batch;
static struct attribute_pair pair;
static struct attribute_work work;
static struct attribute_set set;
static struct attribute_job job;
static const int feature = 0;

static float *host_rows(struct bench *b, size_t n) {
    float *rows = malloc(n * sizeof *rows);
    double *values = bench_read_floats(b, bench_floats(b, n, 1), 0, n);
    CHECK(rows, "%zu", n);
    for (size_t i = 0; i < n; i++) rows[i] = (float)values[i];
    free(values);
    return rows;
}

void attribution_prepare(struct bench *b) {
    const int C = b->dim[0], L = b->dim[1], N = b->dim[5], image = N * 9 / 10;
    const size_t n = (size_t)N, c = (size_t)C;
    struct llama_rows rows;
    struct error err;
    if (work.dev) attribute_work_close(&work);
    attribute_pair_free(&pair);
    batch_free(&batch);
    free(sae.D);
    bench_llama(b, &llama, &rows);
    model = (struct model){
        .dev = b->dev, .llm = &llama, .state = &state, .n_layers = L, .d_model = C, .n_heads = b->dim[2], .head_dim = C / b->dim[2]};
    batch = (struct batch){.n_samples = 1,
                           .n_tokens = N,
                           .longest = N,
                           .cu_seqlens = calloc(2, sizeof(int)),
                           .ids = calloc(n, sizeof(int)),
                           .source = calloc(n, sizeof(int)),
                           .position = calloc(n, sizeof(int))};
    CHECK(batch.cu_seqlens && batch.ids && batch.source && batch.position, "N=%d", N);
    batch.cu_seqlens[1] = N;
    for (int t = 0; t < N; t++) batch.position[t] = t;
    pair.b[CLEAN] = pair.b[CORRUPT] = &batch;
    for (int run = CLEAN; run <= CORRUPT; run++) {
        pair.embed[run] = host_rows(b, n * c);
        pair.after[run] = calloc(n, 1);
        CHECK(pair.after[run], "N=%d", N);
        memset(pair.after[run] + image, 1, (size_t)(N - image));
    }
    memcpy(pair.embed[CORRUPT] + (size_t)image * c, pair.embed[CLEAN] + (size_t)image * c, (n - (size_t)image) * c * sizeof(float));
    sae = (struct sae_host){.d = C, .M = 1, .D = host_rows(b, c), .layer = L - 1};
    set = (struct attribute_set){L - 1, &sae, &feature, 1};
    job = (struct attribute_job){.m = &model, .sets = &set, .n_sets = 1, .batch = 1, .corruption = CORRUPT_SWAP};
    CHECK(!attribute_work_open(&work, &job, &err), "%s", err.text);
    b->flops *= 3; /* two passes; the gradient costs one more: no weights' */
}

static double metric[2];
void attribution_run(struct bench *b) {
    double *m[2] = {&metric[CLEAN], &metric[CORRUPT]};
    struct error err;
    (void)b;
    CHECK(!attribute_score_pair(&work, &pair, m, &err), "%s", err.text);
}

/* hook_z of one layer of the corrupt run moved by part of clean - corrupt at one head. */
struct move {
    float share;
    int layer, head;
};
static int move_head(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    const struct move *v = context;
    const size_t n = (size_t)rows * (size_t)width, at = (size_t)layer * n;
    const int D = work.D;
    act_t *to = malloc(n * sizeof *to), *clean = malloc(n * sizeof *clean);
    (void)b, (void)err;
    CHECK(to && clean, "%zu", n);
    device_download(dev, to, x, n * sizeof *to);
    device_download(dev, clean, (act_t *)work.z[CLEAN].data + at, n * sizeof *clean);
    for (int t = 0; t < rows; t++)
        for (int d = 0; d < D && sizeof(act_t) == sizeof(float); d++) {
            const size_t e = (size_t)t * (size_t)width + (size_t)(v->head * D + d);
            ((float *)(void *)to)[e] += v->share * (((float *)(void *)clean)[e] - ((float *)(void *)to)[e]);
        }
    device_upload(dev, x, to, n * sizeof *to);
    free(to);
    free(clean);
    return 0;
}

void attribution_verify(struct bench *b) {
    const size_t N = (size_t)batch.n_tokens, H = (size_t)work.H;
    struct move move = {0, work.layers / 2, 0};
    const struct probe edit = {PROBE_ATTN_Z, move.layer, move_head, &move};
    struct error err;
    double m[2], *scores = bench_read_floats(b, work.scores.data, (size_t)move.layer * N * H, N * H), got = 0;
    for (size_t t = 0; t < N; t++) got += scores[t * H];
    free(scores);
    bench_expect_true(b, isfinite(got) && got != 0, "scores are finite");
    if (sizeof(act_t) != sizeof(float)) return; /* bf16 drowns the difference; tests/analysis/test_attribute.c has that side */
    for (int side = 0; side < 2; side++) {
        struct llama_rows rows;
        const struct attribute_run run = {
            .b = &batch, .after = pair.after[CORRUPT], .stream = work.stream.data, .edit = &edit, .m = &m[side]};
        move.share = side ? -0.01f : 0.01f;
        CHECK(!attribute_put(&work, work.stream.data, pair.embed[CORRUPT], N * (size_t)work.C, &err) &&
                  !model_rows(&model, &batch, &rows, &err) && !attribute_forward(&work, &rows, &run, &err),
              "%s", err.text);
    }
    const double want = (m[0] - m[1]) / 0.02;
    bench_expect(b, "a head's score", &got, &want, 1, 0.01);
}
