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

/* One block per row, as forward: a sum over the row, then a second walk that adds to dx. */
template <int W> __global__ void __launch_bounds__(1024)
    rmsnorm_backward_block_kernel(__nv_bfloat16 *__restrict__ dx, const __nv_bfloat16 *__restrict__ dy, const __nv_bfloat16 *__restrict__ x,
                                  const float *__restrict__ rstd, const __nv_bfloat16 *__restrict__ w, int C) {
    SHARED(float, part, [32]);
    const int first = static_cast<int>(threadIdx.x) * W, step = static_cast<int>(blockDim.x) * W;
    const size_t row = static_cast<size_t>(blockIdx.x) * C;
    float v[W], g[W], u[W], dot = 0;
    for (int c = first; c < C; c += step) {
        vec_load<W>(v, x + row + c);
        vec_load<W>(g, dy + row + c);
        vec_load<W>(u, w + c);
        for (int k = 0; k < W; k++) dot += g[k] * u[k] * v[k];
    }
    const float r = rstd[blockIdx.x], share = block_sum(dot, part) * r * r / static_cast<float>(C);
    for (int c = first; c < C; c += step) {
        vec_load<W>(v, x + row + c);
        vec_load<W>(g, dy + row + c);
        vec_load<W>(u, w + c);
        for (int k = 0; k < W; k++) g[k] = r * (g[k] * u[k] - v[k] * share);
        vec_load<W>(u, dx + row + c);
        for (int k = 0; k < W; k++) u[k] += g[k];
        vec_store<W>(dx + row + c, u);
    }
}

/* A block adds up 32 columns: warp w takes rows w, w + 8, ..; then the eight sums in order. */
__global__ void __launch_bounds__(256)
    rmsnorm_backward_weight_kernel(float *__restrict__ dw, const __nv_bfloat16 *__restrict__ dy, const __nv_bfloat16 *__restrict__ x,
                                   const float *__restrict__ rstd, int N, int C) {
    SHARED(float, part, [8][32]);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int c = static_cast<int>(blockIdx.x) * 32 + lane;
    float sum = 0;
    for (int n = warp; n < N && c < C; n += 8) {
        const size_t at = static_cast<size_t>(n) * C + c;
        sum += __bfloat162float(dy[at]) * __bfloat162float(x[at]) * rstd[n];
    }
    part[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || c >= C) return;
    for (int i = 1; i < 8; i++) sum += part[i][lane];
    dw[c] += sum;
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

void rmsnorm_backward(struct device *dev, bf16 *dx, const bf16 *dy, const bf16 *x, const float *rstd, const bf16 *w, int N, int C) {
    OP_RANGE();
    if (N <= 0) return;
    if (C % 8 == 0 && vec_aligned(dx, dy, x, w))
        LAUNCH((rmsnorm_backward_block_kernel<8>), N, row_threads(C / 8, 1024), 0, dev->stream, dx, dy, x, rstd, w, C);
    else
        LAUNCH((rmsnorm_backward_block_kernel<1>), N, row_threads(C, 1024), 0, dev->stream, dx, dy, x, rstd, w, C);
}

void rmsnorm_backward_weight(struct device *dev, float *dw, const bf16 *dy, const bf16 *x, const float *rstd, int N, int C) {
    OP_RANGE();
    if (N <= 0) return;
    LAUNCH(rmsnorm_backward_weight_kernel, (C + 31) / 32, 256, 0, dev->stream, dw, dy, x, rstd, N, C);
}
