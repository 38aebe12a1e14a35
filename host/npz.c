/* npz.c - arrays of a numpy .npz: a zip of NAME.npy members, stored (mapped) or deflated (inflated at opening).
 * .npy: "\x93NUMPY" | u8 major | u8 minor | header length, u16 LE in version 1, u32 LE in 2 and 3 | a Python literal
 * {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } | elements. (numpy.lib.format; formats.md 2.5)
 * Fortran order becomes strides. Arrays of another descr (strings, big endian, objects) are counted but cannot be used. */
#include "host/tensors_internal.h"
#include "host/file.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HEADER = 1 << 16 };

static const struct {
    const char *descr;
    enum dtype dtype;
} descrs[] = {{"<f4", DTYPE_F32}, {"<f2", DTYPE_F16}, {"<f8", DTYPE_F64}, {"<i8", DTYPE_I64}, {"<i4", DTYPE_I32},
              {"<i2", DTYPE_I16}, {"|i1", DTYPE_I8},  {"|u1", DTYPE_U8},  {"|b1", DTYPE_BOOL}};

struct member {
    struct tensor_file *f;
    const struct zip_entry *e;
    struct error *err;
};

static int bad(const struct member *m, const char *what) { return fail(m->err, "%s: %s: %s", m->f->path, m->e->name, what); }

/* ---- the literal: a cursor over its text ---- */
static void skip_blanks(const char **at) { *at += strspn(*at, " \t\n"); }
static bool skip(const char **at, char c) {
    skip_blanks(at);
    if (**at != c) return false;
    ++*at;
    return true;
}

/* 'text' or "text" without escapes; its length, or -1 */
static int take_text(const char **at, const char **text) {
    skip_blanks(at);
    const char quote = **at;
    if (quote != '\'' && quote != '"') return -1;
    *text = ++*at;
    const char *end = strchr(*at, quote);
    if (!end || end - *text > 200 || memchr(*text, '\\', (size_t)(end - *text))) return -1;
    *at = end + 1;
    return (int)(end - *text);
}

static bool take_word(const char **at, const char *word) {
    skip_blanks(at);
    const size_t n = strlen(word);
    if (strncmp(*at, word, n) != 0) return false;
    *at += n;
    return true;
}

static int take_shape(const struct member *m, const char **at, struct tensor *t) {
    if (!skip(at, '(')) return bad(m, "its shape is no tuple");
    while (!skip(at, ')')) {
        char *end;
        skip_blanks(at);
        errno = 0;
        const long long dim = strtoll(*at, &end, 10);
        if (end == *at || **at < '0' || **at > '9' || errno) return bad(m, "its shape is no tuple of whole numbers from 0");
        if (t->rank == TENSOR_MAX_RANK) return fail(m->err, "%s: %s: more than %d dimensions", m->f->path, m->e->name, TENSOR_MAX_RANK);
        t->shape[t->rank++] = dim;
        *at = end + (*end == 'L'); /* Python 2 wrote (3L, 4L) */
        if (!skip(at, ',') && (skip_blanks(at), **at != ')')) return bad(m, "its shape is no tuple of whole numbers from 0");
    }
    return 0;
}

static int take_descr(const struct member *m, const char **at, struct tensor *t) {
    const char *text;
    const int n = take_text(at, &text);
    if (n < 0) return bad(m, "its descr is no text; structured arrays are not read");
    char *copy = tensor_file_take(m->f, (size_t)n + 1);
    if (!copy) return bad(m, "no memory for its descr");
    memcpy(copy, text, (size_t)n);
    copy[n] = 0;
    t->dtype = DTYPE_OTHER;
    t->dtype_text = copy;
    for (size_t i = 0; i < sizeof descrs / sizeof *descrs; i++)
        if (!strcmp(copy, descrs[i].descr)) {
            t->dtype = descrs[i].dtype;
            t->dtype_text = dtype_name(t->dtype);
        }
    return 0;
}

static int parse_header(const struct member *m, const char *at, struct tensor *t, bool *fortran) {
    enum { DESCR = 1, ORDER = 2, SHAPE = 4 };
    int seen = 0;
    if (!skip(&at, '{')) return bad(m, "its header is no Python dictionary");
    while (!skip(&at, '}')) {
        const char *key;
        const int n = take_text(&at, &key);
        const int which = n == 5 && !memcmp(key, "descr", 5)             ? DESCR
                          : n == 13 && !memcmp(key, "fortran_order", 13) ? ORDER
                          : n == 5 && !memcmp(key, "shape", 5)           ? SHAPE
                                                                         : 0;
        if (!which || seen & which || !skip(&at, ':'))
            return bad(m, "its header is not a dictionary of descr, fortran_order and shape, each once");
        seen |= which;
        if (which == DESCR && take_descr(m, &at, t)) return -1;
        if (which == SHAPE && take_shape(m, &at, t)) return -1;
        if (which == ORDER) {
            *fortran = take_word(&at, "True");
            if (!*fortran && !take_word(&at, "False")) return bad(m, "its fortran_order is neither True nor False");
        }
        if (!skip(&at, ',') && (skip_blanks(&at), *at != '}')) return bad(m, "its header has no comma where one is due");
    }
    skip_blanks(&at);
    if (seen != (DESCR | ORDER | SHAPE) || *at)
        return bad(m, "its header is not a dictionary of descr, fortran_order and shape, each once");
    return 0;
}

/* ---- a member ---- */
/* Header text (malloced) and where the elements begin. */
static int read_header(const struct member *m, char **text, size_t *data_at) {
    unsigned char start[12] = {0};
    const size_t have = m->e->size < sizeof start ? m->e->size : sizeof start;
    if (zip_read(m->e, m->f->path, start, have, m->err)) return -1;
    if (have < sizeof start || memcmp(start, "\x93NUMPY", 6) != 0) return bad(m, "is no .npy array (it does not begin with \\x93NUMPY)");
    if (start[6] < 1 || start[6] > 3)
        return fail(m->err, "%s: %s: .npy version %d.%d; 1 to 3 are read", m->f->path, m->e->name, start[6], start[7]);
    const size_t before = start[6] == 1 ? 10 : 12;
    size_t n = start[8] | (size_t)start[9] << 8;
    if (start[6] > 1) n |= (size_t)start[10] << 16 | (size_t)start[11] << 24;
    if (n > MAX_HEADER || n > m->e->size - before) return bad(m, "its header is longer than the member or than 65536 bytes");
    unsigned char *head = memory_take(before + n + 1, 1);
    int rc = zip_read(m->e, m->f->path, head, before + n, m->err);
    if (!rc && memchr(head + before, 0, n)) rc = bad(m, "its header holds a zero byte");
    memmove(head, head + before, n + 1);
    *text = (char *)head;
    *data_at = before + n;
    if (rc) free(head);
    return rc;
}

static void set_fortran(struct tensor *t) {
    int64_t step = 1;
    for (int i = 0; t->count && i < t->rank; i++) {
        t->strided = t->strided || (t->shape[i] > 1 && t->stride[i] != step);
        t->stride[i] = step;
        step *= t->shape[i];
    }
}

static int read_member(const struct member *m, struct tensor *t) {
    const size_t n = strlen(m->e->name) - strlen(".npy");
    bool fortran = false;
    size_t data_at = 0;
    char *text = NULL, *name;
    if (read_header(m, &text, &data_at)) return -1;
    *t = (struct tensor){.file = m->f->path};
    int rc = parse_header(m, text, t, &fortran);
    free(text);
    if (rc) return -1;
    const size_t have = m->e->size - data_at;
    if (tensor_measure(t, dtype_bytes(t->dtype))) return bad(m, "its shape has more elements than any file can hold");
    if (t->dtype == DTYPE_OTHER)
        t->bytes = have;
    else if (t->bytes != have)
        return fail(m->err, "%s: %s: its shape needs %zu bytes of %s, the member has %zu", m->f->path, m->e->name, t->bytes, t->dtype_text,
                    have);
    if (fortran) set_fortran(t);
    const unsigned char *data = m->e->data;
    if (m->e->deflated && t->dtype != DTYPE_OTHER) {
        unsigned char *inflated = tensor_file_take(m->f, m->e->size);
        if (!inflated) return fail(m->err, "%s: %s: no memory for its %zu bytes", m->f->path, m->e->name, m->e->size);
        if (zip_read(m->e, m->f->path, inflated, m->e->size, m->err)) return -1;
        data = inflated;
    }
    t->data = data + data_at;
    name = tensor_file_take(m->f, n + 1);
    if (!name) return bad(m, "no memory for its name");
    memcpy(name, m->e->name, n);
    name[n] = 0;
    t->name = name;
    return 0;
}

int npz_read(struct tensor_file *f, const struct zip *z, struct error *err) {
    for (size_t i = 0; i < z->count; i++) {
        const struct member m = {f, &z->entries[i], err};
        const size_t n = strlen(m.e->name);
        if (n <= 4 || strcmp(m.e->name + n - 4, ".npy") != 0) continue;
        json_t *valid = json_string(m.e->name);
        json_decref(valid);
        if (!valid) return fail(err, "%s: a member's name is not UTF-8", f->path);
        if (read_member(&m, tensor_file_next(f))) return -1;
        f->count++;
    }
    return 0;
}
