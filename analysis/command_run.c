/* command_run.c - `stagediff run CONFIG.json`: every stage in order, finished ones skipped, and the findings at the end. */
#include "analysis/summary.h"
#include "host/options.h"
#include "host/progress.h"
#include <string.h>

#include "kernels/device.h"

static void print_plan(const struct run_config *c, const bool *due, const struct device *dev) {
    fprintf(stderr, "stagediff run: %s on %s\n", c->out, device_name(dev));
    for (int s = 0; s < RUN_STAGES; s++)
        if (run_stage_wanted(c, (enum run_stage_index)s))
            fprintf(stderr, "  %-9s %s%s\n", run_stage_names[s], run_stage_what((enum run_stage_index)s),
                    due[s] ? "" : " (finished before with these settings: skipped)");
}

static int run_all(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err) {
    bool due[RUN_STAGES];
    struct run_summary summary;
    run_stages_due(due, db, c);
    if (!log_quiet) print_plan(c, due, dev);
    int status = run_config_write(c, err);
    for (int s = 0; s < RUN_STAGES && status == 0; s++) {
        double start = seconds_now();
        if (!due[s]) continue;
        status = run_stage(c, dev, db, (enum run_stage_index)s, err);
        if (status == 0)
            log_note("%s finished in %.1f s", run_stage_names[s], seconds_now() - start);
        else if (status < 0)
            error_context(err, "%s", run_stage_names[s]);
    }
    if (status == 0) status = run_summary_read(&summary, db, c, err);
    if (status == 0) {
        run_summary_print(stdout, &summary, db, c);
        run_summary_free(&summary);
        if (fflush(stdout) || ferror(stdout)) status = fail(err, "cannot write the findings to stdout");
    }
    return status;
}

static int run(const struct command *self, struct error *err) {
    struct run_session s;
    int status = run_session_open(&s, option(self, "CONFIG")->text, self->threads, err);
    if (status == 0) status = run_all(&s.c, s.dev, s.db, err);
    run_session_close(&s);
    return status;
}

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .required = true, .help = "the run's CONFIG.json (docs/config.md)"},
    {.name = NULL},
};

struct command command_run = {
    .name = "run",
    .summary = "every stage in order: train, diff, select, evaluate, report",
    .description =
        "Runs the stages of CONFIG.json one after the other into the run's folder: config.json (resolved), run.db, sae/, metrics.jsonl,\n"
        "report.html. A stage that was finished with the same settings and files is skipped; a stopped one goes on where it was.\n"
        "Ends with the findings on stdout.\n\n"
        "  stagediff run tools/tinyworld/demo.json\n",
    .options = options,
    .run = run,
};
