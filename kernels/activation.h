/* activation.h - elementwise nonlinearities and the residual add. All memory bound. */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* y = silu(gate) * up, silu(a) = a / (1 + exp(-a)).   y [out] (N, F) act   gate_up [in] (N, 2F) act: gate columns, then up columns */
void OP(swiglu_forward)(struct device *dev, act_t *y, const act_t *gate_up, int N, int F);
/* With s = 1 / (1 + exp(-gate)):  dgate = dy * up * s * (1 + gate * (1 - s)),  dup = dy * gate * s.
 *   dgate_up [out] (N, 2F) act    dy [in] (N, F) act    gate_up [in] (N, 2F) act, the forward's */
void OP(swiglu_backward)(struct device *dev, act_t *dgate_up, const act_t *dy, const act_t *gate_up, int N, int F);
/* y = x / (1 + exp(-1.702 x)) (CLIP's quick_gelu).  y == x allowed */
void OP(quick_gelu_forward)(struct device *dev, act_t *y, const act_t *x, size_t n);
/* y = x * (1 + erf(x / sqrt 2)) / 2.  y == x allowed */
void OP(gelu_forward)(struct device *dev, act_t *y, const act_t *x, size_t n);
/* y = a + b, rounded once to act.  y == a allowed */
void OP(residual_add)(struct device *dev, act_t *y, const act_t *a, const act_t *b, size_t n);
/* y[i] = x[index[i]], rows of C.   y [out] (n, C) act   x [in] (N, C) act   index [in] (n) i32 on the device */
void OP(gather_rows)(struct device *dev, act_t *y, const act_t *x, const int *index, int n, int C);
/* storage conversion: f32 -> act (round to nearest even) and back */
void OP(act_from_real)(struct device *dev, act_t *y, const real_t *x, size_t n);
void OP(real_from_act)(struct device *dev, real_t *y, const act_t *x, size_t n);

EXTERN_C_END
