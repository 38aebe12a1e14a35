/* gemm.c - see gemm.h. On the CPU: oneDNN's sgemm on tiles of the result whose borders depend on the shape alone, one tile
 * per OpenMP task, so the result does not depend on the number of threads. */
#include "kernels/gemm.h"

#include "host/check.h"
#include "kernels/cpu.h"

/* An operand by its strides: element (i, k), k the index that is summed over, at i * row + k * depth; one of them is 1. */
struct operand {
    const act_t *at;
    size_t row, depth;
};

/* Rows of a (N, I) matrix against its columns, or its columns against its rows. */
static struct operand by_rows(const act_t *x, int I) { return (struct operand){x, (size_t)I, 1}; }
static struct operand by_columns(const act_t *x, int I) { return (struct operand){x, 1, (size_t)I}; }

#if defined(STAGEDIFF_REF) || defined(STAGEDIFF_NO_BLAS) /* NO_BLAS: the GPU bundle's cpu side: small models, no library to carry */
static void tile(act_t *y, struct operand a, struct operand b, const act_t *bias, bool add, int rows, int columns, int K, int ldy) {
    for (int n = 0; n < rows; n++)
        for (int o = 0; o < columns; o++) {
            const act_t *u = a.at + (size_t)n * a.row, *v = b.at + (size_t)o * b.row;
            act_t sum = 0, *to = y + cpu_offset(n, ldy) + (size_t)o;
            if (a.depth == 1 && b.depth == 1) {
#pragma omp simd reduction(+ : sum)
                for (int k = 0; k < K; k++) sum += u[k] * v[k];
            } else {
                for (int k = 0; k < K; k++) sum += u[(size_t)k * a.depth] * v[(size_t)k * b.depth];
            }
            *to = sum + (bias ? bias[o] : add ? *to : 0);
        }
}
#else
#include <dnnl.h>
#undef I

static void tile(float *y, struct operand a, struct operand b, const float *bias, bool add, int rows, int columns, int K, int ldy) {
    for (int n = 0; bias && n < rows; n++) memcpy(y + cpu_offset(n, ldy), bias, (size_t)columns * sizeof(float));
    dnnl_status_t status = dnnl_sgemm(a.depth == 1 ? 'N' : 'T', b.depth == 1 ? 'T' : 'N', rows, columns, K, 1.0f, a.at,
                                      (dnnl_dim_t)(a.depth == 1 ? a.row : a.depth), b.at, (dnnl_dim_t)(b.depth == 1 ? b.row : b.depth),
                                      bias || add ? 1.0f : 0.0f, y, ldy);
    CHECK(status == dnnl_success, "dnnl_sgemm %dx%dx%d: status %d", rows, columns, K, (int)status);
}
#endif

/* Measured on one core at N 640, I 512 and 1,408: larger tiles win nothing, 160 x 128 loses a tenth. Few rows (decoding)
 * wait for memory, not arithmetic: narrower tiles cost nothing there and share out better. */
enum { TILE_ROWS = 320, TILE_COLUMNS = 256, FEW_ROWS = 4, FEW_COLUMNS = 64 };

/* y (N, O) = a (N, K) b (O, K)^T, + bias or + y */
static void product(act_t *y, struct operand a, struct operand b, const act_t *bias, bool add, int N, int O, int K) {
    int widest = N <= FEW_ROWS ? FEW_COLUMNS : TILE_COLUMNS, across = (O + widest - 1) / widest, down = (N + TILE_ROWS - 1) / TILE_ROWS;
    int columns = ((O + across - 1) / across + 15) / 16 * 16, rows = (N + down - 1) / down; /* even shares */
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int i = 0; i < down; i++)
        for (int j = 0; j < across; j++) {
            int n = i * rows, o = j * columns, high = N - n < rows ? N - n : rows, wide = O - o < columns ? O - o : columns;
            if (high <= 0 || wide <= 0) continue;
            struct operand u = {a.at + (size_t)n * a.row, a.row, a.depth}, v = {b.at + (size_t)o * b.row, b.row, b.depth};
            tile(y + cpu_offset(n, O) + o, u, v, bias ? bias + o : NULL, add, high, wide, K, O);
        }
}

void OP(linear_forward)(struct device *dev, act_t *y, const act_t *x, const act_t *w, const act_t *bias, int N, int I, int O) {
    (void)dev;
    product(y, by_rows(x, I), by_rows(w, I), bias, false, N, O, I);
}

void OP(linear_forward_real)(struct device *dev, real_t *y, const act_t *x, const act_t *w, int N, int I, int O) {
    (void)dev;
    product(y, by_rows(x, I), by_rows(w, I), NULL, false, N, O, I);
}

void OP(linear_backward_input)(struct device *dev, act_t *dx, const act_t *dy, const act_t *w, int N, int I, int O) {
    (void)dev;
    product(dx, by_rows(dy, O), by_columns(w, I), NULL, false, N, I, O);
}

void OP(linear_backward_weight)(struct device *dev, real_t *dw, const act_t *dy, const act_t *x, int N, int I, int O) {
    (void)dev;
    product(dw, by_columns(dy, O), by_columns(x, I), NULL, true, O, I, N);
}
