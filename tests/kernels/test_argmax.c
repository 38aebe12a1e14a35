/* test_argmax.c - argmax_rows: ties, NaN, infinities, against a plain search. */
#include "tests/kernels/op_test.h"

#include "kernels/argmax.h"
#include "kernels/ref_begin.h"
#include "kernels/argmax.h"
#include "kernels/ref_end.h"

enum content { NORMAL, TIES, NANS, LOWEST, EQUAL, CLOSE };

static int plain_argmax(const double *x, int V) {
    int best = 0;
    for (int i = 1; i < V; i++)
        if (x[i] > x[best] || (isnan(x[i]) && !isnan(x[best]))) best = i;
    return best;
}

static void run(int N, int V, enum content content, double scale) {
    static const char *const names[] = {"", " ties", " NaN", " -inf", " equal", " close"};
    struct op_test t;
    op_begin(&t, "argmax N=%d V=%d scale=%g%s", N, V, scale, names[content]);
    size_t n = (size_t)(N * V);
    double *x = op_ref(&t, n);
    for (size_t i = 0; i < n; i++)
        x[i] = content == EQUAL    ? scale
               : content == LOWEST ? -INFINITY
               : content == TIES   ? op_below(&t, 4)
               : content == CLOSE  ? 1 + 0x1p-23 * op_below(&t, 1000)
                                   : scale * op_normal(&t);
    for (int r = 0; r < N && content == NANS; r++)
        for (int k = 0; k < 2 && r % 2 == 0; k++) x[r * V + op_below(&t, V)] = NAN; /* two, in every other row */
    int *ref = op_ints(&t, (size_t)N), *plain = op_ints(&t, (size_t)N);
    struct op_buffer *in = op_given(&t, OP_REAL, n, x), *index = op_output(&t, OP_INT, (size_t)N);
    OP_RUN(&t, argmax_rows(t.dev, index->p, in->p, N, V));
    ref_argmax_rows(NULL, ref, in->real, N, V);
    for (int r = 0; r < N; r++) plain[r] = plain_argmax(in->real + (size_t)r * (size_t)V, V);
    op_check_ints(&t, index, "index", ref);
    op_check_ints(&t, index, "index (plain)", plain);
    op_end(&t);
}

static void test_argmax(void **state) {
    (void)state;
    static const int shapes[][2] = {{1, 1}, {3, 7}, {2, 32}, {5, 257}, {1, 1025}, {4, 4099}, {33, 100}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int content = NORMAL; content <= CLOSE; content++) run(shapes[i][0], shapes[i][1], (enum content)content, i % 2 ? 1 : 1e3);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_argmax)};
    return cmocka_run_group_tests_name("argmax", tests, NULL, NULL);
}
