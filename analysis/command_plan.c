/* command_plan.c - `stagediff plan CONFIG.json`: what a run will do and what memory it takes, before it starts. The arithmetic is
 * train_memory.c's, which stage_train itself goes by. docs/cli.md has the JSON. */
#include "analysis/train_job.h"
#include "host/file.h"
#include "host/options.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void train_plan_log(const struct train_plan *p, const struct run_config *c, const struct device *dev) {
    const struct train_memory *m = &p->memory;
    char a[32], b[32], e[32], f[32], g[32], h[32], i[32];
    int regimes = 0;
    for (int r = 0; r < REGIME_COUNT; r++) regimes += c->regimes[r];
    log_note("train: %d layers x %d regimes, width %d, up to %d features, k %d; %zu samples, %ld to stream", p->n_layers, regimes, p->d,
             p->largest, p->k, p->count, p->total);
    log_note(
        "memory: model %s, activations %s, scratch %s; a layer: dictionaries and Adam %s, block of %ld rows %s; %d layers at once: %s of "
        "%s free on %s",
        bytes_text(a, m->weights), bytes_text(b, m->activations), bytes_text(e, m->step), bytes_text(f, m->dictionaries + m->optimizer),
        c->ring_rows, bytes_text(g, m->ring), p->layers_at_once, bytes_text(h, m->needed), bytes_text(i, m->free), device_name(dev));
    if (p->n_groups > 1)
        log_note("not all layers at once: the samples are streamed %d times, for %d layers each", p->n_groups, p->layers_at_once);
}

static void line(const char *name, size_t bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void line(const char *name, size_t bytes, const char *format, ...) {
    char text[32];
    va_list args;
    printf("  %-26s %9s  ", name, bytes_text(text, bytes));
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    puts("");
}

static void print_text(const struct train_plan *p, const struct run_config *c, const struct device *dev) {
    const struct train_memory *m = &p->memory;
    const char *type = sizeof(act_t) == 2 ? "bf16" : "f32";
    const int deepest = p->layers[p->n_layers - 1] + 1, at_once = p->layers_at_once;
    const size_t n = (size_t)at_once;
    char total[32], free_here[32];
    int regimes = 0;
    for (int r = 0; r < REGIME_COUNT; r++) regimes += c->regimes[r];
    printf("%s\n", c->out);
    printf("  %d layers x %d regimes of up to %d features over width %d, k %d; %zu samples, %ld to stream\n", p->n_layers, regimes,
           p->largest, p->d, p->k, p->count, p->total);
    printf("device: %s\n", device_name(dev));
    line("model", m->weights, "%s, %d of %d layers, %s", c->model, deepest, p->model_layers, type);
    line("activations", m->activations, "a pass of %d samples: %d tokens, %d pictures", m->pass.samples, m->pass.tokens, m->pass.pictures);
    line("scratch of a step", m->step, "batches of %d rows", c->batch);
    line("dictionaries", n * m->dictionaries, "%d layers x %d regimes, f32%s", at_once, regimes, c->bf16_products ? " and bf16" : "");
    line("optimizer", n * m->optimizer, "Adam's moments, f32");
    line("ring", n * m->ring, "%d layers x %ld rows, %s", at_once, c->ring_rows, type);
    line("evaluation instead", m->evaluation + n * m->evaluated, "of scratch, dictionaries, optimizer, ring: with the base dictionaries");
    line("needed", m->needed, "%s free", bytes_text(free_here, m->free));
    if (m->host) printf("  the process then has about %s\n", bytes_text(total, m->host + m->needed));
    if (p->n_groups > 1)
        printf("  %d layers fit at once: the samples are streamed %d times\n", at_once, p->n_groups);
    else
        printf("  all layers fit at once: the samples are streamed once\n");
    printf("disk: dictionaries %s", bytes_text(total, m->disk_dictionaries));
    printf(", state while training %s\n", bytes_text(total, m->disk_state));
}

static json_t *as_json(const struct train_plan *p, const struct run_config *c, const struct device *dev) {
    const struct train_memory *m = &p->memory;
    const json_int_t n = p->layers_at_once;
    json_t *layers = json_array();
    for (int i = 0; i < p->n_layers; i++) json_array_append_new(layers, json_integer(p->layers[i]));
    return json_pack("{s:s, s:o, s:i, s:i, s:i, s:i, s:I, s:I, s:i, s:i, s:{s:i, s:i, s:i}, "
                     "s:[{s:s, s:I, s:I, s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I}}], s:I, s:{s:I, s:I}}",
                     "model", c->model, "layers", layers, "d_model", p->d, "features", p->largest, "k", p->k, "batch", c->batch, "samples",
                     (json_int_t)p->count, "samples_to_stream", (json_int_t)p->total * p->n_groups, "layers_at_once", p->layers_at_once,
                     "passes", p->n_groups, "forward", "samples", m->pass.samples, "tokens", m->pass.tokens, "pictures", m->pass.pictures,
                     "devices", "name", device_name(dev), "free", (json_int_t)m->free, "needed", (json_int_t)m->needed, "bytes", "weights",
                     (json_int_t)m->weights, "activations", (json_int_t)m->activations, "step", (json_int_t)m->step, "evaluation",
                     (json_int_t)m->evaluation + n * (json_int_t)m->evaluated, "dictionaries", n * (json_int_t)m->dictionaries, "optimizer",
                     n * (json_int_t)m->optimizer, "ring", n * (json_int_t)m->ring, "process",
                     (json_int_t)(m->host ? m->host + m->needed : 0), "disk", "dictionaries", (json_int_t)m->disk_dictionaries, "state",
                     (json_int_t)m->disk_state);
}

static int print_plan(const struct run_config *c, struct device *dev, bool json, struct error *err) {
    struct samples samples = {0};
    struct train_plan p = {0};
    size_t first, count;
    int status = run_samples(c, false, &samples, &first, &count, err);
    if (status == 0) status = train_plan_open(&p, c, dev, &samples, first, count, 0, err);
    if (status == 0 && json) {
        json_t *root = as_json(&p, c, dev);
        char *text = json_dumps(root, JSON_COMPACT);
        puts(text);
        free(text);
        json_decref(root);
    } else if (status == 0) {
        print_text(&p, c, dev);
    }
    if (status == 0 && (fflush(stdout) || ferror(stdout))) status = fail(err, "cannot write the plan to stdout");
    train_plan_free(&p);
    if (samples.at) samples_free(&samples);
    return status;
}

static int run(const struct command *self, struct error *err) {
    struct run_config c;
    char why[256] = "";
    if (run_config_open(&c, option(self, "CONFIG")->text, err)) return -1;
    struct device *dev = device_open(0, self->threads, why, sizeof why);
    int status = dev ? print_plan(&c, dev, option(self, "--json")->given, err) : fail(err, "no device: %s", why);
    device_close(dev);
    run_config_free(&c);
    return status;
}

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .required = true, .help = "the run's CONFIG.json (docs/config.md)"},
    {.name = "--json", .type = OPTION_FLAG, .help = "the same as one JSON object"},
    {.name = NULL},
};

struct command command_plan = {
    .name = "plan",
    .summary = "memory and placement of a run before it starts; refuses what cannot fit",
    .description = "Reads configurations and headers alone, in under a second, and writes nothing. `train` and `run` go by the same\n"
                   "arithmetic and refuse in the same words: what is needed, what is free, which settings would fit.\n\n"
                   "  stagediff plan tools/tinyworld/demo.json\n",
    .options = options,
    .run = run,
};
