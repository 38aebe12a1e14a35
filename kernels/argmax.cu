/* argmax.cu - see argmax.h. */
#include "kernels/vec.cuh"
#include "kernels/argmax.h"
#include <climits>

/* Is (a, i) before (b, j)? NaN first, then the larger value, then the lower index; index INT_MAX is nothing. */
__device__ __forceinline__ bool before(float a, int i, float b, int j) {
    const bool nan_a = a != a, nan_b = b != b;
    if (nan_a != nan_b) return nan_a;
    if (!nan_a && a != b) return a > b;
    return i < j;
}

__device__ __forceinline__ void warp_best(float &value, int &index) {
    for (int o = 16; o; o >>= 1) {
        const float v = __shfl_xor_sync(ALL_LANES, value, o);
        const int i = __shfl_xor_sync(ALL_LANES, index, o);
        if (before(v, i, value, index)) value = v, index = i;
    }
}

/* One block per row; `before` is a total order, so the order of comparisons does not matter. */
__global__ void __launch_bounds__(1024) argmax_rows_kernel(int *__restrict__ index, const float *__restrict__ x, int V) {
    SHARED(float, values, [32]);
    SHARED(int, indices, [32]);
    const float *row = x + static_cast<size_t>(blockIdx.x) * V;
    float value = -INFINITY;
    int best = INT_MAX;
    for (int i = static_cast<int>(threadIdx.x); i < V; i += static_cast<int>(blockDim.x)) {
        const float v = row[i];
        if (before(v, i, value, best)) value = v, best = i;
    }
    warp_best(value, best);
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value, indices[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    const bool mine = threadIdx.x < blockDim.x / 32;
    value = mine ? values[threadIdx.x] : -INFINITY;
    best = mine ? indices[threadIdx.x] : INT_MAX;
    warp_best(value, best);
    if (threadIdx.x == 0) index[blockIdx.x] = best;
}

void argmax_rows(struct device *dev, int *index, const float *x, int N, int V) {
    OP_RANGE();
    CHECK(V > 0, "V=%d", V);
    if (N > 0) LAUNCH(argmax_rows_kernel, N, row_threads(V, 1024), 0, dev->stream, index, x, V);
}
