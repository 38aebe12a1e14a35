/* run_config.c - CONFIG.json -> struct run_config. docs/config.md describes every key.
 *
 * One table says what may stand where: an unknown key, a wrong type or a value out of range is an error that names the file, the key
 * and what was expected. What is missing gets its default, and `resolved` holds the lot. */
#include "analysis/run.h"
#include "host/file.h"
#include "host/options.h"
#include "host/samples.h"
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

const char *const regime_names[REGIME_COUNT] = {"full", "image", "text", "random"};

enum key_type { KEY_PATH, KEY_LONG, KEY_INT, KEY_REAL, KEY_BOOL, KEY_SEED, KEY_CHOICE, KEY_OTHER };
struct key {
    const char *section, *name; /* section "": top level */
    enum key_type type;
    size_t offset;
    double low, high, fallback;
    const char *choices[REGIME_COUNT + 1]; /* KEY_CHOICE: index into it is stored (int), fallback too */
    bool required;
};
#define AT(field) offsetof(struct run_config, field)
static const struct key keys[] = {
    {.section = "", .name = "out", .type = KEY_PATH, .offset = AT(out), .required = true},
    {.section = "", .name = "base", .type = KEY_PATH, .offset = AT(base)},
    {.section = "", .name = "model", .type = KEY_PATH, .offset = AT(model), .required = true},
    {.section = "", .name = "saes", .type = KEY_PATH, .offset = AT(saes)},
    {.section = "", .name = "layers", .type = KEY_OTHER},
    {.section = "", .name = "regimes", .type = KEY_OTHER},
    {.section = "", .name = "seed", .type = KEY_SEED, .offset = AT(seed), .high = 9007199254740992.0},
    {.section = "data", .name = "train", .type = KEY_PATH, .offset = AT(train_data), .required = true},
    {.section = "data", .name = "validation", .type = KEY_PATH, .offset = AT(validation_data)},
    {.section = "data", .name = "train_samples", .type = KEY_LONG, .offset = AT(train_samples), .high = 1e15},
    {.section = "data", .name = "validation_samples", .type = KEY_LONG, .offset = AT(validation_samples), .high = 1e15},
    {.section = "train", .name = "k", .type = KEY_INT, .offset = AT(k), .low = 1, .high = 1 << 20, .fallback = 50},
    {.section = "train", .name = "features", .type = KEY_INT, .offset = AT(features), .high = 1 << 26},
    {.section = "train", .name = "batch", .type = KEY_INT, .offset = AT(batch), .low = 2, .high = 1 << 22, .fallback = 4096},
    {.section = "train", .name = "lr", .type = KEY_REAL, .offset = AT(lr), .high = 1e3, .fallback = 2e-4},
    {.section = "train", .name = "passes", .type = KEY_REAL, .offset = AT(passes), .low = 1e-9, .high = 1e6, .fallback = 1},
    {.section = "train",
     .name = "forward_samples",
     .type = KEY_INT,
     .offset = AT(forward_samples),
     .low = 1,
     .high = 1 << 16,
     .fallback = 8},
    {.section = "train", .name = "ring_rows", .type = KEY_LONG, .offset = AT(ring_rows), .low = 2, .high = 1 << 30, .fallback = 65536},
    {.section = "train", .name = "products", .type = KEY_CHOICE, .offset = AT(bf16_products), .choices = {"f32", "bf16"}},
    {.section = "train", .name = "unit_norm_decoder", .type = KEY_BOOL, .offset = AT(unit_norm_decoder), .fallback = 1},
    {.section = "train", .name = "remove_parallel", .type = KEY_BOOL, .offset = AT(remove_parallel)},
    {.section = "train", .name = "layers_at_once", .type = KEY_INT, .offset = AT(layers_at_once), .high = 100000},
    {.section = "train", .name = "log_every", .type = KEY_INT, .offset = AT(log_every), .low = 1, .high = 1 << 30, .fallback = 10},
    {.section = "train", .name = "dead_window", .type = KEY_LONG, .offset = AT(dead_window), .low = 1, .high = 1e15, .fallback = 1e7},
    {.section = "train",
     .name = "checkpoint_seconds",
     .type = KEY_LONG,
     .offset = AT(checkpoint_seconds),
     .low = 1,
     .high = 1e9,
     .fallback = 300},
    {.section = "diff", .name = "eps", .type = KEY_REAL, .offset = AT(diff_eps), .high = 1e30, .fallback = 0.01},
    {.section = "diff", .name = "percentile", .type = KEY_REAL, .offset = AT(diff_percentile), .high = 100, .fallback = 25},
    {.section = "diff",
     .name = "regime",
     .type = KEY_CHOICE,
     .offset = AT(diff_regime),
     .fallback = REGIME_TEXT,
     .choices = {"full", "image", "text", "random"}},
    {.section = "diff", .name = "samples", .type = KEY_LONG, .offset = AT(diff_samples), .high = 1e15},
    {.section = "diff", .name = "tokens", .type = KEY_CHOICE, .offset = AT(diff_text_tokens), .choices = {"all", "text"}},
    {.section = "report", .name = "features", .type = KEY_INT, .offset = AT(report_features), .high = 100000, .fallback = 24},
};
enum { N_KEYS = sizeof keys / sizeof *keys };

struct reader {
    struct run_config *c;
    const char *file;
    char *folder; /* absolute, of the file */
    struct error *err;
};

static int bad_value(const struct reader *r, const struct key *k, const json_t *v, const char *expected) {
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    fail(r->err, "%s: \"%s%s%s\": expected %s, found %.80s", r->file, k->section, *k->section ? "." : "", k->name, expected,
         text ? text : "something else");
    free(text);
    return -1;
}

static int read_number(const struct reader *r, const struct key *k, const json_t *v, double *x) {
    char expected[128];
    bool whole = k->type != KEY_REAL;
    snprintf(expected, sizeof expected, "%s from %.10g to %.10g", whole ? "a whole number" : "a number", k->low, k->high);
    *x = k->fallback;
    if (!v) return 0;
    if (!json_is_number(v) || !isfinite(json_number_value(v))) return bad_value(r, k, v, expected);
    *x = json_number_value(v);
    if (*x < k->low || *x > k->high || (whole && *x != floor(*x))) return bad_value(r, k, v, expected);
    return 0;
}

static int read_choice(const struct reader *r, const struct key *k, const json_t *v, int *index) {
    char expected[128] = "one of";
    *index = (int)k->fallback;
    if (!v) return 0;
    for (int i = 0; k->choices[i]; i++) {
        if (json_is_string(v) && strcmp(json_string_value(v), k->choices[i]) == 0) {
            *index = i;
            return 0;
        }
        size_t used = strlen(expected);
        snprintf(expected + used, sizeof expected - used, "%s \"%s\"", i ? "," : "", k->choices[i]);
    }
    return bad_value(r, k, v, expected);
}

/* name seen from folder. The folder is real (no links in it), so leading "../" can be taken off as text. */
static char *resolved_path(const char *folder, const char *name) {
    char *base = memory_string(folder), *slash;
    while (!strncmp(name, "../", 3) && (slash = strrchr(base, '/')) && slash > base) {
        *slash = 0;
        name += 3;
    }
    char *path = path_join(base, name);
    free(base);
    return path;
}

/* Reads or defaults one key; *shown is what the resolved configuration says. */
static int read_key(const struct reader *r, const struct key *k, const json_t *v, json_t **shown) {
    char *at = (char *)r->c + k->offset;
    double x = 0;
    int index = 0;
    *shown = NULL;
    if (v && json_is_null(v)) v = NULL;
    if (!v && k->required)
        return fail(r->err, "%s: \"%s%s%s\" is missing; expected a path", r->file, k->section, *k->section ? "." : "", k->name);
    switch (k->type) {
    case KEY_PATH:
        if (v && (!json_is_string(v) || !*json_string_value(v))) return bad_value(r, k, v, "a path");
        *(char **)(void *)at = v ? resolved_path(r->folder, json_string_value(v)) : NULL;
        *shown = v ? json_string(*(char **)(void *)at) : json_null();
        return *shown ? 0 : bad_value(r, k, v, "a path in UTF-8");
    case KEY_BOOL:
        if (v && !json_is_boolean(v)) return bad_value(r, k, v, "true or false");
        *(bool *)at = v ? json_is_true(v) : k->fallback != 0;
        *shown = json_boolean(*(bool *)at);
        return 0;
    case KEY_CHOICE:
        if (read_choice(r, k, v, &index)) return -1;
        if (k->offset == AT(diff_regime))
            *(enum regime *)(void *)at = (enum regime)index;
        else
            *(bool *)at = index != 0;
        *shown = json_string(k->choices[index]);
        return 0;
    case KEY_OTHER:
        return 0;
    case KEY_REAL:
    case KEY_INT:
    case KEY_LONG:
    case KEY_SEED:
        break;
    }
    if (read_number(r, k, v, &x)) return -1;
    if (k->type == KEY_INT)
        *(int *)(void *)at = (int)x;
    else if (k->type == KEY_LONG)
        *(long *)(void *)at = (long)x;
    else if (k->type == KEY_SEED)
        *(unsigned long *)(void *)at = (unsigned long)x;
    else
        *(double *)(void *)at = x;
    *shown = k->type == KEY_REAL ? json_real(x) : json_integer((json_int_t)x);
    return 0;
}

/* Every key of `o` must stand in the table under `section` (or, at the top, be a section). */
static int check_names(const struct reader *r, const json_t *o, const char *section) {
    const char *names[N_KEYS + 4], *name;
    json_t *value;
    size_t n = 0;
    for (int i = 0; i < N_KEYS; i++)
        if (strcmp(keys[i].section, section) == 0) names[n++] = keys[i].name;
    if (!*section) names[n++] = "data", names[n++] = "train", names[n++] = "diff", names[n++] = "report";
    names[n] = NULL;
    json_object_foreach((json_t *)(uintptr_t)o, name, value) {
        size_t i = 0;
        while (i < n && strcmp(names[i], name)) i++;
        if (i < n) continue;
        const char *near = nearest_name(name, names);
        return fail(r->err, "%s: unknown key \"%s%s%.60s\"%s%s%s; docs/config.md lists all", r->file, section, *section ? "." : "", name,
                    near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    }
    return 0;
}

static int read_layers(const struct reader *r, const json_t *v, json_t **shown) {
    struct run_config *c = r->c;
    const struct key k = {.section = "", .name = "layers"};
    *shown = json_string("all");
    if (!v || json_is_null(v) || (json_is_string(v) && strcmp(json_string_value(v), "all") == 0)) return 0;
    if (!json_is_array(v) || json_array_size(v) == 0) return bad_value(r, &k, v, "\"all\" or a list of layers");
    c->layers = memory_take(json_array_size(v), sizeof *c->layers);
    json_decref(*shown);
    *shown = json_array();
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *e = json_array_get(v, i);
        json_int_t layer = json_is_integer(e) ? json_integer_value(e) : -1;
        if (layer < 0 || layer > 10000 || (c->n_layers > 0 && layer <= c->layers[c->n_layers - 1]))
            return bad_value(r, &k, v, "layers from 0, rising, each once");
        c->layers[c->n_layers++] = (int)layer;
        json_array_append_new(*shown, json_integer(layer));
    }
    return 0;
}

static int read_regimes(const struct reader *r, const json_t *v, json_t **shown) {
    struct run_config *c = r->c;
    const struct key k = {.section = "", .name = "regimes"};
    bool none = !v || json_is_null(v);
    if (!none && (!json_is_array(v) || json_array_size(v) == 0))
        return bad_value(r, &k, v, "a list of \"full\", \"image\", \"text\", \"random\"");
    for (int i = 0; i < REGIME_COUNT && none; i++) c->regimes[i] = i == REGIME_RANDOM || c->saes;
    for (size_t e = 0; !none && e < json_array_size(v); e++) {
        const char *name = json_string_value(json_array_get(v, e));
        int i = 0;
        while (i < REGIME_COUNT && (!name || strcmp(name, regime_names[i]))) i++;
        if (i == REGIME_COUNT || c->regimes[i])
            return bad_value(r, &k, v, "a list of \"full\", \"image\", \"text\", \"random\", each once");
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

static int read_all(struct reader *r, const json_t *top) {
    struct run_config *c = r->c;
    json_t *shown = NULL;
    if (check_names(r, top, "")) return -1;
    for (int i = 0; i < N_KEYS; i++) {
        const struct key *k = &keys[i];
        const json_t *section = *k->section ? json_object_get(top, k->section) : top;
        json_t *out = c->resolved;
        if (*k->section) {
            if (section && !json_is_object(section)) return fail(r->err, "%s: \"%s\": expected an object", r->file, k->section);
            if (!json_object_get(c->resolved, k->section)) {
                if (section && check_names(r, section, k->section)) return -1;
                json_object_set_new(c->resolved, k->section, json_object());
            }
            out = json_object_get(c->resolved, k->section);
        }
        const json_t *v = section ? json_object_get(section, k->name) : NULL;
        int status = k->type != KEY_OTHER             ? read_key(r, k, v, &shown)
                     : strcmp(k->name, "layers") == 0 ? read_layers(r, v, &shown)
                                                      : read_regimes(r, v, &shown);
        json_object_set_new(out, k->name, shown ? shown : json_null());
        if (status) return -1;
    }
    return 0;
}

int run_config_open(struct run_config *c, const char *path, struct error *err) {
    struct reader r = {.c = c, .file = path, .err = err};
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
    char *folder = path_folder(path);
    r.folder = realpath(folder, NULL);
    if (!r.folder)
        fail(err, "%s: cannot tell its folder: %s", path, strerror(errno));
    else
        status = read_all(&r, top);
    free(folder);
    free(r.folder);
done:
    free(text);
    json_decref(top);
    if (status) run_config_free(c);
    return status;
}

void run_config_free(struct run_config *c) {
    free(c->out), free(c->base), free(c->model), free(c->saes), free(c->train_data), free(c->validation_data), free(c->layers);
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
