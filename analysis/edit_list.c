/* edit_list.c - SPEC.json to a checked list of edits (edit.h). Files are named relative to SPEC's folder. */
#include "analysis/edit.h"
#include "host/file.h"
#include "host/options.h"
#include "host/tensors.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FIELDS = 10 };
static const struct {
    const char *name, *fields[MAX_FIELDS]; /* besides op, kinds, after_image */
} ops[EDIT_OPS] = {
    [EDIT_PROJECT_OUT] = {"project_out", {"vector", "points", "layers", "scale"}},
    [EDIT_ADD] = {"add", {"vector", "points", "layers", "scale", "unit"}},
    [EDIT_HEAD] = {"head", {"layers", "heads", "mode", "mean"}},
    [EDIT_FEATURE] = {"feature", {"sae", "layer", "features", "mode", "value"}},
    [EDIT_RECONSTRUCT] = {"reconstruct", {"sae", "layer", "keep_error"}},
};
static const char *const points[EDIT_POINTS] = {"attn_out", "mlp_out", "resid_post"};

struct reader {
    struct edit_list *list;
    const struct model *m;
    const char *folder; /* SPEC's */
    const json_t *o;
    struct edit *e;
    struct error *err;
};

/* ---- plain values ---- */
static int read_bool(const struct reader *r, const char *name, bool fallback, bool *value) {
    const json_t *v = json_object_get(r->o, name);
    *value = v ? json_is_true(v) : fallback;
    return v && !json_is_boolean(v) ? fail(r->err, "\"%s\": expected true or false", name) : 0;
}

static int read_number(const struct reader *r, const char *name, const double *fallback, double *value) {
    const json_t *v = json_object_get(r->o, name);
    if (!v && !fallback) return fail(r->err, "\"%s\" is missing; expected a number", name);
    if (v && !json_is_number(v)) return fail(r->err, "\"%s\": expected a number", name);
    *value = v ? json_number_value(v) : *fallback;
    return 0;
}

static int read_text(const struct reader *r, const json_t *o, const char *name, const char *what, const char **value) {
    const json_t *v = json_object_get(o, name);
    *value = json_string_value(v);
    if (!v) return fail(r->err, "\"%s\" is missing; expected %s", name, what);
    return *value && **value ? 0 : fail(r->err, "\"%s\": expected %s", name, what);
}

/* The place of a word in a list of names. */
static int read_name(const struct reader *r, const json_t *v, const char *field, const char *const *names, int n) {
    char all[128] = "";
    for (int i = 0; i < n; i++) {
        if (json_is_string(v) && !strcmp(json_string_value(v), names[i])) return i;
        const size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s%s", i ? ", " : "", names[i]);
    }
    if (json_is_string(v)) return fail(r->err, "\"%s\": expected one of %s, found \"%.64s\"", field, all, json_string_value(v));
    return fail(r->err, "\"%s\"%s expected one of %s", field, v ? ":" : " is missing;", all);
}

static int read_index(const struct reader *r, const json_t *v, const char *field, const char *what, int limit) {
    const json_int_t i = json_integer_value(v);
    if (json_is_integer(v) && i >= 0 && i < limit) return (int)i;
    if (json_is_integer(v)) return fail(r->err, "\"%s\": %s are 0 to %d, found %" JSON_INTEGER_FORMAT, field, what, limit - 1, i);
    return fail(r->err, "\"%s\": expected a whole number from 0 to %d (%s)", field, limit - 1, what);
}

/* A list that names at least one thing, none twice; malloced. */
static int read_indices(const struct reader *r, const char *field, const char *what, int limit, int **list, int *n) {
    const json_t *v = json_object_get(r->o, field), *item;
    size_t i;
    if (!v) return fail(r->err, "\"%s\" is missing; expected a list of numbers (%s are 0 to %d)", field, what, limit - 1);
    if (!json_is_array(v) || !json_array_size(v)) return fail(r->err, "\"%s\": expected a list with at least one number", field);
    bool *seen = memory_take((size_t)limit, sizeof *seen);
    *list = memory_take(json_array_size(v), sizeof **list);
    *n = 0;
    json_array_foreach(v, i, item) {
        const int at = read_index(r, item, field, what, limit);
        if (at >= 0 && seen[at]) fail(r->err, "\"%s\": %d stands there twice", field, at);
        if (at < 0 || seen[at]) break;
        seen[at] = true;
        (*list)[(*n)++] = at;
    }
    free(seen);
    return (size_t)*n == json_array_size(v) ? 0 : -1;
}

/* ---- which rows, layers and points ---- */
static int read_rows(const struct reader *r) {
    const json_t *v = json_object_get(r->o, "kinds"), *item;
    size_t i;
    r->e->kinds = v ? 0 : (1u << KIND_COUNT) - 1;
    if (read_bool(r, "after_image", false, &r->e->after_image)) return -1;
    if (!v) return 0;
    if (!json_is_array(v) || !json_array_size(v))
        return fail(r->err, "\"kinds\": expected a list with at least one of bos, image, template, question, answer; leave it out for all");
    json_array_foreach(v, i, item) {
        const int kind = read_name(r, item, "kinds", token_kind_names, KIND_COUNT);
        if (kind < 0) return -1;
        r->e->kinds |= 1u << kind;
    }
    return 0;
}

static int read_layers(const struct reader *r) {
    const json_t *v = json_object_get(r->o, "layers");
    const bool all = !v || (json_is_string(v) && !strcmp(json_string_value(v), "all"));
    int *list = NULL, n = 0;
    if (!all && !json_is_array(v)) return fail(r->err, "\"layers\": expected \"all\" or a list of layers");
    const int status = all ? 0 : read_indices(r, "layers", "the model's layers", r->m->n_layers, &list, &n);
    for (int l = 0; l < r->m->n_layers; l++) r->e->layers[l] = all;
    for (int i = 0; i < n; i++) r->e->layers[list[i]] = true;
    free(list);
    return status;
}

static int read_points(const struct reader *r) {
    const json_t *v = json_object_get(r->o, "points"), *item;
    size_t i;
    if (!json_is_array(v) || !json_array_size(v))
        return fail(r->err, "\"points\" %s; expected a list of attn_out, mlp_out, resid_post", v ? "names none" : "is missing");
    json_array_foreach(v, i, item) {
        const int point = read_name(r, item, "points", points, EDIT_POINTS);
        if (point < 0) return -1;
        r->e->points[point] = true;
    }
    return 0;
}

/* ---- dictionaries and vectors ---- */
static struct edit_sae *dictionary(const struct reader *r, const json_t *o) {
    struct edit_list *l = r->list;
    const char *name;
    if (read_text(r, o, "sae", "a dictionary's folder", &name)) return NULL;
    char *path = path_join(r->folder, name);
    struct edit_sae *s = NULL;
    for (int i = 0; i < l->n_saes; i++)
        if (!strcmp(l->saes[i]->path, path)) s = l->saes[i];
    if (s) {
        free(path);
        return s;
    }
    s = memory_take(1, sizeof *s);
    s->path = path;
    l->saes = memory_grow(l->saes, (size_t)l->n_saes + 1, sizeof(struct edit_sae *));
    l->saes[l->n_saes++] = s;
    if (sae_load(&s->host, path, r->err)) return NULL;
    if (s->host.d != r->m->d_model) {
        fail(r->err, "%s: the dictionary is of width %d, the model's residual stream of %d", path, s->host.d, r->m->d_model);
        return NULL;
    }
    if (s->host.activation == SAE_TOPK && (s->host.K == 0 || s->host.K > s->host.M) && sae_make_topk(&s->host, 0, r->err)) return NULL;
    return s;
}

static int check_fields(const struct reader *r, const json_t *o, const char *const *a, const char *const *b) {
    const char *names[MAX_FIELDS + 4], *field;
    size_t n = 0;
    json_t *value;
    for (; *a; a++) names[n++] = *a;
    for (; b && *b; b++) names[n++] = *b;
    names[n] = NULL;
    json_object_foreach((json_t *)o, field, value) {
        bool known = false;
        for (size_t i = 0; i < n; i++) known = known || !strcmp(field, names[i]);
        const char *near = known ? NULL : nearest_name(field, names);
        if (!known)
            return fail(r->err, "unknown field \"%.64s\"%s%s%s", field, near ? "; did you mean \"" : "", near ? near : "",
                        near ? "\"?" : "");
    }
    return 0;
}

/* A row of a matrix, or the one row of a vector, from a file. */
static int vector_of_file(const struct reader *r, const json_t *v) {
    static const char *const fields[] = {"file", "tensor", "row", NULL};
    const char *file, *tensor;
    const json_t *row = json_object_get(v, "row");
    struct tensors *st = NULL;
    int status = -1;
    if (check_fields(r, v, fields, NULL) || read_text(r, v, "file", "a safetensors file", &file) ||
        read_text(r, v, "tensor", "the name of a tensor in it", &tensor))
        return -1;
    char *path = path_join(r->folder, file);
    if (tensors_open(&st, path, r->err)) goto cleanup;
    const struct tensor *t = tensors_find(st, tensor);
    if (t && t->rank != 1 && t->rank != 2) {
        fail(r->err, "%s: tensor %.128s: expected a vector or a matrix, found rank %d", path, tensor, t->rank);
        goto cleanup;
    }
    const int rank = t ? t->rank : 1;
    t = tensors_require(st, tensor, rank, (const int64_t[]){rank == 1 ? r->m->d_model : -1, r->m->d_model}, r->err);
    if (!t) goto cleanup;
    const int64_t rows = rank == 1 ? 1 : t->shape[0];
    if (!row && rank == 2) {
        fail(r->err, "\"row\" is missing: %s, tensor %.128s has %lld rows", path, tensor, (long long)rows);
        goto cleanup;
    }
    const json_int_t at = row ? json_integer_value(row) : 0;
    if ((row && !json_is_integer(row)) || at < 0 || at >= rows) {
        fail(r->err, "\"row\": expected a row of %s, tensor %.128s: 0 to %lld", path, tensor, (long long)rows - 1);
        goto cleanup;
    }
    tensor_to_f32(t, (size_t)at * (size_t)r->m->d_model, (size_t)r->m->d_model, r->e->vector);
    status = 0;
cleanup:
    tensors_close(st);
    free(path);
    return status;
}

static int vector_of_dictionary(const struct reader *r, const json_t *v) {
    static const char *const fields[] = {"sae", "feature", NULL};
    if (check_fields(r, v, fields, NULL) || !(r->e->sae = dictionary(r, v))) return -1;
    const struct sae_host *s = &r->e->sae->host;
    const json_t *feature = json_object_get(v, "feature");
    if (!feature) return fail(r->err, "\"feature\" is missing: features are 0 to %d", s->M - 1);
    const int f = read_index(r, feature, "feature", "the dictionary's features", s->M);
    if (f < 0) return -1;
    memcpy(r->e->vector, s->D + (size_t)f * (size_t)s->d, (size_t)s->d * sizeof *r->e->vector);
    r->e->features = memory_take(1, sizeof *r->e->features);
    r->e->features[0] = f;
    r->e->n_features = 1;
    return 0;
}

/* e->vector, divided by its length where `unit`. */
static int read_vector(const struct reader *r, bool unit) {
    const json_t *v = json_object_get(r->o, "vector");
    const int C = r->m->d_model;
    double square = 0;
    r->e->vector = memory_take((size_t)C, sizeof *r->e->vector);
    if (!json_is_object(v))
        return fail(r->err, "\"vector\"%s: expected {\"file\": F, \"tensor\": NAME, \"row\": r} or {\"sae\": DIR, \"feature\": f}",
                    v ? "" : " is missing");
    if (json_object_get(v, "sae") ? vector_of_dictionary(r, v) : vector_of_file(r, v)) return error_context(r->err, "\"vector\"");
    for (int c = 0; c < C; c++) square += (double)r->e->vector[c] * (double)r->e->vector[c];
    if (!(square > 0) || !isfinite(square))
        return fail(r->err, "\"vector\": all its values are 0, or one is not finite; expected a direction");
    for (int c = 0; c < C && unit; c++) r->e->vector[c] = (float)((double)r->e->vector[c] / sqrt(square));
    return 0;
}

/* ---- the ops ---- */
static int read_direction(const struct reader *r) {
    const double one = 1;
    bool unit = true;
    if (r->e->op == EDIT_ADD && read_bool(r, "unit", false, &unit)) return -1;
    r->e->unit = unit;
    if (read_points(r) || read_layers(r) || read_number(r, "scale", &one, &r->e->scale) || read_vector(r, unit)) return -1;
    for (int c = 0; c < r->m->d_model; c++)
        if (!isfinite((float)(r->e->scale * (double)r->e->vector[c]))) return fail(r->err, "\"scale\" times the vector is not finite");
    return 0;
}

static int read_means(const struct reader *r) {
    const int width = r->m->n_heads * r->m->head_dim;
    const char *file;
    struct tensors *st = NULL;
    int status = -1;
    if (read_text(r, r->o, "mean", "a safetensors file with blocks.L.attn.hook_z", &file)) return -1;
    char *path = path_join(r->folder, file);
    r->e->mean = memory_take((size_t)r->m->n_layers * (size_t)width, sizeof *r->e->mean);
    if (tensors_open(&st, path, r->err)) goto cleanup;
    for (int l = 0; l < r->m->n_layers; l++) {
        char name[64];
        float *row = r->e->mean + (size_t)l * (size_t)width;
        if (!r->e->layers[l]) continue;
        probe_name(PROBE_ATTN_Z, l, name, sizeof name);
        const struct tensor *t = tensors_require(st, name, 1, (const int64_t[]){width}, r->err);
        if (!t) goto cleanup;
        tensor_to_f32(t, 0, (size_t)width, row);
        for (int c = 0; c < width; c++)
            if (!isfinite(row[c])) {
                fail(r->err, "%s: tensor %s: value %d is not finite", path, name, c);
                goto cleanup;
            }
    }
    status = 0;
cleanup:
    tensors_close(st);
    free(path);
    return status ? error_context(r->err, "\"mean\"") : 0;
}

static int read_heads(const struct reader *r) {
    static const char *const modes[] = {"zero", "mean"};
    const int mode = read_name(r, json_object_get(r->o, "mode"), "mode", modes, 2);
    if (mode < 0 || read_layers(r) || read_indices(r, "heads", "the model's heads", r->m->n_heads, &r->e->heads, &r->e->n_heads)) return -1;
    if (mode == 0 && json_object_get(r->o, "mean")) return fail(r->err, "\"mean\" goes with mode \"mean\"; leave it out");
    return mode == 1 ? read_means(r) : 0;
}

/* "sae" and "layer": where a dictionary is put to work. */
static int read_place(const struct reader *r) {
    char name[64];
    const json_t *v = json_object_get(r->o, "layer");
    if (!v) return fail(r->err, "\"layer\" is missing: the model's layers are 0 to %d", r->m->n_layers - 1);
    const int layer = read_index(r, v, "layer", "the model's layers", r->m->n_layers);
    if (layer < 0 || !(r->e->sae = dictionary(r, r->o))) return -1;
    if (sae_check_plain(&r->e->sae->host, r->err)) return error_context(r->err, "\"sae\"");
    r->e->layers[layer] = true;
    r->e->points[EDIT_RESID_POST] = true;
    probe_name(PROBE_RESID_POST, layer, name, sizeof name);
    const char *hook = r->e->sae->host.hook;
    if (*hook && strcmp(hook, name))
        log_note("%s, edit %d: the dictionary %s is of %s and is used at %s", r->list->path, r->list->n,
                 json_string_value(json_object_get(r->o, "sae")), hook, name);
    return 0;
}

static int read_features(const struct reader *r) {
    static const char *const modes[] = {"subtract", "scale", "clamp"};
    const int mode = read_name(r, json_object_get(r->o, "mode"), "mode", modes, 3);
    if (mode < 0 || read_place(r)) return -1;
    r->e->clamp = mode == 2;
    if (mode == 0 && json_object_get(r->o, "value")) return fail(r->err, "\"value\" goes with the modes scale and clamp; leave it out");
    if (mode > 0 && read_number(r, "value", NULL, &r->e->value)) return -1;
    return read_indices(r, "features", "the dictionary's features", r->e->sae->host.M, &r->e->features, &r->e->n_features);
}

static int read_reconstruct(const struct reader *r) {
    return read_bool(r, "keep_error", true, &r->e->keep_error) || read_place(r) ? -1 : 0;
}

static int read_edit(struct reader *r) {
    static const char *const common[] = {"op", "kinds", "after_image", NULL};
    static int (*const read[EDIT_OPS])(const struct reader *) = {read_direction, read_direction, read_heads, read_features,
                                                                 read_reconstruct};
    const char *names[EDIT_OPS];
    for (int i = 0; i < EDIT_OPS; i++) names[i] = ops[i].name;
    if (!json_is_object(r->o)) return fail(r->err, "expected an object with \"op\"");
    const int op = read_name(r, json_object_get(r->o, "op"), "op", names, EDIT_OPS);
    if (op < 0) return -1;
    r->e->op = (enum edit_op)op;
    r->e->layers = memory_take((size_t)r->m->n_layers, sizeof *r->e->layers);
    if (check_fields(r, r->o, ops[op].fields, common) || read_rows(r) || read[op](r)) return error_context(r->err, "%s", ops[op].name);
    return 0;
}

int edit_list_read(struct edit_list *l, const struct model *m, const json_t *list, const char *path, const char *folder,
                   struct error *err) {
    struct reader r = {.list = l, .m = m, .folder = folder, .err = err};
    size_t i;
    memset(l, 0, sizeof *l);
    if (!m->llm) return fail(err, "%s: %s is a vision tower alone; edits act in a language model", path, m->dir);
    if (!json_is_array(list)) return fail(err, "%s: expected a list of edits, [ {\"op\": ..}, .. ]", path);
    l->path = memory_string(path);
    l->at = memory_take(json_array_size(list) + 1, sizeof *l->at);
    json_array_foreach(list, i, r.o) {
        r.e = &l->at[l->n++];
        if (read_edit(&r)) {
            edit_list_free(l);
            return error_context(err, "%s: edit %zu", path, i + 1);
        }
    }
    return 0;
}

int edit_list_open(struct edit_list *l, const struct model *m, const char *path, struct error *err) {
    char *text = NULL, *folder = path_folder(path);
    size_t size = 0;
    json_error_t where;
    int status = file_read(path, 16 << 20, &text, &size, err);
    memset(l, 0, sizeof *l);
    json_t *top = status ? NULL : json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &where);
    if (status == 0 && !top) status = fail(err, "%s: line %d, column %d: not valid JSON: %s", path, where.line, where.column, where.text);
    if (status == 0) status = edit_list_read(l, m, top, path, folder, err);
    json_decref(top);
    free(text);
    free(folder);
    return status;
}

static void *copied(const void *from, size_t count, size_t bytes) {
    void *to = from ? memory_take(count, bytes) : NULL;
    if (to) memcpy(to, from, count * bytes);
    return to;
}

void edit_list_copy(struct edit_list *copy, const struct edit_list *l, const struct model *m) {
    const size_t L = (size_t)m->n_layers;
    *copy = *l;
    copy->borrows = true;
    copy->path = memory_string(l->path);
    copy->at = copied(l->at, (size_t)l->n + 1, sizeof *l->at);
    for (int i = 0; i < l->n; i++) {
        struct edit *e = &copy->at[i];
        e->layers = copied(e->layers, L, sizeof *e->layers);
        e->vector = copied(e->vector, (size_t)m->d_model, sizeof *e->vector);
        e->heads = copied(e->heads, (size_t)e->n_heads, sizeof *e->heads);
        e->mean = copied(e->mean, L * (size_t)m->n_heads * (size_t)m->head_dim, sizeof *e->mean);
        e->features = copied(e->features, (size_t)e->n_features, sizeof *e->features);
    }
}

void edit_list_add_vector(struct edit_list *l, const struct model *m, int layer, const float *vector, double scale) {
    l->at = memory_grow(l->at, (size_t)l->n + 1, sizeof *l->at);
    struct edit *e = &l->at[l->n++];
    *e = (struct edit){.op = EDIT_ADD, .kinds = (1u << KIND_COUNT) - 1, .after_image = true, .scale = scale};
    e->points[EDIT_RESID_POST] = true;
    e->layers = memory_take((size_t)m->n_layers, sizeof *e->layers);
    e->layers[layer] = true;
    e->vector = copied(vector, (size_t)m->d_model, sizeof *vector);
}

void edit_list_free(struct edit_list *l) {
    for (int i = 0; i < l->n; i++) {
        struct edit *e = &l->at[i];
        free(e->layers), free(e->vector), free(e->heads), free(e->mean), free(e->features);
    }
    for (int i = 0; i < l->n_saes && !l->borrows; i++) {
        if (l->saes[i]->device.dev) sae_free(&l->saes[i]->device);
        sae_host_free(&l->saes[i]->host);
        free(l->saes[i]->barred);
        free(l->saes[i]->path);
        free(l->saes[i]);
    }
    if (!l->borrows) free(l->saes);
    free(l->at);
    free(l->path);
    memset(l, 0, sizeof *l);
}
