/* attribution.c - see attribution.h. */
#include "kernels/attribution.h"

#include "kernels/cpu.h"

void OP(head_scores)(struct device *dev, real_t *score, const act_t *a, const act_t *b, const act_t *g, int N, int H, int D,
                     real_t factor) {
    (void)dev;
    const size_t rows = cpu_offset(N, H), width = (size_t)D;
#pragma omp parallel for schedule(static) if (rows * width > CPU_PARALLEL_MIN)
    for (size_t r = 0; r < rows; r++) {
        const act_t *u = a + r * width, *v = b + r * width, *w = g + r * width;
        real_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t d = 0; d < width; d++) sum += (u[d] - v[d]) * w[d];
        score[r] += factor * sum;
    }
}

void OP(head_copy)(struct device *dev, act_t *z, const act_t *from, int h, int N, int H, int D) {
    (void)dev;
    for (int n = 0; n < N; n++) {
        const size_t at = (cpu_offset(n, H) + (size_t)h) * (size_t)D;
        memcpy(z + at, from + at, (size_t)D * sizeof *z);
    }
}

void OP(row_dots)(struct device *dev, real_t *y, const act_t *x, const real_t *w, int N, int C) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)C > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) {
        const act_t *row = x + cpu_offset(n, C);
        real_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < C; c++) sum += row[c] * w[c];
        y[n] = sum;
    }
}
