/* test_intervene_stage.c - the sections "intervene" and "steer" of CONFIG.json: lists from a file, from a task's features, from a target's
 * heads; rows of run.db; what is refused. */
#include "analysis/run.h"
#include "host/file.h"
#include "kernels/device.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define DIR   "build/test-intervene-stage"
#define WORLD "../../tools/tinyworld/world"
#define SETS                                                                                                                               \
    "\"evaluate\": [{\"name\": \"statements\", \"data\": \"" WORLD "/data/vsr_test.jsonl\", \"samples\": 24},"                             \
    " {\"name\": \"questions\", \"data\": \"" WORLD "/data/vqa_test.jsonl\", \"samples\": 10, \"max_new_tokens\": 3}]"
#define CONFIG(rest) "{\"out\": \"run\", \"model\": \"" WORLD "/vlm\", \"data\": {\"train\": \"" WORLD "/data/vqa_test.jsonl\"}, " rest "}"

static void put(const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, DIR "/%s", name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static double number(sqlite3 *db, const char *sql) {
    sqlite3_stmt *q = NULL;
    if (sqlite3_prepare_v2(db, sql, -1, &q, NULL) != SQLITE_OK) fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    const double x = sqlite3_column_double(q, 0);
    sqlite3_finalize(q);
    return x;
}

static void rows_of_the_stage(void **state) {
    struct run_session s;
    struct error err = {""};
    (void)state;
    put("heads.json", "[{\"op\": \"head\", \"heads\": [0, 1, 2, 3, 4, 5], \"mode\": \"zero\", \"after_image\": true}]");
    put("c.json",
        CONFIG(SETS ", \"intervene\": [{\"name\": \"heads out\", \"edit\": \"heads.json\"},"
                    " {\"name\": \"features out\", \"features_of\": \"spatial\", \"top\": 2, \"on\": [\"statements\"]},"
                    " {\"name\": \"found heads\", \"heads_of\": \"spatial\", \"top\": 3, \"on\": [\"statements\"], \"controls\": 0}]"));
    assert_int_equal(system("mkdir -p " DIR "/run/sae/text && for l in 2 5; do ln -s $PWD/tools/tinyworld/world/saes/L${l}R-8x " DIR
                            "/run/sae/text/layer_$l; done"),
                     0);
    if (run_session_open(&s, DIR "/c.json", 0, &err)) fail_msg("%s", err.text);
    /* what select and attribute would have found; temporary views hide the run's own */
    if (run_db_exec(
            s.db, &err,
            "CREATE TEMP VIEW task_features AS SELECT column1 AS layer, column2 AS feature, column3 AS task,"
            " column4 AS fired_target, 10 AS fired_general, 100 AS tokens_target, 200 AS tokens_general, column5 AS selected, column6 AS "
            "adapted,"
            " column7 AS prompt_invariant FROM (VALUES (5, 17, 'spatial', 70, 1, 1, 1), (2, 40, 'spatial', 90, 1, 1, NULL),"
            " (2, 41, 'spatial', 50, 1, 1, 1), (2, 42, 'spatial', 80, 1, 0, 1), (2, 43, 'spatial', 80, 0, 1, 1),"
            " (2, 44, 'spatial', 80, 1, 1, 0), (2, 45, 'other', 80, 1, 1, 1));"
            "CREATE TEMP VIEW head_scores AS SELECT column1 AS target, column2 AS layer, column3 AS head, column4 AS score, 'corrupt' AS "
            "method FROM (VALUES"
            " ('spatial', 4, 1, -0.9), ('spatial', 4, 7, 0.8), ('spatial', 3, 0, 0.5), ('spatial', 3, 1, -0.1), ('other', 1, 1, 5));"))
        fail_msg("%s", err.text);
    if (run_stage(&s.c, s.dev, s.db, RUN_INTERVENE, &err)) fail_msg("%s", err.text);
    assert_true(number(s.db, "SELECT count(*) FROM interventions") == 4);
    assert_true(number(s.db, "SELECT n FROM interventions WHERE name = 'heads out' AND dataset = 'statements'") == 24);
    assert_true(number(s.db, "SELECT n FROM interventions WHERE name = 'heads out' AND dataset = 'questions'") == 10);
    assert_true(number(s.db, "SELECT max(abs(delta - (intervened - baseline))) FROM interventions") < 1e-12);
    assert_true(number(s.db, "SELECT max(abs(delta * n - (gained - lost))) FROM interventions WHERE dataset = 'statements'") < 1e-9);
    assert_true(number(s.db, "SELECT lost FROM interventions WHERE name = 'heads out' AND dataset = 'statements'") > 0);
    assert_true(number(s.db, "SELECT min(ci_low <= delta AND delta <= ci_high AND mcnemar_p > 0 AND mcnemar_p <= 1) FROM interventions") ==
                1);
    assert_true(number(s.db, "SELECT count(*) FROM effect_controls WHERE name = 'heads out'") == 40);
    assert_true(number(s.db, "SELECT max(abs(control_mean - (SELECT avg(delta) FROM effect_controls c WHERE c.name = e.name AND c.dataset ="
                             " e.dataset))) FROM effects e WHERE controls") < 1e-12);
    assert_true(number(s.db, "SELECT control_mean IS NULL AND controls = 0 FROM interventions WHERE name = 'found heads'") == 1);
    assert_true(
        number(s.db, "SELECT sum(n) FROM effect_relations WHERE dataset = 'statements' AND name = 'heads out' AND relation <> 'all'") ==
        24);
    /* the two of highest odds that are selected, adapted and not refused; the three strongest heads, by layer */
    assert_true(
        number(s.db,
               "SELECT edits LIKE '%layer_2\",\"feature\":40}%layer_5\",\"feature\":17}%' FROM effects WHERE name = 'features out'") == 1);
    assert_true(number(s.db,
                       "SELECT edits = '[{\"op\":\"head\",\"layers\":[3],\"heads\":[0],\"mode\":\"zero\"},{\"op\":\"head\",\"layers\":[4],"
                       "\"heads\":[1,7],\"mode\":\"zero\"}]' FROM effects WHERE name = 'found heads'") == 1);
    assert_true(run_stage_finished(s.db, &s.c, RUN_INTERVENE));
    run_db_exec(s.db, &err, "DROP VIEW temp.task_features");
    assert_int_equal(run_stage(&s.c, s.dev, s.db, RUN_INTERVENE, &err), -1);
    assert_non_null(strstr(err.text, "run select first"));
    assert_true(number(s.db, "SELECT count(*) FROM interventions") == 4); /* the old rows stay */
    run_session_close(&s);
}

#define SET(file, n) "{\"data\": \"" WORLD "/data/vsr_" file ".jsonl\", \"samples\": " n "}"

static void rows_of_a_sweep(void **state) {
    struct run_session s;
    struct error err = {""};
    (void)state;
    put("c.json",
        CONFIG(SETS ", \"intervene\": [{\"name\": \"heads out\", \"edit\": \"heads.json\", \"controls\": 0}],"
                    " \"steer\": [{\"name\": \"caa\", \"train\": " SET("train", "12") ", \"dev\": " SET("dev", "10") ", \"test\": " SET(
                        "test", "14") ", \"layers\": [1, 4], \"strengths\": [1, 50]},"
                                      " {\"name\": \"feature\", \"method\": \"decoder\", \"sae\": \"" WORLD
                                      "/saes/L5R-8x\", \"feature\": 3, \"dev\": " SET("dev", "6") ", \"test\": " SET(
                                          "test", "6") ", \"layers\": [5], \"controls\": 0}]"));
    if (run_session_open(&s, DIR "/c.json", 0, &err)) fail_msg("%s", err.text);
    if (run_stage(&s.c, s.dev, s.db, RUN_STEER, &err)) fail_msg("%s", err.text);
    assert_true(number(s.db, "SELECT count(*) FROM steering WHERE name = 'caa' AND split = 'dev' AND n = 10") == 6);
    assert_true(number(s.db, "SELECT sum(chosen) FROM steering WHERE name = 'caa' AND split = 'dev'") == 1);
    assert_true(number(s.db, "SELECT count(*) FROM steering a JOIN steering b USING(name, layer, strength) WHERE a.chosen AND b.chosen AND"
                             " a.split = 'dev' AND b.split = 'test'") == 2);
    assert_true(number(s.db, "SELECT max(strength) FROM steering WHERE name = 'feature' AND split = 'dev'") == 5); /* as published */
    assert_true(number(s.db, "SELECT intervened - (SELECT accuracy FROM steering s WHERE s.name = 'caa' AND split = 'test' AND chosen) FROM"
                             " interventions WHERE name = 'caa' AND dataset = 'vsr_test.jsonl' AND n = 14 AND controls = 20") == 0);
    if (run_stage(&s.c, s.dev, s.db, RUN_INTERVENE, &err)) fail_msg("%s", err.text);
    assert_true(number(s.db, "SELECT count(*) FROM interventions") == 4 && number(s.db, "SELECT count(*) FROM effect_controls") == 20);
    if (run_stage(&s.c, s.dev, s.db, RUN_STEER, &err)) fail_msg("%s", err.text);
    assert_true(number(s.db, "SELECT count(*) FROM interventions") == 4 && number(s.db, "SELECT count(*) FROM effect_controls") == 20);
    run_session_close(&s);
}

static void refused(const char *section, const char *says) {
    struct run_config c;
    struct error err = {""};
    char text[2048];
    snprintf(text, sizeof text, CONFIG("%s%s"), strncmp(section, "\"evaluate\"", 10) ? SETS ", " : "", section);
    put("c.json", text);
    if (run_config_open(&c, DIR "/c.json", &err) == 0) fail_msg("taken: %s", text);
    print_message("    %s\n", err.text);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say \"%s\"", err.text, says);
}

static void bad_sections(void **state) {
    (void)state;
    refused("\"intervene\": {}", "a list");
    refused("\"intervene\": [{\"edit\": \"a\"}]", "\"intervene[0].name\" is missing");
    refused("\"intervene\": [{\"name\": \"a\"}]", "give one of");
    refused("\"intervene\": [{\"name\": \"a\", \"edit\": \"a\", \"heads_of\": \"b\"}]", "give one of");
    refused("\"intervene\": [{\"name\": \"a\", \"edit\": \"a\", \"on\": [\"other\"]}]", "intervene[0].on");
    refused("\"intervene\": [{\"name\": \"a\", \"edit\": \"a\", \"on\": []}]", "intervene[0].on");
    refused("\"intervene\": [{\"name\": \"a\", \"edit\": \"a\", \"controls\": 3}]", "at least 20, found 3");
    refused("\"intervene\": [{\"name\": \"a\", \"edit\": \"a\", \"control\": \"none\"}]", "directions");
    refused("\"intervene\": [{\"name\": \"a\", \"edit\": \"a\"}, {\"name\": \"a\", \"edit\": \"b\"}]", "twice");
    refused("\"steer\": [{\"name\": \"a\"}]", "needs an object with \"data\"");
    refused("\"steer\": [{\"name\": \"a\", \"method\": \"pca\"}]", "mmdiff-sum");
    refused("\"steer\": [{\"name\": \"a\", \"method\": \"decoder\", \"train\": {\"data\": \"a\"}}]", "is not trained");
    refused("\"steer\": [{\"name\": \"a\", \"train\": {\"data\": \"a\"}, \"dev\": {\"data\": \"a\"}}]", "steer[0].test");
    refused("\"steer\": [{\"name\": \"a\", \"train\": {\"data\": \"a\"}, \"dev\": {\"data\": \"a\"}, \"test\": {\"data\": \"a\"}, \"sae\": "
            "\"b\"}]",
            "does not take");
    refused("\"steer\": [{\"name\": \"a\", \"train\": {\"data\": \"a\"}, \"dev\": {\"data\": \"a\"}, \"test\": {\"data\": \"a\"}, "
            "\"layers\": [2, 1]}]",
            "rising");
    refused("\"steer\": [{\"name\": \"a\", \"train\": {\"data\": \"a\"}, \"dev\": {\"data\": \"a\"}, \"test\": {\"data\": \"a\"}, "
            "\"strengths\": []}]",
            "steer[0].strengths");
    refused("\"evaluate\": null, \"intervene\": [{\"name\": \"a\", \"edit\": \"a\"}]", "\"evaluate\", which is missing");
}

int main(void) {
    if (system("rm -rf " DIR " && mkdir -p " DIR)) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_of_the_stage), cmocka_unit_test(rows_of_a_sweep),
                                       cmocka_unit_test(bad_sections)};
    return cmocka_run_group_tests_name("intervene stage", tests, NULL, NULL);
}
