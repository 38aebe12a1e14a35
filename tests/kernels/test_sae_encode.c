/* test_sae_encode.c - sae_encode_topk and sae_encode_jumprelu against the oracle.
 * Selection: inputs that are small integers make every product and sum exact in any order and precision, so the chosen
 * features must equal the oracle's, ties included. Values: random inputs, error against the plain f32 product. */
#include "tests/kernels/op_test.h"

#include "kernels/sae_ops.h"
#include "kernels/ref_begin.h"
#include "kernels/sae_ops.h"
#include "kernels/ref_end.h"

enum kind {
    INTEGERS,
    FEW_INTEGERS,
    ALL_EQUAL,
    NEGATIVE,
    ASCENDING,
    DESCENDING,
    NAN_ROWS,
    NAN_FEATURE,
    INFINITE,
    SIGNED_ZERO,
    OVERFLOW,
    SHUFFLED,
    NEAR,
    MASSIVE,
    SCALED_ROWS,
    ROUNDED,
    UNEVEN,
    DENORMAL,
    KINDS
};
static const char *kind_name[] = {"integers",           "ties",
                                  "all equal",          "all negative",
                                  "ascending",          "descending",
                                  "NaN rows",           "NaN features",
                                  "infinite bias",      "zeros of both signs",
                                  "huge features",      "shuffled",
                                  "near ties",          "massive channel",
                                  "rows of every size", "rounded by a screen",
                                  "uneven features",    "denormal rows"};

/* the slices of a case that both ops share */
struct inputs {
    struct op_buffer *x, *E, *E_low, *b_e;
};

/* NEAR: features that are nearly one, told apart only by exact products: any coarser screen misorders them.
 * ROUNDED: independent features, of which a screen in 8 bits misorders neighbours. UNEVEN: those that win are much larger than the
 * usual one, and so are their errors: a bound guessed from the usual one is too high. */
static struct inputs integer_inputs(struct op_test *t, enum kind kind, int N, int d, int M, bool low) {
    size_t nx = (size_t)N * (size_t)d, ne = (size_t)M * (size_t)d;
    double *x = op_ref(t, nx), *E = op_ref(t, ne), *b = op_ref(t, (size_t)M);
    int range = kind == FEW_INTEGERS ? 1 : 4;
    bool flat = kind == ALL_EQUAL || kind == ASCENDING || kind == DESCENDING || kind == SIGNED_ZERO || kind == SHUFFLED;
    for (size_t i = 0; i < nx; i++) x[i] = flat ? 0 : op_below(t, 2 * range + 1) - range;
    for (size_t i = 0; i < ne; i++) E[i] = op_below(t, 2 * range + 1) - range;
    if (kind == OVERFLOW) { /* weights that no screen can hold, rows of zeros that hide them */
        for (size_t i = 0; i < ne; i++) E[i] = i / (size_t)d % 3 == 0 ? ldexp(E[i], 70) : E[i];
        for (size_t i = 0; i < nx; i++) x[i] = i / (size_t)d % 2 ? x[i] : 0;
        for (int f = 0; f < M; f++) b[f] = op_below(t, 200);
    }
    if (kind == ROUNDED || kind == UNEVEN) {
        int most = kind == UNEVEN ? 15 : low ? 125 : 2000;
        for (size_t i = 0; i < nx; i++) x[i] = op_below(t, 129) - 64;
        for (size_t i = 0; i < ne; i++) E[i] = (op_below(t, 2 * most + 1) - most) * (kind == UNEVEN && i / (size_t)d < 41 ? 128 : 1);
    }
    if (kind == NEAR) {
        for (size_t i = 0; i < nx; i++) x[i] = op_below(t, 129) - 64;
        for (size_t i = 0; i < ne; i++)
            E[i] = (i < (size_t)d ? op_below(t, low ? 250 : 4000) : E[i % (size_t)d]) +
                   (i < (size_t)d || i % (size_t)d > 2 ? 0 : op_below(t, 5) - 2);
    }
    for (int n = 0; n < N; n++) {
        static const int sizes[] = {-120, 0, 40, -60};
        double *row = x + (size_t)n * (size_t)d;
        if (kind == MASSIVE) row[n % d] = op_below(t, 2) ? 2048 : -2048; /* what is left decides among features that agree on it */
        for (int i = 0; i < d && kind == SCALED_ROWS; i++) row[i] = n % 5 == 4 ? 0 : ldexp(row[i], sizes[n % 4]);
        for (int i = 0; i < d && kind == DENORMAL; i++) row[i] = ldexp(row[i], n % 2 ? -145 : -130);
    }
    for (int f = 0; f < M; f++) {
        b[f] = kind == ASCENDING     ? f
               : kind == DESCENDING  ? -f
               : kind == NEGATIVE    ? -16 * d - op_below(t, 5)
               : kind == SHUFFLED    ? (1 << 23) + op_below(t, 1 << 16) /* neighbours in f32 */
               : kind == SIGNED_ZERO ? (op_below(t, 2) ? 0.0 : -0.0)
                                     : 0;
        if (kind == INFINITE && op_below(t, 8) == 0) b[f] = op_below(t, 2) ? (double)INFINITY : -(double)INFINITY;
        if (kind == NAN_FEATURE && op_below(t, 8) == 0) b[f] = op_below(t, 2) ? (double)NAN : -(double)NAN;
    }
    if (kind == NAN_ROWS)
        for (int n = 0; n < N; n += 2) x[(size_t)n * (size_t)d] = (double)NAN;
    return (struct inputs){op_given(t, OP_ACT, nx, x), op_given(t, OP_REAL, ne, E), op_given(t, OP_BF16, ne, E),
                           op_given(t, OP_REAL, (size_t)M, b)};
}

struct shape {
    int N, d, M, K;
};

static void check_choice(enum kind kind, struct shape s, bool low, bool scaled) {
    struct op_test t;
    op_begin(&t, "sae_encode_topk %s N=%d d=%d M=%d K=%d%s%s", kind_name[kind], s.N, s.d, s.M, s.K, low ? " bf16" : "",
             scaled ? " scaled" : "");
    struct inputs in = integer_inputs(&t, kind, s.N, s.d, s.M, low);
    size_t slots = (size_t)s.N * (size_t)s.K;
    double *powers = op_ref(&t, (size_t)s.M); /* exact scales */
    for (int f = 0; f < s.M; f++) powers[f] = ldexp(op_below(&t, 8) ? 1 : -1, op_below(&t, 4) - 2);
    struct op_buffer *scale = op_given(&t, OP_REAL, (size_t)s.M, powers);
    struct op_buffer *indices = op_output(&t, OP_INT, slots), *values = op_output(&t, OP_REAL, slots);
    struct op_buffer *scratch = op_output(&t, OP_BYTES, sae_encode_scratch(s.N, s.d, s.M, s.K));
    OP_RUN(&t, sae_encode_topk(t.dev, indices->p, values->p, in.x->p, in.E->p, low ? in.E_low->p : NULL, in.b_e->p,
                               scaled ? scale->p : NULL, s.N, s.d, s.M, s.K, scratch->p));
    int *want = op_ints(&t, slots);
    double *want_values = op_ref(&t, slots);
    void *ref_scratch = malloc(ref_sae_encode_scratch(s.N, s.d, s.M, s.K));
    ref_sae_encode_topk(NULL, want, want_values, in.x->real, in.E->real, low ? in.E_low->low : NULL, in.b_e->real,
                        scaled ? scale->real : NULL, s.N, s.d, s.M, s.K, ref_scratch);
    free(ref_scratch);
    op_check_ints(&t, indices, "indices", want);
    op_check_exact(&t, values, "values", want_values);
    op_end(&t);
}

static void test_choice(void **state) {
    (void)state;
    static const struct shape shapes[] = {{1, 1, 1, 1},      {1, 8, 5, 5},      {2, 3, 33, 1},       {3, 16, 100, 7},
                                          {29, 40, 257, 32}, {15, 8, 513, 513}, {16, 24, 1000, 200}, {17, 33, 90, 20}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int kind = INTEGERS; kind < KINDS; kind++) {
            if (kind == DENORMAL && sizeof(act_t) < sizeof(float))
                continue;                        /* bf16 ends at 2^-133, tensor cores drop what is below f32's normal range */
            bool low = (kind + (int)i) % 2 == 0; /* neighbours in the table take the other type */
            check_choice((enum kind)kind, shapes[i], low, kind % 3 == 0);
        }
    check_choice(INTEGERS, (struct shape){40, 8, 300, 17}, false, true);
    check_choice(FEW_INTEGERS, (struct shape){1050, 8, 70, 3}, true, false); /* past a chunk of rows */
    check_choice(ASCENDING, (struct shape){3, 8, 9000, 50}, false, false);   /* each bound is beaten by all that follow */
    check_choice(FEW_INTEGERS, (struct shape){2, 8, 9000, 50}, true, false);
    check_choice(INTEGERS, (struct shape){30, 8, 9000, 50}, false, false);
    check_choice(SHUFFLED, (struct shape){2, 4, 21000, 50}, true, true); /* lists grow over many chunks, are cut and grow again */
    check_choice(SHUFFLED, (struct shape){1, 4, 17001, 200}, true, false);
    check_choice(NEAR, (struct shape){40, 16, 3000, 20}, false, true); /* more near ties than a list holds */
    check_choice(NEAR, (struct shape){40, 16, 700, 20}, true, false);
    check_choice(ROUNDED, (struct shape){100, 64, 3000, 20}, false, false);
    check_choice(ROUNDED, (struct shape){100, 100, 3000, 20}, true, true);
    check_choice(UNEVEN, (struct shape){100, 16, 3000, 20}, false, false);
    check_choice(UNEVEN, (struct shape){40, 33, 3000, 20}, true, false);
    check_choice(MASSIVE, (struct shape){60, 100, 1500, 20}, false, false);
    check_choice(SCALED_ROWS, (struct shape){61, 70, 1500, 20}, false, true);
    check_choice(NEAR, (struct shape){14, 2100, 90, 20}, false, false); /* past what a screen in 8 bits is used for */
    check_choice(MASSIVE, (struct shape){14, 2049, 90, 20}, true, false);
}

/* Every path of the choice once, small enough for a race checker that is thousands of times slower. */
static void test_paths(void **state) {
    (void)state;
    check_choice(SHUFFLED, (struct shape){9, 8, 4300, 20}, true, false); /* a first bound, a list that is cut at the end */
    check_choice(ASCENDING, (struct shape){2, 8, 8300, 20}, true, true); /* a list that overflows */
    check_choice(INTEGERS, (struct shape){9, 8, 301, 200}, true, false); /* no bound, addresses that are not aligned */
    check_choice(NAN_ROWS, (struct shape){3, 8, 70, 5}, false, false);   /* f32 products */
}

/* Random values: each listed value against the double product, and nothing unlisted clearly above what is listed. */
static void check_values(struct shape s, double scale, bool low) {
    struct op_test t;
    op_begin(&t, "sae_encode_topk random N=%d d=%d M=%d K=%d scale=%g%s", s.N, s.d, s.M, s.K, scale, low ? " bf16" : "");
    size_t slots = (size_t)s.N * (size_t)s.K, ne = (size_t)s.M * (size_t)s.d;
    struct op_buffer *x = op_input(&t, OP_ACT, (size_t)s.N * (size_t)s.d, scale), *E = op_input(&t, OP_REAL, ne, 1 / sqrt(s.d)),
                     *b_e = op_input(&t, OP_REAL, (size_t)s.M, 0.1 * scale);
    struct op_buffer *E_low = op_given(&t, OP_BF16, ne, E->real);
    struct op_buffer *indices = op_output(&t, OP_INT, slots), *values = op_output(&t, OP_REAL, slots);
    struct op_buffer *scratch = op_output(&t, OP_BYTES, sae_encode_scratch(s.N, s.d, s.M, s.K));
    OP_RUN(&t,
           sae_encode_topk(t.dev, indices->p, values->p, x->p, E->p, low ? E_low->p : NULL, b_e->p, NULL, s.N, s.d, s.M, s.K, scratch->p));
    double *want = op_ref(&t, slots), worst = 0;
    float *plain = op_plain(&t, slots);
    const double *w = low ? E_low->real : E->real;
    for (int n = 0; n < s.N; n++) {
        double least = INFINITY, most = -INFINITY;
        int k = 0;
        for (int f = 0; f < s.M; f++) {
            double sum = 0;
            float naive = 0;
            for (int i = 0; i < s.d; i++) {
                double xi = x->real[n * s.d + i];
                if (low) xi = (double)op_round(OP_BF16, (float)xi);
                sum += xi * w[f * s.d + i];
                naive += (float)xi * (float)w[f * s.d + i];
            }
            if (low) naive = op_cut_product(x->real + n * s.d, w + (size_t)f * (size_t)s.d, s.d);
            sum += b_e->real[f];
            naive += (float)b_e->real[f];
            if (k < s.K && indices->ints[n * s.K + k] == f) {
                want[n * s.K + k] = fmax(sum, 0);
                plain[n * s.K + k++] = fmaxf(naive, 0);
                least = fmin(least, sum);
            } else
                most = fmax(most, sum);
        }
        if (k != s.K) op_fail(&t, "row %d: slots are not %d ascending features", n, s.K);
        worst = fmax(worst, most - least);
    }
    if (worst > 1e-5 * scale) op_fail(&t, "an unlisted pre-activation is %g above a listed one", worst);
    op_check(&t, values, "values", want, plain);
    op_end(&t);
}

static void test_values(void **state) {
    (void)state;
    for (int low = 0; low < 2; low++)
        for (double scale = 1e-3; scale < 2e3; scale *= 1e3) {
            check_values((struct shape){1, 64, 128, 8}, scale, low);
            check_values((struct shape){31, 136, 300, 20}, scale, low);
            check_values((struct shape){64, 256, 1024, 32}, scale, low);
            check_values((struct shape){20, 2304, 400, 10}, scale, low);
        }
}

/* Chosen is decided on f32 sums of bf16 operands: two features whose sums differ in the 20th bit are told apart. */
static void test_f32_selection(void **state) {
    (void)state;
    struct op_test t;
    enum { d = 8, M = 64 };
    op_begin(&t, "sae_encode_topk bf16 operands, f32 selection");
    double x[d] = {1, 1}, E[M * d] = {0}, b[M] = {0};
    for (int f = 0; f < M; f++) E[f * d] = 1, E[f * d + 1] = ldexp(f == 41 ? 2 : 1, -18);
    struct op_buffer *bx = op_given(&t, OP_ACT, d, x), *be = op_given(&t, OP_REAL, M * d, E), *bl = op_given(&t, OP_BF16, M * d, E),
                     *bb = op_given(&t, OP_REAL, M, b);
    struct op_buffer *indices = op_output(&t, OP_INT, 1), *values = op_output(&t, OP_REAL, 1),
                     *scratch = op_output(&t, OP_BYTES, sae_encode_scratch(1, d, M, 1));
    OP_RUN(&t, sae_encode_topk(t.dev, indices->p, values->p, bx->p, be->p, bl->p, bb->p, NULL, 1, d, M, 1, scratch->p));
    double want = 1 + ldexp(1, -17);
    op_check_ints(&t, indices, "index", (int[]){41});
    op_check_exact(&t, values, "value", &want);
    op_end(&t);
}

static void check_jumprelu(enum kind kind, struct shape s, bool low) {
    struct op_test t;
    op_begin(&t, "sae_encode_jumprelu %s N=%d d=%d M=%d K=%d%s", kind_name[kind], s.N, s.d, s.M, s.K, low ? " bf16" : "");
    struct inputs in = integer_inputs(&t, kind, s.N, s.d, s.M, low);
    double *bounds = op_ref(&t, (size_t)s.M);
    for (int f = 0; f < s.M; f++) bounds[f] = op_below(&t, 9) - 2; /* integers: equality must not fire */
    if (kind == NEAR)                                              /* where the first row lies */
        for (int f = 0; f < s.M; f++) {
            bounds[f] = op_below(&t, 3) - 1;
            for (int i = 0; i < s.d; i++) bounds[f] += in.x->real[i] * in.E->real[f * s.d + i];
        }
    struct op_buffer *threshold = op_given(&t, OP_REAL, (size_t)s.M, bounds);
    size_t slots = (size_t)s.N * (size_t)s.K;
    struct op_buffer *indices = op_output(&t, OP_INT, slots), *values = op_output(&t, OP_REAL, slots),
                     *counts = op_output(&t, OP_INT, (size_t)s.N);
    struct op_buffer *scratch = op_output(&t, OP_BYTES, sae_encode_scratch(s.N, s.d, s.M, s.K));
    OP_RUN(&t, sae_encode_jumprelu(t.dev, indices->p, values->p, counts->p, in.x->p, in.E->p, low ? in.E_low->p : NULL, in.b_e->p,
                                   threshold->p, s.N, s.d, s.M, s.K, scratch->p));
    int *want = op_ints(&t, slots), *want_counts = op_ints(&t, (size_t)s.N);
    double *want_values = op_ref(&t, slots);
    void *ref_scratch = malloc(ref_sae_encode_scratch(s.N, s.d, s.M, s.K));
    ref_sae_encode_jumprelu(NULL, want, want_values, want_counts, in.x->real, in.E->real, low ? in.E_low->low : NULL, in.b_e->real,
                            threshold->real, s.N, s.d, s.M, s.K, ref_scratch);
    free(ref_scratch);
    op_check_ints(&t, counts, "counts", want_counts);
    op_check_ints(&t, indices, "indices", want);
    op_check_exact(&t, values, "values", want_values);
    op_end(&t);
}

static void test_jumprelu(void **state) {
    (void)state;
    static const struct shape shapes[] = {{1, 1, 1, 1}, {3, 16, 100, 7}, {29, 40, 257, 300}, {20, 8, 513, 40}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int kind = INTEGERS; kind <= UNEVEN; kind++) check_jumprelu((enum kind)kind, shapes[i], i % 2 == 0);
    check_jumprelu(INTEGERS, (struct shape){1050, 8, 70, 3}, true);
}

/* Real sizes: what is asked for grows as it must and nothing wraps at 2^31 or 2^32. */
static void test_scratch(void **state) {
    (void)state;
    static const struct shape shapes[] = {{512, 4096, 32768, 50},
                                          {8192, 4096, 32768, 50},
                                          {8192, 4096, 131072, 50},
                                          {65536, 4096, 131072, 200},
                                          {1024, 16384, 1048576, 4096}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct shape s = shapes[i];
        size_t bytes = sae_encode_scratch(s.N, s.d, s.M, s.K), csc = sae_csc_scratch(s.N, s.M, s.K);
        printf("  scratch N=%d d=%d M=%d K=%d: encode %.1f MB, csc %.1f MB\n", s.N, s.d, s.M, s.K, (double)bytes / 1e6, (double)csc / 1e6);
        assert_true(bytes >= (size_t)s.K * sizeof(float) && bytes < (size_t)8 << 30);
        size_t least = sizeof(act_t) == sizeof(bf16) ? (size_t)s.N * (size_t)s.K : (size_t)s.M; /* sorted keys; counts of the features */
        assert_true(csc >= least * sizeof(int) && csc < (size_t)1 << 30);
    }
}

int main(int argc, char **argv) { /* argument: only the tests of this name */
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_choice),   cmocka_unit_test(test_paths),
                                       cmocka_unit_test(test_values),   cmocka_unit_test(test_f32_selection),
                                       cmocka_unit_test(test_jumprelu), cmocka_unit_test(test_scratch)};
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
