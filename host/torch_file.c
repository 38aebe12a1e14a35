/* torch_file.c - tensors of a torch.save file (.pt, .pth, .bin), by mmap: a zip of stored entries <name>/data.pkl (a pickle),
 * <name>/data/<key> (a storage: raw elements) and, since 2.1, <name>/byteorder. (formats.md 4.x)
 * In the pickle a tensor is the call _rebuild_tensor_v2(storage, offset, size, stride, ...) and a storage the persistent id
 * ("storage", class, key, device, elements). Nested dictionaries give names joined by dots: {"sae": {"W": ...}} holds sae.W.
 * Numbers and texts beside tensors become metadata under such names; lists, tuples and None are passed over. */
#include "host/pickle.h"
#include "host/tensors_internal.h"
#include "host/file.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_NAME = 1024,
    MAX_DEPTH = 32,
    NAMES_PER_BYTE = 16,    /* a dictionary that stands in two places gives its names twice: all names together take at most */
    NAMES_ALWAYS = 1 << 16, /* NAMES_ALWAYS + NAMES_PER_BYTE x the pickle's size */
};

enum { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, FIRST_STORAGE };
static const char *const globals[] = {"collections.OrderedDict",
                                      "torch._utils._rebuild_tensor_v2",
                                      "torch._utils._rebuild_parameter",
                                      "torch.FloatStorage",
                                      "torch.HalfStorage",
                                      "torch.BFloat16Storage",
                                      "torch.DoubleStorage",
                                      "torch.LongStorage",
                                      "torch.IntStorage",
                                      "torch.ShortStorage",
                                      "torch.CharStorage",
                                      "torch.ByteStorage",
                                      "torch.BoolStorage",
                                      NULL};
/* globals[FIRST_STORAGE + t] is the class of dtype t */
_Static_assert(DTYPE_F32 == 0 && DTYPE_F16 == 1 && DTYPE_BF16 == 2 && DTYPE_F64 == 3 && DTYPE_I64 == 4 && DTYPE_I32 == 5 &&
                   DTYPE_I16 == 6 && DTYPE_I8 == 7 && DTYPE_U8 == 8 && DTYPE_BOOL == 9,
               "the order of the storage classes");

struct reader {
    struct tensor_file *f;
    const struct zip *z;
    char *folder; /* <name> */
    char *where;  /* "path: <name>/data.pkl" */
    char name[MAX_NAME];
    size_t budget; /* bytes of names and texts, and dictionary entries, still allowed: shared ones could multiply without end */
    struct error *err;
};

static bool is_list(struct pickle_value v, enum pickle_kind kind, size_t at_least) { return v.kind == kind && v.list->n >= at_least; }
static bool is_call(struct pickle_value v, int64_t global, size_t arguments) {
    return v.kind == PICKLE_CALL && v.list->items[0].whole == global && v.list->items[1].list->n >= arguments;
}

/* ---- a tensor ---- */
static int bad_tensor(const struct reader *r, const char *what) { return fail(r->err, "%s: tensor %s: %s", r->where, r->name, what); }

/* ("storage", class, key, device, elements) -> its bytes in the file */
static int find_storage(const struct reader *r, struct pickle_value id, struct tensor *t, size_t *elements) {
    const struct pickle_value *p =
        is_list(id, PICKLE_PERSISTENT, 1) && is_list(id.list->items[0], PICKLE_TUPLE, 5) ? id.list->items[0].list->items : NULL;
    if (!p || p[0].kind != PICKLE_TEXT || p[0].n != 7 || memcmp(p[0].text, "storage", 7) != 0 || p[1].kind != PICKLE_GLOBAL ||
        p[1].whole < FIRST_STORAGE || p[2].kind != PICKLE_TEXT || p[4].kind != PICKLE_INT || p[4].whole < 0)
        return bad_tensor(r, "its storage is not given as (\"storage\", class, key, device, elements)");
    t->dtype = (enum dtype)(p[1].whole - FIRST_STORAGE);
    t->dtype_text = dtype_name(t->dtype);
    *elements = (size_t)p[4].whole;
    const size_t room = strlen(r->folder) + sizeof "/data/" + p[2].n;
    char *entry = memory_take(room, 1);
    snprintf(entry, room, "%s/data/%.*s", r->folder, (int)p[2].n, p[2].text);
    const struct zip_entry *e = zip_find(r->z, entry);
    int rc = 0;
    if (!e)
        rc = fail(r->err, "%s: tensor %s: its storage %.200s is not in the file", r->where, r->name, entry);
    else if (e->deflated)
        rc = fail(r->err, "%s: tensor %s: its storage %.200s is compressed; torch stores it as it is: save it again with torch.save",
                  r->where, r->name, entry);
    else if (*elements > e->size / dtype_bytes(t->dtype))
        rc = fail(r->err, "%s: tensor %s: its storage %.200s should have %zu elements of %s but has %zu bytes", r->where, r->name, entry,
                  *elements, t->dtype_text, e->size);
    else
        t->data = e->data;
    free(entry);
    return rc;
}

/* Shape and strides; every element must lie inside the storage, and there may not be more of them than the storage has. */
static int set_shape(const struct reader *r, struct tensor *t, const struct pickle_value *arguments, size_t elements) {
    const struct pickle_list *size = arguments[2].list, *stride = arguments[3].list;
    if (arguments[1].kind != PICKLE_INT || arguments[1].whole < 0 || size->n != stride->n)
        return bad_tensor(r, "its offset, size and stride do not fit together");
    if (size->n > TENSOR_MAX_RANK)
        return fail(r->err, "%s: tensor %s: %zu dimensions, at most %d are read", r->where, r->name, size->n, TENSOR_MAX_RANK);
    t->rank = (int)size->n;
    for (int i = 0; i < t->rank; i++) {
        if (size->items[i].kind != PICKLE_INT || size->items[i].whole < 0 || stride->items[i].kind != PICKLE_INT ||
            stride->items[i].whole < 0)
            return fail(r->err, "%s: tensor %s: dimension %d: size and stride must be whole numbers from 0", r->where, r->name, i);
        t->shape[i] = size->items[i].whole;
    }
    if (tensor_measure(t, dtype_bytes(t->dtype))) return bad_tensor(r, "its shape has more elements than any file can hold");
    const size_t offset = (size_t)arguments[1].whole;
    size_t last = offset;
    bool inside = offset <= elements;
    for (int i = 0; t->count && i < t->rank; i++) {
        const size_t steps = (size_t)t->shape[i] - 1, step = (size_t)stride->items[i].whole;
        inside = inside && (!steps || step <= (elements - last) / steps);
        if (inside) last += steps * step;
        t->strided = t->strided || (steps && stride->items[i].whole != t->stride[i]);
        t->stride[i] = stride->items[i].whole;
    }
    if (!inside || (t->count && last >= elements))
        return fail(r->err, "%s: tensor %s: offset, size and stride lead outside its storage of %zu elements; the file is damaged",
                    r->where, r->name, elements);
    if (t->count > elements)
        return fail(r->err,
                    "%s: tensor %s: an expanded view: %zu elements out of %zu stored ones; save it again after .contiguous() or .clone()",
                    r->where, r->name, t->count, elements);
    t->data = (const char *)t->data + offset * dtype_bytes(t->dtype);
    return 0;
}

/* v: _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks...), or a parameter around it */
static int add_tensor(struct reader *r, struct pickle_value v) {
    if (is_call(v, REBUILD_PARAMETER, 1)) v = v.list->items[1].list->items[0];
    const struct pickle_value *arguments = is_call(v, REBUILD_TENSOR, 4) ? v.list->items[1].list->items : NULL;
    if (!arguments || arguments[2].kind != PICKLE_TUPLE || arguments[3].kind != PICKLE_TUPLE)
        return fail(r->err, "%s: %s: expected the call of a tensor with storage, offset, size and stride", r->where, r->name);
    struct tensor t = {.file = r->f->path};
    size_t elements = 0, n = strlen(r->name) + 1;
    if (find_storage(r, arguments[0], &t, &elements) || set_shape(r, &t, arguments, elements)) return -1;
    char *name = tensor_file_take(r->f, n);
    if (!name) return bad_tensor(r, "out of memory for its name");
    t.name = memcpy(name, r->name, n);
    *tensor_file_next(r->f) = t;
    r->f->count++;
    return 0;
}

/* ---- the tree ---- */
static int spend(struct reader *r, size_t bytes) {
    if (bytes > r->budget)
        return fail(r->err, "%s: %s: shared dictionaries or names repeat beyond %d times the pickle's size", r->where, r->name,
                    NAMES_PER_BYTE);
    r->budget -= bytes;
    return 0;
}

/* Appends ".key" to the name of `used` bytes. 1: a key that names nothing (None, a tuple), passed over. */
static int push_key(struct reader *r, size_t used, struct pickle_value key) {
    char number[24];
    const char *text = number;
    size_t n = key.n;
    if (key.kind == PICKLE_INT)
        n = (size_t)snprintf(number, sizeof number, "%" PRId64, key.whole);
    else if (key.kind == PICKLE_TEXT)
        text = key.text;
    else
        return 1;
    json_t *valid = json_stringn(text, n);
    json_decref(valid);
    if (!valid || memchr(text, 0, n)) return fail(r->err, "%s: a key under '%s' is not UTF-8 or holds a zero byte", r->where, r->name);
    if (used + (used > 0) + n + 1 > sizeof r->name)
        return fail(r->err, "%s: a key under '%.200s' makes a name of more than %d bytes", r->where, r->name, MAX_NAME - 1);
    if (used) r->name[used++] = '.';
    memcpy(r->name + used, text, n);
    r->name[used + n] = 0;
    return spend(r, used + n + 1);
}

static int add_metadata(struct reader *r, struct pickle_value v) {
    char number[40];
    json_t *text = NULL;
    if (v.kind == PICKLE_TEXT) {
        if (spend(r, v.n)) return -1;
        text = json_stringn(v.text, v.n); /* NULL: not UTF-8, passed over */
    } else {
        if (v.kind == PICKLE_FLOAT)
            snprintf(number, sizeof number, "%.17g", v.real);
        else
            snprintf(number, sizeof number, "%" PRId64, v.whole);
        text = json_string(number);
    }
    if (text) json_object_set_new(r->f->metadata, r->name, text);
    return 0;
}

static int walk(struct reader *r, struct pickle_value v, size_t used, int depth) {
    switch (v.kind) {
    case PICKLE_CALL:
        return add_tensor(r, v);
    case PICKLE_BOOL:
    case PICKLE_INT:
    case PICKLE_FLOAT:
    case PICKLE_TEXT:
        return add_metadata(r, v);
    case PICKLE_DICT:
        if (depth == MAX_DEPTH) return fail(r->err, "%s: '%.200s' is nested deeper than %d dictionaries", r->where, r->name, MAX_DEPTH);
        for (size_t i = 0; i + 1 < v.list->n; i += 2) {
            const int rc = push_key(r, used, v.list->items[i]);
            if (rc < 0 || (!rc && walk(r, v.list->items[i + 1], strlen(r->name), depth + 1))) return -1;
            r->name[used] = 0;
        }
        return 0;
    default:
        return 0;
    }
}

/* ---- the archive ---- */
/* <name> of the one entry <name>/data.pkl; malloced, NULL when there is none or several. */
static char *find_folder(const struct zip *z) {
    static const char end[] = "/data.pkl";
    char *folder = NULL;
    for (size_t i = 0; i < z->count; i++) {
        const char *slash = strchr(z->entries[i].name, '/');
        if (!slash || strcmp(slash, end) != 0) continue;
        if (folder) {
            free(folder);
            return NULL;
        }
        folder = memory_string(z->entries[i].name);
        folder[slash - z->entries[i].name] = 0;
    }
    return folder;
}

static int check_byteorder(const struct reader *r) {
    char *entry = path_join(r->folder, "byteorder");
    const struct zip_entry *e = zip_find(r->z, entry);
    const bool little = !e || (!e->deflated && e->size == 6 && !memcmp(e->data, "little", 6));
    free(entry);
    return little ? 0 : fail(r->err, "%s: its byteorder is not little; save it again on a little-endian machine", r->f->path);
}

int torch_file_read(struct tensor_file *f, const struct zip *z, struct error *err) {
    struct reader r = {.f = f, .z = z, .folder = find_folder(z), .err = err};
    struct pickle p = {0};
    int rc = -1;
    if (!r.folder) return fail(err, "%s: a zip archive, but neither a torch file (one NAME/data.pkl) nor an npz (*.npy)", f->path);
    char *entry = path_join(r.folder, "data.pkl");
    const struct zip_entry *e = zip_find(z, entry);
    const size_t room = strlen(f->path) + strlen(entry) + 3;
    r.where = memory_take(room, 1);
    snprintf(r.where, room, "%s: %s", f->path, entry);
    f->metadata = f->header = json_object();
    r.budget = NAMES_ALWAYS + NAMES_PER_BYTE * e->size;
    if (e->deflated)
        fail(err, "%s: is compressed; torch stores it as it is: save it again with torch.save", r.where);
    else if (!check_byteorder(&r) && !pickle_read(&p, r.where, e->data, e->size, globals, err)) {
        if (p.value.kind != PICKLE_DICT)
            fail(err, "%s: holds %s, not a dictionary of tensors", r.where, pickle_kind_name(p.value.kind));
        else
            rc = walk(&r, p.value, 0, 0);
    }
    pickle_free(&p);
    free(entry);
    free(r.folder);
    free(r.where);
    return rc;
}
