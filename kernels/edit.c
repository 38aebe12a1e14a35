/* edit.c - see edit.h. */
#include "kernels/edit.h"

#include "kernels/cpu.h"

void OP(edit_project_out)(struct device *dev, act_t *y, const int *rows, const real_t *u, int n, int C, real_t scale) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)n * (size_t)C > CPU_PARALLEL_MIN)
    for (int i = 0; i < n; i++) {
        act_t *restrict row = y + cpu_offset(rows[i], C);
        real_t dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int c = 0; c < C; c++) dot += row[c] * u[c];
        dot *= scale;
        for (int c = 0; c < C; c++) row[c] -= dot * u[c];
    }
}

void OP(edit_add)(struct device *dev, act_t *y, const int *rows, const real_t *v, int n, int C) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)n * (size_t)C > CPU_PARALLEL_MIN)
    for (int i = 0; i < n; i++) {
        act_t *restrict row = y + cpu_offset(rows[i], C);
        for (int c = 0; c < C; c++) row[c] += v[c];
    }
}

void OP(edit_replace)(struct device *dev, act_t *y, const int *rows, const real_t *x, int n, int C) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)n * (size_t)C > CPU_PARALLEL_MIN)
    for (int i = 0; i < n; i++) memcpy(y + cpu_offset(rows[i], C), x + cpu_offset(i, C), (size_t)C * sizeof(act_t));
}

void OP(edit_heads)(struct device *dev, act_t *y, const int *rows, const int *heads, const real_t *value, int n, int n_heads, int H,
                    int D) {
    const size_t bytes = (size_t)D * sizeof(act_t);
    (void)dev;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n_heads; j++) {
            act_t *slice = y + cpu_offset(rows[i], H * D) + cpu_offset(heads[j], D);
            if (value)
                memcpy(slice, value + cpu_offset(heads[j], D), bytes);
            else
                memset(slice, 0, bytes);
        }
}

void OP(edit_features)(struct device *dev, act_t *y, const int *rows, real_t *c, const int *indices, const real_t *values,
                       const int *feature, const real_t *D, int n, int C, int K, int F, real_t value, bool clamp) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)n * (size_t)F > 64)
    for (int i = 0; i < n; i++) {
        act_t *restrict row = y + cpu_offset(rows[i], C);
        real_t *weight = c + cpu_offset(i, F);
        for (int j = 0; j < F; j++) {
            real_t z = 0;
            for (int k = 0; k < K; k++)
                if (indices[cpu_offset(i, K) + (size_t)k] == feature[j]) z = values[cpu_offset(i, K) + (size_t)k];
            weight[j] = clamp ? value - z : (value - 1) * z;
            const real_t *restrict d = D + cpu_offset(j, C);
            for (int k = 0; k < C && weight[j] != 0; k++) row[k] += weight[j] * d[k];
        }
    }
}
