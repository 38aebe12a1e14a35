/* probe.h - named places in the forward pass where callers observe or edit a packed tensor. TransformerLens names. */
#ifndef MODELS_PROBE_H
#define MODELS_PROBE_H
#include "host/error.h"
#include "kernels/device.h"
#include "models/batch.h"
enum probe_point {
    PROBE_EMBED,           /* hook_embed (N, C), after the image rows are spliced in */
    PROBE_RESID_PRE,       /* blocks.L.hook_resid_pre (N, C) */
    PROBE_ATTN_Z,          /* blocks.L.attn.hook_z (N, H*D) */
    PROBE_ATTN_OUT,        /* blocks.L.hook_attn_out (N, C), before it is added */
    PROBE_RESID_MID,       /* blocks.L.hook_resid_mid (N, C) */
    PROBE_MLP_OUT,         /* blocks.L.hook_mlp_out (N, C) */
    PROBE_RESID_POST,      /* blocks.L.hook_resid_post (N, C) */
    PROBE_FINAL_NORM,      /* ln_final.hook_normalized (N, C), before the norm's weight; a copy: edits go nowhere */
    PROBE_LOGITS,          /* logits (N, V) f32 (real_t), whatever act_t is */
    PROBE_VISION_RESID,    /* vision.L.hook_resid_post (B*(1+n), C_vision), class row first */
    PROBE_VISION_SELECTED, /* vision.selected (B*n, C_vision); n + 1 rows where the class row is kept */
    PROBE_PROJECTOR,       /* projector (B*n, C) */
    PROBE_POINTS
};
/* As a probe's layer: every layer, and the probe only edits: it asks for nothing, so the pass ends and narrows as without it.
 * In a narrowed layer x has n_samples rows, each sample's last (batch stays the whole one). */
enum { PROBE_EDIT = -2 };
struct probe {
    enum probe_point point;
    int layer; /* -1: every layer (or points that have none); PROBE_EDIT */
    /* x: device tensor (rows, width), act_t (PROBE_LOGITS: real_t), in place; may be read or edited, work is put on the
     * device's stream. batch: whose rows these are. Return -1 with err to stop the forward pass. */
    int (*run)(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *batch, struct error *err);
    void *context;
};
/* Names <-> points: "blocks.3.hook_resid_post", "blocks.*.hook_attn_out", "vision.2.hook_resid_post", ...; '*' gives layer -1. */
int probe_parse(const char *name, enum probe_point *point, int *layer, struct error *err);
void probe_name(enum probe_point point, int layer, char *out, size_t out_bytes);
bool probe_has_layer(enum probe_point point);

/* What a forward pass carries: the caller's probes and the batch they are told about. */
struct probes {
    const struct probe *at;
    int n;
    const struct batch *batch;
};
bool probes_want(const struct probes *p, enum probe_point point, int layer); /* layer -1: any */
/* Runs the probes of a point in the caller's order; -1 with err when one stops the pass. */
int probes_run(const struct probes *p, struct device *dev, enum probe_point point, int layer, void *x, int rows, int width,
               struct error *err);
#endif
