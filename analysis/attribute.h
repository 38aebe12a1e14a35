/* attribute.h - attribution patching: which attention heads write features, estimated for all heads at once from one gradient, and
 * checked by patching heads for true. Definitions: docs/cli.md, Attribution. Sources: Nanda 2023; papers.md 1.5, 4.3. */
#ifndef ANALYSIS_ATTRIBUTE_H
#define ANALYSIS_ATTRIBUTE_H
#include "models/model.h"
#include "sae/sae.h"

struct attribute_set { /* features of one layer; all borrowed */
    int layer;         /* the metric reads its resid_post */
    const struct sae_host *sae;
    const int *features;
    int n;
};
enum attribute_corruption { CORRUPT_MEAN, CORRUPT_ZERO, CORRUPT_SWAP, CORRUPT_PROMPT };
enum attribute_gradient { GRADIENT_CORRUPT, GRADIENT_CLEAN, GRADIENT_PATH };
extern const char *const attribute_corruption_names[]; /* "mean", "zero", "swap", "prompt", NULL */
struct attribute_job {                                 /* borrowed */
    struct model *m;
    const struct samples *samples;
    const struct attribute_set *sets; /* rising layers, each once: the metric is the sum over all of them */
    int n_sets, batch;
    bool code; /* metric: the codes z_f; else resid_post . d_f */
    enum attribute_corruption corruption;
    enum attribute_gradient gradient;
    int steps; /* of GRADIENT_PATH: integrated gradients */
    int exact; /* so many top heads, and so many drawn, are patched */
    unsigned long seed;
    /* Told of every sample, in order: score (layers, H, T) malloced, the callee's from then on; metric: clean, corrupt. NULL: nobody. */
    void (*sample)(void *context, size_t i, float *score, int T, const double metric[2]);
    void *context;
};
struct attribute_exact {
    int layer, head;
    double effect, estimate; /* of patching it; and its signed score */
};
struct attribution {                 /* owned */
    int layers, heads;               /* layers up to the highest set's */
    double *signed_score, *mean_abs; /* (layers, heads) */
    double metric[2];                /* mean over samples: clean, corrupt */
    struct attribute_exact *exact;   /* (n_exact) top heads by |signed|, falling; then the drawn ones by layer and head */
    int n_exact;
};
/* 0, -1 with err, or 128 + signal when stopped. */
int attribute(const struct attribute_job *j, struct attribution *a, struct error *err);
void attribution_free(struct attribution *a);

/* ---- attribute_map.c: where heads look ---- */
struct attribute_head {
    int layer, head;
};
/* Attention of heads to the picture of the batch's only sample: weights [out] (n, rows), mean over the positions behind the image of the
 * softmax at each image row, in their order; malloced. rows 0: no picture, or nothing behind it. */
int attribute_attention(struct model *m, const struct batch *b, const struct attribute_head *heads, int n, float **weights, int *rows,
                        struct error *err);

/* ---- attribute_features.c: "3,17" or "task:NAME": the task's features in a run.db (docs/database.md). *list malloced. ---- */
int attribute_features(int **list, int *n, const char *text, int layer, const struct sae_host *sae, const char *sae_path,
                       struct error *err);
/* The dictionary of a layer at `path`, fit for attribution to it: k where the files hold none, a note when it is another layer's. */
int attribute_sae(struct sae_host *s, const char *path, int layer, struct error *err);
int attribute_gradient_read(const char *text, enum attribute_gradient *g, int *steps, struct error *err); /* "corrupt", "clean", "ig:N" */
#endif
