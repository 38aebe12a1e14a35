/* command_report.c - `stagediff report CONFIG.json`: report.html from run.db, again. */
#include "analysis/run.h"
#include "host/file.h"
#include "host/options.h"
#include <stdlib.h>

static int run(const struct command *self, struct error *err) {
    struct run_config c;
    sqlite3 *db = NULL;
    if (run_config_open(&c, option(self, "CONFIG")->text, err)) return -1;
    char *path = path_join(c.out, "run.db");
    int status = file_exists(path) ? 0 : fail(err, "%s: not there; the report is made from it: run `stagediff run` first", path);
    if (status == 0) status = run_db_open(&db, &c, err);
    if (status == 0) status = run_stage(&c, NULL, db, RUN_REPORT, err);
    if (status == 0) printf("%s/report.html\n", c.out);
    if (status == 0 && (fflush(stdout) || ferror(stdout))) status = fail(err, "cannot write to stdout");
    free(path);
    sqlite3_close(db);
    run_config_free(&c);
    return status;
}

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .required = true, .help = "the run's CONFIG.json (docs/config.md)"},
    {.name = NULL},
};

struct command command_report = {
    .name = "report",
    .summary = "report.html from the run's database",
    .description =
        "Writes OUT/report.html, one file that holds everything and needs no network, from run.db. Needs gnuplot (Debian: gnuplot-nox).\n"
        "Prints the path of the report.\n\n"
        "  stagediff report tools/tinyworld/demo.json\n",
    .options = options,
    .run = run,
};
