/* sae_encode.cu - see sae_ops.h. Pre-activations of at most ROWS x COLUMNS at a time by a matrix product, then a kernel that
 * keeps each row's candidates. f32 all the way, so the choice is exact on the product. */
#include "kernels/vec.cuh"
#include "kernels/gemm.h"
#include "kernels/sae_ops.h"

namespace {
constexpr int ROWS = 8192, COLUMNS = 4096; /* of a chunk: large enough for the product's best rate */
constexpr int BATCH = 16;                  /* columns that a lane of the top-k filter looks at before it appends */
constexpr int SPARE = 256;                 /* candidates that a row's list holds beside its K best */
constexpr int FILTER_THREADS = 256, LARGEST_K = 8192, TILE = 64, DEPTH = 16;
constexpr size_t LISTS_BYTES = 40 * 1024; /* shared memory for the lists of a block's warps, if one list is not more */

/* What must survive from one chunk of features to the next, per row: `used` candidates, in no order, with their h; the K best
 * of the features so far are among them. Only keys above `bound` are still of interest. */
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

/* All below: by one warp, for one row; shared arrays belong to the warp. */

/* The chunk of a row: what ranks are made from. */
struct chunk {
    const float *h, *b_e, *rank_scale;
    int first, count; /* features */
    __device__ __forceinline__ float pre(int c) const { return h[c] + b_e[c]; }
    __device__ __forceinline__ float rank(int c) const { return pre(c) * (rank_scale ? rank_scale[c] : 1.0f); }
};

/* Column of a lane's j-th value of the batch at `base`: four neighbours at a time where the addresses allow. */
template <bool WIDE> __device__ __forceinline__ int column_of(int base, int j) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return base + (WIDE ? 4 * (lane + j / 4 * 32) + j % 4 : lane + j * 32);
}

/* The ranks of a batch; columns past the end give -infinity. */
template <bool WIDE> __device__ __forceinline__ void load_ranks(float (&rank)[BATCH], const chunk &r, int base) {
    if constexpr (WIDE) {
#pragma unroll
        for (int j = 0; j < BATCH; j += 4) {
            const int c = column_of<WIDE>(base, j);
            float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
            if (c < r.count) v = *reinterpret_cast<const float4 *>(r.h + c);
            rank[j] = v.x, rank[j + 1] = v.y, rank[j + 2] = v.z, rank[j + 3] = v.w;
        }
#pragma unroll
        for (int j = 0; j < BATCH; j += 4) {
            const int c = column_of<WIDE>(base, j);
            if (c >= r.count) continue;
            const float4 b = *reinterpret_cast<const float4 *>(r.b_e + c);
            rank[j] += b.x, rank[j + 1] += b.y, rank[j + 2] += b.z, rank[j + 3] += b.w;
            if (!r.rank_scale) continue;
            const float4 s = *reinterpret_cast<const float4 *>(r.rank_scale + c);
            rank[j] *= s.x, rank[j + 1] *= s.y, rank[j + 2] *= s.z, rank[j + 3] *= s.w;
        }
    } else {
#pragma unroll
        for (int j = 0; j < BATCH; j++) rank[j] = column_of<WIDE>(base, j) < r.count ? r.rank(column_of<WIDE>(base, j)) : -INFINITY;
    }
}

__device__ __forceinline__ float largest_of(const float (&rank)[BATCH]) {
    float most = rank[0];
#pragma unroll
    for (int j = 1; j < BATCH; j++) most = fmaxf(most, rank[j]); /* NaN only when all are */
    return most;
}

/* The largest t that K of the n keys reach, or any t that exactly K reach: bisection. K < n. */
template <class T> __device__ __forceinline__ T bisect(const T *key, int n, int K) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    T t = 0;
    for (T bit = static_cast<T>(1) << (8 * sizeof(T) - 1); bit; bit >>= 1) {
        int reached = 0;
        for (int i = 0; i < n; i += 32) reached += __popc(__ballot_sync(ALL_LANES, i + lane < n && key[i + lane] >= (t | bit)));
        if (reached >= K) t |= bit;
        if (reached == K) break;
    }
    return t;
}

/* The order of a value that at least K values of the chunk reach, near the K-th largest: one value stands for the BATCH that
 * a lane loads at once. 0 when there are too few. part: COLUMNS / BATCH words. */
template <bool WIDE> __device__ __forceinline__ unsigned first_bound(const chunk &r, int K, unsigned *part) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int n = 0;
    for (int base = 0; base < r.count; base += 32 * BATCH, n += 32) {
        float rank[BATCH];
        load_ranks<WIDE>(rank, r, base);
        part[n + lane] = column_of<WIDE>(base, 0) < r.count ? ordered(largest_of(rank)) : 0;
    }
    __syncwarp();
    const unsigned order = K < n ? bisect(part, n, K) : 0;
    __syncwarp(); /* part may be used again */
    return order;
}

/* Keeps the K best of n > K pairs, in their order. Returns a key that exactly these reach. */
__device__ __forceinline__ uint64_t cut(uint64_t *key, float *h, int n, int K) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint64_t least = bisect(key, n, K);
    int kept = 0;
    for (int i = 0; i < n; i += 32) {
        const uint64_t mine = i + lane < n ? key[i + lane] : 0;
        const float value = i + lane < n ? h[i + lane] : 0.0f;
        const unsigned mask = __ballot_sync(ALL_LANES, mine >= least);
        __syncwarp();        /* all have read */
        if (mine >= least) { /* moves towards the front, past nothing that is still to be read */
            const int to = kept + __popc(mask & ((1u << lane) - 1));
            key[to] = mine;
            h[to] = value;
        }
        kept += __popc(mask);
        __syncwarp();
    }
    return least;
}

/* For a row whose candidates of this chunk do not fit: 32 columns a turn; a full list is cut. Returns how many it then holds. */
__device__ __forceinline__ int filter_in_turns(uint64_t *key, float *h, int n, const chunk &r, uint64_t bound, int K) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int base = 0; base < r.count; base += 32) {
        if (n > K + SPARE - 32) {
            bound = cut(key, h, n, K) - 1;
            n = K;
        }
        const int c = base + lane;
        const uint64_t mine = c < r.count ? make_key(r.rank(c), r.first + c) : 0;
        const unsigned mask = __ballot_sync(ALL_LANES, mine > bound);
        if (mine > bound) {
            const int to = n + __popc(mask & ((1u << lane) - 1));
            key[to] = mine;
            h[to] = r.pre(c);
        }
        n += __popc(mask);
        __syncwarp();
    }
    return n;
}

/* Bitonic sort of n pairs by feature, ascending (Batcher 1968); room up to the next power of two is used. */
__device__ __forceinline__ void sort_by_feature(uint64_t *key, float *h, int n) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int all = 32;
    while (all < n) all <<= 1;
    for (int i = lane; i < all; i += 32) {
        key[i] = i < n ? static_cast<uint64_t>(key_feature(key[i])) : ~static_cast<uint64_t>(0);
        if (i >= n) h[i] = 0;
    }
    __syncwarp();
    for (int size = 2; size <= all; size <<= 1)
        for (int step = size >> 1; step > 0; step >>= 1) {
            for (int i = lane; i < all / 2; i += 32) {
                const int low = 2 * i - (i & (step - 1)), high = low + step;
                const bool ascending = (low & size) == 0;
                const uint64_t a = key[low], b = key[high];
                if ((a > b) == ascending) {
                    const float t = h[low];
                    key[low] = b, key[high] = a;
                    h[low] = h[high], h[high] = t;
                }
            }
            __syncwarp();
        }
}

/* One warp per row; shared: `room` pairs a warp. Values that can still be among the K best are appended to the row's list,
 * which is cut to K when it has grown. What a cut drops is below K others, and the first chunk's bound is reached by K:
 * exact. The last chunk writes the K best, ascending in the feature. */
template <bool WIDE> __global__ void __launch_bounds__(FILTER_THREADS, WIDE ? 3 : 2)
    sae_topk_filter_kernel(int *__restrict__ indices, float *__restrict__ values, const lists l, const float *__restrict__ h,
                           const float *__restrict__ b_e, const float *__restrict__ rank_scale, int rows, int first, int count, int M,
                           int K, int room) {
    DYN_SMEM(uint64_t, keys);
    SHARED(int, used, [FILTER_THREADS / 32]);
    const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32,
              lane = static_cast<int>(threadIdx.x) % 32, full = K + SPARE, n_row = static_cast<int>(blockIdx.x) * warps + warp;
    if (n_row >= rows) return;
    uint64_t *key = keys + warp * room;
    float *value = reinterpret_cast<float *>(keys + warps * room) + warp * room;
    const size_t row = static_cast<size_t>(n_row), at = row * static_cast<size_t>(full);
    const chunk r = {h + row * count, b_e + first, rank_scale ? rank_scale + first : nullptr, first, count};
    const int before = first ? l.used[row] : 0;
    uint64_t bound = first ? l.bound[row] : 0;
    if (!first) {
        const unsigned order = first_bound<WIDE>(r, K, reinterpret_cast<unsigned *>(key));
        bound = order ? (static_cast<uint64_t>(order) << 32) - 1 : 0;
    }
    const float least = unordered(bound ? static_cast<unsigned>(bound >> 32) + 1 : 0); /* NaN: no bound */
    if (lane == 0) used[warp] = before;
    __syncwarp();
    for (int base = 0; base < count; base += 32 * BATCH) {
        float rank[BATCH];
        load_ranks<WIDE>(rank, r, base);
        bool any = false;
#pragma unroll
        for (int j = 0; j < BATCH; j++) any |= !(rank[j] < least); /* NaN too */
        if (!any) continue;
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            const int c = column_of<WIDE>(base, j);
            if (rank[j] < least || c >= count) continue;
            const int to = atomicAdd(&used[warp], 1);
            if (to >= full) continue;
            l.key[at + to] = make_key(rank[j], first + c);
            l.h[at + to] = r.pre(c);
        }
    }
    __syncwarp();
    int n = used[warp];
    const bool overflow = n > full, last = first + count == M;
    if (!overflow && !last && n <= K + SPARE / 2) {
        if (lane == 0) {
            l.used[row] = n;
            l.bound[row] = bound;
        }
        return;
    }
    for (int i = lane; i < (overflow ? before : n); i += 32) {
        key[i] = l.key[at + i];
        value[i] = l.h[at + i];
    }
    __syncwarp();
    if (overflow) n = filter_in_turns(key, value, before, r, bound, K);
    if (n > K) {
        bound = cut(key, value, n, K) - 1;
        n = K;
    }
    if (last) sort_by_feature(key, value, n);
    for (int i = lane; i < n; i += 32) {
        if (last) {
            indices[row * K + i] = static_cast<int>(key[i]);
            values[row * K + i] = value[i] > 0 || value[i] != value[i] ? value[i] : 0.0f;
        } else {
            l.key[at + i] = key[i];
            l.h[at + i] = value[i];
        }
    }
    if (!last && lane == 0) {
        l.used[row] = n;
        l.bound[row] = bound;
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

/* At least 32. */
int power_of_two(int least) {
    int n = 32;
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
    const int sorted = power_of_two(a.K), room = sorted > a.K + SPARE ? sorted : a.K + SPARE;
    const size_t list = static_cast<size_t>(room) * (sizeof(uint64_t) + sizeof(float)),
                 slot = static_cast<size_t>(row) * static_cast<size_t>(a.K);
    int warps = FILTER_THREADS / 32;
    while (warps > 1 && static_cast<size_t>(warps) * list > LISTS_BYTES) warps /= 2;
    const auto kernel = count % 4 == 0 && vec_aligned(a.b_e, a.rank_scale) ? sae_topk_filter_kernel<true> : sae_topk_filter_kernel<false>;
    CHECK(a.K <= LARGEST_K, "K=%d", a.K);
    allow_shared(kernel, static_cast<size_t>(warps) * list);
    LAUNCH((kernel), static_cast<unsigned>((rows + warps - 1) / warps), static_cast<unsigned>(32 * warps),
           static_cast<size_t>(warps) * list, dev->stream, a.indices + slot, a.values + slot, l, h, a.b_e, a.rank_scale, rows, first, count,
           a.M, a.K, room);
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
