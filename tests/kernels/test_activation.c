/* test_activation.c - nonlinearities, residual add, row gather, storage conversion. */
#include "tests/kernels/op_test.h"

#include "kernels/activation.h"
#include "kernels/cpu.h"
#include "kernels/ref_begin.h"
#include "kernels/activation.h"
#include "kernels/ref_end.h"

static const double scales[] = {1e-3, 1, 1e3, 0}; /* 0: scale 1 with the ends of the range among it */
static const int lengths[] = {1, 7, 8, 257, 1000, 4099};

/* Normal values and the ends of the range: zeros of both signs, the exponent's limits, infinities, NaN. */
static void ends(struct op_test *t, double *x, size_t n, double scale) {
    static const double special[] = {0, -0.0, 87.5, -87.5, 88.6, -88.6, 104, -104, 1e4, -1e4, INFINITY, NAN};
    for (size_t i = 0; i < n; i++) x[i] = (scale > 0 ? scale : 1) * op_normal(t);
    for (size_t i = 0; i < sizeof special / sizeof *special && scale == 0 && n >= 257; i++) x[17 * i + 3] = special[i];
}

typedef void unary(struct device *dev, act_t *y, const act_t *x, size_t n);
typedef void ref_unary(struct device *dev, double *y, const double *x, size_t n);
static float plain_quick_gelu(float x) { return x / (1.0f + expf(-1.702f * x)); }
static float plain_gelu(float x) { return x * (1.0f + erff(x * 0.707106781f)) * 0.5f; }

static void run_unary(const char *name, unary *op, ref_unary *ref_op, float (*plain_op)(float), int n, double scale, bool in_place) {
    struct op_test t;
    op_begin(&t, "%s n=%d scale=%g%s", name, n, scale, in_place ? " in place" : "");
    size_t count = (size_t)n;
    double *values = op_ref(&t, count), *ref = op_ref(&t, count);
    ends(&t, values, count, scale);
    struct op_buffer *x = in_place ? op_inout(&t, OP_ACT, count, values) : op_given(&t, OP_ACT, count, values);
    double *x0 = op_copy(&t, x->real, count);
    struct op_buffer *y = in_place ? x : op_output(&t, OP_ACT, count);
    OP_RUN(&t, op(t.dev, y->p, x->p, count));
    ref_op(NULL, ref, x0, count);
    float *plain = op_plain(&t, count);
    for (size_t i = 0; i < count; i++) plain[i] = op_round(OP_ACT, plain_op((float)x0[i]));
    op_check(&t, y, "y", ref, plain);
    op_check_each(&t, y, "y", ref, 1.02);
    op_end(&t);
}

static void test_unary(void **state) {
    (void)state;
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            run_unary("quick_gelu", quick_gelu_forward, ref_quick_gelu_forward, plain_quick_gelu, lengths[i], scales[s], i % 2);
            run_unary("gelu", gelu_forward, ref_gelu_forward, plain_gelu, lengths[i], scales[s], i % 2);
        }
}

static void run_swiglu(int N, int F, double scale) {
    struct op_test t;
    op_begin(&t, "swiglu N=%d F=%d scale=%g", N, F, scale);
    size_t n = (size_t)(N * F);
    double *values = op_ref(&t, 2 * n), *ref = op_ref(&t, n);
    ends(&t, values, 2 * n, scale);
    for (size_t i = 0; i < 2 * n; i++)
        if (isinf(values[i])) values[i] = 3; /* inf * 0 depends on the neighbour */
    struct op_buffer *x = op_given(&t, OP_ACT, 2 * n, values), *y = op_output(&t, OP_ACT, n);
    OP_RUN(&t, swiglu_forward(t.dev, y->p, x->p, N, F));
    ref_swiglu_forward(NULL, ref, x->real, N, F);
    float *plain = op_plain(&t, n);
    for (int r = 0; r < N; r++)
        for (int f = 0; f < F; f++) {
            float g = (float)x->real[r * 2 * F + f], u = (float)x->real[r * 2 * F + F + f];
            plain[r * F + f] = op_round(OP_ACT, op_round(OP_ACT, g / (1.0f + expf(-g))) * u);
        }
    op_check(&t, y, "y", ref, plain);
    op_check_each(&t, y, "y", ref, 1.02);
    op_end(&t);
}

static void test_swiglu(void **state) {
    (void)state;
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
        run_swiglu(1, 1, scales[s]), run_swiglu(3, 7, scales[s]), run_swiglu(2, 264, scales[s]), run_swiglu(5, 1031, scales[s]),
            run_swiglu(33, 512, scales[s]);
}

static void run_add(int n, double scale, bool in_place) {
    struct op_test t;
    op_begin(&t, "residual_add n=%d scale=%g%s", n, scale, in_place ? " in place" : "");
    size_t count = (size_t)n;
    double *values = op_ref(&t, count), *ref = op_ref(&t, count);
    ends(&t, values, count, scale > 0 ? 1 : 0);
    struct op_buffer *a = in_place ? op_inout(&t, OP_ACT, count, values) : op_given(&t, OP_ACT, count, values),
                     *b = op_input(&t, OP_ACT, count, scale);
    double *a0 = op_copy(&t, a->real, count);
    struct op_buffer *y = in_place ? a : op_output(&t, OP_ACT, count);
    OP_RUN(&t, residual_add(t.dev, y->p, a->p, b->p, count));
    ref_residual_add(NULL, ref, a0, b->real, count);
    for (size_t i = 0; i < count; i++) ref[i] = (double)op_round(OP_ACT, (float)a0[i] + (float)b->real[i]);
    op_check_exact(&t, y, "y", ref);
    op_end(&t);
}

static void test_add(void **state) {
    (void)state;
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) run_add(lengths[i], scales[s], i % 2);
}

static void run_gather(int N, int n, int C) {
    struct op_test t;
    op_begin(&t, "gather_rows N=%d n=%d C=%d", N, n, C);
    int *index = op_ints(&t, (size_t)n);
    for (int i = 0; i < n; i++) index[i] = i ? op_below(&t, N) : N - 1;
    struct op_buffer *x = op_input(&t, OP_ACT, (size_t)(N * C), 1), *at = op_given_int(&t, (size_t)n, index),
                     *y = op_output(&t, OP_ACT, (size_t)(n * C));
    OP_RUN(&t, gather_rows(t.dev, y->p, x->p, at->p, n, C));
    double *ref = op_ref(&t, y->n);
    ref_gather_rows(NULL, ref, x->real, index, n, C);
    op_check_exact(&t, y, "y", ref);
    op_end(&t);
}

static void test_gather(void **state) {
    (void)state;
    run_gather(1, 1, 1), run_gather(5, 3, 7), run_gather(9, 20, 64), run_gather(100, 33, 257), run_gather(4, 4, 4096);
}

static void run_convert(int n, double scale) {
    struct op_test t;
    op_begin(&t, "act_from_real n=%d scale=%g", n, scale);
    size_t count = (size_t)n;
    double *values = op_ref(&t, count), *ref = op_ref(&t, count);
    ends(&t, values, count, scale);
    if (n > 8) values[1] = 1.00390625, values[2] = 1.01171875, values[4] = -1.00390625000001; /* ties to even, just past one */
    struct op_buffer *x = op_given(&t, OP_REAL, count, values), *y = op_output(&t, OP_ACT, count), *back = op_output(&t, OP_REAL, count);
    OP_RUN(&t, act_from_real(t.dev, y->p, x->p, count); real_from_act(t.dev, back->p, y->p, count));
    for (size_t i = 0; i < count; i++) ref[i] = (double)op_round(OP_ACT, (float)x->real[i]);
    op_check_exact(&t, y, "y", ref);
    op_check_exact(&t, back, "back", ref);
    op_end(&t);
}

static void test_convert(void **state) {
    (void)state;
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) run_convert(lengths[i], scales[s]);
}

/* exp_real's promise in cpu.h: every 1,009th float of its range, and the ends. */
static void test_exp(void **state) {
    (void)state;
    double worst = 0;
    for (uint32_t i = 0; i < 0x42B20000u; i += 1009)
        for (uint32_t sign = 0; sign < 2; sign++) {
            uint32_t bits = i | sign << 31;
            float x;
            memcpy(&x, &bits, 4);
            if (x < -87.33f || x > 88.37f) continue;
            double want = exp((double)x);
            int exponent;
            frexp(want, &exponent);
            worst = fmax(worst, fabs((double)exp_real(x) - want) / ldexp(1, exponent - 24));
        }
    printf("  exp_real: at most %.3f units in the last place off\n", worst);
    assert_true(worst <= 1.1);
    assert_true(exp_real(-88.0f) == 0 && exp_real(-INFINITY) == 0 && isinf(exp_real(89.0f)) && isinf(exp_real(INFINITY)) &&
                isnan(exp_real(NAN)));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exp), cmocka_unit_test(test_unary),  cmocka_unit_test(test_swiglu),
                                       cmocka_unit_test(test_add), cmocka_unit_test(test_gather), cmocka_unit_test(test_convert)};
    return cmocka_run_group_tests_name("activation", tests, NULL, NULL);
}
