/* test_gemm.c - linear_forward and linear_forward_real against the oracle. */
#include "tests/kernels/op_test.h"

#include "kernels/gemm.h"
#include "kernels/ref_begin.h"
#include "kernels/gemm.h"
#include "kernels/ref_end.h"

static void run(int N, int I, int O, double scale, bool with_bias) {
    struct op_test t;
    op_begin(&t, "linear N=%d I=%d O=%d scale=%g%s", N, I, O, scale, with_bias ? " bias" : "");
    size_t n = (size_t)(N * O);
    struct op_buffer *x = op_input(&t, OP_ACT, (size_t)(N * I), scale), *w = op_input(&t, OP_ACT, (size_t)(O * I), 1),
                     *bias = op_input(&t, OP_ACT, (size_t)O, scale);
    struct op_buffer *y = op_output(&t, OP_ACT, n), *real = op_output(&t, OP_REAL, n);
    OP_RUN(&t, linear_forward(t.dev, y->p, x->p, w->p, with_bias ? bias->p : NULL, N, I, O);
           linear_forward_real(t.dev, real->p, x->p, w->p, N, I, O));
    double *ref = op_ref(&t, n), *ref_real = op_ref(&t, n);
    ref_linear_forward(NULL, ref, x->real, w->real, with_bias ? bias->real : NULL, N, I, O);
    ref_linear_forward_real(NULL, ref_real, x->real, w->real, N, I, O);
    float *plain = op_plain(&t, n), *plain_real = op_plain(&t, n);
    double magnitude = 0;
    for (int r = 0; r < N; r++)
        for (int o = 0; o < O; o++) {
            float sum = 0;
            double size = 0;
            for (int i = 0; i < I; i++) {
                double term = x->real[r * I + i] * w->real[o * I + i];
                sum += (float)x->real[r * I + i] * (float)w->real[o * I + i];
                size += fabs(term);
            }
            magnitude = fmax(magnitude, size);
            if (sizeof(act_t) == sizeof(bf16)) sum = op_cut_product(x->real + r * I, w->real + o * I, I);
            plain_real[r * O + o] = sum;
            if (with_bias && I % 8) sum = (float)op_round(OP_ACT, sum); /* cuBLASLt rounds before the bias where rows are not aligned */
            plain[r * O + o] = op_round(OP_ACT, sum + (with_bias ? (float)bias->real[o] : 0));
        }
    op_check_sum(&t, y, "y", ref, plain, magnitude);
    op_check_sum(&t, real, "real", ref_real, plain_real, magnitude);
    op_end(&t);
}

static void test_linear(void **state) {
    (void)state;
    static const int shapes[][3] = {{1, 1, 1},   {1, 7, 3},     {1, 513, 67}, {2, 64, 33},    {3, 129, 31},  {4, 512, 100},
                                    {5, 64, 16}, {17, 33, 257}, {64, 64, 64}, {67, 131, 259}, {321, 40, 24}, {1, 64, 4099}};
    static const double scales[] = {1, 1e-3, 1e3};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) run(shapes[i][0], shapes[i][1], shapes[i][2], scales[i % 3], i % 2);
    run(67, 131, 259, 1, false), run(3, 129, 31, 1, false), run(1, 512, 96, 1, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_linear)};
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
