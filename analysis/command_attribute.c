/* command_attribute.c - `stagediff attribute`: scores of attention heads for features, to a safetensors file. docs/cli.md has the
 * contract. */
#include "analysis/attribute.h"
#include "analysis/run.h"
#include "host/file.h"
#include "host/tensors.h"
#include "models/command.h"
#include <stdlib.h>
#include <string.h>

struct output { /* the samples' tensors */
    struct safetensors_writer *writer;
    int layers, heads;
};

static void keep(void *context, size_t i, float *score, int T, const double metric[2]) {
    const struct output *o = context;
    char name[64];
    float *both = memory_take(2, sizeof *both);
    both[0] = (float)metric[0], both[1] = (float)metric[1];
    snprintf(name, sizeof name, "%zu/score", i);
    safetensors_writer_give(o->writer, name, DTYPE_F32, 3, (const int64_t[]){o->layers, o->heads, T}, score);
    snprintf(name, sizeof name, "%zu/metric", i);
    safetensors_writer_give(o->writer, name, DTYPE_F32, 1, (const int64_t[]){2}, both);
}

static void keep_heads(const struct output *o, const char *name, const double *values) {
    const size_t n = (size_t)o->layers * (size_t)o->heads;
    float *out = memory_take(n, sizeof *out);
    for (size_t i = 0; i < n; i++) out[i] = (float)values[i];
    safetensors_writer_give(o->writer, name, DTYPE_F32, 2, (const int64_t[]){o->layers, o->heads}, out);
}

static int write_all(struct output *o, const struct attribution *a, struct error *err) {
    keep_heads(o, "signed", a->signed_score);
    keep_heads(o, "mean_abs", a->mean_abs);
    if (a->exact) {
        float *rows = memory_take((size_t)a->n_exact * 4, sizeof *rows);
        for (int i = 0; i < a->n_exact; i++) {
            const struct attribute_exact *e = &a->exact[i];
            rows[4 * i] = (float)e->layer, rows[4 * i + 1] = (float)e->head;
            rows[4 * i + 2] = (float)e->effect, rows[4 * i + 3] = (float)e->estimate;
        }
        safetensors_writer_give(o->writer, "exact", DTYPE_F32, 2, (const int64_t[]){a->n_exact, 4}, rows);
    }
    const int status = safetensors_writer_commit(o->writer, err);
    o->writer = NULL;
    return status;
}

static int one_of(const struct command *self, const char *name, const char *const *words, int *index, struct error *err) {
    const char *text = option(self, name)->text;
    for (*index = 0; words[*index]; ++*index)
        if (!strcmp(text, words[*index])) return 0;
    const char *near = nearest_name(text, words);
    return fail(err, "attribute: %s %.60s: unknown; the nearest valid value is %s", name, text, near ? near : words[0]);
}

static int from_options(const struct command *self, struct error *err) {
    static const char *const metrics[] = {"direction", "code", NULL};
    static const char *const needed[] = {"--model", "--sae", "--layer", "--features", "--data", "--corrupt", "--out"};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (!option(self, needed[i])->given)
            return fail(err, "attribute: give a CONFIG.json, or %s as well; see stagediff attribute --help", needed[i]);
    const char *sae_path = option(self, "--sae")->text;
    const int layer = (int)option(self, "--layer")->number;
    struct attribute_job j = {.batch = (int)option(self, "--batch")->number,
                              .exact = (int)option(self, "--exact")->number,
                              .seed = (unsigned long)option(self, "--seed")->number};
    struct samples s = {0};
    struct model m = {0};
    struct sae_host sae = {0};
    struct attribution a = {0};
    struct output o = {0};
    int corruption, metric, *features = NULL, n = 0, status = -1;
    if (one_of(self, "--corrupt", attribute_corruption_names, &corruption, err) || one_of(self, "--metric", metrics, &metric, err) ||
        attribute_gradient_read(option(self, "--gradient")->text, &j.gradient, &j.steps, err) ||
        samples_open(&s, option(self, "--data")->text, err) || attribute_sae(&sae, sae_path, layer, err) ||
        attribute_features(&features, &n, option(self, "--features")->text, layer, &sae, sae_path, err) || command_open(&m, self, err) ||
        model_check_point(&m, PROBE_RESID_POST, layer, err) || safetensors_writer_open(&o.writer, option(self, "--out")->text, err))
        goto cleanup;
    const struct attribute_set set = {layer, &sae, features, n};
    o.layers = layer + 1, o.heads = m.n_heads;
    j.m = &m, j.samples = &s, j.sets = &set, j.n_sets = 1, j.code = metric == 1, j.corruption = (enum attribute_corruption)corruption;
    j.sample = keep, j.context = &o;
    status = attribute(&j, &a, err);
    if (status == 0) status = write_all(&o, &a, err);
cleanup:
    if (o.writer) safetensors_writer_abort(o.writer);
    attribution_free(&a);
    samples_free(&s);
    sae_host_free(&sae);
    free(features);
    if (m.dev) command_close(&m);
    return status;
}

static int run(const struct command *self, struct error *err) {
    return run_stage_or_options(self, RUN_ATTRIBUTE, "--data", from_options, err);
}

static struct option options[] = {
    {.name = "CONFIG", .type = OPTION_TEXT, .help = "the run's CONFIG.json (docs/config.md): the targets of \"attribute\""},
    MODEL_OPTIONS_IF(false),
    {.name = "--sae", .value = "DIR", .type = OPTION_TEXT, .help = "dictionary of the layer"},
    {.name = "--layer", .type = OPTION_INT, .low = 0, .high = 10000, .help = "the features' layer; its resid_post is read"},
    {.name = "--features",
     .value = "LIST",
     .type = OPTION_TEXT,
     .help = "3,17 or task:NAME (the task's features in the run that the dictionary lies in)"},
    {.name = "--data", .value = "FILE.jsonl", .type = OPTION_TEXT, .help = "samples, one JSON object a line (docs/cli.md)"},
    {.name = "--corrupt",
     .value = "HOW",
     .type = OPTION_TEXT,
     .help = "mean, zero or swap: the image rows become the mean image row, zeros, the next sample's; prompt: corrupt_prompt of the line"},
    {.name = "--gradient",
     .value = "WHERE",
     .type = OPTION_TEXT,
     .fallback = "corrupt",
     .help = "corrupt, clean, or ig:N (mean of N runs in between)"},
    {.name = "--metric",
     .value = "NAME",
     .type = OPTION_TEXT,
     .fallback = "direction",
     .help = "direction (resid_post . decoder row) or code (the features' codes)"},
    {.name = "--exact",
     .type = OPTION_INT,
     .low = 0,
     .high = 1 << 20,
     .fallback = "0",
     .help = "patch so many top heads, and so many drawn, for true"},
    {.name = "--seed",
     .type = OPTION_INT,
     .low = 0,
     .high = 9007199254740992.0,
     .fallback = "0",
     .help = "of the heads that --exact draws"},
    {.name = "--out", .value = "FILE", .type = OPTION_TEXT, .help = "safetensors file to write"},
    {.name = NULL},
};

struct command command_attribute = {
    .name = "attribute",
    .summary = "which attention heads write features: attribution patching, checked by true patching",
    .description = "Runs every sample clean and with its picture (or prompt) corrupted, and from one gradient estimates for every head how "
                   "much of the\n"
                   "features behind the image it brings: <i>/score (layers, heads, T), <i>/metric (2); over samples signed, mean_abs "
                   "(layers, heads).\n"
                   "--exact N patches the N top heads and N others and writes exact (2N, 4): layer, head, effect, estimate.\n"
                   "With CONFIG.json: the run's targets, into run.db (view head_scores).\n\n"
                   "Example:\n  stagediff attribute --model llava --sae runs/llava/sae/text/layer_12 --layer 12 --features task:spatial "
                   "--data vsr.jsonl \\\n"
                   "    --corrupt mean --exact 16 --out heads.safetensors",
    .options = options,
    .run = run,
};
