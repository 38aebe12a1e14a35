/* activation.c - see activation.h. SwiGLU: Shazeer 2020; GELU: Hendrycks & Gimpel 2016. */
#include "kernels/activation.h"

#include "kernels/cpu.h"

/* x * erfc(-x / sqrt 2) / 2: 1 + erf without its cancellation at x < 0. */
#ifdef STAGEDIFF_REF
static inline double gelu(double x) { return x * erfc(x * -0.70710678118654752440) * 0.5; }
#else
/* With z = |x| / sqrt 2 and t = 1 / (1 + 0.38 z): erfc(z) = e^(-z^2) t Q(t), Q minimax of degree 8, 2.0e-8 of erfc on z < 10. */
static inline float gelu(float x) {
    float t = 1.0f / (1.0f + 0.26870058f * fabsf(x));
    float p = 0.0589650646f;
    p = p * t - 0.2622710764f;
    p = p * t + 0.3638375998f;
    p = p * t - 0.1614277512f;
    p = p * t + 0.2300000787f;
    p = p * t + 0.1386621743f;
    p = p * t + 0.2039031237f;
    p = p * t + 0.2139198631f;
    p = p * t + 0.2144108709f;
    float share = 0.5f * exp_real(-0.5f * x * x) * t * p;
    return x * (x < 0.0f ? share : 1.0f - share);
}
#endif

void OP(swiglu_forward)(struct device *dev, act_t *y, const act_t *gate_up, int N, int F) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)F > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) {
        const act_t *restrict gate = gate_up + cpu_offset(n, 2 * F), *restrict up = gate + F;
        act_t *restrict out = y + cpu_offset(n, F);
        for (int f = 0; f < F; f++) out[f] = gate[f] / ((real_t)1 + exp_real(-gate[f])) * up[f];
    }
}

void OP(swiglu_backward)(struct device *dev, act_t *dgate_up, const act_t *dy, const act_t *gate_up, int N, int F) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)F > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) {
        const act_t *restrict gate = gate_up + cpu_offset(n, 2 * F), *restrict up = gate + F, *restrict in = dy + cpu_offset(n, F);
        act_t *restrict dgate = dgate_up + cpu_offset(n, 2 * F), *restrict dup = dgate + F;
        for (int f = 0; f < F; f++) {
            real_t s = (real_t)1 / ((real_t)1 + exp_real(-gate[f]));
            dgate[f] = in[f] * up[f] * s * ((real_t)1 + gate[f] * ((real_t)1 - s));
            dup[f] = in[f] * gate[f] * s;
        }
    }
}

void OP(quick_gelu_forward)(struct device *dev, act_t *y, const act_t *x, size_t n) {
    (void)dev;
#pragma omp parallel for simd schedule(static) if (n > CPU_PARALLEL_MIN)
    for (size_t i = 0; i < n; i++) y[i] = x[i] / ((real_t)1 + exp_real((real_t)-1.702 * x[i]));
}

void OP(gelu_forward)(struct device *dev, act_t *y, const act_t *x, size_t n) {
    (void)dev;
#pragma omp parallel for simd schedule(static) if (n > CPU_PARALLEL_MIN)
    for (size_t i = 0; i < n; i++) y[i] = gelu(x[i]);
}

void OP(residual_add)(struct device *dev, act_t *y, const act_t *a, const act_t *b, size_t n) {
    (void)dev;
#pragma omp parallel for simd schedule(static) if (n > CPU_PARALLEL_MIN)
    for (size_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

void OP(gather_rows)(struct device *dev, act_t *y, const act_t *x, const int *index, int n, int C) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)n * (size_t)C > CPU_PARALLEL_MIN)
    for (int i = 0; i < n; i++) memcpy(y + cpu_offset(i, C), x + cpu_offset(index[i], C), (size_t)C * sizeof(act_t));
}

void OP(act_from_real)(struct device *dev, act_t *y, const real_t *x, size_t n) {
    (void)dev;
    memcpy(y, x, n * sizeof(act_t)); /* act_t is real_t on the cpu */
}

void OP(real_from_act)(struct device *dev, real_t *y, const act_t *x, size_t n) {
    (void)dev;
    memcpy(y, x, n * sizeof(real_t));
}
