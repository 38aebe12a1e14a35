/* command_intervene.c - `stagediff intervene`: what an edit list does to a model's scores; or a run's stage. */
#include "analysis/intervene.h"
#include "analysis/run.h"
#include "host/file.h"
#include "models/command.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void print_relation(const char *name, const struct paired *p) {
    printf("%-28s %7ld %9.2f %9.2f %+8.2f  [%+.2f, %+.2f] %6ld %6ld  %.3g\n", name, p->n, 100 * p->baseline, 100 * p->intervened,
           100 * p->delta, 100 * p->ci_low, 100 * p->ci_high, p->lost, p->gained, p->mcnemar_p);
}

/* The whole set, then each relation (VSR) or answer type (VQA). */
static void print_table(const struct intervention *x, const struct samples *s) {
    const struct effect *e = &x->effect;
    struct tallies t;
    printf("%-28s %7s %9s %9s %8s  %-16s %6s %6s  %s\n", "accuracy, %", "n", "baseline", "edited", "change", "95 % interval", "lost",
           "gained", "McNemar's p");
    print_relation("all", &e->pair);
    tally_all(&t, &x->baseline, s, 0, NULL);
    for (int i = 1; i < t.count; i++) {
        double *base = scores_of(&x->baseline, s, 0, t.at[i].relation), *after = scores_of(&x->intervened, s, 0, t.at[i].relation);
        struct paired p;
        paired_compare(&p, base, after, x->baseline.count, x->seed);
        print_relation(t.at[i].relation, &p);
        free(base), free(after);
    }
    tallies_free(&t);
    if (e->controls)
        printf("%d controls: change %+.2f on average, 95 %% of them in [%+.2f, %+.2f]; %d go as far as the edits\n", e->controls,
               100 * e->control_mean, 100 * e->control_low, 100 * e->control_high, e->beyond);
}

static json_t *real(double v) { return isnan(v) ? json_null() : json_real(v); }

static void print_json(const struct intervention *x) {
    const struct effect *e = &x->effect;
    const struct paired *p = &e->pair;
    json_t *top = json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:f}", "task", x->task == EVALUATE_VSR ? "vsr" : "vqa", "n",
                            (json_int_t)p->n, "baseline", p->baseline, "intervened", p->intervened, "delta", p->delta, "ci_low", p->ci_low,
                            "ci_high", p->ci_high, "lost", (json_int_t)p->lost, "gained", (json_int_t)p->gained, "mcnemar_p", p->mcnemar_p);
    json_t *deltas = json_array();
    json_object_set_new(top, "seed", json_integer((json_int_t)x->seed));
    json_object_set_new(top, "controls", json_integer(e->controls));
    json_object_set_new(top, "control_mean", real(e->control_mean));
    json_object_set_new(top, "control_low", real(e->control_low));
    json_object_set_new(top, "control_high", real(e->control_high));
    json_object_set_new(top, "beyond", json_integer(e->beyond));
    for (int i = 0; i < e->controls; i++) json_array_append_new(deltas, json_real(e->control_delta[i]));
    json_object_set_new(top, "control_deltas", deltas);
    json_dumpf(top, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(top);
}

/* {"baseline": {id, text, score, ..}, "intervened": {..}}, a line a sample */
static int write_answers(const char *path, const struct intervention *x, const struct samples *s, struct error *err) {
    struct file_writer w = {0};
    if (file_writer_open(&w, path, err)) return -1;
    for (size_t i = 0; i < x->baseline.count; i++) {
        json_t *line = json_pack("{s:o, s:o}", "baseline", evaluated_json(&x->baseline, i, &s->at[i]), "intervened",
                                 evaluated_json(&x->intervened, i, &s->at[i]));
        json_dumpf(line, w.stream, JSON_COMPACT);
        fputc('\n', w.stream);
        json_decref(line);
    }
    return file_writer_commit(&w, err);
}

static int options_read(const struct command *self, struct dataset *d, struct intervention *x, struct error *err) {
    const char *task = option(self, "--task")->text, *kind = option(self, "--control")->text;
    *d = (struct dataset){.data = (char *)(uintptr_t)option(self, "--data")->text,
                          .images = (char *)(uintptr_t)option(self, "--images")->text,
                          .annotations = (char *)(uintptr_t)option(self, "--annotations")->text,
                          .ask = (char *)(uintptr_t)option(self, "--ask")->text,
                          .samples = (long)option(self, "--samples")->number};
    *x = (struct intervention){.max_new_tokens = (int)option(self, "--max-new-tokens")->number,
                               .batch = (int)option(self, "--batch")->number,
                               .controls = (int)option(self, "--controls")->number,
                               .kind = strcmp(kind, "directions") ? CONTROL_MATCHED : CONTROL_DIRECTIONS,
                               .seed = (uint64_t)option(self, "--seed")->number,
                               .progress = "intervene"};
    if (!d->data || !option(self, "--model")->text || !option(self, "--edit")->text)
        return fail(err, "intervene: give a CONFIG.json, or --model DIR, --data FILE and --edit SPEC.json; see stagediff intervene --help");
    if (task && strcmp(task, "vqa") && strcmp(task, "vsr")) return fail(err, "intervene: --task must be vqa or vsr, found %s", task);
    if (strcmp(kind, "matched") && strcmp(kind, "directions"))
        return fail(err, "intervene: --control must be matched or directions, found %s", kind);
    if (x->controls > 0 && x->controls < CONTROL_LEAST)
        return fail(err, "intervene: --controls must be 0 or at least %d, found %d; fewer draws say little of a distribution",
                    CONTROL_LEAST, x->controls);
    x->task = task && !strcmp(task, "vsr") ? EVALUATE_VSR : EVALUATE_VQA;
    return 0;
}

static int from_options(const struct command *self, struct error *err) {
    struct dataset d;
    struct samples s;
    struct intervention x;
    struct edit_list list = {0};
    struct model m = {0};
    const char *out = option(self, "--out")->text;
    if (options_read(self, &d, &x, err) || dataset_open(&d, &s, err)) return -1;
    if (!option(self, "--task")->text) x.task = evaluation_task_of(&s);
    int status = command_open(&m, self, err);
    if (status == 0) status = edit_list_open(&list, &m, option(self, "--edit")->text, err);
    if (status == 0) status = intervene(&x, &m, &list, &s, 0, s.count, err);
    if (status == 0 && !x.effect.pair.n) status = fail(err, "%s: no line has anything to score against", d.data);
    if (status == 0 && out) status = write_answers(out, &x, &s, err);
    if (status == 0) {
        if (option(self, "--json")->given)
            print_json(&x);
        else
            print_table(&x, &s);
        if (fflush(stdout) || ferror(stdout)) status = fail(err, "cannot write to stdout");
    }
    intervention_free(&x);
    edit_list_free(&list);
    samples_free(&s);
    if (m.dev) command_close(&m);
    return status;
}

static int run(const struct command *self, struct error *err) {
    return run_stage_or_options(self, RUN_INTERVENE, "--data", from_options, err);
}

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .help = "the run's CONFIG.json (docs/config.md): its interventions, rows in run.db"},
    MODEL_OPTIONS_IF(false),
    {.name = "--data", .value = "FILE", .type = OPTION_TEXT, .help = "what is asked: files as evaluate takes them"},
    EDIT_OPTION,
    {.name = "--images", .value = "DIR", .type = OPTION_TEXT, .help = "folder of the pictures; without it the data file's"},
    {.name = "--annotations", .value = "FILE", .type = OPTION_TEXT, .help = "VQAv2's annotations, which hold the answers"},
    {.name = "--task", .type = OPTION_TEXT, .help = "vqa or vsr; without it by the lines: vsr where they have a label"},
    {.name = "--ask",
     .value = "TEXT",
     .type = OPTION_TEXT,
     .help = "the question that is put: {question} and {caption} stand for the line's"},
    {.name = "--samples", .type = OPTION_INT, .low = 0, .high = 1e15, .fallback = "0", .help = "the first so many; 0: all"},
    {.name = "--max-new-tokens",
     .type = OPTION_INT,
     .low = 1,
     .high = 1 << 20,
     .fallback = "16",
     .help = "longest generated answer in tokens"},
    {.name = "--controls",
     .type = OPTION_INT,
     .low = 0,
     .high = 10000,
     .fallback = "20",
     .help = "random draws to compare with; 0: none, else at least 20"},
    {.name = "--control",
     .type = OPTION_TEXT,
     .fallback = "matched",
     .help = "matched: heads of the same layers, features that fire as often; directions: random ones for decoder rows too"},
    {.name = "--seed", .type = OPTION_INT, .low = 0, .high = 9e15, .fallback = "0", .help = "of the draws and the bootstrap"},
    {.name = "--out",
     .value = "FILE.jsonl",
     .type = OPTION_TEXT,
     .help = "answers, a line a sample: {\"baseline\": .., \"intervened\": ..}"},
    {.name = "--json", .type = OPTION_FLAG, .help = "one JSON object instead of the table"},
    {.name = NULL},
};
struct command command_intervene = {
    .name = "intervene",
    .summary = "what edits do to a model's accuracy: paired, with intervals and matched controls",
    .description = "Asks the same samples without and with the edits (docs/cli.md), and with random draws in their place: features of the "
                   "same dictionary\n"
                   "that fire as often, heads of the same layers, directions of the same length. Prints the change in accuracy with its 95 "
                   "% bootstrap\n"
                   "interval, how many answers were lost and gained, McNemar's exact p, and where the change lies among the draws'.\n\n"
                   "  stagediff intervene --model DIR --data vsr_test.jsonl --edit remove.json\n"
                   "  remove.json: [{\"op\": \"project_out\", \"vector\": {\"sae\": \"saes/layer_5\", \"feature\": 17},\n"
                   "                 \"points\": [\"attn_out\", \"mlp_out\", \"resid_post\"], \"after_image\": true}]\n"
                   "  stagediff intervene CONFIG.json",
    .options = options,
    .run = run,
};
