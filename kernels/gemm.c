/* gemm.c - see gemm.h. On the CPU: oneDNN's sgemm on tiles of y whose borders depend on the shape alone, one tile per
 * OpenMP task, so the result does not depend on the number of threads; few rows (decoding) by our own dot products, which
 * read w once at memory speed. */
#include "kernels/gemm.h"

#include "kernels/check.h"
#include "kernels/cpu.h"

#ifdef STAGEDIFF_REF

static void linear(double *y, const double *x, const double *w, const double *bias, int N, int I, int O) {
#pragma omp parallel for schedule(static) collapse(2)
    for (int n = 0; n < N; n++)
        for (int o = 0; o < O; o++) {
            const double *a = x + cpu_offset(n, I), *b = w + cpu_offset(o, I);
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int i = 0; i < I; i++) sum += a[i] * b[i];
            y[cpu_offset(n, O) + (size_t)o] = sum + (bias ? bias[o] : 0);
        }
}

#else
#ifndef STAGEDIFF_NO_BLAS
#include <dnnl.h>
#undef I
#endif

/* At most this many rows go through dot products: measured against oneDNN's sgemm at I 512, O 2816. */
enum { FEW_ROWS = 4, TILE_ROWS = 160, TILE_COLUMNS = 128, DOT_COLUMNS = 32 };

/* rows <= FEW_ROWS dot products with one row of w, which is read once. */
static void dots(float *sum, const float *restrict x, const float *restrict w, int rows, int I) {
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    const float *x1 = x + (rows > 1 ? I : 0), *x2 = x + (rows > 2 ? 2 * (ptrdiff_t)I : 0), *x3 = x + (rows > 3 ? 3 * (ptrdiff_t)I : 0);
    if (rows == 1) {
#pragma omp simd reduction(+ : s0)
        for (int i = 0; i < I; i++) s0 += x[i] * w[i];
    } else {
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int i = 0; i < I; i++) {
            s0 += x[i] * w[i];
            s1 += x1[i] * w[i];
            s2 += x2[i] * w[i];
            s3 += x3[i] * w[i];
        }
    }
    sum[0] = s0, sum[1] = s1, sum[2] = s2, sum[3] = s3;
}

static void linear_few(float *y, const float *x, const float *w, const float *bias, int N, int I, int O) {
#pragma omp parallel for schedule(static) if ((size_t)I * (size_t)O > CPU_PARALLEL_MIN)
    for (int block = 0; block < (O + DOT_COLUMNS - 1) / DOT_COLUMNS; block++)
        for (int o = block * DOT_COLUMNS; o < O && o < (block + 1) * DOT_COLUMNS; o++) {
            float sum[FEW_ROWS];
            dots(sum, x, w + cpu_offset(o, I), N, I);
            for (int n = 0; n < N; n++) y[cpu_offset(n, O) + (size_t)o] = sum[n] + (bias ? bias[o] : 0.0f);
        }
}

#ifdef STAGEDIFF_NO_BLAS /* the GPU bundle's cpu side: small models, no library to carry */
static void tile(float *y, const float *x, const float *w, const float *bias, int rows, int columns, int I, int O) {
    for (int n = 0; n < rows; n += FEW_ROWS)
        for (int o = 0; o < columns; o++) {
            float sum[FEW_ROWS];
            int few = rows - n < FEW_ROWS ? rows - n : FEW_ROWS;
            dots(sum, x + cpu_offset(n, I), w + cpu_offset(o, I), few, I);
            for (int r = 0; r < few; r++) y[cpu_offset(n + r, O) + (size_t)o] = sum[r] + (bias ? bias[o] : 0.0f);
        }
}
#else
static void tile(float *y, const float *x, const float *w, const float *bias, int rows, int columns, int I, int O) {
    for (int n = 0; bias && n < rows; n++) memcpy(y + cpu_offset(n, O), bias, (size_t)columns * sizeof(float));
    dnnl_status_t status = dnnl_sgemm('N', 'T', rows, columns, I, 1.0f, x, I, w, I, bias ? 1.0f : 0.0f, y, O);
    CHECK(status == dnnl_success, "dnnl_sgemm %dx%dx%d: status %d", rows, columns, I, (int)status);
}
#endif

static void linear(float *y, const float *x, const float *w, const float *bias, int N, int I, int O) {
    if (N <= FEW_ROWS) {
        linear_few(y, x, w, bias, N, I, O);
        return;
    }
    int across = (O + TILE_COLUMNS - 1) / TILE_COLUMNS, down = (N + TILE_ROWS - 1) / TILE_ROWS;
    int columns = ((O + across - 1) / across + 15) / 16 * 16, rows = (N + down - 1) / down; /* even shares */
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int i = 0; i < down; i++)
        for (int j = 0; j < across; j++) {
            int n = i * rows, o = j * columns, high = N - n < rows ? N - n : rows, wide = O - o < columns ? O - o : columns;
            if (high <= 0 || wide <= 0) continue;
            tile(y + cpu_offset(n, O) + o, x + cpu_offset(n, I), w + cpu_offset(o, I), bias ? bias + o : NULL, high, wide, I, O);
        }
}
#endif

void OP(linear_forward)(struct device *dev, act_t *y, const act_t *x, const act_t *w, const act_t *bias, int N, int I, int O) {
    (void)dev;
    linear(y, x, w, bias, N, I, O);
}

void OP(linear_forward_real)(struct device *dev, real_t *y, const act_t *x, const act_t *w, int N, int I, int O) {
    (void)dev;
    linear(y, x, w, NULL, N, I, O);
}
