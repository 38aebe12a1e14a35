/* gemm.c - see gemm.h. On the CPU: oneDNN's sgemm on tiles of y whose borders depend on the shape alone, one tile per
 * OpenMP task, so the result does not depend on the number of threads. */
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

/* Measured on one core at N 640, I 512 and 1,408: larger tiles win nothing, 160 x 128 loses a tenth. Few rows (decoding)
 * wait for memory, not arithmetic: narrower tiles cost nothing there and share out better. */
enum { TILE_ROWS = 320, TILE_COLUMNS = 256, FEW_ROWS = 4, FEW_COLUMNS = 64 };

#ifdef STAGEDIFF_NO_BLAS /* the GPU bundle's cpu side: small models, no library to carry */
static void tile(float *y, const float *x, const float *w, const float *bias, int rows, int columns, int I, int O) {
    for (int n = 0; n < rows; n++)
        for (int o = 0; o < columns; o++) {
            const float *a = x + cpu_offset(n, I), *b = w + cpu_offset(o, I);
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int i = 0; i < I; i++) sum += a[i] * b[i];
            y[cpu_offset(n, O) + (size_t)o] = sum + (bias ? bias[o] : 0.0f);
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
    int widest = N <= FEW_ROWS ? FEW_COLUMNS : TILE_COLUMNS, across = (O + widest - 1) / widest, down = (N + TILE_ROWS - 1) / TILE_ROWS;
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
