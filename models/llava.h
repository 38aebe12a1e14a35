/* llava.h - what turns a picture into rows of the language model's stream: tower layer, selected rows, projector
 * (Liu et al. 2023: linear -> gelu -> linear). Splicing is embed_forward's, by the batch's `source`. */
#ifndef MODELS_LLAVA_H
#define MODELS_LLAVA_H
#include "models/clip.h"

struct llava {
    struct llava_config config;
    int in, out;        /* tower width, LLM width C */
    int rows;           /* rows one picture becomes */
    act_t *w[8], *b[8]; /* (out, in) then (out, out) ...; (out), NULL without bias */
    struct buffer weights, scratch;
};
/* w->dev NULL: only checks. names->projector NULL is an error of the first missing tensor. */
int llava_open(struct llava *m, const struct llava_config *config, const struct clip_config *tower, int C, struct weights *w,
               const struct weight_names *names, struct error *err);
void llava_close(struct llava *m, struct device *dev);
int llava_rows(const struct llava_config *config, const struct clip_config *tower);                   /* rows one picture becomes */
size_t llava_weight_bytes(const struct llava_config *config, const struct clip_config *tower, int C); /* device bytes */
size_t llava_scratch_bytes(const struct llava_config *config, const struct clip_config *tower, int C, int B);
/* Pictures to rows; probes vision.*, vision.selected and projector run on the way.
 *   image_rows [out] *image_rows = (B*rows, C) on the device, owned by m, valid until the next call
 *   pixels [in] host (B, 3, S, S)   projector: false stops before it (only vision points are asked for) */
int llava_image_rows(struct llava *m, struct clip *tower, struct device *dev, const act_t **image_rows, const float *pixels, int B,
                     bool projector, const struct probes *probes, struct error *err);
#endif
