/* edit.cu - see edit.h. One block per chosen row everywhere: rows that are not chosen cost nothing. */
#include "kernels/vec.cuh"
#include "kernels/edit.h"

/* Up to 1,024 threads, W elements each and turn; the row is read twice, the second time from L1/L2. Every thread writes the
 * elements that it read itself, and all have read for the sum before any writes. */
template <int W> __global__ void __launch_bounds__(1024)
    edit_project_out_block_kernel(__nv_bfloat16 *__restrict__ y, const int *__restrict__ rows, const float *__restrict__ u, int C,
                                  float scale) {
    SHARED(float, part, [32]);
    const int first = static_cast<int>(threadIdx.x) * W, step = static_cast<int>(blockDim.x) * W;
    __nv_bfloat16 *row = y + static_cast<size_t>(rows[blockIdx.x]) * C;
    float v[W], d[W], dot = 0;
    for (int c = first; c < C; c += step) {
        vec_load<W>(v, row + c);
        vec_load<W>(d, u + c);
        for (int k = 0; k < W; k++) dot += v[k] * d[k];
    }
    dot = scale * block_sum(dot, part);
    for (int c = first; c < C; c += step) {
        vec_load<W>(v, row + c);
        vec_load<W>(d, u + c);
        for (int k = 0; k < W; k++) v[k] -= dot * d[k];
        vec_store<W>(row + c, v);
    }
}

template <int W> __global__ void __launch_bounds__(256)
    edit_add_kernel(__nv_bfloat16 *__restrict__ y, const int *__restrict__ rows, const float *__restrict__ v, int C) {
    __nv_bfloat16 *row = y + static_cast<size_t>(rows[blockIdx.x]) * C;
    for (int c = static_cast<int>(threadIdx.x) * W; c < C; c += static_cast<int>(blockDim.x) * W) {
        float a[W], b[W];
        vec_load<W>(a, row + c);
        vec_load<W>(b, v + c);
        for (int k = 0; k < W; k++) a[k] += b[k];
        vec_store<W>(row + c, a);
    }
}

template <int W> __global__ void __launch_bounds__(256)
    edit_replace_kernel(__nv_bfloat16 *__restrict__ y, const int *__restrict__ rows, const float *__restrict__ x, int C) {
    __nv_bfloat16 *row = y + static_cast<size_t>(rows[blockIdx.x]) * C;
    for (int c = static_cast<int>(threadIdx.x) * W; c < C; c += static_cast<int>(blockDim.x) * W) {
        float v[W];
        vec_load<W>(v, x + static_cast<size_t>(blockIdx.x) * C + c);
        vec_store<W>(row + c, v);
    }
}

__global__ void __launch_bounds__(256)
    edit_heads_kernel(__nv_bfloat16 *__restrict__ y, const int *__restrict__ rows, const int *__restrict__ heads,
                      const float *__restrict__ value, int n_heads, int H, int D) {
    __nv_bfloat16 *row = y + static_cast<size_t>(rows[blockIdx.x]) * H * D;
    for (int i = static_cast<int>(threadIdx.x); i < n_heads * D; i += static_cast<int>(blockDim.x)) {
        const int c = heads[i / D] * D + i % D;
        row[c] = __float2bfloat16(value ? value[c] : 0.0f);
    }
}

/* c (n, F): one thread looks for one feature among the K slots of its row. */
__global__ void __launch_bounds__(256)
    edit_features_weight_kernel(float *__restrict__ c, const int *__restrict__ indices, const float *__restrict__ values,
                                const int *__restrict__ feature, size_t count, int K, int F, float value, bool clamp) {
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += static_cast<size_t>(gridDim.x) * blockDim.x) {
        const size_t slots = i / F * K;
        const int f = feature[i % F];
        float z = 0;
        for (int k = 0; k < K; k++)
            if (indices[slots + k] == f) z = values[slots + k];
        c[i] = clamp ? value - z : (value - 1.0f) * z;
    }
}

template <int W> __global__ void __launch_bounds__(256)
    edit_features_add_kernel(__nv_bfloat16 *__restrict__ y, const int *__restrict__ rows, const float *__restrict__ c,
                             const float *__restrict__ D, int C, int F) {
    __nv_bfloat16 *row = y + static_cast<size_t>(rows[blockIdx.x]) * C;
    const float *weight = c + static_cast<size_t>(blockIdx.x) * F;
    for (int i = static_cast<int>(threadIdx.x) * W; i < C; i += static_cast<int>(blockDim.x) * W) {
        float v[W], d[W];
        vec_load<W>(v, row + i);
        for (int j = 0; j < F; j++) {
            if (weight[j] == 0) continue;
            vec_load<W>(d, D + static_cast<size_t>(j) * C + i);
            for (int k = 0; k < W; k++) v[k] += weight[j] * d[k];
        }
        vec_store<W>(row + i, v);
    }
}

void edit_project_out(struct device *dev, bf16 *y, const int *rows, const float *u, int n, int C, float scale) {
    OP_RANGE();
    if (n <= 0) return;
    if (C % 8 == 0 && vec_aligned(y, u))
        LAUNCH((edit_project_out_block_kernel<8>), n, row_threads(C / 8, 1024), 0, dev->stream, y, rows, u, C, scale);
    else
        LAUNCH((edit_project_out_block_kernel<1>), n, row_threads(C, 1024), 0, dev->stream, y, rows, u, C, scale);
}

void edit_add(struct device *dev, bf16 *y, const int *rows, const float *v, int n, int C) {
    OP_RANGE();
    if (n <= 0) return;
    if (C % 8 == 0 && vec_aligned(y, v))
        LAUNCH((edit_add_kernel<8>), n, row_threads(C / 8, 256), 0, dev->stream, y, rows, v, C);
    else
        LAUNCH((edit_add_kernel<1>), n, row_threads(C, 256), 0, dev->stream, y, rows, v, C);
}

void edit_replace(struct device *dev, bf16 *y, const int *rows, const float *x, int n, int C) {
    OP_RANGE();
    if (n <= 0) return;
    if (C % 8 == 0 && vec_aligned(y, x))
        LAUNCH((edit_replace_kernel<8>), n, row_threads(C / 8, 256), 0, dev->stream, y, rows, x, C);
    else
        LAUNCH((edit_replace_kernel<1>), n, row_threads(C, 256), 0, dev->stream, y, rows, x, C);
}

void edit_heads(struct device *dev, bf16 *y, const int *rows, const int *heads, const float *value, int n, int n_heads, int H, int D) {
    OP_RANGE();
    if (n > 0 && n_heads > 0)
        LAUNCH(edit_heads_kernel, n, row_threads(n_heads * D, 256), 0, dev->stream, y, rows, heads, value, n_heads, H, D);
}

void edit_features(struct device *dev, bf16 *y, const int *rows, float *c, const int *indices, const float *values, const int *feature,
                   const float *D, int n, int C, int K, int F, float value, bool clamp) {
    OP_RANGE();
    if (n <= 0 || F <= 0) return;
    const size_t count = static_cast<size_t>(n) * F;
    LAUNCH(edit_features_weight_kernel, grid_for(count), 256, 0, dev->stream, c, indices, values, feature, count, K, F, value, clamp);
    if (C % 8 == 0 && vec_aligned(y, D))
        LAUNCH((edit_features_add_kernel<8>), n, row_threads(C / 8, 256), 0, dev->stream, y, rows, c, D, C, F);
    else
        LAUNCH((edit_features_add_kernel<1>), n, row_threads(C, 256), 0, dev->stream, y, rows, c, D, C, F);
}
