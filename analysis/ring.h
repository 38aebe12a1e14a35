/* ring.h - a block of activation rows a layer, on the device: filled from consecutive samples, trained on in shuffled order,
 * then overwritten. Nothing of it is ever written to disk. */
#ifndef ANALYSIS_RING_H
#define ANALYSIS_RING_H
#include "analysis/run.h"
#include "kernels/device.h"
#include <stdint.h>
struct batch;
struct model;
struct ring { /* owns everything but dev */
    struct device *dev;
    int n_layers, *layers, d;
    int capacity, used;     /* rows */
    void **rows;            /* n_layers of (capacity, d) act_t */
    uint8_t *kinds;         /* (capacity), enum token_kind, on the host */
    bool keep[8];           /* which kinds are stored */
    int *index, index_room; /* device: rows of a batch that are kept */
    int adding;             /* rows of the batch under way */
};
/* Which token kinds a regime trains on: full and random all but bos, image the image rows, text the rest. */
bool regime_takes(enum regime r, int kind);

size_t ring_bytes_per_layer(int capacity, int d);
int ring_open(struct ring *r, struct device *dev, int n_layers, const int *layers, int d, int capacity, const bool regimes[REGIME_COUNT],
              struct error *err);
void ring_close(struct ring *r);
int ring_kept(const struct ring *r, const struct batch *b); /* rows a batch would add */
/* One forward pass; the batch's kept rows are appended to every layer's block. They must fit. */
int ring_add(struct ring *r, struct model *m, const struct batch *b, struct error *err);
/* Rows of the block that a regime trains on, in order; index has room for `used`. */
int ring_select(const struct ring *r, enum regime regime, int *index);
#endif
