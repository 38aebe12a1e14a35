/* sae_update.c - see sae_ops.h. The backward pass of one feature at a time: its gradient rows are sums over the tokens
 * that used it, live in the first-level cache, and go straight into Adam (Kingma & Ba 2015, in the form torch.optim.Adam
 * computes it), unit norm and the bf16 copy. Neither a gradient tensor nor an atomic addition exists. */
#include "kernels/sae_internal.h"
#include "kernels/sae_ops.h"

enum { COLUMNS = 256, SEGMENTS = 16 };

/* Which slots belong to a segment of rows: fixed, so that the order of entries is. */
static size_t segment_start(int s, int N, int K) { return (size_t)N * (size_t)s / SEGMENTS * (size_t)K; }

size_t OP(sae_csc_scratch)(int N, int M, int K) {
    (void)N, (void)K;
    return (size_t)SEGMENTS * (size_t)M * sizeof(int);
}

/* Counting sort: each segment of slots counts its features, a sum over features and segments gives each its place. */
void OP(sae_csc)(struct device *dev, int *offsets, int *entries, const int *indices, int N, int M, int K, void *scratch) {
    (void)dev;
    int *count = scratch; /* (SEGMENTS, M) */
    CHECK((size_t)N * (size_t)K <= INT32_MAX, "N=%d K=%d: slots are counted in int", N, K);
#pragma omp parallel for schedule(static)
    for (int s = 0; s < SEGMENTS; s++) {
        int *mine = count + cpu_offset(s, M);
        memset(mine, 0, (size_t)M * sizeof *mine);
        for (size_t i = segment_start(s, N, K); i < segment_start(s + 1, N, K); i++)
            if (indices[i] >= 0) mine[indices[i]]++;
    }
    int total = 0;
    for (int f = 0; f < M; f++) {
        offsets[f] = total;
        for (int s = 0; s < SEGMENTS; s++) {
            int here = count[cpu_offset(s, M) + (size_t)f];
            count[cpu_offset(s, M) + (size_t)f] = total;
            total += here;
        }
    }
    offsets[M] = total;
#pragma omp parallel for schedule(static)
    for (int s = 0; s < SEGMENTS; s++) {
        int *mine = count + cpu_offset(s, M);
        for (size_t i = segment_start(s, N, K); i < segment_start(s + 1, N, K); i++)
            if (indices[i] >= 0) entries[mine[indices[i]]++] = (int)i;
    }
}

/* Adam's constants of one step. */
struct adam_step {
    real_t beta1, beta2, rest1, rest2, eps, rate, root_scale; /* rate = lr / (1 - beta1^step), root_scale = 1 / sqrt(1 - beta2^step) */
};

static struct adam_step adam_begin(const struct sae_adam *a) {
    CHECK(a->step >= 1, "step=%ld", a->step);
    double correction1 = 1 - pow(a->beta1, (double)a->step), correction2 = 1 - pow(a->beta2, (double)a->step);
    return (struct adam_step){(real_t)a->beta1,
                              (real_t)a->beta2,
                              (real_t)(1 - a->beta1),
                              (real_t)(1 - a->beta2),
                              (real_t)a->eps,
                              (real_t)(a->lr / correction1),
                              (real_t)(1 / sqrt(correction2))};
}

/* A gradient that Adam consumes while it is summed: `before`, what came earlier (NULL: 0), and the last rows. */
struct gradient {
    const real_t *before;
    struct sae_gather last;
};

/* Rows, parameters and moments are fetched side by side, so that the memory always has something to do. rows and
 * has_before are constants where it is called. Returns the sum of squares of the new parameters. */
static inline __attribute__((always_inline)) real_t adam_rows(real_t *restrict p, real_t *restrict m, real_t *restrict v,
                                                              const struct gradient *g, const int rows, const bool has_before,
                                                              const struct adam_step *a, int n) {
    real_t square = 0;
    const struct adam_step s = *a;
    const struct gradient from = *g;
#pragma omp simd reduction(+ : square)
    for (int i = 0; i < n; i++) {
        real_t grad = sae_gather_column(&from.last, rows, i, has_before ? from.before[i] : 0);
        real_t mi = s.beta1 * m[i] + s.rest1 * grad;
        real_t vi = s.beta2 * v[i] + s.rest2 * grad * grad;
        real_t pi = p[i] - s.rate * mi / (sqrt(vi) * s.root_scale + s.eps);
        m[i] = mi;
        v[i] = vi;
        p[i] = pi;
        square += pi * pi;
    }
    return square;
}

static real_t adam_row(real_t *restrict p, real_t *restrict m, real_t *restrict v, const struct gradient *g, const struct adam_step *a,
                       int n) {
#define ONE(r)                                                                                                                             \
    case r:                                                                                                                                \
        return g->before ? adam_rows(p, m, v, g, r, true, a, n) : adam_rows(p, m, v, g, r, false, a, n);
    switch (g->last.rows) { SAE_GATHER_CASES(ONE) }
#undef ONE
    return g->before ? adam_rows(p, m, v, g, 0, true, a, n) : adam_rows(p, m, v, g, 0, false, a, n);
}

/* Leaves at most SAE_GATHER rows of a feature's entries for adam_row, sums those before into `sum`. all: sums every row. */
static struct gradient gather(real_t *sum, const int *entries, int from, int to, const real_t *weight, const real_t *rows, int d, int K,
                              bool all) {
    struct gradient g = {.before = NULL};
    int first = all ? to : to - SAE_GATHER;
    if (first > from) {
        memset(sum, 0, (size_t)d * sizeof *sum);
        for (; from < first; from++) sae_gather_add(sum, &g.last, rows + cpu_offset(entries[from] / K, d), weight[entries[from]], d);
        sae_gather_flush(sum, &g.last, d);
        g.before = sum;
    }
    for (; from < to; from++) {
        g.last.row[g.last.rows] = rows + cpu_offset(entries[from] / K, d);
        g.last.weight[g.last.rows++] = weight[entries[from]];
    }
    return g;
}

static void remove_parallel(real_t *restrict grad, const real_t *restrict row, int d) {
    real_t along = 0, square = 0;
#pragma omp simd reduction(+ : along, square)
    for (int i = 0; i < d; i++) {
        along += grad[i] * row[i];
        square += row[i] * row[i];
    }
    if (!(square > 0)) return;
    real_t share = along / square;
    for (int i = 0; i < d; i++) grad[i] -= share * row[i];
}

void OP(sae_update)(struct device *dev, real_t *E, real_t *D, real_t *b_e, real_t *m_E, real_t *v_E, real_t *m_D, real_t *v_D, real_t *m_be,
                    real_t *v_be, bf16 *E_low, const int *offsets, const int *entries, const real_t *values, const real_t *dvalues,
                    const real_t *g, const act_t *x, const struct sae_adam *adam, int N, int d, int M, int K) {
    (void)dev, (void)N;
    const struct adam_step a = adam_begin(adam);
    CHECK(d <= 65536, "d=%d", d);
#pragma omp parallel
    {
        real_t grad[d]; /* at most 256 KiB (512 in the oracle) of this thread's stack */
#pragma omp for schedule(dynamic, 16)
        for (int f = 0; f < M; f++) {
            size_t at = cpu_offset(f, d);
            int from = offsets[f], to = offsets[f + 1];
            struct gradient of = gather(grad, entries, from, to, values, g, d, K, adam->remove_parallel);
            if (of.before && adam->remove_parallel) remove_parallel(grad, D + at, d);
            real_t square = adam_row(D + at, m_D + at, v_D + at, &of, &a, d), bias = 0;
            if (adam->unit_norm_decoder && square > 0) {
                real_t inverse = (real_t)1 / sqrt(square);
                for (int i = 0; i < d; i++) D[at + (size_t)i] *= inverse;
            }
            of = gather(grad, entries, from, to, dvalues, x, d, K, false);
            adam_row(E + at, m_E + at, v_E + at, &of, &a, d);
            for (int e = from; e < to; e++) bias += dvalues[entries[e]];
            of = (struct gradient){.before = &bias};
            adam_row(b_e + f, m_be + f, v_be + f, &of, &a, 1);
            if (E_low)
                for (int i = 0; i < d; i++) E_low[at + (size_t)i] = bf16_from_float((float)E[at + (size_t)i]);
        }
    }
}

void OP(sae_update_bias)(struct device *dev, real_t *b_d, real_t *m_bd, real_t *v_bd, const real_t *g, const struct sae_adam *adam, int N,
                         int d) {
    (void)dev;
    const struct adam_step a = adam_begin(adam);
#pragma omp parallel for schedule(static)
    for (int from = 0; from < d; from += COLUMNS) {
        int width = d - from < COLUMNS ? d - from : COLUMNS;
        double sum[COLUMNS] = {0};
        real_t grad[COLUMNS];
        for (int n = 0; n < N; n++)
            for (int i = 0; i < width; i++) sum[i] += g[cpu_offset(n, d) + (size_t)(from + i)];
        for (int i = 0; i < width; i++) grad[i] = (real_t)sum[i];
        struct gradient of = {.before = grad};
        adam_row(b_d + from, m_bd + from, v_bd + from, &of, &a, width);
    }
}
