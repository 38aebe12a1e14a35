/* prefill.c - a whole LLaMA prefill: random weights, one prompt of text and image rows, logits of the last token. Verified against
 * the same pass with every row's logits kept. --edits 1: a direction is projected out of attn_out, mlp_out and resid_post of every
 * layer and row. Peer: bench/peers/prefill.py. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/edit.h"
#include "bench/bench.h"
#include "host/check.h"
#include "models/llama.h"

static struct llama llama; /* of the op being timed */
static struct llama_rows rows;
static real_t *last_logits; /* (1, BENCH_VOCAB) */
static struct edits *edits; /* NULL: none */
static struct batch batch;  /* what edits are told of the rows */

static void prepare_edits(struct bench *b) {
    const int C = b->dim[0], L = b->dim[1], N = b->dim[5];
    static struct edit edit = {.op = EDIT_PROJECT_OUT, .kinds = 1u << KIND_QUESTION, .points = {true, true, true}, .scale = 1};
    const struct edit_list list = {.at = &edit, .n = 1};
    const struct model m = {.dev = b->dev, .n_layers = L, .d_model = C, .n_heads = b->dim[2], .head_dim = C / b->dim[2]};
    struct error err;
    edits_close(edits);
    batch_free(&batch);
    free(edit.layers), free(edit.vector);
    edits = NULL;
    edit.layers = calloc((size_t)L, sizeof *edit.layers);
    edit.vector = calloc((size_t)C, sizeof *edit.vector);
    batch = (struct batch){.n_samples = 1,
                           .n_tokens = N,
                           .cu_seqlens = calloc(2, sizeof(int)),
                           .ids = calloc((size_t)N, sizeof(int)),
                           .kinds = malloc((size_t)N)};
    CHECK(edit.layers && edit.vector && batch.cu_seqlens && batch.ids && batch.kinds, "N=%d C=%d", N, C);
    memset(batch.kinds, KIND_QUESTION, (size_t)N);
    batch.cu_seqlens[1] = N;
    for (int l = 0; l < L; l++) edit.layers[l] = true;
    for (int c = 0; c < C; c++) edit.vector[c] = (float)((c % 2 ? 1 : -1) / sqrt(C));
    if (b->dim[6]) CHECK(!edits_open(&edits, &m, &list, &err), "%s", err.text);
}

void prefill_prepare(struct bench *b) {
    bench_llama(b, &llama, &rows);
    last_logits = bench_empty(b, BENCH_VOCAB * sizeof *last_logits);
    prepare_edits(b);
}

void prefill_run(struct bench *b) {
    struct probes probes = {.batch = &batch};
    struct error err;
    struct probe *at = edits_before(edits, NULL, 0, &probes.n);
    probes.at = at;
    CHECK(!llama_forward(&llama, b->dev, &rows, &probes, last_logits, &err), "%s", err.text);
    free(at);
}

/* Keeps the last row of all logits. */
static int keep_last(void *context, struct device *dev, int layer, void *x, int n, int width, const struct batch *of, struct error *err) {
    (void)layer, (void)of, (void)err;
    device_copy(dev, context, (real_t *)x + (size_t)(n - 1) * (size_t)width, (size_t)width * sizeof(real_t));
    return 0;
}

void prefill_verify(struct bench *b) {
    real_t *whole = bench_empty(b, BENCH_VOCAB * sizeof *whole);
    const struct probe probe = {PROBE_LOGITS, -1, keep_last, whole};
    struct probes probes = {.batch = &batch};
    struct error err;
    struct probe *at = edits_before(edits, &probe, 1, &probes.n);
    probes.at = at;
    CHECK(!llama_forward(&llama, b->dev, &rows, &probes, NULL, &err), "%s", err.text);
    free(at);
    double *got = bench_read_floats(b, last_logits, 0, BENCH_VOCAB), *want = bench_read_floats(b, whole, 0, BENCH_VOCAB);
    bench_expect(b, "last logits", got, want, BENCH_VOCAB, sizeof(act_t) == 2 ? 0.05 : 1e-4);
    free(got);
    free(want);
}
