/* command_select.c - `stagediff select CONFIG.json`: the task features of a run. */
#include "analysis/run.h"
#include "host/options.h"

static int print_tasks(sqlite3 *db, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(
            db, &q, err,
            "SELECT task, layer, sum(selected), sum(selected AND adapted), sum(selected AND adapted AND coalesce(prompt_invariant, 1))"
            " FROM task_features GROUP BY task, layer ORDER BY task, layer",
            ""))
        return -1;
    printf("%-20s %6s %9s %9s %9s\n", "task", "layer", "selected", "+adapted", "+prompts");
    while (sqlite3_step(q) == SQLITE_ROW)
        printf("%-20s %6d %9d %9d %9d\n", (const char *)sqlite3_column_text(q, 0), sqlite3_column_int(q, 1), sqlite3_column_int(q, 2),
               sqlite3_column_int(q, 3), sqlite3_column_int(q, 4));
    sqlite3_finalize(q);
    return fflush(stdout) || ferror(stdout) ? fail(err, "cannot write to stdout") : 0;
}

static int run(const struct command *self, struct error *err) {
    struct run_session s;
    int status = run_session_open(&s, option(self, "CONFIG")->text, self->threads, err);
    if (status == 0) status = run_stage(&s.c, s.dev, s.db, RUN_SELECT, err);
    if (status == 0) status = print_tasks(s.db, err);
    run_session_close(&s);
    return status;
}

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .required = true, .help = "the run's CONFIG.json (docs/config.md)"},
    {.name = NULL},
};

struct command command_select = {
    .name = "select",
    .summary = "which features fire for a task: odds ratio, Fisher's test, prompt filter",
    .description = "For every task of \"select\": firing of the run's dictionaries on a target set against a general set, odds ratio, "
                   "Fisher's exact test,\n"
                   "Benjamini-Hochberg over all layers, and whether a feature fires for its pictures under neutral prompts. Rows in the "
                   "view task_features.\n"
                   "Needs what `stagediff diff` leaves. Prints how many features of every layer remain.\n\n"
                   "  stagediff select tools/tinyworld/demo.json\n",
    .options = options,
    .run = run,
};
