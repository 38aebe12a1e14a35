/* sae_stats.cu - see sae_ops.h: the feature-major view by a stable radix sort, firing statistics, cosine of rows. */
#include "kernels/vec.cuh"
#include "kernels/sae_ops.h"

namespace {
constexpr int WARPS = 4; /* of a block whose warps work alone */

/* Radix sort of the slots by feature, lowest digit first: every pass counts a digit's values block by block, sums the counts
 * of each value over the blocks before, and moves the slots, in order. Unused slots count as feature M and end up last. */
constexpr int SORT_THREADS = 256, SORT_WARPS = SORT_THREADS / 32, TURNS = 8, RUN = 32 * TURNS; /* slots of a warp */
constexpr int LARGEST_DIGIT = 9, BINS = 1 << LARGEST_DIGIT;

struct sort_pass {
    const int *indices, *in; /* in NULL: the slots in their first order */
    int *out, *count;        /* count (values of the digit, blocks) */
    int *total;              /* (values of the digit) */
    int slots, M, shift, bins, blocks;
};

__device__ __forceinline__ int slot_at(const sort_pass &p, int i) { return p.in ? p.in[i] : i; }
__device__ __forceinline__ int digit_of(const sort_pass &p, int slot) {
    const int f = p.indices[slot];
    return (f < 0 ? p.M : f) >> p.shift & (p.bins - 1);
}

/* Sum of the values of threads before this one, *all: of all. part: 32 ints of shared memory. */
__device__ __forceinline__ int sum_before(int mine, int *part, int *all) {
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
    int sum = mine, earlier = 0;
    for (int o = 1; o < 32; o <<= 1) {
        const int left = __shfl_up_sync(ALL_LANES, sum, static_cast<unsigned>(o));
        if (lane >= o) sum += left;
    }
    if (lane == 31) part[warp] = sum;
    __syncthreads();
    *all = 0;
    for (int w = 0; w < SORT_WARPS; w++) {
        if (w < warp) earlier += part[w];
        *all += part[w];
    }
    __syncthreads();
    return earlier + sum - mine;
}

__global__ void __launch_bounds__(SORT_THREADS) sae_csc_count_kernel(const sort_pass p) {
    SHARED(int, here, [BINS]);
    const int tid = static_cast<int>(threadIdx.x), start = static_cast<int>(blockIdx.x) * SORT_WARPS * RUN;
    for (int b = tid; b < p.bins; b += SORT_THREADS) here[b] = 0;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < TURNS; j++) {
        const int i = start + j * SORT_THREADS + tid;
        if (i < p.slots) atomicAdd(&here[digit_of(p, slot_at(p, i))], 1);
    }
    __syncthreads();
    for (int b = tid; b < p.bins; b += SORT_THREADS) p.count[static_cast<size_t>(b) * p.blocks + blockIdx.x] = here[b];
}

/* Grid: values of the digit. */
__global__ void __launch_bounds__(SORT_THREADS) sae_csc_sum_kernel(const sort_pass p) {
    SHARED(int, part, [32]);
    int *count = p.count + static_cast<size_t>(blockIdx.x) * p.blocks, before = 0, all = 0;
    for (int base = 0; base < p.blocks; base += SORT_THREADS) {
        const int b = base + static_cast<int>(threadIdx.x), mine = b < p.blocks ? count[b] : 0, at = sum_before(mine, part, &all);
        if (b < p.blocks) count[b] = before + at;
        before += all;
    }
    if (threadIdx.x == 0) p.total[blockIdx.x] = before;
}

/* A warp walks its run twice, 32 slots a turn: to count, then, when all know where theirs begin, to move. Slots of a turn
 * with the same digit are ranked by lane. */
__global__ void __launch_bounds__(SORT_THREADS) sae_csc_move_kernel(const sort_pass p) {
    SHARED(int, next, [SORT_WARPS][BINS]);
    SHARED(int, part, [32]);
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32,
              start = (static_cast<int>(blockIdx.x) * SORT_WARPS + warp) * RUN + lane;
    int slot[TURNS], digit[TURNS];
    for (int b = lane; b < p.bins; b += 32) next[warp][b] = 0;
#pragma unroll
    for (int j = 0; j < TURNS; j++) {
        const int i = start + 32 * j;
        slot[j] = i < p.slots ? slot_at(p, i) : -1;
        digit[j] = slot[j] < 0 ? -1 : digit_of(p, slot[j]);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < TURNS; j++)
        if (digit[j] >= 0) atomicAdd(&next[warp][digit[j]], 1);
    __syncthreads();
    int before = 0, all = 0;
    for (int base = 0; base < p.bins; base += SORT_THREADS) {
        const int b = base + tid, begin = before + sum_before(b < p.bins ? p.total[b] : 0, part, &all);
        before += all;
        if (b >= p.bins) continue;
        int at = begin + p.count[static_cast<size_t>(b) * p.blocks + blockIdx.x];
        for (int w = 0; w < SORT_WARPS; w++) {
            const int mine = next[w][b];
            next[w][b] = at;
            at += mine;
        }
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < TURNS; j++) {
        const unsigned same = __match_any_sync(ALL_LANES, digit[j]);
        int at = 0;
        if (digit[j] >= 0) {
            at = next[warp][digit[j]] + __popc(same & ((1u << lane) - 1));
            p.out[at] = slot[j];
        }
        __syncwarp(); /* all have read next */
        if (digit[j] >= 0 && lane == __ffs(static_cast<int>(same)) - 1) next[warp][digit[j]] += __popc(same);
        __syncwarp();
    }
}

/* The sorted slots but the unused ones, and where each feature's begin: by bisection. */
__global__ void __launch_bounds__(256) sae_csc_finish_kernel(int *__restrict__ offsets, int *__restrict__ entries, const sort_pass p) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < p.slots && p.indices[p.out[i]] >= 0) entries[i] = p.out[i];
    if (i > p.M) return;
    int low = 0, high = p.slots; /* those before low are of features < i, those from high on are not */
    while (low < high) {
        const int middle = low + (high - low) / 2, f = p.indices[p.out[middle]];
        if ((f < 0 ? p.M : f) < i)
            low = middle + 1;
        else
            high = middle;
    }
    offsets[i] = low;
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
    (void)M;
    const size_t slots = static_cast<size_t>(N) * static_cast<size_t>(K), blocks = (slots + SORT_WARPS * RUN - 1) / (SORT_WARPS * RUN);
    return (2 * slots + (blocks + 1) * BINS) * sizeof(int);
}

void sae_csc(struct device *dev, int *offsets, int *entries, const int *indices, int N, int M, int K, void *scratch) {
    const size_t slots = static_cast<size_t>(N) * static_cast<size_t>(K);
    CHECK(slots <= INT32_MAX - SORT_WARPS * RUN && M < INT32_MAX, "N=%d K=%d M=%d: slots are counted in int", N, K, M);
    int bits = 1;
    while (M >> bits) bits++;
    const int passes = (bits + LARGEST_DIGIT - 1) / LARGEST_DIGIT, digit = (bits + passes - 1) / passes;
    int *buffer = static_cast<int *>(scratch);
    sort_pass p = {};
    p.indices = indices;
    p.slots = static_cast<int>(slots);
    p.M = M;
    p.bins = 1 << digit;
    p.blocks = static_cast<int>((slots + SORT_WARPS * RUN - 1) / (SORT_WARPS * RUN));
    p.total = buffer + 2 * slots;
    p.count = p.total + BINS;
    for (int i = 0; i < passes && slots > 0; i++) {
        p.in = i ? p.out : nullptr;
        p.out = buffer + static_cast<size_t>(i % 2) * slots;
        p.shift = i * digit;
        LAUNCH((sae_csc_count_kernel), static_cast<unsigned>(p.blocks), SORT_THREADS, 0, dev->stream, p);
        LAUNCH((sae_csc_sum_kernel), static_cast<unsigned>(p.bins), SORT_THREADS, 0, dev->stream, p);
        LAUNCH((sae_csc_move_kernel), static_cast<unsigned>(p.blocks), SORT_THREADS, 0, dev->stream, p);
    }
    const size_t last = slots > static_cast<size_t>(M) ? slots : static_cast<size_t>(M) + 1;
    LAUNCH((sae_csc_finish_kernel), static_cast<unsigned>((last + 255) / 256), 256, 0, dev->stream, offsets, entries, p);
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
