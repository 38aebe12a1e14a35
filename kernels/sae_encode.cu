/* sae_encode.cu - see sae_ops.h. The plain variant: pre-activations of at most ROWS x COLUMNS at a time by a matrix
 * product, then a kernel that keeps each row's K best so far. f32 all the way, so the choice is exact on the product. */
#include "kernels/vec.cuh"
#include "kernels/gemm.h"
#include "kernels/sae_ops.h"

namespace {
constexpr int ROWS = 4096, COLUMNS = 4096; /* h: 64 MiB, so that most of it is still in L2 when the filter reads it */
constexpr int FILTER_THREADS = 256, LARGEST_K = 8192, TILE = 64, DEPTH = 16;

/* What must survive from one chunk of features to the next, per row: the K best keys, descending, with their h. */
struct lists {
    uint64_t *key; /* (rows, K): order of the rank above, complement of the feature below: larger is better, no two equal */
    float *h;
};

__device__ __forceinline__ unsigned ordered(float rank) {
    const unsigned bits = __float_as_uint(rank + 0.0f); /* -0 equals 0 */
    return rank != rank ? 0xffffffffu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ uint64_t make_key(float rank, int feature) {
    return static_cast<uint64_t>(ordered(rank)) << 32 | static_cast<unsigned>(~feature);
}
__device__ __forceinline__ int key_feature(uint64_t key) { return static_cast<int>(~static_cast<unsigned>(key)); }

/* Bitonic sort of n (a power of two) pairs in shared memory, largest key first (Batcher 1968). */
__device__ void sort_descending(uint64_t *key, float *h, int n) {
    for (int size = 2; size <= n; size <<= 1)
        for (int step = size >> 1; step > 0; step >>= 1) {
            for (int i = static_cast<int>(threadIdx.x); i < n / 2; i += FILTER_THREADS) {
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

__device__ void clear_from(uint64_t *key, float *h, int from, int to) {
    for (int i = from + static_cast<int>(threadIdx.x); i < to; i += FILTER_THREADS) {
        key[i] = 0; /* below every real key */
        h[i] = 0;
    }
    __syncthreads();
}

/* Grid: rows. Shared: `capacity` (a power of two >= K + FILTER_THREADS) pairs. Each turn 256 pre-activations are compared
 * with the K-th best so far; those above are appended, in any order, as keys are unique. A full list is sorted and cut to
 * K. What a cut drops is below K others: exact. */
__global__ void __launch_bounds__(FILTER_THREADS)
    sae_topk_filter_kernel(lists l, const float *__restrict__ h, const float *__restrict__ b_e, const float *__restrict__ rank_scale,
                           int first, int count, int K, int capacity) {
    DYN_SMEM(uint64_t, key);
    SHARED(int, used, );
    float *value = reinterpret_cast<float *>(key + capacity);
    const size_t row = blockIdx.x;
    const int kept = first < K ? first : K; /* so many there are after the features before this chunk */
    for (int i = static_cast<int>(threadIdx.x); i < kept; i += FILTER_THREADS) {
        key[i] = l.key[row * K + i];
        value[i] = l.h[row * K + i];
    }
    if (threadIdx.x == 0) used = kept;
    __syncthreads();
    uint64_t bound = kept == K ? key[K - 1] : 0;
    int n = kept;
    for (int base = 0; base < count; base += FILTER_THREADS) {
        if (n > capacity - FILTER_THREADS) {
            clear_from(key, value, n, capacity);
            sort_descending(key, value, capacity);
            bound = key[K - 1];
            if (threadIdx.x == 0) used = K;
            __syncthreads();
        }
        const int c = base + static_cast<int>(threadIdx.x);
        if (c < count) {
            const float pre = h[row * count + c] + b_e[first + c];
            const uint64_t mine = make_key(rank_scale ? pre * rank_scale[first + c] : pre, first + c);
            if (mine > bound) {
                const int at = atomicAdd(&used, 1);
                key[at] = mine;
                value[at] = pre;
            }
        }
        __syncthreads();
        n = used;
        __syncthreads(); /* nobody appends before all have read */
    }
    clear_from(key, value, n, capacity);
    sort_descending(key, value, capacity);
    for (int i = static_cast<int>(threadIdx.x); i < K && i < n; i += FILTER_THREADS) {
        l.key[row * K + i] = key[i];
        l.h[row * K + i] = value[i];
    }
}

/* Grid: rows. The K best, ascending in the feature: sorted by the complement of the feature, descending. */
__global__ void __launch_bounds__(FILTER_THREADS)
    sae_topk_finish_kernel(int *__restrict__ indices, float *__restrict__ values, lists l, int K, int capacity) {
    DYN_SMEM(uint64_t, key);
    float *value = reinterpret_cast<float *>(key + capacity);
    const size_t row = blockIdx.x;
    for (int i = static_cast<int>(threadIdx.x); i < K; i += FILTER_THREADS) {
        key[i] = l.key[row * K + i] & 0xffffffffu;
        value[i] = l.h[row * K + i];
    }
    clear_from(key, value, K, capacity);
    sort_descending(key, value, capacity);
    for (int i = static_cast<int>(threadIdx.x); i < K; i += FILTER_THREADS) {
        const float h = value[i];
        indices[row * K + i] = key_feature(key[i]);
        values[row * K + i] = h > 0 || h != h ? h : 0.0f;
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
size_t key_bytes(int N, int K) { return padded(static_cast<size_t>(smaller(N, ROWS)) * static_cast<size_t>(K) * sizeof(uint64_t)); }

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

void encode_chunks(struct device *dev, const encode_args &a) {
    float *h = static_cast<float *>(a.scratch);
    char *after = static_cast<char *>(a.scratch) + h_bytes(a.N, a.M);
    const lists l = {reinterpret_cast<uint64_t *>(after), reinterpret_cast<float *>(after + key_bytes(a.N, a.K))};
    const int capacity = power_of_two(a.K + 2 * FILTER_THREADS), finish = power_of_two(a.K);
    const size_t pair = sizeof(uint64_t) + sizeof(float);
    if (!a.threshold) {
        CHECK(a.K <= LARGEST_K, "K=%d", a.K);
        allow_shared(sae_topk_filter_kernel, static_cast<size_t>(capacity) * pair);
        allow_shared(sae_topk_finish_kernel, static_cast<size_t>(finish) * pair);
    }
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
                LAUNCH((sae_topk_filter_kernel), static_cast<unsigned>(rows), FILTER_THREADS, static_cast<size_t>(capacity) * pair,
                       dev->stream, l, h, a.b_e, a.rank_scale, f, count, a.K, capacity);
        }
        if (!a.threshold)
            LAUNCH((sae_topk_finish_kernel), static_cast<unsigned>(rows), FILTER_THREADS, static_cast<size_t>(finish) * pair, dev->stream,
                   a.indices + slot, a.values + slot, l, a.K, finish);
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
    return h_bytes(N, M) + key_bytes(N, K) + padded(static_cast<size_t>(smaller(N, ROWS)) * static_cast<size_t>(K) * sizeof(float));
}

void sae_encode_topk(struct device *dev, int *indices, float *values, const bf16 *x, const float *E, const bf16 *E_low, const float *b_e,
                     const float *rank_scale, int N, int d, int M, int K, void *scratch) {
    encode(dev, {indices, values, nullptr, x, E, E_low, b_e, rank_scale, nullptr, N, d, M, K, scratch});
}

void sae_encode_jumprelu(struct device *dev, int *indices, float *values, int *counts, const bf16 *x, const float *E, const bf16 *E_low,
                         const float *b_e, const float *threshold, int N, int d, int M, int K, void *scratch) {
    encode(dev, {indices, values, counts, x, E, E_low, b_e, nullptr, threshold, N, d, M, K, scratch});
}
