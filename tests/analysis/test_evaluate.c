/* test_evaluate.c - VQA's soft accuracy against the official implementation (tools/golden/make_evaluate.py), yes and no by next-token
 * mass against the definition, and answers of the small world against their scores. */
#include "analysis/evaluate.h"
#include "host/file.h"
#include "kernels/device.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define WORLD "tools/tinyworld/world"
static const char *golden = "tests/analysis/golden/vqa.json"; /* or the program's argument: a larger file of the same script */

static void die(const struct error *err) { fail_msg("%s", err->text); }

static void vqa_equals_the_official_evaluation(void **state) {
    json_error_t where;
    json_t *top = json_load_file(golden, 0, &where), *cases = json_object_get(top, "cases"), *row;
    size_t i;
    (void)state;
    if (!top) fail_msg("%s: %s", golden, where.text);
    json_array_foreach(cases, i, row) {
        const char *answer = json_string_value(json_array_get(row, 0)), *references[16];
        const json_t *list = json_array_get(row, 2);
        int n = (int)json_array_size(list);
        for (int r = 0; r < n; r++) references[r] = json_string_value(json_array_get(list, (size_t)r));
        char *normal = vqa_normalise(answer);
        if (strcmp(normal, json_string_value(json_array_get(row, 1))))
            fail_msg("case %zu: '%s' became '%s', the official rules give '%s'", i, answer, normal,
                     json_string_value(json_array_get(row, 1)));
        free(normal);
        double accuracy = vqa_accuracy(answer, references, n), official = json_number_value(json_array_get(row, 3));
        if (accuracy != official) fail_msg("case %zu: '%s' scored %.17g, officially %.17g", i, answer, accuracy, official);
    }
    assert_true(i >= 300);
    json_decref(top);
}

static void one_reference_is_an_exact_match_after_normalisation(void **state) {
    const char *two[] = {"The  Two.", "x"}, *same[] = {"Red!", "Red!", "Red!", "Red!"};
    (void)state;
    assert_true(vqa_accuracy("2", two, 1) == 1);
    assert_true(vqa_accuracy("3", two, 1) == 0);
    assert_true(vqa_accuracy("2", two, 2) == (0 + 1 / 3.0) / 2); /* leave-one-out */
    assert_true(vqa_accuracy(" Red!\n", same, 4) == 1);
    assert_true(vqa_accuracy("red", same, 4) == 0); /* references equal: nothing is normalised */
}

static void assert_near(double a, double b, double tolerance) {
    if (!(fabs(a - b) <= tolerance)) fail_msg("%.17g, expected %.17g", a, b);
}

/* Softmax over the whole vocabulary, as the definition has it. */
static double by_definition(const float *logits, int V, const int *yes, int n_yes, const int *no, int n_no) {
    double sum = 0, p_yes = 0, p_no = 0;
    for (int v = 0; v < V; v++) sum += exp((double)logits[v]);
    for (int i = 0; i < n_yes; i++) p_yes += exp((double)logits[yes[i]]) / sum;
    for (int i = 0; i < n_no; i++) p_no += exp((double)logits[no[i]]) / sum;
    return p_yes / (p_yes + p_no);
}

static void a_tie_counts_as_no(void **state) {
    const struct yes_no w = {.yes = {1, 2}, .no = {3}, .n_yes = 2, .n_no = 1};
    float logits[] = {9, 0.5F, -1, 2, 800}, far[] = {0, -2000, -1990, -1995, 3}, tie[] = {0, -INFINITY, 1.25F, 1.25F, 0};
    (void)state;
    assert_near(yes_no_probability(&w, logits, 4), by_definition(logits, 4, w.yes, 2, w.no, 1), 1e-15);
    assert_near(yes_no_probability(&w, far, 5), (1 + exp(-10)) / (1 + exp(-10) + exp(-5)), 1e-15); /* no underflow to 0 / 0 */
    assert_true(yes_no_probability(&w, tie, 5) == 0.5);                                            /* not above a half: no */
}

static void open_world(struct model *m, const char *part) {
    struct error err = {""};
    char why[256] = "", path[256];
    struct device *dev = device_open(0, 0, why, sizeof why);
    snprintf(path, sizeof path, WORLD "/%s", part);
    if (!dev) fail_msg("%s", why);
    if (model_open(m, dev, path, NULL, &err)) die(&err);
}

static void close_world(struct model *m) {
    struct device *dev = m->dev;
    model_close(m);
    device_close(dev);
}

static int first_token(const struct model *m, const char *word) {
    struct error err = {""};
    struct token_list list = {0};
    if (tokenizer_encode(m->tokenizer, word, strlen(word), false, &list, &err)) die(&err);
    printf("  '%s' begins with '%s'\n", word, tokenizer_piece(m->tokenizer, list.ids[0]));
    const int id = list.ids[0];
    token_list_free(&list);
    return id;
}

static void statements_are_judged_by_next_token_mass(void **state) {
    struct model m;
    struct samples s;
    struct error err = {""};
    struct yes_no w;
    struct evaluation e = {.task = EVALUATE_VSR};
    enum { N = 40 };
    int right = 0;
    (void)state;
    open_world(&m, "vlm");
    if (samples_open(&s, WORLD "/data/vsr_test.jsonl", &err) || yes_no_tokens(&w, m.tokenizer, &err)) die(&err);
    assert_int_equal(evaluation_task_of(&s), EVALUATE_VSR);
    const int yes[] = {first_token(&m, " Yes"), first_token(&m, "Yes"), first_token(&m, " yes"), first_token(&m, "YES")};
    assert_int_equal(w.n_yes, 4); /* all different, none of them begins a no */
    assert_memory_equal(w.yes, yes, sizeof yes);
    assert_int_equal(w.no[0], first_token(&m, " No"));
    if (evaluate_samples(&m, &s, 3, N, NULL, 0, 7, &e, &err)) die(&err);
    float *logits = memory_take((size_t)m.vocab, sizeof *logits);
    for (size_t i = 0; i < N; i++) {
        struct batch b;
        if (model_batch(&m, &b, &s, 3 + i, 1, false, &err) || model_forward(&m, &b, NULL, 0, logits, &err)) die(&err);
        double p = by_definition(logits, m.vocab, w.yes, w.n_yes, w.no, w.n_no);
        assert_near(e.at[i].p_yes, p, 1e-5); /* batch of 7 against one: rounding */
        assert_true(e.at[i].score == ((p > 0.5) == (s.at[3 + i].label == 1)));
        assert_string_equal(e.at[i].text, p > 0.5 ? "yes" : "no");
        right += e.at[i].score > 0;
        batch_free(&b);
    }
    assert_int_equal(e.scored, N);
    assert_true(e.correct == right && right > 0.9 * N);
    printf("  VSR: %d of %d right\n", right, N);
    free(logits);
    evaluation_free(&e);
    samples_free(&s);
    close_world(&m);
}

static int hide_pictures(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b,
                         struct error *err) {
    (void)layer, (void)b, (void)err;
    ++*(int *)context;
    device_zero(dev, x, (size_t)rows * (size_t)width * sizeof(float));
    return 0;
}

static void questions_are_answered_and_scored(void **state) {
    struct model m;
    struct samples s;
    struct error err = {""};
    struct evaluation e = {.task = EVALUATE_VQA}, blind = {.task = EVALUATE_VQA, .max_new_tokens = 1};
    enum { N = 30 };
    int passes = 0, right = 0;
    const struct probe probe = {PROBE_PROJECTOR, -1, hide_pictures, &passes};
    (void)state;
    open_world(&m, "vlm");
    if (samples_open(&s, WORLD "/data/vqa_test.jsonl", &err)) die(&err);
    assert_int_equal(evaluation_task_of(&s), EVALUATE_VQA);
    if (evaluate_samples(&m, &s, 0, N, NULL, 0, 8, &e, &err) || evaluate_samples(&m, &s, 0, N, &probe, 1, 8, &blind, &err)) die(&err);
    for (int i = 0; i < N; i++) {
        assert_true(e.at[i].score == !strcmp(e.at[i].text, s.at[i].answer)); /* the world answers in the words of its data */
        right += e.at[i].score > 0;
    }
    assert_true(e.correct == right && right > 0.9 * N);
    assert_int_equal(passes, 4); /* a caller's probes run */
    assert_true(blind.correct < 0.7 * N);
    printf("  VQA: %d of %d right, %g without pictures\n", right, N, blind.correct);
    evaluation_free(&e);
    evaluation_free(&blind);
    samples_free(&s);
    close_world(&m);
}

int main(int argc, char **argv) {
    if (argc > 1) golden = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vqa_equals_the_official_evaluation),
        cmocka_unit_test(one_reference_is_an_exact_match_after_normalisation),
        cmocka_unit_test(a_tie_counts_as_no),
        cmocka_unit_test(statements_are_judged_by_next_token_mass),
        cmocka_unit_test(questions_are_answered_and_scored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
