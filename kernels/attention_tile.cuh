/* attention_tile.cuh - tiles of 64 rows in shared memory and the warp's products with them, for attention.cu and its backward.
 * Fragments as mma.m16n8k16 lays them out. */
#ifndef KERNELS_ATTENTION_TILE_CUH
#define KERNELS_ATTENTION_TILE_CUH
#include "kernels/vec.cuh"
#include "kernels/simt/ptx.cuh"

constexpr int TILE = 64; /* queries of a block, keys of a turn */

/* Element offset of 16-byte chunk c of a tile row: chunks are permuted so that the eight rows an ldmatrix phase reads at one
 * column lie in different banks. */
template <int D> __device__ __forceinline__ int tile_at(int row, int c) {
    constexpr int CHUNKS = D / 8;
    return row * D + (c ^ (CHUNKS >= 8 ? row & 7 : row / (8 / CHUNKS) & (CHUNKS - 1))) * 8;
}

/* Copies `rows` rows (the rest of 64 becomes zero) of `width` elements, padded with zeros to D, behind the threads' backs. */
template <int D>
__device__ __forceinline__ void tile_fetch(__nv_bfloat16 *tile, const __nv_bfloat16 *from, size_t stride, int rows, int width) {
    constexpr int CHUNKS = D / 8;
    for (int i = static_cast<int>(threadIdx.x); i < TILE * CHUNKS; i += 128) {
        const int r = i / CHUNKS, c = i % CHUNKS;
        const bool in = r < rows && c * 8 < width;
        ptx::cp_async16(tile + tile_at<D>(r, c), in ? from + static_cast<size_t>(r) * stride + c * 8 : from, in);
    }
}

/* One warp: s (16 x 8J) = A B^T, 16 rows of tile a from a_row on, 8J rows of tile b from b_row on. */
template <int D, int J>
__device__ __forceinline__ void tile_products(float (&s)[J][4], const __nv_bfloat16 *a, int a_row, const __nv_bfloat16 *b, int b_row) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t x[4];
        ptx::ldmatrix_x4(x, a + tile_at<D>(a_row + (lane & 15), i * 2 + (lane >> 4)));
#pragma unroll
        for (int j = 0; j < J / 2; j++) {
            uint32_t y[4];
            ptx::ldmatrix_x4(y, b + tile_at<D>(b_row + j * 16 + (lane & 7) + (lane >> 4) * 8, i * 2 + (lane >> 3 & 1)));
            ptx::mma_16816(s[2 * j], x, y[0], y[1]);
            ptx::mma_16816(s[2 * j + 1], x, y[2], y[3]);
        }
    }
}

/* One warp: o (16 x D) += P B, 8J rows of tile b from b_row on; P's accumulators, rounded to bf16, are its A fragments. */
template <int D, int J>
__device__ __forceinline__ void tile_accumulate(float (&o)[D / 8][4], const float (&p)[J][4], const __nv_bfloat16 *b, int b_row) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < J / 2; i++) {
        const uint32_t x[4] = {pack_bf16(p[2 * i][0], p[2 * i][1]), pack_bf16(p[2 * i][2], p[2 * i][3]),
                               pack_bf16(p[2 * i + 1][0], p[2 * i + 1][1]), pack_bf16(p[2 * i + 1][2], p[2 * i + 1][3])};
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            uint32_t y[4];
            ptx::ldmatrix_x4_trans(y, b + tile_at<D>(b_row + i * 16 + (lane & 15), j * 2 + (lane >> 4)));
            ptx::mma_16816(o[2 * j], x, y[0], y[1]);
            ptx::mma_16816(o[2 * j + 1], x, y[2], y[3]);
        }
    }
}
#endif
