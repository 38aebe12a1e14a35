/* test_report.c - report.html from a synthetic run: whole, escaped, self-contained; and what happens without gnuplot. */
#include "analysis/report.h"
#include "host/file.h"
#include "tests/analysis/synthetic.h"
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

static struct run_config config = {.out = "build/test-report",
                                   .base = "models/base<b>",
                                   .model = "models/vlm",
                                   .diff_eps = 0.01,
                                   .diff_percentile = 25,
                                   .diff_regime = REGIME_TEXT,
                                   .report_features = 6};

static sqlite3 *open_synthetic(const struct synthetic *s) {
    struct error err = {""};
    sqlite3 *db = NULL;
    unlink("build/test-report/run.db");
    if (run_db_open(&db, &config, &err) || synthetic_fill(db, s, &err)) fail_msg("%s", err.text);
    return db;
}

static char *report_text(sqlite3 *db) {
    struct error err = {""};
    char *text = NULL;
    size_t bytes = 0;
    if (stage_report(&config, NULL, db, &err) || file_read("build/test-report/report.html", (size_t)1 << 30, &text, &bytes, &err))
        fail_msg("%s", err.text);
    assert_int_equal(strlen(text), bytes);
    return text;
}

static int occurrences(const char *text, const char *what) {
    int n = 0;
    for (const char *at = strstr(text, what); at; at = strstr(at + 1, what)) n++;
    return n;
}

static void test_sections(void **state) {
    (void)state;
    sqlite3 *db = open_synthetic(&(struct synthetic){8, 1024, 12});
    config.resolved = json_pack("{s:s}", "note", "</pre><script>alert(1)</script>");
    char *html = report_text(db);
    static const char *const expected[] = {"id=\"reconstruction\"",
                                           "id=\"adapted\"",
                                           "id=\"features\"",
                                           "id=\"run\"",
                                           "id=\"glossary\"",
                                           "Figure 1.",
                                           "Figure 2.",
                                           "Figure 3.",
                                           "Figure 4.",
                                           "Table 1.",
                                           "image-only",
                                           "text-only",
                                           "random start",
                                           "base SAE",
                                           "data:image/png;base64,iVBORw0KGgo"};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strstr(html, expected[i])) fail_msg("the report lacks %s", expected[i]);
    assert_int_equal(occurrences(html, " role=\"img\" aria-label=\""), 4 + 30); /* figures, pictures of 6 features x 5 examples */
    assert_int_equal(occurrences(html, "<section class=\"feature\">"), 6);
    assert_int_equal(occurrences(html, "<section"), occurrences(html, "</section>"));
    assert_int_equal(occurrences(html, "<svg"), occurrences(html, "</svg>"));
    assert_int_equal(occurrences(html, "<table>"), occurrences(html, "</table>"));
    assert_int_equal(occurrences(html, "<div"), occurrences(html, "</div>"));
    /* self-contained, escaped */
    static const char *const unwanted[] = {"http:", "https:", "//www", "<script", "<link", "@import", "base<b>", "<circle>", "url(data"};
    for (size_t i = 0; i < sizeof unwanted / sizeof *unwanted; i++)
        if (strstr(html, unwanted[i])) fail_msg("the report holds %s: %.80s", unwanted[i], strstr(html, unwanted[i]));
    assert_non_null(strstr(html, "base&lt;b&gt;"));
    assert_non_null(strstr(html, "&lt;circle&gt;"));
    free(html);
    json_decref(config.resolved);
    config.resolved = NULL;
    sqlite3_close(db);
}

static void test_tasks(void **state) {
    (void)state;
    struct error err = {""};
    sqlite3 *db = open_synthetic(&(struct synthetic){4, 512, 8});
    if (synthetic_task(db, "left & <right>", &err)) fail_msg("%s", err.text);
    assert_int_equal(
        run_db_exec(db, &err, "INSERT INTO norms SELECT layer, 'text', feature, 1, 1.25, 1, 0.75 FROM features WHERE regime = 'text'"), 0);
    long kept = run_db_count(db, "SELECT count(*) FROM task_features WHERE selected AND adapted AND prompt_invariant"),
         selected = run_db_count(db, "SELECT count(*) FROM task_features WHERE selected");
    char *html = report_text(db), says[128];
    snprintf(says, sizeof says, "%ld features are selected, %ld of them are adapted, and %ld of those", selected, selected, kept);
    const char *const expected[] = {says,
                                    "id=\"tasks\"",
                                    "href=\"#tasks\"",
                                    "left &amp; &lt;right&gt;",
                                    "Volcano plot",
                                    "id=\"evaluations\"",
                                    "VSR &lt;test&gt;",
                                    "98.3&thinsp;%",
                                    "yes/no",
                                    "91.7&thinsp;%",
                                    "encoder <b>0.750 &rarr; 1.250</b>",
                                    "template <b>0.3&thinsp;%</b>, <b>0.4&thinsp;%</b>",
                                    "&infin;",
                                    "The model answers 98.3 % of VSR &lt;test&gt; right (600 lines)."};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strstr(html, expected[i])) fail_msg("the report lacks %s", expected[i]);
    assert_null(strstr(html, "<right>"));
    assert_null(strstr(html, "<test>"));
    assert_true(kept >= 2 && kept < selected);
    assert_int_equal(occurrences(html, "<section class=\"feature\">"), 6 + 2); /* report.features 6: two cards a task */
    assert_int_equal(occurrences(html, "<div"), occurrences(html, "</div>"));
    assert_int_equal(occurrences(html, "<table>"), occurrences(html, "</table>"));
    free(html);
    sqlite3_close(db);
}

static void test_causes(void **state) {
    (void)state;
    struct error err = {""};
    sqlite3 *db = open_synthetic(&(struct synthetic){4, 512, 8});
    int layer = (int)run_db_count(db, "SELECT layer FROM examples ORDER BY layer, feature LIMIT 1"),
        feature = (int)run_db_count(db, "SELECT feature FROM examples ORDER BY layer, feature LIMIT 1");
    if (synthetic_causes(db, layer, feature, &err)) fail_msg("%s", err.text);
    char *html = report_text(db);
    const char *const expected[] = {"id=\"heads\"",
                                    "&ldquo;task:&lt;a&gt;&rdquo;",
                                    "layer 2, head 1: -0.365; patched: -0.73",
                                    "Rank correlation (Spearman) over 6 heads: <b>1.00</b>",
                                    "Layer 1 &middot; head 2",
                                    "written by L0H3 <b>+0.75</b>",
                                    "id=\"interventions\"",
                                    "no &lt;features&gt;",
                                    "98.0 &rarr; 80.0",
                                    "-21.0 to -15.0",
                                    "-1.0 (-3.0 to +1.0), 20",
                                    "VSR <b>-18.0</b> points",
                                    "90.0 &rarr; 50.0",
                                    "With &quot;no &lt;features&gt;&quot; accuracy on VSR changes by -18.0 points (95 % interval -21.0 to "
                                    "-15.0); matched controls: -1.0.",
                                    "id=\"steering\"",
                                    "Accuracy on d.jsonl (dev)",
                                    "test, layer 2, strength 1: 71.2&thinsp;% to <b>77.5&thinsp;%</b> of 300."};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strstr(html, expected[i])) fail_msg("the report lacks %s", expected[i]);
    assert_null(strstr(html, "<features>"));
    assert_int_equal(occurrences(html, "bright where the head looks"), 5); /* of eight samples */
    assert_int_equal(occurrences(html, "patched: "), 6);
    assert_int_equal(occurrences(html, "<svg"), occurrences(html, "</svg>"));
    assert_int_equal(occurrences(html, "<section"), occurrences(html, "</section>"));
    assert_int_equal(occurrences(html, "<div"), occurrences(html, "</div>"));
    free(html);
    sqlite3_close(db);
}

static void test_rank_correlation(void **state) {
    (void)state;
    static const double x[] = {3, 1, 4, 1, 5, 9, 2, 6}, y[] = {2.5, 7, 1, 8, 2.5, 8, 1, 8}, flat[] = {2, 2, 2};
    assert_true(fabs(report_rank_correlation(x, y, 8) - 0.19885368120992467) < 1e-12); /* scipy.stats.spearmanr */
    assert_true(report_rank_correlation(x, x, 8) > 1 - 1e-12);
    assert_true(isnan(report_rank_correlation(x, flat, 3)));
}

/* Ids are unique and every reference finds its target. */
static void test_ids(void **state) {
    (void)state;
    sqlite3 *db = open_synthetic(&(struct synthetic){3, 64, 4});
    char *html = report_text(db);
    static const char *const marks[] = {" id=\"", " id='"};
    static char ids[4096][40];
    int n = 0;
    for (int m = 0; m < 2; m++)
        for (const char *at = strstr(html, marks[m]); at; at = strstr(at + 1, marks[m])) {
            size_t length = strcspn(at + 5, "\"'");
            assert_true(n < 4096 && length < sizeof ids[0]);
            snprintf(ids[n++], sizeof ids[0], "%.*s", (int)length, at + 5);
        }
    assert_true(n > 10);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++) assert_string_not_equal(ids[i], ids[j]);
    for (const char *at = strstr(html, "href="); at; at = strstr(at + 1, "href=")) {
        char id[40];
        if (at[6] != '#') continue;
        snprintf(id, sizeof id, "%.*s", (int)strcspn(at + 7, "\"'"), at + 7);
        bool found = false;
        for (int i = 0; i < n && !found; i++) found = strcmp(ids[i], id) == 0;
        if (!found) fail_msg("#%s leads nowhere", id);
    }
    free(html);
    sqlite3_close(db);
}

static void test_empty_run(void **state) {
    (void)state;
    struct error err = {""};
    sqlite3 *db = NULL;
    unlink("build/test-report/run.db");
    assert_int_equal(run_db_open(&db, &config, &err), 0);
    char *html = report_text(db);
    assert_non_null(strstr(html, "stagediff train"));
    assert_non_null(strstr(html, "stagediff diff"));
    assert_non_null(strstr(html, "</html>"));
    free(html);
    sqlite3_close(db);
}

static void test_subset_says_so(void **state) {
    (void)state;
    sqlite3 *db = open_synthetic(&(struct synthetic){3, 8192, 4});
    char *html = report_text(db);
    assert_non_null(strstr(html, "Drawn: 20000 of 24576 features"));
    free(html);
    sqlite3_close(db);
}

static void test_no_gnuplot(void **state) {
    (void)state;
    sqlite3 *db = open_synthetic(&(struct synthetic){3, 64, 4});
    struct error err = {""};
    char *old = report_text(db), *path = strdup(getenv("PATH"));
    setenv("PATH", "build/nowhere", 1);
    assert_int_equal(stage_report(&config, NULL, db, &err), -1);
    setenv("PATH", path, 1);
    assert_non_null(strstr(err.text, "gnuplot-nox"));
    assert_null(strchr(err.text, '\n'));
    /* the report of before is still there, and nothing else was left behind */
    char *now = NULL;
    size_t bytes = 0;
    assert_int_equal(file_read("build/test-report/report.html", (size_t)1 << 30, &now, &bytes, &err), 0);
    assert_string_equal(now, old);
    DIR *dir = opendir("build/test-report");
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir))
        if (strcmp(entry->d_name, "run.db") && strcmp(entry->d_name, "report.html") && strcmp(entry->d_name, ".") &&
            strcmp(entry->d_name, ".."))
            fail_msg("left behind: %s", entry->d_name);
    closedir(dir);
    free(now);
    free(old);
    free(path);
    sqlite3_close(db);
}

static void test_html_pieces(void **state) {
    (void)state;
    static const char *const texts[] = {"", "f", "fo", "foo", "foob", "fooba", "foobar"};
    static const char *const coded[] = {"", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"}; /* RFC 4648 section 10 */
    char buffer[256] = "";
    for (size_t i = 0; i < 7; i++) {
        FILE *out = fmemopen(buffer, sizeof buffer, "w");
        html_base64(out, texts[i], strlen(texts[i]));
        fclose(out);
        assert_string_equal(buffer, coded[i]);
        memset(buffer, 0, sizeof buffer);
    }
    FILE *out = fmemopen(buffer, sizeof buffer, "w");
    html_text(out, "a<b>&\"c\"'d'\x01");
    fclose(out);
    assert_string_equal(buffer, "a&lt;b&gt;&amp;&quot;c&quot;&#39;d&#39;\xef\xbf\xbd");
    memset(buffer, 0, sizeof buffer);
    out = fmemopen(buffer, sizeof buffer, "w");
    html_count(out, 1234567);
    html_number(out, 0.00025);
    fclose(out);
    assert_string_equal(buffer, "1&#8239;234&#8239;5672.5&middot;10<sup>&minus;4</sup>");
}

int main(void) {
    if (system("rm -rf build/test-report && mkdir -p build/test-report")) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_html_pieces),    cmocka_unit_test(test_empty_run),  cmocka_unit_test(test_ids),
        cmocka_unit_test(test_subset_says_so), cmocka_unit_test(test_no_gnuplot), cmocka_unit_test(test_sections),
        cmocka_unit_test(test_tasks),          cmocka_unit_test(test_causes),     cmocka_unit_test(test_rank_correlation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
