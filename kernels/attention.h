/* attention.h - softmax attention over packed sequences with grouped heads. */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* z[n,h] = sum_j softmax_j(scale * q[n,h].k[j,g]) v[j,g],  g = h / (H/G),  j over the keys of n's sequence, causal or all.
 * Sequence s has queries q_start[s] .. q_start[s+1]-1 and keys k_start[s] .. k_start[s]+k_length[s]-1; causal: query i of
 * Lq sees keys j <= i + (k_length - Lq), so one call serves prefill (Lq == k_length) and decoding from a cache (Lq == 1).
 *   z [out] (Nq, H, D) act    lse [out] (Nq, H) f32, log of the softmax denominator, or NULL
 *   q [in] (Nq, H, D) act    k, v [in] (Nk, G, D) act    q_start [in] (S+1) i32, k_start, k_length [in] (S) i32, on the device
 * max_q: the longest query run of any sequence.  Needs H % G == 0, D % 8 == 0, D <= 256, Lq <= k_length.
 * Cost: 4*D flops per (query, key, head); O(1) memory per query. Softmax and sums in f32. Bitwise repeatable. */
void OP(attention_forward)(struct device *dev, act_t *z, real_t *lse, const act_t *q, const act_t *k, const act_t *v, const int *q_start,
                           const int *k_start, const int *k_length, int S, int max_q, int H, int G, int D, real_t scale, bool causal);

/* Its backward where every sequence's keys are its own rows, start[s] .. start[s+1]-1, causal; probabilities formed again:
 *   p = exp(scale * q[n,h].k[j,g] - lse[n,h]),  ds = p * (dz[n,h].v[j,g] - dz[n,h].z[n,h])
 *   dq[n,h] = scale sum_j ds k[j,g]    dk[j,g] = scale sum_{n,h} ds q[n,h]    dv[j,g] = sum_{n,h} p dz[n,h]
 *   dq [out] (N, H, D) act    dk, dv [out] (N, G, D) act    delta [tmp] (N, H) f32
 *   dz, z, q [in] (N, H, D) act    lse [in] (N, H) f32, the forward's    k, v [in] (N, G, D) act    start [in] (S+1) i32, on the device
 * Cost: 10*D flops per (query, key, head) on the cpu, 14*D on cuda, where dq and dk, dv are two passes so that no sum needs
 * atomics; O(1) memory per row. Sums in f32. Bitwise repeatable. */
void OP(attention_backward)(struct device *dev, act_t *dq, act_t *dk, act_t *dv, real_t *delta, const act_t *dz, const act_t *z,
                            const real_t *lse, const act_t *q, const act_t *k, const act_t *v, const int *start, int S, int max_q, int H,
                            int G, int D, real_t scale);

EXTERN_C_END
