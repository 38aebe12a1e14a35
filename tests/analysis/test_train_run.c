/* test_train_run.c - stage_train on a tiny model: the same bits however it is stopped, threaded or split into groups of layers; and its
 * figures against a plain recomputation in double from the rows that the model gives. */
#include "analysis/rows.h"
#include "models/model.h"
#include "tests/analysis/train_test.h"
#include <signal.h>
#include <sys/time.h>

#include "kernels/gemm.h"

static struct tiny tiny;

static void set_up_reference(void) {
    static bool done;
    if (done) return;
    char *config = tiny_config(&tiny, "whole", "", "");
    assert_int_equal(tiny_train(config, 1), 0);
    free(config);
    done = true;
}

static void test_threads_and_groups(void **state) {
    (void)state;
    set_up_reference();
    char *two = tiny_config(&tiny, "two", "", ""), *groups = tiny_config(&tiny, "groups", ", \"layers_at_once\": 1", "");
    assert_int_equal(tiny_train(two, 2), 0);
    assert_int_equal(tiny_train(groups, 1), 0);
    same_run(&tiny, "whole", "two");
    same_run(&tiny, "whole", "groups");
    free(two), free(groups);
}

static void stop_now(int number) {
    (void)number;
    stop_signal = SIGINT;
}

/* SIGINT's flag is raised after a time that grows from call to call, until a call gets through. */
static int stopped_run(const char *config, int *stops) {
    struct sigaction action = {.sa_handler = stop_now, .sa_flags = SA_ONSTACK}; /* as stop_install does */
    stop_install();
    sigaction(SIGALRM, &action, NULL);
    for (*stops = 0;; (*stops)++) {
        long microseconds = 3000 + 1700L * *stops;
        struct itimerval timer = {.it_value = {.tv_usec = microseconds % 1000000, .tv_sec = microseconds / 1000000}};
        setitimer(ITIMER_REAL, &timer, NULL);
        int status = tiny_train(config, 1);
        memset(&timer, 0, sizeof timer);
        setitimer(ITIMER_REAL, &timer, NULL);
        if (status != 128 + SIGINT || *stops > 1000) return status;
        stop_signal = 0;
    }
}

static void test_resume(void **state) {
    (void)state;
    int stops;
    set_up_reference();
    char *config = tiny_config(&tiny, "stopped", "", "");
    assert_int_equal(stopped_run(config, &stops), 0);
    print_message("    stopped %d times\n", stops);
    assert_true(stops >= 5);
    same_run(&tiny, "whole", "stopped");
    free(config);
    config = tiny_config(&tiny, "stopped_groups", ", \"layers_at_once\": 1", "");
    assert_int_equal(stopped_run(config, &stops), 0);
    assert_true(stops >= 5);
    same_run(&tiny, "whole", "stopped_groups");
    free(config);
}

/* Signals in the middle of products, handled on stop_install's stack, change nothing: sgemm of oneDNN 2.6 lives below its stack pointer. */
static void test_signals_spare_products(void **state) {
    (void)state;
    enum { N = 268, I = 128, O = 768 };
    char why[64];
    struct device *dev = device_open(0, 1, why, sizeof why);
    float *x = memory_take(N * I, sizeof *x), *w = memory_take(O * I, sizeof *w), *y = memory_take(N * O, sizeof *y);
    float *expected = memory_take(N * O, sizeof *expected);
    struct sigaction action = {.sa_handler = stop_now, .sa_flags = SA_ONSTACK | SA_RESTART}, ours;
    struct itimerval often = {{0, 500}, {0, 500}}, off = {{0, 0}, {0, 0}};
    for (int i = 0; i < N * I; i++) x[i] = (float)(i % 7) - 3;
    for (int i = 0; i < O * I; i++) w[i] = (float)(i % 5) - 2;
    stop_install();
    assert_int_equal(sigaction(SIGINT, NULL, &ours), 0);
    assert_true(ours.sa_flags & SA_ONSTACK);
    linear_forward(dev, expected, x, w, NULL, N, I, O);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 600; i++) {
        linear_forward(dev, y, x, w, NULL, N, I, O);
        assert_memory_equal(y, expected, (size_t)N * O * sizeof *y);
        free(memory_take(1, 3000 + (size_t)i * 8));
    }
    setitimer(ITIMER_REAL, &off, NULL);
    stop_signal = 0;
    free(x), free(w), free(y), free(expected);
    device_close(dev);
}

static void test_other_settings_are_refused(void **state) {
    (void)state;
    struct run_config c;
    struct error err = {{0}};
    sqlite3 *db = NULL;
    char why[64];
    char *config = tiny_config(&tiny, "half", "", ""), *other = tiny_config(&tiny, "half", ", \"passes\": 2", "");
    stop_signal = SIGTERM;
    assert_int_equal(tiny_train(config, 1), 128 + SIGTERM);
    stop_signal = 0;
    struct device *dev = device_open(0, 1, why, sizeof why);
    char *state_path = tiny_path(&tiny, "half", "state/state.json");
    if (file_exists(state_path)) {
        assert_int_equal(run_config_open(&c, other, &err), 0);
        assert_int_equal(run_db_open(&db, &c, &err), 0);
        assert_int_equal(stage_train(&c, dev, db, &err), -1);
        assert_non_null(strstr(err.text, "other settings"));
        sqlite3_close(db);
        run_config_free(&c);
    }
    assert_int_equal(tiny_train(config, 1), 0);
    same_run(&tiny, "whole", "half");
    assert_int_equal(tiny_train(other, 1), 0); /* finished: another training may take its place */
    device_close(dev);
    free(config), free(other), free(state_path);
}

static void test_metrics_lines(void **state) {
    (void)state;
    set_up_reference();
    char *path = tiny_path(&tiny, "whole", "metrics.jsonl"), line[512];
    long next[TINY_LAYERS][REGIME_COUNT] = {{0}};
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        json_t *o = json_loads(line, 0, NULL);
        assert_non_null(o);
        int layer = (int)json_integer_value(json_object_get(o, "layer")), r = 0;
        while (strcmp(regime_names[r], json_string_value(json_object_get(o, "regime")))) r++;
        assert_int_equal(json_integer_value(json_object_get(o, "step")), next[layer][r]++);
        assert_true(json_real_value(json_object_get(o, "loss")) > 0);
        assert_true(json_number_value(json_object_get(o, "l0")) <= TINY_K);
        assert_true(json_integer_value(json_object_get(o, "rows")) <= 64);
        json_decref(o);
    }
    fclose(f);
    free(path);
    for (int l = 0; l < TINY_LAYERS; l++)
        for (int r = 0; r < REGIME_COUNT; r++) assert_true(next[l][r] >= 3);
}

/* ---- the figures, once more and plainly ---- */

struct kept { /* residual rows of one layer over all validation samples, with kind and sample of each */
    int n;
    float *x;
    uint8_t *kinds;
    int *sample;
};

static int keep_rows(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    struct kept *k = context;
    (void)layer, (void)err;
    size_t n = (size_t)(k->n + rows), d = (size_t)width;
    k->x = memory_grow(k->x, n * d, sizeof *k->x);
    k->kinds = memory_grow(k->kinds, n, 1);
    k->sample = memory_grow(k->sample, n, sizeof *k->sample);
    device_download(dev, k->x + (size_t)k->n * d, x, (size_t)rows * d * sizeof *k->x);
    for (int i = 0; i < rows; i++) {
        int s = 0;
        while (b->cu_seqlens[s + 1] <= i) s++;
        k->kinds[k->n + i] = b->kinds[i];
        k->sample[k->n + i] = (int)b->sample[s];
    }
    k->n += rows;
    return 0;
}

static void gather(struct kept *k, const struct run_config *c, int layer) {
    struct model m;
    struct samples samples;
    struct error err = {{0}};
    size_t first, count;
    char why[64];
    struct device *dev = device_open(0, 1, why, sizeof why);
    *k = (struct kept){0};
    assert_int_equal(run_samples(c, true, &samples, &first, &count, &err), 0);
    assert_int_equal(first, TINY_TRAIN);
    assert_int_equal(count, TINY_VALIDATION);
    assert_int_equal(model_open(&m, dev, c->model, NULL, &err), 0);
    const struct probe probe = {.point = PROBE_RESID_POST, .layer = layer, .run = keep_rows, .context = k};
    for (size_t i = 0; i < count; i++) { /* one sample at a time */
        struct batch b = {0};
        assert_int_equal(model_batch(&m, &b, &samples, first + i, 1, true, &err), 0);
        if (model_forward(&m, &b, &probe, 1, NULL, &err)) fail_msg("%s", err.text);
        batch_free(&b);
    }
    model_close(&m);
    samples_free(&samples);
    device_close(dev);
}

static bool takes(int mask, int kind) { return kind != KIND_BOS && (mask == 0 || (mask == 1) == (kind == KIND_IMAGE)); }

/* Squared error and positive codes of a row, dense and in double. */
static double row_error(const struct sae_host *s, const float *x, int *positive, bool *fired) {
    double *h = memory_take((size_t)s->M, sizeof *h), error = 0;
    bool *on = memory_take((size_t)s->M, sizeof *on);
    for (int f = 0; f < s->M; f++) {
        h[f] = (double)s->b_e[f];
        for (int i = 0; i < s->d; i++) h[f] += (double)s->E[f * s->d + i] * (double)x[i];
        on[f] = s->activation == SAE_JUMPRELU && h[f] > (double)s->threshold[f];
    }
    for (int k = 0; k < s->K && s->activation == SAE_TOPK; k++) {
        int best = -1;
        for (int f = 0; f < s->M; f++)
            if (!on[f] && (best < 0 || h[f] > h[best])) best = f;
        on[best] = true;
    }
    for (int f = 0; f < s->M; f++) {
        on[f] = on[f] && h[f] > 0;
        *positive += on[f];
        fired[f] = fired[f] || on[f];
    }
    for (int i = 0; i < s->d; i++) {
        double y = (double)s->b_d[i];
        for (int f = 0; f < s->M; f++) y += on[f] ? h[f] * (double)s->D[f * s->d + i] : 0;
        error += (y - (double)x[i]) * (y - (double)x[i]);
    }
    free(h), free(on);
    return error;
}

/* var as the authors' code has it: every position of the padded batch, masked rows as zeros. */
static double coded_batch(const struct kept *k, const double *errors, int mask, int first_sample, int d) {
    double mean[TINY_D] = {0}, recon = 0, var = 0;
    int n = 0, longest = 0, samples = 0;
    for (int s = first_sample; s < first_sample + 8 && s < TINY_TRAIN + TINY_VALIDATION; s++, samples++) {
        int length = 0;
        for (int i = 0; i < k->n; i++) length += k->sample[i] == s && k->kinds[i] != KIND_BOS;
        longest = length > longest ? length : longest;
    }
    for (int i = 0; i < k->n; i++)
        if (k->sample[i] >= first_sample && k->sample[i] < first_sample + 8 && takes(mask, k->kinds[i])) {
            for (int c = 0; c < d; c++) mean[c] += (double)k->x[i * d + c];
            recon += errors[i];
            n++;
        }
    if (n == 0) return NAN;
    for (int c = 0; c < d; c++) mean[c] /= n;
    int positions = 0;
    for (int i = 0; i < k->n; i++)
        if (k->sample[i] >= first_sample && k->sample[i] < first_sample + 8 && takes(mask, k->kinds[i])) {
            for (int c = 0; c < d; c++) var += pow((double)k->x[i * d + c] - mean[c], 2);
            positions++;
        }
    for (; positions < samples * longest; positions++)
        for (int c = 0; c < d; c++) var += mean[c] * mean[c];
    return recon / n / (var / n + 1e-8);
}

static void near(const char *what, double ours, double expected) {
    print_message("    %-32s %.9g, expected %.9g\n", what, ours, expected);
    if (!(fabs(ours - expected) <= 2e-6 * fabs(expected))) fail_msg("%s: %.12g, expected %.12g", what, ours, expected);
}

static void check_row(sqlite3 *db, const struct kept *k, const char *sae_path, int layer, const char *regime, int mask) {
    struct sae_host s;
    struct error err = {{0}};
    sqlite3_stmt *q;
    double error = 0, variance = 0, mean[TINY_D] = {0}, coded = 0, *errors = memory_take((size_t)k->n, sizeof *errors);
    int tokens = 0, positive = 0, batches = 0, dead = 0, d = TINY_D;
    bool fired[TINY_M] = {false};
    if (sae_load(&s, sae_path, &err)) fail_msg("%s", err.text);
    if (strcmp(regime, "base_native")) assert_int_equal(sae_make_topk(&s, TINY_K, &err), 0);
    for (int i = 0; i < k->n; i++)
        if (takes(mask, k->kinds[i])) {
            errors[i] = row_error(&s, k->x + i * d, &positive, fired);
            error += errors[i];
            tokens++;
            for (int c = 0; c < d; c++) mean[c] += (double)k->x[i * d + c];
        }
    for (int c = 0; c < d; c++) mean[c] /= tokens;
    for (int i = 0; i < k->n; i++)
        for (int c = 0; c < d && takes(mask, k->kinds[i]); c++) variance += pow((double)k->x[i * d + c] - mean[c], 2);
    for (int first = TINY_TRAIN; first < TINY_TRAIN + TINY_VALIDATION; first += 8) {
        double one = coded_batch(k, errors, mask, first, d);
        if (!isnan(one)) coded += one, batches++;
    }
    assert_int_equal(run_db_prepare(db, &q, &err,
                                    "SELECT tokens, fvu, fvu_as_coded, l0, dead_features FROM layer_metrics WHERE layer = ? AND regime = ?",
                                    "it", (long)layer, regime),
                     0);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    print_message("  layer %d %s\n", layer, regime);
    assert_int_equal(sqlite3_column_int(q, 0), tokens);
    near("fvu", sqlite3_column_double(q, 1), error / variance);
    near("fvu as coded", sqlite3_column_double(q, 2), coded / batches);
    near("l0", sqlite3_column_double(q, 3), (double)positive / tokens);
    for (int f = 0; f < s.M; f++) dead += !fired[f];
    assert_true(sqlite3_column_int(q, 4) <= dead); /* a feature that fired in training is not dead */
    if (strncmp(regime, "base", 4) == 0) assert_int_equal(sqlite3_column_int(q, 4), dead);
    sqlite3_finalize(q);
    free(errors);
    sae_host_free(&s);
}

static void test_figures(void **state) {
    (void)state;
    static const int mask_of[REGIME_COUNT] = {0, 1, 2, 0};
    struct run_config c;
    struct error err = {{0}};
    sqlite3 *db;
    set_up_reference();
    char *config = tiny_config(&tiny, "whole", "", "");
    assert_int_equal(run_config_open(&c, config, &err), 0);
    assert_int_equal(run_db_open(&db, &c, &err), 0);
    for (int l = 0; l < TINY_LAYERS; l++) {
        struct kept k;
        gather(&k, &c, l);
        for (int r = 0; r < REGIME_COUNT; r++) {
            char *path = run_sae_path(&c, (enum regime)r, l);
            check_row(db, &k, path, l, regime_names[r], mask_of[r]);
            free(path);
        }
        char *path = run_base_sae_path(&c, l, &err);
        check_row(db, &k, path, l, "base", 0);
        check_row(db, &k, path, l, "base_image", 1);
        check_row(db, &k, path, l, "base_text", 2);
        if (l == 1) check_row(db, &k, path, l, "base_native", 0);
        free(path), free(k.x), free(k.kinds), free(k.sample);
    }
    sqlite3_close(db);
    run_config_free(&c);
    free(config);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_figures),       cmocka_unit_test(test_signals_spare_products),
                                       cmocka_unit_test(test_metrics_lines), cmocka_unit_test(test_threads_and_groups),
                                       cmocka_unit_test(test_resume),        cmocka_unit_test(test_other_settings_are_refused)};
    log_quiet = 1;
    tiny_make(&tiny);
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    tiny_remove(&tiny);
    return failures;
}
