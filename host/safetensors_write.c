/* safetensors_write.c - declares tensors, then writes header and data in one go to a file that appears whole or not at all. */
#include "host/file.h"
#include "host/tensors.h"
#include "host/check.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    const void *data;
    void *owned;
    size_t bytes;
};
struct safetensors_writer {
    struct file_writer file;
    json_t *header;
    struct entry *entries;
    size_t n, capacity;
    size_t data_bytes;
};

int safetensors_writer_open(struct safetensors_writer **out, const char *path, struct error *err) {
    struct safetensors_writer *w = memory_take(1, sizeof *w);
    *out = NULL;
    if (file_writer_open(&w->file, path, err)) {
        free(w);
        return -1;
    }
    w->header = json_object();
    *out = w;
    return 0;
}

void safetensors_writer_metadata(struct safetensors_writer *w, const char *key, const char *value) {
    json_t *metadata = json_object_get(w->header, "__metadata__");
    if (!metadata) {
        metadata = json_object();
        json_object_set_new(w->header, "__metadata__", metadata);
    }
    json_t *text = json_string(value);
    CHECK(text, "metadata %s is not UTF-8", key);
    json_object_set_new(metadata, key, text);
}

static void add(struct safetensors_writer *w, const char *name, enum dtype dtype, int rank, const int64_t *shape, const void *data,
                void *owned) {
    CHECK(dtype != DTYPE_OTHER && rank >= 0 && rank <= 8, "%s: dtype %d, rank %d", name, (int)dtype, rank);
    CHECK(!json_object_get(w->header, name), "tensor %s is declared twice", name);
    size_t bytes = dtype_bytes(dtype);
    json_t *dims = json_array();
    for (int i = 0; i < rank; i++) {
        CHECK(shape[i] >= 0, "%s: dimension %d is %lld", name, i, (long long)shape[i]);
        bytes *= (size_t)shape[i];
        json_array_append_new(dims, json_integer(shape[i]));
    }
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(dtype), "shape", dims, "data_offsets", (json_int_t)w->data_bytes,
                              (json_int_t)(w->data_bytes + bytes));
    CHECK(entry && !json_object_set_new(w->header, name, entry), "tensor name %s is not UTF-8", name);
    if (w->n == w->capacity) {
        w->capacity = w->capacity ? 2 * w->capacity : 64;
        w->entries = memory_grow(w->entries, w->capacity, sizeof *w->entries);
    }
    w->entries[w->n++] = (struct entry){data, owned, bytes};
    w->data_bytes += bytes;
}

void safetensors_writer_add(struct safetensors_writer *w, const char *name, enum dtype dtype, int rank, const int64_t *shape,
                            const void *data) {
    add(w, name, dtype, rank, shape, data, NULL);
}

void safetensors_writer_give(struct safetensors_writer *w, const char *name, enum dtype dtype, int rank, const int64_t *shape, void *data) {
    add(w, name, dtype, rank, shape, data, data);
}

static void release(struct safetensors_writer *w) {
    for (size_t i = 0; i < w->n; i++) free(w->entries[i].owned);
    free(w->entries);
    json_decref(w->header);
    free(w);
}

int safetensors_writer_commit(struct safetensors_writer *w, struct error *err) {
    char *json = json_dumps(w->header, JSON_COMPACT);
    CHECK(json, "the header of %s cannot be written as JSON", w->file.path);
    size_t n = strlen(json), padded = (n + 7) & ~(size_t)7;
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    FILE *f = w->file.stream;
    fwrite(prefix, 1, 8, f);
    fwrite(json, 1, n, f);
    fwrite("        ", 1, padded - n, f);
    for (size_t i = 0; i < w->n && !ferror(f); i++)
        if (w->entries[i].bytes) fwrite(w->entries[i].data, 1, w->entries[i].bytes, f);
    free(json);
    int rc = file_writer_commit(&w->file, err);
    release(w);
    return rc;
}

void safetensors_writer_abort(struct safetensors_writer *w) {
    if (!w) return;
    file_writer_abort(&w->file);
    release(w);
}
