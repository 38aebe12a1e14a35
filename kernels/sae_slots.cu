/* sae_slots.cu - see sae_slots.h. One thread per slot. */
#include "kernels/vec.cuh"
#include "kernels/sae_slots.h"

namespace {
constexpr int THREADS = 256;

/* How many of the ascending list are below `limit`. */
__device__ __forceinline__ int count_below(const int *list, int n, int limit) {
    int low = 0;
    while (low < n) {
        const int middle = (low + n) / 2;
        if (list[middle] < limit)
            low = middle + 1;
        else
            n = middle;
    }
    return low;
}

/* A slot's place is its place in its own half plus how many of the other half come before it. */
__global__ void __launch_bounds__(THREADS)
    sae_merge_signed_kernel(int *__restrict__ indices, float *__restrict__ values, const int *__restrict__ doubled,
                            const float *__restrict__ doubled_values, int N, int M, int K) {
    const size_t slot = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (slot >= static_cast<size_t>(N) * K) return;
    const size_t row = slot / K * K;
    const int k = static_cast<int>(slot - row), half = count_below(doubled + row, K, M), index = doubled[slot];
    const bool upright = k < half;
    const int place =
        upright ? k + count_below(doubled + row + half, K - half, index + M) : k - half + count_below(doubled + row, half, index - M + 1);
    indices[row + place] = upright ? index : index - M;
    values[row + place] = upright ? doubled_values[slot] : -doubled_values[slot];
}

__global__ void __launch_bounds__(THREADS)
    sae_merge_groups_kernel(int *__restrict__ indices, float *__restrict__ values, const int *__restrict__ groups,
                            const float *__restrict__ group_values, int N, int K, int size) {
    const size_t slot = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (slot >= static_cast<size_t>(N) * K) return;
    const size_t n = slot / K, g = slot - n * K;
    indices[slot] = groups[g * N + n] + static_cast<int>(g) * size;
    values[slot] = group_values[g * N + n];
}

int blocks(int N, int K) { return static_cast<int>((static_cast<size_t>(N) * K + THREADS - 1) / THREADS); }
} // namespace

void sae_merge_signed(struct device *dev, int *indices, float *values, const int *doubled, const float *doubled_values, int N, int M,
                      int K) {
    OP_RANGE();
    if (N > 0 && K > 0)
        LAUNCH(sae_merge_signed_kernel, blocks(N, K), THREADS, 0, dev->stream, indices, values, doubled, doubled_values, N, M, K);
}

void sae_merge_groups(struct device *dev, int *indices, float *values, const int *groups, const float *group_values, int N, int K,
                      int size) {
    OP_RANGE();
    if (N > 0 && K > 0)
        LAUNCH(sae_merge_groups_kernel, blocks(N, K), THREADS, 0, dev->stream, indices, values, groups, group_values, N, K, size);
}
