/* rope.h - split of the fused QKV product and rotary position embedding in Hugging Face's layout (pairs i, i + D/2). */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* q, k, v from one fused product, q and k rotated:
 *   for i < D/2, c = cosine[pos][i], s = sine[pos][i]:  y[i] = x[i]*c - x[i+D/2]*s,  y[i+D/2] = x[i+D/2]*c + x[i]*s
 *   q [out] (N, H, D) act    k, v [out] (N, G, D) act    qkv [in] (N, (H+2G)*D) act: all q heads, all k heads, all v heads
 *   position [in] (N) i32    cosine, sine [in] (positions, D/2) f32; both NULL: split only (CLIP).  Needs D % 2 == 0.
 * Cost: reads and writes N*(H+2G)*D elements; memory bound. */
void OP(qkv_split_rope)(struct device *dev, act_t *q, act_t *k, act_t *v, const act_t *qkv, const int *position, const real_t *cosine,
                        const real_t *sine, int N, int H, int G, int D);

/* Its backward: dq and dk rotated back, all three laid side by side.
 *   dx[i] = dy[i]*c + dy[i+D/2]*s,  dx[i+D/2] = dy[i+D/2]*c - dy[i]*s
 *   dqkv [out] (N, (H+2G)*D) act    dq [in] (N, H, D) act    dk, dv [in] (N, G, D) act    the rest as above, no NULL */
void OP(qkv_split_rope_backward)(struct device *dev, act_t *dqkv, const act_t *dq, const act_t *dk, const act_t *dv, const int *position,
                                 const real_t *cosine, const real_t *sine, int N, int H, int G, int D);

EXTERN_C_END
