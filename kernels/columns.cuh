/* columns.cuh - sums over the rows of a matrix, by column: a block takes 32 columns, in a fixed order whatever the machine. */
#ifndef KERNELS_COLUMNS_CUH
#define KERNELS_COLUMNS_CUH
#include "kernels/vec.cuh"

constexpr int COLUMN_BLOCK = 32, COLUMN_THREADS = 512; /* columns of a block, its threads */

static inline unsigned column_blocks(int d) { return static_cast<unsigned>((d + COLUMN_BLOCK - 1) / COLUMN_BLOCK); }

/* Sum over n < N of rows[n][c] - shift[c], or of its square, for column c = 32 blockIdx.x + threadIdx.x % 32; the same in
 * every warp. W neighbours are read at once, W rows by a warp. total: shared, free again after the call. */
template <int W, bool SQUARE, class T> __device__ __forceinline__ float
column_sum(const T *__restrict__ rows, const float (&shift)[W], int N, int d, float (&total)[COLUMN_THREADS / 32][COLUMN_BLOCK]) {
    constexpr int LANES = COLUMN_BLOCK / W, TURN = COLUMN_THREADS / LANES, BATCH = 4; /* lanes of a row, rows of a turn, turns at once */
    const int tid = static_cast<int>(threadIdx.x), lane = tid % LANES, warp = tid / 32,
              c = static_cast<int>(blockIdx.x) * COLUMN_BLOCK + lane * W;
    float sum[W] = {}, v[BATCH][W];
    for (int n = c < d ? tid / LANES : N; n < N; n += BATCH * TURN) {
#pragma unroll
        for (int j = 0; j < BATCH; j++)
            if (n + j * TURN < N)
                vec_load<W>(v[j], rows + static_cast<size_t>(n + j * TURN) * d + c);
            else
                for (int i = 0; i < W; i++) v[j][i] = shift[i];
#pragma unroll
        for (int j = 0; j < BATCH; j++)
            for (int i = 0; i < W; i++) {
                const float off = v[j][i] - shift[i];
                sum[i] += SQUARE ? off * off : off;
            }
    }
    for (int i = 0; i < W; i++) {
        for (int o = 16; o >= LANES; o >>= 1) sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], o);
        if (tid % 32 < LANES) total[warp][lane * W + i] = sum[i];
    }
    __syncthreads();
    float all = 0;
    for (int w = 0; w < COLUMN_THREADS / 32; w++) all += total[w][tid % COLUMN_BLOCK];
    __syncthreads();
    return all;
}
#endif
