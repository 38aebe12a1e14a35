/* batch.h - a packed batch: tokens of several samples end to end, no padding; every token carries its kind. */
#ifndef MODELS_BATCH_H
#define MODELS_BATCH_H
#include "host/samples.h"
#include <stdint.h>
struct batch { /* host arrays, owned */
    int n_samples, n_tokens, n_images, longest;
    int *cu_seqlens; /* (n_samples + 1) */
    int *ids;        /* (n_tokens), IMAGE_TOKEN for image rows */
    int *source;     /* (n_tokens), embed_forward's: vocabulary id, or -1 - row of the batch's image rows */
    int *position;   /* (n_tokens), from 0 in each sample */
    uint8_t *kinds;  /* (n_tokens), enum token_kind */
    long *sample;    /* (n_samples), index in the data file */
    int *picture;    /* (n_samples), which of the batch's pictures is the sample's, -1: none */
    float *pixels;   /* (n_images, 3, S, S) pixel values, NULL when none */
};
/* after [out] (n_tokens): 1 for rows behind the last image row of their sample; every row of a sample without a picture. New
 * tokens of a generation are such rows. */
void batch_after_image(const struct batch *b, uint8_t *after);
void batch_free(struct batch *b); /* NULL-safe; also of a batch that is all zero */
#endif
