/* test_vectors.c - CAA's contrasts and head means on the small world against rows kept one sample at a time; MMDiff's two forms against the
 * formulas. */
#include "model_test.h"
#include "analysis/vectors.h"
#include "tests/world.h"
#include <math.h>

static const double LIMIT = 1e-5; /* f32 sums in another order; differences of rows ten times as long */

/* Adds the last row of every layer of one sample, with an answer appended where there is one. */
static void add_last(double *sum, struct model *m, const struct sample *line, const char *answer) {
    struct sample one = *line;
    struct samples s = {.at = &one, .count = 1, .path = (char *)(uintptr_t) "line"};
    struct batch b;
    struct kept post = {.point = PROBE_RESID_POST};
    const struct probe probe = {PROBE_RESID_POST, -1, keep_probe, &post};
    one.answer = (char *)(uintptr_t)answer;
    MUST(model_batch(m, &b, &s, 0, 1, answer != NULL, err));
    MUST(model_forward(m, &b, &probe, 1, NULL, err));
    for (int l = 0; l < m->n_layers; l++)
        for (int c = 0; c < m->d_model; c++)
            sum[l * m->d_model + c] += (double)post.data[l + 1][(size_t)(b.n_tokens - 1) * (size_t)m->d_model + (size_t)c];
    kept_free(&post);
    batch_free(&b);
}

static void compare(const char *what, const float *got, const double *right, long n_right, const double *wrong, long n_wrong, size_t n) {
    float *want = malloc(n * sizeof *want);
    for (size_t i = 0; i < n; i++) want[i] = (float)(right[i] / (double)n_right - (wrong ? wrong[i] / (double)n_wrong : 0));
    const double e = relative_rms(got, want, n);
    printf("  %-24s relative RMS %.2g\n", what, e);
    if (!(e <= LIMIT)) FAIL("%s: relative RMS %g", what, e);
    free(want);
}

static void contrasts_are_mean_differences(void **state) {
    enum { FIRST = 1, N = 21, SIZE = WORLD_LAYERS * WORLD_WIDTH };
    static double right[SIZE], wrong[SIZE], won[SIZE], lost[SIZE];
    struct model m;
    struct samples s;
    struct caa c;
    struct evaluation e = {.task = EVALUATE_VSR};
    struct error why;
    (void)state;
    open_model(&m, WORLD "/vlm");
    assert_int_equal(m.n_layers * m.d_model, SIZE);
    MUST(samples_open(&s, WORLD "/data/vsr_test.jsonl", err));
    MUST(caa_make(&c, &m, &s, FIRST, N, CONTRAST_ANSWERS, EVALUATE_VSR, 8, err));
    assert_true(c.positive == N && c.negative == N);
    for (int i = 0; i < N; i++) {
        const struct sample *line = &s.at[FIRST + i];
        add_last(right, &m, line, line->label ? "Yes" : "No");
        add_last(wrong, &m, line, line->label ? "No" : "Yes");
    }
    compare("answers", c.vectors, right, N, wrong, N, SIZE);
    caa_free(&c);
    /* outcomes: turn every third label, so that both sides have lines */
    for (int i = 0; i < N; i += 3) s.at[FIRST + i].label = 1 - s.at[FIRST + i].label;
    MUST(evaluate_samples(&m, &s, FIRST, N, NULL, 0, 4, &e, err));
    MUST(caa_make(&c, &m, &s, FIRST, N, CONTRAST_OUTCOMES, EVALUATE_VSR, 8, err));
    for (int i = 0; i < N; i++) add_last(e.at[i].score >= 0.5 ? won : lost, &m, &s.at[FIRST + i], NULL);
    assert_true(c.positive == (long)e.correct && c.negative == N - c.positive && c.negative >= 3);
    compare("outcomes, yes or no", c.vectors, won, c.positive, lost, c.negative, SIZE);
    caa_free(&c);
    evaluation_free(&e);
    samples_free(&s);
    /* generated answers: only the prompts' pass counts */
    memset(won, 0, sizeof won);
    memset(lost, 0, sizeof lost);
    MUST(samples_open(&s, WORLD "/data/vqa_test.jsonl", err));
    for (int i = 0; i < N; i += 2) json_object_set_new(s.at[i].json, "answers", json_pack("[s]", "something else"));
    e = (struct evaluation){.task = EVALUATE_VQA};
    MUST(evaluate_samples(&m, &s, 0, N, NULL, 0, 4, &e, err));
    MUST(caa_make(&c, &m, &s, 0, N, CONTRAST_OUTCOMES, EVALUATE_VQA, 8, err));
    for (int i = 0; i < N; i++) add_last(e.at[i].score >= 0.5 ? won : lost, &m, &s.at[i], NULL);
    compare("outcomes, generated", c.vectors, won, c.positive, lost, c.negative, SIZE);
    caa_free(&c);
    evaluation_free(&e);
    assert_int_equal(caa_make(&c, &m, &s, 0, N, CONTRAST_ANSWERS, EVALUATE_VQA, 8, &why), -1);
    assert_non_null(strstr(why.text, "'incorrect'"));
    samples_free(&s);
    model_close(&m);
}

static void means_are_means(void **state) {
    enum { N = 5, SIZE = WORLD_LAYERS * WORLD_WIDTH };
    static double sum[SIZE];
    static float means[SIZE];
    struct model m;
    struct samples s;
    long tokens = 0;
    (void)state;
    open_model(&m, WORLD "/vlm");
    MUST(samples_open(&s, WORLD "/data/vsr_test.jsonl", err));
    MUST(head_means(means, &m, &s, 0, N, 2, err));
    for (size_t i = 0; i < N; i++) {
        struct batch b;
        struct kept z = {.point = PROBE_ATTN_Z};
        const struct probe probe = {PROBE_ATTN_Z, -1, keep_probe, &z};
        MUST(model_batch(&m, &b, &s, i, 1, false, err));
        MUST(model_forward(&m, &b, &probe, 1, NULL, err));
        for (int l = 0; l < m.n_layers; l++)
            for (int r = 0; r < z.rows; r++)
                for (int c = 0; c < z.width; c++) sum[l * z.width + c] += (double)z.data[l + 1][r * z.width + c];
        tokens += z.rows;
        kept_free(&z);
        batch_free(&b);
    }
    compare("means of heads", means, sum, tokens, NULL, 1, SIZE);
    samples_free(&s);
    model_close(&m);
}

static void mmdiff_is_as_published(void **state) {
    const float direction[] = {0, 3, 0}; /* unit: (0, 1, 0) */
    float v[] = {3, 4, 0}, w[] = {3, 4, 0}, plain[] = {3, 4, 0};
    (void)state;
    mmdiff_scale(v, direction, 3, 3); /* (0.6, 0.8, 0) + 2 * 0.8 (0, 1, 0) */
    assert_true(fabs((double)v[0] - 0.6) < 1e-6 && fabs((double)v[1] - 2.4) < 1e-6 && v[2] == 0);
    mmdiff_scale(plain, direction, 3, 1);
    assert_true(fabs((double)plain[0] - 0.6) < 1e-6 && fabs((double)plain[1] - 0.8) < 1e-6);
    mmdiff_sum(w, direction, 3, 0.5, 10);
    assert_true(w[0] == 1.5f && w[1] == 12 && w[2] == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(contrasts_are_mean_differences), cmocka_unit_test(means_are_means),
                                       cmocka_unit_test(mmdiff_is_as_published)};
    return cmocka_run_group_tests_name("vectors", tests, NULL, NULL);
}
