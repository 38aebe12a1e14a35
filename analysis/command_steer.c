/* command_steer.c - `stagediff steer`: a direction swept over layers and strengths, chosen on dev, told on test; or a run's stage. */
#include "analysis/run.h"
#include "analysis/steer.h"
#include "host/file.h"
#include "models/command.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct job {
    struct model m;
    struct samples train, dev, test;
    struct sae_host sae;
    int *layers;
    double *strengths;
    struct steering x;
};

/* "0,3,5" or "all"; "0.5,1,2": numbers with commas between, malloced. */
static int numbers(const char *name, const char *text, double low, double high, bool whole, double **list, int *n, struct error *err) {
    size_t room = 1;
    for (const char *c = text; *c; c++) room += *c == ',';
    *list = memory_take(room, sizeof **list);
    *n = 0;
    for (const char *at = text;; at++) {
        char *end;
        const double v = strtod(at, &end);
        if (end == at || !(v >= low && v <= high) || (whole && v != floor(v)) || (*end && *end != ','))
            return fail(err, "steer: %s needs numbers from %g to %g with commas between, found '%s'", name, low, high, text);
        (*list)[(*n)++] = v;
        if (!*end) return 0;
        at = end;
    }
}

static int read_layers(struct job *j, const char *text, struct error *err) {
    double *list = NULL;
    int n = 0, status = 0;
    if (strcmp(text, "all")) status = numbers("--layers", text, 0, j->m.n_layers - 1, true, &list, &n, err);
    j->x.n_layers = n ? n : j->m.n_layers;
    j->layers = memory_take((size_t)j->x.n_layers, sizeof *j->layers);
    for (int i = 0; i < j->x.n_layers; i++) j->layers[i] = n ? (int)list[i] : i;
    j->x.layers = j->layers;
    free(list);
    return status;
}

static int read_feature(struct job *j, const struct command *self, struct error *err) {
    const struct option *feature = option(self, "--feature"), *layer = option(self, "--layer");
    const char *sae = option(self, "--sae")->text;
    const bool wanted = j->x.method != STEER_CAA;
    if (wanted != (sae != NULL) || wanted != feature->given)
        return fail(err, "steer: --method %s %s --sae DIR and --feature F", steer_methods[j->x.method], wanted ? "needs" : "does not take");
    if (!wanted) return 0;
    if (sae_load(&j->sae, sae, err)) return -1;
    j->x.sae = &j->sae;
    j->x.feature = (int)feature->number;
    j->x.feature_layer = layer->given ? (int)layer->number : j->sae.layer;
    if (j->sae.d != j->m.d_model) return fail(err, "steer: %s is of width %d, the model of %d", sae, j->sae.d, j->m.d_model);
    if (j->x.feature >= j->sae.M) return fail(err, "steer: --feature must be 0 to %d, found %d", j->sae.M - 1, j->x.feature);
    if (j->x.feature_layer < 0 || j->x.feature_layer >= j->m.n_layers)
        return fail(err, "steer: --layer, where the feature lies, must be 0 to %d%s", j->m.n_layers - 1,
                    layer->given ? "" : "; the dictionary's files do not say it");
    return 0;
}

static int open_set(struct samples *s, const struct command *self, const char *name, struct error *err) {
    const struct dataset d = {.data = (char *)(uintptr_t)option(self, name)->text,
                              .images = (char *)(uintptr_t)option(self, "--images")->text,
                              .ask = (char *)(uintptr_t)option(self, "--ask")->text};
    return d.data ? dataset_open(&d, s, err) : 0;
}

static int open_job(struct job *j, const struct command *self, struct error *err) {
    const char *method = option(self, "--method")->text, *contrast = option(self, "--contrast")->text;
    int at = 0;
    while (steer_methods[at] && strcmp(steer_methods[at], method)) at++;
    if (!steer_methods[at]) return fail(err, "steer: --method must be caa, mmdiff-scale, mmdiff-sum or decoder, found %s", method);
    if (strcmp(contrast, "answers") && strcmp(contrast, "outcomes"))
        return fail(err, "steer: --contrast must be answers or outcomes, found %s", contrast);
    j->x = (struct steering){.method = (enum steer_method)at,
                             .contrast = strcmp(contrast, "answers") ? CONTRAST_OUTCOMES : CONTRAST_ANSWERS,
                             .max_new_tokens = (int)option(self, "--max-new-tokens")->number,
                             .batch = (int)option(self, "--batch")->number,
                             .controls = (int)option(self, "--controls")->number,
                             .seed = (uint64_t)option(self, "--seed")->number,
                             .factor = option(self, "--factor")->number};
    const bool trains = at != STEER_DECODER;
    if (!option(self, "--model")->text || !option(self, "--dev")->text || !option(self, "--test")->text ||
        trains != (option(self, "--train")->text != NULL))
        return fail(err, "steer: give a CONFIG.json, or --model DIR, %s--dev FILE and --test FILE; see stagediff steer --help",
                    trains ? "--train FILE, " : "no --train, ");
    if (j->x.controls > 0 && j->x.controls < CONTROL_LEAST)
        return fail(err, "steer: --controls must be 0 or at least %d, found %d", CONTROL_LEAST, j->x.controls);
    if (open_set(&j->train, self, "--train", err) || open_set(&j->dev, self, "--dev", err) || open_set(&j->test, self, "--test", err))
        return -1;
    j->x.task = evaluation_task_of(&j->dev);
    if (command_open(&j->m, self, err)) return -1;
    if (!j->m.llm) return fail(err, "steer: %s is a vision tower alone", j->m.dir);
    if (read_layers(j, option(self, "--layers")->text, err) || read_feature(j, self, err)) return -1;
    if (numbers("--strengths", option(self, "--strengths")->text, -1e6, 1e6, false, &j->strengths, &j->x.n_strengths, err)) return -1;
    j->x.strengths = j->strengths;
    return 0;
}

static void print_table(const struct steering *x) {
    const struct paired *p = &x->test.effect.pair;
    const struct steer_point *best = &x->points[x->chosen];
    printf("dev, %ld samples; without steering %.2f %%\n%5s %9s %9s\n", x->dev_n, 100 * x->dev_baseline, "layer", "strength", "accuracy");
    for (int i = 0; i < x->n_points; i++)
        printf("%5d %9g %9.2f%s\n", x->points[i].layer, x->points[i].strength, 100 * x->points[i].accuracy,
               i == x->chosen ? "  chosen" : "");
    printf("test, %ld samples, layer %d, strength %g: %.2f %% -> %.2f %%, change %+.2f [%+.2f, %+.2f], %ld lost, %ld gained, McNemar's p "
           "%.3g\n",
           p->n, best->layer, best->strength, 100 * p->baseline, 100 * p->intervened, 100 * p->delta, 100 * p->ci_low, 100 * p->ci_high,
           p->lost, p->gained, p->mcnemar_p);
    if (x->controls)
        printf("%d random directions of the same length: change %+.2f on average, 95 %% of them in [%+.2f, %+.2f]\n", x->controls,
               100 * x->test.effect.control_mean, 100 * x->test.effect.control_low, 100 * x->test.effect.control_high);
}

static void print_json(const struct steering *x) {
    const struct paired *p = &x->test.effect.pair;
    const struct steer_point *best = &x->points[x->chosen];
    json_t *points = json_array(),
           *test = json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:f}", "n", (json_int_t)p->n, "baseline", p->baseline, "intervened",
                             p->intervened, "delta", p->delta, "ci_low", p->ci_low, "ci_high", p->ci_high, "lost", (json_int_t)p->lost,
                             "gained", (json_int_t)p->gained, "mcnemar_p", p->mcnemar_p);
    for (int i = 0; i < x->n_points; i++)
        json_array_append_new(points, json_pack("{s:i, s:f, s:f}", "layer", x->points[i].layer, "strength", x->points[i].strength,
                                                "accuracy", x->points[i].accuracy));
    if (x->controls) json_object_set_new(test, "control_mean", json_real(x->test.effect.control_mean));
    json_t *top = json_pack("{s:s, s:I, s:I, s:i, s:f, s:I, s:f, s:o, s:o}", "method", steer_methods[x->method], "positive",
                            (json_int_t)x->positive, "negative", (json_int_t)x->negative, "layer", best->layer, "strength", best->strength,
                            "dev_n", (json_int_t)x->dev_n, "dev_baseline", x->dev_baseline, "dev", points, "test", test);
    json_dumpf(top, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(top);
}

static int from_options(const struct command *self, struct error *err) {
    struct job j = {0};
    int status = open_job(&j, self, err);
    if (status == 0) {
        const struct steer_samples train = {&j.train, 0, j.train.count}, dev = {&j.dev, 0, j.dev.count}, test = {&j.test, 0, j.test.count};
        status = steer(&j.x, &j.m, &train, &dev, &test, err);
    }
    if (status == 0) {
        if (option(self, "--json")->given)
            print_json(&j.x);
        else
            print_table(&j.x);
        if (fflush(stdout) || ferror(stdout)) status = fail(err, "cannot write to stdout");
    }
    steering_free(&j.x);
    samples_free(&j.train), samples_free(&j.dev), samples_free(&j.test);
    sae_host_free(&j.sae);
    free(j.layers), free(j.strengths);
    if (j.m.dev) command_close(&j.m);
    return status;
}

static int run(const struct command *self, struct error *err) { return run_stage_or_options(self, RUN_STEER, "--dev", from_options, err); }

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .help = "the run's CONFIG.json (docs/config.md): its sweeps, rows in run.db"},
    MODEL_OPTIONS_IF(false),
    {.name = "--train", .value = "FILE", .type = OPTION_TEXT, .help = "lines that the direction is made from"},
    {.name = "--dev", .value = "FILE", .type = OPTION_TEXT, .help = "lines that layer and strength are chosen on"},
    {.name = "--test", .value = "FILE", .type = OPTION_TEXT, .help = "lines that the chosen one is scored on"},
    {.name = "--images", .value = "DIR", .type = OPTION_TEXT, .help = "folder of the pictures; without it the data files'"},
    {.name = "--ask",
     .value = "TEXT",
     .type = OPTION_TEXT,
     .help = "the question that is put: {question} and {caption} stand for the line's"},
    {.name = "--method",
     .type = OPTION_TEXT,
     .fallback = "caa",
     .help = "caa, mmdiff-scale, mmdiff-sum, decoder: see stagediff vectors --help"},
    {.name = "--contrast",
     .type = OPTION_TEXT,
     .fallback = "answers",
     .help = "answers: right and wrong one appended; outcomes: lines answered right and wrong"},
    {.name = "--layers",
     .value = "L,...",
     .type = OPTION_TEXT,
     .fallback = "all",
     .help = "layers to try; mmdiff-sum: layers that are steered together"},
    {.name = "--strengths",
     .value = "A,...",
     .type = OPTION_TEXT,
     .fallback = "0.5,1,2,5",
     .help = "lengths of what is added; mmdiff-sum: alpha"},
    {.name = "--sae", .value = "DIR", .type = OPTION_TEXT, .help = "dictionary of the feature"},
    {.name = "--feature", .type = OPTION_INT, .low = 0, .high = 1 << 30, .help = "the feature"},
    {.name = "--layer", .type = OPTION_INT, .low = 0, .high = 1 << 16, .help = "its layer; without it the dictionary's own"},
    {.name = "--factor",
     .type = OPTION_REAL,
     .low = -1e6,
     .high = 1e6,
     .fallback = "1",
     .help = "beta of mmdiff-scale, gamma of mmdiff-sum"},
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
     .help = "random directions on test; 0: none, else at least 20"},
    {.name = "--seed", .type = OPTION_INT, .low = 0, .high = 9e15, .fallback = "0", .help = "of the directions and the bootstrap"},
    {.name = "--json", .type = OPTION_FLAG, .help = "one JSON object instead of the table"},
    {.name = NULL},
};
struct command command_steer = {
    .name = "steer",
    .summary = "steering swept over layers and strengths, chosen on dev, told on test",
    .description = "Makes a direction from the training lines, adds it to resid_post behind the image at each layer and strength, takes "
                   "the best on dev\n"
                   "and scores that one on test: paired with no steering, and beside random directions of the same length.\n\n"
                   "  stagediff steer --model DIR --train vsr_train.jsonl --dev vsr_dev.jsonl --test vsr_test.jsonl --strengths 1,2,4,8\n"
                   "  stagediff steer CONFIG.json",
    .options = options,
    .run = run,
};
