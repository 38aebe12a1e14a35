/* vec.cuh - what the elementwise and row kernels share: W consecutive elements as one load, warp and block sums, launch shapes.
 * W is 8 (16-byte loads of bf16, 2x16 of f32) where sizes and addresses allow, else 1: the same kernel source for both. */
#ifndef KERNELS_VEC_CUH
#define KERNELS_VEC_CUH
#include "kernels/simt/simt.h"
#include "kernels/device_internal.h"

constexpr unsigned ALL_LANES = 0xffffffffu;

template <int W> __device__ __forceinline__ void vec_load(float (&f)[W], const __nv_bfloat16 *p) {
    if constexpr (W == 8) {
        const uint4 u = *reinterpret_cast<const uint4 *>(p);
        const unsigned word[4] = {u.x, u.y, u.z, u.w};
        for (int i = 0; i < 4; i++) { /* bf16 is the upper half of an f32 */
            f[2 * i] = __uint_as_float(word[i] << 16);
            f[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
        }
    } else {
        for (int i = 0; i < W; i++) f[i] = __bfloat162float(p[i]);
    }
}

template <int W> __device__ __forceinline__ void vec_load(float (&f)[W], const float *p) {
    if constexpr (W == 8) {
        const float4 a = *reinterpret_cast<const float4 *>(p), b = *reinterpret_cast<const float4 *>(p + 4);
        f[0] = a.x, f[1] = a.y, f[2] = a.z, f[3] = a.w, f[4] = b.x, f[5] = b.y, f[6] = b.z, f[7] = b.w;
    } else {
        for (int i = 0; i < W; i++) f[i] = p[i];
    }
}

/* Two floats rounded to bf16, the first in the lower half. */
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    const __nv_bfloat162 h = __floats2bfloat162_rn(low, high);
    unsigned u;
    memcpy(&u, &h, 4);
    return u;
}

template <int W> __device__ __forceinline__ void vec_store(__nv_bfloat16 *p, const float (&f)[W]) {
    if constexpr (W == 8) {
        *reinterpret_cast<uint4 *>(p) =
            make_uint4(pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3]), pack_bf16(f[4], f[5]), pack_bf16(f[6], f[7]));
    } else {
        for (int i = 0; i < W; i++) p[i] = __float2bfloat16(f[i]);
    }
}

template <int W> __device__ __forceinline__ void vec_store(float *p, const float (&f)[W]) {
    if constexpr (W == 8) {
        *reinterpret_cast<float4 *>(p) = make_float4(f[0], f[1], f[2], f[3]);
        *reinterpret_cast<float4 *>(p + 4) = make_float4(f[4], f[5], f[6], f[7]);
    } else {
        for (int i = 0; i < W; i++) p[i] = f[i];
    }
}

template <int W> __device__ __forceinline__ void vec_copy(__nv_bfloat16 *to, const __nv_bfloat16 *from) {
    if constexpr (W == 8)
        *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(from);
    else
        for (int i = 0; i < W; i++) to[i] = from[i];
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(ALL_LANES, v, o);
    return v;
}

/* Sum over the block (a multiple of 32 threads), the same in every thread; part: 32 floats of shared memory. Two barriers,
 * so part may be used again at once. */
__device__ __forceinline__ float block_sum(float v, float *part) {
    const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) part[warp] = v;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < warps; i++) sum += part[i];
    __syncthreads();
    return sum;
}

/* Before a launch with `bytes` of dynamic shared memory: above 48 KiB, with the static, a kernel must be allowed to have it. */
template <class F> static inline void allow_shared(F kernel, size_t bytes) {
    if (bytes > 40 * 1024)
        CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
}

/* May tensors at these addresses be read eight elements at a time? */
static inline bool vec_aligned(const void *a, const void *b = nullptr, const void *c = nullptr, const void *d = nullptr) {
    return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c) |
            reinterpret_cast<uintptr_t>(d)) %
               16 ==
           0;
}

/* Threads for a block that walks a row of `items`: whole warps, at most `limit`. */
static inline unsigned row_threads(int items, int limit) {
    const int threads = (items + 31) / 32 * 32;
    return static_cast<unsigned>(threads < 32 ? 32 : threads > limit ? limit : threads);
}

/* Blocks of 256 threads for n items, each thread one item; capped, so kernels walk with the grid's stride. */
static inline unsigned grid_for(size_t n) {
    const size_t blocks = (n + 255) / 256;
    return static_cast<unsigned>(blocks < 65536 ? blocks : 65536);
}
#endif
