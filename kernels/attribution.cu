/* attribution.cu - see attribution.h. */
#include "kernels/vec.cuh"
#include "kernels/attribution.h"

/* One warp per (row, head), eight warps a block; elements one by one, so any D and address will do. */
__global__ void __launch_bounds__(256)
    head_scores_kernel(float *__restrict__ score, const __nv_bfloat16 *__restrict__ a, const __nv_bfloat16 *__restrict__ b,
                       const __nv_bfloat16 *__restrict__ g, size_t rows, int D, float factor) {
    const size_t row = static_cast<size_t>(blockIdx.x) * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    float sum = 0;
    for (int d = static_cast<int>(threadIdx.x) % 32; d < D; d += 32) {
        const size_t at = row * D + d;
        sum += (__bfloat162float(a[at]) - __bfloat162float(b[at])) * __bfloat162float(g[at]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) score[row] += factor * sum;
}

/* One block per row. */
__global__ void __launch_bounds__(256)
    head_copy_kernel(__nv_bfloat16 *__restrict__ z, const __nv_bfloat16 *__restrict__ from, int h, int H, int D) {
    const size_t at = (static_cast<size_t>(blockIdx.x) * H + h) * D;
    for (int d = static_cast<int>(threadIdx.x); d < D; d += static_cast<int>(blockDim.x)) z[at + d] = from[at + d];
}

/* One block per row. */
template <int W> __global__ void __launch_bounds__(256)
    row_dots_kernel(float *__restrict__ y, const __nv_bfloat16 *__restrict__ x, const float *__restrict__ w, int C) {
    SHARED(float, part, [32]);
    const __nv_bfloat16 *row = x + static_cast<size_t>(blockIdx.x) * C;
    float u[W], v[W], sum = 0;
    for (int c = static_cast<int>(threadIdx.x) * W; c < C; c += static_cast<int>(blockDim.x) * W) {
        vec_load<W>(u, row + c);
        vec_load<W>(v, w + c);
        for (int k = 0; k < W; k++) sum += u[k] * v[k];
    }
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

void head_scores(struct device *dev, float *score, const bf16 *a, const bf16 *b, const bf16 *g, int N, int H, int D, float factor) {
    OP_RANGE();
    const size_t rows = static_cast<size_t>(N) * H;
    if (N <= 0) return;
    LAUNCH(head_scores_kernel, static_cast<unsigned>((rows + 7) / 8), 256, 0, dev->stream, score, a, b, g, rows, D, factor);
}

void head_copy(struct device *dev, bf16 *z, const bf16 *from, int h, int N, int H, int D) {
    OP_RANGE();
    if (N <= 0) return;
    LAUNCH(head_copy_kernel, N, row_threads(D, 256), 0, dev->stream, z, from, h, H, D);
}

void row_dots(struct device *dev, float *y, const bf16 *x, const float *w, int N, int C) {
    OP_RANGE();
    if (N <= 0) return;
    if (C % 8 == 0 && vec_aligned(x, w))
        LAUNCH((row_dots_kernel<8>), N, row_threads(C / 8, 256), 0, dev->stream, y, x, w, C);
    else
        LAUNCH((row_dots_kernel<1>), N, row_threads(C, 256), 0, dev->stream, y, x, w, C);
}
