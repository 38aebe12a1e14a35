/* sae_ops.h - sparse autoencoder: encode, decode, loss, gradient, optimizer, statistics (contracts in formulas).
 *
 * Dictionary in memory, feature-major: E (M, d) encoder rows, D (M, d) decoder rows, b_e (M), b_d (d), all real_t.
 * A sparse code of N rows is indices (N, K) i32 ascending within a row and values (N, K) real_t; unused slots hold
 * index -1, value 0. No dense (N, M) tensor is ever an output; gradients of E and D are never stored.
 * Sources: Gao et al. 2024 (TopK); Kingma & Ba 2015 (Adam); papers.md 1.2 for the loss. */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* h = E x + b_e, f32 sums; the K features of largest (h * rank_scale, lower index first) are kept, value = max(h, 0).
 *   indices [out] (N, K)  values [out] (N, K)   x [in] (N, d) act   E [in] (M, d) real   E_low [in] (M, d) bf16 or NULL
 *   rank_scale [in] (M) real or NULL for 1   scratch [tmp] sae_encode_scratch(...) bytes on the device
 * E_low given: the product takes bf16(x) and E_low (f32 sums); NULL: real x real. A row's kept slots whose value is 0
 * (fewer than K positive) stay listed: selection is over pre-activations. Exact; ties to the lower index; NaN ranks first.
 * Cost: 2*N*M*d flops; reads E once per block of rows. */
size_t OP(sae_encode_scratch)(int N, int d, int M, int K);
void OP(sae_encode_topk)(struct device *dev, int *indices, real_t *values, const act_t *x, const real_t *E, const bf16 *E_low,
                         const real_t *b_e, const real_t *rank_scale, int N, int d, int M, int K, void *scratch);

/* value = h if h > threshold[f] else inactive (JumpReLU; threshold 0 is ReLU), strict >.
 *   counts [out] (N): how many are active, may exceed K: then only the K lowest feature indices are listed and the caller retries larger.
 */
void OP(sae_encode_jumprelu)(struct device *dev, int *indices, real_t *values, int *counts, const act_t *x, const real_t *E,
                             const bf16 *E_low, const real_t *b_e, const real_t *threshold, int N, int d, int M, int K, void *scratch);

/* x_hat[n] = b_d + sum_k values[n,k] D[indices[n,k]].    x_hat [out] (N, d) real */
void OP(sae_decode)(struct device *dev, real_t *x_hat, const int *indices, const real_t *values, const real_t *D, const real_t *b_d, int N,
                    int d, int K);

/* Batch moments: mean (d) = sum_n x / N;  channel_variance (d) = sum_n (x - mean)^2;  variance_sum (1) = its sum over channels.
 * Two passes, so massive channels lose nothing. */
void OP(sae_moments)(struct device *dev, real_t *mean, real_t *channel_variance, real_t *variance_sum, const act_t *x, int N, int d);

/* Decode, FVU loss and gradient of the codes in one pass over the decoder rows:
 *   r = x_hat - x;  error_sum = sum_n |r|^2;  loss = error_sum / (variance_sum + 1e-8);  g = 2 r / (variance_sum + 1e-8)
 *   dvalues[n,k] = values > 0 ? g[n].D[indices[n,k]] : 0     (gradient through relu and the fixed selection)
 *   g [out] (N, d) real   dvalues [out] (N, K) real   error_sum [out] (1) real, summed over rows in a fixed order   row_error [tmp] (N)
 * real */
void OP(sae_decode_backward)(struct device *dev, real_t *g, real_t *dvalues, real_t *error_sum, real_t *row_error, const act_t *x,
                             const int *indices, const real_t *values, const real_t *D, const real_t *b_d, const real_t *variance_sum,
                             int N, int d, int K);

/* Feature-major view of a code: entries[offsets[f] .. offsets[f+1]) are the slots n*K+k with indices[n,k] == f, ascending (stable).
 *   offsets [out] (M+1) i32   entries [out] (N*K) i32   scratch [tmp] sae_csc_scratch(...) bytes */
size_t OP(sae_csc_scratch)(int N, int M, int K);
void OP(sae_csc)(struct device *dev, int *offsets, int *entries, const int *indices, int N, int M, int K, void *scratch);

/* Everything of one dictionary that training changes; device pointers, borrowed. m, v: Adam's moments. */
#ifndef KERNELS_SAE_OPS_STRUCTS
#define KERNELS_SAE_OPS_STRUCTS
struct sae_adam {
    double lr, beta1, beta2, eps; /* 2e-4, 0.9, 0.999, 1e-8 */
    long step;                    /* 1 for the first update: bias correction */
    bool unit_norm_decoder;       /* decoder rows set to unit L2 norm after the update */
    bool remove_parallel;         /* (g.D/D.D) D taken from a decoder row's gradient first */
};
#endif

/* Gradient, Adam, unit norm and bf16 copy of every feature f:
 *   dD[f] = sum over entries of value * g[n];  dE[f] = sum of dvalue * x[n];  db_e[f] = sum of dvalue
 *   p -= lr * m^ / (sqrt(v^) + eps), m^ = m/(1-beta1^step), v^ = v/(1-beta2^step), every row each step (dense Adam, torch's)
 * All pointers (M, d) real except b_e, m_be, v_be (M); E_low (M, d) bf16 [out] or NULL. Bitwise repeatable. */
void OP(sae_update)(struct device *dev, real_t *E, real_t *D, real_t *b_e, real_t *m_E, real_t *v_E, real_t *m_D, real_t *v_D, real_t *m_be,
                    real_t *v_be, bf16 *E_low, const int *offsets, const int *entries, const real_t *values, const real_t *dvalues,
                    const real_t *g, const act_t *x, const struct sae_adam *adam, int N, int d, int M, int K);

/* db_d = sum_n g[n], then Adam on b_d (d). */
void OP(sae_update_bias)(struct device *dev, real_t *b_d, real_t *m_bd, real_t *v_bd, const real_t *g, const struct sae_adam *adam, int N,
                         int d);

/* Statistics by token group, accumulated in integers and double; entries as from sae_csc. Only values > 0 count.
 *   energy [acc] (groups, M) f64: sum of z^2    fired [acc] (groups, M) i64: tokens with z > 0    group [in] (N) u8 < groups; 255: ignored
 * Summed per feature in entry order: bitwise repeatable. */
void OP(sae_feature_stats)(struct device *dev, double *energy, int64_t *fired, const int *offsets, const int *entries, const real_t *values,
                           const uint8_t *group, int groups, int N, int M, int K);

/* Per-row sums for streamed FVU: row_error[n] = |x_hat - x|^2 with x_hat as sae_decode gives it; nothing else is written. */
void OP(sae_row_error)(struct device *dev, real_t *row_error, const act_t *x, const int *indices, const real_t *values, const real_t *D,
                       const real_t *b_d, int N, int d, int K);

/* Rows (M) cosine and norms: cosine[f] = a[f].b[f] / (|a[f]| |b[f]|), 0 when a norm is 0.   a, b [in] (M, d) real */
void OP(row_cosine)(struct device *dev, real_t *cosine, const real_t *a, const real_t *b, int M, int d);

EXTERN_C_END
