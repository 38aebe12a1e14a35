/* norm.c - see norm.h. RMSNorm: Zhang & Sennrich 2019; LayerNorm: Ba, Kiros & Hinton 2016. */
#include "kernels/norm.h"

#include "kernels/cpu.h"

void OP(rmsnorm_forward)(struct device *dev, act_t *y, real_t *rstd, const act_t *x, const act_t *w, int N, int C, real_t eps) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)C > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) {
        const act_t *in = x + cpu_offset(n, C);
        act_t *out = y + cpu_offset(n, C);
        real_t square = 0;
#pragma omp simd reduction(+ : square)
        for (int c = 0; c < C; c++) square += in[c] * in[c];
        real_t r = (real_t)1 / sqrt(square / (real_t)C + eps);
        if (w) {
            for (int c = 0; c < C; c++) out[c] = in[c] * r * w[c];
        } else {
            for (int c = 0; c < C; c++) out[c] = in[c] * r;
        }
        if (rstd) rstd[n] = r;
    }
}

void OP(layernorm_forward)(struct device *dev, act_t *y, real_t *mean, real_t *rstd, const act_t *x, const act_t *w, const act_t *b, int N,
                           int C, real_t eps) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)C > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) {
        const act_t *in = x + cpu_offset(n, C);
        act_t *out = y + cpu_offset(n, C);
        real_t sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < C; c++) sum += in[c];
        real_t m = sum / (real_t)C;
#pragma omp simd reduction(+ : square)
        for (int c = 0; c < C; c++) square += (in[c] - m) * (in[c] - m);
        real_t r = (real_t)1 / sqrt(square / (real_t)C + eps);
        for (int c = 0; c < C; c++) out[c] = (in[c] - m) * r * w[c] + b[c];
        if (mean) mean[n] = m;
        if (rstd) rstd[n] = r;
    }
}

void OP(rmsnorm_backward)(struct device *dev, act_t *dx, const act_t *dy, const act_t *x, const real_t *rstd, const act_t *w, int N,
                          int C) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)C > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) {
        const act_t *in = x + cpu_offset(n, C), *grad = dy + cpu_offset(n, C);
        act_t *out = dx + cpu_offset(n, C);
        real_t dot = 0, r = rstd[n];
#pragma omp simd reduction(+ : dot)
        for (int c = 0; c < C; c++) dot += grad[c] * w[c] * in[c];
        dot *= r * r / (real_t)C;
        for (int c = 0; c < C; c++) out[c] += r * (grad[c] * w[c] - in[c] * dot);
    }
}

void OP(rmsnorm_backward_weight)(struct device *dev, real_t *dw, const act_t *dy, const act_t *x, const real_t *rstd, int N, int C) {
    enum { COLUMNS = 64 };
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)C > CPU_PARALLEL_MIN)
    for (int first = 0; first < C; first += COLUMNS) {
        const int wide = C - first < COLUMNS ? C - first : COLUMNS;
        real_t sum[COLUMNS] = {0};
        for (int n = 0; n < N; n++) {
            const act_t *in = x + cpu_offset(n, C) + first, *grad = dy + cpu_offset(n, C) + first;
            for (int c = 0; c < wide; c++) sum[c] += grad[c] * in[c] * rstd[n];
        }
        for (int c = 0; c < wide; c++) dw[first + c] += sum[c];
    }
}
