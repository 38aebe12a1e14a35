/* ops_model.c - the transformer's ops: usual shapes, counted work, and a check of the first and last row against the
 * double oracle. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "kernels/activation.h"
#include "kernels/argmax.h"
#include "kernels/attention.h"
#include "host/check.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/ref_begin.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/ref_end.h"

static const double act = sizeof(act_t);
static size_t area(int a, int b) { return (size_t)a * (size_t)b; }

/* a row of an act tensor against what the oracle makes of it; frees both */
static void expect_row(struct bench *b, const char *what, const void *tensor, int row, int width, double *want) {
    double *got = bench_read_acts(b, tensor, area(row, width), (size_t)width);
    bench_expect(b, what, got, want, (size_t)width, bench_act_tolerance);
    free(got);
    free(want);
}

static double *doubles(size_t n) {
    double *p = malloc(n * sizeof *p);
    CHECK(p, "%zu doubles", n);
    return p;
}

/* ---- linear: tensors x, w, y ---- */
static void linear_prepare(struct bench *b) {
    int N = b->dim[0], I = b->dim[1], O = b->dim[2];
    bench_acts(b, area(N, I), 1), bench_acts(b, area(O, I), 1 / sqrt(I)), bench_empty(b, area(N, O) * sizeof(act_t));
    b->flops = 2.0 * N * I * O;
    b->bytes = act * ((double)N * I + (double)I * O + (double)N * O);
}
static void linear_run(struct bench *b) {
    linear_forward(b->dev, b->tensor[2], b->tensor[0], b->tensor[1], NULL, b->dim[0], b->dim[1], b->dim[2]);
}
static void linear_verify(struct bench *b) {
    int I = b->dim[1], O = b->dim[2];
    double *w = bench_read_acts(b, b->tensor[1], 0, area(O, I));
    for (int n = 0; n<b->dim[0]; n += b->dim[0]> 1 ? b->dim[0] - 1 : 1) {
        double *x = bench_read_acts(b, b->tensor[0], area(n, I), (size_t)I), *y = doubles((size_t)O);
        ref_linear_forward(NULL, y, x, w, NULL, 1, I, O);
        expect_row(b, "y", b->tensor[2], n, O, y);
        free(x);
    }
    free(w);
}

/* ---- norms: x, w, y, b ---- */
static void norm_prepare(struct bench *b) {
    int N = b->dim[0], C = b->dim[1];
    bench_acts(b, area(N, C), 1), bench_acts(b, (size_t)C, 1), bench_empty(b, area(N, C) * sizeof(act_t)), bench_acts(b, (size_t)C, 1);
    b->flops = 4.0 * N * C;
    b->bytes = 2 * act * N * C;
}
static void rmsnorm_run(struct bench *b) {
    rmsnorm_forward(b->dev, b->tensor[2], NULL, b->tensor[0], b->tensor[1], b->dim[0], b->dim[1], 1e-5f);
}
static void layernorm_run(struct bench *b) {
    layernorm_forward(b->dev, b->tensor[2], NULL, NULL, b->tensor[0], b->tensor[1], b->tensor[3], b->dim[0], b->dim[1], 1e-5f);
}
static void norm_verify(struct bench *b) {
    int C = b->dim[1], last = b->dim[0] - 1;
    double *x = bench_read_acts(b, b->tensor[0], area(last, C), (size_t)C), *w = bench_read_acts(b, b->tensor[1], 0, (size_t)C),
           *bias = bench_read_acts(b, b->tensor[3], 0, (size_t)C), *y = doubles((size_t)C);
    if (b->op->run == rmsnorm_run)
        ref_rmsnorm_forward(NULL, y, NULL, x, w, 1, C, 1e-5);
    else
        ref_layernorm_forward(NULL, y, NULL, NULL, x, w, bias, 1, C, 1e-5);
    expect_row(b, "y", b->tensor[2], last, C, y);
    free(x), free(w), free(bias);
}

/* ---- elementwise: a, b, y ---- */
static void elementwise_prepare(struct bench *b) {
    size_t n = area(b->dim[0], b->dim[1]);
    bench_acts(b, n, 1), bench_acts(b, n, 1), bench_empty(b, n * sizeof(act_t));
    b->flops = 8.0 * (double)n;
    b->bytes = 2 * act * (double)n;
}
static void add_prepare(struct bench *b) {
    elementwise_prepare(b);
    b->flops /= 8;
    b->bytes *= 1.5;
}
static void gelu_run(struct bench *b) { gelu_forward(b->dev, b->tensor[2], b->tensor[0], area(b->dim[0], b->dim[1])); }
static void quick_gelu_run(struct bench *b) { quick_gelu_forward(b->dev, b->tensor[2], b->tensor[0], area(b->dim[0], b->dim[1])); }
static void add_run(struct bench *b) { residual_add(b->dev, b->tensor[2], b->tensor[0], b->tensor[1], area(b->dim[0], b->dim[1])); }
static void elementwise_verify(struct bench *b) {
    int C = b->dim[1], last = b->dim[0] - 1;
    double *x = bench_read_acts(b, b->tensor[0], area(last, C), (size_t)C), *z = bench_read_acts(b, b->tensor[1], area(last, C), (size_t)C),
           *y = doubles((size_t)C);
    if (b->op->run == gelu_run)
        ref_gelu_forward(NULL, y, x, (size_t)C);
    else if (b->op->run == quick_gelu_run)
        ref_quick_gelu_forward(NULL, y, x, (size_t)C);
    else
        ref_residual_add(NULL, y, x, z, (size_t)C);
    expect_row(b, "y", b->tensor[2], last, C, y);
    free(x), free(z);
}

/* ---- swiglu: gate_up, y ---- */
static void swiglu_prepare(struct bench *b) {
    size_t n = area(b->dim[0], b->dim[1]);
    bench_acts(b, 2 * n, 1), bench_empty(b, n * sizeof(act_t));
    b->flops = 8.0 * (double)n;
    b->bytes = 3 * act * (double)n;
}
static void swiglu_run(struct bench *b) { swiglu_forward(b->dev, b->tensor[1], b->tensor[0], b->dim[0], b->dim[1]); }
static void swiglu_verify(struct bench *b) {
    int F = b->dim[1], last = b->dim[0] - 1;
    double *in = bench_read_acts(b, b->tensor[0], area(last, 2 * F), 2 * (size_t)F), *y = doubles((size_t)F);
    ref_swiglu_forward(NULL, y, in, 1, F);
    expect_row(b, "y", b->tensor[1], last, F, y);
    free(in);
}

/* ---- gathers: index, x, y ---- */
static void gather_prepare(struct bench *b) {
    int N = b->dim[0], C = b->dim[1], rows = b->dim[2];
    bench_below(b, (size_t)N, rows), bench_acts(b, area(rows, C), 1), bench_empty(b, area(N, C) * sizeof(act_t));
    b->bytes = 2 * act * N * C;
}
static void gather_run(struct bench *b) { gather_rows(b->dev, b->tensor[2], b->tensor[1], b->tensor[0], b->dim[0], b->dim[1]); }
static void embed_run(struct bench *b) { embed_forward(b->dev, b->tensor[2], b->tensor[0], b->tensor[1], NULL, b->dim[0], b->dim[1]); }
static void gather_verify(struct bench *b) {
    int C = b->dim[1], last = b->dim[0] - 1, *index = bench_read_ints(b, b->tensor[0], (size_t)last, 1);
    expect_row(b, "y", b->tensor[2], last, C, bench_read_acts(b, b->tensor[1], area(*index, C), (size_t)C));
    free(index);
}

/* ---- rope: qkv, position, cosine, sine, q, k, v ---- */
static void rope_prepare(struct bench *b) {
    int N = b->dim[0], H = b->dim[1], G = b->dim[2], D = b->dim[3];
    bench_acts(b, area(N, (H + 2 * G) * D), 1), bench_below(b, (size_t)N, 64), bench_floats(b, area(64, D / 2), 1),
        bench_floats(b, area(64, D / 2), 1);
    bench_empty(b, area(N, H * D) * sizeof(act_t)), bench_empty(b, area(N, G * D) * sizeof(act_t)),
        bench_empty(b, area(N, G * D) * sizeof(act_t));
    b->flops = 3.0 * N * (H + G) * D;
    b->bytes = 2 * act * N * (H + 2 * G) * D;
}
static void rope_run(struct bench *b) {
    qkv_split_rope(b->dev, b->tensor[4], b->tensor[5], b->tensor[6], b->tensor[0], b->tensor[1], b->tensor[2], b->tensor[3], b->dim[0],
                   b->dim[1], b->dim[2], b->dim[3]);
}
static void rope_verify(struct bench *b) {
    int H = b->dim[1], G = b->dim[2], D = b->dim[3], last = b->dim[0] - 1, *position = bench_read_ints(b, b->tensor[1], (size_t)last, 1);
    double *in = bench_read_acts(b, b->tensor[0], area(last, (H + 2 * G) * D), area(H + 2 * G, D)),
           *cosine = bench_read_floats(b, b->tensor[2], 0, area(64, D / 2)), *sine = bench_read_floats(b, b->tensor[3], 0, area(64, D / 2));
    double *q = doubles(area(H, D)), *k = doubles(area(G, D)), *v = doubles(area(G, D));
    ref_qkv_split_rope(NULL, q, k, v, in, position, cosine, sine, 1, H, G, D);
    expect_row(b, "q", b->tensor[4], last, H * D, q);
    expect_row(b, "k", b->tensor[5], last, G * D, k);
    expect_row(b, "v", b->tensor[6], last, G * D, v);
    free(in), free(cosine), free(sine), free(position);
}

/* ---- attention: q, k, v, z, q_start, k_start, k_length. dims: sequences, queries, keys, H, G, D ---- */
static void attention_prepare(struct bench *b) {
    int S = b->dim[0], Lq = b->dim[1], Lk = b->dim[2], H = b->dim[3], G = b->dim[4], D = b->dim[5];
    int *start = malloc((size_t)(3 * S + 2) * sizeof *start), *k_start = start + S + 1, *k_length = k_start + S;
    CHECK(start && Lq <= Lk, "%d queries, %d keys", Lq, Lk);
    for (int s = 0; s <= S; s++) start[s] = s * Lq;
    for (int s = 0; s < S; s++) k_start[s] = s * Lk, k_length[s] = Lk;
    bench_acts(b, area(S * Lq, H * D), 1), bench_acts(b, area(S * Lk, G * D), 1), bench_acts(b, area(S * Lk, G * D), 1),
        bench_empty(b, area(S * Lq, H * D) * sizeof(act_t));
    bench_ints(b, (size_t)S + 1, start), bench_ints(b, (size_t)S, k_start), bench_ints(b, (size_t)S, k_length);
    free(start);
    double pairs = (double)S * ((double)Lq * (Lk - Lq) + 0.5 * Lq * (Lq + 1.0)); /* causal */
    b->flops = 4.0 * D * H * pairs;
    b->bytes = act * ((double)S * Lq * H * D * 2 + (double)S * Lk * G * D * 2);
}
static void attention_run(struct bench *b) {
    int S = b->dim[0], H = b->dim[3], G = b->dim[4], D = b->dim[5];
    attention_forward(b->dev, b->tensor[3], NULL, b->tensor[0], b->tensor[1], b->tensor[2], b->tensor[4], b->tensor[5], b->tensor[6], S,
                      b->dim[1], H, G, D, (real_t)(1 / sqrt(D)), true);
}
static void attention_verify(struct bench *b) {
    int S = b->dim[0], Lq = b->dim[1], Lk = b->dim[2], H = b->dim[3], G = b->dim[4], D = b->dim[5],
        last = S * Lq - 1; /* sees all keys of its sequence */
    double *q = bench_read_acts(b, b->tensor[0], area(last, H * D), area(H, D)),
           *k = bench_read_acts(b, b->tensor[1], area((S - 1) * Lk, G * D), area(Lk, G * D)),
           *v = bench_read_acts(b, b->tensor[2], area((S - 1) * Lk, G * D), area(Lk, G * D)), *z = doubles(area(H, D));
    ref_attention_forward(NULL, z, NULL, q, k, v, (int[]){0, 1}, (int[]){0}, (int[]){Lk}, 1, 1, H, G, D, 1 / sqrt(D), true);
    expect_row(b, "z", b->tensor[3], last, H * D, z);
    free(q), free(k), free(v);
}

/* ---- argmax: x, index ---- */
static void argmax_prepare(struct bench *b) {
    bench_floats(b, area(b->dim[0], b->dim[1]), 1), bench_empty(b, (size_t)b->dim[0] * sizeof(int));
    b->bytes = 4.0 * b->dim[0] * b->dim[1];
}
static void argmax_run(struct bench *b) { argmax_rows(b->dev, b->tensor[1], b->tensor[0], b->dim[0], b->dim[1]); }
static void argmax_verify(struct bench *b) {
    int V = b->dim[1], last = b->dim[0] - 1, best = 0, *got = bench_read_ints(b, b->tensor[1], (size_t)last, 1);
    double *x = bench_read_floats(b, b->tensor[0], area(last, V), (size_t)V);
    for (int i = 1; i < V; i++)
        if (x[i] > x[best]) best = i;
    bench_expect_true(b, *got == best, "the last row's index is not its largest");
    free(x), free(got);
}

#define ROWS(n)                                                                                                                            \
    { "--rows", "rows (tokens)", n, 1 }
const struct bench_op bench_model_ops[] = {
    {"linear",
     "y = x w^T",
     {ROWS(1024), {"--in", "columns of x", 1024, 1}, {"--out", "columns of y", 4096, 1}},
     false,
     false,
     linear_prepare,
     linear_run,
     linear_verify},
    {"rmsnorm",
     "RMSNorm with weight",
     {ROWS(4096), {"--columns", "columns", 1024, 1}},
     false,
     false,
     norm_prepare,
     rmsnorm_run,
     norm_verify},
    {"layernorm",
     "LayerNorm with weight and bias",
     {ROWS(4096), {"--columns", "columns", 1024, 1}},
     false,
     false,
     norm_prepare,
     layernorm_run,
     norm_verify},
    {"swiglu",
     "silu(gate) * up",
     {ROWS(2048), {"--columns", "columns of y", 2816, 1}},
     false,
     false,
     swiglu_prepare,
     swiglu_run,
     swiglu_verify},
    {"gelu",
     "exact GELU",
     {ROWS(2048), {"--columns", "columns", 4096, 1}},
     false,
     false,
     elementwise_prepare,
     gelu_run,
     elementwise_verify},
    {"quick_gelu",
     "x sigmoid(1.702 x)",
     {ROWS(2048), {"--columns", "columns", 4096, 1}},
     false,
     false,
     elementwise_prepare,
     quick_gelu_run,
     elementwise_verify},
    {"residual_add", "a + b", {ROWS(4096), {"--columns", "columns", 1024, 1}}, false, false, add_prepare, add_run, elementwise_verify},
    {"qkv_split_rope",
     "split of q, k, v and rotation",
     {ROWS(4096), {"--heads", "query heads", 16, 1}, {"--kv", "key heads", 4, 1}, {"--head-dim", "columns of a head", 64, 2}},
     false,
     false,
     rope_prepare,
     rope_run,
     rope_verify},
    {"attention",
     "causal softmax attention over packed sequences",
     {{"--sequences", "sequences", 2, 1},
      {"--queries", "queries of each", 640, 1},
      {"--keys", "keys of each, at least the queries", 640, 1},
      {"--heads", "query heads", 8, 1},
      {"--kv", "key heads", 2, 1},
      {"--head-dim", "columns of a head", 64, 8}},
     false,
     false,
     attention_prepare,
     attention_run,
     attention_verify},
    {"gather_rows",
     "y[i] = x[index[i]]",
     {ROWS(8192), {"--columns", "columns", 1024, 1}, {"--table", "rows of x", 16384, 1}},
     false,
     false,
     gather_prepare,
     gather_run,
     gather_verify},
    {"embed",
     "token embedding",
     {ROWS(8192), {"--columns", "columns", 1024, 1}, {"--table", "vocabulary", 32000, 1}},
     false,
     false,
     gather_prepare,
     embed_run,
     gather_verify},
    {"argmax",
     "index of the largest of each row",
     {ROWS(512), {"--columns", "vocabulary", 32000, 1}},
     false,
     false,
     argmax_prepare,
     argmax_run,
     argmax_verify},
    {"prefill",
     "LLaMA prefill, logits of the last token",
     {{"--width", "d_model", 512, 8},
      {"--layers", "layers", 8, 1},
      {"--heads", "query heads", 8, 1},
      {"--kv", "key heads", 2, 1},
      {"--mlp", "columns of gate and up", 1376, 8},
      {"--tokens", "image rows and text", 640, 1},
      {"--edits", "1: a direction projected out at three points of every layer", 0, 0}},
     false,
     false,
     prefill_prepare,
     prefill_run,
     prefill_verify},
    {"attribution",
     "scores of all heads for one sample: clean, corrupt, gradient",
     {{"--width", "d_model", 512, 8},
      {"--layers", "layers", 8, 1},
      {"--heads", "query heads", 8, 1},
      {"--kv", "key heads", 2, 1},
      {"--mlp", "columns of gate and up", 1376, 8},
      {"--tokens", "nine image rows to one of text", 640, 10}},
     false,
     false,
     attribution_prepare,
     attribution_run,
     attribution_verify},
    {.name = NULL},
};
