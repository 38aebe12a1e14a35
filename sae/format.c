/* format.c - which dictionary format a folder holds (formats.md 0.1), and what the readers share. */
#include "sae/format.h"
#include "host/file.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { JSON_MAX_BYTES = 16 << 20, DIM_MAX = 1 << 30 };

json_t *json_open(const char *path, struct error *err) {
    char *text = NULL;
    size_t size = 0;
    json_error_t where;
    if (file_read(path, JSON_MAX_BYTES, &text, &size, err)) return NULL;
    json_t *o = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
    free(text);
    if (!o)
        fail(err, "%s: line %d: not valid JSON: %s", path, where.line, where.text);
    else if (!json_is_object(o)) {
        fail(err, "%s: expected a JSON object at the top", path);
        json_decref(o);
        o = NULL;
    }
    return o;
}

static int wrong_type(const char *file, const char *key, const char *expected, const json_t *found, struct error *err) {
    char *text = json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT);
    fail(err, "%s: \"%s\": expected %s, found %.60s", file, key, expected, text ? text : "something else");
    free(text);
    return -1;
}

int json_bool(const json_t *o, const char *file, const char *key, bool fallback, bool *value, struct error *err) {
    const json_t *v = json_object_get(o, key);
    *value = fallback;
    if (!v || json_is_null(v)) return 0;
    if (!json_is_boolean(v)) return wrong_type(file, key, "true or false", v, err);
    *value = json_is_true(v);
    return 0;
}

int json_number(const json_t *o, const char *file, const char *key, double fallback, double *value, struct error *err) {
    const json_t *v = json_object_get(o, key);
    *value = fallback;
    if (!v || json_is_null(v)) return 0;
    if (!json_is_number(v)) return wrong_type(file, key, "a number", v, err);
    *value = json_number_value(v);
    return 0;
}

int json_count(const json_t *o, const char *file, const char *key, int fallback, int *value, struct error *err) {
    double x;
    if (json_number(o, file, key, fallback, &x, err)) return -1;
    *value = fallback;
    if (!json_object_get(o, key) || json_is_null(json_object_get(o, key))) return 0;
    if (!(x >= 1 && x <= DIM_MAX) || x != floor(x)) return wrong_type(file, key, "a whole number from 1", json_object_get(o, key), err);
    *value = (int)x;
    return 0;
}

int json_text(const json_t *o, const char *file, const char *key, const char **value, struct error *err) {
    const json_t *v = json_object_get(o, key);
    *value = NULL;
    if (!v || json_is_null(v)) return 0;
    if (!json_is_string(v)) return wrong_type(file, key, "a string", v, err);
    *value = json_string_value(v);
    return 0;
}

/* (rows, columns) -> (columns, rows), a band of stored rows at a time so that both sides stay in cache. */
static void load_transposed(float *dst, const struct tensor *t, size_t rows, size_t columns) {
    enum { BAND = 16 };
    float *band = memory_take(BAND * columns, sizeof *band);
    for (size_t first = 0; first < rows; first += BAND) {
        size_t n = rows - first < BAND ? rows - first : BAND;
        tensor_to_f32(t, first * columns, n * columns, band);
#pragma omp parallel for schedule(static)
        for (size_t j = 0; j < columns; j++)
            for (size_t i = 0; i < n; i++) dst[j * rows + first + i] = band[i * columns + j];
    }
    free(band);
}

int tensor_load(float **out, const struct tensors *st, const char *name, int rows, int columns, bool transposed, struct error *err) {
    const int64_t dims[2] = {rows, columns};
    *out = NULL;
    const struct tensor *t = tensors_require(st, name, columns > 0 ? 2 : 1, dims, err);
    if (!t) return -1;
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_F16 && t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F64)
        return fail(err, "%s: tensor %s: expected floating point (F32, F16, BF16, F64), found %s", t->file, name, dtype_name(t->dtype));
    *out = memory_take(t->count, sizeof **out);
    if (transposed)
        load_transposed(*out, t, (size_t)rows, (size_t)columns);
    else
        tensor_to_f32(t, 0, t->count, *out);
    for (size_t i = 0; i < t->count; i++)
        if (!isfinite((*out)[i])) {
            fail(err, "%s: tensor %s: expected finite weights, found %g; the file is damaged or its training diverged", t->file, name,
                 (double)(*out)[i]);
            free(*out);
            *out = NULL;
            return -1;
        }
    return 0;
}

int layer_of_hook(const char *hook) {
    const char *at = hook ? strstr(hook, "blocks.") : NULL;
    if (!at || !isdigit((unsigned char)at[7])) return -1;
    long n = strtol(at + 7, NULL, 10);
    return n >= 0 && n < 100000 ? (int)n : -1;
}

void sae_files_free(struct sae_files *f) {
    free(f->folder), free(f->config), free(f->weights);
    memset(f, 0, sizeof *f);
}

static bool has(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    bool there = file_exists(path);
    free(path);
    return there;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Formats that exist but that this reader does not take, by the files that give them away. */
static int refuse_known(const char *folder, struct error *err) {
    static const char only[] = "this build reads Llama Scope v1 (hyperparams.json + checkpoints/final.safetensors) and SAELens (cfg.json + "
                               "sae_weights.safetensors)";
    const char *what = NULL;
    if (has(folder, "cfg.json") && has(folder, "sae.safetensors"))
        what = "a dictionary of EleutherAI sparsify (cfg.json + sae.safetensors)";
    else if (has(folder, "params.npz"))
        what = "a Gemma Scope dictionary (params.npz)";
    else if (has(folder, "ae.pt"))
        what = "a dictionary_learning dictionary (config.json + ae.pt)";
    else if (has(folder, "config.json") && has(folder, "sae_weights.safetensors"))
        what = "a 2025 OpenMOSS dictionary (config.json + sae_weights.safetensors)";
    else if (has(folder, "config.json"))
        what = "a model folder (config.json), no dictionary";
    if (what) return fail(err, "%s: this is %s; %s", folder, what, only);
    return fail(err,
                "%s: no dictionary found; expected hyperparams.json (Llama Scope v1) or cfg.json with sae_weights.safetensors (SAELens)",
                folder);
}

static int find_weights(struct sae_files *f, const char *const *names, struct error *err) {
    for (int i = 0; names[i]; i++)
        if (has(f->folder, names[i])) {
            f->weights = path_join(f->folder, names[i]);
            return 0;
        }
    for (int i = 0; names[i]; i++) { /* the same as a torch pickle */
        char pickled[64];
        snprintf(pickled, sizeof pickled, "%.*s.pt", (int)(strlen(names[i]) - strlen(".safetensors")), names[i]);
        if (has(f->folder, pickled))
            return fail(err, "%s/%s: torch pickles are not read; convert it to safetensors (expected %s)", f->folder, pickled, names[i]);
    }
    return fail(err, "%s: %s found, but no weights beside it; expected %s", f->folder,
                f->format == SAE_FORMAT_SAELENS ? "cfg.json" : "hyperparams.json", names[0]);
}

int sae_recognise(struct sae_files *f, const char *path, struct error *err) {
    static const char *const scope_names[] = {"checkpoints/final.safetensors", "sae_weights.safetensors", "checkpoints/pruned.safetensors",
                                              NULL};
    static const char *const lens_names[] = {"sae_weights.safetensors", NULL};
    memset(f, 0, sizeof *f);
    if (dir_exists(path))
        f->folder = memory_string(path);
    else if (!file_exists(path))
        return fail(err, "%s: no such file or folder; expected a dictionary", path);
    else if (ends_with(path, ".pt") || ends_with(path, ".pth") || ends_with(path, ".bin"))
        return fail(err, "%s: torch pickles are not read; convert it to safetensors", path);
    else if (ends_with(path, ".npz"))
        return fail(err, "%s: this is a Gemma Scope dictionary (.npz), which this build does not read", path);
    else {
        f->folder = path_folder(path);
        if (!has(f->folder, "cfg.json") && !has(f->folder, "hyperparams.json") && ends_with(f->folder, "checkpoints")) {
            char *inner = f->folder;
            f->folder = path_folder(inner);
            free(inner);
        }
    }
    int status;
    if (has(f->folder, "hyperparams.json")) {
        f->format = SAE_FORMAT_LLAMA_SCOPE;
        f->config = path_join(f->folder, "hyperparams.json");
        status = find_weights(f, scope_names, err);
    } else if (has(f->folder, "cfg.json") && !has(f->folder, "sae.safetensors")) {
        f->format = SAE_FORMAT_SAELENS;
        f->config = path_join(f->folder, "cfg.json");
        status = find_weights(f, lens_names, err);
    } else {
        status = refuse_known(f->folder, err);
    }
    if (status == 0 && ends_with(path, ".safetensors")) { /* that very file */
        free(f->weights);
        f->weights = memory_string(path);
    }
    if (status) sae_files_free(f);
    return status;
}

static int read_any(struct sae_host *s, const char *path, bool arrays, struct error *err) {
    struct sae_files f;
    memset(s, 0, sizeof *s);
    s->layer = -1;
    if (sae_recognise(&f, path, err)) return -1;
    s->format = f.format;
    int status = f.format == SAE_FORMAT_LLAMA_SCOPE ? llama_scope_read(s, &f, arrays, err) : saelens_read(s, &f, arrays, err);
    if (status == 0)
        s->layer = layer_of_hook(s->hook);
    else
        sae_host_free(s);
    sae_files_free(&f);
    return status;
}

int sae_load(struct sae_host *s, const char *path, struct error *err) { return read_any(s, path, true, err); }
int sae_peek(struct sae_host *s, const char *path, struct error *err) { return read_any(s, path, false, err); }
