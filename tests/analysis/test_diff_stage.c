/* test_diff_stage.c - `diff` as a whole on the small world with random dictionaries: E_v, E_t and firing in run.db equal a plain
 * double computation on activations taken by our own probe; BOS rows, pictures of the base LLM's run, decoder norms included. */
#include "analysis/diff.h"
#include "analysis/summary.h"
#include "host/file.h"
#include "kernels/device.h"
#include "tests/world.h"
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define WORLD "tools/tinyworld/world"
#define OUT   "build/test-diff-stage"
enum { LAYERS = 2, FEATURES = 96, K = 6, LINES = 6 };
static int layers[LAYERS] = {2, 7};
static char out[] = OUT, base_dir[] = WORLD "/base", vlm_dir[] = WORLD "/vlm", saes_dir[] = OUT "/saes",
            data[] = WORLD "/data/vqa_test.jsonl";
static struct run_config config = {.out = out,
                                   .base = base_dir,
                                   .model = vlm_dir,
                                   .saes = saes_dir,
                                   .train_data = data,
                                   .validation_data = data,
                                   .train_samples = 3,
                                   .validation_samples = LINES,
                                   .n_layers = LAYERS,
                                   .layers = layers,
                                   .regimes = {[REGIME_TEXT] = true},
                                   .k = K,
                                   .forward_samples = 4,
                                   .diff_eps = 0.01,
                                   .diff_percentile = 25,
                                   .diff_regime = REGIME_TEXT,
                                   .report_features = 6};

static struct device *dev;
static struct sae_host tuned[LAYERS], base[LAYERS];

static void die(const struct error *err) { fail_msg("%s", err->text); }

static void save(const struct sae_host *s, char *path) {
    struct error err = {""};
    if (sae_save_saelens(s, path, &err)) die(&err);
}

static void make_dictionaries(void) {
    struct error err = {""};
    static const char *const folders[] = {"build", OUT, OUT "/sae", OUT "/sae/text", OUT "/saes"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) mkdir(folders[i], 0777);
    for (int l = 0; l < LAYERS; l++) {
        char path[128];
        if (sae_random(&tuned[l], WORLD_WIDTH, FEATURES, K, 10 + (unsigned long)l, &err) ||
            sae_random(&base[l], WORLD_WIDTH, FEATURES, K, 20 + (unsigned long)l, &err))
            die(&err);
        for (size_t i = 0; i < (size_t)FEATURES * WORLD_WIDTH; i++)
            tuned[l].D[i] = (base[l].D[i] + (float)(i / WORLD_WIDTH) / FEATURES * tuned[l].D[i]) *
                            (1 + (float)(i / WORLD_WIDTH % 3)); /* norms of 1 to 4 */
        char *of_run = run_sae_path(&config, REGIME_TEXT, layers[l]);
        save(&tuned[l], of_run);
        free(of_run);
        snprintf(path, sizeof path, OUT "/saes/layer_%d", layers[l]);
        save(&base[l], path);
    }
}

struct sums { /* by the plain computation */
    double energy[LAYERS][FEATURES];
    long fired[LAYERS][FEATURES], tokens;
    float largest[LAYERS][FEATURES][LINES]; /* z at image rows and words of each line */
};

static void add_row(struct sums *s, int l, const float *x, const struct batch *b, int t, int line) {
    double h[FEATURES];
    bool taken[FEATURES] = {false};
    for (int f = 0; f < FEATURES; f++) {
        h[f] = 0;
        for (int i = 0; i < WORLD_WIDTH; i++) h[f] += (double)tuned[l].E[f * WORLD_WIDTH + i] * (double)x[i];
    }
    for (int k = 0; k < K; k++) {
        int best = -1;
        double norm = 0;
        for (int f = 0; f < FEATURES; f++)
            if (!taken[f] && (best < 0 || h[f] > h[best])) best = f;
        taken[best] = true;
        for (int i = 0; i < WORLD_WIDTH; i++) norm += pow((double)tuned[l].D[best * WORLD_WIDTH + i], 2);
        if (h[best] <= 0) continue;
        s->energy[l][best] += h[best] * h[best] * norm;
        s->fired[l][best]++;
        if (b->kinds[t] != KIND_TEMPLATE && (float)(h[best] * sqrt(norm)) > s->largest[l][best][line])
            s->largest[l][best][line] = (float)(h[best] * sqrt(norm));
    }
}

struct capture {
    struct sums *sums;
    int line;
};

static int observe(void *context, struct device *device, int layer, void *x, int rows, int width, const struct batch *b,
                   struct error *err) {
    struct capture *c = context;
    (void)err;
    for (int l = 0; l < LAYERS; l++) {
        if (layers[l] != layer) continue;
        float *host = memory_take((size_t)rows * (size_t)width, sizeof *host);
        device_download(device, host, x, (size_t)rows * (size_t)width * sizeof *host);
        for (int t = 0; t < rows; t++)
            if (b->kinds[t] != KIND_BOS) {
                add_row(c->sums, l, host + (size_t)t * (size_t)width, b, t, c->line);
                c->sums->tokens += l == 0;
            }
        free(host);
    }
    return 0;
}

/* One line at a time: also no dependence on how lines are batched. */
static void plain(struct sums *s, const char *dir, bool pictures) {
    struct error err = {""};
    struct model m;
    struct samples lines;
    struct capture c = {s, 0};
    struct probe probe = {PROBE_RESID_POST, -1, observe, &c};
    memset(s, 0, sizeof *s);
    if (model_open(&m, dev, dir, &(struct model_options){0}, &err) || samples_open(&lines, data, &err)) die(&err);
    for (int i = 0; i < LINES; i++) {
        struct sample line = lines.at[3 + i]; /* the training lines come first in a shared file */
        struct samples one = {&line, 1, lines.path};
        struct batch b;
        line.image = pictures ? line.image : NULL;
        c.line = i;
        if (model_batch(&m, &b, &one, 0, 1, true, &err) || model_forward(&m, &b, &probe, 1, NULL, &err)) die(&err);
        batch_free(&b);
    }
    samples_free(&lines);
    model_close(&m);
}

static void near_to(double found, double expected, const char *what, int layer, int f) {
    if (!(fabs(found - expected) <= 1e-4 * fabs(expected) + 1e-9))
        fail_msg("%s of layer %d feature %d: %.9g, expected %.9g", what, layer, f, found, expected);
}

static void check_features(sqlite3 *db, const struct sums *v, const struct sums *t) {
    struct error err = {""};
    sqlite3_stmt *q = NULL;
    int rows = 0;
    assert_int_equal(run_db_prepare(db, &q, &err,
                                    "SELECT layer, feature, energy_image, energy_text, fire_image, fire_text, decoder_cosine FROM "
                                    "feature_metrics WHERE regime = 'text'",
                                    ""),
                     0);
    for (; sqlite3_step(q) == SQLITE_ROW; rows++) {
        int l = sqlite3_column_int(q, 0) == layers[0] ? 0 : 1, f = sqlite3_column_int(q, 1);
        double ab = 0, aa = 0, bb = 0;
        near_to(sqlite3_column_double(q, 2), v->energy[l][f] / (double)v->tokens, "E_v", layers[l], f);
        near_to(sqlite3_column_double(q, 3), t->energy[l][f] / (double)t->tokens, "E_t", layers[l], f);
        near_to(sqlite3_column_double(q, 4), (double)v->fired[l][f] / (double)v->tokens, "fire_image", layers[l], f);
        near_to(sqlite3_column_double(q, 5), (double)t->fired[l][f] / (double)t->tokens, "fire_text", layers[l], f);
        for (int i = f * WORLD_WIDTH; i < (f + 1) * WORLD_WIDTH; i++)
            ab += (double)tuned[l].D[i] * (double)base[l].D[i], aa += pow((double)tuned[l].D[i], 2), bb += pow((double)base[l].D[i], 2);
        near_to(sqlite3_column_double(q, 6), ab / sqrt(aa * bb), "decoder cosine", layers[l], f);
    }
    sqlite3_finalize(q);
    assert_int_equal(rows, LAYERS * FEATURES);
}

/* Each example: the value is the feature's largest in that line, and stands in token_values at its position. */
static void check_examples(sqlite3 *db, const struct sums *v) {
    struct error err = {""};
    sqlite3_stmt *q = NULL;
    int rows = 0;
    assert_int_equal(run_db_prepare(db, &q, &err,
                                    "SELECT e.layer, e.feature, e.sample, e.position, e.value, e.token_values, length(s.kinds), "
                                    "hex(substr(s.picture, 2, 3)), json_array_length(s.tokens)"
                                    " FROM examples e JOIN samples s ON s.sample = e.sample",
                                    ""),
                     0);
    for (; sqlite3_step(q) == SQLITE_ROW; rows++) {
        int l = sqlite3_column_int(q, 0) == layers[0] ? 0 : 1, f = sqlite3_column_int(q, 1), line = sqlite3_column_int(q, 2) - 3;
        assert_in_range(line, 0, LINES - 1);
        near_to(sqlite3_column_double(q, 4), (double)v->largest[l][f][line], "example", layers[l], f);
        int tokens = sqlite3_column_int(q, 6), position = sqlite3_column_int(q, 3);
        assert_int_equal(sqlite3_column_bytes(q, 5), tokens * (int)sizeof(float));
        assert_int_equal(sqlite3_column_int(q, 8), tokens);
        float value;
        memcpy(&value, (const char *)sqlite3_column_blob(q, 5) + (size_t)position * sizeof value, sizeof value);
        near_to((double)value, sqlite3_column_double(q, 4), "value at its position", layers[l], f);
        assert_string_equal((const char *)sqlite3_column_text(q, 7), "504E47"); /* PNG */
    }
    sqlite3_finalize(q);
    assert_true(rows >= config.report_features);
    assert_int_equal(run_db_count(db, "SELECT count(DISTINCT layer * 1000000 + feature) FROM examples"), config.report_features);
    assert_int_equal(run_db_count(db, "SELECT count(*) FROM examples e JOIN features f ON f.layer = e.layer AND f.feature = e.feature AND "
                                      "f.regime = e.regime WHERE NOT f.adapted"),
                     0);
}

static void test_stage(void **state) {
    (void)state;
    static struct sums v, t;
    struct error err = {""};
    sqlite3 *db = NULL;
    if (!dir_exists(vlm_dir)) {
        print_message("no %s here\n", vlm_dir);
        skip();
    }
    make_dictionaries();
    remove(OUT "/run.db");
    plain(&v, vlm_dir, true);
    plain(&t, base_dir, false);
    if (run_db_open(&db, &config, &err) || stage_diff(&config, dev, db, &err)) die(&err);
    check_features(db, &v, &t);
    check_examples(db, &v);
    /* what the run lacks is said in one sentence that names it, and the old rows stay */
    config.regimes[REGIME_FULL] = true;
    assert_int_equal(stage_diff(&config, dev, db, &err), -1);
    assert_non_null(strstr(err.text, "full"));
    assert_non_null(strstr(err.text, "train"));
    config.regimes[REGIME_FULL] = false;
    config.diff_regime = REGIME_RANDOM;
    assert_int_equal(stage_diff(&config, dev, db, &err), -1);
    assert_non_null(strstr(err.text, "random"));
    config.diff_regime = REGIME_TEXT;
    assert_int_equal(run_db_count(db, "SELECT count(*) FROM features"), LAYERS * FEATURES);
    sqlite3_close(db);
    for (int l = 0; l < LAYERS; l++) sae_host_free(&tuned[l]), sae_host_free(&base[l]);
}

int main(void) {
    if (system("rm -rf build/test-diff-stage && mkdir -p build/test-diff-stage")) return 1;
    char why[256] = "";
    dev = device_open(0, 2, why, sizeof why);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stage)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close(dev);
    return failed;
}
