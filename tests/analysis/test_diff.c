/* test_diff.c - what `diff` computes, held against a plain double computation on a small synthetic matrix; the percentile and the
 * adapted rule; the strongest samples; and its rows in run.db, replaced whole or not at all. No model runs here. */
#include "analysis/diff.h"
#include "analysis/summary.h"
#include "host/file.h"
#include "kernels/device.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

enum { D = 24, M = 96, K = 8, SAMPLES = 60, ROWS = 2 * DIFF_CHUNK + 901 };

static uint64_t state_bits = 1;

static double uniform(void) /* splitmix64 */
{
    uint64_t z = state_bits += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53 * 2 - 1;
}

struct world {
    struct device *dev;
    struct sae_host tuned, base;
    float *x;
    uint8_t *group;
    struct diff_origin *origin;
    long tokens[DIFF_GROUPS];
    /* the plain computation */
    double energy[DIFF_GROUPS][M];
    long fired[DIFF_GROUPS][M];
    double peak[M][SAMPLES]; /* by picture: two samples share one */
};

static void fill(float *p, size_t n, double scale) {
    for (size_t i = 0; i < n; i++) p[i] = (float)(scale * uniform());
}

static void make_sae(struct sae_host *s, double decoder_scale) {
    memset(s, 0, sizeof *s);
    s->d = D, s->M = M, s->K = K, s->activation = SAE_TOPK, s->layer = -1;
    s->E = memory_take(M * D, sizeof *s->E);
    s->D = memory_take(M * D, sizeof *s->D);
    s->b_e = memory_take(M, sizeof *s->b_e);
    s->b_d = memory_take(D, sizeof *s->b_d);
    fill(s->E, M * D, 1);
    fill(s->D, M * D, decoder_scale); /* rows far from unit length: the convention must be applied */
    fill(s->b_e, M, 2);
}

/* codes of one row in double: the K largest pre-activations, ties to the lower index, then relu, times |d_f| */
static void plain_codes(const struct sae_host *s, const float *x, double *z) {
    double h[M];
    bool taken[M] = {false};
    for (int f = 0; f < M; f++) {
        h[f] = (double)s->b_e[f];
        for (int i = 0; i < D; i++) h[f] += (double)s->E[f * D + i] * (double)x[i];
        z[f] = 0;
    }
    for (int k = 0; k < K; k++) {
        int best = -1;
        for (int f = 0; f < M; f++)
            if (!taken[f] && (best < 0 || h[f] > h[best])) best = f;
        double norm = 0;
        for (int i = 0; i < D; i++) norm += (double)s->D[best * D + i] * (double)s->D[best * D + i];
        taken[best] = true;
        z[best] = h[best] > 0 ? h[best] * sqrt(norm) : 0;
    }
}

static void world_open(struct world *w, uint64_t seed) {
    char why[256];
    memset(w, 0, sizeof *w);
    state_bits = seed;
    w->dev = device_open(0, 2, why, sizeof why);
    assert_non_null(w->dev);
    make_sae(&w->tuned, 3);
    make_sae(&w->base, 0.2);
    for (int i = 0; i < M * D; i++) /* related to the base one, feature by feature more or less */
        w->base.D[i] = 0.3f * w->tuned.D[i] + w->base.D[i] * (float)(i / D) / M, w->base.E[i] = w->tuned.E[i] + 0.5f * w->base.E[i];
    memset(w->base.D + 5 * D, 0, D * sizeof(float)); /* a zero row: cosine 0 */
    w->x = memory_take((size_t)ROWS * D, sizeof *w->x);
    w->group = memory_take(ROWS, 1);
    w->origin = memory_take(ROWS, sizeof *w->origin);
    fill(w->x, (size_t)ROWS * D, 1);
    for (int r = 0, start = 0; r < ROWS; r++) {
        struct diff_origin *o = &w->origin[r];
        o->sample = (long)r * SAMPLES / ROWS;
        o->picture = o->sample / 2 * 2;
        start = r && o->sample != o[-1].sample ? r : start;
        o->position = r - start;
        w->group[r] = o->position == 0 ? DIFF_IGNORED
                                       : (uint8_t)(r % 7 < 3   ? DIFF_PATCHES
                                                   : r % 7 < 4 ? DIFF_WORDS
                                                   : r % 7 < 5 ? DIFF_TEMPLATE
                                                               : DIFF_BASE);
        double z[M];
        plain_codes(&w->tuned, w->x + (size_t)r * D, z);
        if (w->group[r] == DIFF_IGNORED) continue;
        w->tokens[w->group[r]]++;
        for (int f = 0; f < M; f++) {
            w->energy[w->group[r]][f] += z[f] * z[f];
            w->fired[w->group[r]][f] += z[f] > 0;
            if (w->group[r] == DIFF_PATCHES || w->group[r] == DIFF_WORDS) /* examples are of pictures and words */
                w->peak[f][o->picture] = fmax(w->peak[f][o->picture], z[f]);
        }
    }
}

static void world_close(struct world *w) {
    sae_host_free(&w->tuned);
    sae_host_free(&w->base);
    free(w->x), free(w->group), free(w->origin);
    device_close(w->dev);
}

/* The job over all rows, in two calls as two batches would come. */
static void run_job(struct diff_job *job, struct world *w, enum regime regime, int layer) {
    struct diff_buffers b;
    struct error err = {""};
    act_t *x = device_alloc(w->dev, (size_t)ROWS * D * sizeof *x);
    assert_non_null(x);
    device_upload(w->dev, x, w->x, (size_t)ROWS * D * sizeof *x);
    if (diff_buffers_open(&b, w->dev, D, M, K, &err) || diff_job_open(job, w->dev, regime, layer, &w->tuned, &w->base, true, &err) ||
        diff_job_attach(job, &b, &w->tuned, &err))
        fail_msg("%s", err.text);
    int half = DIFF_CHUNK + 17;
    diff_job_rows(job, &b, x, half, w->group, w->origin);
    diff_job_rows(job, &b, x + (size_t)half * D, ROWS - half, w->group + half, w->origin + half);
    diff_job_collect(job, &b);
    diff_buffers_close(&b);
    device_free(w->dev, x);
}

static void assert_near(double found, double expected, double relative, const char *what, int f) {
    if (!(fabs(found - expected) <= relative * fabs(expected) + 1e-12))
        fail_msg("%s of feature %d: %.12g, expected %.12g", what, f, found, expected);
}

static void test_quantities(void **state) {
    (void)state;
    static struct world w;
    struct diff_job job;
    world_open(&w, 7);
    run_job(&job, &w, REGIME_TEXT, 3);
    struct diff_counts n = {{w.tokens[0], w.tokens[1], w.tokens[2], w.tokens[3]}, false}, words = n;
    words.text_only = true;
    double text = (double)(w.tokens[DIFF_WORDS] + w.tokens[DIFF_TEMPLATE]), image = (double)w.tokens[DIFF_PATCHES] + text;
    for (int f = 0; f < M; f++) {
        assert_near(diff_energy(&job, &n, f, true),
                    (w.energy[DIFF_PATCHES][f] + w.energy[DIFF_WORDS][f] + w.energy[DIFF_TEMPLATE][f]) / image, 2e-6, "E_v", f);
        assert_near(diff_energy(&job, &n, f, false), w.energy[DIFF_BASE][f] / (double)w.tokens[DIFF_BASE], 2e-6, "E_t", f);
        assert_near(diff_fire(&job, &n, f, true),
                    (double)(w.fired[DIFF_PATCHES][f] + w.fired[DIFF_WORDS][f] + w.fired[DIFF_TEMPLATE][f]) / image, 0, "fire_image", f);
        assert_near(diff_fire(&job, &n, f, false), (double)w.fired[DIFF_BASE][f] / (double)w.tokens[DIFF_BASE], 0, "fire_text", f);
        assert_near(diff_energy(&job, &words, f, true), (w.energy[DIFF_WORDS][f] + w.energy[DIFF_TEMPLATE][f]) / text, 2e-6, "E_v of text",
                    f);
        double ab = 0, aa = 0, bb = 0, pq = 0, pp = 0, qq = 0;
        for (int i = f * D; i < (f + 1) * D; i++) {
            ab += (double)w.tuned.D[i] * (double)w.base.D[i], aa += pow((double)w.tuned.D[i], 2), bb += pow((double)w.base.D[i], 2);
            pq += (double)w.tuned.E[i] * (double)w.base.E[i], pp += pow((double)w.tuned.E[i], 2), qq += pow((double)w.base.E[i], 2);
        }
        assert_near((double)job.decoder_cosine[f], bb > 0 ? ab / sqrt(aa * bb) : 0, 1e-6, "decoder cosine", f);
        assert_near((double)job.encoder_cosine[f], pq / sqrt(pp * qq), 1e-6, "encoder cosine", f);
    }
    diff_job_close(&job);
    world_close(&w);
}

static int falling(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

static void test_strongest_samples(void **state) {
    (void)state;
    static struct world w;
    struct diff_job job;
    world_open(&w, 8);
    run_job(&job, &w, REGIME_TEXT, 0);
    for (int f = 0; f < M; f++) {
        struct diff_top *top = job.top + (size_t)f * DIFF_TOP;
        double peaks[SAMPLES], found[DIFF_TOP] = {0};
        memcpy(peaks, w.peak[f], sizeof peaks);
        qsort(peaks, SAMPLES, sizeof *peaks, falling);
        for (int i = 0; i < DIFF_TOP; i++) {
            if (top[i].sample < 0) continue;
            found[i] = (double)top[i].value;
            assert_near(found[i], w.peak[f][top[i].picture], 1e-5, "peak in its picture", f);
            assert_int_equal(top[i].sample / 2 * 2, top[i].picture);
            for (int j = 0; j < i; j++) assert_true(top[i].picture != top[j].picture); /* a picture stands once */
        }
        qsort(found, DIFF_TOP, sizeof *found, falling);
        for (int i = 0; i < DIFF_TOP; i++) assert_near(found[i], peaks[i], 1e-5, "strongest", f);
    }
    diff_job_close(&job);
    world_close(&w);
}

static void test_percentile(void **state) {
    (void)state;
    static const struct {
        double values[5];
        size_t n;
        double p, expected; /* numpy.percentile, default method */
    } rows[] = {
        {{4, 1, 3, 2}, 4, 25, 1.75},
        {{15, 20, 35, 40, 50}, 5, 40, 29},
        {{15, 20, 35, 40, 50}, 5, 5, 16},
        {{50, 40, 35, 20, 15}, 5, 0, 15},
        {{50, 40, 35, 20, 15}, 5, 100, 50},
        {{7}, 1, 25, 7},
        {{1, 2}, 2, 50, 1.5},
        {{0.1, 0.1, 0.1, 0.9}, 4, 60, 0.1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double values[5];
        memcpy(values, rows[i].values, sizeof values);
        assert_near(percentile_linear(values, rows[i].n, rows[i].p), rows[i].expected, 1e-15, "percentile of row", (int)i);
    }
    assert_true(isnan(percentile_linear(NULL, 0, 25)));
}

/* Two layers of a regime and one of another, with numbers chosen by hand. */
static void hand_made(struct diff_job jobs[3]) {
    static const float cosine[3][4] = {{0.1f, 0.2f, 0.9f, 0.95f}, {0.3f, 0.4f, 0.5f, 0.99f}, {-1, -1, -1, -1}};
    static const double patches[3][4] = {{10, 0.1, 10, 10}, {10, 10, 10, 0}, {10, 10, 10, 10}};
    for (int j = 0; j < 3; j++) {
        jobs[j] = (struct diff_job){.regime = j < 2 ? REGIME_TEXT : REGIME_FULL, .layer = j % 2, .d = 8, .M = 4, .K = 1};
        jobs[j].energy = memory_take(DIFF_GROUPS * 4, sizeof(double));
        jobs[j].fired = memory_take(DIFF_GROUPS * 4, sizeof(int64_t));
        jobs[j].norm = memory_take(4, sizeof(float));
        jobs[j].decoder_cosine = memory_take(4, sizeof(float));
        jobs[j].encoder_cosine = memory_take(4, sizeof(float));
        jobs[j].adapted = memory_take(4, 1);
        memcpy(jobs[j].decoder_cosine, cosine[j], sizeof cosine[j]);
        memcpy(jobs[j].energy, patches[j], sizeof patches[j]);
        jobs[j].energy[4 + 1] = 0.5 * (j + 1);
    }
}

static void test_adapted(void **state) {
    (void)state;
    struct diff_job jobs[3];
    struct diff_counts n = {{60, 30, 10, 100}, false};
    hand_made(jobs);
    /* pooled cosines .1 .2 .3 .4 .5 .9 .95 .99: 50th percentile .45; the other regime's do not count */
    assert_near(diff_select(jobs, 3, REGIME_TEXT, &n, 0.01, 50), 0.45, 1e-7, "threshold", 0);
    /* layer 0: f0 turned and strong; f1 turned, (0.1 + 0.5) / 100 = 0.006: too weak; layer 1: f0, f1 */
    static const uint8_t expected[2][4] = {{1, 0, 0, 0}, {1, 1, 0, 0}};
    assert_memory_equal(jobs[0].adapted, expected[0], 4);
    assert_memory_equal(jobs[1].adapted, expected[1], 4);
    /* without a counterpart: no cosine, in no pool, never adapted */
    jobs[2].decoder_cosine[0] = (float)NAN;
    jobs[2].regime = REGIME_TEXT;
    assert_near(diff_select(jobs, 3, REGIME_TEXT, &n, 0.01, 100), (double)0.99f, 1e-9, "threshold", 1);
    assert_int_equal(jobs[2].adapted[0], 0);
    assert_int_equal(jobs[2].adapted[1], 1);
    jobs[2].regime = REGIME_FULL;
    /* eps is a strict bound, the percentile an inclusive one */
    diff_select(jobs, 3, REGIME_TEXT, &n, 0.1, 50);
    assert_int_equal(jobs[0].adapted[0], 0); /* 10 / 100 is not above 0.1 */
    assert_int_equal(jobs[1].adapted[1], 1); /* 11 / 100 is */
    diff_select(jobs, 3, REGIME_TEXT, &n, 0.01, 0);
    assert_int_equal(jobs[0].adapted[0], 1);
    assert_int_equal(jobs[1].adapted[0], 0);
    /* words alone: only features 1 have any */
    n.text_only = true;
    diff_select(jobs, 3, REGIME_TEXT, &n, 0.01, 50);
    static const uint8_t words[2][4] = {{0, 1, 0, 0}, {0, 1, 0, 0}};
    assert_memory_equal(jobs[0].adapted, words[0], 4);
    assert_memory_equal(jobs[1].adapted, words[1], 4);
    n.text_only = false;
    for (int j = 0; j < 3; j++) diff_job_close(&jobs[j]);
}

static void expect_chosen(const struct diff_job *jobs, const struct diff_counts *n, int wanted, const char *expected) {
    int count = 0;
    char found[128] = "";
    struct diff_chosen *chosen = diff_choose(jobs, 3, REGIME_TEXT, n, wanted, &count);
    for (int i = 0; i < count; i++) sprintf(found + strlen(found), "%d/%d ", chosen[i].job, chosen[i].feature);
    free(chosen);
    assert_string_equal(found, expected);
}

/* Half by energy on patches, half by energy on words, two of a layer here; then by E_v. */
static void test_choice(void **state) {
    (void)state;
    struct diff_job jobs[3];
    struct diff_counts n = {{60, 30, 10, 100}, false};
    hand_made(jobs);
    diff_select(jobs, 3, REGIME_TEXT, &n, 0.001, 100); /* all but 1/3, which has no energy, are adapted */
    expect_chosen(jobs, &n, 1, "0/0 ");
    expect_chosen(jobs, &n, 4, "0/0 0/2 1/1 0/1 ");
    expect_chosen(jobs, &n, 5, "0/0 0/2 0/3 1/1 0/1 ");
    jobs[0].fired[0] = 16; /* of 60 patches: too many, comes last */
    expect_chosen(jobs, &n, 4, "0/2 0/3 1/1 0/1 ");
    expect_chosen(jobs, &n, 9, "0/2 0/3 1/0 1/1 1/2 0/1 0/0 ");
    jobs[2].regime = REGIME_TEXT; /* three layers: a half of three takes at most two of one */
    jobs[0].fired[0] = 0;
    diff_select(jobs, 3, REGIME_TEXT, &n, 0.001, 100);
    expect_chosen(jobs, &n, 6, "0/0 0/2 1/0 2/1 1/1 0/1 ");
    jobs[2].regime = REGIME_FULL;
    jobs[0].fired[0] = 16;
    memset(jobs[0].adapted, 0, 4);
    expect_chosen(jobs, &n, 2, "1/0 1/1 ");
    memset(jobs[1].adapted, 0, 4); /* none adapted: all are candidates */
    expect_chosen(jobs, &n, 4, "0/2 0/3 1/1 0/1 ");
    for (int j = 0; j < 3; j++) diff_job_close(&jobs[j]);
}

static void test_pictures(void **state) {
    (void)state;
    static char a[] = "a.png", b[] = "b.png";
    struct sample at[] = {{.image = b}, {.image = a}, {.image = NULL}, {.image = b}, {.image = NULL}, {.image = a}, {.image = b}};
    static const long expected[] = {0, 1, 2, 0, 4, 1, 0};
    struct samples s = {at, 7, NULL};
    long *picture = diff_pictures(&s);
    assert_memory_equal(picture, expected, sizeof expected);
    free(picture);
}

/* ---- rows ---- */

static struct run_config config = {
    .out = "build/test-diff", .diff_eps = 0.01, .diff_percentile = 50, .diff_regime = REGIME_TEXT, .report_features = 2};
static char line_id[] = "\"a\"", line_question[] = "Where?";
static struct sample lines[] = {{.id = line_id, .question = line_question}, {.id = line_id, .question = line_question}};
static struct samples file = {.at = lines, .count = 2};

static sqlite3 *fresh(void) {
    struct error err = {""};
    sqlite3 *db = NULL;
    unlink("build/test-diff/run.db");
    if (run_db_open(&db, &config, &err)) fail_msg("%s", err.text);
    return db;
}

static int write_rows(sqlite3 *db, struct diff_job *jobs, int n_jobs, struct error *err) {
    struct diff_counts n = {{60, 30, 10, 100}, false};
    double thresholds[REGIME_COUNT] = {0};
    float values[3] = {0, 1, 2};
    static char tokens[] = "[\"a\",\"b\",\"c\"]";
    static uint8_t kinds[] = {0, 2, 3};
    struct diff_example example = {.job = 0, .feature = 1, .top = {2, 2, 1, 1}, .kind = 3, .values = values, .tokens = 3};
    struct diff_sample sample = {.index = 1, .tokens = tokens, .kinds = kinds, .n_tokens = 3};
    struct diff_examples e = {&example, 1, &sample, 1};
    thresholds[REGIME_TEXT] = diff_select(jobs, n_jobs, REGIME_TEXT, &n, 0.01, 50);
    return diff_write(db, &config, jobs, n_jobs, &n, thresholds, &file, 0, &e, err);
}

static void test_rows_replaced(void **state) {
    (void)state;
    struct diff_job jobs[3];
    struct error err = {""};
    sqlite3 *db = fresh();
    hand_made(jobs);
    for (int turn = 0; turn < 2; turn++) {
        if (write_rows(db, jobs, 3, &err)) fail_msg("%s", err.text);
        assert_int_equal(run_db_count(db, "SELECT count(*) FROM feature_metrics"), 12);
        assert_int_equal(run_db_count(db, "SELECT count(*) FROM examples"), 1);
        assert_int_equal(
            run_db_count(db, "SELECT length(token_values) FROM examples WHERE sample = 1 AND kind = 'question' AND position = 2"), 12);
        assert_int_equal(run_db_count(db, "SELECT count(*) FROM samples"), 1);
        assert_int_equal(run_db_count(db, "SELECT sum(adapted) FROM feature_metrics WHERE regime = 'text'"), 3);
        assert_int_equal(
            run_db_count(db, "SELECT round(energy_image * 1e6) FROM feature_metrics WHERE regime = 'text' AND layer = 0 AND feature = 1"),
            6000);
        assert_int_equal(run_db_count(db, "SELECT round(1e6 * value) FROM facts WHERE stage = 'diff' AND name = 'cosine_threshold.text'"),
                         450000);
        /* a later stage's rows that refer to samples are no obstacle */
        assert_int_equal(run_db_exec(db, &err, "INSERT INTO attention SELECT 'a', 0, 0, sample, x'00' FROM samples"), 0);
    }
    if (write_rows(db, jobs, 1, &err)) /* one layer now: the other's rows go */
        fail_msg("%s", err.text);
    assert_int_equal(run_db_count(db, "SELECT count(*) FROM feature_metrics"), 4);
    for (int j = 0; j < 3; j++) diff_job_close(&jobs[j]);
    sqlite3_close(db);
}

static int calls_left;
static int stop_after(void *context) {
    if (--calls_left > 0) return 0;
    if (context) _exit(9); /* as SIGKILL would: nothing is flushed or rolled back by us */
    return 1;
}

/* An error in the middle, and a process that dies in the middle: the old rows stay, all of them. */
static void test_interrupted(void **state) {
    (void)state;
    struct diff_job jobs[3];
    struct error err = {""};
    sqlite3 *db = fresh();
    hand_made(jobs);
    assert_int_equal(write_rows(db, jobs, 3, &err), 0);
    jobs[0].energy[0] = 77;
    calls_left = 60;
    sqlite3_progress_handler(db, 5, stop_after, NULL);
    assert_int_equal(write_rows(db, jobs, 3, &err), -1);
    assert_true(calls_left <= 0);
    sqlite3_progress_handler(db, 0, NULL, NULL);
    assert_int_equal(run_db_count(db, "SELECT count(*) FROM features"), 12);
    assert_int_equal(run_db_count(db, "SELECT count(*) FROM features WHERE energy_image > 0.7"), 0);
    sqlite3_close(db);
    pid_t child = fork();
    if (child == 0) {
        calls_left = 60;
        if (run_db_open(&db, &config, &err) == 0) {
            sqlite3_progress_handler(db, 5, stop_after, &calls_left);
            write_rows(db, jobs, 3, &err);
        }
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), 9);
    assert_int_equal(run_db_open(&db, &config, &err), 0);
    assert_int_equal(run_db_count(db, "SELECT count(*) FROM features"), 12);
    assert_int_equal(run_db_count(db, "SELECT count(*) FROM features WHERE energy_image > 0.7"), 0);
    assert_int_equal(write_rows(db, jobs, 3, &err), 0);
    assert_int_equal(run_db_count(db, "SELECT count(*) FROM features WHERE energy_image > 0.7"), 1);
    for (int j = 0; j < 3; j++) diff_job_close(&jobs[j]);
    sqlite3_close(db);
}

int main(void) {
    if (system("rm -rf build/test-diff && mkdir -p build/test-diff")) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_percentile),        cmocka_unit_test(test_adapted),     cmocka_unit_test(test_quantities),
        cmocka_unit_test(test_strongest_samples), cmocka_unit_test(test_choice),      cmocka_unit_test(test_pictures),
        cmocka_unit_test(test_rows_replaced),     cmocka_unit_test(test_interrupted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
