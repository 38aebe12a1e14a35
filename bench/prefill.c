/* prefill.c - a whole LLaMA prefill: random weights, one prompt of text and image rows, logits of the last token. Verified against
 * the same pass with every row's logits kept. --edits 1: a direction is projected out of attn_out, mlp_out and resid_post of every
 * layer and row. Peer: bench/peers/prefill.py. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/edit.h"
#include "bench/bench.h"
#include "kernels/check.h"
#include "models/llama.h"

enum { VOCAB = 1024 };
static struct llama llama; /* of the op being timed */
static struct llama_rows rows;
static real_t *last_logits; /* (1, VOCAB) */
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
    const int C = b->dim[0], L = b->dim[1], H = b->dim[2], G = b->dim[3], F = b->dim[4], N = b->dim[5], D = C / H;
    CHECK(C % H == 0 && H % G == 0, "width %d, layers %d, heads %d, kv heads %d", C, L, H, G);
    const size_t c = (size_t)C, qkv = (size_t)(H + 2 * G) * (size_t)D * c, o = c * c, gate_up = 2 * (size_t)F * c, down = (size_t)F * c,
                 layer = qkv + o + gate_up + down;
    act_t *w = bench_acts(b, (size_t)L * layer + 2 * VOCAB * c, 1 / sqrt(C)), *norm = bench_acts(b, ((size_t)L * 2 + 1) * c, 1);
    struct error err;
    llama_close(&llama, b->dev);
    memset(&llama, 0, sizeof llama);
    llama.config = (struct llama_config){.V = VOCAB,
                                         .C = C,
                                         .F = F,
                                         .L = L,
                                         .H = H,
                                         .G = G,
                                         .D = D,
                                         .max_positions = N,
                                         .eps = 1e-5f,
                                         .rope = {.theta = 10000, .factor = 1}};
    llama.layers = L;
    llama.layer = calloc((size_t)L, sizeof *llama.layer);
    CHECK(llama.layer, "%d layers", L);
    for (int l = 0; l < L; l++, w += layer, norm += 2 * c)
        llama.layer[l] = (struct llama_layer){norm, w, w + qkv, norm + c, w + qkv + o, w + qkv + o + gate_up};
    llama.final_norm = norm;
    llama.embed = w;
    llama.head = w + VOCAB * c;
    CHECK(!llama_reserve_positions(&llama, b->dev, N, &err), "%s", err.text);
    int *index = malloc((size_t)N * sizeof *index);
    for (int n = 0; n < N; n++) index[n] = n;
    const int *position = bench_ints(b, (size_t)N, index), start[] = {0, N}, length[] = {N}, last[] = {N - 1}, one_each[] = {0, 1};
    free(index);
    const int *starts = bench_ints(b, 2, start);
    rows = (struct llama_rows){.N = N,
                               .S = 1,
                               .max_q = N,
                               .source = bench_below(b, (size_t)N, VOCAB),
                               .position = position,
                               .q_start = starts,
                               .k_start = starts,
                               .k_length = bench_ints(b, 1, length),
                               .last = bench_ints(b, 1, last),
                               .one_each = bench_ints(b, 2, one_each)};
    last_logits = bench_empty(b, VOCAB * sizeof *last_logits);
    prepare_edits(b);
    b->flops = 2.0 * N * (double)layer * L + 2.0 * N * N * C * L; /* products, and half of the scores: causal */
    b->bytes = (double)layer * L * sizeof(act_t);
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
    real_t *whole = bench_empty(b, VOCAB * sizeof *whole);
    const struct probe probe = {PROBE_LOGITS, -1, keep_last, whole};
    struct probes probes = {.batch = &batch};
    struct error err;
    struct probe *at = edits_before(edits, &probe, 1, &probes.n);
    probes.at = at;
    CHECK(!llama_forward(&llama, b->dev, &rows, &probes, NULL, &err), "%s", err.text);
    free(at);
    double *got = bench_read_floats(b, last_logits, 0, VOCAB), *want = bench_read_floats(b, whole, 0, VOCAB);
    bench_expect(b, "last logits", got, want, VOCAB, sizeof(act_t) == 2 ? 0.05 : 1e-4);
    free(got);
    free(want);
}
