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

EXTERN_C_END
