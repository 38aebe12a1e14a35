/* rope.cu - see rope.h. Rotary embedding: Su et al. 2021, in the half-split layout of Hugging Face's rotate_half. */
#include "kernels/vec.cuh"
#include "kernels/rope.h"

/* One block per token. An item is W pairs (i, i + D/2) of one head; heads 0..H-1 are q, then k, then v, which is copied.
 * Without tables all heads are copied. */
template <int W> __global__ void __launch_bounds__(256)
    qkv_split_rope_kernel(__nv_bfloat16 *__restrict__ q, __nv_bfloat16 *__restrict__ k, __nv_bfloat16 *__restrict__ v,
                          const __nv_bfloat16 *__restrict__ qkv, const int *__restrict__ position, const float *__restrict__ cosine,
                          const float *__restrict__ sine, int H, int G, int D) {
    const int half = D / 2, per_head = half / W;
    const size_t n = blockIdx.x;
    const __nv_bfloat16 *in = qkv + n * (H + 2 * G) * D;
    const size_t at = cosine ? static_cast<size_t>(position[n]) * half : 0;
    for (int item = static_cast<int>(threadIdx.x); item < (H + 2 * G) * per_head; item += static_cast<int>(blockDim.x)) {
        const int h = item / per_head, i = item % per_head * W;
        const __nv_bfloat16 *from = in + static_cast<size_t>(h) * D + i;
        __nv_bfloat16 *to = h < H ? q + (n * H + h) * D : h < H + G ? k + (n * G + h - H) * D : v + (n * G + h - H - G) * D;
        to += i;
        if (!cosine || h >= H + G) {
            vec_copy<W>(to, from);
            vec_copy<W>(to + half, from + half);
            continue;
        }
        float a[W], b[W], c[W], s[W], y[W];
        vec_load<W>(a, from);
        vec_load<W>(b, from + half);
        vec_load<W>(c, cosine + at + i);
        vec_load<W>(s, sine + at + i);
        for (int e = 0; e < W; e++) {
            y[e] = a[e] * c[e] - b[e] * s[e];
            b[e] = b[e] * c[e] + a[e] * s[e];
        }
        vec_store<W>(to, y);
        vec_store<W>(to + half, b);
    }
}

/* The same walk; heads 0..H-1 come from dq, then dk, then dv. */
template <int W> __global__ void __launch_bounds__(256)
    qkv_split_rope_backward_kernel(__nv_bfloat16 *__restrict__ dqkv, const __nv_bfloat16 *__restrict__ dq,
                                   const __nv_bfloat16 *__restrict__ dk, const __nv_bfloat16 *__restrict__ dv,
                                   const int *__restrict__ position, const float *__restrict__ cosine, const float *__restrict__ sine,
                                   int H, int G, int D) {
    const int half = D / 2, per_head = half / W;
    const size_t n = blockIdx.x, at = static_cast<size_t>(position[n]) * half;
    for (int item = static_cast<int>(threadIdx.x); item < (H + 2 * G) * per_head; item += static_cast<int>(blockDim.x)) {
        const int h = item / per_head, i = item % per_head * W;
        const __nv_bfloat16 *from = h < H ? dq + (n * H + h) * D : h < H + G ? dk + (n * G + h - H) * D : dv + (n * G + h - H - G) * D;
        __nv_bfloat16 *to = dqkv + (n * (H + 2 * G) + h) * D + i;
        from += i;
        if (h >= H + G) {
            vec_copy<W>(to, from);
            vec_copy<W>(to + half, from + half);
            continue;
        }
        float a[W], b[W], c[W], s[W], y[W];
        vec_load<W>(a, from);
        vec_load<W>(b, from + half);
        vec_load<W>(c, cosine + at + i);
        vec_load<W>(s, sine + at + i);
        for (int e = 0; e < W; e++) {
            y[e] = a[e] * c[e] + b[e] * s[e];
            b[e] = b[e] * c[e] - a[e] * s[e];
        }
        vec_store<W>(to, y);
        vec_store<W>(to + half, b);
    }
}

void qkv_split_rope(struct device *dev, bf16 *q, bf16 *k, bf16 *v, const bf16 *qkv, const int *position, const float *cosine,
                    const float *sine, int N, int H, int G, int D) {
    OP_RANGE();
    CHECK(D % 2 == 0 && !cosine == !sine, "D=%d", D);
    if (N <= 0) return;
    const int pairs = (H + 2 * G) * D / 2;
    if (D % 16 == 0 && vec_aligned(q, k, v, qkv) && vec_aligned(cosine, sine))
        LAUNCH((qkv_split_rope_kernel<8>), N, row_threads(pairs / 8, 256), 0, dev->stream, q, k, v, qkv, position, cosine, sine, H, G, D);
    else
        LAUNCH((qkv_split_rope_kernel<1>), N, row_threads(pairs, 256), 0, dev->stream, q, k, v, qkv, position, cosine, sine, H, G, D);
}

void qkv_split_rope_backward(struct device *dev, bf16 *dqkv, const bf16 *dq, const bf16 *dk, const bf16 *dv, const int *position,
                             const float *cosine, const float *sine, int N, int H, int G, int D) {
    OP_RANGE();
    CHECK(D % 2 == 0, "D=%d", D);
    if (N <= 0) return;
    const int pairs = (H + 2 * G) * D / 2;
    if (D % 16 == 0 && vec_aligned(dqkv, dq, dk, dv) && vec_aligned(cosine, sine))
        LAUNCH((qkv_split_rope_backward_kernel<8>), N, row_threads(pairs / 8, 256), 0, dev->stream, dqkv, dq, dk, dv, position, cosine,
               sine, H, G, D);
    else
        LAUNCH((qkv_split_rope_backward_kernel<1>), N, row_threads(pairs, 256), 0, dev->stream, dqkv, dq, dk, dv, position, cosine, sine, H,
               G, D);
}
