/* ops_sae.c - the dictionary's ops and its whole training step. Checks at the timed shape: sampled rows and features are
 * recomputed in double from the definition, everything before them taken from the device. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "host/check.h"
#include "kernels/sae_ops.h"
#include "kernels/ref_begin.h"
#include "kernels/sae_ops.h"
#include "kernels/ref_end.h"

enum { DIM_d, DIM_M, DIM_K, DIM_N };
enum { BATCHES = 4, SAMPLES = 3 };

/* where prepare puts what; run and verify find it there */
enum {
    X,
    ENCODER,
    DECODER,
    B_E,
    B_D,
    LOW,
    ADAM_M_E,
    ADAM_V_E,
    ADAM_M_D,
    ADAM_V_D,
    ADAM_M_BE,
    ADAM_V_BE,
    ADAM_M_BD,
    ADAM_V_BD,
    G,
    VALUES,
    DVALUES,
    MEAN,
    CHANNEL,
    ROW_ERROR,
    VARIANCE,
    ERROR,
    INDICES,
    OFFSETS,
    ENTRIES,
    SCRATCH,
    GROUP,
    ENERGY,
    FIRED,
    X_HAT,
    COSINE,
    THRESHOLD,
    COUNTS,
    X1,
    X2,
    X3
};

static size_t area(int a, int b) { return (size_t)a * (size_t)b; }
static struct sae_adam adam_of(long step) { return (struct sae_adam){2e-4, 0.9, 0.999, 1e-8, step, true, false}; }

static void *x_of(struct bench *b, long run) {
    static const int where[BATCHES] = {X, X1, X2, X3};
    return b->tensor[where[run % BATCHES]];
}

/* ---- the pieces of a step ---- */
static void run_moments(struct bench *b, long run) {
    sae_moments(b->dev, b->tensor[MEAN], b->tensor[CHANNEL], b->tensor[VARIANCE], x_of(b, run), b->dim[DIM_N], b->dim[DIM_d]);
}
static void run_encode(struct bench *b, long run) {
    sae_encode_topk(b->dev, b->tensor[INDICES], b->tensor[VALUES], x_of(b, run), b->tensor[ENCODER], b->low ? b->tensor[LOW] : NULL,
                    b->tensor[B_E], NULL, b->dim[DIM_N], b->dim[DIM_d], b->dim[DIM_M], b->dim[DIM_K], b->tensor[SCRATCH]);
}
static void run_decode_backward(struct bench *b, long run) {
    sae_decode_backward(b->dev, b->tensor[G], b->tensor[DVALUES], b->tensor[ERROR], b->tensor[ROW_ERROR], x_of(b, run), b->tensor[INDICES],
                        b->tensor[VALUES], b->tensor[DECODER], b->tensor[B_D], b->tensor[VARIANCE], b->dim[DIM_N], b->dim[DIM_d],
                        b->dim[DIM_K]);
}
static void run_csc(struct bench *b) {
    sae_csc(b->dev, b->tensor[OFFSETS], b->tensor[ENTRIES], b->tensor[INDICES], b->dim[DIM_N], b->dim[DIM_M], b->dim[DIM_K],
            b->tensor[SCRATCH]);
}
static void run_update(struct bench *b, long run) {
    struct sae_adam a = adam_of(run + 1);
    sae_update(b->dev, b->tensor[ENCODER], b->tensor[DECODER], b->tensor[B_E], b->tensor[ADAM_M_E], b->tensor[ADAM_V_E],
               b->tensor[ADAM_M_D], b->tensor[ADAM_V_D], b->tensor[ADAM_M_BE], b->tensor[ADAM_V_BE], b->low ? b->tensor[LOW] : NULL,
               b->tensor[OFFSETS], b->tensor[ENTRIES], b->tensor[VALUES], b->tensor[DVALUES], b->tensor[G], x_of(b, run), &a, b->dim[DIM_N],
               b->dim[DIM_d], b->dim[DIM_M], b->dim[DIM_K]);
}
static void run_update_bias(struct bench *b, long run) {
    struct sae_adam a = adam_of(run + 1);
    sae_update_bias(b->dev, b->tensor[B_D], b->tensor[ADAM_M_BD], b->tensor[ADAM_V_BD], b->tensor[G], &a, b->dim[DIM_N], b->dim[DIM_d]);
}

/* All tensors; unit decoder rows, encoder equal to the decoder, as dictionaries start. */
static void prepare_all(struct bench *b) {
    int d = b->dim[DIM_d], M = b->dim[DIM_M], K = b->dim[DIM_K], N = b->dim[DIM_N];
    size_t nd = area(N, d), md = area(M, d), nk = area(N, K), encode = sae_encode_scratch(N, d, M, K), csc = sae_csc_scratch(N, M, K);
    CHECK(K <= M, "K=%d M=%d", K, M);
    bench_acts(b, nd, 1), bench_floats(b, md, 1 / sqrt(d)), bench_empty(b, md * sizeof(float)), bench_zeros(b, (size_t)M * sizeof(float)),
        bench_zeros(b, (size_t)d * sizeof(float));
    device_copy(b->dev, b->tensor[DECODER], b->tensor[ENCODER], md * sizeof(float));
    bench_lows(b, b->tensor[ENCODER], md);
    for (int i = ADAM_M_E; i <= ADAM_V_D; i++) bench_zeros(b, md * sizeof(float));
    for (int i = ADAM_M_BE; i <= ADAM_V_BE; i++) bench_zeros(b, (size_t)M * sizeof(float));
    for (int i = ADAM_M_BD; i <= ADAM_V_BD; i++) bench_zeros(b, (size_t)d * sizeof(float));
    bench_zeros(b, nd * sizeof(float));
    for (int i = VALUES; i <= DVALUES; i++) bench_zeros(b, nk * sizeof(float));
    for (int i = MEAN; i <= CHANNEL; i++) bench_zeros(b, (size_t)d * sizeof(float));
    bench_zeros(b, (size_t)N * sizeof(float)), bench_zeros(b, sizeof(float)), bench_zeros(b, sizeof(float)),
        bench_zeros(b, nk * sizeof(int)), bench_zeros(b, ((size_t)M + 1) * sizeof(int)), bench_zeros(b, nk * sizeof(int));
    bench_empty(b, encode > csc ? encode : csc);
    bench_zeros(b, (size_t)N), bench_zeros(b, (size_t)M * sizeof(double)), bench_zeros(b, (size_t)M * sizeof(int64_t)),
        bench_empty(b, nd * sizeof(float)), bench_empty(b, (size_t)M * sizeof(float));
    bench_floats(b, (size_t)M, 0.01), bench_empty(b, (size_t)N * sizeof(int));
    for (int i = 1; i < BATCHES; i++) bench_acts(b, nd, 1);
    CHECK(b->tensors == X3 + 1, "%d tensors", b->tensors);
    /* a code, moments, gradient and feature-major view to start from, so that each op can be timed alone */
    run_moments(b, 0), run_encode(b, 0), run_decode_backward(b, 0), run_csc(b);
}

/* ---- checks ---- */

/* pre-activations of a row in double, as the op under test is asked to make them */
static double *preactivations(struct bench *b, const void *x, int n) {
    int d = b->dim[DIM_d], M = b->dim[DIM_M];
    double *h = malloc((size_t)M * sizeof *h), *in = bench_read_acts(b, x, area(n, d), (size_t)d),
           *bias = bench_read_floats(b, b->tensor[B_E], 0, (size_t)M);
    CHECK(h, "M=%d", M);
    for (int i = 0; i < d && b->low; i++) { /* to nearest even bf16, by the exponent's last kept place */
        double unit = in[i] == 0 ? 1 : ldexp(1, ilogb(in[i]) - 7);
        in[i] = nearbyint(in[i] / unit) * unit;
    }
    for (int f = 0; f < M; f++) {
        double *w = b->low ? bench_read_lows(b, b->tensor[LOW], area(f, d), (size_t)d)
                           : bench_read_floats(b, b->tensor[ENCODER], area(f, d), (size_t)d);
        h[f] = bias[f];
        for (int i = 0; i < d; i++) h[f] += in[i] * w[i];
        free(w);
    }
    free(in), free(bias);
    return h;
}

/* The K listed are those with the largest pre-activations, but for f32 rounding between the last and the next. */
static void verify_encode_rows(struct bench *b, const void *x) {
    int d = b->dim[DIM_d], M = b->dim[DIM_M], K = b->dim[DIM_K], N = b->dim[DIM_N];
    for (int s = 0; s < SAMPLES; s++) {
        int n = (int)((long)(N - 1) * s / (SAMPLES - 1)), *index = bench_read_ints(b, b->tensor[INDICES], area(n, K), (size_t)K), k = 0;
        double *h = preactivations(b, x, n), *value = bench_read_floats(b, b->tensor[VALUES], area(n, K), (size_t)K),
               *want = calloc((size_t)K, sizeof *want), least = INFINITY, most = -INFINITY;
        CHECK(want, "K=%d", K);
        for (int f = 0; f < M; f++) {
            if (k < K && index[k] == f) {
                want[k++] = fmax(h[f], 0);
                least = fmin(least, h[f]);
            } else
                most = fmax(most, h[f]);
        }
        bench_expect_true(b, k == K, "a row does not list K ascending features");
        bench_expect_true(b, most - least < 1e-6 * sqrt(d) * fmax(1, fabs(least)), "a row lists a feature that is not among its K largest");
        bench_expect(b, "values", value, want, (size_t)K, 1e-4);
        free(index), free(h), free(value), free(want);
    }
}
static void encode_verify(struct bench *b) { verify_encode_rows(b, x_of(b, b->runs - 1)); }

/* rows of g and dvalues from the code on the device */
static void decode_verify_backward(struct bench *b) {
    int d = b->dim[DIM_d], K = b->dim[DIM_K], M = b->dim[DIM_M], n = b->dim[DIM_N] - 1,
        *index = bench_read_ints(b, b->tensor[INDICES], area(n, K), (size_t)K);
    double *x = bench_read_acts(b, x_of(b, b->runs - 1), area(n, d), (size_t)d),
           *values = bench_read_floats(b, b->tensor[VALUES], area(n, K), (size_t)K),
           *D = bench_read_floats(b, b->tensor[DECODER], 0, area(M, d)), *b_d = bench_read_floats(b, b->tensor[B_D], 0, (size_t)d),
           *variance = bench_read_floats(b, b->tensor[VARIANCE], 0, 1);
    double *g = malloc((size_t)d * sizeof *g), *dvalues = malloc((size_t)K * sizeof *dvalues), error, row;
    CHECK(g && dvalues, "d=%d", d);
    ref_sae_decode_backward(NULL, g, dvalues, &error, &row, x, index, values, D, b_d, variance, 1, d, K);
    double *got_g = bench_read_floats(b, b->tensor[G], area(n, d), (size_t)d),
           *got_dvalues = bench_read_floats(b, b->tensor[DVALUES], area(n, K), (size_t)K),
           *got_row = bench_read_floats(b, b->tensor[ROW_ERROR], (size_t)n, 1);
    bench_expect(b, "g", got_g, g, (size_t)d, 1e-4);
    bench_expect(b, "dvalues", got_dvalues, dvalues, (size_t)K, 1e-3);
    bench_expect(b, "row error", got_row, &row, 1, 1e-4);
    free(index), free(x), free(values), free(D), free(b_d), free(variance), free(g), free(dvalues), free(got_g), free(got_dvalues),
        free(got_row);
}

static void csc_verify(struct bench *b) {
    int M = b->dim[DIM_M], K = b->dim[DIM_K], N = b->dim[DIM_N], *index = bench_read_ints(b, b->tensor[INDICES], 0, area(N, K)),
        *offsets = bench_read_ints(b, b->tensor[OFFSETS], 0, (size_t)M + 1),
        *entries = bench_read_ints(b, b->tensor[ENTRIES], 0, area(N, K));
    bool ok = offsets[0] == 0 && (size_t)offsets[M] == area(N, K);
    for (int f = 0; f < M; f++)
        for (int e = offsets[f]; e < offsets[f + 1]; e++)
            ok = ok && index[entries[e]] == f && (e == offsets[f] || entries[e] > entries[e - 1]);
    bench_expect_true(b, ok, "entries are not the slots of their feature, ascending");
    free(index), free(offsets), free(entries);
}

/* After the first update: m = (1 - beta1) * gradient, so gradients of sampled features can be read off. */
static void update_verify(struct bench *b) {
    int d = b->dim[DIM_d], M = b->dim[DIM_M], K = b->dim[DIM_K], N = b->dim[DIM_N];
    bench_expect_true(b, b->runs == 1, "the check belongs behind the first step");
    int *offsets = bench_read_ints(b, b->tensor[OFFSETS], 0, (size_t)M + 1),
        *entries = bench_read_ints(b, b->tensor[ENTRIES], 0, area(N, K));
    for (int s = 0; s < SAMPLES; s++) {
        int f = (int)((long)(M - 1) * s / (SAMPLES - 1));
        double *dD = calloc((size_t)d, sizeof *dD), *dE = calloc((size_t)d, sizeof *dE), norm = 0;
        CHECK(dD && dE, "d=%d", d);
        for (int e = offsets[f]; e < offsets[f + 1]; e++) {
            int n = entries[e] / K;
            double *g = bench_read_floats(b, b->tensor[G], area(n, d), (size_t)d),
                   *x = bench_read_acts(b, b->tensor[X], area(n, d), (size_t)d),
                   *value = bench_read_floats(b, b->tensor[VALUES], (size_t)entries[e], 1),
                   *dvalue = bench_read_floats(b, b->tensor[DVALUES], (size_t)entries[e], 1);
            for (int i = 0; i < d; i++) dD[i] += 0.1 * *value * g[i], dE[i] += 0.1 * *dvalue * x[i];
            free(g), free(x), free(value), free(dvalue);
        }
        double *m_D = bench_read_floats(b, b->tensor[ADAM_M_D], area(f, d), (size_t)d),
               *m_E = bench_read_floats(b, b->tensor[ADAM_M_E], area(f, d), (size_t)d),
               *D = bench_read_floats(b, b->tensor[DECODER], area(f, d), (size_t)d);
        for (int i = 0; i < d; i++) norm += D[i] * D[i];
        bench_expect(b, "m of D", m_D, dD, (size_t)d, 1e-4);
        bench_expect(b, "m of E", m_E, dE, (size_t)d, 1e-4);
        bench_expect_true(b, fabs(norm - 1) < 1e-5, "a decoder row has not unit norm");
        free(dD), free(dE), free(m_D), free(m_E), free(D);
    }
    free(offsets), free(entries);
}

/* ---- rows of the table: prepare counts, run ---- */
static double D_(struct bench *b, int i) { return (double)b->dim[i]; }
static double dense(struct bench *b) { return 2 * D_(b, DIM_N) * D_(b, DIM_d) * D_(b, DIM_M); }
static double gathered(struct bench *b) { return 2 * D_(b, DIM_N) * D_(b, DIM_d) * D_(b, DIM_K); }
static double x_bytes(struct bench *b) { return sizeof(act_t) * D_(b, DIM_N) * D_(b, DIM_d); }
static double real_bytes(struct bench *b) { return 4 * D_(b, DIM_M) * D_(b, DIM_d); }
/* The rows of D that a code can name, once each, however often it names them. */
static double used_bytes(struct bench *b) { return real_bytes(b) * fmin(1, D_(b, DIM_N) * D_(b, DIM_K) / D_(b, DIM_M)); }
static double weight_bytes(struct bench *b) { return real_bytes(b) / (b->low ? 2 : 1); }

static void encode_prepare(struct bench *b) {
    prepare_all(b);
    b->flops = dense(b);
    b->bytes = weight_bytes(b) + x_bytes(b);
}
static void encode_run(struct bench *b) { run_encode(b, b->runs); }

static void jumprelu_run(struct bench *b) {
    sae_encode_jumprelu(b->dev, b->tensor[INDICES], b->tensor[VALUES], b->tensor[COUNTS], b->tensor[X], b->tensor[ENCODER],
                        b->low ? b->tensor[LOW] : NULL, b->tensor[B_E], b->tensor[THRESHOLD], b->dim[DIM_N], b->dim[DIM_d], b->dim[DIM_M],
                        b->dim[DIM_K], b->tensor[SCRATCH]);
}
static void jumprelu_prepare(struct bench *b) { /* thresholds that about K/2 of M pass: 2.9 standard deviations for 16 of 8192 */
    encode_prepare(b);
    float *t = malloc((size_t)b->dim[DIM_M] * sizeof *t);
    CHECK(t, "M=%d", b->dim[DIM_M]);
    double share = 0.5 * b->dim[DIM_K] / b->dim[DIM_M], z = 0;
    while (0.5 * erfc(z / sqrt(2)) > share) z += 0.01;
    for (int f = 0; f < b->dim[DIM_M]; f++) t[f] = (float)z;
    device_upload(b->dev, b->tensor[THRESHOLD], t, (size_t)b->dim[DIM_M] * sizeof *t);
    free(t);
}
static void jumprelu_verify(struct bench *b) {
    int K = b->dim[DIM_K], M = b->dim[DIM_M], n = b->dim[DIM_N] - 1, *index = bench_read_ints(b, b->tensor[INDICES], area(n, K), (size_t)K),
        *count = bench_read_ints(b, b->tensor[COUNTS], (size_t)n, 1), k = 0, sure = 0;
    double *h = preactivations(b, b->tensor[X], n), *threshold = bench_read_floats(b, b->tensor[THRESHOLD], 0, 1);
    bool ok = true;
    for (int f = 0; f < M; f++) {
        bool listed = k < K && index[k] == f, near = fabs(h[f] - *threshold) < 1e-5;
        k += listed, sure += h[f] > *threshold;
        ok = ok && (near || k >= K || listed == (h[f] > *threshold));
    }
    bench_expect_true(b, ok && abs(*count - sure) <= 2, "the last row's active features are not those above the threshold");
    free(index), free(count), free(h), free(threshold);
}

static void decode_prepare(struct bench *b) {
    prepare_all(b);
    b->flops = gathered(b);
    b->bytes = used_bytes(b) + 4 * D_(b, DIM_N) * D_(b, DIM_d);
}
static void decode_run(struct bench *b) {
    sae_decode(b->dev, b->tensor[X_HAT], b->tensor[INDICES], b->tensor[VALUES], b->tensor[DECODER], b->tensor[B_D], b->dim[DIM_N],
               b->dim[DIM_d], b->dim[DIM_K]);
}
static void decode_verify(struct bench *b) {
    int d = b->dim[DIM_d], K = b->dim[DIM_K], M = b->dim[DIM_M], n = b->dim[DIM_N] - 1,
        *index = bench_read_ints(b, b->tensor[INDICES], area(n, K), (size_t)K);
    double *values = bench_read_floats(b, b->tensor[VALUES], area(n, K), (size_t)K),
           *D = bench_read_floats(b, b->tensor[DECODER], 0, area(M, d)), *b_d = bench_read_floats(b, b->tensor[B_D], 0, (size_t)d),
           *want = malloc((size_t)d * sizeof *want), *got = bench_read_floats(b, b->tensor[X_HAT], area(n, d), (size_t)d);
    CHECK(want, "d=%d", d);
    ref_sae_decode(NULL, want, index, values, D, b_d, 1, d, K);
    bench_expect(b, "x_hat", got, want, (size_t)d, 1e-4);
    free(index), free(values), free(D), free(b_d), free(want), free(got);
}
static void backward_prepare(struct bench *b) {
    decode_prepare(b);
    b->flops *= 2;
    b->bytes += x_bytes(b);
}
static void backward_run(struct bench *b) { run_decode_backward(b, 0); }
static void backward_verify(struct bench *b) { decode_verify_backward(b); }

static void csc_prepare(struct bench *b) {
    prepare_all(b);
    b->bytes = 4 * D_(b, DIM_N) * D_(b, DIM_K) * 3 + 4 * D_(b, DIM_M);
}

static void update_prepare(struct bench *b) {
    prepare_all(b);
    b->flops = 2 * gathered(b) + 2 * 16 * D_(b, DIM_M) * D_(b, DIM_d);
    b->bytes = 12 * real_bytes(b) + (b->low ? real_bytes(b) / 2 : 0); /* parameter and two moments of E and D, read and written */
}
static void update_run_first(struct bench *b) { /* the prepared code belongs to batch 0 */
    struct sae_adam a = adam_of(b->runs + 1);
    sae_update(b->dev, b->tensor[ENCODER], b->tensor[DECODER], b->tensor[B_E], b->tensor[ADAM_M_E], b->tensor[ADAM_V_E],
               b->tensor[ADAM_M_D], b->tensor[ADAM_V_D], b->tensor[ADAM_M_BE], b->tensor[ADAM_V_BE], b->low ? b->tensor[LOW] : NULL,
               b->tensor[OFFSETS], b->tensor[ENTRIES], b->tensor[VALUES], b->tensor[DVALUES], b->tensor[G], b->tensor[X], &a, b->dim[DIM_N],
               b->dim[DIM_d], b->dim[DIM_M], b->dim[DIM_K]);
}

static void moments_prepare(struct bench *b) {
    prepare_all(b);
    b->flops = 4 * D_(b, DIM_N) * D_(b, DIM_d);
    b->bytes = x_bytes(b);
}
static void moments_run(struct bench *b) { run_moments(b, 0); }
static void moments_verify(struct bench *b) {
    int N = b->dim[DIM_N], d = b->dim[DIM_d];
    double *x = bench_read_acts(b, b->tensor[X], 0, area(N, d)), *mean = malloc((size_t)d * sizeof *mean),
           *channel = malloc((size_t)d * sizeof *channel), sum, *got = bench_read_floats(b, b->tensor[CHANNEL], 0, (size_t)d),
           *got_sum = bench_read_floats(b, b->tensor[VARIANCE], 0, 1);
    CHECK(mean && channel, "d=%d", d);
    ref_sae_moments(NULL, mean, channel, &sum, x, N, d);
    bench_expect(b, "channel variance", got, channel, (size_t)d, 1e-5);
    bench_expect(b, "variance sum", got_sum, &sum, 1, 1e-5);
    free(x), free(mean), free(channel), free(got), free(got_sum);
}

static void stats_prepare(struct bench *b) {
    prepare_all(b);
    b->bytes = 8 * D_(b, DIM_N) * D_(b, DIM_K) + 16 * D_(b, DIM_M);
}
static void stats_run(struct bench *b) {
    sae_feature_stats(b->dev, b->tensor[ENERGY], b->tensor[FIRED], b->tensor[OFFSETS], b->tensor[ENTRIES], b->tensor[VALUES],
                      b->tensor[GROUP], 1, b->dim[DIM_N], b->dim[DIM_M], b->dim[DIM_K]);
}
static void stats_verify(struct bench *b) {
    int M = b->dim[DIM_M], *offsets = bench_read_ints(b, b->tensor[OFFSETS], 0, (size_t)M + 1);
    int *fired = bench_read_ints(b, b->tensor[FIRED], 0, 2 * (size_t)M); /* int64 as two ints, the lower first */
    bool ok = true;
    for (int f = 0; f < M; f++)
        ok = ok && fired[2 * f] <= offsets[f + 1] - offsets[f] && (fired[2 * f] > 0) == (offsets[f + 1] > offsets[f]);
    bench_expect_true(b, ok, "fired does not agree with the entries");
    free(offsets), free(fired);
}

static void cosine_prepare(struct bench *b) {
    prepare_all(b);
    b->flops = 6 * D_(b, DIM_M) * D_(b, DIM_d);
    b->bytes = 2 * real_bytes(b);
}
static void cosine_run(struct bench *b) {
    row_cosine(b->dev, b->tensor[COSINE], b->tensor[ENCODER], b->tensor[DECODER], b->dim[DIM_M], b->dim[DIM_d]);
}
static void cosine_verify(struct bench *b) {
    double *got = bench_read_floats(b, b->tensor[COSINE], 0, (size_t)b->dim[DIM_M]), one = 1; /* encoder and decoder start equal */
    for (int f = 0; f < b->dim[DIM_M]; f += 97) bench_expect(b, "cosine", got + f, &one, 1, 1e-5);
    free(got);
}

/* One training step: moments, encode, decode and gradients, feature-major view, update of all parameters. */
static void step_prepare(struct bench *b) {
    prepare_all(b);
    b->flops = dense(b) + 4 * gathered(b) + 2 * 16 * D_(b, DIM_M) * D_(b, DIM_d);
    b->bytes = weight_bytes(b) + used_bytes(b) + 12 * real_bytes(b) + (b->low ? real_bytes(b) / 2 : 0) + x_bytes(b);
}
static void step_run(struct bench *b) {
    run_moments(b, b->runs), run_encode(b, b->runs), run_decode_backward(b, b->runs), run_csc(b), run_update(b, b->runs),
        run_update_bias(b, b->runs);
}
/* The update overwrites what encode and decode read, so the pieces are checked on a second go from the same start. */
static void step_verify(struct bench *b) {
    csc_verify(b);
    update_verify(b);
    run_moments(b, 0), run_encode(b, 0), run_decode_backward(b, 0); /* with the new weights */
    verify_encode_rows(b, b->tensor[X]);
    decode_verify_backward(b);
}

#define SHAPE                                                                                                                              \
    {                                                                                                                                      \
        {"--d", "columns of x", 1024, 1}, {"--m", "features", 8192, 1}, {"--k", "kept features", 32, 1}, {                                 \
            "--batch", "rows of x", 1024, 1                                                                                                \
        }                                                                                                                                  \
    }
const struct bench_op bench_sae_ops[] = {
    {"sae_moments", "batch mean and variance", SHAPE, false, false, moments_prepare, moments_run, moments_verify},
    {"sae_encode", "pre-activations and their K largest", SHAPE, true, false, encode_prepare, encode_run, encode_verify},
    {"sae_jumprelu", "pre-activations above their thresholds", SHAPE, true, false, jumprelu_prepare, jumprelu_run, jumprelu_verify},
    {"sae_decode", "x_hat from a code", SHAPE, false, false, decode_prepare, decode_run, decode_verify},
    {"sae_decode_backward", "decode, loss, gradient of the code", SHAPE, false, false, backward_prepare, backward_run, backward_verify},
    {"sae_csc", "feature-major view of a code", SHAPE, false, false, csc_prepare, run_csc, csc_verify},
    {"sae_update", "gradients, Adam, unit norm, bf16 copy", SHAPE, true, false, update_prepare, update_run_first, update_verify},
    {"sae_feature_stats", "energy and firing by feature", SHAPE, false, false, stats_prepare, stats_run, stats_verify},
    {"row_cosine", "cosine of rows", SHAPE, false, false, cosine_prepare, cosine_run, cosine_verify},
    {"sae_step", "one training step", SHAPE, true, true, step_prepare, step_run, step_verify},
    {.name = NULL},
};
