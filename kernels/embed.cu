/* embed.cu - see embed.h. */
#include "kernels/vec.cuh"
#include "kernels/embed.h"

/* One block per row, threads along the row. */
template <int W> __global__ void __launch_bounds__(256)
    embed_forward_kernel(__nv_bfloat16 *__restrict__ x, const int *__restrict__ source, const __nv_bfloat16 *__restrict__ table,
                         const __nv_bfloat16 *__restrict__ image_rows, int C) {
    const int s = source[blockIdx.x];
    const __nv_bfloat16 *from = s >= 0 ? table + static_cast<size_t>(s) * C : image_rows + static_cast<size_t>(-1 - s) * C;
    __nv_bfloat16 *to = x + static_cast<size_t>(blockIdx.x) * C;
    for (int c = static_cast<int>(threadIdx.x) * W; c < C; c += static_cast<int>(blockDim.x) * W) vec_copy<W>(to + c, from + c);
}

/* One block per row n. The first row of a source adds up all rows of it, in order; the others leave. */
__global__ void __launch_bounds__(256)
    embed_backward_kernel(float *__restrict__ dtable, float *__restrict__ dimage_rows, const int *__restrict__ source,
                          const __nv_bfloat16 *__restrict__ dx, int N, int C) {
    const int n = static_cast<int>(blockIdx.x), s = source[n];
    bool seen = false;
    for (int m = static_cast<int>(threadIdx.x); m < n; m += static_cast<int>(blockDim.x)) seen = seen || source[m] == s;
    if (__syncthreads_or(seen)) return;
    float *to = s >= 0 ? dtable : dimage_rows;
    if (!to) return;
    to += static_cast<size_t>(s >= 0 ? s : -1 - s) * C;
    for (int m = n; m < N; m++) {
        if (source[m] != s) continue;
        for (int c = static_cast<int>(threadIdx.x); c < C; c += static_cast<int>(blockDim.x))
            to[c] += __bfloat162float(dx[static_cast<size_t>(m) * C + c]);
    }
}

/* One block per patch; writes are contiguous, reads come in runs of P floats. */
__global__ void __launch_bounds__(256)
    patch_extract_kernel(__nv_bfloat16 *__restrict__ rows, const float *__restrict__ pixels, int S, int P) {
    const int side = S / P, width = 3 * P * P;
    const int patch = static_cast<int>(blockIdx.x) % (side * side), b = static_cast<int>(blockIdx.x) / (side * side);
    const int top = patch / side * P, left = patch % side * P;
    __nv_bfloat16 *row = rows + static_cast<size_t>(blockIdx.x) * width;
    for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
        const int c = i / (P * P), u = i / P % P, v = i % P;
        row[i] = __float2bfloat16(pixels[(static_cast<size_t>(b * 3 + c) * S + top + u) * S + left + v]);
    }
}

/* Block (i, b) makes row i of image b. */
template <int W> __global__ void __launch_bounds__(256)
    vision_embed_forward_kernel(__nv_bfloat16 *__restrict__ x, const __nv_bfloat16 *__restrict__ patches,
                                const __nv_bfloat16 *__restrict__ class_row, const __nv_bfloat16 *__restrict__ position, int n, int C) {
    const int i = static_cast<int>(blockIdx.x);
    const size_t b = blockIdx.y;
    const __nv_bfloat16 *from = i ? patches + (b * n + i - 1) * C : class_row, *at = position + static_cast<size_t>(i) * C;
    __nv_bfloat16 *to = x + (b * (n + 1) + i) * C;
    for (int c = static_cast<int>(threadIdx.x) * W; c < C; c += static_cast<int>(blockDim.x) * W) {
        float v[W], p[W];
        vec_load<W>(v, from + c);
        vec_load<W>(p, at + c);
        for (int k = 0; k < W; k++) v[k] += p[k];
        vec_store<W>(to + c, v);
    }
}

void embed_forward(struct device *dev, bf16 *x, const int *source, const bf16 *table, const bf16 *image_rows, int N, int C) {
    OP_RANGE();
    if (N <= 0) return;
    if (C % 8 == 0 && vec_aligned(x, table, image_rows))
        LAUNCH((embed_forward_kernel<8>), N, row_threads(C / 8, 256), 0, dev->stream, x, source, table, image_rows, C);
    else
        LAUNCH((embed_forward_kernel<1>), N, row_threads(C, 256), 0, dev->stream, x, source, table, image_rows, C);
}

void embed_backward(struct device *dev, float *dtable, float *dimage_rows, const int *source, const bf16 *dx, int N, int C) {
    OP_RANGE();
    if (N <= 0) return;
    LAUNCH(embed_backward_kernel, N, 256, 0, dev->stream, dtable, dimage_rows, source, dx, N, C);
}

void patch_extract(struct device *dev, bf16 *rows, const float *pixels, int B, int S, int P) {
    OP_RANGE();
    CHECK(P > 0 && S % P == 0, "S=%d P=%d", S, P);
    const int patches = B * (S / P) * (S / P);
    if (patches > 0) LAUNCH(patch_extract_kernel, patches, row_threads(3 * P * P, 256), 0, dev->stream, rows, pixels, S, P);
}

void vision_embed_forward(struct device *dev, bf16 *x, const bf16 *patches, const bf16 *class_row, const bf16 *position, int B, int n,
                          int C) {
    OP_RANGE();
    CHECK(B <= 65535, "B=%d", B);
    if (B <= 0) return;
    const dim3 grid(n + 1, B);
    if (C % 8 == 0 && vec_aligned(x, patches, class_row, position))
        LAUNCH((vision_embed_forward_kernel<8>), grid, row_threads(C / 8, 256), 0, dev->stream, x, patches, class_row, position, n, C);
    else
        LAUNCH((vision_embed_forward_kernel<1>), grid, row_threads(C, 256), 0, dev->stream, x, patches, class_row, position, n, C);
}
