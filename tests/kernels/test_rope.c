/* test_rope.c - qkv_split_rope against the oracle. */
#include "tests/kernels/op_test.h"

#include "kernels/rope.h"
#include "kernels/ref_begin.h"
#include "kernels/rope.h"
#include "kernels/ref_end.h"

enum { POSITIONS = 97 };

static void plain_rope(float *y, const double *x, size_t x_stride, const int *position, const double *cosine, const double *sine, int N,
                       int heads, int D) {
    for (int n = 0; n < N; n++)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < D / 2; i++) {
                float c = (float)cosine[position[n] * (D / 2) + i], s = (float)sine[position[n] * (D / 2) + i];
                const double *p = x + (size_t)n * x_stride + (size_t)(h * D + i);
                float a = (float)p[0], b = (float)p[D / 2], *q = y + ((size_t)(n * heads + h)) * (size_t)D + (size_t)i;
                q[0] = op_round(OP_ACT, a * c - b * s);
                q[D / 2] = op_round(OP_ACT, b * c + a * s);
            }
}

static void run(int N, int H, int G, int D, double scale, bool rotated) {
    struct op_test t;
    op_begin(&t, "qkv_split_rope N=%d H=%d G=%d D=%d scale=%g%s", N, H, G, D, scale, rotated ? "" : " split only");
    size_t half = (size_t)(D / 2), width = (size_t)((H + 2 * G) * D), qn = (size_t)(N * H * D), kn = (size_t)(N * G * D);
    double *angle_cos = op_ref(&t, POSITIONS * half), *angle_sin = op_ref(&t, POSITIONS * half);
    for (size_t p = 0; p < POSITIONS; p++)
        for (size_t i = 0; i < half; i++) {
            double angle = (double)p * pow(10000, -2.0 * (double)i / D);
            angle_cos[p * half + i] = cos(angle), angle_sin[p * half + i] = sin(angle);
        }
    int *position = op_ints(&t, (size_t)N);
    for (int n = 0; n < N; n++) position[n] = n ? op_below(&t, POSITIONS) : POSITIONS - 1;
    struct op_buffer *qkv = op_input(&t, OP_ACT, (size_t)N * width, scale), *pos = op_given_int(&t, (size_t)N, position);
    struct op_buffer *cosine = op_given(&t, OP_REAL, POSITIONS * half, angle_cos),
                     *sine = op_given(&t, OP_REAL, POSITIONS * half, angle_sin);
    struct op_buffer *q = op_output(&t, OP_ACT, qn), *k = op_output(&t, OP_ACT, kn), *v = op_output(&t, OP_ACT, kn);
    OP_RUN(&t, qkv_split_rope(t.dev, q->p, k->p, v->p, qkv->p, rotated ? pos->p : NULL, rotated ? cosine->p : NULL,
                              rotated ? sine->p : NULL, N, H, G, D));
    double *rq = op_ref(&t, qn), *rk = op_ref(&t, kn), *rv = op_ref(&t, kn);
    ref_qkv_split_rope(NULL, rq, rk, rv, qkv->real, position, rotated ? cosine->real : NULL, rotated ? sine->real : NULL, N, H, G, D);
    if (rotated) {
        float *pq = op_plain(&t, qn), *pk = op_plain(&t, kn);
        plain_rope(pq, qkv->real, width, position, cosine->real, sine->real, N, H, D);
        plain_rope(pk, qkv->real + H * D, width, position, cosine->real, sine->real, N, G, D);
        op_check(&t, q, "q", rq, pq);
        op_check(&t, k, "k", rk, pk);
    } else {
        op_check_exact(&t, q, "q", rq);
        op_check_exact(&t, k, "k", rk);
    }
    op_check_exact(&t, v, "v", rv);
    op_end(&t);
}

static void test_rope(void **state) {
    (void)state;
    run(1, 1, 1, 2, 1, true), run(3, 2, 1, 6, 1, true), run(17, 4, 2, 16, 1, true), run(5, 3, 3, 24, 1e-3, true);
    run(9, 8, 2, 64, 1e3, true), run(2, 71, 1, 64, 1, true), run(33, 2, 2, 128, 1, true), run(3, 4, 4, 72, 1, false),
        run(1, 2, 1, 10, 1, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rope)};
    return cmocka_run_group_tests_name("rope", tests, NULL, NULL);
}
