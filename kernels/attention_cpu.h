/* attention_cpu.h - what the CPU's attention and its backward share: small products in registers. */
#ifndef KERNELS_ATTENTION_CPU_H
#define KERNELS_ATTENTION_CPU_H
#include "kernels/cpu.h"

#ifndef STAGEDIFF_REF
enum { LANES = 16, TALL = 8 };
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* c (TALL, vectors*LANES) += a (TALL, k) b (k, vectors*LANES); a at strides (a_row, a_k), rows of b and c at ldb, ldc.
 * All TALL * vectors accumulators stay in registers. */
static inline __attribute__((always_inline)) void block(float *c, size_t ldc, const float *a, size_t a_row, size_t a_k, const float *b,
                                                        size_t ldb, int k, const int vectors) {
    lanes sum[TALL][2];
#pragma GCC unroll 8
    for (int i = 0; i < TALL; i++) {
        sum[i][0] = *(const lanes *)(c + (size_t)i * ldc);
        if (vectors == 2) sum[i][1] = *(const lanes *)(c + (size_t)i * ldc + LANES);
    }
    for (int p = 0; p < k; p++) {
        const float *line = b + (size_t)p * ldb, *column = a + (size_t)p * a_k;
        lanes b0 = *(const lanes *)line, b1 = b0;
        if (vectors == 2) b1 = *(const lanes *)(line + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < TALL; i++) {
            float f = column[(size_t)i * a_row];
            sum[i][0] += f * b0;
            if (vectors == 2) sum[i][1] += f * b1;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < TALL; i++) {
        *(lanes *)(c + (size_t)i * ldc) = sum[i][0];
        if (vectors == 2) *(lanes *)(c + (size_t)i * ldc + LANES) = sum[i][1];
    }
}

/* c (m, n) += a (m, k) b (k, n), m % TALL == 0, n % LANES == 0 */
static inline void multiply(float *c, size_t ldc, const float *a, size_t a_row, size_t a_k, const float *b, size_t ldb, int m, int n,
                            int k) {
    for (int j = 0; j < n; j += 2 * LANES)
        for (int i = 0; i < m; i += TALL) {
            float *to = c + (size_t)i * ldc + j;
            if (j + 2 * LANES <= n)
                block(to, ldc, a + (size_t)i * a_row, a_row, a_k, b + j, ldb, k, 2);
            else
                block(to, ldc, a + (size_t)i * a_row, a_row, a_k, b + j, ldb, k, 1);
        }
}

static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

#endif
#endif
