/* test_paired.c - McNemar's exact test against scipy, the bootstrap against numpy with the same generator (bits) and against scipy's own.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "analysis/paired.h"
#include <jansson.h>

#include <cmocka.h>

static json_t *golden(void) {
    json_t *top = json_load_file("tests/analysis/golden/paired.json", 0, NULL);
    assert_non_null(top);
    return top;
}

static void mcnemar_equals_scipy(void **state) {
    json_t *top = golden(), *row;
    size_t i;
    double worst = 0;
    (void)state;
    json_array_foreach(json_object_get(top, "mcnemar"), i, row) {
        const double want = json_number_value(json_array_get(row, 2));
        const double p = mcnemar_exact((long)json_integer_value(json_array_get(row, 0)), (long)json_integer_value(json_array_get(row, 1)));
        worst = fmax(worst, fabs(p - want) / want);
    }
    printf("  %zu splits: relative error at most %.2g\n", i, worst);
    assert_true(i > 0 && worst < 1e-10); /* lgamma of 60,000 is known to 1e-16 of 6e5 */
    json_decref(top);
}

static double *numbers(const json_t *list, size_t *n) {
    *n = json_array_size(list);
    double *x = malloc((*n + 1) * sizeof *x);
    for (size_t i = 0; i < *n; i++) x[i] = json_number_value(json_array_get(list, i));
    return x;
}

static void bootstrap_equals_numpy(void **state) {
    json_t *top = golden(), *one;
    size_t i, n;
    (void)state;
    json_array_foreach(json_object_get(top, "bootstrap"), i, one) {
        struct paired p, again;
        double *base = numbers(json_object_get(one, "baseline"), &n), *after = numbers(json_object_get(one, "intervened"), &n);
        const json_t *ci = json_object_get(one, "ci"), *scipy = json_object_get(one, "scipy");
        const uint64_t seed = (uint64_t)json_integer_value(json_object_get(one, "seed"));
        paired_compare(&p, base, after, n, seed);
        const double low = json_number_value(json_array_get(ci, 0)), high = json_number_value(json_array_get(ci, 1));
        printf("  n %zu: %.4f [%.4f, %.4f], scipy [%.4f, %.4f]\n", n, p.delta, p.ci_low, p.ci_high,
               json_number_value(json_array_get(scipy, 0)), json_number_value(json_array_get(scipy, 1)));
        assert_true(fabs(p.ci_low - low) < 1e-12 && fabs(p.ci_high - high) < 1e-12); /* means of thirds are added in another way */
        /* A percentile of 10,000 draws is known to about 3 % of the interval's half width. */
        const double slack = 0.06 * (high - low) / 2 + 1e-12 + 1 / (double)n;
        assert_true(fabs(p.ci_low - json_number_value(json_array_get(scipy, 0))) <= slack);
        assert_true(fabs(p.ci_high - json_number_value(json_array_get(scipy, 1))) <= slack);
        assert_true(fabs(p.delta - json_number_value(json_object_get(one, "delta"))) < 1e-12);
        assert_int_equal(p.lost, json_integer_value(json_object_get(one, "lost")));
        assert_int_equal(p.gained, json_integer_value(json_object_get(one, "gained")));
        paired_compare(&again, base, after, n, seed + 1);
        assert_true(n != 250 || again.ci_low != p.ci_low || again.ci_high != p.ci_high);
        free(base);
        free(after);
    }
    json_decref(top);
}

static void pairs_without_a_score_are_left_out(void **state) {
    const double base[] = {1, NAN, 0, 1}, after[] = {0, 1, 1, NAN};
    struct paired p;
    (void)state;
    paired_compare(&p, base, after, 4, 1);
    assert_int_equal(p.n, 2);
    assert_true(p.baseline == 0.5 && p.intervened == 0.5 && p.lost == 1 && p.gained == 1 && p.mcnemar_p == 1);
    paired_compare(&p, base, after, 0, 1);
    assert_true(p.n == 0 && p.delta == 0 && p.mcnemar_p == 1 && p.ci_low == 0);
}

static void random_numbers_are_uniform(void **state) {
    uint64_t s = 5;
    long count[7] = {0};
    double sum = 0, square = 0;
    (void)state;
    for (int i = 0; i < 70000; i++) count[random_below(&s, 7)]++;
    for (int i = 0; i < 7; i++) assert_in_range(count[i], 9700, 10300); /* 3 standard deviations: 278 */
    for (int i = 0; i < 20000; i++) {
        const double x = random_normal(&s);
        sum += x;
        square += x * x;
    }
    assert_true(fabs(sum / 20000) < 0.03 && fabs(square / 20000 - 1) < 0.03);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(mcnemar_equals_scipy), cmocka_unit_test(bootstrap_equals_numpy),
                                       cmocka_unit_test(pairs_without_a_score_are_left_out), cmocka_unit_test(random_numbers_are_uniform)};
    return cmocka_run_group_tests_name("paired", tests, NULL, NULL);
}
