/* steer.h - steering with held-out selection: a direction made on training samples, its layer and strength chosen on dev samples, its
 * effect told on test samples. Vectors are added to resid_post behind the image. Methods: papers.md 3.5. */
#ifndef ANALYSIS_STEER_H
#define ANALYSIS_STEER_H
#include "analysis/intervene.h"
#include "analysis/vectors.h"

enum steer_method {
    STEER_CAA,          /* v/|v| of each layer times the strength */
    STEER_MMDIFF_SCALE, /* at the feature's layer, v/|v| + (factor - 1) (its part along the feature), times the strength */
    STEER_MMDIFF_SUM,   /* strength times v at every layer of the list, factor times the feature's unit row at its layer */
    STEER_DECODER,      /* the feature's unit decoder row at each layer times the strength */
    STEER_METHODS
};
extern const char *const steer_methods[STEER_METHODS + 1]; /* "caa", "mmdiff-scale", "mmdiff-sum", "decoder", NULL */
struct steer_point {                                       /* one layer and strength on the dev samples */
    int layer;
    double strength, accuracy;
};
struct steer_samples {
    const struct samples *s;
    size_t first, count;
};
struct steering {
    /* set by the caller */
    enum steer_method method;
    enum contrast contrast;
    enum evaluation_task task;
    int max_new_tokens, batch, controls;
    uint64_t seed;
    double factor;              /* mmdiff-scale: beta; mmdiff-sum: gamma */
    const struct sae_host *sae; /* of the feature; NULL for caa */
    int feature, feature_layer;
    const int *layers; /* which are tried (caa, decoder) or carry v (mmdiff-sum) */
    int n_layers;
    const double *strengths;
    int n_strengths;
    /* results */
    long positive, negative;    /* training samples on either side (none for decoder) */
    struct steer_point *points; /* owned, in the order of layers and strengths */
    int n_points, chosen;       /* highest accuracy on dev; ties: the smaller strength, then the earlier one */
    long dev_n;
    double dev_baseline;
    struct intervention test; /* the chosen point; controls are random directions of the same length */
};
/* 0; -1 with err; 128+signal when stopped. Free it in any case. train.s may be NULL for decoder. */
int steer(struct steering *x, struct model *m, const struct steer_samples *train, const struct steer_samples *dev,
          const struct steer_samples *test, struct error *err);
void steering_free(struct steering *x);
#endif
