/* command_vectors.c - `stagediff vectors`: directions and means for edits, to a safetensors file; a JSON summary on stdout (docs/cli.md).
 */
#include "analysis/dataset.h"
#include "analysis/vectors.h"
#include "host/file.h"
#include "host/tensors.h"
#include "models/command.h"
#include "sae/sae.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum method { DECODER, CAA, MMDIFF_SCALE, MMDIFF_SUM, MEANS, METHODS };
static const char *const method_names[METHODS] = {"decoder", "caa", "mmdiff-scale", "mmdiff-sum", "means"};

struct job {
    const struct command *self;
    enum method method;
    struct model m;
    struct samples s;
    struct sae_host sae;
    struct safetensors_writer *writer;
    json_t *summary, *tensors;
};

static int method_of(const char *name, struct error *err) {
    for (int i = 0; i < METHODS; i++)
        if (!strcmp(name, method_names[i])) return i;
    return fail(err, "vectors: --method must be decoder, caa, mmdiff-scale, mmdiff-sum or means, found %s", name);
}

/* A vector, copied, and its line in the summary. */
static void keep(struct job *j, const char *name, const float *v, int width, int layer, int feature) {
    float *copy = memory_take((size_t)width, sizeof *copy);
    memcpy(copy, v, (size_t)width * sizeof *copy);
    safetensors_writer_give(j->writer, name, DTYPE_F32, 1, (const int64_t[]){width}, copy);
    json_t *line = json_pack("{s:s, s:f}", "name", name, "norm", vector_norm(v, width));
    if (layer >= 0) json_object_set_new(line, "layer", json_integer(layer));
    if (feature >= 0) json_object_set_new(line, "feature", json_integer(feature));
    json_array_append_new(j->tensors, line);
}

/* "3,17" -> numbers below limit; malloced. */
static int numbers(const char *option_name, const char *text, int limit, int **list, int *n, struct error *err) {
    size_t room = 1;
    for (const char *c = text; *c; c++) room += *c == ',';
    *list = memory_take(room, sizeof **list);
    *n = 0;
    for (const char *at = text;; at++) {
        char *end;
        const long v = strtol(at, &end, 10);
        if (end == at || v < 0 || v >= limit || (*end && *end != ','))
            return fail(err, "vectors: %s needs numbers from 0 to %d with commas between, found '%s'", option_name, limit - 1, text);
        (*list)[(*n)++] = (int)v;
        if (!*end) return 0;
        at = end;
    }
}

static int make_decoder(struct job *j, struct error *err) {
    const char *features = option(j->self, "--features")->text;
    int *list = NULL, n = 0;
    int status = features ? numbers("--features", features, j->sae.M, &list, &n, err)
                          : fail(err, "vectors: --method decoder needs --features, as 3,17");
    float *rows = memory_take((size_t)n * (size_t)j->sae.d + 1, sizeof *rows);
    for (int i = 0; i < n && status == 0; i++) {
        const float *row = j->sae.D + (size_t)list[i] * (size_t)j->sae.d;
        memcpy(rows + (size_t)i * (size_t)j->sae.d, row, (size_t)j->sae.d * sizeof *rows);
        json_array_append_new(j->tensors, json_pack("{s:s, s:i, s:i, s:f}", "name", "decoder", "row", i, "feature", list[i], "norm",
                                                    vector_norm(row, j->sae.d)));
    }
    if (status == 0)
        safetensors_writer_give(j->writer, "decoder", DTYPE_F32, 2, (const int64_t[]){n, j->sae.d}, rows);
    else
        free(rows);
    free(list);
    return status;
}

static int make_means(struct job *j, struct error *err) {
    const int width = j->m.n_heads * j->m.head_dim;
    float *means = memory_take((size_t)j->m.n_layers * (size_t)width, sizeof *means);
    const int status = head_means(means, &j->m, &j->s, 0, j->s.count, (int)option(j->self, "--batch")->number, err);
    for (int l = 0; l < j->m.n_layers && status == 0; l++) {
        char name[64];
        probe_name(PROBE_ATTN_Z, l, name, sizeof name);
        keep(j, name, means + (size_t)l * (size_t)width, width, l, -1);
    }
    free(means);
    return status;
}

/* The feature of MMDiff's forms: its decoder row and its layer. */
static int one_feature(struct job *j, int *feature, int *layer, struct error *err) {
    const char *features = option(j->self, "--features")->text;
    const struct option *at = option(j->self, "--layer");
    int *list = NULL, n = 0;
    int status = features ? numbers("--features", features, j->sae.M, &list, &n, err) : 0;
    if (status == 0 && n != 1) status = fail(err, "vectors: --method %s needs one feature, --features F", method_names[j->method]);
    *feature = status ? -1 : list[0];
    free(list);
    if (status) return -1;
    *layer = at->given ? (int)at->number : j->sae.layer;
    if (*layer < 0 || *layer >= j->m.n_layers)
        return fail(err, "vectors: --layer, where the feature lies, must be 0 to %d%s", j->m.n_layers - 1,
                    at->given ? "" : "; the dictionary's files do not say it");
    if (j->sae.d != j->m.d_model) return fail(err, "vectors: the dictionary is of width %d, the model of %d", j->sae.d, j->m.d_model);
    return 0;
}

static int make_caa(struct job *j, struct error *err) {
    const char *name = option(j->self, "--contrast")->text;
    const double alpha = option(j->self, "--alpha")->number, beta = option(j->self, "--beta")->number,
                 gamma = option(j->self, "--gamma")->number;
    struct caa c = {0};
    int feature = -1, at = -1, status = 0;
    if (strcmp(name, "answers") && strcmp(name, "outcomes"))
        return fail(err, "vectors: --contrast must be answers or outcomes, found %s", name);
    if (j->method != CAA && one_feature(j, &feature, &at, err)) return -1;
    status = caa_make(&c, &j->m, &j->s, 0, j->s.count, strcmp(name, "answers") ? CONTRAST_OUTCOMES : CONTRAST_ANSWERS,
                      evaluation_task_of(&j->s), (int)option(j->self, "--batch")->number, err);
    const float *row = feature >= 0 ? j->sae.D + (size_t)feature * (size_t)j->sae.d : NULL;
    for (int l = 0; l < c.layers && status == 0; l++) {
        char tensor[64];
        float *v = c.vectors + (size_t)l * (size_t)c.width;
        if (j->method == MMDIFF_SCALE && l != at) continue;
        if (j->method == MMDIFF_SCALE) mmdiff_scale(v, row, c.width, beta);
        if (j->method == MMDIFF_SUM) mmdiff_sum(v, row, c.width, alpha, l == at ? gamma : 0);
        probe_name(PROBE_RESID_POST, l, tensor, sizeof tensor);
        keep(j, tensor, v, c.width, l, l == at ? feature : -1);
    }
    if (status == 0) {
        json_object_set_new(j->summary, "contrast", json_string(name));
        json_object_set_new(j->summary, "positive", json_integer(c.positive));
        json_object_set_new(j->summary, "negative", json_integer(c.negative));
    }
    caa_free(&c);
    return status;
}

static int open_inputs(struct job *j, struct error *err) {
    const char *data = option(j->self, "--data")->text, *sae = option(j->self, "--sae")->text;
    const bool model = j->method != DECODER, dictionary = j->method != CAA && j->method != MEANS;
    if (model != (data != NULL) || model != option(j->self, "--model")->given)
        return fail(err, "vectors: --method %s %s --model DIR and --data FILE", method_names[j->method], model ? "needs" : "does not take");
    if (dictionary != (sae != NULL))
        return fail(err, "vectors: --method %s %s --sae DIR", method_names[j->method], dictionary ? "needs" : "does not take");
    const struct dataset d = {.data = (char *)(uintptr_t)data,
                              .images = (char *)(uintptr_t)option(j->self, "--images")->text,
                              .annotations = (char *)(uintptr_t)option(j->self, "--annotations")->text,
                              .ask = (char *)(uintptr_t)option(j->self, "--ask")->text,
                              .samples = (long)option(j->self, "--samples")->number};
    if (sae && sae_load(&j->sae, sae, err)) return -1;
    return model && (dataset_open(&d, &j->s, err) || command_open(&j->m, j->self, err)) ? -1 : 0;
}

static int run(const struct command *self, struct error *err) {
    struct job j = {.self = self, .summary = json_object(), .tensors = json_array()};
    const int method = method_of(option(self, "--method")->text, err);
    int status = method < 0 ? -1 : 0;
    j.method = method < 0 ? DECODER : (enum method)method;
    if (status == 0) status = open_inputs(&j, err);
    if (status == 0 && j.method != DECODER && !j.m.llm) status = fail(err, "vectors: %s is a vision tower alone", j.m.dir);
    if (status == 0) status = safetensors_writer_open(&j.writer, option(self, "--out")->text, err);
    if (status == 0) {
        json_object_set_new(j.summary, "method", json_string(method_names[j.method]));
        if (j.method != DECODER) json_object_set_new(j.summary, "samples", json_integer((json_int_t)j.s.count));
        status = j.method == DECODER ? make_decoder(&j, err) : j.method == MEANS ? make_means(&j, err) : make_caa(&j, err);
    }
    if (status == 0) {
        safetensors_writer_metadata(j.writer, "method", method_names[j.method]);
        status = safetensors_writer_commit(j.writer, err);
        j.writer = NULL;
    }
    json_object_set_new(j.summary, "tensors", j.tensors);
    if (status == 0) {
        json_dumpf(j.summary, stdout, JSON_COMPACT);
        putchar('\n');
    }
    if (j.writer) safetensors_writer_abort(j.writer);
    json_decref(j.summary);
    sae_host_free(&j.sae);
    samples_free(&j.s);
    if (j.m.dev) command_close(&j.m);
    return status;
}

static struct option options[] = {
    {.name = "--method", .type = OPTION_TEXT, .required = true, .help = "decoder, caa, mmdiff-scale, mmdiff-sum, means: see above"},
    {.name = "--out", .value = "FILE", .type = OPTION_TEXT, .required = true, .help = "safetensors file to write"},
    MODEL_OPTIONS_IF(false),
    {.name = "--data",
     .value = "FILE",
     .type = OPTION_TEXT,
     .help = "lines to contrast or to take means over; files as evaluate takes them"},
    {.name = "--images", .value = "DIR", .type = OPTION_TEXT, .help = "folder of the pictures; without it the data file's"},
    {.name = "--annotations", .value = "FILE", .type = OPTION_TEXT, .help = "VQAv2's annotations, which hold the answers"},
    {.name = "--ask",
     .value = "TEXT",
     .type = OPTION_TEXT,
     .help = "the question that is put: {question} and {caption} stand for the line's"},
    {.name = "--samples", .type = OPTION_INT, .low = 0, .high = 1e15, .fallback = "0", .help = "the first so many; 0: all"},
    {.name = "--contrast",
     .type = OPTION_TEXT,
     .fallback = "answers",
     .help = "answers: right and wrong one appended; outcomes: lines answered right and wrong"},
    {.name = "--sae", .value = "DIR", .type = OPTION_TEXT, .help = "dictionary of decoder rows"},
    {.name = "--features", .value = "F,...", .type = OPTION_TEXT, .help = "which of its features; MMDiff's forms take one"},
    {.name = "--layer", .type = OPTION_INT, .low = 0, .high = 1 << 16, .help = "layer of the feature; without it the dictionary's own"},
    {.name = "--alpha", .type = OPTION_REAL, .low = -1e6, .high = 1e6, .fallback = "1", .help = "mmdiff-sum: weight of CAA's direction"},
    {.name = "--gamma",
     .type = OPTION_REAL,
     .low = -1e6,
     .high = 1e6,
     .fallback = "1",
     .help = "mmdiff-sum: weight of the feature's unit direction"},
    {.name = "--beta",
     .type = OPTION_REAL,
     .low = -1e6,
     .high = 1e6,
     .fallback = "1",
     .help = "mmdiff-scale: factor on CAA's part along the feature"},
    {.name = NULL},
};
struct command command_vectors = {
    .name = "vectors",
    .summary = "directions to steer with and means to ablate with, for --edit",
    .description =
        "decoder       rows of a dictionary's decoder: tensor decoder (n, d)\n"
        "caa           contrastive activation addition: at the last token of the text, mean over right less mean over wrong, for every "
        "layer:\n"
        "              blocks.L.hook_resid_post (d)\n"
        "mmdiff-scale  at the feature's layer, v/|v| with its part along the feature's decoder row times beta (beta 1: plain CAA)\n"
        "mmdiff-sum    alpha v at every layer, and gamma times the feature's unit decoder row added at the feature's layer\n"
        "means         hook_z of every layer, mean over all tokens: blocks.L.attn.hook_z, for head ablation by mean\n\n"
        "A JSON summary (how many lines on either side, norms) goes to stdout.\n\n"
        "  stagediff vectors --method caa --model DIR --data train.jsonl --out caa.safetensors\n"
        "  echo "
        "'[{\"op\":\"add\",\"vector\":{\"file\":\"caa.safetensors\",\"tensor\":\"blocks.5.hook_resid_post\"},\"unit\":true,\"scale\":2,\n"
        "    \"points\":[\"resid_post\"],\"layers\":[5],\"after_image\":true}]' > steer.json\n"
        "  stagediff evaluate --model DIR --data test.jsonl --edit steer.json",
    .options = options,
    .run = run,
};
