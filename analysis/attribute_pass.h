/* attribute_pass.h - the passes that attribution is made of. Internal to analysis/attribute*.c. */
#ifndef ANALYSIS_ATTRIBUTE_PASS_H
#define ANALYSIS_ATTRIBUTE_PASS_H
#include "analysis/attribute.h"
#include "models/llama_backward.h"

struct attribute_metric; /* of one set, on the device */
struct attribute_work {
    const struct attribute_job *job;
    struct model *m;
    struct device *dev;
    int layers, H, D, C;             /* layers 0 .. the highest set's */
    float *mean_row;                 /* (C) mean image row of the data file, CORRUPT_MEAN */
    struct attribute_metric *metric; /* (n_sets) */
    struct llama_tape tape;
    struct buffer staging, stream, z[2], scores, dx, dots, seeds, work;
};
int attribute_work_open(struct attribute_work *w, const struct attribute_job *j, struct error *err);
void attribute_work_close(struct attribute_work *w);

/* ---- attribute_pair.c: a batch, and what stands for it in the corrupt run ---- */
enum { CLEAN, CORRUPT };
struct attribute_pair {    /* host, owned */
    struct batch batch[2]; /* corrupt: its own with CORRUPT_PROMPT only */
    const struct batch *b[2];
    float *embed[2];   /* (N, C) hook_embed */
    uint8_t *after[2]; /* (N) rows behind the image */
};
int attribute_pair_make(struct attribute_work *w, struct attribute_pair *p, size_t first, size_t n, struct error *err);
void attribute_pair_free(struct attribute_pair *p);
/* The mean image row of the whole data file, each picture once a line. */
int attribute_mean_row(struct attribute_work *w, struct error *err);
/* n f32 of the host to act_t on the device. */
int attribute_put(struct attribute_work *w, act_t *dst, const float *src, size_t n, struct error *err);

/* ---- attribute_metric.c ---- */
int attribute_metrics_open(struct attribute_work *w, struct error *err);
void attribute_metrics_close(struct attribute_work *w);
struct attribute_reading { /* a probe's context: what the metric of set `set` is in one pass */
    struct attribute_work *w;
    int set;
    const uint8_t *after;
    double *m;   /* (S) [out] */
    act_t *seed; /* (N, C) [out] its gradient at the set's resid_post, NULL: not wanted */
};
int attribute_read(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err);

/* ---- attribute.c ---- */
struct attribute_run { /* one forward pass over a batch from a given stream */
    const struct batch *b;
    const uint8_t *after;
    const act_t *stream; /* (N, C) hook_resid_pre of layer `from` */
    int from;
    act_t *z;                 /* (layers, N, H*D) [out], NULL: not kept */
    bool keep, seeds;         /* into w->tape; seeds of the gradient into w->seeds */
    const struct probe *edit; /* NULL: none */
    double *m;                /* (n_sets, S) [out]; sets below `from` stay */
};
int attribute_forward(struct attribute_work *w, struct llama_rows *rows, const struct attribute_run *run, struct error *err);

/* Scores of one batch into w->scores (layers, N, H) on the device; m [out] (n_sets, S) of each run. */
int attribute_score_pair(struct attribute_work *w, const struct attribute_pair *p, double *m[2], struct error *err);

/* ---- attribute_exact.c: which heads are patched, and their effects; a->signed_score is given ---- */
int attribute_patch(struct attribute_work *w, struct attribution *a, struct error *err);
#endif
