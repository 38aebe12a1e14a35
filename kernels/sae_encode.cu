/* sae_encode.cu - see sae_ops.h. Pre-activations of at most ROWS x COLUMNS at a time by a matrix product, then a kernel that
 * keeps each row's candidates. f32 all the way, so the choice is exact on the product. */
#include "kernels/vec.cuh"
#include "kernels/gemm.h"
#include "kernels/sae_ops.h"

namespace {
constexpr int ROWS = 4096, COLUMNS = 4096; /* h: 64 MiB, so that most of it is still in L2 when the filter reads it */
constexpr int FILTER_THREADS = 256, VALUES = COLUMNS / FILTER_THREADS, LARGEST_K = 8192, TILE = 64, DEPTH = 16;
constexpr int SPARE = 256;                        /* candidates that a row's list holds beside its K best */
constexpr int LARGEST_BOUND = FILTER_THREADS / 2; /* first_bound is near the K-th largest up to this K */

/* What must survive from one chunk of features to the next, per row: `used` candidates, in no order, with their h. The K best
 * of the features so far are among them. bound: the K-th best at the last cut; only better keys are still of interest. */
struct lists {
    uint64_t *key; /* (rows, K + SPARE): order of the rank above, complement of the feature below: larger is better, no two equal */
    float *h;
    uint64_t *bound; /* (rows); 0: none yet */
    int *used;       /* (rows) */
};

__device__ __forceinline__ unsigned ordered(float rank) {
    const unsigned bits = __float_as_uint(rank + 0.0f); /* -0 equals 0 */
    return rank != rank ? 0xffffffffu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
/* The inverse; the order of NaN gives NaN, and so does 0, below all others. */
__device__ __forceinline__ float unordered(unsigned order) { return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order); }
__device__ __forceinline__ uint64_t make_key(float rank, int feature) {
    return static_cast<uint64_t>(ordered(rank)) << 32 | static_cast<unsigned>(~feature);
}
__device__ __forceinline__ int key_feature(uint64_t key) { return static_cast<int>(~static_cast<unsigned>(key)); }

/* Bitonic sort of n pairs in shared memory, largest key first (Batcher 1968). Room up to the next power of two is used. */
__device__ void sort_descending(uint64_t *key, float *h, int n) {
    const int tid = static_cast<int>(threadIdx.x);
    int all = 2;
    while (all < n) all <<= 1;
    for (int i = n + tid; i < all; i += FILTER_THREADS) {
        key[i] = 0; /* below every real key */
        h[i] = 0;
    }
    __syncthreads();
    for (int size = 2; size <= all; size <<= 1)
        for (int step = size >> 1; step > 0; step >>= 1) {
            for (int i = tid; i < all / 2; i += FILTER_THREADS) {
                const int low = 2 * i - (i & (step - 1)), high = low + step;
                const bool descending = (low & size) == 0;
                const uint64_t a = key[low], b = key[high];
                if ((a < b) == descending) {
                    const float t = h[low];
                    key[low] = b, key[high] = a;
                    h[low] = h[high], h[high] = t;
                }
            }
            __syncthreads();
        }
}

/* The columns of a chunk that a thread looks at: four neighbours at a time where the addresses allow. */
template <bool WIDE> __device__ __forceinline__ int column_of(int j) {
    const int tid = static_cast<int>(threadIdx.x);
    return WIDE ? 4 * (tid + j / 4 * FILTER_THREADS) + j % 4 : tid + j * FILTER_THREADS;
}

struct chunk { /* of a row: what ranks are made from */
    const float *h, *b_e, *rank_scale;
    int count;
    __device__ __forceinline__ float rank(int c) const { return (h[c] + b_e[c]) * (rank_scale ? rank_scale[c] : 1.0f); }
};

/* Columns past the end give -infinity. */
template <bool WIDE> __device__ __forceinline__ void load_ranks(float (&rank)[VALUES], const chunk &r) {
    if constexpr (WIDE) {
#pragma unroll
        for (int j = 0; j < VALUES; j += 4) {
            const int c = column_of<WIDE>(j);
            float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
            if (c < r.count) v = *reinterpret_cast<const float4 *>(r.h + c);
            rank[j] = v.x, rank[j + 1] = v.y, rank[j + 2] = v.z, rank[j + 3] = v.w;
        }
#pragma unroll
        for (int j = 0; j < VALUES; j += 4) {
            const int c = column_of<WIDE>(j);
            if (c >= r.count) continue;
            const float4 b = *reinterpret_cast<const float4 *>(r.b_e + c);
            rank[j] += b.x, rank[j + 1] += b.y, rank[j + 2] += b.z, rank[j + 3] += b.w;
            if (!r.rank_scale) continue;
            const float4 s = *reinterpret_cast<const float4 *>(r.rank_scale + c);
            rank[j] *= s.x, rank[j + 1] *= s.y, rank[j + 2] *= s.z, rank[j + 3] *= s.w;
        }
    } else {
#pragma unroll
        for (int j = 0; j < VALUES; j++) rank[j] = column_of<WIDE>(j) < r.count ? r.rank(column_of<WIDE>(j)) : -INFINITY;
    }
}

/* The order of a value that at least K threads of the block reach, near the K-th largest: bisection over the largest value
 * of each thread, by the first warp. 0 when there is none or K is large. part: FILTER_THREADS words of shared memory. */
template <bool WIDE> __device__ __forceinline__ unsigned first_bound(const float (&rank)[VALUES], int count, int K, unsigned *part) {
    SHARED(unsigned, found, );
    const int tid = static_cast<int>(threadIdx.x);
    if (K > LARGEST_BOUND) return 0;
    float most = rank[0];
#pragma unroll
    for (int j = 1; j < VALUES; j++) most = fmaxf(most, rank[j]);
    part[tid] = column_of<WIDE>(0) < count ? ordered(most) : 0;
    __syncthreads();
    if (tid < 32) {
        unsigned top[FILTER_THREADS / 32], bound = 0;
#pragma unroll
        for (int i = 0; i < FILTER_THREADS / 32; i++) top[i] = part[tid + 32 * i];
        for (unsigned bit = 1u << 31; bit >= 1u << 8; bit >>= 1) {
            int reached = 0;
#pragma unroll
            for (int i = 0; i < FILTER_THREADS / 32; i++) reached += __popc(__ballot_sync(ALL_LANES, top[i] >= (bound | bit)));
            if (reached >= K) bound |= bit;
        }
        if (tid == 0) found = bound;
    }
    __syncthreads();
    return found;
}

/* For rows whose candidates of this chunk do not fit: 256 columns a turn are compared with the K-th best key so far, those
 * above are appended to the shared list, and a full list is sorted and cut to K. Returns how many it then holds. */
__device__ int filter_in_turns(uint64_t *key, float *h, int *used, int n, const chunk &r, int first, uint64_t bound, int K, int capacity) {
    if (threadIdx.x == 0) *used = n;
    __syncthreads();
    for (int base = 0; base < r.count; base += FILTER_THREADS) {
        if (n > capacity - FILTER_THREADS) {
            sort_descending(key, h, n);
            bound = key[K - 1];
            if (threadIdx.x == 0) *used = K;
            __syncthreads();
        }
        const int c = base + static_cast<int>(threadIdx.x);
        if (c < r.count) {
            const uint64_t mine = make_key(r.rank(c), first + c);
            if (mine > bound) {
                const int at = atomicAdd(used, 1);
                key[at] = mine;
                h[at] = r.h[c] + r.b_e[c];
            }
        }
        __syncthreads();
        n = *used;
        __syncthreads(); /* nobody appends before all have read */
    }
    return n;
}

/* Grid: rows. Shared: `capacity` (a power of two >= K + SPARE + FILTER_THREADS) pairs. Values that can still be among the K
 * best are appended to the row's list; the list is cut to K when it has grown, and always in the first chunk, whose bound
 * lets few values through in the next ones. What a cut drops is below K others: exact. The last chunk writes the K best,
 * ascending in the feature. */
template <bool WIDE> __global__ void __launch_bounds__(FILTER_THREADS)
    sae_topk_filter_kernel(int *__restrict__ indices, float *__restrict__ values, const lists l, const float *__restrict__ h,
                           const float *__restrict__ b_e, const float *__restrict__ rank_scale, int first, int count, int M, int K,
                           int capacity) {
    DYN_SMEM(uint64_t, key);
    SHARED(int, used, );
    float *value = reinterpret_cast<float *>(key + capacity);
    const int tid = static_cast<int>(threadIdx.x), full = K + SPARE;
    const size_t row = blockIdx.x, at = row * static_cast<size_t>(full);
    const chunk r = {h + row * count, b_e + first, rank_scale ? rank_scale + first : nullptr, count};
    const int before = first ? l.used[row] : 0;
    const uint64_t bound = first ? l.bound[row] : 0;
    float rank[VALUES];
    load_ranks<WIDE>(rank, r);
    if (tid == 0) used = before;
    const unsigned order = bound   ? static_cast<unsigned>(bound >> 32) + 1
                           : first ? 0
                                   : first_bound<WIDE>(rank, count, K, reinterpret_cast<unsigned *>(key));
    const float least = unordered(order); /* NaN: no bound */
    __syncthreads();
#pragma unroll
    for (int j = 0; j < VALUES; j++) {
        const int c = column_of<WIDE>(j);
        if (rank[j] < least || c >= count) continue;
        const int to = atomicAdd(&used, 1);
        if (to >= full) continue;
        l.key[at + to] = make_key(rank[j], first + c);
        l.h[at + to] = r.h[c] + r.b_e[c];
    }
    __syncthreads();
    int n = used;
    const bool overflow = n > full, last = first + count == M;
    if (!overflow && bound && n < K + SPARE / 2 && !last) {
        if (tid == 0) l.used[row] = n;
        return;
    }
    for (int i = tid; i < (overflow ? before : n); i += FILTER_THREADS) {
        key[i] = l.key[at + i];
        value[i] = l.h[at + i];
    }
    __syncthreads();
    if (overflow) n = filter_in_turns(key, value, &used, before, r, first, bound, K, capacity);
    sort_descending(key, value, n);
    n = n < K ? n : K;
    if (!last) {
        for (int i = tid; i < n; i += FILTER_THREADS) {
            l.key[at + i] = key[i];
            l.h[at + i] = value[i];
        }
        if (tid == 0) {
            l.used[row] = n;
            l.bound[row] = n == K ? key[K - 1] : 0;
        }
        return;
    }
    for (int i = tid; i < K; i += FILTER_THREADS) key[i] &= 0xffffffffu; /* only the feature counts now */
    sort_descending(key, value, K);
    for (int i = tid; i < K; i += FILTER_THREADS) {
        indices[row * K + i] = key_feature(key[i]);
        values[row * K + i] = value[i] > 0 || value[i] != value[i] ? value[i] : 0.0f;
    }
}

/* Grid: rows. Lists what lies above its threshold, in the order of features; counts[row] carries on from chunk to chunk. */
__global__ void __launch_bounds__(FILTER_THREADS)
    sae_jumprelu_filter_kernel(int *__restrict__ indices, float *__restrict__ values, int *__restrict__ counts, const float *__restrict__ h,
                               const float *__restrict__ b_e, const float *__restrict__ threshold, int first, int count, int M, int K) {
    SHARED(int, part, [FILTER_THREADS / 32]);
    const size_t row = blockIdx.x;
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
    int total = first ? counts[row] : 0;
    for (int base = 0; base < count; base += FILTER_THREADS) {
        const int c = base + tid;
        const float pre = c < count ? h[row * count + c] + b_e[first + c] : 0.0f;
        const bool active = c < count && pre > threshold[first + c];
        const unsigned mask = __ballot_sync(ALL_LANES, active);
        if (lane == 0) part[warp] = __popc(mask);
        __syncthreads();
        int at = total + __popc(mask & ((1u << lane) - 1));
        for (int w = 0; w < FILTER_THREADS / 32; w++) {
            if (w < warp) at += part[w];
            total += part[w];
        }
        if (active && at < K) {
            indices[row * K + at] = first + c;
            values[row * K + at] = pre;
        }
        __syncthreads();
    }
    __syncthreads(); /* all have read counts */
    if (tid == 0) counts[row] = total;
    for (int k = total + tid; first + count == M && k < K; k += FILTER_THREADS) {
        indices[row * K + k] = -1;
        values[row * K + k] = 0;
    }
}

/* h (N, count) = x E^T with E in f32: 64 x 64 tiles, 4 x 4 sums a thread. For dictionaries without a bf16 copy, where
 * exactness is asked for, not speed. Grid: (features / 64, rows / 64), 256 threads. */
__global__ void __launch_bounds__(256) sae_product_tile_kernel(float *__restrict__ h, const __nv_bfloat16 *__restrict__ x,
                                                               const float *__restrict__ E, int N, int d, int count) {
    SHARED(float, xs, [DEPTH][TILE + 4]);
    SHARED(float, es, [DEPTH][TILE + 4]);
    const int tid = static_cast<int>(threadIdx.x), tx = tid % 16, ty = tid / 16, row = static_cast<int>(blockIdx.y) * TILE,
              column = static_cast<int>(blockIdx.x) * TILE;
    float sum[4][4] = {};
    for (int base = 0; base < d; base += DEPTH) {
        for (int i = tid; i < TILE * DEPTH; i += 256) {
            const int r = i / DEPTH, k = i % DEPTH;
            xs[k][r] = row + r < N && base + k < d ? __bfloat162float(x[static_cast<size_t>(row + r) * d + base + k]) : 0.0f;
            es[k][r] = column + r < count && base + k < d ? E[static_cast<size_t>(column + r) * d + base + k] : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < DEPTH; k++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sum[i][j] += xs[k][4 * ty + i] * es[k][4 * tx + j];
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            if (row + 4 * ty + i < N && column + 4 * tx + j < count)
                h[static_cast<size_t>(row + 4 * ty + i) * count + column + 4 * tx + j] = sum[i][j];
}

int smaller(int a, int b) { return a < b ? a : b; }

int power_of_two(int least) {
    int n = 2;
    while (n < least) n <<= 1;
    return n;
}

size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }
size_t h_bytes(int N, int M) {
    return padded(static_cast<size_t>(smaller(N, ROWS)) * static_cast<size_t>(smaller(M, COLUMNS)) * sizeof(float));
}
/* The lists of a block of rows from address p on; *end: where they end. */
lists lists_at(uintptr_t p, int N, int K, uintptr_t *end) {
    const size_t rows = static_cast<size_t>(smaller(N, ROWS)), all = rows * static_cast<size_t>(K + SPARE);
    lists l;
    l.key = reinterpret_cast<uint64_t *>(p);
    l.h = reinterpret_cast<float *>(p += padded(all * sizeof(uint64_t)));
    l.bound = reinterpret_cast<uint64_t *>(p += padded(all * sizeof(float)));
    l.used = reinterpret_cast<int *>(p += padded(rows * sizeof(uint64_t)));
    *end = p + padded(rows * sizeof(int));
    return l;
}

/* What an encode works on; threshold NULL: top-k, else JumpReLU. */
struct encode_args {
    int *indices;
    float *values;
    int *counts;
    const bf16 *x;
    const float *E;
    const bf16 *E_low;
    const float *b_e, *rank_scale, *threshold;
    int N, d, M, K;
    void *scratch;
};

template <class F> void allow_shared(F kernel, size_t bytes) {
    if (bytes > 48 * 1024)
        CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
}

void product(struct device *dev, float *h, const encode_args &a, const bf16 *x, int N, int first, int count) {
    const size_t at = static_cast<size_t>(first) * a.d;
    if (a.E_low)
        linear_forward_real(dev, h, x, a.E_low + at, N, a.d, count);
    else
        LAUNCH((sae_product_tile_kernel),
               dim3(static_cast<unsigned>((count + TILE - 1) / TILE), static_cast<unsigned>((N + TILE - 1) / TILE)), 256, 0, dev->stream, h,
               x, a.E + at, N, a.d, count);
}

void topk_filter(struct device *dev, const encode_args &a, const lists &l, const float *h, int row, int rows, int first, int count) {
    const int capacity = power_of_two(a.K + SPARE + FILTER_THREADS);
    const size_t bytes = static_cast<size_t>(capacity) * (sizeof(uint64_t) + sizeof(float)),
                 slot = static_cast<size_t>(row) * static_cast<size_t>(a.K);
    const auto kernel = count % 4 == 0 && vec_aligned(a.b_e, a.rank_scale) ? sae_topk_filter_kernel<true> : sae_topk_filter_kernel<false>;
    CHECK(a.K <= LARGEST_K, "K=%d", a.K);
    allow_shared(kernel, bytes);
    LAUNCH((kernel), static_cast<unsigned>(rows), FILTER_THREADS, bytes, dev->stream, a.indices + slot, a.values + slot, l, h, a.b_e,
           a.rank_scale, first, count, a.M, a.K, capacity);
}

void encode_chunks(struct device *dev, const encode_args &a) {
    float *h = static_cast<float *>(a.scratch);
    uintptr_t end;
    const lists l = lists_at(reinterpret_cast<uintptr_t>(a.scratch) + h_bytes(a.N, a.M), a.N, a.K, &end);
    for (int n = 0; n < a.N; n += ROWS) {
        const int rows = smaller(a.N - n, ROWS);
        const size_t slot = static_cast<size_t>(n) * a.K;
        for (int f = 0; f < a.M; f += COLUMNS) {
            const int count = smaller(a.M - f, COLUMNS);
            product(dev, h, a, a.x + static_cast<size_t>(n) * a.d, rows, f, count);
            if (a.threshold)
                LAUNCH((sae_jumprelu_filter_kernel), static_cast<unsigned>(rows), FILTER_THREADS, 0, dev->stream, a.indices + slot,
                       a.values + slot, a.counts + n, h, a.b_e, a.threshold, f, count, a.M, a.K);
            else
                topk_filter(dev, a, l, h, n, rows, f, count);
        }
    }
}

bool any_shape(const encode_args &) { return true; }

/* Dispatch takes the last row that fits. */
const struct {
    const char *name;
    bool (*fits)(const encode_args &a);
    void (*launch)(struct device *dev, const encode_args &a);
} variants[] = {
    {"chunks", any_shape, encode_chunks},
};

void encode(struct device *dev, const encode_args &a) {
    CHECK(a.N >= 0 && a.d > 0 && a.K > 0 && (a.threshold || a.K <= a.M), "N=%d d=%d M=%d K=%d", a.N, a.d, a.M, a.K);
    if (a.N == 0) return;
    int pick = 0;
    for (int i = 0; i < static_cast<int>(sizeof variants / sizeof *variants); i++)
        if (variants[i].fits(a) && (dev->variant < 0 || dev->variant == i)) pick = i;
    variants[pick].launch(dev, a);
}
} // namespace

size_t sae_encode_scratch(int N, int d, int M, int K) {
    (void)d;
    uintptr_t end;
    lists_at(h_bytes(N, M), N, K, &end);
    return end;
}

void sae_encode_topk(struct device *dev, int *indices, float *values, const bf16 *x, const float *E, const bf16 *E_low, const float *b_e,
                     const float *rank_scale, int N, int d, int M, int K, void *scratch) {
    encode(dev, {indices, values, nullptr, x, E, E_low, b_e, rank_scale, nullptr, N, d, M, K, scratch});
}

void sae_encode_jumprelu(struct device *dev, int *indices, float *values, int *counts, const bf16 *x, const float *E, const bf16 *E_low,
                         const float *b_e, const float *threshold, int N, int d, int M, int K, void *scratch) {
    encode(dev, {indices, values, counts, x, E, E_low, b_e, nullptr, threshold, N, d, M, K, scratch});
}
