/* rows.h - a matrix of activations in a safetensors file, fed to the device in batches. */
#ifndef ANALYSIS_ROWS_H
#define ANALYSIS_ROWS_H
#include "host/error.h"
#include "kernels/device.h"
#include <stdint.h>
struct tensors;
struct tensor;
struct rows { /* owns the mapping */
    struct tensors *file;
    const struct tensor *tensor;
    int n, d; /* all leading dimensions are one */
};
/* Any float type, (n, d) or (.., d). d given: must be that, `whose` is named in the error. Rows with NaN or infinity are refused with
 * their index. */
int rows_open(struct rows *r, const char *path, const char *name, int d, const char *whose, struct error *err);
void rows_close(struct rows *r);

struct row_feed { /* owns staging and batch */
    struct device *dev;
    const struct rows *rows;
    float *host;
    void *staging, *x; /* device: (max, d) f32 and act_t */
    int max;
    void (*prepare)(float *rows, int n, int d, void *context); /* on the host, before they go to the device; NULL: nothing */
    void *context;
};
int row_feed_open(struct row_feed *f, struct device *dev, const struct rows *rows, int max, struct error *err);
void row_feed_close(struct row_feed *f);
/* f->x := rows first .. first+n, or those of `index` when that is not NULL */
void row_feed_put(struct row_feed *f, const int *index, int first, int n);

/* Seeded shuffles: the same numbers on every machine. A seed made from several numbers is different for each of them. */
uint64_t seed_mix(uint64_t seed, uint64_t a, uint64_t b);
void shuffle(int *index, int n, uint64_t seed);
#endif
