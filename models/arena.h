/* arena.h - device memory by lifetime: a layout function runs once to measure and once to place. */
#ifndef MODELS_ARENA_H
#define MODELS_ARENA_H
#include "host/error.h"
#include "kernels/device.h"
struct arena { /* base NULL: arena_take only adds up */
    char *base;
    size_t used;
};
/* Next `bytes` bytes, 256-byte aligned; NULL while measuring. */
void *arena_take(struct arena *a, size_t bytes);
act_t *arena_acts(struct arena *a, size_t rows, size_t columns); /* a (rows, columns) matrix of act_t */

struct buffer { /* device memory that only grows, owned */
    void *data;
    size_t bytes;
};
/* Makes the buffer at least `bytes` large (contents are lost when it grows). Not enough memory: an error that names `what`,
 * the bytes needed and the bytes free. */
int buffer_reserve(struct buffer *b, struct device *dev, size_t bytes, const char *what, struct error *err);
void buffer_free(struct buffer *b, struct device *dev);
#endif
