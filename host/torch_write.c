/* torch_write.c - see torch_write.h. A zip: archive/data.pkl, archive/byteorder, archive/data/<i>, archive/version.
 *
 * data.pkl (pickle protocol 2) is {name: _rebuild_tensor_v2(storage, offset 0, shape, strides, requires_grad False, OrderedDict())}
 * with storage the persistent id ("storage", class, "<i>", "cpu", elements). */
#include "host/torch_write.h"
#include "host/file.h"
#include "host/zip_write.h"
#include "host/check.h"
#include <stdlib.h>
#include <string.h>

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

int torch_write(const char *path, const struct torch_tensor *tensors, int n, struct error *err) {
    struct file_writer w = {0};
    char name[64];
    if (file_writer_open(&w, path, err)) return -1;
    struct zip_write z = {.f = w.stream};
    struct bytes data = pickle(tensors, n);
    zip_write_entry(&z, "archive/data.pkl", data.data, data.n);
    zip_write_entry(&z, "archive/byteorder", "little", 6);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "archive/data/%d", i);
        zip_write_entry(&z, name, tensors[i].data, elements_of(&tensors[i]) * dtype_bytes(tensors[i].dtype));
    }
    zip_write_entry(&z, "archive/version", "3\n", 2);
    zip_write_end(&z);
    free(data.data);
    return file_writer_commit(&w, err);
}
