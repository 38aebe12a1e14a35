/* sae_stats.cu - see sae_ops.h: the feature-major view by a stable counting sort, firing statistics, cosine of rows. */
#include "kernels/vec.cuh"
#include "kernels/sae_ops.h"

namespace {
constexpr int WARPS = 4; /* of a block whose warps work alone */

/* How many runs of slots are counted apart; one warp walks one run. Fixed by the shape, so the order of entries is. */
int segments_for(int M) { return M <= 131072 ? 128 : 16; }

__device__ __forceinline__ size_t segment_start(int s, int segments, size_t slots) {
    return slots * static_cast<size_t>(s) / static_cast<size_t>(segments);
}

/* Walks a segment in order, 32 slots a turn. Slots of a turn that name the same feature are ranked by lane, so the sort is
 * stable. count (segments, M): SCATTER false counts; true holds, per segment and feature, where the next entry goes. */
template <bool SCATTER> __global__ void __launch_bounds__(32 * WARPS)
    sae_csc_walk_kernel(int *__restrict__ count, int *__restrict__ entries, const int *__restrict__ indices, size_t slots, int segments,
                        int M) {
    const int s = static_cast<int>(blockIdx.x) * WARPS + static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    if (s >= segments) return;
    int *mine = count + static_cast<size_t>(s) * M;
    const size_t end = segment_start(s + 1, segments, slots);
    for (size_t base = segment_start(s, segments, slots); base < end; base += 32) {
        const int f = base + lane < end ? indices[base + lane] : -1;
        const unsigned same = __match_any_sync(ALL_LANES, f);
        const int leader = __ffs(static_cast<int>(same)) - 1;
        int at = 0;
        if (lane == leader && f >= 0) {
            at = mine[f];
            mine[f] = at + __popc(same);
        }
        at = __shfl_sync(ALL_LANES, at, leader);
        if (SCATTER && f >= 0) entries[at + __popc(same & ((1u << lane) - 1))] = static_cast<int>(base + lane);
        __syncwarp(); /* the next turn's leader of f may be another lane */
    }
}

/* Turns a feature's counts per segment into sums of those before; total[f] is all of them. */
__global__ void __launch_bounds__(256) sae_csc_column_kernel(int *__restrict__ count, int *__restrict__ total, int segments, int M) {
    const int f = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (f >= M) return;
    int sum = 0;
    for (int s = 0; s < segments; s++) {
        const size_t at = static_cast<size_t>(s) * M + f;
        const int here = count[at];
        count[at] = sum;
        sum += here;
    }
    total[f] = sum;
}

/* One block turns total (M) into sums of those before, total (M+1): offsets. */
__global__ void __launch_bounds__(1024) sae_csc_scan_kernel(int *offsets, int M) {
    SHARED(int, part, [32]);
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
    int before = 0;
    for (int base = 0; base < M; base += 1024) {
        const int mine = base + tid < M ? offsets[base + tid] : 0;
        int sum = mine;
        for (int o = 1; o < 32; o <<= 1) {
            const int left = __shfl_up_sync(ALL_LANES, sum, static_cast<unsigned>(o));
            if (lane >= o) sum += left;
        }
        if (lane == 31) part[warp] = sum;
        __syncthreads();
        int total = 0, earlier = 0;
        for (int w = 0; w < 32; w++) {
            if (w < warp) earlier += part[w];
            total += part[w];
        }
        if (base + tid < M) offsets[base + tid] = before + earlier + sum - mine;
        before += total;
        __syncthreads();
    }
    if (tid == 0) offsets[M] = before;
}

__global__ void __launch_bounds__(256) sae_csc_place_kernel(int *__restrict__ count, const int *__restrict__ offsets, int segments, int M) {
    const size_t n = static_cast<size_t>(segments) * M;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += static_cast<size_t>(gridDim.x) * blockDim.x)
        count[i] += offsets[i % M];
}

/* One warp per feature: lanes fetch 32 entries, lane 0 adds them in order, so the sums are those of a plain loop. */
__global__ void __launch_bounds__(32 * WARPS)
    sae_feature_stats_warp_kernel(double *__restrict__ energy, long long *__restrict__ fired, const int *__restrict__ offsets,
                                  const int *__restrict__ entries, const float *__restrict__ values, const uint8_t *__restrict__ group,
                                  int groups, int M, int K) {
    const int f = static_cast<int>(blockIdx.x) * WARPS + static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    if (f >= M) return;
    const int to = offsets[f + 1];
    for (int base = offsets[f]; base < to; base += 32) {
        const int slot = base + lane < to ? entries[base + lane] : -1;
        const float z = slot >= 0 ? values[slot] : 0.0f;
        const int g = slot >= 0 ? group[slot / K] : 255;
        for (int i = 0; i < 32 && base + i < to; i++) {
            const double value = static_cast<double>(__shfl_sync(ALL_LANES, z, i));
            const int of = __shfl_sync(ALL_LANES, g, i);
            if (lane != 0 || of >= groups || !(value > 0)) continue;
            const size_t at = static_cast<size_t>(of) * M + f;
            energy[at] = __dadd_rn(energy[at], __dmul_rn(value, value)); /* not contracted: the same bits everywhere */
            fired[at]++;
        }
    }
}

__global__ void __launch_bounds__(32 * WARPS)
    row_cosine_warp_kernel(float *__restrict__ cosine, const float *__restrict__ a, const float *__restrict__ b, int M, int d) {
    const int f = static_cast<int>(blockIdx.x) * WARPS + static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    if (f >= M) return;
    const size_t at = static_cast<size_t>(f) * d;
    float aa = 0, bb = 0, ab = 0;
    for (int c = lane; c < d; c += 32) {
        const float p = a[at + c], q = b[at + c];
        aa += p * p;
        bb += q * q;
        ab += p * q;
    }
    aa = warp_sum(aa);
    bb = warp_sum(bb);
    ab = warp_sum(ab);
    if (lane == 0) cosine[f] = aa > 0 && bb > 0 ? ab / (sqrtf(aa) * sqrtf(bb)) : 0.0f;
}

unsigned blocks_of_warps(int warps) { return static_cast<unsigned>((warps + WARPS - 1) / WARPS); }
} // namespace

size_t sae_csc_scratch(int N, int M, int K) {
    (void)N, (void)K;
    return static_cast<size_t>(segments_for(M)) * static_cast<size_t>(M) * sizeof(int);
}

void sae_csc(struct device *dev, int *offsets, int *entries, const int *indices, int N, int M, int K, void *scratch) {
    const size_t slots = static_cast<size_t>(N) * static_cast<size_t>(K);
    CHECK(slots <= INT32_MAX, "N=%d K=%d: slots are counted in int", N, K);
    const int segments = segments_for(M);
    int *count = static_cast<int *>(scratch);
    device_zero(dev, count, sae_csc_scratch(N, M, K));
    LAUNCH((sae_csc_walk_kernel<false>), blocks_of_warps(segments), 32 * WARPS, 0, dev->stream, count, entries, indices, slots, segments,
           M);
    LAUNCH((sae_csc_column_kernel), static_cast<unsigned>((M + 255) / 256), 256, 0, dev->stream, count, offsets, segments, M);
    LAUNCH((sae_csc_scan_kernel), 1, 1024, 0, dev->stream, offsets, M);
    LAUNCH((sae_csc_place_kernel), grid_for(static_cast<size_t>(segments) * M), 256, 0, dev->stream, count, offsets, segments, M);
    LAUNCH((sae_csc_walk_kernel<true>), blocks_of_warps(segments), 32 * WARPS, 0, dev->stream, count, entries, indices, slots, segments, M);
}

void sae_feature_stats(struct device *dev, double *energy, int64_t *fired, const int *offsets, const int *entries, const float *values,
                       const uint8_t *group, int groups, int N, int M, int K) {
    (void)N;
    if (M > 0)
        LAUNCH((sae_feature_stats_warp_kernel), blocks_of_warps(M), 32 * WARPS, 0, dev->stream, energy,
               reinterpret_cast<long long *>(fired), offsets, entries, values, group, groups, M, K);
}

void row_cosine(struct device *dev, float *cosine, const float *a, const float *b, int M, int d) {
    if (M > 0) LAUNCH((row_cosine_warp_kernel), blocks_of_warps(M), 32 * WARPS, 0, dev->stream, cosine, a, b, M, d);
}
