/* test_embed.c - token embedding with image rows, patches, vision embedding. Copies are exact; sums are rounded once. */
#include "tests/kernels/op_test.h"

#include "kernels/embed.h"
#include "kernels/ref_begin.h"
#include "kernels/embed.h"
#include "kernels/ref_end.h"

static void run_embed(int N, int C, int V, int R) {
    struct op_test t;
    op_begin(&t, "embed N=%d C=%d V=%d R=%d", N, C, V, R);
    int *source = op_ints(&t, (size_t)N);
    for (int n = 0; n < N; n++) source[n] = R && op_below(&t, 2) ? -1 - op_below(&t, R) : op_below(&t, V);
    if (N > 1) source[0] = V - 1, source[1] = R ? -R : 0;
    struct op_buffer *s = op_given_int(&t, (size_t)N, source), *table = op_input(&t, OP_ACT, (size_t)(V * C), 1);
    struct op_buffer *image = R ? op_input(&t, OP_ACT, (size_t)(R * C), 1) : NULL, *x = op_output(&t, OP_ACT, (size_t)(N * C));
    OP_RUN(&t, embed_forward(t.dev, x->p, s->p, table->p, image ? image->p : NULL, N, C));
    double *ref = op_ref(&t, x->n);
    ref_embed_forward(NULL, ref, source, table->real, image ? image->real : NULL, N, C);
    op_check_exact(&t, x, "x", ref);
    op_end(&t);
}

static void run_patch(int B, int S, int P) {
    struct op_test t;
    op_begin(&t, "patch_extract B=%d S=%d P=%d", B, S, P);
    size_t n = (size_t)(B * 3 * S * S);
    struct op_buffer *pixels = op_input(&t, OP_REAL, n, 1), *rows = op_output(&t, OP_ACT, n);
    OP_RUN(&t, patch_extract(t.dev, rows->p, pixels->p, B, S, P));
    double *ref = op_ref(&t, n);
    ref_patch_extract(NULL, ref, pixels->real, B, S, P);
    for (size_t i = 0; i < n; i++) ref[i] = (double)op_round(OP_ACT, (float)ref[i]);
    op_check_exact(&t, rows, "rows", ref);
    op_end(&t);
}

static void run_vision(int B, int n, int C, double scale) {
    struct op_test t;
    op_begin(&t, "vision_embed B=%d n=%d C=%d scale=%g", B, n, C, scale);
    struct op_buffer *patches = op_input(&t, OP_ACT, (size_t)(B * n * C), scale), *class_row = op_input(&t, OP_ACT, (size_t)C, scale);
    struct op_buffer *position = op_input(&t, OP_ACT, (size_t)((1 + n) * C), scale), *x = op_output(&t, OP_ACT, (size_t)(B * (1 + n) * C));
    OP_RUN(&t, vision_embed_forward(t.dev, x->p, patches->p, class_row->p, position->p, B, n, C));
    double *ref = op_ref(&t, x->n);
    ref_vision_embed_forward(NULL, ref, patches->real, class_row->real, position->real, B, n, C);
    for (size_t i = 0; i < x->n; i++) ref[i] = (double)op_round(OP_ACT, (float)ref[i]); /* one rounding of an exact sum */
    op_check_exact(&t, x, "x", ref);
    op_end(&t);
}

static void test_embed(void **state) {
    (void)state;
    run_embed(1, 1, 3, 0), run_embed(7, 8, 11, 5), run_embed(33, 257, 100, 16), run_embed(129, 64, 1000, 9), run_embed(3, 4096, 5, 2);
}

static void test_patch(void **state) {
    (void)state;
    run_patch(1, 2, 2), run_patch(1, 4, 1), run_patch(2, 28, 14), run_patch(1, 48, 16), run_patch(3, 15, 5), run_patch(1, 56, 7);
}

static void test_vision(void **state) {
    (void)state;
    run_vision(1, 1, 1, 1), run_vision(2, 4, 8, 1), run_vision(3, 9, 257, 1e-3), run_vision(1, 49, 128, 1e3);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_embed), cmocka_unit_test(test_patch), cmocka_unit_test(test_vision)};
    return cmocka_run_group_tests_name("embed", tests, NULL, NULL);
}
