/* attention_backward.cu - see attention.h. Formulas: Dao et al. 2022, appendix B. Two passes, so that no sum needs atomics:
 * dq by blocks of queries that walk the keys, dk and dv by blocks of keys that walk the queries of every head of the group.
 *
 * Two variants. `rows`: one block per (query, head), then per (key, kv head), f32 products: any D. `mma`: tiles of 64 on the
 * tensor cores, D padded to 16, 32, 64 or 128; p and ds rounded to bf16 before they meet the next product. */
#include "kernels/attention_tile.cuh"
#include "kernels/attention.h"
#include "kernels/variant.h"

struct backward_args {
    __nv_bfloat16 *dq, *dk, *dv;
    float *delta;
    const __nv_bfloat16 *dz, *z;
    const float *lse;
    const __nv_bfloat16 *q, *k, *v;
    const int *start;
    int S, max_q, H, G, D;
    float scale;
};

/* delta (rows) = dz . z, one warp a row. */
__global__ void __launch_bounds__(256)
    row_products_kernel(float *__restrict__ delta, const __nv_bfloat16 *__restrict__ dz, const __nv_bfloat16 *__restrict__ z,
                        const int *__restrict__ start, int S, int H, int D) {
    const size_t row = static_cast<size_t>(blockIdx.x) * 8 + threadIdx.x / 32;
    if (row >= static_cast<size_t>(start[S]) * H) return;
    float a[8], b[8], sum = 0;
    for (int d = static_cast<int>(threadIdx.x) % 32 * 8; d < D; d += 256) {
        vec_load<8>(a, dz + row * D + d);
        vec_load<8>(b, z + row * D + d);
        for (int e = 0; e < 8; e++) sum += a[e] * b[e];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[row] = sum;
}

/* ---- rows ---- */

constexpr int ROWS_WARPS = 4;

/* Sums of the block's lane groups, GROUP lanes with 8 elements each, in a fixed order; valid in the first GROUP lanes of warp 0.
 * parts: ROWS_WARPS * GROUP * 8 floats of shared memory. */
template <int GROUP> __device__ __forceinline__ void merge_groups(float (&x)[8], float *parts) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int o = GROUP; o < 32; o <<= 1)
        for (int e = 0; e < 8; e++) x[e] += __shfl_xor_sync(ALL_LANES, x[e], o);
    __syncthreads();
    if (lane < GROUP)
        for (int e = 0; e < 8; e++) parts[(warp * GROUP + lane) * 8 + e] = x[e];
    __syncthreads();
    if (warp != 0 || lane >= GROUP) return;
    for (int w = 1; w < ROWS_WARPS; w++)
        for (int e = 0; e < 8; e++) x[e] += parts[(w * GROUP + lane) * 8 + e];
}

/* Scores of one (query row, key) by a lane group: p and ds, 8 elements of q, dz, k, v in each lane. */
template <int GROUP> __device__ __forceinline__ void pair_scores(float &p, float &ds, const float (&q)[8], const float (&o)[8],
                                                                 const float (&k)[8], const float (&v)[8], float scale, float lse,
                                                                 float delta) {
    float score = 0, dp = 0;
    for (int e = 0; e < 8; e++) score += q[e] * k[e], dp += o[e] * v[e];
    for (int x = GROUP / 2; x; x >>= 1) {
        score += __shfl_xor_sync(ALL_LANES, score, x);
        dp += __shfl_xor_sync(ALL_LANES, dp, x);
    }
    p = __expf(fminf(score * scale - lse, 0.0f));
    ds = p * (dp - delta);
}

/* grid (queries of the longest sequence, H, S), 128 threads: groups of lanes take keys in turn. */
template <int GROUP> __global__ void __launch_bounds__(ROWS_WARPS * 32) attention_backward_q_rows_kernel(const backward_args a) {
    SHARED(float, parts, [ROWS_WARPS * GROUP * 8]);
    const int s = static_cast<int>(blockIdx.z), h = static_cast<int>(blockIdx.y), g = h / (a.H / a.G), i = static_cast<int>(blockIdx.x);
    const int first = a.start[s];
    if (i >= a.start[s + 1] - first) return;
    const int lane = static_cast<int>(threadIdx.x) % 32, column = lane % GROUP * 8;
    const bool inside = column < a.D;
    const size_t row = static_cast<size_t>(first + i) * a.H + h, stride = static_cast<size_t>(a.G) * a.D;
    const size_t key0 = static_cast<size_t>(first) * stride + static_cast<size_t>(g) * a.D + column;
    float q[8] = {}, o[8] = {}, k[8] = {}, v[8] = {}, dq[8] = {}, p, ds;
    if (inside) {
        vec_load<8>(q, a.q + row * a.D + column);
        vec_load<8>(o, a.dz + row * a.D + column);
    }
    constexpr int STEP = ROWS_WARPS * (32 / GROUP);
    for (int base = 0; base <= i; base += STEP) { /* the same turns for every lane: shuffles need them all */
        const int j = base + static_cast<int>(threadIdx.x) / GROUP;
        if (j <= i && inside) {
            vec_load<8>(k, a.k + key0 + static_cast<size_t>(j) * stride);
            vec_load<8>(v, a.v + key0 + static_cast<size_t>(j) * stride);
        }
        pair_scores<GROUP>(p, ds, q, o, k, v, a.scale, a.lse[row], a.delta[row]);
        for (int e = 0; e < 8 && j <= i; e++) dq[e] += ds * k[e];
    }
    merge_groups<GROUP>(dq, parts);
    if (static_cast<int>(threadIdx.x) >= GROUP || !inside) return;
    for (int e = 0; e < 8; e++) dq[e] *= a.scale;
    vec_store<8>(a.dq + row * a.D + column, dq);
}

/* grid (keys of the longest sequence, G, S), 128 threads: groups of lanes take (query, head) rows in turn. */
template <int GROUP> __global__ void __launch_bounds__(ROWS_WARPS * 32) attention_backward_kv_rows_kernel(const backward_args a) {
    SHARED(float, parts, [ROWS_WARPS * GROUP * 8]);
    const int s = static_cast<int>(blockIdx.z), g = static_cast<int>(blockIdx.y), j = static_cast<int>(blockIdx.x), group = a.H / a.G;
    const int first = a.start[s], length = a.start[s + 1] - first, rows = (length - j) * group;
    if (j >= length) return;
    const int lane = static_cast<int>(threadIdx.x) % 32, column = lane % GROUP * 8;
    const bool inside = column < a.D;
    const size_t key = (static_cast<size_t>(first + j) * a.G + g) * a.D + column;
    float q[8] = {}, o[8] = {}, k[8] = {}, v[8] = {}, dk[8] = {}, dv[8] = {}, p, ds;
    if (inside) {
        vec_load<8>(k, a.k + key);
        vec_load<8>(v, a.v + key);
    }
    constexpr int STEP = ROWS_WARPS * (32 / GROUP);
    for (int base = 0; base < rows; base += STEP) {
        const int r = base + static_cast<int>(threadIdx.x) / GROUP;
        const bool live = r < rows;
        const size_t row = live ? static_cast<size_t>(first + j + r / group) * a.H + g * group + r % group : 0;
        if (live && inside) {
            vec_load<8>(q, a.q + row * a.D + column);
            vec_load<8>(o, a.dz + row * a.D + column);
        }
        pair_scores<GROUP>(p, ds, q, o, k, v, a.scale, a.lse[row], a.delta[row]);
        for (int e = 0; e < 8 && live; e++) dk[e] += ds * q[e], dv[e] += p * o[e];
    }
    merge_groups<GROUP>(dk, parts);
    merge_groups<GROUP>(dv, parts);
    if (static_cast<int>(threadIdx.x) >= GROUP || !inside) return;
    for (int e = 0; e < 8; e++) dk[e] *= a.scale;
    vec_store<8>(a.dk + key, dk);
    vec_store<8>(a.dv + key, dv);
}

/* ---- mma ---- */

/* The block's own 64 rows (q and dz, or k and v), and two turns of the others. */
template <int D> struct backward_smem {
    __nv_bfloat16 own[2][TILE * D], turn[2][2][TILE * D];
    float lse[2][TILE], delta[2][TILE]; /* of the turn's queries, lse in base 2 */
};

/* p and ds of one accumulator from scores s and dp; keep: the query sees the key. */
__device__ __forceinline__ void element_scores(float &s, float &dp, bool keep, float scale, float lse, float delta) {
    s = keep ? exp2f(fminf(s * scale - lse, 0.0f)) : 0.0f;
    dp = s * (dp - delta);
}

constexpr float LOG2_E = 1.44269504f;

/* grid (query tiles, longest first, H, S), 128 threads: warp w holds queries 16w .. 16w+15 of the tile; keys and values come in
 * tiles of 64, double buffered. */
template <int D> __global__ void __launch_bounds__(128) attention_backward_q_mma_kernel(const backward_args a) {
    DYN_SMEM(backward_smem<D>, sm);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int seq = static_cast<int>(blockIdx.z), h = static_cast<int>(blockIdx.y), g = h / (a.H / a.G);
    const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x), q0 = tile * TILE, first = a.start[seq];
    const int length = a.start[seq + 1] - first, end = min(q0 + TILE, length);
    if (q0 >= length) return;
    const size_t wide = static_cast<size_t>(a.H) * a.D, narrow = static_cast<size_t>(a.G) * a.D;
    const size_t row0 = (static_cast<size_t>(first + q0) * a.H + h) * a.D, key0 = (static_cast<size_t>(first) * a.G + g) * a.D;
    tile_fetch<D>(sm->own[0], a.q + row0, wide, length - q0, a.D);
    tile_fetch<D>(sm->own[1], a.dz + row0, wide, length - q0, a.D);
    tile_fetch<D>(sm->turn[0][0], a.k + key0, narrow, end, a.D);
    tile_fetch<D>(sm->turn[0][1], a.v + key0, narrow, end, a.D);
    ptx::cp_async_commit();
    const int row = q0 + warp * 16 + (lane >> 2);
    float lse[2], delta[2], dq[D / 8][4] = {};
    for (int r = 0; r < 2; r++) {
        const size_t at = static_cast<size_t>(first + row + r * 8) * a.H + h;
        lse[r] = row + r * 8 < length ? a.lse[at] * LOG2_E : INFINITY;
        delta[r] = row + r * 8 < length ? a.delta[at] : 0.0f;
    }
    for (int t = 0; t <= tile; t++) {
        const int next = (t + 1) * TILE;
        if (t < tile) {
            tile_fetch<D>(sm->turn[(t + 1) & 1][0], a.k + key0 + next * narrow, narrow, end - next, a.D);
            tile_fetch<D>(sm->turn[(t + 1) & 1][1], a.v + key0 + next * narrow, narrow, end - next, a.D);
        }
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();
        __syncthreads();
        float s[8][4] = {}, dp[8][4] = {};
        tile_products<D, 8>(s, sm->own[0], warp * 16, sm->turn[t & 1][0], 0);
        tile_products<D, 8>(dp, sm->own[1], warp * 16, sm->turn[t & 1][1], 0);
        const int key = t * TILE + (lane & 3) * 2;
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                element_scores(s[j][e], dp[j][e], key + j * 8 + (e & 1) <= row + (e >> 1) * 8, a.scale * LOG2_E, lse[e >> 1],
                               delta[e >> 1]);
        tile_accumulate<D, 8>(dq, dp, sm->turn[t & 1][0], 0);
        __syncthreads(); /* the next turn's copies overwrite what was read here */
    }
    for (int r = 0; r < 2; r++)
        for (int j = 0; j < D / 8; j++)
            if (row + r * 8 < length && j * 8 < a.D)
                *reinterpret_cast<uint32_t *>(a.dq + row0 + (warp * 16 + (lane >> 2) + r * 8) * wide + j * 8 + (lane & 3) * 2) =
                    pack_bf16(dq[j][2 * r] * a.scale, dq[j][2 * r + 1] * a.scale);
}

/* Fetches queries q0 .. q0+63 of head h: q, dz, lse, delta. */
template <int D> __device__ __forceinline__ void fetch_queries(backward_smem<D> *sm, const backward_args &a, int turn, int first,
                                                               int length, int q0, int h) {
    const size_t wide = static_cast<size_t>(a.H) * a.D, row0 = (static_cast<size_t>(first + q0) * a.H + h) * a.D;
    tile_fetch<D>(sm->turn[turn][0], a.q + row0, wide, length - q0, a.D);
    tile_fetch<D>(sm->turn[turn][1], a.dz + row0, wide, length - q0, a.D);
    const int i = static_cast<int>(threadIdx.x);
    if (i >= TILE) return;
    const size_t at = static_cast<size_t>(first + q0 + i) * a.H + h;
    sm->lse[turn][i] = q0 + i < length ? a.lse[at] * LOG2_E : INFINITY;
    sm->delta[turn][i] = q0 + i < length ? a.delta[at] : 0.0f;
}

/* grid (key tiles, longest first, G, S), 128 threads: warp w holds keys 16w .. 16w+15 of the tile. A turn is 64 queries of one
 * head, worked on PART at a time (registers). Scores are transposed: rows are keys. */
template <int D> __global__ void __launch_bounds__(128) attention_backward_kv_mma_kernel(const backward_args a) {
    DYN_SMEM(backward_smem<D>, sm);
    constexpr int PART = D > 64 ? 16 : 32;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int seq = static_cast<int>(blockIdx.z), g = static_cast<int>(blockIdx.y), group = a.H / a.G;
    const int first = a.start[seq], length = a.start[seq + 1] - first, tile = static_cast<int>(blockIdx.x), key0 = tile * TILE;
    if (key0 >= length) return;
    const int tiles = (length + TILE - 1) / TILE - tile, turns = tiles * group;
    const size_t narrow = static_cast<size_t>(a.G) * a.D, at0 = (static_cast<size_t>(first + key0) * a.G + g) * a.D;
    tile_fetch<D>(sm->own[0], a.k + at0, narrow, length - key0, a.D);
    tile_fetch<D>(sm->own[1], a.v + at0, narrow, length - key0, a.D);
    fetch_queries<D>(sm, a, 0, first, length, key0, g * group);
    ptx::cp_async_commit();
    const int key = key0 + warp * 16 + (lane >> 2);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    for (int t = 0; t < turns; t++) {
        const int now = t & 1, next = t + 1, q0 = (tile + t % tiles) * TILE;
        if (next < turns) fetch_queries<D>(sm, a, next & 1, first, length, (tile + next % tiles) * TILE, g * group + next / tiles);
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();
        __syncthreads();
#pragma unroll 1
        for (int part = 0; part < TILE; part += PART) {
            float s[PART / 8][4] = {}, dp[PART / 8][4] = {};
            tile_products<D, PART / 8>(s, sm->own[0], warp * 16, sm->turn[now][0], part);
            tile_products<D, PART / 8>(dp, sm->own[1], warp * 16, sm->turn[now][1], part);
#pragma unroll
            for (int j = 0; j < PART / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int i = part + j * 8 + (lane & 3) * 2 + (e & 1);
                    element_scores(s[j][e], dp[j][e], key + (e >> 1) * 8 <= q0 + i, a.scale * LOG2_E, sm->lse[now][i], sm->delta[now][i]);
                }
            tile_accumulate<D, PART / 8>(dv, s, sm->turn[now][1], part);
            tile_accumulate<D, PART / 8>(dk, dp, sm->turn[now][0], part);
        }
        __syncthreads(); /* the next turn's copies overwrite what was read here */
    }
    for (int r = 0; r < 2; r++)
        for (int j = 0; j < D / 8; j++) {
            if (key + r * 8 >= length || j * 8 >= a.D) continue;
            const size_t to = at0 + (warp * 16 + (lane >> 2) + r * 8) * narrow + j * 8 + (lane & 3) * 2;
            *reinterpret_cast<uint32_t *>(a.dk + to) = pack_bf16(dk[j][2 * r] * a.scale, dk[j][2 * r + 1] * a.scale);
            *reinterpret_cast<uint32_t *>(a.dv + to) = pack_bf16(dv[j][2 * r], dv[j][2 * r + 1]);
        }
}

/* ---- launchers, table, dispatch ---- */

template <int GROUP> static void launch_rows(struct device *dev, const backward_args &a) {
    LAUNCH((attention_backward_q_rows_kernel<GROUP>), dim3(a.max_q, a.H, a.S), ROWS_WARPS * 32, 0, dev->stream, a);
    LAUNCH((attention_backward_kv_rows_kernel<GROUP>), dim3(a.max_q, a.G, a.S), ROWS_WARPS * 32, 0, dev->stream, a);
}

static void backward_rows(struct device *dev, const backward_args &a) {
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

template <int D> static void launch_mma(struct device *dev, const backward_args &a) {
    const int bytes = static_cast<int>(sizeof(backward_smem<D>));
    const void *const kernels[] = {reinterpret_cast<const void *>(attention_backward_q_mma_kernel<D>),
                                   reinterpret_cast<const void *>(attention_backward_kv_mma_kernel<D>)};
    for (int i = 0; i < 2 && bytes > 48 * 1024; i++)
        CUDA_CHECK(cudaFuncSetAttribute(kernels[i], cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const unsigned tiles = static_cast<unsigned>((a.max_q + TILE - 1) / TILE);
    LAUNCH((attention_backward_q_mma_kernel<D>), dim3(tiles, a.H, a.S), 128, sizeof(backward_smem<D>), dev->stream, a);
    LAUNCH((attention_backward_kv_mma_kernel<D>), dim3(tiles, a.G, a.S), 128, sizeof(backward_smem<D>), dev->stream, a);
}

static void backward_mma(struct device *dev, const backward_args &a) {
    if (a.D <= 16)
        launch_mma<16>(dev, a);
    else if (a.D <= 32)
        launch_mma<32>(dev, a);
    else if (a.D <= 64)
        launch_mma<64>(dev, a);
    else
        launch_mma<128>(dev, a);
}

/* Dispatch takes mma where it fits: backward always comes with whole sequences. */
static const struct {
    const char *name;
    int most_d;
    void (*launch)(struct device *dev, const backward_args &a);
} variants[] = {
    {"rows", 256, backward_rows},
    {"mma", 128, backward_mma},
};

const char *attention_backward_variant(int index) {
    return index >= 0 && index < static_cast<int>(sizeof variants / sizeof *variants) ? variants[index].name : nullptr;
}

void attention_backward(struct device *dev, bf16 *dq, bf16 *dk, bf16 *dv, float *delta, const bf16 *dz, const bf16 *z, const float *lse,
                        const bf16 *q, const bf16 *k, const bf16 *v, const int *start, int S, int max_q, int H, int G, int D, float scale) {
    OP_RANGE();
    CHECK(G > 0 && H % G == 0 && D % 8 == 0 && D <= 256, "H=%d G=%d D=%d", H, G, D);
    CHECK(S <= 65535 && H <= 65535 && vec_aligned(dq, dk, dv, dz) && vec_aligned(z, q, k, v), "S=%d H=%d, or addresses not 16-byte aligned",
          S, H);
    if (S <= 0 || max_q <= 0) return;
    const backward_args a = {dq, dk, dv, delta, dz, z, lse, q, k, v, start, S, max_q, H, G, D, scale};
    const size_t rows = static_cast<size_t>(S) * max_q * H; /* at most */
    LAUNCH(row_products_kernel, static_cast<unsigned>((rows + 7) / 8), 256, 0, dev->stream, delta, dz, z, start, S, H, D);
    int pick = 0;
    for (int i = 0; i < static_cast<int>(sizeof variants / sizeof *variants); i++)
        if (D <= variants[i].most_d && (dev->variant < 0 || i == dev->variant)) pick = i;
    variants[pick].launch(dev, a);
}
