/* sae_slots.c - see sae_slots.h. */
#include "kernels/sae_slots.h"

#include "kernels/cpu.h"

void OP(sae_merge_signed)(struct device *dev, int *indices, real_t *values, const int *doubled, const real_t *doubled_values, int N, int M,
                          int K) {
    (void)dev;
    for (int n = 0; n < N; n++) {
        const int *in = doubled + cpu_offset(n, K);
        const real_t *v = doubled_values + cpu_offset(n, K);
        int first = 0, second = 0, kept = 0;
        while (second < K && in[second] < M) second++;
        const int half = second;
        while (kept < K) { /* two ascending lists: [0, half) and [half, K) less M */
            const bool upright = second == K || (first < half && in[first] <= in[second] - M);
            const int k = upright ? first++ : second++;
            indices[cpu_offset(n, K) + (size_t)kept] = upright ? in[k] : in[k] - M;
            values[cpu_offset(n, K) + (size_t)kept++] = upright ? v[k] : -v[k];
        }
    }
}

void OP(sae_merge_groups)(struct device *dev, int *indices, real_t *values, const int *groups, const real_t *group_values, int N, int K,
                          int size) {
    (void)dev;
    for (int n = 0; n < N; n++)
        for (int g = 0; g < K; g++) {
            indices[cpu_offset(n, K) + (size_t)g] = groups[cpu_offset(g, N) + (size_t)n] + g * size;
            values[cpu_offset(n, K) + (size_t)g] = group_values[cpu_offset(g, N) + (size_t)n];
        }
}
