/* sae_update.cu - see sae_ops.h. By column slices, so that L2 keeps what is gathered: gradient of a feature's columns, then Adam
 * (Kingma & Ba 2015, as torch.optim.Adam computes it) and bf16 copy; unit norm after all slices. With remove_parallel, or where
 * addresses forbid: one block per feature, the gradient's row in shared memory. Sums have a fixed order: bitwise repeatable. */
#include "kernels/columns.cuh"
#include "kernels/sae_ops.h"

namespace {
constexpr int UPDATE_THREADS = 256, SLICE_THREADS = 128;
constexpr int GATHER = 4;            /* rows of g and x that a lane asks for at once */
constexpr int WARP_COLUMNS = 128;    /* of a warp in the slice kernel: four a lane */
constexpr int SLICE_BYTES = 6 << 20; /* of g and x that shall stay in L2 */

struct adam_step {
    float beta1, beta2, rest1, rest2, eps, rate, root_scale; /* rate = lr / (1 - beta1^step), root_scale = 1 / sqrt(1 - beta2^step) */
    bool unit_norm, remove_parallel;
};

adam_step adam_begin(const struct sae_adam *a) {
    CHECK(a->step >= 1, "step=%ld", a->step);
    const double correction1 = 1 - pow(a->beta1, static_cast<double>(a->step)),
                 correction2 = 1 - pow(a->beta2, static_cast<double>(a->step));
    return {static_cast<float>(a->beta1),
            static_cast<float>(a->beta2),
            static_cast<float>(1 - a->beta1),
            static_cast<float>(1 - a->beta2),
            static_cast<float>(a->eps),
            static_cast<float>(a->lr / correction1),
            static_cast<float>(1 / sqrt(correction2)),
            a->unit_norm_decoder,
            a->remove_parallel};
}

__device__ __forceinline__ float adam(float p, float &m, float &v, float g, const adam_step &a) {
    m = a.beta1 * m + a.rest1 * g;
    v = a.beta2 * v + a.rest2 * g * g;
    return p - a.rate * m / (sqrtf(v) * a.root_scale + a.eps);
}

struct update_args {
    float *E, *D, *b_e, *m_E, *v_E, *m_D, *v_D, *m_be, *v_be;
    __nv_bfloat16 *E_low;
    const int *offsets, *entries;
    const float *values, *dvalues, *g;
    const __nv_bfloat16 *x;
    int d, K;
};

/* W columns of sum over the feature's entries of weight * row, in the order of the entries. */
template <int W, class T> __device__ __forceinline__ void gather(float (&sum)[W], const int *entries, int from, int to, const float *weight,
                                                                 const T *rows, int c, int d, int K) {
    float r[W];
    for (int i = 0; i < W; i++) sum[i] = 0;
    for (int e = from; e < to; e++) {
        const int slot = entries[e];
        const float w = weight[slot];
        vec_load<W>(r, rows + static_cast<size_t>(slot / K) * d + c);
        for (int i = 0; i < W; i++) sum[i] += w * r[i];
    }
}

/* Adam on W elements of a row that lie at p, m, v; returns their sum of squares. */
template <int W>
__device__ __forceinline__ float adam_columns(float *p, float *m, float *v, const float (&g)[W], float (&out)[W], const adam_step &a) {
    float mv[W], vv[W], square = 0;
    vec_load<W>(out, p);
    vec_load<W>(mv, m);
    vec_load<W>(vv, v);
    for (int i = 0; i < W; i++) {
        out[i] = adam(out[i], mv[i], vv[i], g[i], a);
        square += out[i] * out[i];
    }
    vec_store<W>(p, out);
    vec_store<W>(m, mv);
    vec_store<W>(v, vv);
    return square;
}

/* Grid: features. Dynamic shared memory: d floats, the decoder row's gradient, used with remove_parallel only. */
template <int W> __global__ void __launch_bounds__(UPDATE_THREADS) sae_update_block_kernel(const update_args u, const adam_step a) {
    DYN_SMEM(float, grad);
    SHARED(float, part, [32]);
    const int f = static_cast<int>(blockIdx.x), first = static_cast<int>(threadIdx.x) * W, d = u.d, K = u.K, from = u.offsets[f],
              to = u.offsets[f + 1];
    const size_t at = static_cast<size_t>(f) * d;
    float sum[W], p[W], share = 0, square = 0;
    if (a.remove_parallel) {
        float along = 0;
        for (int c = first; c < d; c += UPDATE_THREADS * W) {
            gather<W>(sum, u.entries, from, to, u.values, u.g, c, d, K);
            vec_load<W>(p, u.D + at + c);
            for (int i = 0; i < W; i++) {
                grad[c + i] = sum[i];
                along += sum[i] * p[i];
                square += p[i] * p[i];
            }
        }
        along = block_sum(along, part);
        square = block_sum(square, part);
        share = square > 0 ? along / square : 0;
        square = 0;
    }
    for (int c = first; c < d; c += UPDATE_THREADS * W) {
        if (a.remove_parallel) {
            vec_load<W>(p, u.D + at + c);
            for (int i = 0; i < W; i++) sum[i] = grad[c + i] - share * p[i];
        } else {
            gather<W>(sum, u.entries, from, to, u.values, u.g, c, d, K);
        }
        square += adam_columns<W>(u.D + at + c, u.m_D + at + c, u.v_D + at + c, sum, p, a);
    }
    square = block_sum(square, part);
    if (a.unit_norm && square > 0) {
        const float inverse = 1.0f / sqrtf(square);
        for (int c = first; c < d; c += UPDATE_THREADS * W) {
            vec_load<W>(p, u.D + at + c);
            for (int i = 0; i < W; i++) p[i] *= inverse;
            vec_store<W>(u.D + at + c, p);
        }
    }
    for (int c = first; c < d; c += UPDATE_THREADS * W) {
        gather<W>(sum, u.entries, from, to, u.dvalues, u.x, c, d, K);
        adam_columns<W>(u.E + at + c, u.m_E + at + c, u.v_E + at + c, sum, p, a);
        if (u.E_low) vec_store<W>(u.E_low + at + c, p);
    }
    float bias = 0;
    for (int e = from + static_cast<int>(threadIdx.x); e < to; e += UPDATE_THREADS) bias += u.dvalues[u.entries[e]];
    bias = block_sum(bias, part);
    if (threadIdx.x == 0) u.b_e[f] = adam(u.b_e[f], u.m_be[f], u.v_be[f], bias, a);
}

/* What streams through once, so that L2 keeps the rows that are gathered. */
__device__ __forceinline__ void stream_load(float (&f)[4], const float *p) {
    const float4 v = __ldcs(reinterpret_cast<const float4 *>(p));
    f[0] = v.x, f[1] = v.y, f[2] = v.z, f[3] = v.w;
}
__device__ __forceinline__ void stream_store(float *p, const float (&f)[4]) {
    __stcs(reinterpret_cast<float4 *>(p), make_float4(f[0], f[1], f[2], f[3]));
}

__device__ __forceinline__ void adam_stream(float *p, float *m, float *v, const float (&g)[4], float (&out)[4], const adam_step &a) {
    float mv[4], vv[4];
    stream_load(out, p);
    stream_load(mv, m);
    stream_load(vv, v);
    for (int i = 0; i < 4; i++) out[i] = adam(out[i], mv[i], vv[i], g[i], a);
    stream_store(p, out);
    stream_store(m, mv);
    stream_store(v, vv);
}

/* Slice by slice of the columns (grid y), so that g's and x's slices stay in L2, where all features gather from them. A warp
 * takes WARP_COLUMNS columns of a feature; `warps` of them make a slice. No norm here: that needs the whole row. */
__global__ void __launch_bounds__(SLICE_THREADS) sae_update_slice_kernel(const update_args u, const adam_step a, int M, int warps) {
    const int lane = static_cast<int>(threadIdx.x) % 32, d = u.d;
    const long task = static_cast<long>(blockIdx.x) * (SLICE_THREADS / 32) + static_cast<int>(threadIdx.x) / 32;
    const int f = static_cast<int>(task / warps),
              c = (static_cast<int>(blockIdx.y) * warps + static_cast<int>(task % warps)) * WARP_COLUMNS + 4 * lane;
    if (f >= M || c - 4 * lane >= d) return;
    const bool inside = c < d;
    const unsigned column = inside ? static_cast<unsigned>(c) / 4 : 0; /* in fours, as rows below: enough for 64 GiB */
    const int from = u.offsets[f], to = u.offsets[f + 1];
    float dD[4] = {}, dE[4] = {}, bias = 0;
    for (int base = from; base < to; base += 32) {
        const bool mine = base + lane < to; /* lanes past the end repeat the last entry with weight 0 */
        const int slot = u.entries[mine ? base + lane : to - 1], count = to - base < 32 ? to - base : 32;
        const unsigned row = static_cast<unsigned>(slot / u.K) * static_cast<unsigned>(d / 4);
        const float value = mine ? u.values[slot] : 0.0f, dvalue = mine ? u.dvalues[slot] : 0.0f;
        bias += dvalue;
        for (int e = 0; e < count; e += GATHER) {
            float4 g[GATHER];
            uint2 x[GATHER];
#pragma unroll
            for (int i = 0; i < GATHER; i++) {
                const unsigned at = __shfl_sync(ALL_LANES, row, e + i) + column;
                g[i] = reinterpret_cast<const float4 *>(u.g)[at];
                x[i] = reinterpret_cast<const uint2 *>(u.x)[at];
            }
#pragma unroll
            for (int i = 0; i < GATHER; i++) {
                const float v = __shfl_sync(ALL_LANES, value, e + i), dv = __shfl_sync(ALL_LANES, dvalue, e + i);
                dD[0] += v * g[i].x, dD[1] += v * g[i].y, dD[2] += v * g[i].z, dD[3] += v * g[i].w;
                dE[0] += dv * __uint_as_float(x[i].x << 16), dE[1] += dv * __uint_as_float(x[i].x & 0xffff0000u);
                dE[2] += dv * __uint_as_float(x[i].y << 16), dE[3] += dv * __uint_as_float(x[i].y & 0xffff0000u);
            }
        }
    }
    if (inside) {
        const size_t at = static_cast<size_t>(f) * d + c;
        float out[4];
        adam_stream(u.D + at, u.m_D + at, u.v_D + at, dD, out, a);
        adam_stream(u.E + at, u.m_E + at, u.v_E + at, dE, out, a);
        if (u.E_low) __stcs(reinterpret_cast<uint2 *>(u.E_low + at), make_uint2(pack_bf16(out[0], out[1]), pack_bf16(out[2], out[3])));
    }
    bias = warp_sum(bias);
    if (c == 0) u.b_e[f] = adam(u.b_e[f], u.m_be[f], u.v_be[f], bias, a);
}

/* Grid: rows. Each row to unit length; rows of zeros stay. */
__global__ void __launch_bounds__(UPDATE_THREADS) sae_unit_rows_kernel(float *__restrict__ rows, int d) {
    SHARED(float, part, [32]);
    float *row = rows + static_cast<size_t>(blockIdx.x) * d, v[4], square = 0;
    const int first = 4 * static_cast<int>(threadIdx.x);
#pragma unroll 4
    for (int c = first; c < d; c += 4 * UPDATE_THREADS) {
        const float4 w = *reinterpret_cast<const float4 *>(row + c);
        square += w.x * w.x + w.y * w.y + w.z * w.z + w.w * w.w;
    }
    square = block_sum(square, part);
    if (!(square > 0)) return;
    const float inverse = 1.0f / sqrtf(square);
    for (int c = first; c < d; c += 4 * UPDATE_THREADS) {
        stream_load(v, row + c);
        for (int i = 0; i < 4; i++) v[i] *= inverse;
        stream_store(row + c, v);
    }
}

void update_slices(struct device *dev, const update_args &u, const adam_step &a, int N, int M) {
    const int all = (u.d + WARP_COLUMNS - 1) / WARP_COLUMNS, columns_in_l2 = SLICE_BYTES / 6 / (N > 0 ? N : 1),
              fit = columns_in_l2 / WARP_COLUMNS,
              warps = fit < 1     ? 1
                      : fit < all ? fit
                                  : all;
    const long tasks = static_cast<long>(M) * warps, blocks = (tasks + SLICE_THREADS / 32 - 1) / (SLICE_THREADS / 32);
    LAUNCH((sae_update_slice_kernel), dim3(static_cast<unsigned>(blocks), static_cast<unsigned>((all + warps - 1) / warps)), SLICE_THREADS,
           0, dev->stream, u, a, M, warps);
    if (a.unit_norm) LAUNCH((sae_unit_rows_kernel), static_cast<unsigned>(M), UPDATE_THREADS, 0, dev->stream, u.D, u.d);
}

template <int W> __global__ void __launch_bounds__(COLUMN_THREADS)
    sae_update_bias_column_kernel(float *__restrict__ b_d, float *__restrict__ m, float *__restrict__ v, const float *__restrict__ g,
                                  const adam_step a, int N, int d) {
    SHARED(float, total, [COLUMN_THREADS / 32][COLUMN_BLOCK]);
    const int c = static_cast<int>(blockIdx.x) * COLUMN_BLOCK + static_cast<int>(threadIdx.x);
    const float none[W] = {}, sum = column_sum<W, false>(g, none, N, d, total);
    if (threadIdx.x < COLUMN_BLOCK && c < d) b_d[c] = adam(b_d[c], m[c], v[c], sum, a);
}
} // namespace

void sae_update(struct device *dev, float *E, float *D, float *b_e, float *m_E, float *v_E, float *m_D, float *v_D, float *m_be,
                float *v_be, bf16 *E_low, const int *offsets, const int *entries, const float *values, const float *dvalues, const float *g,
                const bf16 *x, const struct sae_adam *adam, int N, int d, int M, int K) {
    if (M <= 0) return;
    const adam_step a = adam_begin(adam);
    const update_args u = {E, D, b_e, m_E, v_E, m_D, v_D, m_be, v_be, E_low, offsets, entries, values, dvalues, g, x, d, K};
    const bool aligned = vec_aligned(E, D, m_E, v_E) && vec_aligned(m_D, v_D, g, x) && vec_aligned(E_low);
    if (aligned && d % 4 == 0 && !a.remove_parallel) { /* which needs the row of the gradient before it is used */
        update_slices(dev, u, a, N, M);
        return;
    }
    const bool wide = d % 8 == 0 && aligned;
    const auto kernel = wide ? sae_update_block_kernel<8> : sae_update_block_kernel<1>;
    const size_t bytes = a.remove_parallel ? static_cast<size_t>(d) * sizeof(float) : 0;
    allow_shared(kernel, bytes);
    LAUNCH((kernel), static_cast<unsigned>(M), UPDATE_THREADS, bytes, dev->stream, u, a);
}

void sae_update_bias(struct device *dev, float *b_d, float *m_bd, float *v_bd, const float *g, const struct sae_adam *adam, int N, int d) {
    const auto kernel = d % 8 == 0 && vec_aligned(g) ? sae_update_bias_column_kernel<8> : sae_update_bias_column_kernel<1>;
    LAUNCH((kernel), column_blocks(d), COLUMN_THREADS, 0, dev->stream, b_d, m_bd, v_bd, g, adam_begin(adam), N, d);
}
