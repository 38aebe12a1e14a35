/* safetensors.c - opens safetensors files and sharded folders by mmap; nothing is used before everything is checked.
 * Layout: u64 LE n | n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end)}, "__metadata__": {text: text}} | data;
 * offsets count from byte 8 + n. The regions, sorted, must tile the data without hole or overlap. (formats.md 0.3) */
#include "host/tensors.h"
#include "host/file.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_RANK = 8, MAX_FILES = 10000 };
#define MAX_HEADER ((size_t)100000000)
#define MAX_INDEX  ((size_t)100000000)

struct mapping {
    char *path;
    void *bytes;
    size_t size;
    json_t *header; /* owns the names and dtype texts that tensors borrow */
};
struct tensors {
    struct mapping *files;
    int n_files;
    struct tensor *tensors;
    int count;
    int *slots; /* open addressing, -1: empty */
    size_t n_slots;
};

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
    if (rank > MAX_RANK) return fail(err, "%s: tensor %s: %zu dimensions, at most %d are read", t->file, t->name, rank, MAX_RANK);
    t->rank = (int)rank;
    t->count = 1;
    bool empty = false, overflow = false;
    for (int i = 0; i < t->rank; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return fail(err, "%s: tensor %s: dimension %d of its shape is not a whole number from 0", t->file, t->name, i);
        t->shape[i] = json_integer_value(dim);
        empty |= t->shape[i] == 0;
        size_t d = (size_t)t->shape[i];
        if (d && t->count > SIZE_MAX / 64 / d)
            overflow = true;
        else if (d)
            t->count *= d;
    }
    if (overflow && !empty) return fail(err, "%s: tensor %s: its shape has more elements than any file can hold", t->file, t->name);
    if (empty) t->count = 0;
    return 0;
}

/* begin and end are checked against the data's size, shape x bits against end - begin. */
static int entry_read(struct tensor *t, const struct mapping *m, const char *name, const json_t *entry, size_t data_at, struct error *err) {
    *t = (struct tensor){.name = name, .file = m->path};
    if (!json_is_object(entry)) return fail(err, "%s: tensor %s: its entry is no JSON object", m->path, name);
    const json_t *offsets = json_object_get(entry, "data_offsets");
    t->dtype_text = json_string_value(json_object_get(entry, "dtype"));
    int d = 0;
    while (t->dtype_text && d < N_DTYPES && strcmp(dtypes[d].name, t->dtype_text) != 0) d++;
    if (!t->dtype_text || d == N_DTYPES)
        return fail(err, "%s: tensor %s: unknown dtype '%.40s'", m->path, name, t->dtype_text ? t->dtype_text : "(none)");
    t->dtype = dtypes[d].dtype;
    if (entry_shape(t, json_object_get(entry, "shape"), err)) return -1;
    const json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to))
        return fail(err, "%s: tensor %s: 'data_offsets' is not a list of two whole numbers", m->path, name);
    json_int_t begin = json_integer_value(from), end = json_integer_value(to);
    json_int_t data_size = (json_int_t)(m->size - data_at);
    if (begin < 0 || end < begin || end > data_size)
        return fail(err,
                    "%s: tensor %s: bytes %" JSON_INTEGER_FORMAT " to %" JSON_INTEGER_FORMAT " lie outside the file's %" JSON_INTEGER_FORMAT
                    " bytes of data; the file is damaged or cut short",
                    m->path, name, begin, end, data_size);
    t->bytes = (size_t)(end - begin);
    size_t bits = t->count * dtypes[d].bits;
    if (t->count > SIZE_MAX / 64 || bits % 8 || bits / 8 != t->bytes)
        return fail(err, "%s: tensor %s: %zu elements of %s need %zu bytes, its data_offsets give %zu", m->path, name, t->count,
                    t->dtype_text, bits / 8, t->bytes);
    t->data = (const char *)m->bytes + data_at + begin;
    return 0;
}

static int by_place(const void *a, const void *b) {
    const struct tensor *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int check_tiling(const struct mapping *m, struct tensor *tensors, size_t n, size_t data_at, struct error *err) {
    qsort(tensors, n, sizeof *tensors, by_place);
    const char *start = (const char *)m->bytes + data_at, *at = start, *end = (const char *)m->bytes + m->size;
    for (size_t i = 0; i < n; i++) {
        const char *data = tensors[i].data;
        if (data != at)
            return fail(err, "%s: tensor %s begins at byte %td of the data, %s byte %td, where the one before it ends; the file is damaged",
                        m->path, tensors[i].name, data - start, data < at ? "overlapping" : "leaving a hole after", at - start);
        at += tensors[i].bytes;
    }
    if (at != end)
        return fail(err, "%s: the tensors end at byte %td of the data but the file has %td bytes of it; the file is damaged", m->path,
                    at - start, end - start);
    return 0;
}

static int check_metadata(const struct mapping *m, const json_t *metadata, struct error *err) {
    if (!metadata) return 0;
    if (!json_is_object(metadata)) return fail(err, "%s: __metadata__ is no JSON object", m->path);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value)
        if (!json_is_string(value)) return fail(err, "%s: __metadata__: the value of '%.80s' is no text", m->path, key);
    return 0;
}

/* ---- one file ---- */
static void mapping_close(struct mapping *m) {
    json_decref(m->header);
    if (m->bytes) munmap(m->bytes, m->size);
    free(m->path);
    *m = (struct mapping){0};
}

static int mapping_open(struct mapping *m, const char *path, struct error *err) {
    *m = (struct mapping){.path = memory_string(path)};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc = -1;
    if (fd < 0) return fail(err, "%s: cannot be opened: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        fail(err, "%s: not a regular file", path);
        goto cleanup;
    }
    m->size = (size_t)st.st_size;
    if (m->size < 10) {
        fail(err, "%s: %zu bytes are too few for a safetensors file", path, m->size);
        goto cleanup;
    }
    void *bytes = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED) {
        fail(err, "%s: cannot be mapped: %s", path, strerror(errno));
        goto cleanup;
    }
    m->bytes = bytes;
    rc = 0;
cleanup:
    close(fd);
    return rc;
}

/* Parses the header of m; *out gets the tensors in the order of their data. */
static int mapping_parse(struct mapping *m, struct tensor **out, size_t *count, struct error *err) {
    const unsigned char *b = m->bytes;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | b[i];
    if (n > MAX_HEADER)
        return fail(err, "%s: a header of %" PRIu64 " bytes, more than the format's 100000000; this is no safetensors file", m->path, n);
    if (n > m->size - 8)
        return fail(
            err, "%s: its header should have %" PRIu64 " bytes but the file ends after %zu; the file is cut short or no safetensors file",
            m->path, n, m->size);
    if (n < 2 || b[8] != '{') return fail(err, "%s: its header does not begin with '{'; this is no safetensors file", m->path);
    json_error_t bad;
    m->header = json_loadb((const char *)b + 8, (size_t)n, JSON_REJECT_DUPLICATES, &bad);
    if (!m->header) return fail(err, "%s: its header is no valid JSON: byte %d: %s", m->path, bad.position, bad.text);
    if (!json_is_object(m->header)) return fail(err, "%s: its header is no JSON object", m->path);
    if (check_metadata(m, json_object_get(m->header, "__metadata__"), err)) return -1;
    struct tensor *tensors = memory_take(json_object_size(m->header), sizeof *tensors);
    size_t used = 0;
    const char *name;
    json_t *entry;
    json_object_foreach(m->header, name, entry) {
        if (!strcmp(name, "__metadata__")) continue;
        if (entry_read(&tensors[used++], m, name, entry, 8 + (size_t)n, err)) {
            free(tensors);
            return -1;
        }
    }
    if (check_tiling(m, tensors, used, 8 + (size_t)n, err)) {
        free(tensors);
        return -1;
    }
    *out = tensors;
    *count = used;
    return 0;
}

/* ---- the table of names ---- */
static size_t hash_name(const char *name) {
    uint64_t h = 1469598103934665603u;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 1099511628211u;
    return (size_t)(h ^ h >> 29);
}

static size_t slot_of(const struct tensors *st, const char *name) {
    size_t i = hash_name(name) & (st->n_slots - 1);
    while (st->slots[i] >= 0 && strcmp(st->tensors[st->slots[i]].name, name) != 0) i = (i + 1) & (st->n_slots - 1);
    return i;
}

static void index_names(struct tensors *st) {
    st->n_slots = 16;
    while (st->n_slots < 2 * (size_t)st->count) st->n_slots *= 2;
    st->slots = memory_take(st->n_slots, sizeof *st->slots);
    for (size_t i = 0; i < st->n_slots; i++) st->slots[i] = -1;
    for (int i = 0; i < st->count; i++) st->slots[slot_of(st, st->tensors[i].name)] = i;
}

/* Adds a file's tensors: all of them (map NULL), or those that the index's map puts into `name`. */
static int add_file(struct tensors *st, const char *path, const json_t *map, const char *name, struct error *err) {
    st->files = memory_grow(st->files, (size_t)st->n_files + 1, sizeof *st->files);
    struct mapping *m = &st->files[st->n_files++];
    struct tensor *tensors = NULL;
    size_t n = 0;
    if (mapping_open(m, path, err) || mapping_parse(m, &tensors, &n, err)) return -1;
    if (n > (size_t)(INT32_MAX - st->count)) {
        free(tensors);
        return fail(err, "%s: more than 2^31 tensors", path);
    }
    st->tensors = memory_grow(st->tensors, (size_t)st->count + n, sizeof *st->tensors);
    for (size_t i = 0; i < n; i++) {
        const char *wanted = map ? json_string_value(json_object_get(map, tensors[i].name)) : name;
        if (wanted && !strcmp(wanted, name)) st->tensors[st->count++] = tensors[i];
    }
    free(tensors);
    return 0;
}

/* ---- sharded folders ---- */
static bool leaves_folder(const char *name) {
    if (!*name || *name == '/') return true;
    for (const char *part = name; part; part = strchr(part, '/')) {
        part += *part == '/';
        if (!strncmp(part, "..", 2) && (part[2] == '/' || !part[2])) return true;
    }
    return false;
}

/* Opens each file that the map names, once; every tensor of the map must be in its file. */
static int add_shards(struct tensors *st, const char *index_path, const json_t *map, struct error *err) {
    char *folder = path_folder(index_path);
    json_t *seen = json_object();
    const char *tensor;
    json_t *file;
    int rc = -1;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, file) {
        const char *name = json_string_value(file);
        if (!name || leaves_folder(name)) {
            fail(err, "%s: tensor %s is said to be in '%s'; a file name inside the same folder is needed", index_path, tensor,
                 name ? name : "(no text)");
            goto cleanup;
        }
        if (json_object_get(seen, name)) continue;
        if (json_object_size(seen) >= MAX_FILES) {
            fail(err, "%s: names more than %d files", index_path, MAX_FILES);
            goto cleanup;
        }
        json_object_set_new(seen, name, json_true());
        char *path = path_join(folder, name);
        bool there = access(path, F_OK) == 0;
        if (!there) fail(err, "%s: the shard %s that it names is not there; the download is incomplete", index_path, name);
        int failed = !there || add_file(st, path, map, name, err);
        free(path);
        if (failed) goto cleanup;
    }
    index_names(st);
    json_object_foreach((json_t *)(uintptr_t)map, tensor, file) {
        if (st->slots[slot_of(st, tensor)] < 0) {
            fail(err, "%s: tensor %s is not in the file %s that the index names", index_path, tensor, json_string_value(file));
            goto cleanup;
        }
    }
    rc = 0;
cleanup:
    json_decref(seen);
    free(folder);
    return rc;
}

static int open_index(struct tensors *st, const char *path, struct error *err) {
    char *text = NULL;
    size_t size;
    if (file_read(path, MAX_INDEX, &text, &size, err)) return -1;
    json_error_t bad;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &bad);
    free(text);
    if (!root) return fail(err, "%s:%d: no valid JSON: %s", path, bad.line, bad.text);
    const json_t *map = json_object_get(root, "weight_map");
    int rc = json_is_object(map) ? add_shards(st, path, map, err) : fail(err, "%s: 'weight_map' is missing or no JSON object", path);
    json_decref(root);
    return rc;
}

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

/* The only file in the folder whose name ends so; NULL with *n, how many there are. Malloced path. */
static char *only_file(const char *folder, const char *ending, int *n) {
    DIR *dir = opendir(folder);
    char *found = NULL;
    *n = 0;
    for (const struct dirent *e; dir && (e = readdir(dir));)
        if (e->d_name[0] != '.' && ends_with(e->d_name, ending) && (*n)++ == 0) found = path_join(folder, e->d_name);
    if (dir) closedir(dir);
    if (*n != 1) {
        free(found);
        found = NULL;
    }
    return found;
}

static int open_folder(struct tensors *st, const char *folder, struct error *err) {
    int n, n_index, rc;
    char *one = path_join(folder, "model.safetensors"), *index = path_join(folder, "model.safetensors.index.json");
    char *only = only_file(folder, ".safetensors", &n), *only_index = only_file(folder, ".safetensors.index.json", &n_index);
    if (file_exists(one))
        rc = add_file(st, one, NULL, "", err);
    else if (file_exists(index))
        rc = open_index(st, index, err);
    else if (only_index)
        rc = open_index(st, only_index, err);
    else if (only)
        rc = add_file(st, only, NULL, "", err);
    else if (n > 1)
        rc =
            fail(err, "%s: holds %d .safetensors files and neither model.safetensors nor an index; name the file that is meant", folder, n);
    else
        rc = fail(err, "%s: holds no .safetensors file", folder);
    free(one);
    free(index);
    free(only);
    free(only_index);
    return rc;
}

/* ---- the interface ---- */
int tensors_open(struct tensors **out, const char *path, struct error *err) {
    struct tensors *st = memory_take(1, sizeof *st);
    *out = NULL;
    int rc;
    if (dir_exists(path))
        rc = open_folder(st, path, err);
    else if (ends_with(path, ".json"))
        rc = open_index(st, path, err);
    else
        rc = add_file(st, path, NULL, "", err);
    if (rc) {
        tensors_close(st);
        return -1;
    }
    if (!st->slots) index_names(st);
    *out = st;
    return 0;
}

void tensors_close(struct tensors *st) {
    if (!st) return;
    for (int i = 0; i < st->n_files; i++) mapping_close(&st->files[i]);
    free(st->files);
    free(st->tensors);
    free(st->slots);
    free(st);
}

int tensors_count(const struct tensors *st) { return st->count; }
const struct tensor *tensors_at(const struct tensors *st, int i) { return i >= 0 && i < st->count ? &st->tensors[i] : NULL; }
int tensors_files(const struct tensors *st) { return st->n_files; }

const char *tensors_file(const struct tensors *st, int i, size_t *bytes) {
    if (i < 0 || i >= st->n_files) return NULL;
    if (bytes) *bytes = st->files[i].size;
    return st->files[i].path;
}

const struct tensor *tensors_find(const struct tensors *st, const char *name) {
    int i = st->slots[slot_of(st, name)];
    return i < 0 ? NULL : &st->tensors[i];
}

const char *tensors_metadata(const struct tensors *st, const char *key) {
    for (int i = 0; i < st->n_files; i++) {
        const char *value = json_string_value(json_object_get(json_object_get(st->files[i].header, "__metadata__"), key));
        if (value) return value;
    }
    return NULL;
}

static void write_shape(char *out, size_t size, int rank, const int64_t *dims) {
    size_t used = (size_t)snprintf(out, size, "(");
    for (int i = 0; i < rank && used + 24 < size; i++)
        used += (size_t)(dims[i] < 0 ? snprintf(out + used, size - used, "%s*", i ? ", " : "")
                                     : snprintf(out + used, size - used, "%s%" PRId64, i ? ", " : "", dims[i]));
    snprintf(out + used, size - used, ")");
}

const struct tensor *tensors_require(const struct tensors *st, const char *name, int n_dims, const int64_t *dims, struct error *err) {
    const struct tensor *t = tensors_find(st, name);
    if (!t) {
        fail(err, "%s: tensor %s is missing", st->n_files ? st->files[0].path : "(no file)", name);
        return NULL;
    }
    bool same = t->rank == n_dims;
    for (int i = 0; same && i < n_dims; i++) same = dims[i] < 0 || dims[i] == t->shape[i];
    if (!same) {
        char found[256], expected[256];
        write_shape(found, sizeof found, t->rank, t->shape);
        write_shape(expected, sizeof expected, n_dims, dims);
        fail(err, "%s: tensor %s: expected shape %s, found %s", t->file, name, expected, found);
        return NULL;
    }
    if (t->dtype == DTYPE_OTHER) {
        fail(err, "%s: tensor %s: dtype %s is not supported; F32, F16, BF16, F64 and integers are", t->file, name, t->dtype_text);
        return NULL;
    }
    return t;
}
