/* attention.cu - see attention.h. Blocked softmax after Milakov & Gimelshein 2018 and Dao et al. 2022.
 *
 * Two variants. `rows`: one block per (query, head), f32 products, keys dealt to lane groups: any D, and decoding. `mma`:
 * 64 queries of one head per block on the tensor cores, D padded to 16, 32, 64 or 128: prefill. */
#include "kernels/vec.cuh"
#include "kernels/attention_tile.cuh"
#include "kernels/attention.h"
#include "kernels/variant.h"

struct attention_args {
    __nv_bfloat16 *z;
    float *lse;
    const __nv_bfloat16 *q, *k, *v;
    const int *q_start, *k_start, *k_length;
    int S, max_q, H, G, D;
    float scale;
    bool causal;
};

/* ---- rows ---- */

constexpr int ROWS_WARPS = 4;

/* Running softmax of the keys seen so far by one lane group: maximum, denominator, this lane's 8 columns of the sum. */
struct soft_row {
    float top, sum, o[8];
};

/* a takes b in. Empty states have top -inf. */
__device__ __forceinline__ void soft_merge(soft_row &a, float top, float sum, const float (&o)[8]) {
    const float m = fmaxf(a.top, top);
    const float fa = a.top == m ? 1.0f : __expf(a.top - m), fb = top == m ? 1.0f : __expf(top - m);
    a.top = m;
    a.sum = a.sum * fa + sum * fb;
    for (int e = 0; e < 8; e++) a.o[e] = a.o[e] * fa + o[e] * fb;
}

/* grid (queries of the longest sequence, H, S), 128 threads. GROUP lanes hold one key, 8 elements of D each; the block's
 * 4 * 32/GROUP groups take keys in turn, then states merge over groups by shuffles and over warps through shared memory,
 * always in the same order. f32 throughout. */
template <int GROUP> __global__ void __launch_bounds__(ROWS_WARPS * 32) attention_forward_rows_kernel(const attention_args a) {
    SHARED(soft_row, parts, [ROWS_WARPS][GROUP]);
    const int s = static_cast<int>(blockIdx.z), h = static_cast<int>(blockIdx.y), g = h / (a.H / a.G), i = static_cast<int>(blockIdx.x);
    const int first = a.q_start[s], queries = a.q_start[s + 1] - first, length = a.k_length[s];
    if (i >= queries) return;
    const int seen = a.causal ? i + 1 + length - queries : length;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, column = lane % GROUP * 8;
    const bool inside = column < a.D;
    const size_t row = static_cast<size_t>(first + i) * a.H + h, stride = static_cast<size_t>(a.G) * a.D;
    const size_t key0 = static_cast<size_t>(a.k_start[s]) * stride + static_cast<size_t>(g) * a.D + column;
    float q[8] = {}, x[8] = {};
    if (inside) vec_load<8>(q, a.q + row * a.D + column);
    soft_row mine = {-INFINITY, 0, {}};
    constexpr int STEP = ROWS_WARPS * (32 / GROUP);
    for (int base = 0; base < seen; base += STEP) { /* the same turns for every lane: shuffles need them all */
        const int j = base + warp * (32 / GROUP) + lane / GROUP;
        const bool live = j < seen;
        float dot = 0;
        if (live && inside) {
            vec_load<8>(x, a.k + key0 + static_cast<size_t>(j) * stride);
            for (int e = 0; e < 8; e++) dot += q[e] * x[e];
        }
        for (int o = GROUP / 2; o; o >>= 1) dot += __shfl_xor_sync(ALL_LANES, dot, o);
        if (!live) continue;
        dot *= a.scale;
        const float m = fmaxf(mine.top, dot), fade = __expf(mine.top - m), p = __expf(dot - m);
        mine.top = m;
        mine.sum = mine.sum * fade + p;
        if (inside) vec_load<8>(x, a.v + key0 + static_cast<size_t>(j) * stride);
        for (int e = 0; e < 8; e++) mine.o[e] = mine.o[e] * fade + p * x[e];
    }
    for (int o = GROUP; o < 32; o <<= 1) {
        const float top = __shfl_xor_sync(ALL_LANES, mine.top, o), sum = __shfl_xor_sync(ALL_LANES, mine.sum, o);
        for (int e = 0; e < 8; e++) x[e] = __shfl_xor_sync(ALL_LANES, mine.o[e], o);
        soft_merge(mine, top, sum, x);
    }
    if (lane < GROUP) parts[warp][lane] = mine;
    __syncthreads();
    if (warp != 0 || lane >= GROUP) return;
    for (int w = 1; w < ROWS_WARPS; w++) soft_merge(mine, parts[w][lane].top, parts[w][lane].sum, parts[w][lane].o);
    for (int e = 0; e < 8; e++) mine.o[e] /= mine.sum;
    if (inside) vec_store<8>(a.z + row * a.D + column, mine.o);
    if (a.lse && lane == 0) a.lse[row] = mine.top + logf(mine.sum);
}

/* ---- mma ---- */

template <int D> struct attention_smem { __nv_bfloat16 q[TILE * D], k[2][TILE * D], v[2][TILE * D]; };

/* One warp: s (16 queries x 64 keys) = Q K^T; fragments as mma.m16n8k16 lays them out. */
template <int D> __device__ __forceinline__ void tile_scores(float (&s)[8][4], const uint32_t (&q)[D / 16][4], const __nv_bfloat16 *k) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < D / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) { /* pairs of 8-key tiles */
            uint32_t b[4];
            ptx::ldmatrix_x4(b, k + tile_at<D>(j * 16 + (lane & 7) + (lane >> 4) * 8, i * 2 + (lane >> 3 & 1)));
            ptx::mma_16816(s[2 * j], q[i], b[0], b[1]);
            ptx::mma_16816(s[2 * j + 1], q[i], b[2], b[3]);
        }
}

/* Row half r of the warp's scores: those past `seen` (relative to this lane's first key) are masked, the others become
 * probabilities against the new running maximum; what was summed before fades. Four lanes share a row. */
template <int D>
__device__ __forceinline__ void tile_soften(float (&s)[8][4], float (&o)[D / 8][4], float &top, float &sum, int r, int seen, float scale) {
    float m = top, part = 0;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (j * 8 + e > seen) s[j][2 * r + e] = -INFINITY;
            m = fmaxf(m, s[j][2 * r + e]);
        }
    m = fmaxf(m, __shfl_xor_sync(ALL_LANES, m, 1));
    m = fmaxf(m, __shfl_xor_sync(ALL_LANES, m, 2));
    const float fade = exp2f((top - m) * scale);
    top = m;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            s[j][2 * r + e] = exp2f((s[j][2 * r + e] - m) * scale);
            part += s[j][2 * r + e];
        }
#pragma unroll
    for (int j = 0; j < D / 8; j++) o[j][2 * r] *= fade, o[j][2 * r + 1] *= fade;
    sum = sum * fade + part;
}

/* grid (query tiles, longest first, H, S), 128 threads: warp w holds queries 16w .. 16w+15 of the tile, a lane rows lane/4 and
 * lane/4 + 8. Keys and values come in tiles of 64, double buffered by cp.async. Scores, softmax and sums f32 in base 2, P
 * rounded to bf16 before it meets V. Every row has at least one key in the first tile, so the maximum is finite from then on. */
template <int D> __global__ void __launch_bounds__(128) attention_forward_mma_kernel(const attention_args a) {
    DYN_SMEM(attention_smem<D>, sm);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int seq = static_cast<int>(blockIdx.z), h = static_cast<int>(blockIdx.y), g = h / (a.H / a.G);
    const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * TILE;
    const int queries = a.q_start[seq + 1] - a.q_start[seq], length = a.k_length[seq];
    if (q0 >= queries) return;
    const int shift = a.causal ? length - queries : length; /* query i sees keys j <= i + shift */
    const int end = min(length, a.causal ? min(q0 + TILE, queries) + shift : length), turns = (end + TILE - 1) / TILE;
    const size_t row0 = static_cast<size_t>(a.q_start[seq] + q0) * a.H + h, stride = static_cast<size_t>(a.G) * a.D;
    const size_t key0 = static_cast<size_t>(a.k_start[seq]) * stride + static_cast<size_t>(g) * a.D;
    tile_fetch<D>(sm->q, a.q + row0 * a.D, static_cast<size_t>(a.H) * a.D, queries - q0, a.D);
    tile_fetch<D>(sm->k[0], a.k + key0, stride, end, a.D);
    tile_fetch<D>(sm->v[0], a.v + key0, stride, end, a.D);
    ptx::cp_async_commit();
    const float scale = a.scale * 1.44269504f; /* log2 e */
    const int row = q0 + warp * 16 + (lane >> 2);
    uint32_t q[D / 16][4];
    float o[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    for (int t = 0; t < turns; t++) {
        const int next = (t + 1) * TILE;
        if (t + 1 < turns) {
            tile_fetch<D>(sm->k[(t + 1) & 1], a.k + key0 + next * stride, stride, end - next, a.D);
            tile_fetch<D>(sm->v[(t + 1) & 1], a.v + key0 + next * stride, stride, end - next, a.D);
        }
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();
        __syncthreads();
        if (t == 0) {
#pragma unroll
            for (int i = 0; i < D / 16; i++) ptx::ldmatrix_x4(q[i], sm->q + tile_at<D>(warp * 16 + (lane & 15), i * 2 + (lane >> 4)));
        }
        float s[8][4] = {};
        tile_scores<D>(s, q, sm->k[t & 1]);
        const int key = t * TILE + (lane & 3) * 2, last = length - 1;
#pragma unroll
        for (int r = 0; r < 2; r++) tile_soften<D>(s, o, top[r], sum[r], r, min(row + r * 8 + shift, last) - key, scale);
        tile_accumulate<D, 8>(o, s, sm->v[t & 1], 0);
        __syncthreads(); /* the next turn's copies overwrite what was read here */
    }
    for (int r = 0; r < 2; r++) {
        float l = sum[r];
        l += __shfl_xor_sync(ALL_LANES, l, 1);
        l += __shfl_xor_sync(ALL_LANES, l, 2);
        const int i = row + r * 8;
        if (i >= queries) continue;
        const size_t at = (static_cast<size_t>(a.q_start[seq] + i)) * a.H + h;
        for (int j = 0; j < D / 8; j++)
            if (j * 8 < a.D)
                *reinterpret_cast<uint32_t *>(a.z + at * a.D + j * 8 + (lane & 3) * 2) = pack_bf16(o[j][2 * r] / l, o[j][2 * r + 1] / l);
        if (a.lse && (lane & 3) == 0) a.lse[at] = top[r] * a.scale + logf(l);
    }
}

/* ---- launchers, table, dispatch ---- */

template <int GROUP> static void launch_rows(struct device *dev, const attention_args &a) {
    LAUNCH((attention_forward_rows_kernel<GROUP>), dim3(a.max_q, a.H, a.S), ROWS_WARPS * 32, 0, dev->stream, a);
}

static void attention_rows(struct device *dev, const attention_args &a) {
    if (a.D <= 8)
        launch_rows<1>(dev, a);
    else if (a.D <= 16)
        launch_rows<2>(dev, a);
    else if (a.D <= 32)
        launch_rows<4>(dev, a);
    else if (a.D <= 64)
        launch_rows<8>(dev, a);
    else if (a.D <= 128)
        launch_rows<16>(dev, a);
    else
        launch_rows<32>(dev, a);
}

template <int D> static void launch_mma(struct device *dev, const attention_args &a) {
    const size_t bytes = sizeof(attention_smem<D>);
    if (bytes > 48 * 1024)
        CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void *>(attention_forward_mma_kernel<D>),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    LAUNCH((attention_forward_mma_kernel<D>), dim3((a.max_q + TILE - 1) / TILE, a.H, a.S), 128, bytes, dev->stream, a);
}

static void attention_mma(struct device *dev, const attention_args &a) {
    if (a.D <= 16)
        launch_mma<16>(dev, a);
    else if (a.D <= 32)
        launch_mma<32>(dev, a);
    else if (a.D <= 64)
        launch_mma<64>(dev, a);
    else
        launch_mma<128>(dev, a);
}

static bool any_shape(const attention_args &) { return true; }
static bool fits_mma(const attention_args &a) { return a.D <= 128; }

/* Dispatch takes the last row that fits and whose least max_q is reached. The limit 8 is an estimate, not yet measured on a GPU. */
static const struct {
    const char *name;
    bool (*fits)(const attention_args &a);
    void (*launch)(struct device *dev, const attention_args &a);
    int least_max_q;
} variants[] = {
    {"rows", any_shape, attention_rows, 0},
    {"mma", fits_mma, attention_mma, 9},
};

const char *attention_variant(int index) {
    return index >= 0 && index < static_cast<int>(sizeof variants / sizeof *variants) ? variants[index].name : nullptr;
}

void attention_forward(struct device *dev, bf16 *z, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const int *q_start,
                       const int *k_start, const int *k_length, int S, int max_q, int H, int G, int D, float scale, bool causal) {
    OP_RANGE();
    CHECK(G > 0 && H % G == 0 && D % 8 == 0 && D <= 256, "H=%d G=%d D=%d", H, G, D);
    CHECK(S <= 65535 && H <= 65535 && vec_aligned(z, q, k, v), "S=%d H=%d, or addresses not 16-byte aligned", S, H);
    if (S <= 0 || max_q <= 0) return;
    const attention_args a = {z, lse, q, k, v, q_start, k_start, k_length, S, max_q, H, G, D, scale, causal};
    int pick = 0;
    for (int i = 0; i < static_cast<int>(sizeof variants / sizeof *variants); i++)
        if (variants[i].fits(a) && (dev->variant >= 0 ? i == dev->variant : max_q >= variants[i].least_max_q)) pick = i;
    variants[pick].launch(dev, a);
}
