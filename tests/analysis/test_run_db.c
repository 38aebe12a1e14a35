/* test_run_db.c - run.db: views exactly as docs/cli.md has them, rows that replace, stages, and a file that is no database; which
 * entry of a folder of dictionaries belongs to a layer. */
#include "analysis/summary.h"
#include "host/file.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

static struct run_config config = {.out = "build/test-run-db", .base = "build/test-run-db/base", .saes = "build/test-run-db/saes"};

static sqlite3 *fresh(void) {
    struct error err = {""};
    sqlite3 *db = NULL;
    unlink("build/test-run-db/run.db");
    if (run_db_open(&db, &config, &err)) fail_msg("%s", err.text);
    return db;
}

static void columns(sqlite3 *db, const char *view, char *out) {
    char sql[128];
    sqlite3_stmt *s = NULL;
    snprintf(sql, sizeof sql, "SELECT * FROM %s", view);
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &s, NULL), SQLITE_OK);
    *out = '\0';
    for (int i = 0; i < sqlite3_column_count(s); i++) sprintf(out + strlen(out), "%s%s", i ? ", " : "", sqlite3_column_name(s, i));
    sqlite3_finalize(s);
}

static void test_views(void **state) {
    (void)state;
    char found[512];
    sqlite3 *db = fresh();
    columns(db, "layer_metrics", found);
    assert_string_equal(found, "layer, regime, tokens, fvu, fvu_as_coded, l0, dead_features");
    columns(db, "feature_metrics", found);
    assert_string_equal(
        found, "layer, regime, feature, energy_image, energy_text, decoder_cosine, encoder_cosine, fire_image, fire_text, adapted");
    sqlite3_close(db);
}

static void test_layers(void **state) {
    (void)state;
    struct error err = {""};
    sqlite3 *db = fresh();
    struct layer_row row = {3, "text", 1000, 0.25, 0.125, 49.5, 7, 1024};
    assert_int_equal(run_db_layer(db, &row, &err), 0);
    row.fvu = 0.5;
    assert_int_equal(run_db_layer(db, &row, &err), 0);
    row.regime = "base", row.fvu_as_coded = NAN;
    assert_int_equal(run_db_layer(db, &row, &err), 0);
    assert_int_equal(run_db_count(db, "SELECT count(*) FROM layer_metrics"), 2);
    assert_int_equal(
        run_db_count(db, "SELECT 100 * fvu FROM layer_metrics WHERE regime = 'text' AND layer = 3 AND tokens = 1000 AND dead_features = 7"),
        50);
    assert_int_equal(run_db_count(db, "SELECT fvu_as_coded IS NULL FROM layer_metrics WHERE regime = 'base'"), 1);
    sqlite3_close(db);
}

static void test_stages(void **state) {
    (void)state;
    struct error err = {""};
    sqlite3 *db = fresh();
    assert_false(run_stage_done(db, "diff", "a"));
    assert_int_equal(run_stage_finish(db, "diff", "a", 1.5, &err), 0);
    assert_true(run_stage_done(db, "diff", "a"));
    assert_false(run_stage_done(db, "diff", "b"));
    assert_false(run_stage_done(db, "train", "a"));
    assert_int_equal(run_stage_finish(db, "diff", "b", 1.5, &err), 0);
    assert_false(run_stage_done(db, "diff", "a"));
    sqlite3_close(db);
    db = NULL; /* kept over closing */
    assert_int_equal(run_db_open(&db, &config, &err), 0);
    assert_true(run_stage_done(db, "diff", "b"));
    sqlite3_close(db);
}

static void hash_of(char hash[17], const char *settings, enum run_stage_index stage) {
    struct run_config c = config;
    c.resolved = json_loads(settings, 0, NULL);
    assert_non_null(c.resolved);
    run_stage_hash(hash, &c, stage);
    json_decref(c.resolved);
}

/* A stage's hash changes with its own settings, those of the stages before it and its files; not with later ones or idle ones. */
static void test_hash(void **state) {
    (void)state;
    static const char *const settings[] = {
        "{\"out\":\"a\",\"seed\":1,\"train\":{\"lr\":1,\"log_every\":1},\"diff\":{\"eps\":1},\"report\":{\"features\":2}}",
        "{\"out\":\"b\",\"seed\":1,\"train\":{\"log_every\":9,\"lr\":1},\"diff\":{\"eps\":1},\"report\":{\"features\":2}}", /* same findings
                                                                                                                             */
        "{\"out\":\"a\",\"seed\":1,\"train\":{\"lr\":2,\"log_every\":1},\"diff\":{\"eps\":1},\"report\":{\"features\":2}}",
        "{\"out\":\"a\",\"seed\":1,\"train\":{\"lr\":1,\"log_every\":1},\"diff\":{\"eps\":2},\"report\":{\"features\":2}}",
        "{\"out\":\"a\",\"seed\":2,\"train\":{\"lr\":1,\"log_every\":1},\"diff\":{\"eps\":1},\"report\":{\"features\":2}}",
    };
    static const bool of_training[5] = {0, 0, 1, 0, 1}, of_others[5] = {0, 0, 1, 1, 1};
    for (int s = 0; s < RUN_STAGES; s++)
        for (int i = 0; i < 5; i++) {
            char first[17], hash[17];
            hash_of(first, settings[0], (enum run_stage_index)s);
            hash_of(hash, settings[i], (enum run_stage_index)s);
            const bool alone = s == RUN_EVALUATE || s == RUN_STEER; /* they need no dictionary */
            assert_int_equal(strcmp(first, hash) != 0, !alone && (s == RUN_TRAIN ? of_training[i] : of_others[i]));
        }
    struct run_config c = config;
    char before[17], after[17], path[] = "build/test-run-db/data.jsonl";
    FILE *f = fopen(path, "w");
    fputs("{}\n", f), fclose(f);
    c.train_data = path;
    run_stage_hash(before, &c, RUN_DIFF);
    f = fopen(path, "a");
    fputs("{}\n", f), fclose(f);
    run_stage_hash(after, &c, RUN_DIFF);
    assert_string_not_equal(before, after);
    /* a file deep in a folder of dictionaries */
    mkdir("build/test-run-db/deep", 0777), mkdir("build/test-run-db/deep/L0R-8x", 0777),
        mkdir("build/test-run-db/deep/L0R-8x/checkpoints", 0777);
    const char *const deep[] = {"build/test-run-db/deep", NULL};
    run_inputs_hash(before, deep, 2);
    f = fopen("build/test-run-db/deep/L0R-8x/checkpoints/final.safetensors", "w");
    fputs("x", f), fclose(f);
    run_inputs_hash(after, deep, 2);
    assert_string_not_equal(before, after);
}

/* What `run` does: wanted stages that are not finished, and what builds on them; never one whose section is missing. */
static void expect_due(sqlite3 *db, const char *settings, const char *expected) {
    struct run_config c = config;
    bool due[RUN_STAGES];
    char names[128] = "";
    c.resolved = json_loads(settings, 0, NULL);
    run_stages_due(due, db, &c);
    for (int s = 0; s < RUN_STAGES; s++)
        if (due[s]) snprintf(names + strlen(names), sizeof names - strlen(names), " %s", run_stage_names[s]);
    if (strcmp(names, expected)) fail_msg("due:%s; expected:%s", names, expected);
    json_decref(c.resolved);
}

static void finish(sqlite3 *db, const char *settings, enum run_stage_index stage) {
    struct run_config c = config;
    struct error err = {""};
    char hash[17];
    c.resolved = json_loads(settings, 0, NULL);
    run_stage_hash(hash, &c, stage);
    assert_int_equal(run_stage_finish(db, run_stage_names[stage], hash, 1, &err), 0);
    json_decref(c.resolved);
}

static void test_due(void **state) {
    (void)state;
    static const char plain[] = "{\"train\":{},\"diff\":{\"eps\":1}}",
                      more[] = "{\"train\":{},\"diff\":{\"eps\":1},\"select\":[],\"evaluate\":[]}",
                      other[] = "{\"train\":{},\"diff\":{\"eps\":2},\"select\":[],\"evaluate\":[]}";
    sqlite3 *db = fresh();
    expect_due(db, plain, " train diff report");
    config.base = NULL;
    expect_due(db, plain, " train report"); /* a plain language model: no diff */
    config.base = "build/test-run-db/base";
    expect_due(db, more, " train diff select evaluate report");
    finish(db, more, RUN_EVALUATE), finish(db, more, RUN_TRAIN), finish(db, more, RUN_DIFF), finish(db, more, RUN_SELECT);
    expect_due(db, more, " report");
    expect_due(db, plain, " report");
    expect_due(db, other, " diff select report"); /* nothing changed for the training and the answers */
    sqlite3_close(db);
}

static void test_bad_files(void **state) {
    (void)state;
    struct error err = {""};
    sqlite3 *db = fresh();
    assert_int_equal(run_db_exec(db, &err, "PRAGMA user_version = 99"), 0);
    sqlite3_close(db);
    assert_int_equal(run_db_open(&db, &config, &err), -1);
    assert_non_null(strstr(err.text, "schema version 99"));
    assert_null(db);
    db = fresh();
    assert_int_equal(
        run_db_exec(db, &err,
                    "DROP VIEW evaluations; DROP TABLE scores; DROP VIEW task_features; DROP TABLE task_rows; PRAGMA user_version = 1"),
        0);
    sqlite3_close(db);
    assert_int_equal(run_db_open(&db, &config, &err), 0); /* an older file gets what it lacks */
    assert_int_equal(run_db_exec(db, &err, "SELECT accuracy, q_value FROM evaluations, task_features"), 0);
    sqlite3_close(db);
    FILE *f = fopen("build/test-run-db/run.db", "w");
    for (int i = 0; i < 4096; i++) fputs("no database ", f);
    fclose(f);
    assert_int_equal(run_db_open(&db, &config, &err), -1);
    assert_non_null(strstr(err.text, "run.db"));
    assert_null(strchr(err.text, '\n'));
    assert_int_equal(run_db_exec((db = fresh()), &err, "SELEKT 1"), -1);
    assert_int_equal(run_db_run(db, &err, "INSERT INTO examples VALUES(0,'text',0,0,12345,0,'image',1.0,x'00')", ""),
                     -1); /* no such sample: foreign key */
    sqlite3_close(db);
}

static void expect_layer(const char *entry, int layer, bool found) {
    struct error err = {""};
    char path[256];
    snprintf(path, sizeof path, "build/test-run-db/saes/%s", entry);
    mkdir("build/test-run-db", 0777);
    mkdir("build/test-run-db/saes", 0777);
    assert_int_equal(mkdir(path, 0777), 0);
    char *got = run_base_sae_path(&config, layer, &err);
    if (found != (got != NULL) || (got && strcmp(got, path))) fail_msg("%s as layer %d: %s", entry, layer, got ? got : err.text);
    free(got);
    rmdir(path);
}

static void test_base_dictionaries(void **state) {
    (void)state;
    struct error err = {""};
    static const char *const third[] = {
        "3", "layer_3", "layer-3", "layers.3", "l3r_8x", "Llama3_1-8B-Base-L3R-8x", "blocks.3.hook_resid_post", "layer_03"};
    for (size_t i = 0; i < sizeof third / sizeof *third; i++) {
        expect_layer(third[i], 3, true);
        expect_layer(third[i], 8, false);
        expect_layer(third[i], 1, false);
        expect_layer(third[i], 31, false);
    }
    expect_layer("Llama3_1-8B-Base-L3M-8x", 3, false); /* MLP site */
    mkdir("build/test-run-db/saes/layer_3", 0777);
    mkdir("build/test-run-db/saes/l3r_8x", 0777);
    assert_null(run_base_sae_path(&config, 3, &err));
    assert_non_null(strstr(err.text, "both"));
    rmdir("build/test-run-db/saes/layer_3");
    rmdir("build/test-run-db/saes/l3r_8x");
    char *path = run_sae_path(&config, REGIME_IMAGE, 12);
    assert_string_equal(path, "build/test-run-db/sae/image/layer_12");
    free(path);
}

static void test_summary(void **state) {
    (void)state;
    struct error err = {""};
    struct run_summary s;
    sqlite3 *db = fresh();
    struct run_config c = config;
    c.diff_regime = REGIME_TEXT;
    static const double fvu[] = {0.1, 0.2, 0.6};
    for (int l = 0; l < 3; l++)
        assert_int_equal(run_db_layer(db, &(struct layer_row){l, "text", 10 + l, fvu[l], 0, 4, 5 * l, 10}, &err), 0);
    for (long i = 0; i < 10; i++)
        assert_int_equal(run_db_run(db, &err, "INSERT INTO features VALUES(?,'text',?,?,0,?,0,0,0,?,0,0,0,0)", "iiddi", i / 5, i % 5,
                                    i > 3 ? 1.0 : 0.0, 0.1 * (double)i, (long)(i == 9)),
                         0);
    assert_int_equal(run_summary_read(&s, db, &c, &err), 0);
    const struct regime_summary *r = &s.regime[REGIME_TEXT];
    assert_int_equal(r->layers, 3);
    assert_int_equal(r->tokens, 12);
    assert_true(fabs(r->fvu.mean - 0.3) < 1e-12 && fabs(r->fvu.sd - sqrt(0.07)) < 1e-12);
    assert_true(fabs(r->fvu.low - 0.1) < 1e-12 && fabs(r->fvu.high - 0.6) < 1e-12);
    assert_true(fabs(r->dead_share.mean - 0.5) < 1e-12);
    assert_int_equal(r->features, 10);
    assert_int_equal(r->adapted, 1);
    assert_true(fabs(r->median_cosine - 0.45) < 1e-9);
    assert_int_equal(s.n_layers, 2);
    assert_int_equal(s.layer[1].visual, 5);
    assert_true(fabs(s.layer[1].median_cosine - 0.7) < 1e-9);
    run_summary_free(&s);
    sqlite3_close(db);
}

int main(void) {
    if (system("rm -rf build/test-run-db && mkdir -p build/test-run-db")) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_views),   cmocka_unit_test(test_layers),    cmocka_unit_test(test_stages),
        cmocka_unit_test(test_hash),    cmocka_unit_test(test_bad_files), cmocka_unit_test(test_base_dictionaries),
        cmocka_unit_test(test_summary), cmocka_unit_test(test_due),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
