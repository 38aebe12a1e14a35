/* sae_decode.cu - see sae_ops.h. Everything that reads decoder rows by index: one block per row of the batch, whose
 * threads own columns. Sums over rows in a second kernel, in a fixed order: bitwise repeatable, no atomics. */
#include "kernels/vec.cuh"
#include "kernels/sae_ops.h"

namespace {
constexpr int DECODE_THREADS = 256, COLUMNS = 32, LANES = 32;

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

/* One block: thread t adds elements t, t + 1024, ..., then the block its threads. */
__global__ void __launch_bounds__(1024) sum_block_kernel(float *__restrict__ sum, const float *__restrict__ in, int n) {
    SHARED(float, part, [32]);
    float mine = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += 1024) mine += in[i];
    mine = block_sum(mine, part);
    if (threadIdx.x == 0) *sum = mine;
}

/* A block takes 32 channels; warp l adds rows l, l + 32, ..., then lane by lane. Rows are read twice, so the second sum is
 * of squared differences. */
__global__ void __launch_bounds__(COLUMNS *LANES) sae_moments_column_kernel(float *__restrict__ mean, float *__restrict__ channel_variance,
                                                                            const __nv_bfloat16 *__restrict__ x, int N, int d) {
    SHARED(float, part, [LANES][COLUMNS + 1]);
    const int column = static_cast<int>(threadIdx.x) % COLUMNS, lane = static_cast<int>(threadIdx.x) / COLUMNS,
              c = static_cast<int>(blockIdx.x) * COLUMNS + column;
    float m = 0, total = 0;
    for (int pass = 0; pass < 2; pass++) {
        float sum = 0;
        for (int n = lane; n < N && c < d; n += LANES) {
            const float v = __bfloat162float(x[static_cast<size_t>(n) * d + c]) - m;
            sum += pass ? v * v : v;
        }
        part[lane][column] = sum;
        __syncthreads();
        total = 0;
        for (int l = 0; l < LANES; l++) total += part[l][column];
        __syncthreads();
        if (pass == 0) m = total / static_cast<float>(N);
    }
    if (lane == 0 && c < d) {
        mean[c] = m;
        channel_variance[c] = total;
    }
}

void backward(struct device *dev, float *g, float *dvalues, float *row_error, const bf16 *x, const int *indices, const float *values,
              const float *D, const float *b_d, const float *variance_sum, int N, int d, int K) {
    const bool wide = d % 8 == 0 && vec_aligned(g, x, D, b_d);
    const auto kernel = wide ? sae_decode_backward_block_kernel<8> : sae_decode_backward_block_kernel<1>;
    const size_t bytes = g ? static_cast<size_t>(d) * sizeof(float) : 0;
    if (bytes > 48 * 1024)
        CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
    LAUNCH((kernel), N, DECODE_THREADS, bytes, dev->stream, g, dvalues, row_error, x, indices, values, D, b_d, variance_sum, d, K);
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
    if (N > 0) backward(dev, g, dvalues, row_error, x, indices, values, D, b_d, variance_sum, N, d, K);
    LAUNCH((sum_block_kernel), 1, 1024, 0, dev->stream, error_sum, row_error, N);
}

void sae_row_error(struct device *dev, float *row_error, const bf16 *x, const int *indices, const float *values, const float *D,
                   const float *b_d, int N, int d, int K) {
    if (N > 0) backward(dev, nullptr, nullptr, row_error, x, indices, values, D, b_d, nullptr, N, d, K);
}

void sae_moments(struct device *dev, float *mean, float *channel_variance, float *variance_sum, const bf16 *x, int N, int d) {
    LAUNCH((sae_moments_column_kernel), static_cast<unsigned>((d + COLUMNS - 1) / COLUMNS), COLUMNS * LANES, 0, dev->stream, mean,
           channel_variance, x, N, d);
    LAUNCH((sum_block_kernel), 1, 1024, 0, dev->stream, variance_sum, channel_variance, d);
}
