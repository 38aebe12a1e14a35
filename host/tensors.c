/* tensors.c - files, shard indices and folders of tensors, opened by mmap, and the table of their names (tensors.h). */
#include "host/tensors.h"
#include "host/file.h"
#include "host/tensors_internal.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILES = 10000 };
#define MAX_INDEX ((size_t)100000000)

struct tensors {
    struct tensor_file *files;
    int n_files;
    struct tensor *tensors;
    int count;
    const struct tensor **by_name; /* sorted */
};

/* ---- one file ---- */
struct tensor_memory {
    struct tensor_memory *next;
    max_align_t bytes[];
};

void *tensor_file_take(struct tensor_file *f, size_t bytes) {
    struct tensor_memory *m = bytes < SIZE_MAX / 2 ? malloc(sizeof *m + bytes) : NULL;
    if (!m) return NULL;
    m->next = f->owned;
    f->owned = m;
    return m->bytes;
}

struct tensor *tensor_file_next(struct tensor_file *f) {
    if (!(f->count & (f->count - 1))) f->tensors = memory_grow(f->tensors, f->count ? 2 * f->count : 1, sizeof *f->tensors);
    return &f->tensors[f->count];
}

int tensor_measure(struct tensor *t, size_t element) {
    bool empty = false;
    t->count = 1;
    for (int i = 0; i < t->rank; i++) empty |= t->shape[i] == 0;
    for (int i = t->rank - 1; !empty && i >= 0; i--) {
        t->stride[i] = (int64_t)t->count;
        if (t->count > SIZE_MAX / 64 / (size_t)t->shape[i]) return -1;
        t->count *= (size_t)t->shape[i];
    }
    if (empty) t->count = 0;
    t->bytes = t->count * element;
    return 0;
}

static void file_close(struct tensor_file *f) {
    for (struct tensor_memory *m = f->owned, *next; m; m = next) {
        next = m->next;
        free(m);
    }
    json_decref(f->header);
    if (f->bytes) munmap((void *)(uintptr_t)f->bytes, f->size);
    free(f->tensors);
    free(f->path);
    *f = (struct tensor_file){0};
}

static int file_map(struct tensor_file *f, struct error *err) {
    int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc = -1;
    if (fd < 0) return fail(err, "%s: cannot be opened: %s", f->path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        fail(err, "%s: not a regular file", f->path);
        goto cleanup;
    }
    f->size = (size_t)st.st_size;
    if (f->size < 10) {
        fail(err, "%s: %zu bytes are too few for a file of tensors", f->path, f->size);
        goto cleanup;
    }
    void *bytes = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED) {
        fail(err, "%s: cannot be mapped: %s", f->path, strerror(errno));
        goto cleanup;
    }
    f->bytes = bytes;
    rc = 0;
cleanup:
    close(fd);
    return rc;
}

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

static bool begins(const struct tensor_file *f, const char *mark, size_t n) { return f->size >= n && !memcmp(f->bytes, mark, n); }

static bool holds_arrays(const struct zip *z) {
    for (size_t i = 0; i < z->count; i++)
        if (ends_with(z->entries[i].name, ".npy")) return true;
    return false;
}

/* By content: what a file is called says little. */
static int file_parse(struct tensor_file *f, struct error *err) {
    static const char lfs[] = "version https://git-lfs";
    if (zip_is(f->bytes, f->size)) {
        struct zip z;
        if (zip_open(&z, f->path, f->bytes, f->size, err)) return -1;
        int rc = holds_arrays(&z) ? npz_read(f, &z, err) : torch_file_read(f, &z, err);
        zip_close(&z);
        return rc;
    }
    if (begins(f, lfs, sizeof lfs - 1)) return fail(err, "%s: a pointer of Git LFS, not the file; fetch it with: git lfs pull", f->path);
    if (f->bytes[8] != '{' && (begins(f, "\x80\2", 2) || begins(f, "\x80\3", 2) || begins(f, "\x80\4", 2)))
        return fail(err,
                    "%s: a bare Python pickle, as torch.save wrote before PyTorch 1.6; save it again with a current torch.save, or as "
                    "safetensors",
                    f->path);
    if (f->bytes[8] != '{' &&
        (ends_with(f->path, ".npz") || ends_with(f->path, ".bin") || ends_with(f->path, ".pt") || ends_with(f->path, ".pth")))
        return fail(err, "%s: not the zip archive that a %s file is; the download is damaged or of another kind", f->path,
                    strrchr(f->path, '.'));
    return safetensors_read(f, err);
}

/* ---- names: sorted, not hashed; a file cannot choose names that make this slow ---- */
static int by_name(const void *a, const void *b) {
    return strcmp((*(const struct tensor *const *)a)->name, (*(const struct tensor *const *)b)->name);
}

static int index_names(struct tensors *st, struct error *err) {
    st->by_name = memory_take((size_t)st->count, sizeof *st->by_name);
    for (int i = 0; i < st->count; i++) st->by_name[i] = &st->tensors[i];
    if (st->count) qsort(st->by_name, (size_t)st->count, sizeof *st->by_name, by_name);
    for (int i = 1; i < st->count; i++)
        if (!by_name(&st->by_name[i - 1], &st->by_name[i]))
            return fail(err, "%s: two tensors are named %s", st->by_name[i]->file, st->by_name[i]->name);
    return 0;
}

/* Adds a file's tensors: all of them (map NULL), or those that the index's map puts into `name`. */
static int add_file(struct tensors *st, const char *path, const json_t *map, const char *name, struct error *err) {
    st->files = memory_grow(st->files, (size_t)st->n_files + 1, sizeof *st->files);
    struct tensor_file *f = &st->files[st->n_files++];
    *f = (struct tensor_file){.path = memory_string(path)};
    if (file_map(f, err) || file_parse(f, err)) return -1;
    if (f->count > (size_t)(INT32_MAX - st->count)) return fail(err, "%s: more than 2^31 tensors", path);
    st->tensors = memory_grow(st->tensors, (size_t)st->count + f->count, sizeof *st->tensors);
    for (size_t i = 0; i < f->count; i++) {
        const char *wanted = map ? json_string_value(json_object_get(map, f->tensors[i].name)) : name;
        if (wanted && !strcmp(wanted, name)) st->tensors[st->count++] = f->tensors[i];
    }
    free(f->tensors);
    f->tensors = NULL;
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
    if (index_names(st, err)) goto cleanup;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, file) {
        if (!tensors_find(st, tensor)) {
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

/* ---- folders ---- */
static int is_index(const struct dirent *e) {
    return e->d_name[0] != '.' && (ends_with(e->d_name, ".safetensors.index.json") || ends_with(e->d_name, ".bin.index.json"));
}

static int is_file_of_tensors(const struct dirent *e) {
    static const char *const endings[] = {".safetensors", ".bin", ".pt", ".pth", ".npz"};
    static const char *const trainers[] = {"training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state"}; /* no weights */
    bool known = false;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) known |= ends_with(e->d_name, endings[i]);
    for (size_t i = 0; i < sizeof trainers / sizeof *trainers; i++) known &= strncmp(e->d_name, trainers[i], strlen(trainers[i])) != 0;
    return known && e->d_name[0] != '.';
}

/* The only file that the filter takes: malloced path in *found, NULL when there is none. Several are an error that names them. */
static int only_file(char **found, const char *folder, int (*filter)(const struct dirent *), struct error *err) {
    struct dirent **list = NULL;
    char names[400] = "";
    int n = scandir(folder, &list, filter, alphasort);
    if (n < 0) return fail(err, "%s: cannot be listed: %s", folder, strerror(errno));
    *found = n == 1 ? path_join(folder, list[0]->d_name) : NULL;
    for (int i = 0; i < n; i++) {
        const size_t used = strlen(names), room = sizeof names - used;
        if (room > strlen(list[i]->d_name) + 8)
            snprintf(names + used, room, "%s%s", i ? ", " : "", list[i]->d_name);
        else if (room > 5 && !ends_with(names, "..."))
            snprintf(names + used, room, "%s", ", ...");
        free(list[i]);
    }
    free(list);
    return n > 1 ? fail(err, "%s: holds %d candidates and no model file: %s; name the file that is meant", folder, n, names) : 0;
}

static int open_folder(struct tensors *st, const char *folder, struct error *err) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                        "pytorch_model.bin.index.json"};
    char *path = NULL;
    for (size_t i = 0; !path && i < sizeof names / sizeof *names; i++) {
        path = path_join(folder, names[i]);
        if (file_exists(path)) continue;
        free(path);
        path = NULL;
    }
    if (!path && only_file(&path, folder, is_index, err)) return -1;
    if (!path && only_file(&path, folder, is_file_of_tensors, err)) return -1;
    if (!path) return fail(err, "%s: holds no file of tensors (.safetensors, .bin, .pt, .pth or .npz)", folder);
    int rc = ends_with(path, ".json") ? open_index(st, path, err) : add_file(st, path, NULL, "", err);
    free(path);
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
    if (rc || (!st->by_name && index_names(st, err))) {
        tensors_close(st);
        return -1;
    }
    *out = st;
    return 0;
}

void tensors_close(struct tensors *st) {
    if (!st) return;
    for (int i = 0; i < st->n_files; i++) file_close(&st->files[i]);
    free(st->files);
    free(st->tensors);
    free(st->by_name);
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
    const struct tensor key = {.name = name}, *wanted = &key;
    const struct tensor **found = st->count ? bsearch(&wanted, st->by_name, (size_t)st->count, sizeof *found, by_name) : NULL;
    return found ? *found : NULL;
}

const char *tensors_metadata(const struct tensors *st, const char *key) {
    for (int i = 0; i < st->n_files; i++) {
        const char *value = json_string_value(json_object_get(st->files[i].metadata, key));
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

void tensors_release(const struct tensors *st, const struct tensor *t) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)t->data, first = (at + page - 1) / page * page,
                    end = (at + t->bytes) / page * page;
    for (int i = 0; i < st->n_files && first < end; i++) {
        const struct tensor_file *f = &st->files[i];
        const uintptr_t start = (uintptr_t)f->bytes;
        if (f->bytes && at >= start && at + t->bytes <= start + f->size) madvise((void *)first, end - first, MADV_DONTNEED);
    }
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
