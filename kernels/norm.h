/* norm.h - RMSNorm and LayerNorm, rows independent, statistics in f32. */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* y = act(x * rstd) * w, rstd = 1/sqrt(mean(x^2) + eps). The product is rounded to act before the weight, as LlamaRMSNorm does.
 *   y [out] (N, C) act    rstd [out] (N) f32 or NULL    x [in] (N, C) act    w [in] (C) act, NULL for 1 (hook_normalized)
 * y == x allowed. Cost: reads N*C + C, writes N*C elements; memory bound. Bitwise repeatable. */
void OP(rmsnorm_forward)(struct device *dev, act_t *y, real_t *rstd, const act_t *x, const act_t *w, int N, int C, real_t eps);

/* y = (x - mean) * rstd * w + b, rstd = 1/sqrt(var + eps), var biased (divided by C), as torch.nn.LayerNorm.
 *   y [out] (N, C) act    mean, rstd [out] (N) f32 or NULL    x [in] (N, C) act    w, b [in] (C) act.  y == x allowed. */
void OP(layernorm_forward)(struct device *dev, act_t *y, real_t *mean, real_t *rstd, const act_t *x, const act_t *w, const act_t *b, int N,
                           int C, real_t eps);

/* Backward of rmsnorm_forward as the exact formula, g = dy * w:   dx += rstd * (g - x * rstd^2 * mean(g * x))
 *   dx [acc] (N, C) act    dy, x [in] (N, C) act    rstd [in] (N) f32, the forward's    w [in] (C) act
 * The sum is formed in f32 and rounded once to act. Cost: reads 3 N*C, writes N*C elements. Bitwise repeatable. */
void OP(rmsnorm_backward)(struct device *dev, act_t *dx, const act_t *dy, const act_t *x, const real_t *rstd, const act_t *w, int N, int C);
/* dw += sum_n dy * x * rstd.    dw [acc] (C) f32    the rest as above. Rows are added in a fixed order. */
void OP(rmsnorm_backward_weight)(struct device *dev, real_t *dw, const act_t *dy, const act_t *x, const real_t *rstd, int N, int C);

EXTERN_C_END
