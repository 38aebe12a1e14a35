/* command_diff.c - `stagediff diff CONFIG.json`: the second stage alone. */
#include "analysis/summary.h"
#include "host/options.h"

static int run(const struct command *self, struct error *err) {
    struct run_session s;
    struct run_summary summary;
    int status = run_session_open(&s, option(self, "CONFIG")->text, self->threads, err);
    if (status == 0) status = run_stage(&s.c, s.dev, s.db, RUN_DIFF, err);
    if (status == 0) status = run_summary_read(&summary, s.db, &s.c, err);
    if (status == 0) {
        printf("%-7s %9s %9s %8s %15s\n", "layer", "features", "adapted", "share", "median cosine");
        for (int i = 0; i < summary.n_layers; i++) {
            const struct layer_share *l = &summary.layer[i];
            printf("%-7d %9ld %9ld %7.1f%% %15.3f\n", l->layer, l->features, l->adapted, 100.0 * (double)l->adapted / (double)l->features,
                   l->median_cosine);
        }
        run_summary_free(&summary);
        if (fflush(stdout) || ferror(stdout)) status = fail(err, "cannot write to stdout");
    }
    run_session_close(&s);
    return status;
}

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .required = true, .help = "the run's CONFIG.json (docs/config.md)"},
    {.name = NULL},
};

struct command command_diff = {
    .name = "diff",
    .summary = "which features turned and became visual: energies, cosines, the adapted set",
    .description =
        "Streams the validation samples through the base LLM (text alone) and the vision-language model, with the run's dictionaries "
        "listening,\n"
        "and writes feature_metrics to run.db: E_v, E_t (unit-decoder convention), decoder and encoder cosine, firing, adapted.\n"
        "Needs the dictionaries that `stagediff train CONFIG.json` leaves. Prints the adapted share of every layer.\n\n"
        "  stagediff diff tools/tinyworld/demo.json\n",
    .options = options,
    .run = run,
};
