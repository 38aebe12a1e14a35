/* safetensors.c - the header of a mapped safetensors file; nothing is used before everything is checked.
 * Layout: u64 LE n | n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end)}, "__metadata__": {text: text}} | data;
 * offsets count from byte 8 + n. The regions, sorted, must tile the data without hole or overlap. (formats.md 0.3) */
#include "host/tensors_internal.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HEADER ((size_t)100000000)

static const struct {
    const char *name;
    enum dtype dtype;
    unsigned bits;
} dtypes[] = {
    {"F32", DTYPE_F32, 32},          {"F16", DTYPE_F16, 16},      {"BF16", DTYPE_BF16, 16},
    {"F64", DTYPE_F64, 64},          {"I64", DTYPE_I64, 64},      {"I32", DTYPE_I32, 32},
    {"I16", DTYPE_I16, 16},          {"I8", DTYPE_I8, 8},         {"U8", DTYPE_U8, 8},
    {"BOOL", DTYPE_BOOL, 8},         {"U16", DTYPE_OTHER, 16},    {"U32", DTYPE_OTHER, 32},
    {"U64", DTYPE_OTHER, 64},        {"C64", DTYPE_OTHER, 64},    {"F8_E4M3", DTYPE_OTHER, 8},
    {"F8_E5M2", DTYPE_OTHER, 8},     {"F8_E8M0", DTYPE_OTHER, 8}, {"F6_E2M3", DTYPE_OTHER, 6},
    {"F6_E3M2", DTYPE_OTHER, 6},     {"F4", DTYPE_OTHER, 4},      {"F8_E4M3FNUZ", DTYPE_OTHER, 8},
    {"F8_E5M2FNUZ", DTYPE_OTHER, 8},
};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

const char *dtype_name(enum dtype t) { return t >= 0 && t < DTYPE_OTHER ? dtypes[t].name : "another dtype"; }
size_t dtype_bytes(enum dtype t) { return t >= 0 && t < DTYPE_OTHER ? dtypes[t].bits / 8 : 0; }

/* ---- one entry of a header ---- */
static int entry_shape(struct tensor *t, const json_t *shape, struct error *err) {
    if (!json_is_array(shape)) return fail(err, "%s: tensor %s: 'shape' is missing or no list", t->file, t->name);
    size_t rank = json_array_size(shape);
    if (rank > TENSOR_MAX_RANK)
        return fail(err, "%s: tensor %s: %zu dimensions, at most %d are read", t->file, t->name, rank, TENSOR_MAX_RANK);
    t->rank = (int)rank;
    for (int i = 0; i < t->rank; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return fail(err, "%s: tensor %s: dimension %d of its shape is not a whole number from 0", t->file, t->name, i);
        t->shape[i] = json_integer_value(dim);
    }
    if (tensor_measure(t, 1)) return fail(err, "%s: tensor %s: its shape has more elements than any file can hold", t->file, t->name);
    return 0;
}

/* begin and end are checked against the data's size, shape x bits against end - begin. */
static int entry_read(struct tensor *t, const struct tensor_file *f, const char *name, const json_t *entry, size_t data_at,
                      struct error *err) {
    *t = (struct tensor){.name = name, .file = f->path};
    if (!json_is_object(entry)) return fail(err, "%s: tensor %s: its entry is no JSON object", f->path, name);
    const json_t *offsets = json_object_get(entry, "data_offsets");
    t->dtype_text = json_string_value(json_object_get(entry, "dtype"));
    int d = 0;
    while (t->dtype_text && d < N_DTYPES && strcmp(dtypes[d].name, t->dtype_text) != 0) d++;
    if (!t->dtype_text || d == N_DTYPES)
        return fail(err, "%s: tensor %s: unknown dtype '%.40s'", f->path, name, t->dtype_text ? t->dtype_text : "(none)");
    t->dtype = dtypes[d].dtype;
    if (entry_shape(t, json_object_get(entry, "shape"), err)) return -1;
    const json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to))
        return fail(err, "%s: tensor %s: 'data_offsets' is not a list of two whole numbers", f->path, name);
    json_int_t begin = json_integer_value(from), end = json_integer_value(to);
    json_int_t data_size = (json_int_t)(f->size - data_at);
    if (begin < 0 || end < begin || end > data_size)
        return fail(err,
                    "%s: tensor %s: bytes %" JSON_INTEGER_FORMAT " to %" JSON_INTEGER_FORMAT " lie outside the file's %" JSON_INTEGER_FORMAT
                    " bytes of data; the file is damaged or cut short",
                    f->path, name, begin, end, data_size);
    t->bytes = (size_t)(end - begin);
    size_t bits = t->count * dtypes[d].bits;
    if (bits % 8 || bits / 8 != t->bytes)
        return fail(err, "%s: tensor %s: %zu elements of %s need %zu bytes, its data_offsets give %zu", f->path, name, t->count,
                    t->dtype_text, bits / 8, t->bytes);
    t->data = (const char *)f->bytes + data_at + begin;
    return 0;
}

static int by_place(const void *a, const void *b) {
    const struct tensor *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int check_tiling(const struct tensor_file *f, struct tensor *tensors, size_t n, size_t data_at, struct error *err) {
    if (n) qsort(tensors, n, sizeof *tensors, by_place);
    const char *start = (const char *)f->bytes + data_at, *at = start, *end = (const char *)f->bytes + f->size;
    for (size_t i = 0; i < n; i++) {
        const char *data = tensors[i].data;
        if (data != at)
            return fail(err, "%s: tensor %s begins at byte %td of the data, %s byte %td, where the one before it ends; the file is damaged",
                        f->path, tensors[i].name, data - start, data < at ? "overlapping" : "leaving a hole after", at - start);
        at += tensors[i].bytes;
    }
    if (at != end)
        return fail(err, "%s: the tensors end at byte %td of the data but the file has %td bytes of it; the file is damaged", f->path,
                    at - start, end - start);
    return 0;
}

static int check_metadata(const struct tensor_file *f, const json_t *metadata, struct error *err) {
    if (!metadata) return 0;
    if (!json_is_object(metadata)) return fail(err, "%s: __metadata__ is no JSON object", f->path);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value)
        if (!json_is_string(value)) return fail(err, "%s: __metadata__: the value of '%.80s' is no text", f->path, key);
    return 0;
}

int safetensors_read(struct tensor_file *f, struct error *err) {
    const unsigned char *b = f->bytes;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | b[i];
    if (n > MAX_HEADER)
        return fail(err, "%s: a header of %" PRIu64 " bytes, more than the format's 100000000; this is no safetensors file", f->path, n);
    if (n > f->size - 8)
        return fail(
            err, "%s: its header should have %" PRIu64 " bytes but the file ends after %zu; the file is cut short or no safetensors file",
            f->path, n, f->size);
    if (n < 2 || b[8] != '{') return fail(err, "%s: its header does not begin with '{'; this is no safetensors file", f->path);
    json_error_t bad;
    f->header = json_loadb((const char *)b + 8, (size_t)n, JSON_REJECT_DUPLICATES, &bad);
    if (!f->header) return fail(err, "%s: its header is no valid JSON: byte %d: %s", f->path, bad.position, bad.text);
    if (!json_is_object(f->header)) return fail(err, "%s: its header is no JSON object", f->path);
    if (check_metadata(f, json_object_get(f->header, "__metadata__"), err)) return -1;
    f->metadata = json_object_get(f->header, "__metadata__");
    const char *name;
    json_t *entry;
    json_object_foreach(f->header, name, entry) {
        if (!strcmp(name, "__metadata__")) continue;
        if (entry_read(tensor_file_next(f), f, name, entry, 8 + (size_t)n, err)) return -1;
        f->count++;
    }
    return check_tiling(f, f->tensors, f->count, 8 + (size_t)n, err);
}
