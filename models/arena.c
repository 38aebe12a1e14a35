/* arena.c - device memory by lifetime (arena.h). */
#include "models/arena.h"

void *arena_take(struct arena *a, size_t bytes) {
    char *p = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 255) / 256 * 256;
    return p;
}

act_t *arena_acts(struct arena *a, size_t rows, size_t columns) { return arena_take(a, rows * columns * sizeof(act_t)); }

int buffer_reserve(struct buffer *b, struct device *dev, size_t bytes, const char *what, struct error *err) {
    if (bytes <= b->bytes) return 0;
    buffer_free(b, dev);
    b->data = device_alloc(dev, bytes);
    if (!b->data) {
        b->bytes = 0;
        return fail(
            err,
            "out of memory on %s: %s needs %zu bytes (%.1f MB), %zu bytes are free; use a smaller --batch or a device with more memory",
            device_name(dev), what, bytes, (double)bytes / 1e6, device_memory_free(dev));
    }
    b->bytes = bytes;
    return 0;
}

void buffer_free(struct buffer *b, struct device *dev) {
    device_free(dev, b->data);
    b->data = NULL;
    b->bytes = 0;
}
