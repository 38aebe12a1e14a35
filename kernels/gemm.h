/* gemm.h - the plain matrix products: oneDNN (cpu), cuBLASLt (cuda), host loops with its rounding (sim). */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* y = x w^T + bias, sums in f32, rounded once to act (cuBLASLt rounds before the bias too where I % 8 != 0: seen on an H100).
 *   y [out] (N, O) act    x [in] (N, I) act    w [in] (O, I) act, row-major as torch.nn.Linear stores it    bias [in] (O) act or NULL
 * Cost: 2*N*I*O flops. */
void OP(linear_forward)(struct device *dev, act_t *y, const act_t *x, const act_t *w, const act_t *bias, int N, int I, int O);

/* The same with the result left in f32 (logits). */
void OP(linear_forward_real)(struct device *dev, real_t *y, const act_t *x, const act_t *w, int N, int I, int O);

/* Backward of y = x w^T.
 *   dx = dy w        dx [out] (N, I) act     dy [in] (N, O) act    w [in] (O, I) act
 *   dw += dy^T x     dw [acc] (O, I) f32     dy [in] (N, O) act    x [in] (N, I) act
 * Sums in f32; dx rounded once to act. Cost: 2*N*I*O flops each. Bitwise repeatable. */
void OP(linear_backward_input)(struct device *dev, act_t *dx, const act_t *dy, const act_t *w, int N, int I, int O);
void OP(linear_backward_weight)(struct device *dev, real_t *dw, const act_t *dy, const act_t *x, int N, int I, int O);

EXTERN_C_END
