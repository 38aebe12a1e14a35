/* test_sae_slots.c - sae_merge_signed and sae_merge_groups against the oracle and against the definition by search. */
#include "tests/kernels/op_test.h"

#include "kernels/sae_slots.h"
#include "kernels/ref_begin.h"
#include "kernels/sae_slots.h"
#include "kernels/ref_end.h"

/* K of 2M indices, ascending; `both`: every other row begins with a feature in both halves. */
static void draw(struct op_test *t, int *row, int M, int K, bool both) {
    int kept = 0;
    for (int i = 0; i < 2 * M; i++) {
        const bool forced = both && (i == 0 || i == M);
        if (forced || op_below(t, 2 * M - i) < K - kept - (both && i < M)) row[kept++] = i;
        if (kept == K) break;
    }
    for (; kept < K; kept++) row[kept] = kept ? row[kept - 1] + 1 : 0;
}

static void run_signed(int N, int M, int K) {
    struct op_test t;
    op_begin(&t, "sae_merge_signed N=%d M=%d K=%d", N, M, K);
    const size_t n = (size_t)(N * K);
    int *doubled = op_ints(&t, n + 1), *ref = op_ints(&t, n + 1);
    for (int r = 0; r < N; r++) draw(&t, doubled + r * K, M, K, r % 2 && K > 1);
    struct op_buffer *in = op_given_int(&t, n, doubled), *v = op_input(&t, OP_REAL, n, 1);
    struct op_buffer *indices = op_output(&t, OP_INT, n), *values = op_output(&t, OP_REAL, n);
    double *ref_values = op_ref(&t, n);
    OP_RUN(&t, sae_merge_signed(t.dev, indices->p, values->p, in->p, v->p, N, M, K));
    ref_sae_merge_signed(NULL, ref, ref_values, in->ints, v->real, N, M, K);
    op_check_ints(&t, indices, "indices", ref);
    op_check_exact(&t, values, "values", ref_values);
    for (size_t i = 0; i < n; i++) { /* every slot is found again, in order */
        const size_t row = i / (size_t)K * (size_t)K;
        const int f = in->ints[i] % M;
        const double value = in->ints[i] < M ? v->real[i] : -v->real[i];
        bool found = false;
        for (size_t j = row; j < row + (size_t)K; j++) found |= indices->ints[j] == f && values->real[j] == value;
        if (!found) op_fail(&t, "slot %zu is lost", i);
        if (i > row && indices->ints[i - 1] > indices->ints[i]) op_fail(&t, "slot %zu is out of order", i);
    }
    op_end(&t);
}

static void run_groups(int N, int K, int size) {
    struct op_test t;
    op_begin(&t, "sae_merge_groups N=%d K=%d size=%d", N, K, size);
    const size_t n = (size_t)(N * K);
    int *groups = op_ints(&t, n), *ref = op_ints(&t, n);
    for (size_t i = 0; i < n; i++) groups[i] = op_below(&t, size);
    struct op_buffer *in = op_given_int(&t, n, groups), *v = op_input(&t, OP_REAL, n, 1);
    struct op_buffer *indices = op_output(&t, OP_INT, n), *values = op_output(&t, OP_REAL, n);
    double *ref_values = op_ref(&t, n);
    OP_RUN(&t, sae_merge_groups(t.dev, indices->p, values->p, in->p, v->p, N, K, size));
    ref_sae_merge_groups(NULL, ref, ref_values, in->ints, v->real, N, K, size);
    op_check_ints(&t, indices, "indices", ref);
    op_check_exact(&t, values, "values", ref_values);
    for (int r = 0; r < N; r++)
        for (int g = 0; g < K; g++)
            if (indices->ints[r * K + g] != in->ints[g * N + r] + g * size || values->real[r * K + g] != v->real[g * N + r])
                op_fail(&t, "row %d group %d", r, g);
    op_end(&t);
}

static void test_signed(void **state) {
    (void)state;
    static const int shapes[][3] = {{1, 1, 1}, {3, 5, 4}, {7, 40, 9}, {33, 64, 50}, {2, 1000, 255}, {5, 300, 257}, {4, 8, 8}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) run_signed(shapes[i][0], shapes[i][1], shapes[i][2]);
}

static void test_groups(void **state) {
    (void)state;
    static const int shapes[][3] = {{1, 1, 1}, {3, 4, 7}, {129, 5, 2}, {2, 300, 9}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) run_groups(shapes[i][0], shapes[i][1], shapes[i][2]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_signed), cmocka_unit_test(test_groups)};
    return cmocka_run_group_tests_name("sae_slots", tests, NULL, NULL);
}
