/* sae_update.cu - see sae_ops.h. One block per feature: gradient rows in shared memory, then Adam (Kingma & Ba 2015, as
 * torch.optim.Adam computes it), unit norm and bf16 copy. A thread owns its columns throughout; the only sums across
 * threads are over a row, in a fixed order. */
#include "kernels/vec.cuh"
#include "kernels/sae_ops.h"

namespace {
constexpr int UPDATE_THREADS = 256, COLUMNS = 32, LANES = 32;

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

/* A block takes 32 channels; warp l adds rows l, l + 32, ..., then lane by lane. */
__global__ void __launch_bounds__(COLUMNS *LANES)
    sae_update_bias_column_kernel(float *__restrict__ b_d, float *__restrict__ m, float *__restrict__ v, const float *__restrict__ g,
                                  const adam_step a, int N, int d) {
    SHARED(float, part, [LANES][COLUMNS + 1]);
    const int column = static_cast<int>(threadIdx.x) % COLUMNS, lane = static_cast<int>(threadIdx.x) / COLUMNS,
              c = static_cast<int>(blockIdx.x) * COLUMNS + column;
    float sum = 0;
    for (int n = lane; n < N && c < d; n += LANES) sum += g[static_cast<size_t>(n) * d + c];
    part[lane][column] = sum;
    __syncthreads();
    if (lane != 0 || c >= d) return;
    sum = 0;
    for (int l = 0; l < LANES; l++) sum += part[l][column];
    b_d[c] = adam(b_d[c], m[c], v[c], sum, a);
}
} // namespace

void sae_update(struct device *dev, float *E, float *D, float *b_e, float *m_E, float *v_E, float *m_D, float *v_D, float *m_be,
                float *v_be, bf16 *E_low, const int *offsets, const int *entries, const float *values, const float *dvalues, const float *g,
                const bf16 *x, const struct sae_adam *adam, int N, int d, int M, int K) {
    (void)N;
    if (M <= 0) return;
    const adam_step a = adam_begin(adam);
    const update_args u = {E, D, b_e, m_E, v_E, m_D, v_D, m_be, v_be, E_low, offsets, entries, values, dvalues, g, x, d, K};
    const bool wide = d % 8 == 0 && vec_aligned(E, D, m_E, v_E) && vec_aligned(m_D, v_D, g, x) && vec_aligned(E_low);
    const auto kernel = wide ? sae_update_block_kernel<8> : sae_update_block_kernel<1>;
    const size_t bytes = a.remove_parallel ? static_cast<size_t>(d) * sizeof(float) : 0;
    if (bytes > 48 * 1024)
        CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
    LAUNCH((kernel), static_cast<unsigned>(M), UPDATE_THREADS, bytes, dev->stream, u, a);
}

void sae_update_bias(struct device *dev, float *b_d, float *m_bd, float *v_bd, const float *g, const struct sae_adam *adam, int N, int d) {
    LAUNCH((sae_update_bias_column_kernel), static_cast<unsigned>((d + COLUMNS - 1) / COLUMNS), COLUMNS * LANES, 0, dev->stream, b_d, m_bd,
           v_bd, g, adam_begin(adam), N, d);
}
