/* format_read.c - what the readers share: configuration values, tensors as f32, and the folds that lead to the canonical form. */
#include "sae/format.h"
#include "host/file.h"
#include <ctype.h>
#include <float.h>
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

static int refuse_value(const struct tensor *t, float value, struct error *err) {
    return fail(err, "%s: tensor %s: expected finite weights, found %g; the file is damaged or its training diverged", t->file, t->name,
                (double)value);
}

/* OpenMOSS puts its tensors into {"sae": ...} where it writes torch files. */
const struct tensor *tensor_named(const struct tensors *st, const char *name) {
    char nested[256];
    const struct tensor *t = tensors_find(st, name);
    snprintf(nested, sizeof nested, "sae.%s", name);
    return t ? t : tensors_find(st, nested);
}

int tensor_load(float **out, const struct tensors *st, const char *name, int rows, int columns, bool transposed, struct error *err) {
    const int64_t dims[2] = {rows, columns};
    const struct tensor *there = tensor_named(st, name),
                        *t = tensors_require(st, there ? there->name : name, columns > 0 ? 2 : 1, dims, err);
    if (!t) return -1;
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_F16 && t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F64)
        return fail(err, "%s: tensor %s: expected floating point (F32, F16, BF16, F64), found %s", t->file, name, dtype_name(t->dtype));
    if (!out) return 0;
    *out = memory_take(t->count, sizeof **out);
    if (transposed)
        load_transposed(*out, t, (size_t)rows, (size_t)columns);
    else
        tensor_to_f32(t, 0, t->count, *out);
    for (size_t i = 0; i < t->count; i++)
        if (!isfinite((*out)[i])) {
            refuse_value(t, (*out)[i], err);
            free(*out);
            *out = NULL;
            return -1;
        }
    return 0;
}

int tensor_number(double *value, const struct tensors *st, const char *name, struct error *err) {
    const struct tensor *t = tensor_named(st, name);
    float v;
    if (!t) return fail(err, "%s: tensor %s is missing", tensors_file(st, 0, NULL), name);
    if (t->dtype == DTYPE_OTHER || t->count != 1)
        return fail(err, "%s: tensor %s: expected one number, found %zu of %s", t->file, name, t->count, t->dtype_text);
    tensor_to_f32(t, 0, 1, &v);
    if (!isfinite(v)) return refuse_value(t, v, err);
    *value = (double)v;
    return 0;
}

int sizes_of(struct sae_host *s, const struct tensors *st, const char *encoder, bool transposed, struct error *err) {
    static const int64_t any[2] = {-1, -1};
    const struct tensor *there = tensor_named(st, encoder), *t = tensors_require(st, there ? there->name : encoder, 2, any, err);
    if (!t) return -1;
    const int64_t M = t->shape[transposed ? 1 : 0], d = t->shape[transposed ? 0 : 1];
    if (M < 1 || d < 1 || M > DIM_MAX || d > DIM_MAX)
        return fail(err, "%s: tensor %s: expected a matrix with 1 to %d rows and columns, found (%lld, %lld)", t->file, encoder, DIM_MAX,
                    (long long)t->shape[0], (long long)t->shape[1]);
    if (s->d == 0) s->d = (int)d;
    if (s->M == 0) s->M = (int)M;
    return 0;
}

float *decoder_norms(const struct sae_host *s) {
    float *n = memory_take((size_t)s->M, sizeof *n);
#pragma omp parallel for schedule(static)
    for (int f = 0; f < s->M; f++) {
        const float *D = s->D + (size_t)f * (size_t)s->d;
        double sum = 0;
        for (int i = 0; i < s->d; i++) sum += (double)D[i] * (double)D[i];
        n[f] = (float)sqrt(sum);
    }
    return n;
}

void fold_decoder_norms(struct sae_host *s) {
    float *norms = decoder_norms(s);
#pragma omp parallel for schedule(static)
    for (int f = 0; f < s->M; f++) {
        float *E = s->E + (size_t)f * (size_t)s->d, *D = s->D + (size_t)f * (size_t)s->d, n = norms[f];
        for (int i = 0; i < s->d; i++) {
            D[i] = n > 0 ? D[i] / n : 0; /* a zero row is a feature that writes nothing: it stays silent */
            E[i] *= n;
        }
        s->b_e[f] *= n;
    }
    free(norms);
}

void fold_pre_bias(struct sae_host *s, double sign) {
#pragma omp parallel for schedule(static)
    for (int f = 0; f < s->M; f++) {
        const float *E = s->E + (size_t)f * (size_t)s->d;
        double shift = 0;
        for (int i = 0; i < s->d; i++) shift += (double)E[i] * (double)s->b_d[i];
        s->b_e[f] = (float)((double)s->b_e[f] - sign * shift);
    }
}

int load_gate(struct sae_host *s, const struct tensors *st, const char *gate, const char *mag, bool arrays, struct error *err) {
    s->activation = SAE_JUMPRELU;
    if (tensor_load(arrays ? &s->threshold : NULL, st, gate, s->M, 0, false, err) ||
        tensor_load(arrays ? &s->b_e : NULL, st, mag, s->M, 0, false, err) ||
        tensor_load(arrays ? &s->rank_scale : NULL, st, "r_mag", s->M, 0, false, err))
        return -1;
    for (int f = 0; arrays && f < s->M; f++) {
        float scale = expf(s->rank_scale[f]);
        if (!(scale >= FLT_MIN && scale <= FLT_MAX))
            return fail(err, "%s: tensor r_mag: feature %d: exp(%g) is no float; the file is damaged or its training diverged",
                        tensors_file(st, 0, NULL), f, (double)s->rank_scale[f]);
        s->rank_scale[f] = scale;
    }
    return 0;
}

void fold_gate(struct sae_host *s, bool pre_bias) {
#pragma omp parallel for schedule(static)
    for (int f = 0; f < s->M; f++) {
        float *E = s->E + (size_t)f * (size_t)s->d;
        const double scale = (double)s->rank_scale[f], mag = (double)s->b_e[f];
        double shift = 0;
        for (int i = 0; i < s->d; i++) {
            shift += (double)E[i] * (double)s->b_d[i];
            E[i] = (float)(scale * (double)E[i]);
        }
        if (!pre_bias) shift = 0;
        s->b_e[f] = (float)(mag - scale * shift);
        s->threshold[f] = (float)fmax(mag - scale * (double)s->threshold[f], 0);
    }
    free(s->rank_scale);
    s->rank_scale = NULL;
}

int layer_of_hook(const char *hook) {
    const char *at = hook ? strstr(hook, "blocks.") : NULL;
    if (!at || !isdigit((unsigned char)at[7])) return -1;
    long n = strtol(at + 7, NULL, 10);
    return n >= 0 && n < 100000 ? (int)n : -1;
}
