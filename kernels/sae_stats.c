/* sae_stats.c - see sae_ops.h. What the analysis counts: energy and firing per token group, cosine of dictionary rows. */
#include "kernels/sae_internal.h"
#include "kernels/sae_ops.h"

void OP(sae_feature_stats)(struct device *dev, double *energy, int64_t *fired, const int *offsets, const int *entries, const real_t *values,
                           const uint8_t *group, int groups, int N, int M, int K) {
    (void)dev, (void)N;
#pragma omp parallel for schedule(dynamic, 64)
    for (int f = 0; f < M; f++)
        for (int e = offsets[f]; e < offsets[f + 1]; e++) {
            int g = group[entries[e] / K];
            double z = values[entries[e]];
            if (g >= groups || !(z > 0)) continue;
            energy[cpu_offset(g, M) + (size_t)f] += z * z;
            fired[cpu_offset(g, M) + (size_t)f]++;
        }
}

void OP(row_cosine)(struct device *dev, real_t *cosine, const real_t *a, const real_t *b, int M, int d) {
    (void)dev;
#pragma omp parallel for schedule(static) if (cpu_offset(M, d) > CPU_PARALLEL_MIN)
    for (int f = 0; f < M; f++) {
        const real_t *p = a + cpu_offset(f, d), *q = b + cpu_offset(f, d);
        double pp = 0, qq = 0, pq = 0; /* products of two f32 are exact in double: no overflow, no cancellation */
#pragma omp simd reduction(+ : pp, qq, pq)
        for (int i = 0; i < d; i++) {
            pp += (double)p[i] * p[i];
            qq += (double)q[i] * q[i];
            pq += (double)p[i] * q[i];
        }
        cosine[f] = pp > 0 && qq > 0 ? (real_t)(pq / sqrt(pp * qq)) : 0;
    }
}
