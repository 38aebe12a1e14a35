/* sae_decode.cu - see sae_ops.h. Everything that reads decoder rows by index: a training step by column slices, the rest with
 * one block per row of the batch, whose threads own columns. Sums over rows in a second kernel. All sums have a fixed order:
 * bitwise repeatable, no atomics. */
#include "kernels/columns.cuh"
#include "kernels/sae_ops.h"

namespace {
constexpr int DECODE_THREADS = 256;
constexpr int SLICE = 128, SLICE_WARPS = 4;                   /* columns of a slice, warps of its kernel */
constexpr int slice_blocks(int R) { return R <= 13 ? 5 : 4; } /* at once on a multiprocessor: as registers allow */

/* x_hat of W columns of a row, in the order of the slots. */
template <int W> __device__ __forceinline__ void decode_columns(float (&sum)[W], const int *indices, const float *values, const float *D,
                                                                const float *b_d, int c, int d, int K) {
    float w[W];
    vec_load<W>(sum, b_d + c);
    for (int k = 0; k < K; k++) {
        const int f = indices[k];
        if (f < 0) continue;
        const float v = values[k];
        vec_load<W>(w, D + static_cast<size_t>(f) * d + c);
        for (int i = 0; i < W; i++) sum[i] += v * w[i];
    }
}

template <int W> __global__ void __launch_bounds__(DECODE_THREADS)
    sae_decode_block_kernel(float *__restrict__ x_hat, const int *__restrict__ indices, const float *__restrict__ values,
                            const float *__restrict__ D, const float *__restrict__ b_d, int d, int K) {
    const size_t n = blockIdx.x;
    float sum[W];
    for (int c = static_cast<int>(threadIdx.x) * W; c < d; c += DECODE_THREADS * W) {
        decode_columns<W>(sum, indices + n * K, values + n * K, D, b_d, c, d, K);
        vec_store<W>(x_hat + n * d + c, sum);
    }
}

/* Dynamic shared memory: d floats, the row of g, so that the second pass over the decoder rows (from L2) reads nothing else
 * from far. g NULL: only the row's error is wanted. */
template <int W> __global__ void __launch_bounds__(DECODE_THREADS)
    sae_decode_backward_block_kernel(float *__restrict__ g, float *__restrict__ dvalues, float *__restrict__ row_error,
                                     const __nv_bfloat16 *__restrict__ x, const int *__restrict__ indices, const float *__restrict__ values,
                                     const float *__restrict__ D, const float *__restrict__ b_d, const float *__restrict__ variance_sum,
                                     int d, int K) {
    DYN_SMEM(float, row);
    SHARED(float, part, [32]);
    const size_t n = blockIdx.x;
    const float scale = g ? 2.0f / (*variance_sum + 1e-8f) : 0.0f;
    float sum[W], in[W], error = 0;
    for (int c = static_cast<int>(threadIdx.x) * W; c < d; c += DECODE_THREADS * W) {
        decode_columns<W>(sum, indices + n * K, values + n * K, D, b_d, c, d, K);
        vec_load<W>(in, x + n * d + c);
        for (int i = 0; i < W; i++) {
            const float r = sum[i] - in[i];
            error += r * r;
            sum[i] = scale * r;
        }
        if (!g) continue;
        vec_store<W>(row + c, sum);
        vec_store<W>(g + n * d + c, sum);
    }
    error = block_sum(error, part); /* its barriers also publish row */
    if (threadIdx.x == 0) row_error[n] = error;
    if (!g) return;
    for (int k = static_cast<int>(threadIdx.x) / 32; k < K; k += DECODE_THREADS / 32) {
        const int f = indices[n * K + k];
        const bool active = f >= 0 && values[n * K + k] > 0;
        float dot = 0, w[W], r[W];
        for (int c = static_cast<int>(threadIdx.x) % 32 * W; active && c < d; c += 32 * W) {
            vec_load<W>(w, D + static_cast<size_t>(f) * d + c);
            vec_load<W>(r, row + c);
            for (int i = 0; i < W; i++) dot += r[i] * w[i];
        }
        dot = warp_sum(dot);
        if (threadIdx.x % 32 == 0) dvalues[n * K + k] = dot;
    }
}

/* Sums of each of v over the lanes: lane l gets that of v[l / (32 / P)]. Halves are swapped, so that P sums take little more
 * than P shuffles. */
template <int P> __device__ __forceinline__ float lane_sums(float (&v)[P]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int o = 16;
#pragma unroll
    for (int half = P / 2; half > 0; half /= 2, o /= 2)
#pragma unroll
        for (int i = 0; i < half; i++) {
            const bool upper = lane & o;
            const float sent = upper ? v[i] : v[i + half];
            v[i] = (upper ? v[i + half] : v[i]) + __shfl_xor_sync(ALL_LANES, sent, o);
        }
    for (; o > 0; o /= 2) v[0] += __shfl_xor_sync(ALL_LANES, v[0], o);
    return v[0];
}

/* Decode, loss and gradient of the code, slice by slice of the columns: a slice of the decoder stays in L2, where all rows of
 * the batch gather from it. A block takes every gridDim-th row; a warp takes R neighbouring slots and holds what it gathered
 * in registers: read once, used for x_hat and, when g is known, for dvalues. Sums over slices grow in memory. More than
 * SLICE_WARPS * R slots take several tiles, of which all but the last are read twice. */
template <int R, bool ONE_TILE> __global__ void __launch_bounds__(32 * SLICE_WARPS, slice_blocks(R))
    sae_decode_backward_slice_kernel(float *__restrict__ g, float *dvalues, float *row_error, const __nv_bfloat16 *__restrict__ x,
                                     const int *__restrict__ indices, const float *__restrict__ values, const float *__restrict__ D,
                                     const float *__restrict__ b_d, const float *__restrict__ variance_sum, int N, int d, int K) {
    constexpr int P = R <= 8 ? 8 : 16, TILE = SLICE_WARPS * R;
    SHARED(float4, part, [2][SLICE_WARPS][32]);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, start = static_cast<int>(blockIdx.x);
    const float scale = 2.0f / (*variance_sum + 1e-8f);
    struct {           /* lane r < R: of the warp's r-th slot */
        unsigned from; /* where its decoder row begins, in float4: enough for 64 GiB */
        float value;
        bool used; /* else from is that of a slot of the warp that is used, if there is one, and value 0 */
    } slot = {0, 0, false}, next = slot;
    const auto fetch = [&](int n, int base) {
        const int k = base + warp * R + lane;
        const bool mine = lane < R && k < K;
        const size_t at = static_cast<size_t>(n) * K + k;
        const int f = mine ? indices[at] : -1;
        next = {static_cast<unsigned>(f) * static_cast<unsigned>(d / 4), f >= 0 ? values[at] : 0.0f, f >= 0};
    };
    int turn = 0;
    fetch(start, 0);
    for (int first = 0; first < d; first += SLICE) {
        const int c = first + 4 * lane;
        const bool inside = c < d;
        const unsigned column = inside ? static_cast<unsigned>(c) / 4 : 0; /* in float4 */
        for (int n = start; n < N; n += static_cast<int>(gridDim.x), turn ^= 1) {
            const size_t at = static_cast<size_t>(n) * d + c, slots = static_cast<size_t>(n) * K;
            const uint2 low = inside ? __ldcs(reinterpret_cast<const uint2 *>(x + at)) : make_uint2(0, 0);
            float4 row[R], sum = make_float4(0, 0, 0, 0);
            const auto gather = [&]() {
                slot = next;
                const unsigned mask = __ballot_sync(ALL_LANES, slot.used),
                               any = __shfl_sync(ALL_LANES, slot.from, mask ? __ffs(static_cast<int>(mask)) - 1 : 0);
                if (!slot.used) slot.from = mask ? any : 0;
#pragma unroll
                for (int r = 0; r < R; r++) row[r] = reinterpret_cast<const float4 *>(D)[__shfl_sync(ALL_LANES, slot.from, r) + column];
                return mask != 0;
            };
            for (int base = 0; base < (ONE_TILE ? 1 : K); base += TILE) {
                if (base) fetch(n, base);
                float4 here = make_float4(0, 0, 0, 0);
                const bool some = gather();
#pragma unroll
                for (int r = 0; r < R; r++) {
                    const float v = __shfl_sync(ALL_LANES, slot.value, r);
                    here.x += v * row[r].x, here.y += v * row[r].y, here.z += v * row[r].z, here.w += v * row[r].w;
                }
                if (some) sum.x += here.x, sum.y += here.y, sum.z += here.z, sum.w += here.w;
            }
            const int later = n + static_cast<int>(gridDim.x);
            if (ONE_TILE) fetch(later < N ? later : start, 0); /* of the next turn, long before it is needed */
            part[turn][warp][lane] = sum;
            __syncthreads(); /* one a turn: the other half of part is free by then */
            sum = inside ? *reinterpret_cast<const float4 *>(b_d + c) : make_float4(0, 0, 0, 0);
#pragma unroll
            for (int w = 0; w < SLICE_WARPS; w++) {
                const float4 p = part[turn][w][lane];
                sum.x += p.x, sum.y += p.y, sum.z += p.z, sum.w += p.w;
            }
            sum.x -= __uint_as_float(low.x << 16), sum.y -= __uint_as_float(low.x & 0xffff0000u);
            sum.z -= __uint_as_float(low.y << 16), sum.w -= __uint_as_float(low.y & 0xffff0000u);
            if (!inside) sum = make_float4(0, 0, 0, 0);
            if (warp == 0) {
                const float error = warp_sum(sum.x * sum.x + sum.y * sum.y + sum.z * sum.z + sum.w * sum.w);
                if (lane == 0) row_error[n] = (first ? row_error[n] : 0.0f) + error;
            }
            sum.x *= scale, sum.y *= scale, sum.z *= scale, sum.w *= scale;
            if (warp == SLICE_WARPS - 1 && inside) __stcs(reinterpret_cast<float4 *>(g + at), sum);
            for (int base = ONE_TILE ? 0 : (K - 1) / TILE * TILE; base >= 0; base -= TILE) {
                if (!ONE_TILE && base + TILE < K) { /* the last tile is still here */
                    fetch(n, base);
                    gather();
                }
                float dot[P] = {};
#pragma unroll
                for (int r = 0; r < R; r++) dot[r] = sum.x * row[r].x + sum.y * row[r].y + sum.z * row[r].z + sum.w * row[r].w;
                const int r = lane / (32 / P), k = base + warp * R + r;
                const float mine = lane_sums<P>(dot), v = __shfl_sync(ALL_LANES, slot.value, r);
                if (lane % (32 / P) == 0 && r < R && k < K) dvalues[slots + k] = v > 0 ? (first ? dvalues[slots + k] : 0.0f) + mine : 0.0f;
            }
            if (!ONE_TILE) fetch(later < N ? later : start, 0);
        }
    }
}

/* One block: thread t adds elements t, t + 1024, ..., then the block its threads. */
__global__ void __launch_bounds__(1024) sum_block_kernel(float *__restrict__ sum, const float *__restrict__ in, int n) {
    SHARED(float, part, [32]);
    float mine = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += 1024) mine += in[i];
    mine = block_sum(mine, part);
    if (threadIdx.x == 0) *sum = mine;
}

/* Rows are read twice, so that the second sum is of squared differences. */
template <int W> __global__ void __launch_bounds__(COLUMN_THREADS)
    sae_moments_column_kernel(float *__restrict__ mean, float *__restrict__ channel_variance, const __nv_bfloat16 *__restrict__ x, int N,
                              int d) {
    SHARED(float, total, [COLUMN_THREADS / 32][COLUMN_BLOCK]);
    const int tid = static_cast<int>(threadIdx.x), c = static_cast<int>(blockIdx.x) * COLUMN_BLOCK + tid;
    float shift[W] = {};
    const float m = column_sum<W, false>(x, shift, N, d, total) / static_cast<float>(N);
    for (int i = 0; i < W; i++) shift[i] = __shfl_sync(ALL_LANES, m, tid % (COLUMN_BLOCK / W) * W + i);
    const float variance = column_sum<W, true>(x, shift, N, d, total);
    if (tid < COLUMN_BLOCK && c < d) {
        mean[c] = m;
        channel_variance[c] = variance;
    }
}

void backward(struct device *dev, float *g, float *dvalues, float *row_error, const bf16 *x, const int *indices, const float *values,
              const float *D, const float *b_d, const float *variance_sum, int N, int d, int K) {
    const bool wide = d % 8 == 0 && vec_aligned(g, x, D, b_d);
    const auto kernel = wide ? sae_decode_backward_block_kernel<8> : sae_decode_backward_block_kernel<1>;
    const size_t bytes = g ? static_cast<size_t>(d) * sizeof(float) : 0;
    allow_shared(kernel, bytes);
    LAUNCH((kernel), N, DECODE_THREADS, bytes, dev->stream, g, dvalues, row_error, x, indices, values, D, b_d, variance_sum, d, K);
}

void backward_slices(struct device *dev, float *g, float *dvalues, float *row_error, const bf16 *x, const int *indices, const float *values,
                     const float *D, const float *b_d, const float *variance_sum, int N, int d, int K) {
    const auto kernel = K <= 8 * SLICE_WARPS    ? sae_decode_backward_slice_kernel<8, true>
                        : K <= 13 * SLICE_WARPS ? sae_decode_backward_slice_kernel<13, true> /* K = 50 is common */
                        : K <= 16 * SLICE_WARPS ? sae_decode_backward_slice_kernel<16, true>
                                                : sae_decode_backward_slice_kernel<16, false>;
    const int room = slice_blocks(K <= 13 * SLICE_WARPS ? 13 : 16) * dev->multiprocessors,
              turns = (N + room - 1) / room; /* rows of a block, the same for nearly all */
    LAUNCH((kernel), static_cast<unsigned>((N + turns - 1) / turns), 32 * SLICE_WARPS, 0, dev->stream, g, dvalues, row_error, x, indices,
           values, D, b_d, variance_sum, N, d, K);
}
} // namespace

void sae_decode(struct device *dev, float *x_hat, const int *indices, const float *values, const float *D, const float *b_d, int N, int d,
                int K) {
    if (N <= 0) return;
    if (d % 8 == 0 && vec_aligned(x_hat, D, b_d))
        LAUNCH((sae_decode_block_kernel<8>), N, DECODE_THREADS, 0, dev->stream, x_hat, indices, values, D, b_d, d, K);
    else
        LAUNCH((sae_decode_block_kernel<1>), N, DECODE_THREADS, 0, dev->stream, x_hat, indices, values, D, b_d, d, K);
}

void sae_decode_backward(struct device *dev, float *g, float *dvalues, float *error_sum, float *row_error, const bf16 *x,
                         const int *indices, const float *values, const float *D, const float *b_d, const float *variance_sum, int N, int d,
                         int K) {
    const auto pass = d % 4 == 0 && vec_aligned(g, x, D, b_d) ? backward_slices : backward;
    if (N > 0) pass(dev, g, dvalues, row_error, x, indices, values, D, b_d, variance_sum, N, d, K);
    LAUNCH((sum_block_kernel), 1, 1024, 0, dev->stream, error_sum, row_error, N);
}

void sae_row_error(struct device *dev, float *row_error, const bf16 *x, const int *indices, const float *values, const float *D,
                   const float *b_d, int N, int d, int K) {
    if (N > 0) backward(dev, nullptr, nullptr, row_error, x, indices, values, D, b_d, nullptr, N, d, K);
}

void sae_moments(struct device *dev, float *mean, float *channel_variance, float *variance_sum, const bf16 *x, int N, int d) {
    const auto kernel = d % 8 == 0 && vec_aligned(x) ? sae_moments_column_kernel<8> : sae_moments_column_kernel<1>;
    LAUNCH((kernel), column_blocks(d), COLUMN_THREADS, 0, dev->stream, mean, channel_variance, x, N, d);
    LAUNCH((sum_block_kernel), 1, 1024, 0, dev->stream, variance_sum, channel_variance, d);
}
