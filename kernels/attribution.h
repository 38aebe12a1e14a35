/* attribution.h - what attribution patching needs beside the model's own ops. Source: Nanda 2023; papers.md 1.5, 4.3. */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* score[n,h] += factor * sum_d (a[n,h,d] - b[n,h,d]) * g[n,h,d].    score [acc] (N, H) f32    a, b, g [in] (N, H, D) act
 * Sums in f32. Cost: reads 3 N*H*D elements; memory bound. Bitwise repeatable. */
void OP(head_scores)(struct device *dev, real_t *score, const act_t *a, const act_t *b, const act_t *g, int N, int H, int D, real_t factor);
/* z[n,h] = from[n,h] for one head h; the other heads stay.    z [out] (N, H, D) act    from [in] (N, H, D) act */
void OP(head_copy)(struct device *dev, act_t *z, const act_t *from, int h, int N, int H, int D);
/* y[n] = x[n] . w.    y [out] (N) f32    x [in] (N, C) act    w [in] (C) f32.    Sums in f32. Bitwise repeatable. */
void OP(row_dots)(struct device *dev, real_t *y, const act_t *x, const real_t *w, int N, int C);

EXTERN_C_END
