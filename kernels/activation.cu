/* activation.cu - see activation.h. SwiGLU: Shazeer 2020; GELU: Hendrycks & Gimpel 2016. */
#include "kernels/vec.cuh"
#include "kernels/activation.h"

enum unary { QUICK_GELU, GELU };

template <int KIND> __device__ __forceinline__ float unary_value(float x) {
    if constexpr (KIND == QUICK_GELU)
        return x / (1.0f + __expf(-1.702f * x));
    else
        return x * erfcf(x * -0.70710678f) * 0.5f; /* 1 + erf without its cancellation at x < 0 */
}

/* The walk that all elementwise kernels share: the grid in strides over items of W, then the last n % W one by one. */
#define FOR_ITEMS(i, n, W)                                                                                                                 \
    for (size_t i = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * (W); i + (W) <= (n);                                    \
         i += static_cast<size_t>(gridDim.x) * blockDim.x * (W))
#define FOR_REST(i, n, W)                                                                                                                  \
    for (size_t i = (n) / (W) * (W) + static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < (n);                                 \
         i += static_cast<size_t>(gridDim.x) * blockDim.x)

template <int KIND, int W> __global__ void __launch_bounds__(256) unary_forward_kernel(__nv_bfloat16 *y, const __nv_bfloat16 *x, size_t n) {
    FOR_ITEMS(i, n, W) {
        float v[W];
        vec_load<W>(v, x + i);
        for (int k = 0; k < W; k++) v[k] = unary_value<KIND>(v[k]);
        vec_store<W>(y + i, v);
    }
    FOR_REST(i, n, W) y[i] = __float2bfloat16(unary_value<KIND>(__bfloat162float(x[i])));
}

template <int W> __global__ void __launch_bounds__(256)
    residual_add_kernel(__nv_bfloat16 *y, const __nv_bfloat16 *a, const __nv_bfloat16 *b, size_t n) {
    FOR_ITEMS(i, n, W) {
        float u[W], v[W];
        vec_load<W>(u, a + i);
        vec_load<W>(v, b + i);
        for (int k = 0; k < W; k++) u[k] += v[k];
        vec_store<W>(y + i, u);
    }
    FOR_REST(i, n, W) y[i] = __float2bfloat16(__bfloat162float(a[i]) + __bfloat162float(b[i]));
}

/* Storage conversion in either direction. */
template <class To, class From, int W> __global__ void __launch_bounds__(256)
    convert_kernel(To *__restrict__ y, const From *__restrict__ x, size_t n) {
    FOR_ITEMS(i, n, W) {
        float v[W];
        vec_load<W>(v, x + i);
        vec_store<W>(y + i, v);
    }
    FOR_REST(i, n, W) {
        float v[1];
        vec_load<1>(v, x + i);
        vec_store<1>(y + i, v);
    }
}

/* One block per row. The product is formed in f32 and rounded once. */
template <int W> __global__ void __launch_bounds__(256)
    swiglu_forward_kernel(__nv_bfloat16 *__restrict__ y, const __nv_bfloat16 *__restrict__ gate_up, int F) {
    const __nv_bfloat16 *gate = gate_up + static_cast<size_t>(blockIdx.x) * 2 * F, *up = gate + F;
    __nv_bfloat16 *out = y + static_cast<size_t>(blockIdx.x) * F;
    for (int f = static_cast<int>(threadIdx.x) * W; f < F; f += static_cast<int>(blockDim.x) * W) {
        float g[W], u[W];
        vec_load<W>(g, gate + f);
        vec_load<W>(u, up + f);
        for (int k = 0; k < W; k++) u[k] *= g[k] / (1.0f + __expf(-g[k]));
        vec_store<W>(out + f, u);
    }
}

/* One block per row, formed in f32 and rounded once. */
template <int W> __global__ void __launch_bounds__(256)
    swiglu_backward_kernel(__nv_bfloat16 *__restrict__ dgate_up, const __nv_bfloat16 *__restrict__ dy,
                           const __nv_bfloat16 *__restrict__ gate_up, int F) {
    const size_t row = static_cast<size_t>(blockIdx.x) * F;
    for (int f = static_cast<int>(threadIdx.x) * W; f < F; f += static_cast<int>(blockDim.x) * W) {
        float g[W], u[W], d[W];
        vec_load<W>(g, gate_up + 2 * row + f);
        vec_load<W>(u, gate_up + 2 * row + F + f);
        vec_load<W>(d, dy + row + f);
        for (int k = 0; k < W; k++) {
            const float s = 1.0f / (1.0f + __expf(-g[k])), up = u[k];
            u[k] = d[k] * g[k] * s;
            g[k] = d[k] * up * s * (1.0f + g[k] * (1.0f - s));
        }
        vec_store<W>(dgate_up + 2 * row + f, g);
        vec_store<W>(dgate_up + 2 * row + F + f, u);
    }
}

/* One block per row of the result. */
template <int W> __global__ void __launch_bounds__(256)
    gather_rows_kernel(__nv_bfloat16 *__restrict__ y, const __nv_bfloat16 *__restrict__ x, const int *__restrict__ index, int C) {
    const __nv_bfloat16 *from = x + static_cast<size_t>(index[blockIdx.x]) * C;
    __nv_bfloat16 *to = y + static_cast<size_t>(blockIdx.x) * C;
    for (int c = static_cast<int>(threadIdx.x) * W; c < C; c += static_cast<int>(blockDim.x) * W) vec_copy<W>(to + c, from + c);
}

void swiglu_forward(struct device *dev, bf16 *y, const bf16 *gate_up, int N, int F) {
    OP_RANGE();
    if (N <= 0) return;
    if (F % 8 == 0 && vec_aligned(y, gate_up))
        LAUNCH((swiglu_forward_kernel<8>), N, row_threads(F / 8, 256), 0, dev->stream, y, gate_up, F);
    else
        LAUNCH((swiglu_forward_kernel<1>), N, row_threads(F, 256), 0, dev->stream, y, gate_up, F);
}

void swiglu_backward(struct device *dev, bf16 *dgate_up, const bf16 *dy, const bf16 *gate_up, int N, int F) {
    OP_RANGE();
    if (N <= 0) return;
    if (F % 8 == 0 && vec_aligned(dgate_up, dy, gate_up))
        LAUNCH((swiglu_backward_kernel<8>), N, row_threads(F / 8, 256), 0, dev->stream, dgate_up, dy, gate_up, F);
    else
        LAUNCH((swiglu_backward_kernel<1>), N, row_threads(F, 256), 0, dev->stream, dgate_up, dy, gate_up, F);
}

void quick_gelu_forward(struct device *dev, bf16 *y, const bf16 *x, size_t n) {
    OP_RANGE();
    if (n == 0) return;
    if (vec_aligned(y, x))
        LAUNCH((unary_forward_kernel<QUICK_GELU, 8>), grid_for((n + 7) / 8), 256, 0, dev->stream, y, x, n);
    else
        LAUNCH((unary_forward_kernel<QUICK_GELU, 1>), grid_for(n), 256, 0, dev->stream, y, x, n);
}

void gelu_forward(struct device *dev, bf16 *y, const bf16 *x, size_t n) {
    OP_RANGE();
    if (n == 0) return;
    if (vec_aligned(y, x))
        LAUNCH((unary_forward_kernel<GELU, 8>), grid_for((n + 7) / 8), 256, 0, dev->stream, y, x, n);
    else
        LAUNCH((unary_forward_kernel<GELU, 1>), grid_for(n), 256, 0, dev->stream, y, x, n);
}

void residual_add(struct device *dev, bf16 *y, const bf16 *a, const bf16 *b, size_t n) {
    OP_RANGE();
    if (n == 0) return;
    if (vec_aligned(y, a, b))
        LAUNCH((residual_add_kernel<8>), grid_for((n + 7) / 8), 256, 0, dev->stream, y, a, b, n);
    else
        LAUNCH((residual_add_kernel<1>), grid_for(n), 256, 0, dev->stream, y, a, b, n);
}

void gather_rows(struct device *dev, bf16 *y, const bf16 *x, const int *index, int n, int C) {
    OP_RANGE();
    if (n <= 0) return;
    if (C % 8 == 0 && vec_aligned(y, x))
        LAUNCH((gather_rows_kernel<8>), n, row_threads(C / 8, 256), 0, dev->stream, y, x, index, C);
    else
        LAUNCH((gather_rows_kernel<1>), n, row_threads(C, 256), 0, dev->stream, y, x, index, C);
}

void act_from_real(struct device *dev, bf16 *y, const float *x, size_t n) {
    OP_RANGE();
    if (n == 0) return;
    if (vec_aligned(y, x))
        LAUNCH((convert_kernel<__nv_bfloat16, float, 8>), grid_for((n + 7) / 8), 256, 0, dev->stream, y, x, n);
    else
        LAUNCH((convert_kernel<__nv_bfloat16, float, 1>), grid_for(n), 256, 0, dev->stream, y, x, n);
}

void real_from_act(struct device *dev, float *y, const bf16 *x, size_t n) {
    OP_RANGE();
    if (n == 0) return;
    if (vec_aligned(y, x))
        LAUNCH((convert_kernel<float, __nv_bfloat16, 8>), grid_for((n + 7) / 8), 256, 0, dev->stream, y, x, n);
    else
        LAUNCH((convert_kernel<float, __nv_bfloat16, 1>), grid_for(n), 256, 0, dev->stream, y, x, n);
}
