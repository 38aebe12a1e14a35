/* clip.h - CLIP's vision tower: class row and patches through pre-LN blocks (Radford et al. 2021; names in docs/models.md).
 * Letters: B pictures, n = (S/P)^2 patches, R = B*(1+n) rows, C width, H heads, D head dim, F mlp. */
#ifndef MODELS_CLIP_H
#define MODELS_CLIP_H
#include "models/arena.h"
#include "models/config.h"
#include "models/probe.h"
#include "models/weights.h"

struct clip_layer {
    act_t *norm1_w, *norm1_b; /* (C) */
    act_t *qkv, *qkv_b;       /* (3C, C), (3C): q rows, k rows, v rows */
    act_t *o, *o_b;           /* (C, C), (C) */
    act_t *norm2_w, *norm2_b; /* (C) */
    act_t *fc1, *fc1_b;       /* (F, C), (F) */
    act_t *fc2, *fc2_b;       /* (C, F), (C) */
};
struct clip {
    struct clip_config config;
    int patches;                    /* n */
    act_t *class_row;               /* (C) */
    act_t *patch;                   /* (C, 3*P*P) */
    act_t *position;                /* (1+n, C) */
    act_t *pre_norm_w, *pre_norm_b; /* (C) */
    struct clip_layer *layer;       /* all config.L of them */
    struct buffer weights, scratch;
};
/* w->dev NULL: only checks names, dtypes and shapes. */
int clip_open(struct clip *m, const struct clip_config *config, struct weights *w, const char *prefix, struct error *err);
void clip_close(struct clip *m, struct device *dev);
size_t clip_weight_bytes(const struct clip_config *c); /* device bytes */
size_t clip_scratch_bytes(const struct clip_config *c, int B);
/* Runs `layers` layers over B pictures, or more where a vision probe asks for a later one.
 *   pixels [in] host (B, 3, S, S) f32
 *   selected [out] (B*n, C) device: output of `layers` layers without the class row; (B*(1+n), C) with keep_class */
int clip_forward(struct clip *m, struct device *dev, act_t *selected, const float *pixels, int B, int layers, bool keep_class,
                 const struct probes *probes, struct error *err);
#endif
