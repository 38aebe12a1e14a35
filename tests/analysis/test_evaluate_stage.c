/* test_evaluate_stage.c - the section "evaluate" of CONFIG.json, the lines that a data set lets through, the rows of run.db. */
#include "analysis/evaluate.h"
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

#define DIR   "build/test-evaluate-stage"
#define WORLD "../../tools/tinyworld/world"

static void put(const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, DIR "/%s", name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void phrases(void **state) {
    char **list;
    int n;
    struct error err = {""};
    (void)state;
    put("words.txt", "# spatial\nleft\n\n  in front of \ntop left\n");
    if (phrases_open(&list, &n, DIR "/words.txt", &err)) fail_msg("%s", err.text);
    assert_int_equal(n, 3);
    static const char *const yes[] = {"Left?", "is it LEFT", "in  front of a", "In-front-of", "the top-left one", "what is left"};
    static const char *const no[] = {"leftover", "cleft", "in front", "infront of", "in front often", "top _left_", "left\u00e9", ""};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        if (!phrases_match(list, n, yes[i])) fail_msg("'%s' has a phrase of the list", yes[i]);
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (phrases_match(list, n, no[i])) fail_msg("'%s' has no phrase of the list", no[i]);
    phrases_free(list, n);
    put("words.txt", "# nothing\n");
    assert_int_equal(phrases_open(&list, &n, DIR "/words.txt", &err), -1);
}

static void lines_are_chosen_and_asked(void **state) {
    struct samples s;
    struct error err = {""};
    char data[] = DIR "/d.jsonl", words[] = DIR "/words.txt", ask[] = "{question} {caption}{question}!";
    (void)state;
    put("words.txt", "left\n");
    put("d.jsonl", "{\"question\": \"left a\", \"caption\": \"c\", \"kind\": \"x\", \"n\": 1}\n{\"question\": \"right\", \"kind\": \"x\", "
                   "\"n\": 1.0}\n"
                   "{\"question\": \"left b\", \"kind\": \"y\", \"n\": 1}\n{\"question\": \"left c\", \"kind\": \"x\", \"n\": "
                   "true}\n{\"question\": \"left "
                   "d\", \"caption\": \"e\", \"kind\": \"x\", \"n\": 1}\n");
    struct dataset d = {.data = data, .keywords = words, .where = json_pack("{s:s, s:i}", "kind", "x", "n", 1), .ask = ask};
    if (dataset_open(&d, &s, &err)) fail_msg("%s", err.text);
    assert_int_equal(s.count, 2);
    assert_string_equal(s.at[0].question, "left a cleft a!");
    assert_string_equal(s.at[1].question, "left d eleft d!");
    assert_string_equal(s.at[1].id, "4");
    samples_free(&s);
    d.samples = 1;
    if (dataset_open(&d, &s, &err)) fail_msg("%s", err.text);
    assert_int_equal(s.count, 1);
    samples_free(&s);
    d.keywords = NULL, d.samples = 0;
    assert_int_equal(dataset_open(&d, &s, &err), -1); /* the second line has no caption to put in */
    assert_non_null(strstr(err.text, "line 2"));
    json_object_set_new(d.where, "kind", json_string("z"));
    assert_int_equal(dataset_open(&d, &s, &err), -1);
    assert_non_null(strstr(err.text, "none of its 5 lines"));
    json_decref(d.where);
}

#define CONFIG(evaluate) "{\"out\": \"run\", \"model\": \"" WORLD "/vlm\", \"data\": {\"train\": \"d.jsonl\"}, \"evaluate\": " evaluate "}"

static double number(sqlite3 *db, const char *sql) {
    sqlite3_stmt *q = NULL;
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &q, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    double x = sqlite3_column_double(q, 0);
    sqlite3_finalize(q);
    return x;
}

static void rows_of_the_stage(void **state) {
    struct run_session s;
    struct error err = {""};
    (void)state;
    put("c.json", CONFIG("[{\"name\": \"statements\", \"data\": \"" WORLD "/data/vsr_test.jsonl\", \"samples\": 20},"
                         " {\"name\": \"questions\", \"data\": \"" WORLD "/data/vqa_test.jsonl\", \"samples\": 30, \"split_by\": \"kind\", "
                         "\"max_new_tokens\": 4}]"));
    if (run_session_open(&s, DIR "/c.json", 0, &err) || run_stage(&s.c, s.dev, s.db, RUN_EVALUATE, &err)) fail_msg("%s", err.text);
    assert_true(number(s.db, "SELECT n FROM evaluations WHERE name = 'statements' AND relation = 'all' AND split = 'all'") == 20);
    assert_true(number(s.db, "SELECT sum(n) FROM evaluations WHERE name = 'statements' AND relation <> 'all'") == 20);
    assert_true(number(s.db, "SELECT count(*) FROM evaluations WHERE dataset = 'vsr_test' AND split <> 'all'") == 0);
    assert_true(number(s.db, "SELECT sum(n) FROM evaluations WHERE dataset = 'vqa_test' AND relation = 'all' AND split <> 'all'") == 30);
    assert_true(number(s.db, "SELECT sum(n) FROM evaluations WHERE name = 'questions' AND relation = 'yes/no' AND split = 'all'") ==
                number(s.db, "SELECT sum(n) FROM evaluations WHERE name = 'questions' AND relation = 'yes/no' AND split <> 'all'"));
    assert_true(number(s.db, "SELECT count(DISTINCT split) FROM evaluations WHERE name = 'questions'") == 3); /* all, general, spatial */
    assert_true(number(s.db, "SELECT correct FROM evaluations WHERE name = 'questions' AND relation = 'all' AND split = 'all'") ==
                number(s.db, "SELECT sum(score) FROM answers WHERE name = 'questions'"));
    assert_true(number(s.db, "SELECT max(abs(accuracy - correct / n)) FROM evaluations") == 0);
    assert_true(number(s.db, "SELECT count(*) FROM answers WHERE name = 'statements' AND (p_yes > 0.5) = (text = 'yes')") == 20);
    assert_true(run_stage_finished(s.db, &s.c, RUN_EVALUATE));
    assert_true(run_stage_wanted(&s.c, RUN_EVALUATE));
    run_session_close(&s);
}

static void refused(const char *section, const char *says) {
    struct run_config c;
    struct error err = {""};
    char text[1024];
    snprintf(text, sizeof text, *section == '"' ? "{\"out\": \"run\", \"model\": \"m\", \"data\": {\"train\": \"t\"}, %s}" : CONFIG("%s"),
             section);
    put("c.json", text);
    if (run_config_open(&c, DIR "/c.json", &err) == 0) fail_msg("taken: %s", text);
    print_message("    %s\n", err.text);
    if (!strstr(err.text, says)) fail_msg("\"%s\" does not say \"%s\"", err.text, says);
}

static void bad_sections(void **state) {
    (void)state;
    refused("{}", "a list");
    refused("[]", "a list");
    refused("[1]", "evaluate[0]");
    refused("[{\"data\": \"a\"}]", "\"evaluate[0].name\" is missing");
    refused("[{\"name\": \"a\"}]", "\"evaluate[0].data\" is missing");
    refused("[{\"name\": \"a\", \"data\": \"a\"}, {\"name\": \"a\", \"data\": \"b\"}]", "twice");
    refused("[{\"name\": \"a\", \"data\": \"a\", \"task\": \"ocr\"}]", "\"vsr\"");
    refused("[{\"name\": \"a\", \"data\": \"a\", \"where\": []}]", "evaluate[0].where");
    refused("[{\"name\": \"a\", \"data\": \"a\", \"where\": {\"a\": [1]}}]", "evaluate[0].where");
    refused("[{\"name\": \"a\", \"data\": \"a\", \"image\": \"b\"}]", "did you mean \"images\"");
    refused("\"select\": [{\"target\": {\"data\": \"a\"}}]", "\"select[0].task\" is missing");
    refused("\"select\": [{\"task\": \"a\", \"target\": {\"data\": \"a\"}}]", "\"select[0].general\" is missing");
    refused("\"select\": [{\"task\": \"a\", \"target\": {\"dat\": \"a\"}}]", "\"select[0].target.dat\"; did you mean \"data\"");
    refused("\"select\": [{\"task\": \"a\", \"top_samples\": 9}]", "from 1 to 8");
    refused("\"select\": {\"task\": \"a\"}", "a list of objects");
    refused("[{\"name\": \"\", \"data\": \"a\"}]", "evaluate[0].name");
}

int main(void) {
    if (system("rm -rf " DIR " && mkdir -p " DIR)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(phrases),
        cmocka_unit_test(lines_are_chosen_and_asked),
        cmocka_unit_test(rows_of_the_stage),
        cmocka_unit_test(bad_sections),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
