/* select_write.c - the rows of `select` in run.db, and the reading of a task's features. */
#include "analysis/select.h"
#include "host/file.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int write_layer(sqlite3 *db, const struct select_task *t, const struct select_layer *l, struct error *err) {
    static const int groups[] = {DIFF_PATCHES, DIFF_TEMPLATE, DIFF_WORDS};
    sqlite3_stmt *q = NULL;
    const size_t M = (size_t)l->job.M;
    int status = 0;
    if (run_db_prepare(
            db, &q, err,
            "INSERT INTO task_rows(layer, task, feature, fired_target, fired_general, odds_ratio, p_value, log10_p, q_value, selected,"
            " adapted, prompt_invariant, target_image, target_template, target_question, general_image, general_template,"
            " general_question) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            "it", (long)l->job.layer, t->c->task))
        return -1;
    for (int f = 0; f < l->job.M && status == 0; f++) {
        sqlite3_bind_int(q, 3, f);
        sqlite3_bind_int64(q, 4, select_fired(t, l, SELECT_TARGET, f));
        sqlite3_bind_int64(q, 5, select_fired(t, l, SELECT_GENERAL, f));
        sqlite3_bind_double(q, 6, l->odds[f]); /* NaN: NULL */
        sqlite3_bind_double(q, 7, pow(10, l->log10_p[f]));
        sqlite3_bind_double(q, 8, l->log10_p[f]);
        sqlite3_bind_double(q, 9, l->q[f]);
        sqlite3_bind_int(q, 10, l->selected[f]);
        sqlite3_bind_int(q, 11, l->adapted[f]);
        if (l->invariant[f] < 0)
            sqlite3_bind_null(q, 12);
        else
            sqlite3_bind_int(q, 12, l->invariant[f]);
        for (int i = 0; i < 6; i++) sqlite3_bind_int64(q, 13 + i, l->fired[i / 3][(size_t)groups[i % 3] * M + (size_t)f]);
        if (sqlite3_step(q) != SQLITE_DONE) status = fail(err, "%s: %s", sqlite3_db_filename(db, "main"), sqlite3_errmsg(db));
        sqlite3_reset(q);
    }
    sqlite3_finalize(q);
    return status;
}

int select_write(sqlite3 *db, const struct select_task *t, const struct select_layer *layers, int n_layers, struct error *err) {
    const long *a = t->tokens[SELECT_TARGET], *b = t->tokens[SELECT_GENERAL];
    if (run_db_run(db, err,
                   "INSERT INTO tasks(task, tokens_target, tokens_general, min_odds_ratio, min_difference, target_image, target_template,"
                   " target_question, general_image, general_template, general_question) VALUES(?,?,?,?,?,?,?,?,?,?,?)",
                   "tiiddiiiiii", t->c->task, select_tokens(t, SELECT_TARGET), select_tokens(t, SELECT_GENERAL), t->c->odds_ratio,
                   t->c->difference, a[DIFF_PATCHES], a[DIFF_TEMPLATE], a[DIFF_WORDS], b[DIFF_PATCHES], b[DIFF_TEMPLATE], b[DIFF_WORDS]))
        return -1;
    for (int l = 0; l < n_layers; l++)
        if (write_layer(db, t, &layers[l], err)) return -1;
    return 0;
}

static int unknown_task(sqlite3 *db, const char *task, struct error *err) {
    sqlite3_stmt *q = NULL;
    char names[512] = "";
    if (run_db_prepare(db, &q, err, "SELECT task FROM tasks ORDER BY task", "")) return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", (const char *)sqlite3_column_text(q, 0));
    }
    sqlite3_finalize(q);
    return fail(err, "%s: no task \"%s\"; %s%s", sqlite3_db_filename(db, "main"), task, *names ? "it has " : "run `stagediff select` first",
                names);
}

/* Strongest first: the gain in firing rate. The odds are no measure of it: a feature that fires once and never elsewhere has infinite ones.
 */
#define TASK_FEATURES                                                                                                                      \
    " FROM task_features t WHERE t.task = ?1 AND t.selected AND t.adapted AND coalesce(t.prompt_invariant, 1)"                             \
    " ORDER BY 1.0 * t.fired_target / t.tokens_target - 1.0 * t.fired_general / t.tokens_general DESC, t.layer, t.feature"                 \
    " LIMIT ?2"

int task_features(struct task_feature **at, int *n, sqlite3 *db, const char *task, int top, struct error *err) {
    sqlite3_stmt *q = NULL;
    int known;
    *at = NULL, *n = 0;
    if (run_db_prepare(db, &q, err, "SELECT 1 FROM tasks WHERE task = ?", "t", task)) return -1;
    known = sqlite3_step(q) == SQLITE_ROW;
    sqlite3_finalize(q);
    if (!known) return unknown_task(db, task, err);
    if (run_db_prepare(db, &q, err, "SELECT layer, feature FROM (SELECT t.layer, t.feature" TASK_FEATURES ") ORDER BY layer, feature", "ti",
                       task, top ? (long)top : -1L))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        *at = memory_grow(*at, (size_t)*n + 1, sizeof **at);
        (*at)[(*n)++] = (struct task_feature){sqlite3_column_int(q, 0), sqlite3_column_int(q, 1)};
    }
    sqlite3_finalize(q);
    return 0;
}

int task_cards(const struct run_config *c) { return (c->report_features + 2) / 3; }

int task_strongest(sqlite3_stmt **q, sqlite3 *db, const char *task, const char *regime, int top, struct error *err) {
    return run_db_prepare(db, q, err,
                          "SELECT t.layer, t.feature, EXISTS(SELECT 1 FROM examples e WHERE e.layer = t.layer AND e.feature = t.feature"
                          " AND e.regime = ?3)" TASK_FEATURES,
                          "tit", task, top ? (long)top : -1L, regime);
}
