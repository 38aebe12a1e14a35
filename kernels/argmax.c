/* argmax.c - see argmax.h. */
#include "kernels/argmax.h"

#include "kernels/cpu.h"

static int row_argmax(const real_t *x, int V) {
    real_t top = x[0];
    int nans = 0;
#pragma omp simd reduction(max : top) reduction(+ : nans)
    for (int i = 0; i < V; i++) {
        top = x[i] > top ? x[i] : top;
        nans += x[i] != x[i];
    }
    if (nans) {
        for (int i = 0; i < V; i++)
            if (x[i] != x[i]) return i;
    }
    for (int i = 0; i < V; i++)
        if (x[i] == top) return i;
    return 0;
}

void OP(argmax_rows)(struct device *dev, int *index, const real_t *x, int N, int V) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)V > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) index[n] = row_argmax(x + cpu_offset(n, V), V);
}
