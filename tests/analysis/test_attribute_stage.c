/* test_attribute_stage.c - the stage `attribute` on the tiny LLaVA: rows of run.db against attribute() itself, attention rows with their
 * pictures, what a second run replaces, features by task on the command's side, and configurations that are refused. */
#include "analysis/attribute.h"
#include "analysis/run.h"
#include "host/file.h"
#include "kernels/device.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define GOLDEN "tests/analysis/golden/attribute"
static char dir[] = "/tmp/stagediff_test_XXXXXX", cwd[512];

static void must(int status, const struct error *err) {
    if (status) fail_msg("%s", err->text);
}

static void shell(const char *format, ...) {
    char command[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    if (system(command)) fail_msg("failed: %s", command);
}

static char *write_config(const char *attribute) {
    static char path[256];
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "w");
    fprintf(
        f,
        "{\"out\": \"run\", \"model\": \"%s/tests/models/golden/tiny_llava\", \"regimes\": [\"random\"], \"data\": {\"train\": \"%s/" GOLDEN
        "/data.jsonl\"},"
        " \"diff\": {\"regime\": \"random\"}, \"seed\": 3, \"train\": {\"forward_samples\": 3}, \"select\": [{\"task\": \"spatial\","
        " \"target\": {\"data\": \"x.jsonl\"}, \"general\": {\"data\": \"x.jsonl\"}}], \"attribute\": [%s]}",
        cwd, cwd, attribute);
    fclose(f);
    return path;
}

static double number(sqlite3 *db, const char *sql) {
    sqlite3_stmt *q = NULL;
    struct error err;
    must(run_db_prepare(db, &q, &err, sql, ""), &err);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    const double x = sqlite3_column_double(q, 0);
    sqlite3_finalize(q);
    return x;
}

/* Dictionaries of two layers and a task with features in both; one of them not adapted, one refused by the prompts. */
static void make_run(void) {
    struct run_session s;
    struct error err = {""};
    must(run_session_open(&s, write_config("{\"target\": \"t\", \"features_of\": \"spatial\", \"data\": \"x\"}"), 0, &err), &err);
    must(run_db_exec(
             s.db, &err,
             "INSERT INTO tasks VALUES('spatial', 1, 1, 3, 0.05, 0, 0, 1, 0, 0, 1);"
             "INSERT INTO task_rows VALUES('spatial', 0, 5, 1,0,9,0.1,-1,0.1, 1,1,NULL, 0,0,0,0,0,0), ('spatial', 0, 60, 1,0,9,0.1,-1,0.1, "
             "1,1,1, 0,0,0,0,0,0),"
             "('spatial', 0, 61, 1,0,9,0.1,-1,0.1, 1,0,1, 0,0,0,0,0,0), ('spatial', 1, 3, 1,0,9,0.1,-1,0.1, 1,1,1, 0,0,0,0,0,0),"
             "('spatial', 1, 17, 1,0,9,0.1,-1,0.1, 1,1,0, 0,0,0,0,0,0), ('spatial', 1, 90, 1,0,9,0.1,-1,0.1, 1,1,NULL, 0,0,0,0,0,0);"),
         &err);
    run_session_close(&s);
    shell("mkdir -p %s/run/sae/random && cp -r " GOLDEN "/sae %s/run/sae/random/layer_0 && cp -r " GOLDEN "/sae %s/run/sae/random/layer_1",
          dir, dir, dir);
}

static void rows_are_the_scores(void **state) {
    struct run_session s;
    struct error err = {""};
    char attribute_text[1024];
    (void)state;
    snprintf(attribute_text, sizeof attribute_text,
             "{\"target\": \"heads of it\", \"features_of\": \"spatial\", \"data\": \"%s/" GOLDEN
             "/data.jsonl\", \"exact\": 1, \"maps\": 2}",
             cwd);
    for (int turn = 0; turn < 2; turn++) {
        must(run_session_open(&s, write_config(attribute_text), 0, &err), &err);
        must(run_stage(&s.c, s.dev, s.db, RUN_ATTRIBUTE, &err), &err);
        assert_true(run_stage_finished(s.db, &s.c, RUN_ATTRIBUTE));
        assert_int_equal((int)number(s.db, "SELECT count(*) FROM head_scores WHERE target = 'heads of it'"),
                         2 * 2 * 2); /* methods, layers, heads */
        assert_int_equal((int)number(s.db, "SELECT count(*) FROM head_scores WHERE target GLOB 'L?F*'"),
                         2 * 2 + 2 * 4);                                              /* single features */
        assert_int_equal((int)number(s.db, "SELECT count(*) FROM attention"), 2 * 3); /* heads, samples with a picture and text behind it */
        assert_int_equal((int)number(s.db, "SELECT count(*) FROM samples"), 3);
        if (turn == 0) run_session_close(&s);
    }
    assert_int_equal(
        (int)number(s.db,
                    "SELECT count(exact) FROM head_scores WHERE target = 'heads of it' AND method = 'corrupt' AND corruption = 'mean'"),
        2);
    assert_int_equal((int)number(s.db, "SELECT min(length(weights)) = 36 AND max(length(weights)) = 36 FROM attention"), 1);
    assert_int_equal(
        (int)number(s.db, "SELECT count(*) FROM samples WHERE length(picture) > 50 AND json_array_length(tokens) = length(kinds)"), 3);
    /* the same by attribute(): features 5, 60 of layer 0 and 3, 90 of layer 1, whole dictionaries */
    struct model m;
    struct samples samples;
    struct sae_host sae;
    struct attribution a;
    const int low[] = {5, 60}, high[] = {3, 90};
    must(attribute_sae(&sae, GOLDEN "/sae", 1, &err), &err);
    const struct attribute_set sets[] = {{0, &sae, low, 2}, {1, &sae, high, 2}};
    must(model_open(&m, s.dev, "tests/models/golden/tiny_llava", NULL, &err), &err);
    must(samples_open(&samples, GOLDEN "/data.jsonl", &err), &err);
    const struct attribute_job j = {
        .m = &m, .samples = &samples, .sets = sets, .n_sets = 2, .batch = 3, .corruption = CORRUPT_MEAN, .exact = 1, .seed = 3};
    must(attribute(&j, &a, &err), &err);
    for (int i = 0; i < 4; i++) {
        char sql[256];
        snprintf(sql, sizeof sql,
                 "SELECT score FROM head_scores WHERE target = 'heads of it' AND method = 'corrupt' AND layer = %d AND head = %d", i / 2,
                 i % 2);
        assert_true(number(s.db, sql) == a.signed_score[i]);
        snprintf(sql, sizeof sql,
                 "SELECT score FROM head_scores WHERE target = 'heads of it' AND method = 'mean_abs corrupt' AND layer = %d AND head = %d",
                 i / 2, i % 2);
        assert_true(number(s.db, sql) == a.mean_abs[i]);
    }
    for (int i = 0; i < 2; i++) {
        char sql[256];
        snprintf(sql, sizeof sql,
                 "SELECT exact FROM head_scores WHERE target = 'heads of it' AND method = 'corrupt' AND layer = %d AND head = %d",
                 a.exact[i].layer, a.exact[i].head);
        assert_true(number(s.db, sql) == a.exact[i].effect);
    }
    assert_true(number(s.db, "SELECT value FROM facts WHERE stage = 'attribute' AND name = 'metric_clean.heads of it'") == a.metric[0]);
    attribution_free(&a);
    /* a feature by itself */
    const struct attribute_set alone = {1, &sae, high + 1, 1};
    const struct attribute_job single = {.m = &m, .samples = &samples, .sets = &alone, .n_sets = 1, .batch = 3, .corruption = CORRUPT_MEAN};
    must(attribute(&single, &a, &err), &err);
    for (int i = 0; i < 4; i++) {
        char sql[256];
        snprintf(sql, sizeof sql, "SELECT score FROM head_scores WHERE target = 'L1F90' AND layer = %d AND head = %d", i / 2, i % 2);
        assert_true(number(s.db, sql) == a.signed_score[i]);
    }
    attribution_free(&a);
    samples_free(&samples);
    model_close(&m);
    /* diff may take its samples away: attention goes with them */
    must(run_db_exec(s.db, &err, "DELETE FROM samples"), &err);
    assert_int_equal((int)number(s.db, "SELECT count(*) FROM attention"), 0);
    run_session_close(&s);
    /* task:NAME of the command finds the run above its dictionary */
    char path[256];
    int *list, n;
    snprintf(path, sizeof path, "%s/run/sae/random/layer_0", dir);
    must(attribute_features(&list, &n, "task:spatial", 0, &sae, path, &err), &err);
    assert_true(n == 2 && list[0] == 5 && list[1] == 60);
    free(list);
    assert_int_equal(attribute_features(&list, &n, "task:spatail", 0, &sae, path, &err), -1);
    printf("  %s\n", err.text);
    free(list);
    assert_int_equal(attribute_features(&list, &n, "task:spatial", 7, &sae, path, &err), -1);
    printf("  %s\n", err.text);
    free(list);
    sae_host_free(&sae);
}

static void refused(const char *attribute_text, const char *says) {
    struct run_config c;
    struct error err = {""};
    assert_int_equal(run_config_open(&c, write_config(attribute_text), &err), -1);
    printf("  %s\n", err.text);
    assert_non_null(strstr(err.text, says));
    run_config_free(&c);
}

static void configurations_that_are_refused(void **state) {
    (void)state;
    refused("{\"target\": \"a\", \"features_of\": \"safety\", \"data\": \"x\"}", "attribute[0].features_of");
    refused("{\"target\": \"a\", \"features_of\": \"spatial\"}", "attribute[0].data");
    refused("{\"features_of\": \"spatial\", \"data\": \"x\"}", "attribute[0].target");
    refused("{\"target\": \"a\", \"features_of\": \"spatial\", \"data\": \"x\", \"corrupt\": \"meen\"}", "attribute[0].corrupt");
    refused("{\"target\": \"a\", \"features_of\": \"spatial\", \"data\": \"x\", \"gradient\": \"ig:0\"}", "ig:N");
    refused("{\"target\": \"a\", \"features_of\": \"spatial\", \"data\": \"x\"}, {\"target\": \"a\", \"features_of\": \"spatial\", "
            "\"data\": \"x\"}",
            "twice");
    refused("3", "expected an object");
}

static int begin(void **state) {
    (void)state;
    if (!getcwd(cwd, sizeof cwd) || !mkdtemp(dir)) return -1;
    make_run();
    return 0;
}

static int end(void **state) {
    (void)state;
    shell("rm -r %s", dir);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_are_the_scores), cmocka_unit_test(configurations_that_are_refused)};
    return cmocka_run_group_tests_name("attribute stage", tests, begin, end);
}
