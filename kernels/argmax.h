/* argmax.h */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* index[n] = the lowest i with x[n][i] maximal; NaN counts as the largest, as in torch.argmax.
 *   index [out] (N) i32    x [in] (N, V) f32 */
void OP(argmax_rows)(struct device *dev, int *index, const real_t *x, int N, int V);

EXTERN_C_END
