/* run_config.c - CONFIG.json -> struct run_config. docs/config.md describes every key. Tables say what may stand where
 * (run_keys.h); what is missing gets its default, and `resolved` holds the lot. */
#include "analysis/run_keys.h"
#include "host/file.h"
#include "host/samples.h"
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

const char *const regime_names[REGIME_COUNT] = {"full", "image", "text", "random"};

#define AT(field) offsetof(struct run_config, field)
static const struct key common_keys[] = {
    {.name = "out", .type = KEY_PATH, .offset = AT(out), .required = true},
    {.name = "base", .type = KEY_PATH, .offset = AT(base)},
    {.name = "model", .type = KEY_PATH, .offset = AT(model), .required = true},
    {.name = "saes", .type = KEY_PATH, .offset = AT(saes)},
    {.name = "layers", .type = KEY_OTHER},
    {.name = "regimes", .type = KEY_OTHER},
    {.name = "seed", .type = KEY_SEED, .offset = AT(seed), .high = 9007199254740992.0},
    {.name = "data", .type = KEY_OTHER},
    {.name = "train", .type = KEY_OTHER},
    {.name = "diff", .type = KEY_OTHER},
    {.name = "select", .type = KEY_OTHER},
    {.name = "attribute", .type = KEY_OTHER},
    {.name = "evaluate", .type = KEY_OTHER},
    {.name = "intervene", .type = KEY_OTHER},
    {.name = "steer", .type = KEY_OTHER},
    {.name = "report", .type = KEY_OTHER},
};
static const struct key data_keys[] = {
    {.name = "train", .type = KEY_PATH, .offset = AT(train_data), .required = true},
    {.name = "validation", .type = KEY_PATH, .offset = AT(validation_data)},
    {.name = "train_samples", .type = KEY_LONG, .offset = AT(train_samples), .high = 1e15},
    {.name = "validation_samples", .type = KEY_LONG, .offset = AT(validation_samples), .high = 1e15},
};
static const struct key train_keys[] = {
    {.name = "k", .type = KEY_INT, .offset = AT(k), .low = 1, .high = 1 << 20, .fallback = 50},
    {.name = "features", .type = KEY_INT, .offset = AT(features), .high = 1 << 26},
    {.name = "batch", .type = KEY_INT, .offset = AT(batch), .low = 2, .high = 1 << 22, .fallback = 4096},
    {.name = "lr", .type = KEY_REAL, .offset = AT(lr), .high = 1e3, .fallback = 2e-4},
    {.name = "passes", .type = KEY_REAL, .offset = AT(passes), .low = 1e-9, .high = 1e6, .fallback = 1},
    {.name = "forward_samples", .type = KEY_INT, .offset = AT(forward_samples), .low = 1, .high = 1 << 16, .fallback = 8},
    {.name = "ring_rows", .type = KEY_LONG, .offset = AT(ring_rows), .low = 2, .high = 1 << 30, .fallback = 65536},
    {.name = "products", .type = KEY_SWITCH, .offset = AT(bf16_products), .choices = {"f32", "bf16"}},
    {.name = "unit_norm_decoder", .type = KEY_BOOL, .offset = AT(unit_norm_decoder), .fallback = 1},
    {.name = "remove_parallel", .type = KEY_BOOL, .offset = AT(remove_parallel)},
    {.name = "layers_at_once", .type = KEY_INT, .offset = AT(layers_at_once), .high = 100000},
    {.name = "log_every", .type = KEY_INT, .offset = AT(log_every), .low = 1, .high = 1 << 30, .fallback = 10},
    {.name = "dead_window", .type = KEY_LONG, .offset = AT(dead_window), .low = 1, .high = 1e15, .fallback = 1e7},
    {.name = "checkpoint_seconds", .type = KEY_LONG, .offset = AT(checkpoint_seconds), .low = 1, .high = 1e9, .fallback = 300},
};
static const struct key diff_keys[] = {
    {.name = "eps", .type = KEY_REAL, .offset = AT(diff_eps), .high = 1e30, .fallback = 0.01},
    {.name = "percentile", .type = KEY_REAL, .offset = AT(diff_percentile), .high = 100, .fallback = 25},
    {.name = "regime",
     .type = KEY_CHOICE,
     .offset = AT(diff_regime),
     .fallback = REGIME_TEXT,
     .choices = {"full", "image", "text", "random"}},
    {.name = "samples", .type = KEY_LONG, .offset = AT(diff_samples), .high = 1e15},
    {.name = "tokens", .type = KEY_SWITCH, .offset = AT(diff_text_tokens), .choices = {"all", "text"}},
};
static const struct key report_keys[] = {
    {.name = "features", .type = KEY_INT, .offset = AT(report_features), .high = 100000, .fallback = 24},
};
#define TABLE(keys) keys, sizeof keys / sizeof *keys

static int read_layers(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown) {
    *shown = json_string("all");
    if (!v || json_is_null(v) || (json_is_string(v) && strcmp(json_string_value(v), "all") == 0)) return 0;
    if (!json_is_array(v) || json_array_size(v) == 0) return keys_bad_value(r, "", "layers", v, "\"all\" or a list of layers");
    c->layers = memory_take(json_array_size(v), sizeof *c->layers);
    json_decref(*shown);
    *shown = json_array();
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *e = json_array_get(v, i);
        json_int_t layer = json_is_integer(e) ? json_integer_value(e) : -1;
        if (layer < 0 || layer > 10000 || (c->n_layers > 0 && layer <= c->layers[c->n_layers - 1]))
            return keys_bad_value(r, "", "layers", v, "layers from 0, rising, each once");
        c->layers[c->n_layers++] = (int)layer;
        json_array_append_new(*shown, json_integer(layer));
    }
    return 0;
}

static int read_regimes(const struct reader *r, struct run_config *c, const json_t *v, json_t **shown) {
    bool none = !v || json_is_null(v);
    if (!none && (!json_is_array(v) || json_array_size(v) == 0))
        return keys_bad_value(r, "", "regimes", v, "a list of \"full\", \"image\", \"text\", \"random\"");
    for (int i = 0; i < REGIME_COUNT && none; i++) c->regimes[i] = i == REGIME_RANDOM || c->saes;
    for (size_t e = 0; !none && e < json_array_size(v); e++) {
        const char *name = json_string_value(json_array_get(v, e));
        int i = 0;
        while (i < REGIME_COUNT && (!name || strcmp(name, regime_names[i]))) i++;
        if (i == REGIME_COUNT || c->regimes[i])
            return keys_bad_value(r, "", "regimes", v, "a list of \"full\", \"image\", \"text\", \"random\", each once");
        if (i != REGIME_RANDOM && !c->saes)
            return fail(r->err,
                        "%s: \"regimes\": %s starts from the base dictionaries, but \"saes\" is missing; give it or use [\"random\"]",
                        r->file, name);
        c->regimes[i] = true;
    }
    *shown = json_array();
    for (int i = 0; i < REGIME_COUNT; i++)
        if (c->regimes[i]) json_array_append_new(*shown, json_string(regime_names[i]));
    return 0;
}

/* One section of plain keys. */
static int read_section(const struct reader *r, struct run_config *c, const json_t *top, const char *name, const struct key *keys,
                        size_t n) {
    json_t *shown = json_object();
    json_object_set_new(c->resolved, name, shown);
    return keys_read(r, c, keys, n, name, json_object_get(top, name), shown);
}

/* A key or section of its own form. */
static int read_other(const struct reader *r, struct run_config *c, const json_t *top, const char *name,
                      int (*read)(const struct reader *, struct run_config *, const json_t *, json_t **)) {
    const json_t *v = json_object_get(top, name);
    json_t *shown = NULL;
    int status = read(r, c, v && json_is_null(v) ? NULL : v, &shown);
    if (shown) json_object_set_new(c->resolved, name, shown);
    return status;
}

static int read_all(const struct reader *r, struct run_config *c, const json_t *top) {
    if (keys_read(r, c, TABLE(common_keys), "", top, c->resolved) || read_other(r, c, top, "layers", read_layers) ||
        read_other(r, c, top, "regimes", read_regimes) || read_section(r, c, top, "data", TABLE(data_keys)) ||
        read_section(r, c, top, "train", TABLE(train_keys)) || read_section(r, c, top, "diff", TABLE(diff_keys)) ||
        read_other(r, c, top, "select", read_select) || read_other(r, c, top, "attribute", read_attribute) ||
        read_other(r, c, top, "evaluate", read_evaluate) || read_other(r, c, top, "intervene", read_intervene) ||
        read_other(r, c, top, "steer", read_steer))
        return -1;
    return read_section(r, c, top, "report", TABLE(report_keys));
}

int run_config_open(struct run_config *c, const char *path, struct error *err) {
    struct reader r = {.file = path, .err = err};
    char *text = NULL;
    size_t size = 0;
    json_error_t where;
    json_t *top = NULL;
    int status = -1;
    memset(c, 0, sizeof *c);
    c->resolved = json_object();
    if (file_read(path, 16 << 20, &text, &size, err)) goto done;
    top = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(top)) {
        if (top)
            fail(err, "%s: expected a JSON object at the top", path);
        else
            fail(err, "%s: line %d, column %d: not valid JSON: %s", path, where.line, where.column, where.text);
        goto done;
    }
    char *folder = path_folder(path), *real = realpath(folder, NULL);
    r.folder = real;
    if (!real)
        fail(err, "%s: cannot tell its folder: %s", path, strerror(errno));
    else
        status = read_all(&r, c, top);
    free(folder);
    free(real);
done:
    free(text);
    json_decref(top);
    if (status) run_config_free(c);
    return status;
}

void run_config_free(struct run_config *c) {
    free(c->out), free(c->base), free(c->model), free(c->saes), free(c->train_data), free(c->validation_data), free(c->layers);
    free_sections(c);
    json_decref(c->resolved);
    memset(c, 0, sizeof *c);
}

int run_config_write(const struct run_config *c, struct error *err) {
    struct file_writer w = {0};
    char *path = path_join(c->out, "config.json");
    int status = file_writer_open(&w, path, err);
    if (status == 0 && (json_dumpf(c->resolved, w.stream, JSON_INDENT(2)) || fputc('\n', w.stream) == EOF)) {
        file_writer_abort(&w);
        status = fail(err, "%s: cannot write: %s", path, strerror(errno));
    } else if (status == 0) {
        status = file_writer_commit(&w, err);
    }
    free(path);
    return status;
}

int run_samples(const struct run_config *c, bool validation, struct samples *s, size_t *first, size_t *count, struct error *err) {
    bool shared = !c->validation_data || strcmp(c->validation_data, c->train_data) == 0;
    if (samples_open(s, validation && !shared ? c->validation_data : c->train_data, err)) return -1;
    size_t wanted_train = (size_t)c->train_samples, wanted = (size_t)c->validation_samples, n = s->count, train = n;
    if (shared) /* nothing said: a tenth is for validation (papers.md 1.2) */
        train = wanted_train ? wanted_train : wanted ? n - (wanted < n ? wanted : n) : n - (n + 9) / 10;
    else if (!validation && wanted_train)
        train = wanted_train;
    *first = validation && shared ? train : 0;
    *count = !validation ? train : wanted ? wanted : n > *first ? n - *first : 0;
    if (*first + *count <= n && *count > 0) return 0;
    fail(err,
         "%s: %s needs %zu samples from number %zu on, the file has %zu; change \"data.train_samples\" or \"data.validation_samples\"%s",
         s->path, validation ? "validation" : "training", *count > 0 ? *count : 1, *first, n,
         shared && validation ? " or give \"data.validation\" a file of its own" : "");
    samples_free(s);
    return -1;
}
