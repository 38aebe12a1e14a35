/* diff.h - the parts of `stagediff diff`. One job is one dictionary: a layer of a regime. Internal to analysis/diff*.c and its tests.
 *
 *   z_f   code of feature f times |d_f|: the unit-decoder convention, whatever the file's rows measure
 *   E_v   mean of z_f^2 over the tokens of the vision-language model's run (BOS dropped; text tokens alone on request)
 *   E_t   mean of z_f^2 over the tokens of the base LLM's run on the same questions, without pictures (BOS dropped)
 *   adapted = E_v > eps and decoder cosine to the base SAE <= the p-th percentile of all layers' cosines pooled (papers.md 1.3) */
#ifndef ANALYSIS_DIFF_H
#define ANALYSIS_DIFF_H
#include "analysis/run.h"
#include "models/model.h"
#include "sae/sae.h"

/* Token groups: image rows; question and answer; template text, all of the VLM's run; every token of the base LLM's. */
enum { DIFF_PATCHES, DIFF_WORDS, DIFF_TEMPLATE, DIFF_BASE, DIFF_GROUPS, DIFF_TOP = 8, DIFF_CHUNK = 2048 };
#define DIFF_DENSE   0.1 /* features that fire on more of the patches (words) than this say little and are shown last */
#define DIFF_IGNORED 255 /* group of a BOS row */

struct diff_top { /* one of a feature's strongest pictures: its strongest image row or word there, over the picture's samples */
    float value;
    int position;
    long sample, picture; /* -1: empty; picture: the first sample that has it */
};
struct diff_origin { /* where a row comes from */
    long sample, picture;
    int position;
};
struct diff_job {
    enum regime regime;
    int layer, d, M, K;
    double *energy;                                      /* (DIFF_GROUPS, M) sums of z^2, unit-decoder, after diff_job_collect */
    int64_t *fired;                                      /* (DIFF_GROUPS, M) tokens */
    float *norm;                                         /* (M) |d_f| */
    float *encoder_norm, *base_norm, *base_encoder_norm; /* (M); those of the base SAE NaN without one */
    float *decoder_cosine, *encoder_cosine;              /* (M) to the base SAE; NaN without one */
    uint8_t *adapted;                                    /* (M) after diff_select */
    struct diff_top *top;                                /* (M, DIFF_TOP), pictures distinct, or NULL: not kept */
    bool top_of[DIFF_GROUPS];                            /* groups whose tokens count for top: image rows and words, unless changed */
    /* on the device while the job's pass runs */
    struct sae sae;
    double *device_energy;
    int64_t *device_fired;
};
struct diff_counts {
    long tokens[DIFF_GROUPS];
    bool text_only; /* E_v without image rows */
};

/* Device memory that every job uses in turn. */
struct diff_buffers {
    struct device *dev;
    int *indices, *offsets, *entries;
    float *values;
    void *encode_scratch, *csc_scratch;
    size_t encode_scratch_bytes;
    uint8_t *groups; /* (DIFF_CHUNK) */
    int *host_indices;
    float *host_values;
};
int diff_buffers_open(struct diff_buffers *b, struct device *dev, int d, int M, int K, struct error *err);
void diff_buffers_close(struct diff_buffers *b);

/* diff_stream.c. Open compares the tuned dictionary with the base one (NULL: with none); attach puts it on the device, rows accumulates
 * (x: (n, d) act_t on the device; group: n bytes on the host; origin: of each row, NULL without top),
 * collect brings the sums home and takes the dictionary off the device. */
int diff_job_open(struct diff_job *job, struct device *dev, enum regime regime, int layer, const struct sae_host *tuned,
                  const struct sae_host *base, bool keep_top, struct error *err);
int diff_job_attach(struct diff_job *job, struct diff_buffers *b, const struct sae_host *tuned, struct error *err);
void diff_job_rows(struct diff_job *job, struct diff_buffers *b, const void *x, int n, const uint8_t *group,
                   const struct diff_origin *origin);
void diff_job_collect(struct diff_job *job, struct diff_buffers *b);
void diff_job_close(struct diff_job *job);
int diff_load(struct sae_host *tuned, const struct run_config *c, enum regime regime, int layer, int d_model, struct error *err);
int diff_load_base(struct sae_host *base, const struct run_config *c, int layer, const struct sae_host *tuned, struct error *err);
/* picture[i]: the first sample with sample i's image; i itself without one. Malloced. */
long *diff_pictures(const struct samples *s);
/* Runs the samples through the model and every attached job. Adds to tokens. */
struct diff_pass {
    const char *title;
    bool base;    /* the base LLM: every token but BOS is of group DIFF_BASE, no top */
    bool answers; /* the line's answer is appended */
};
int diff_stream(struct diff_job *jobs, int n_jobs, struct diff_buffers *b, struct model *m, const struct samples *s, size_t n_samples,
                const long *picture, int batch, const struct diff_pass *pass, long *tokens, struct error *err);
size_t diff_job_bytes(const struct diff_job *job); /* on the device while attached */

/* diff_select.c. numpy.percentile(values, p): linear between order statistics; reorders values. */
double percentile_linear(double *values, size_t n, double p);
double diff_energy(const struct diff_job *job, const struct diff_counts *n, int f, bool image);
double diff_fire(const struct diff_job *job, const struct diff_counts *n, int f, bool image);
/* Marks the adapted features of all jobs of a regime; returns its cosine threshold. */
double diff_select(struct diff_job *jobs, int n_jobs, enum regime regime, const struct diff_counts *n, double eps, double percentile);
struct diff_chosen {
    int job, feature;
};
/* The features to show, of the regime's adapted ones (of all if none is): half by falling energy on image rows, half by falling
 * energy on words, each only if it fires on at most DIFF_DENSE of them and no layer more than its double share; then, to fill up,
 * by falling E_v. Malloced, *count entries. */
struct diff_chosen *diff_choose(const struct diff_job *jobs, int n_jobs, enum regime regime, const struct diff_counts *n, int wanted,
                                int *count);

/* diff_examples.c: the second pass, over the strongest samples of the features shown. */
struct diff_example {
    int job, feature, rank;
    struct diff_top top;
    uint8_t kind;
    float *values; /* (tokens) z_f at every token of the sample */
    int tokens;
};
struct diff_sample { /* a row of `samples` */
    long index;
    char *tokens; /* JSON list of strings */
    uint8_t *kinds;
    int n_tokens;
    uint8_t *picture; /* PNG, as the tower sees it */
    size_t picture_bytes;
};
struct diff_examples {
    struct diff_example *at;
    int count;
    struct diff_sample *sample;
    int n_samples;
};
/* Words and picture of the batch's sample i as the model has them. */
int diff_describe(struct diff_sample *row, const struct model *m, const struct sample *sample, const struct batch *b, int i,
                  struct error *err);
int diff_examples_run(struct diff_examples *e, const struct run_config *c, struct diff_job *jobs, const struct diff_chosen *chosen,
                      int n_chosen, struct diff_buffers *b, struct model *m, const struct samples *s, bool answers, struct error *err);
void diff_examples_free(struct diff_examples *e);

/* diff_write.c. Rows of samples and examples, inside the caller's transaction. Line i of s becomes
 * sample first + step * i; what e calls i is line offset + i. */
int diff_write_examples(sqlite3 *db, const struct run_config *c, const struct diff_job *jobs, const struct samples *s, long offset,
                        long first, long step, const struct diff_examples *e, struct error *err);
/* All rows in one transaction, in place of those of an earlier run. Sample i is line first + i of the data file s. */
int diff_write(sqlite3 *db, const struct run_config *c, const struct diff_job *jobs, int n_jobs, const struct diff_counts *n,
               const double *thresholds, const struct samples *s, long first, const struct diff_examples *e, struct error *err);
#endif
