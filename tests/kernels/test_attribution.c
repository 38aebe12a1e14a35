/* test_attribution.c - head_scores, head_copy and row_dots against the oracle. */
#include "tests/kernels/op_test.h"

#include "kernels/attribution.h"
#include "kernels/ref_begin.h"
#include "kernels/attribution.h"
#include "kernels/ref_end.h"

static void run_scores(int N, int H, int D, double scale) {
    struct op_test t;
    op_begin(&t, "head_scores N=%d H=%d D=%d scale=%g", N, H, D, scale);
    const size_t n = (size_t)(N * H * D), rows = (size_t)(N * H);
    double *start = op_ref(&t, rows), magnitude = 0;
    for (size_t i = 0; i < rows; i++) start[i] = op_normal(&t);
    struct op_buffer *a = op_input(&t, OP_ACT, n, scale), *b = op_input(&t, OP_ACT, n, scale), *g = op_input(&t, OP_ACT, n, 1),
                     *score = op_inout(&t, OP_REAL, rows, start);
    double *ref = op_copy(&t, score->real, rows);
    float *plain = op_plain(&t, rows);
    for (size_t r = 0; r < rows; r++) {
        float sum = 0;
        double size = 0;
        for (size_t i = r * (size_t)D; i < (r + 1) * (size_t)D; i++) {
            sum += ((float)a->real[i] - (float)b->real[i]) * (float)g->real[i];
            size += fabs((a->real[i] - b->real[i]) * g->real[i]);
        }
        plain[r] = (float)ref[r] + 0.25f * sum;
        magnitude = fmax(magnitude, size / 4 + fabs(ref[r]));
    }
    OP_RUN(&t, head_scores(t.dev, score->p, a->p, b->p, g->p, N, H, D, 0.25f));
    ref_head_scores(NULL, ref, a->real, b->real, g->real, N, H, D, 0.25);
    op_check_sum(&t, score, "score", ref, plain, magnitude);
    op_end(&t);
}

static void test_scores(void **state) {
    (void)state;
    run_scores(1, 1, 1, 1), run_scores(3, 2, 24, 1), run_scores(17, 8, 64, 1e3), run_scores(33, 3, 128, 1e-3), run_scores(5, 71, 72, 1);
}

static void test_copy(void **state) {
    (void)state;
    static const int shapes[][4] = {{1, 1, 1, 0}, {3, 2, 24, 1}, {17, 8, 64, 5}, {33, 3, 300, 0}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct op_test t;
        const int N = shapes[i][0], H = shapes[i][1], D = shapes[i][2], h = shapes[i][3];
        op_begin(&t, "head_copy N=%d H=%d D=%d h=%d", N, H, D, h);
        const size_t n = (size_t)(N * H * D);
        double *start = op_ref(&t, n);
        for (size_t e = 0; e < n; e++) start[e] = op_normal(&t);
        struct op_buffer *from = op_input(&t, OP_ACT, n, 1), *z = op_inout(&t, OP_ACT, n, start);
        double *ref = op_copy(&t, z->real, n);
        OP_RUN(&t, head_copy(t.dev, z->p, from->p, h, N, H, D));
        ref_head_copy(NULL, ref, from->real, h, N, H, D);
        op_check_exact(&t, z, "z", ref);
        for (size_t e = 0; e < n; e++)
            if (z->real[e] != ((int)(e / (size_t)D) % H == h ? from->real[e] : ref[e])) op_fail(&t, "element %zu", e);
        op_end(&t);
    }
}

static void run_dots(int N, int C, double scale) {
    struct op_test t;
    op_begin(&t, "row_dots N=%d C=%d scale=%g", N, C, scale);
    struct op_buffer *x = op_input(&t, OP_ACT, (size_t)(N * C), scale), *w = op_input(&t, OP_REAL, (size_t)C, 1),
                     *y = op_output(&t, OP_REAL, (size_t)N);
    double *ref = op_ref(&t, (size_t)N), magnitude = 0;
    float *plain = op_plain(&t, (size_t)N);
    for (int n = 0; n < N; n++) {
        double size = 0;
        plain[n] = 0;
        for (int c = 0; c < C; c++)
            plain[n] += (float)x->real[n * C + c] * (float)w->real[c], size += fabs(x->real[n * C + c] * w->real[c]);
        magnitude = fmax(magnitude, size);
    }
    OP_RUN(&t, row_dots(t.dev, y->p, x->p, w->p, N, C));
    ref_row_dots(NULL, ref, x->real, w->real, N, C);
    op_check_sum(&t, y, "y", ref, plain, magnitude);
    op_end(&t);
}

static void test_dots(void **state) {
    (void)state;
    run_dots(1, 1, 1), run_dots(3, 7, 1), run_dots(17, 512, 1e3), run_dots(5, 4096, 1e-3), run_dots(131, 72, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_scores), cmocka_unit_test(test_copy), cmocka_unit_test(test_dots)};
    return cmocka_run_group_tests_name("attribution", tests, NULL, NULL);
}
