/* sae_decode.c - see sae_ops.h. Everything that reads decoder rows by index: decode, loss, gradient of the code; and the
 * batch's moments. A row of the batch belongs to one thread; sums over rows are made afterwards in row order. */
#include "kernels/sae_internal.h"
#include "kernels/sae_ops.h"

enum { COLUMNS = 256 };

/* x_hat = b_d + sum of values * D rows, in the order of the slots */
static void decode_row(real_t *x_hat, const int *indices, const real_t *values, const real_t *D, const real_t *b_d, int d, int K) {
    struct sae_gather gather = {.rows = 0};
    memcpy(x_hat, b_d, (size_t)d * sizeof *x_hat);
    for (int k = 0; k < K; k++) {
        if (indices[k] >= 0) sae_gather_add(x_hat, &gather, D + cpu_offset(indices[k], d), values[k], d);
    }
    sae_gather_flush(x_hat, &gather, d);
}

static real_t dot(const real_t *restrict a, const real_t *restrict b, int d) {
    real_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < d; i++) sum += a[i] * b[i];
    return sum;
}

void OP(sae_decode)(struct device *dev, real_t *x_hat, const int *indices, const real_t *values, const real_t *D, const real_t *b_d, int N,
                    int d, int K) {
    (void)dev;
#pragma omp parallel for schedule(dynamic, 8)
    for (int n = 0; n < N; n++) decode_row(x_hat + cpu_offset(n, d), indices + cpu_offset(n, K), values + cpu_offset(n, K), D, b_d, d, K);
}

void OP(sae_decode_backward)(struct device *dev, real_t *g, real_t *dvalues, real_t *error_sum, real_t *row_error, const act_t *x,
                             const int *indices, const real_t *values, const real_t *D, const real_t *b_d, const real_t *variance_sum,
                             int N, int d, int K) {
    (void)dev;
    const real_t scale = (real_t)2 / (*variance_sum + (real_t)1e-8);
#pragma omp parallel for schedule(dynamic, 8)
    for (int n = 0; n < N; n++) {
        real_t *restrict gn = g + cpu_offset(n, d), error = 0;
        const act_t *restrict xn = x + cpu_offset(n, d);
        decode_row(gn, indices + cpu_offset(n, K), values + cpu_offset(n, K), D, b_d, d, K);
#pragma omp simd reduction(+ : error)
        for (int i = 0; i < d; i++) {
            real_t r = gn[i] - xn[i];
            error += r * r;
            gn[i] = scale * r;
        }
        row_error[n] = error;
        for (int k = 0; k < K; k++) {
            size_t slot = cpu_offset(n, K) + (size_t)k;
            dvalues[slot] = values[slot] > 0 && indices[slot] >= 0 ? dot(gn, D + cpu_offset(indices[slot], d), d) : 0;
        }
    }
    double sum = 0;
    for (int n = 0; n < N; n++) sum += row_error[n];
    *error_sum = (real_t)sum;
}

void OP(sae_row_error)(struct device *dev, real_t *row_error, const act_t *x, const int *indices, const real_t *values, const real_t *D,
                       const real_t *b_d, int N, int d, int K) {
    (void)dev;
    CHECK(d <= 65536, "d=%d", d);
#pragma omp parallel
    {
        real_t x_hat[d]; /* at most 256 KiB (512 in the oracle) of this thread's stack */
#pragma omp for schedule(dynamic, 8)
        for (int n = 0; n < N; n++) {
            const act_t *xn = x + cpu_offset(n, d);
            decode_row(x_hat, indices + cpu_offset(n, K), values + cpu_offset(n, K), D, b_d, d, K);
            real_t error = 0;
#pragma omp simd reduction(+ : error)
            for (int i = 0; i < d; i++) {
                real_t r = x_hat[i] - xn[i];
                error += r * r;
            }
            row_error[n] = error;
        }
    }
}

void OP(sae_moments)(struct device *dev, real_t *mean, real_t *channel_variance, real_t *variance_sum, const act_t *x, int N, int d) {
    (void)dev;
#pragma omp parallel for schedule(static) if (cpu_offset(N, d) > CPU_PARALLEL_MIN)
    for (int from = 0; from < d; from += COLUMNS) {
        int width = d - from < COLUMNS ? d - from : COLUMNS;
        double sum[COLUMNS] = {0}, square[COLUMNS] = {0};
        for (int n = 0; n < N; n++)
            for (int i = 0; i < width; i++) sum[i] += x[cpu_offset(n, d) + (size_t)(from + i)];
        for (int i = 0; i < width; i++) sum[i] /= N;
        for (int n = 0; n < N; n++)
            for (int i = 0; i < width; i++) {
                double away = x[cpu_offset(n, d) + (size_t)(from + i)] - sum[i];
                square[i] += away * away;
            }
        for (int i = 0; i < width; i++) {
            mean[from + i] = (real_t)sum[i];
            channel_variance[from + i] = (real_t)square[i];
        }
    }
    double total = 0;
    for (int i = 0; i < d; i++) total += channel_variance[i];
    *variance_sum = (real_t)total;
}
