/* norm.cu - see norm.h. RMSNorm: Zhang & Sennrich 2019; LayerNorm: Ba, Kiros & Hinton 2016. */
#include "kernels/vec.cuh"
#include "kernels/norm.h"

/* One block per row: up to 1,024 threads, W elements each and turn. The row is read twice, the second time from L1/L2.
 * Statistics in f32, a tree of shuffles then a fixed order over warps: bitwise repeatable. y may be x: every thread reads
 * its elements before it writes them, and all have read for the sum before any writes. */
template <int W> __global__ void __launch_bounds__(1024)
    rmsnorm_forward_block_kernel(__nv_bfloat16 *y, float *__restrict__ rstd, const __nv_bfloat16 *x, const __nv_bfloat16 *__restrict__ w,
                                 int C, float eps) {
    SHARED(float, part, [32]);
    const int first = static_cast<int>(threadIdx.x) * W, step = static_cast<int>(blockDim.x) * W;
    const __nv_bfloat16 *in = x + static_cast<size_t>(blockIdx.x) * C;
    __nv_bfloat16 *out = y + static_cast<size_t>(blockIdx.x) * C;
    float v[W], g[W], square = 0;
    for (int c = first; c < C; c += step) {
        vec_load<W>(v, in + c);
        for (int k = 0; k < W; k++) square += v[k] * v[k];
    }
    const float r = 1.0f / sqrtf(block_sum(square, part) / static_cast<float>(C) + eps);
    for (int c = first; c < C; c += step) {
        vec_load<W>(v, in + c);
        if (w) vec_load<W>(g, w + c);
        for (int k = 0; k < W; k++) {
            v[k] *= r;
            if (w) v[k] = __bfloat162float(__float2bfloat16(v[k])) * g[k];
        }
        vec_store<W>(out + c, v);
    }
    if (rstd && threadIdx.x == 0) rstd[blockIdx.x] = r;
}

/* As above with the mean first: the variance is a sum of squared differences, not a difference of sums. */
template <int W> __global__ void __launch_bounds__(1024)
    layernorm_forward_block_kernel(__nv_bfloat16 *y, float *__restrict__ mean, float *__restrict__ rstd, const __nv_bfloat16 *x,
                                   const __nv_bfloat16 *__restrict__ w, const __nv_bfloat16 *__restrict__ b, int C, float eps) {
    SHARED(float, part, [32]);
    const int first = static_cast<int>(threadIdx.x) * W, step = static_cast<int>(blockDim.x) * W;
    const __nv_bfloat16 *in = x + static_cast<size_t>(blockIdx.x) * C;
    __nv_bfloat16 *out = y + static_cast<size_t>(blockIdx.x) * C;
    float v[W], g[W], h[W], sum = 0, square = 0;
    for (int c = first; c < C; c += step) {
        vec_load<W>(v, in + c);
        for (int k = 0; k < W; k++) sum += v[k];
    }
    const float m = block_sum(sum, part) / static_cast<float>(C);
    for (int c = first; c < C; c += step) {
        vec_load<W>(v, in + c);
        for (int k = 0; k < W; k++) square += (v[k] - m) * (v[k] - m);
    }
    const float r = 1.0f / sqrtf(block_sum(square, part) / static_cast<float>(C) + eps);
    for (int c = first; c < C; c += step) {
        vec_load<W>(v, in + c);
        vec_load<W>(g, w + c);
        vec_load<W>(h, b + c);
        for (int k = 0; k < W; k++) v[k] = (v[k] - m) * r * g[k] + h[k];
        vec_store<W>(out + c, v);
    }
    if (threadIdx.x == 0) {
        if (mean) mean[blockIdx.x] = m;
        if (rstd) rstd[blockIdx.x] = r;
    }
}

void rmsnorm_forward(struct device *dev, bf16 *y, float *rstd, const bf16 *x, const bf16 *w, int N, int C, float eps) {
    OP_RANGE();
    if (N <= 0) return;
    if (C % 8 == 0 && vec_aligned(y, x, w))
        LAUNCH((rmsnorm_forward_block_kernel<8>), N, row_threads(C / 8, 1024), 0, dev->stream, y, rstd, x, w, C, eps);
    else
        LAUNCH((rmsnorm_forward_block_kernel<1>), N, row_threads(C, 1024), 0, dev->stream, y, rstd, x, w, C, eps);
}

void layernorm_forward(struct device *dev, bf16 *y, float *mean, float *rstd, const bf16 *x, const bf16 *w, const bf16 *b, int N, int C,
                       float eps) {
    OP_RANGE();
    if (N <= 0) return;
    if (C % 8 == 0 && vec_aligned(y, x, w, b))
        LAUNCH((layernorm_forward_block_kernel<8>), N, row_threads(C / 8, 1024), 0, dev->stream, y, mean, rstd, x, w, b, C, eps);
    else
        LAUNCH((layernorm_forward_block_kernel<1>), N, row_threads(C, 1024), 0, dev->stream, y, mean, rstd, x, w, b, C, eps);
}
