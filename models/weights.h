/* weights.h - the weights of a checkpoint placed on the device in act_t, or only checked: one walk over a model's tensors serves both. */
#ifndef MODELS_WEIGHTS_H
#define MODELS_WEIGHTS_H
#include "host/tensors.h"
#include "kernels/device.h"
#include "kernels/op.h"

/* Prefixes under which the parts of a checkpoint are stored (docs/models.md); NULL: the part is not in the file. */
struct weight_names {
    const char *llm;       /* before embed_tokens.weight, layers.0..., norm.weight */
    const char *head;      /* the whole name of the head, NULL: none in the file */
    const char *tower;     /* before embeddings.class_embedding, encoder.layers.0... */
    const char *projector; /* before 0.weight or linear_1.weight */
    bool projector_hf;     /* linear_1, linear_2; else 0, 2, ... (or weight alone) */
};
void weight_names_find(struct weight_names *names, const struct tensors *st);
struct weight_source { /* one folder or file of tensors, and what its names say */
    char *path;
    struct tensors *st;
    struct weight_names names;
};

struct weights { /* a walk over tensors; checked only (dst pointers unused) when dev is NULL or checking */
    const struct tensors *st;
    struct device *dev;
    float *host;       /* staging, WEIGHTS_CHUNK elements */
    real_t *staging;   /* the same on the device, where act_t is not f32 */
    struct error *err; /* first fault */
    int faults;
    bool checking; /* loaders walk once with this set, before memory is taken for what a config claims */
    void (*report)(void *context, const char *sentence); /* check only: every fault; NULL: none */
    void *context;
};
int weights_begin(struct weights *w, const struct weight_source *from, struct device *dev, struct error *err);
void weights_end(struct weights *w);
/* dst [out] = tensor `prefix`+name (printf) of exactly this shape, row-major, converted to act_t (round to nearest even).
 * Rank and dims are checked before a byte is read. A fault is kept in w->err and counted; later calls go on checking. */
void weights_place(struct weights *w, act_t *dst, int rank, const int64_t *shape, const char *prefix, const char *name, ...)
    __attribute__((format(printf, 6, 7)));
#define SHAPE1(a)                                                                                                                          \
    1, (const int64_t[]) { a }
#define SHAPE2(a, b)                                                                                                                       \
    2, (const int64_t[]) { a, b }
#define SHAPE4(a, b, c, d)                                                                                                                 \
    4, (const int64_t[]) { a, b, c, d }
#endif
