/* model.c - a LLaMA of random weights and one sequence of rows, for prefill.c and attribution.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "host/check.h"
#include "models/llama.h"

void bench_llama(struct bench *b, struct llama *m, struct llama_rows *rows) {
    const int C = b->dim[0], L = b->dim[1], H = b->dim[2], G = b->dim[3], F = b->dim[4], N = b->dim[5], D = C / H;
    CHECK(C % H == 0 && H % G == 0, "width %d, layers %d, heads %d, kv heads %d", C, L, H, G);
    const size_t c = (size_t)C, qkv = (size_t)(H + 2 * G) * (size_t)D * c, o = c * c, gate_up = 2 * (size_t)F * c, down = (size_t)F * c,
                 layer = qkv + o + gate_up + down;
    act_t *w = bench_acts(b, (size_t)L * layer + 2 * BENCH_VOCAB * c, 1 / sqrt(C)), *norm = bench_acts(b, ((size_t)L * 2 + 1) * c, 1);
    struct error err;
    llama_close(m, b->dev);
    memset(m, 0, sizeof *m);
    m->config = (struct llama_config){.V = BENCH_VOCAB,
                                      .C = C,
                                      .F = F,
                                      .L = L,
                                      .H = H,
                                      .G = G,
                                      .D = D,
                                      .max_positions = N,
                                      .eps = 1e-5f,
                                      .rope = {.theta = 10000, .factor = 1}};
    m->layers = L;
    m->layer = calloc((size_t)L, sizeof *m->layer);
    CHECK(m->layer, "%d layers", L);
    for (int l = 0; l < L; l++, w += layer, norm += 2 * c)
        m->layer[l] = (struct llama_layer){norm, w, w + qkv, norm + c, w + qkv + o, w + qkv + o + gate_up};
    m->final_norm = norm;
    m->embed = w;
    m->head = w + BENCH_VOCAB * c;
    CHECK(!llama_reserve_positions(m, b->dev, N, &err), "%s", err.text);
    int *index = malloc((size_t)N * sizeof *index);
    for (int n = 0; n < N; n++) index[n] = n;
    const int *position = bench_ints(b, (size_t)N, index), start[] = {0, N}, length[] = {N}, last[] = {N - 1}, one_each[] = {0, 1};
    free(index);
    const int *starts = bench_ints(b, 2, start);
    *rows = (struct llama_rows){.N = N,
                                .S = 1,
                                .max_q = N,
                                .source = bench_below(b, (size_t)N, BENCH_VOCAB),
                                .position = position,
                                .q_start = starts,
                                .k_start = starts,
                                .k_length = bench_ints(b, 1, length),
                                .last = bench_ints(b, 1, last),
                                .one_each = bench_ints(b, 2, one_each)};
    b->flops = 2.0 * N * (double)layer * L + 2.0 * N * N * C * L; /* products, and half of the scores: causal */
    b->bytes = (double)layer * L * sizeof(act_t);
}
