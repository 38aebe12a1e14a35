/* prefill.c - a whole LLaMA prefill: random weights, one prompt of text and image rows, logits of the last token. Verified against
 * the same pass with every row's logits kept. Peer: bench/peers/prefill.py. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "kernels/check.h"
#include "models/llama.h"

enum { VOCAB = 1024 };
static struct llama llama; /* of the op being timed */
static struct llama_rows rows;
static real_t *last_logits; /* (1, VOCAB) */

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
    b->flops = 2.0 * N * (double)layer * L + 2.0 * N * N * C * L; /* products, and half of the scores: causal */
    b->bytes = (double)layer * L * sizeof(act_t);
}

void prefill_run(struct bench *b) {
    const struct probes none = {0};
    struct error err;
    CHECK(!llama_forward(&llama, b->dev, &rows, &none, last_logits, &err), "%s", err.text);
}

/* Keeps the last row of all logits. */
static int keep_last(void *context, struct device *dev, int layer, void *x, int n, int width, const struct batch *batch,
                     struct error *err) {
    (void)layer, (void)batch, (void)err;
    device_copy(dev, context, (real_t *)x + (size_t)(n - 1) * (size_t)width, (size_t)width * sizeof(real_t));
    return 0;
}

void prefill_verify(struct bench *b) {
    real_t *whole = bench_empty(b, VOCAB * sizeof *whole);
    const struct probe probe = {PROBE_LOGITS, -1, keep_last, whole};
    const struct probes probes = {&probe, 1, NULL};
    struct error err;
    CHECK(!llama_forward(&llama, b->dev, &rows, &probes, NULL, &err), "%s", err.text);
    double *got = bench_read_floats(b, last_logits, 0, VOCAB), *want = bench_read_floats(b, whole, 0, VOCAB);
    bench_expect(b, "last logits", got, want, VOCAB, sizeof(act_t) == 2 ? 0.05 : 1e-4);
    free(got);
    free(want);
}
