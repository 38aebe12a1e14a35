/* zip.c - see zip.h. End record (found from the back) -> central directory -> local headers, which only give where data begins. */
#include "host/zip.h"
#include "host/file.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { END_BYTES = 22, END64_BYTES = 56, LOCATOR_BYTES = 20, ENTRY_BYTES = 46, LOCAL_BYTES = 30, DEFLATE_RATIO = 1032 };

struct archive {
    const char *path;
    const unsigned char *bytes;
    size_t size;
};

static uint64_t number(const unsigned char *at, int bytes) {
    uint64_t n = 0;
    for (int i = bytes - 1; i >= 0; i--) n = n << 8 | at[i];
    return n;
}
static bool marked(const unsigned char *at, const char *mark) { return !memcmp(at, mark, 4); }

bool zip_is(const unsigned char *bytes, size_t size) { return size >= 4 && (marked(bytes, "PK\3\4") || marked(bytes, "PK\5\6")); }

static int cut_short(const struct archive *a, const char *what, struct error *err) {
    return fail(err, "%s: a zip archive without %s; the file is damaged or cut short", a->path, what);
}

/* ---- where the directory is ---- */
struct directory {
    uint64_t at, bytes, count;
};

static int find_directory(const struct archive *a, struct directory *d, struct error *err) {
    if (a->size < END_BYTES) return cut_short(a, "its end record", err);
    size_t first = a->size - END_BYTES > 65535 ? a->size - END_BYTES - 65535 : 0, at = a->size - END_BYTES;
    while (!(marked(a->bytes + at, "PK\5\6") && at + END_BYTES + number(a->bytes + at + 20, 2) == a->size)) {
        if (at == first) return cut_short(a, "its end record", err);
        at--;
    }
    const unsigned char *end = a->bytes + at;
    if (number(end + 4, 2) != 0 && number(end + 4, 2) != 0xffff)
        return fail(err, "%s: a zip archive in several parts is not read", a->path);
    *d = (struct directory){.at = number(end + 16, 4), .bytes = number(end + 12, 4), .count = number(end + 10, 2)};
    size_t limit = at;
    if (at >= LOCATOR_BYTES && marked(end - LOCATOR_BYTES, "PK\6\7")) { /* zip64 */
        const uint64_t where = number(end - LOCATOR_BYTES + 8, 8);
        limit = at - LOCATOR_BYTES;
        if (limit < END64_BYTES || where > limit - END64_BYTES || !marked(a->bytes + where, "PK\6\6"))
            return cut_short(a, "the zip64 record that it announces", err);
        limit = where;
        const unsigned char *wide = a->bytes + where;
        *d = (struct directory){.at = number(wide + 48, 8), .bytes = number(wide + 40, 8), .count = number(wide + 32, 8)};
    }
    if (d->at > limit || d->bytes > limit - d->at || d->count > d->bytes / ENTRY_BYTES) return cut_short(a, "a whole directory", err);
    return 0;
}

/* ---- one entry ---- */
struct sizes {
    uint64_t size, packed, local;
};

/* Fields of 32 bits that are all ones stand, as 64 bits and in this order, in the extra field of kind 1. */
static int widen(struct sizes *s, const unsigned char *extra, size_t bytes) {
    uint64_t *const wide[] = {&s->size, &s->packed, &s->local};
    while (bytes >= 4) {
        const size_t kind = number(extra, 2), n = number(extra + 2, 2);
        if (n > bytes - 4) return -1;
        if (kind == 1) {
            const unsigned char *at = extra + 4;
            for (int i = 0; i < 3; i++) {
                if (*wide[i] != UINT32_MAX) continue;
                if (at + 8 > extra + 4 + n) return -1;
                *wide[i] = number(at, 8);
                at += 8;
            }
            return 0;
        }
        extra += 4 + n, bytes -= 4 + n;
    }
    return s->size == UINT32_MAX || s->packed == UINT32_MAX || s->local == UINT32_MAX ? -1 : 0;
}

/* The entry whose directory record is at `at`, its name already copied. */
static int read_entry(const struct archive *a, struct zip_entry *e, const unsigned char *at, size_t name, size_t extra, struct error *err) {
    struct sizes s = {.packed = number(at + 20, 4), .size = number(at + 24, 4), .local = number(at + 42, 4)};
    const unsigned method = (unsigned)number(at + 10, 2);
    e->crc = (uint32_t)number(at + 16, 4);
    e->deflated = method == 8;
    if (strlen(e->name) != name) return fail(err, "%s: a zip entry has a zero byte in its name '%.80s'", a->path, e->name);
    if (number(at + 8, 2) & 1) return fail(err, "%s: zip entry %.200s is encrypted; that is not read", a->path, e->name);
    if (method != 0 && method != 8)
        return fail(err, "%s: zip entry %.200s is packed by method %u; stored (0) and deflated (8) are read", a->path, e->name, method);
    if (widen(&s, at + ENTRY_BYTES + name, extra)) return fail(err, "%s: zip entry %.200s: its zip64 field is damaged", a->path, e->name);
    if (s.local > a->size || a->size - s.local < LOCAL_BYTES || !marked(a->bytes + s.local, "PK\3\4"))
        return fail(err, "%s: zip entry %.200s: no local header at byte %" PRIu64 "; the file is damaged or cut short", a->path, e->name,
                    s.local);
    const unsigned char *local = a->bytes + s.local;
    const uint64_t data = s.local + LOCAL_BYTES + number(local + 26, 2) + number(local + 28, 2);
    if (data > a->size || s.packed > a->size - data)
        return fail(err,
                    "%s: zip entry %.200s: its %" PRIu64 " bytes from byte %" PRIu64 " lie outside the file's %zu bytes; the file is "
                    "damaged or cut short",
                    a->path, e->name, s.packed, data, a->size);
    if (e->deflated ? s.size / DEFLATE_RATIO > s.packed : s.size != s.packed)
        return fail(err, "%s: zip entry %.200s: %" PRIu64 " bytes cannot come out of %" PRIu64 "; the file is damaged", a->path, e->name,
                    s.size, s.packed);
    e->data = a->bytes + data;
    e->packed = (size_t)s.packed;
    e->size = (size_t)s.size;
    return 0;
}

static int read_directory(const struct archive *a, struct zip *z, const struct directory *d, struct error *err) {
    const unsigned char *at = a->bytes + d->at, *end = at + d->bytes;
    char *names = z->names;
    size_t packed = 0;
    for (; z->count < d->count; z->count++) {
        if (end - at < ENTRY_BYTES || !marked(at, "PK\1\2")) return cut_short(a, "a whole directory", err);
        const size_t name = number(at + 28, 2), extra = number(at + 30, 2), comment = number(at + 32, 2);
        if (name + extra + comment > (size_t)(end - at) - ENTRY_BYTES) return cut_short(a, "a whole directory", err);
        struct zip_entry *e = &z->entries[z->count];
        e->name = memcpy(names, at + ENTRY_BYTES, name);
        names += name + 1; /* zeroed memory ends it */
        if (read_entry(a, e, at, name, extra, err)) return -1;
        packed += e->packed;
        if (packed > a->size) return fail(err, "%s: its zip entries are longer than the file; they overlap", a->path);
        at += ENTRY_BYTES + name + extra + comment;
    }
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct zip_entry *)a)->name, ((const struct zip_entry *)b)->name);
}

int zip_open(struct zip *z, const char *path, const unsigned char *bytes, size_t size, struct error *err) {
    const struct archive a = {path, bytes, size};
    struct directory d = {0};
    *z = (struct zip){0};
    if (find_directory(&a, &d, err)) return -1;
    z->entries = memory_take((size_t)d.count, sizeof *z->entries);
    z->names = memory_take((size_t)d.bytes + 1, 1);
    int rc = read_directory(&a, z, &d, err);
    if (!rc && z->count) qsort(z->entries, z->count, sizeof *z->entries, by_name);
    for (size_t i = 1; !rc && i < z->count; i++)
        if (!by_name(&z->entries[i - 1], &z->entries[i])) rc = fail(err, "%s: two zip entries are named %.200s", path, z->entries[i].name);
    if (rc) zip_close(z);
    return rc;
}

void zip_close(struct zip *z) {
    free(z->entries);
    free(z->names);
    *z = (struct zip){0};
}

const struct zip_entry *zip_find(const struct zip *z, const char *name) {
    const struct zip_entry key = {.name = name};
    return z->count ? bsearch(&key, z->entries, z->count, sizeof *z->entries, by_name) : NULL;
}

/* zlib counts in unsigned int: input and output are handed to it in pieces of at most 1 GB. */
static bool inflate_all(z_stream *s, const struct zip_entry *e, unsigned char *dst, size_t count) {
    const size_t piece = (size_t)1 << 30;
    size_t in = 0, out = 0;
    int rc = Z_OK;
    while (rc == Z_OK && out < count) {
        const size_t n = e->packed - in < piece ? e->packed - in : piece, m = count - out < piece ? count - out : piece;
        s->next_in = (unsigned char *)(uintptr_t)(e->data + in);
        s->avail_in = (unsigned)n;
        s->next_out = dst + out;
        s->avail_out = (unsigned)m;
        rc = inflate(s, Z_NO_FLUSH);
        in += n - s->avail_in;
        out += m - s->avail_out;
        if (rc == Z_OK && n == s->avail_in && m == s->avail_out) break; /* input that ends too early */
    }
    return out == count && (rc == Z_OK || rc == Z_STREAM_END);
}

int zip_read(const struct zip_entry *e, const char *path, unsigned char *dst, size_t count, struct error *err) {
    if (!e->deflated) {
        if (count) memcpy(dst, e->data, count);
        return 0;
    }
    z_stream s = {0};
    if (inflateInit2(&s, -MAX_WBITS) != Z_OK) return fail(err, "%s: no memory to inflate zip entry %.200s", path, e->name);
    const bool done = inflate_all(&s, e, dst, count);
    inflateEnd(&s);
    if (!done) return fail(err, "%s: zip entry %.200s cannot be inflated to its %zu bytes; the file is damaged", path, e->name, count);
    if (count == e->size && crc32_z(crc32(0, NULL, 0), dst, count) != e->crc)
        return fail(err, "%s: zip entry %.200s: its data does not have the checksum of the directory; the file is damaged", path, e->name);
    return 0;
}
