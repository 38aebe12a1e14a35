/* test_select.c - odds ratios, Fisher's p and Benjamini-Hochberg against SciPy and exact sums (tools/golden/make_select.py), and the stage
 * on the small world with random dictionaries against a plain computation: counts by token kind, the selected set, the prompt filter. */
#include "analysis/select.h"
#include "host/file.h"
#include "kernels/device.h"
#include "tests/world.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define DIR   "build/test-select"
#define WORLD "../../tools/tinyworld/world"
enum { LAYERS = 2, FEATURES = 64, K = 5, TARGET = 7, GENERAL = 6, PROMPTS = 2, TOP = 3, WIDTH = WORLD_WIDTH };
static const int layers[LAYERS] = {1, 4};
static struct sae_host tuned[LAYERS];

static void die(const struct error *err) { fail_msg("%s", err->text); }

static void close_to(const char *what, size_t row, double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance * fmax(1, fabs(want)))) fail_msg("row %zu: %s %.17g, expected %.17g", row, what, got, want);
}

static void statistics_equal_scipy(void **state) {
    json_error_t where;
    json_t *top = json_load_file("tests/analysis/golden/select.json", 0, &where), *rows = json_object_get(top, "rows"), *row;
    size_t i, n = json_array_size(rows);
    double *p = memory_take(n + 1, sizeof *p), *q = memory_take(n + 1, sizeof *q), worst = 0;
    (void)state;
    assert_true(n >= 300);
    json_array_foreach(rows, i, row) {
        int64_t t[4];
        for (size_t c = 0; c < 4; c++) t[c] = json_integer_value(json_array_get(row, c));
        const json_t *odds = json_array_get(row, 4);
        const double own = odds_ratio(t[0], t[1], t[2], t[3]), log10_p = json_number_value(json_array_get(row, 5));
        assert_int_equal(isnan(own), json_is_null(odds));
        if (!isnan(own)) close_to("odds ratio", i, own, json_number_value(odds), 1e-14);
        const double got = fisher_greater_log10(t[0], t[1], t[2], t[3]);
        worst = fmax(worst, fabs(got - log10_p));
        if (!(fabs(got - log10_p) <= 1e-11 * fmax(1, fabs(log10_p)))) fail_msg("row %zu: log10 p %.17g, exactly %.17g", i, got, log10_p);
        p[i] = pow(10, got);
    }
    benjamini_hochberg(q, p, n);
    json_array_foreach(rows, i, row) close_to("q", i, q[i], json_number_value(json_array_get(row, 6)), 1e-10);
    printf("  log10 p within %.2g of the exact value\n", worst);
    free(p);
    free(q);
    json_decref(top);
}

/* ---- the stage ---- */

static void put(const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, DIR "/%s", name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void make_dictionaries(void) {
    struct error err = {""};
    mkdir(DIR "/run", 0777), mkdir(DIR "/run/sae", 0777), mkdir(DIR "/run/sae/text", 0777), mkdir(DIR "/saes", 0777);
    for (int l = 0; l < LAYERS; l++) {
        char path[256];
        if (sae_random(&tuned[l], WIDTH, FEATURES, K, 3 + (unsigned long)l, &err)) die(&err);
        for (int i = 0; i < FEATURES * WIDTH; i++) tuned[l].D[i] *= (float)(1 + i / WIDTH % 3); /* decoder rows of norm 1 to 3 */
        snprintf(path, sizeof path, DIR "/run/sae/text/layer_%d", layers[l]);
        if (sae_save_saelens(&tuned[l], path, &err)) die(&err);
        snprintf(path, sizeof path, DIR "/saes/layer_%d", layers[l]);
        if (sae_save_saelens(&tuned[l], path, &err)) die(&err);
    }
}

struct seen { /* of one pass, by the plain computation */
    long fired[LAYERS][KIND_COUNT][FEATURES], tokens[KIND_COUNT];
    double strongest[LAYERS][FEATURES][TARGET * PROMPTS]; /* z over the text tokens of each line */
    int line;
};

static void one_row(struct seen *s, int l, const float *x, int kind) {
    double h[FEATURES];
    bool taken[FEATURES] = {false};
    for (int f = 0; f < FEATURES; f++) {
        h[f] = 0;
        for (int i = 0; i < WIDTH; i++) h[f] += (double)tuned[l].E[f * WIDTH + i] * (double)x[i];
    }
    for (int k = 0; k < K; k++) {
        int best = -1;
        for (int f = 0; f < FEATURES; f++)
            if (!taken[f] && (best < 0 || h[f] > h[best])) best = f;
        taken[best] = true;
        if (h[best] <= 0) continue;
        s->fired[l][kind][best]++;
        const double z = h[best] * (1 + best % 3);
        if (kind != KIND_IMAGE && z > s->strongest[l][best][s->line]) s->strongest[l][best][s->line] = z;
    }
}

static int observe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    struct seen *s = context;
    float *host = memory_take((size_t)rows * (size_t)width, sizeof *host);
    (void)err;
    device_download(dev, host, x, (size_t)rows * (size_t)width * sizeof *host);
    for (int t = 0; t < rows; t++) {
        if (b->kinds[t] == KIND_BOS) continue;
        one_row(s, layer == layers[1], host + (size_t)t * (size_t)width, b->kinds[t]);
        if (layer == layers[0]) s->tokens[b->kinds[t]]++;
    }
    free(host);
    return 0;
}

static void see(struct seen *s, struct model *m, const struct samples *lines) {
    struct error err = {""};
    struct probe probes[LAYERS];
    memset(s, 0, sizeof *s);
    for (int l = 0; l < LAYERS; l++) probes[l] = (struct probe){PROBE_RESID_POST, layers[l], observe, s};
    for (size_t i = 0; i < lines->count; i++) {
        struct batch b;
        s->line = (int)i;
        if (model_batch(m, &b, lines, i, 1, false, &err) || model_forward(m, &b, probes, LAYERS, NULL, &err)) die(&err);
        batch_free(&b);
    }
}

/* Does the feature pass for its TOP strongest lines? -1: a tie would decide which lines those are. */
static int passes(const struct seen *target, const struct seen *neutral, int l, int f, double above) {
    bool used[TARGET] = {false};
    int lines = 0, pass = 1;
    for (int r = 0; r < TOP; r++) {
        int best = -1;
        for (int i = 0; i < TARGET; i++)
            if (!used[i] && target->strongest[l][f][i] > 0 && (best < 0 || target->strongest[l][f][i] > target->strongest[l][f][best]))
                best = i;
        if (best < 0) break;
        used[best] = true;
        lines++;
        double most = 0;
        for (int p = 0; p < PROMPTS; p++) most = fmax(most, neutral->strongest[l][f][best * PROMPTS + p]);
        if (most <= above) pass = 0;
    }
    return lines ? pass : 0;
}

static long integer(sqlite3 *db, const char *sql, long a, long b) {
    sqlite3_stmt *q = NULL;
    struct error err = {""};
    if (run_db_prepare(db, &q, &err, sql, "ii", a, b)) die(&err);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    long x = (long)sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    return x;
}

#define ABOVE "6.0"
static const char config[] =
    "{\"out\": \"run\", \"model\": \"" WORLD "/vlm\", \"base\": \"" WORLD "/base\", \"saes\": \"saes\", \"layers\": [1, 4], \"regimes\": "
    "[\"text\"], \"data\": {\"train\": \"target.jsonl\"}, \"train\": {\"forward_samples\": 3}, \"select\": [{\"task\": \"a\", \"target\": "
    "{\"data\": \"target.jsonl\"}, \"general\": {\"data\": \"general.jsonl\"}, \"odds_ratio\": 1.5, \"difference\": 0.001, \"prompts\": "
    "\"prompts.txt\", \"top_samples\": 3, \"fires_above\": " ABOVE
    "}, {\"task\": \"b\", \"target\": {\"data\": \"general.jsonl\"}, \"general\": "
    "{\"data\": \"general.jsonl\"}}]}";

static void make_lines(void) {
    char text[4096] = "";
    for (int i = 0; i < TARGET; i++) /* each its own picture, answers that must not be seen */
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "{\"image\": \"" WORLD "/data/images/dev_%04d.%s\", \"question\": \"What is left of shape %d?\", \"answer\": \"red red "
                 "red\"}\n",
                 i, i % 3 == 2 ? "jpg" : "png", i);
    put("target.jsonl", text);
    text[0] = 0;
    for (int i = 0; i < GENERAL; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "{\"image\": \"" WORLD "/data/images/dev_%04d.%s\", \"question\": \"How many objects are there?\"}\n", i + 10,
                 (i + 10) % 3 == 2 ? "jpg" : "png");
    put("general.jsonl", text);
    put("prompts.txt", "# neutral\nDescribe the scene.\nHow are things?\n");
    put("c.json", config);
}

static void neutral_lines(struct samples *lines, const struct samples *target) {
    static char prompt[PROMPTS][32] = {"Describe the scene.", "How are things?"};
    *lines = (struct samples){memory_take(TARGET * PROMPTS, sizeof *lines->at), TARGET * PROMPTS, target->path};
    for (size_t i = 0; i < lines->count; i++) {
        lines->at[i] = target->at[i / PROMPTS];
        lines->at[i].question = prompt[i % PROMPTS];
    }
}

static void check_task(sqlite3 *db, const struct seen *target, const struct seen *general, const struct seen *neutral) {
    int selected = 0, invariant = 0, refused = 0;
    const long A = target->tokens[KIND_TEMPLATE] + target->tokens[KIND_QUESTION],
               B = general->tokens[KIND_TEMPLATE] + general->tokens[KIND_QUESTION];
    assert_int_equal(integer(db, "SELECT max(tokens_target) FROM task_features WHERE task = 'a' AND ?1 = ?2", 1, 1), A);
    assert_int_equal(integer(db, "SELECT max(tokens_general) FROM task_features WHERE task = 'a' AND ?1 = ?2", 1, 1), B);
    assert_int_equal(integer(db, "SELECT target_image FROM tasks WHERE task = 'a' AND ?1 = ?2", 1, 1), target->tokens[KIND_IMAGE]);
    for (int l = 0; l < LAYERS; l++)
        for (int f = 0; f < FEATURES; f++) {
#define ROW(column) integer(db, "SELECT " column " FROM task_rows WHERE task = 'a' AND layer = ?1 AND feature = ?2", layers[l], f)
            const long a = target->fired[l][KIND_TEMPLATE][f] + target->fired[l][KIND_QUESTION][f],
                       b = general->fired[l][KIND_TEMPLATE][f] + general->fired[l][KIND_QUESTION][f];
            assert_int_equal(ROW("fired_target"), a);
            assert_int_equal(ROW("fired_general"), b);
            assert_int_equal(ROW("target_image"), target->fired[l][KIND_IMAGE][f]);
            assert_int_equal(ROW("general_question"), general->fired[l][KIND_QUESTION][f]);
            assert_int_equal(ROW("adapted"), f % 2);
            const bool chosen = odds_ratio(a, A, b, B) >= 1.5 && (double)a / (double)A - (double)b / (double)B >= 0.001;
            assert_int_equal(ROW("selected"), chosen);
            assert_int_equal(ROW("prompt_invariant IS NULL"), !chosen);
            if (!chosen) continue;
            const int pass = passes(target, neutral, l, f, atof(ABOVE));
            assert_int_equal(ROW("prompt_invariant"), pass);
            selected++, invariant += pass, refused += !pass;
        }
    printf("  %d selected, %d pass the prompts, %d do not\n", selected, invariant, refused);
    assert_true(invariant > 3 && refused > 3 && selected < LAYERS * FEATURES - 10);
}

static void the_stage_equals_a_plain_computation(void **state) {
    static struct seen target, general, neutral;
    struct run_session s;
    struct model m;
    struct samples lines, others, prompted;
    struct error err = {""};
    (void)state;
    make_lines();
    make_dictionaries();
    if (run_session_open(&s, DIR "/c.json", 0, &err)) die(&err);
    assert_int_equal(run_stage(&s.c, s.dev, s.db, RUN_SELECT, &err), -1); /* nothing from `diff` yet */
    assert_non_null(strstr(err.text, "stagediff diff"));
    for (int l = 0; l < LAYERS; l++)
        for (long f = 0; f < FEATURES; f++)
            if (run_db_run(s.db, &err, "INSERT INTO features VALUES(?,'text',?,0,0,0,0,0,0,?,0,0,0,0)", "iii", (long)layers[l], f, f % 2))
                die(&err);
    if (run_stage(&s.c, s.dev, s.db, RUN_SELECT, &err)) die(&err);
    const long kept = integer(s.db, "SELECT count(*) FROM samples WHERE ?1 = ?2", 1, 1);
    if (run_stage(&s.c, s.dev, s.db, RUN_SELECT, &err)) die(&err); /* its rows replace those of before */
    assert_int_equal(integer(s.db, "SELECT count(*) FROM samples WHERE ?1 = ?2", 1, 1), kept);
    assert_int_equal(integer(s.db, "SELECT count(*) FROM tasks WHERE ?1 = ?2", 1, 1), 2);
    char *prompts = s.c.select[0].prompts;
    s.c.select[0].prompts = s.c.out; /* a folder: the stage fails, the old rows stay */
    assert_int_equal(run_stage(&s.c, s.dev, s.db, RUN_SELECT, &err), -1);
    s.c.select[0].prompts = prompts;
    assert_int_equal(integer(s.db, "SELECT count(*) FROM tasks WHERE ?1 = ?2", 1, 1), 2);
    if (model_open(&m, s.dev, s.c.model, NULL, &err) || samples_open(&lines, DIR "/target.jsonl", &err) ||
        samples_open(&others, DIR "/general.jsonl", &err))
        die(&err);
    neutral_lines(&prompted, &lines);
    see(&target, &m, &lines);
    see(&general, &m, &others);
    see(&neutral, &m, &prompted);
    check_task(s.db, &target, &general, &neutral);
    /* task b: the same set twice, shared counts; no prompt filter */
    assert_int_equal(
        integer(s.db, "SELECT count(*) FROM task_features WHERE task = 'b' AND fired_target <> fired_general AND ?1 = ?2", 1, 1), 0);
    assert_int_equal(
        integer(s.db, "SELECT count(*) FROM task_features WHERE task = 'b' AND (selected OR prompt_invariant IS NOT NULL) AND ?1 = ?2", 1,
                1),
        0);
    /* the cards' examples: values at every token of the prompt, lines numbered downwards */
    assert_true(integer(s.db, "SELECT count(*) FROM samples WHERE sample < 0 AND sample >= -7 AND picture IS NOT NULL AND ?1 = ?2", 1, 1) >
                0);
    assert_int_equal(integer(s.db, "SELECT count(*) FROM samples WHERE sample >= 0 AND ?1 = ?2", 1, 1), 0);
    assert_int_equal(integer(s.db, "SELECT count(DISTINCT layer * 1000 + feature) FROM examples WHERE ?1 = ?2", 1, 1),
                     6); /* all of task a */
    assert_int_equal(
        integer(s.db,
                "SELECT count(*) FROM examples JOIN samples USING(sample) WHERE length(token_values) <> 4 * length(kinds) AND ?1 = ?2", 1,
                1),
        0);
    for (int l = 0; l < LAYERS; l++) /* strongest first, by the counted tokens alone */
        for (int f = 0; f < FEATURES; f++) {
            int best = 0;
            for (int i = 1; i < TARGET; i++) best = target.strongest[l][f][i] > target.strongest[l][f][best] ? i : best;
            assert_int_equal(
                integer(s.db, "SELECT count(*) FROM examples WHERE rank = 0 AND layer = ?1 AND feature = ?2", layers[l], f),
                integer(s.db,
                        "SELECT count(*) FROM examples WHERE rank = 0 AND layer = ?1 AND feature = ?2 % 1000 AND sample = -1 - ?2 / 1000",
                        layers[l], f + 1000 * best));
        }
    struct task_feature *at;
    int n;
    if (task_features(&at, &n, s.db, "a", 0, &err)) die(&err);
    assert_int_equal(
        n, integer(s.db, "SELECT count(*) FROM task_features WHERE task = 'a' AND selected AND adapted AND prompt_invariant AND ?1 = ?2", 1,
                   1));
    for (int i = 0; i < n; i++) assert_true(at[i].feature % 2 == 1 && (at[i].layer == 1 || at[i].layer == 4));
    free(at);
    if (task_features(&at, &n, s.db, "a", 2, &err)) die(&err); /* the two whose firing rate gains most */
    assert_int_equal(n, 2);
    for (int i = 0; i < n; i++)
        assert_true(integer(s.db,
                            "SELECT count(*) FROM task_features t, task_features o WHERE t.task = 'a' AND t.layer = ?1 AND t.feature = ?2"
                            " AND o.task = 'a' AND o.selected AND o.adapted AND o.prompt_invariant"
                            " AND 1.0 * o.fired_target / o.tokens_target - 1.0 * o.fired_general / o.tokens_general"
                            " > 1.0 * t.fired_target / t.tokens_target - 1.0 * t.fired_general / t.tokens_general",
                            at[i].layer, at[i].feature) < 2);
    free(at);
    assert_int_equal(task_features(&at, &n, s.db, "c", 0, &err), -1);
    assert_non_null(strstr(err.text, "it has a, b"));
    free(prompted.at);
    samples_free(&lines), samples_free(&others);
    model_close(&m);
    run_session_close(&s);
    for (int l = 0; l < LAYERS; l++) sae_host_free(&tuned[l]);
}

int main(void) {
    if (system("rm -rf " DIR " && mkdir -p " DIR)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(statistics_equal_scipy),
        cmocka_unit_test(the_stage_equals_a_plain_computation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
