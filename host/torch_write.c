/* torch_write.c - see torch_write.h. A zip of stored entries: archive/data.pkl, archive/byteorder, archive/data/<i>, archive/version.
 *
 * data.pkl (pickle protocol 2) is {name: _rebuild_tensor_v2(storage, offset 0, shape, strides, requires_grad False, OrderedDict())}
 * with storage the persistent id ("storage", class, "<i>", "cpu", elements).
 * Zip (APPNOTE 6.3): local headers pad their extra field so that data starts at a multiple of 64, as torch's own do; sizes and
 * offsets of 4 GiB and more go to zip64 fields. */
#include "host/torch_write.h"
#include "host/file.h"
#include "host/check.h"
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { ALIGNMENT = 64, VERSION_STORED = 20, VERSION_ZIP64 = 45, EXTRA_ZIP64 = 1, EXTRA_PADDING = 0x4246, DATE = 0x21 /* 1980-01-01 */ };
static const uint32_t large = 0xffffffff; /* "see the zip64 field" */

struct bytes { /* grows */
    unsigned char *data;
    size_t n, room;
};

static void put(struct bytes *b, const void *data, size_t n) {
    if (b->n + n > b->room) {
        b->room = 2 * (b->n + n);
        b->data = memory_grow(b->data, b->room, 1);
    }
    if (n) memcpy(b->data + b->n, data, n);
    b->n += n;
}
static void put_number(struct bytes *b, uint64_t value, int width) { /* little endian */
    for (int i = 0; i < width; i++) put(b, &(unsigned char){(unsigned char)(value >> (8 * i))}, 1);
}
static void put_text(struct bytes *b, const char *text) { put(b, text, strlen(text)); }

/* ---- the pickle ---- */
static void pickle_text(struct bytes *b, const char *text) { /* BINUNICODE */
    put_text(b, "X");
    put_number(b, strlen(text), 4);
    put_text(b, text);
}
static void pickle_whole(struct bytes *b, int64_t value) { /* BININT or LONG1, value >= 0 */
    put_text(b, value <= INT32_MAX ? "J" : "\x8a\x08");
    put_number(b, (uint64_t)value, value <= INT32_MAX ? 4 : 8);
}
static void pickle_tuple(struct bytes *b, const int64_t *values, int n) {
    put_text(b, "(");
    for (int i = 0; i < n; i++) pickle_whole(b, values[i]);
    put_text(b, "t");
}

static void pickle_tensor(struct bytes *b, const struct torch_tensor *t, int index, size_t elements) {
    static const char *const storages[] = {"Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool"};
    char text[64];
    int64_t strides[8], stride = 1;
    for (int i = t->rank; i-- > 0; stride *= t->shape[i]) strides[i] = stride;
    pickle_text(b, t->name);
    put_text(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    pickle_text(b, "storage");
    snprintf(text, sizeof text, "ctorch\n%sStorage\n", storages[t->dtype]);
    put_text(b, text);
    snprintf(text, sizeof text, "%d", index);
    pickle_text(b, text);
    pickle_text(b, "cpu");
    pickle_whole(b, (int64_t)elements);
    put_text(b, "tQ");
    pickle_whole(b, 0);
    pickle_tuple(b, t->shape, t->rank);
    pickle_tuple(b, strides, t->rank);
    put_text(b, "\x89"
                "ccollections\nOrderedDict\n)RtR");
}

static size_t elements_of(const struct torch_tensor *t) {
    size_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= (size_t)t->shape[i];
    return n;
}

static struct bytes pickle(const struct torch_tensor *tensors, int n) {
    struct bytes b = {0};
    put_text(&b, "\x80\x02}(");
    for (int i = 0; i < n; i++) {
        const struct torch_tensor *t = &tensors[i];
        CHECK(t->dtype < DTYPE_OTHER && t->rank >= 0 && t->rank <= 8, "%s: dtype %d, rank %d", t->name, (int)t->dtype, t->rank);
        pickle_tensor(&b, t, i, elements_of(t));
    }
    put_text(&b, "u.");
    return b;
}

/* ---- the archive ---- */
struct archive {
    FILE *f;
    struct bytes directory;
    uint64_t at, entries;
};

static uint32_t crc_of(const unsigned char *data, size_t n) {
    uLong crc = crc32(0, NULL, 0);
    for (size_t done = 0; done < n;) {
        uInt step = n - done < 1u << 30 ? (uInt)(n - done) : 1u << 30;
        crc = crc32(crc, data + done, step);
        done += step;
    }
    return (uint32_t)crc;
}

/* What local header and directory share: version to checksum and sizes, length of the name. */
static void put_common(struct bytes *b, uint32_t crc, uint64_t size, bool zip64, size_t name) {
    put_number(b, zip64 ? VERSION_ZIP64 : VERSION_STORED, 2);
    put_number(b, 0, 2), put_number(b, 0, 2), put_number(b, 0, 2), put_number(b, DATE, 2); /* flags, stored, time, date */
    put_number(b, crc, 4);
    put_number(b, zip64 ? large : size, 4), put_number(b, zip64 ? large : size, 4);
    put_number(b, name, 2);
}

static void entry(struct archive *a, const char *name, const void *data, size_t size) {
    struct bytes h = {0};
    const size_t length = strlen(name);
    const bool zip64 = size >= large, far = a->at >= large;
    const uint32_t crc = crc_of(data, size);
    const size_t fixed = 30 + length + (zip64 ? 20 : 0) + 4, padding = (ALIGNMENT - (a->at + fixed) % ALIGNMENT) % ALIGNMENT;
    put_text(&h, "PK\3\4");
    put_common(&h, crc, size, zip64, length);
    put_number(&h, (zip64 ? 20u : 0u) + 4 + padding, 2);
    put_text(&h, name);
    if (zip64) put_number(&h, EXTRA_ZIP64, 2), put_number(&h, 16, 2), put_number(&h, size, 8), put_number(&h, size, 8);
    put_number(&h, EXTRA_PADDING, 2), put_number(&h, padding, 2);
    for (size_t i = 0; i < padding; i++) put_text(&h, "Z");
    fwrite(h.data, 1, h.n, a->f);
    if (size) fwrite(data, 1, size, a->f);

    struct bytes *c = &a->directory;
    const size_t extra = (zip64 ? 16u : 0u) + (far ? 8u : 0u);
    put_text(c, "PK\1\2");
    put_number(c, zip64 || far ? VERSION_ZIP64 : VERSION_STORED, 2); /* made by */
    put_common(c, crc, size, zip64, length);
    put_number(c, extra ? extra + 4 : 0, 2);
    put_number(c, 0, 2), put_number(c, 0, 2), put_number(c, 0, 2), put_number(c, 0, 4); /* comment, disk, attributes */
    put_number(c, far ? large : a->at, 4);
    put_text(c, name);
    if (extra) put_number(c, EXTRA_ZIP64, 2), put_number(c, extra, 2);
    if (zip64) put_number(c, size, 8), put_number(c, size, 8);
    if (far) put_number(c, a->at, 8);
    a->at += h.n + size;
    a->entries++;
    free(h.data);
}

static void finish(struct archive *a) {
    struct bytes *c = &a->directory;
    const uint64_t size = c->n, end = a->at + size;
    const bool zip64 = end >= large || a->entries >= 0xffff;
    if (zip64) {
        put_text(c, "PK\6\6");
        put_number(c, 44, 8), put_number(c, VERSION_ZIP64, 2), put_number(c, VERSION_ZIP64, 2), put_number(c, 0, 4), put_number(c, 0, 4);
        put_number(c, a->entries, 8), put_number(c, a->entries, 8), put_number(c, size, 8), put_number(c, a->at, 8);
        put_text(c, "PK\6\7");
        put_number(c, 0, 4), put_number(c, end, 8), put_number(c, 1, 4);
    }
    put_text(c, "PK\5\6");
    put_number(c, 0, 4);
    put_number(c, zip64 ? 0xffff : a->entries, 2), put_number(c, zip64 ? 0xffff : a->entries, 2);
    put_number(c, zip64 ? large : size, 4), put_number(c, zip64 ? large : a->at, 4), put_number(c, 0, 2);
    fwrite(c->data, 1, c->n, a->f);
    free(c->data);
}

int torch_write(const char *path, const struct torch_tensor *tensors, int n, struct error *err) {
    struct file_writer w = {0};
    char name[64];
    if (file_writer_open(&w, path, err)) return -1;
    struct archive a = {.f = w.stream};
    struct bytes data = pickle(tensors, n);
    entry(&a, "archive/data.pkl", data.data, data.n);
    entry(&a, "archive/byteorder", "little", 6);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "archive/data/%d", i);
        entry(&a, name, tensors[i].data, elements_of(&tensors[i]) * dtype_bytes(tensors[i].dtype));
    }
    entry(&a, "archive/version", "3\n", 2);
    finish(&a);
    free(data.data);
    return file_writer_commit(&w, err);
}
