/* edit.h - interventions on chosen rows of a packed tensor, in place. rows [in] (n) i32 on the device, each at most once; other
 * rows are neither read nor written. Sums in real_t, every element rounded once to act. Bitwise repeatable.
 * Sources: directions projected out, heads ablated: papers.md 1.6; steering: 3.5. */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* y[r] -= scale (y[r].u) u.   y [acc] (.., C) act   u [in] (C) real.  Cost: reads each row twice, the second time from cache. */
void OP(edit_project_out)(struct device *dev, act_t *y, const int *rows, const real_t *u, int n, int C, real_t scale);
/* y[r] += v.   y [acc] (.., C) act   v [in] (C) real */
void OP(edit_add)(struct device *dev, act_t *y, const int *rows, const real_t *v, int n, int C);
/* y[r] = x[i], r the i-th chosen row.   y [out] (.., C) act   x [in] (n, C) real */
void OP(edit_replace)(struct device *dev, act_t *y, const int *rows, const real_t *x, int n, int C);
/* y[r][h] = value[h], or zeros, for the heads h listed.
 *   y [out] (.., H, D) act   heads [in] (n_heads) i32 on the device   value [in] (H, D) real or NULL for zero */
void OP(edit_heads)(struct device *dev, act_t *y, const int *rows, const int *heads, const real_t *value, int n, int n_heads, int H, int D);
/* y[r] += sum_j c_j D[j], where z_j is the value of feature[j] in the code of row r (0 when it is not listed) and
 * c_j = clamp ? value - z_j : (value - 1) z_j.
 *   y [acc] (.., C) act   indices, values [in] (n, K): codes of the chosen rows, in their order   feature [in] (F) i32
 *   D [in] (F, C) real: the features' decoder rows   c [tmp] (n, F) real */
void OP(edit_features)(struct device *dev, act_t *y, const int *rows, real_t *c, const int *indices, const real_t *values,
                       const int *feature, const real_t *D, int n, int C, int K, int F, real_t value, bool clamp);

EXTERN_C_END
