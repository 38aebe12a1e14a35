/* sae.h - a sparse dictionary: canonical form in memory, formats on disk, encode and decode. sae/ never sees a model.
 * Canonical: h = E x + b_e (any pre-bias folded into b_e), act, x_hat = D^T z + b_d; E, D (M, d) feature-major f32. */
#ifndef SAE_SAE_H
#define SAE_SAE_H
#include "host/error.h"
#include "kernels/device.h"
#include <stdbool.h>
enum sae_activation {
    SAE_TOPK,     /* the K largest h, relu */
    SAE_JUMPRELU, /* h where h > threshold (strict); gated and batch-topk dictionaries become this */
    SAE_RELU,
    SAE_SIGNED,   /* the K largest |h|, sign kept */
    SAE_GROUPMAX, /* features in K groups of M/K neighbours: relu of each group's largest h */
};
enum sae_format {
    SAE_FORMAT_LLAMA_SCOPE,
    SAE_FORMAT_OPENMOSS_EARLY, /* January to June 2025 */
    SAE_FORMAT_OPENMOSS,
    SAE_FORMAT_SAELENS,
    SAE_FORMAT_SPARSIFY,
    SAE_FORMAT_GEMMA_SCOPE,
    SAE_FORMAT_DICTIONARY_LEARNING,
    SAE_FORMAT_MMDIFF,
    SAE_FORMAT_QWEN_SCOPE,
};
/* What is done to every row before it is encoded and undone to its reconstruction (SAELens). */
enum sae_norm {
    SAE_NORM_NONE,
    SAE_NORM_LENGTH, /* x sqrt(d) / |x|: constant_norm_rescale */
    SAE_NORM_LAYER,  /* (x - mean) / (deviation + 1e-5), deviation with d - 1: layer_norm */
};
struct sae_host { /* on the host, owned, f32, in `encode`'s units of docs/cli.md */
    enum sae_format format;
    enum sae_activation activation;
    bool transcoder; /* x_hat is not x's reconstruction but another hook point's value */
    enum sae_norm norm;
    int d, M, K;     /* K: active features of a row where the activation fixes them; 0 when the file does not hold it */
    bool k_assumed;  /* K is the format's default, no file says it */
    bool ranked;     /* topk ranked by h * rank_scale */
    bool configured; /* the format was told by a configuration, not by the tensors alone */
    float *E, *D, *b_e, *b_d;
    float *threshold;   /* (M), JumpReLU; else NULL */
    float *rank_scale;  /* (M), where ranked; else NULL */
    float *skip;        /* (d, d), transcoders: x_hat += skip x; else NULL */
    char hook[128];     /* "blocks.3.hook_resid_post", "" when unknown */
    char hook_out[128]; /* of a transcoder; else "" */
    int layer;          /* of the hook, -1 when unknown */
};
int sae_load(struct sae_host *s, const char *path, struct error *err); /* folder or file; recognises the format */
int sae_peek(struct sae_host *s, const char *path,
             struct error *err);     /* the same without the arrays (NULL); every tensor's shape is checked */
char *sae_weights(const char *path); /* the file that holds the dictionary's tensors, malloced; NULL when there is none */
/* The layouts that are written (docs/dictionaries.md): a folder with cfg.json and weights; mmdiff: one torch file. Files are atomic. */
enum sae_layout { SAE_LAYOUT_SAELENS, SAE_LAYOUT_SPARSIFY, SAE_LAYOUT_MMDIFF };
enum { SAE_MMDIFF_K = 50 };                                                        /* what an MMDiff topk file means without saying it */
const char *sae_layout_name(enum sae_layout to);                                   /* "saelens", ... */
int sae_can_save(const struct sae_host *s, enum sae_layout to, struct error *err); /* -1 with why not: same codes or nothing */
int sae_save(const struct sae_host *s, enum sae_layout to, const char *path, struct error *err);
int sae_save_saelens(const struct sae_host *s, const char *dir, struct error *err); /* one that SAELens has: topk, jumprelu, relu */
void sae_host_free(struct sae_host *s);
const char *sae_format_name(enum sae_format f);         /* "Llama Scope v1", "SAELens", ... */
const char *sae_activation_name(enum sae_activation a); /* "topk", "jumprelu", "relu", "signed topk", "groupmax" */
/* Rows have K code slots, no more and no fewer; else (jumprelu, relu) as many as are active. */
bool sae_fixed_k(enum sae_activation a);
/* Random start: seeded unit decoder rows, encoder their copy, biases 0. */
int sae_random(struct sae_host *s, int d, int M, int K, unsigned long seed, struct error *err);

/* Rows (n, d) in place; undone: x = x scale + shift. shift, scale [out] (n). */
void sae_normalise(enum sae_norm norm, float *x, float *shift, float *scale, int n, int d);
void sae_denormalise(float *x, const float *shift, const float *scale, int n, int d);
/* Whether it gives back rows as they come: transcoders and dictionaries that normalise rows do not; -1 with why. */
int sae_check_plain(const struct sae_host *s, struct error *err);
/* k for a dictionary with a fixed number of active features: k > 0 takes the place of the file's own; path is for messages. */
int sae_set_k(struct sae_host *s, int k, const char *path, struct error *err);

struct sae { /* on the device */
    struct device *dev;
    enum sae_activation activation;
    int d, M, K;
    float *E, *D, *b_e, *b_d, *threshold, *rank_scale; /* E, b_e of a signed one: (2M, ..), the second half with its sign turned */
    float *skip, *skip_bias, *skip_threshold;
    void *E_low;   /* bf16, as E, when products are bf16, else NULL */
    void *scratch; /* of the encoder, for max_rows rows */
    size_t scratch_bytes;
    bool scratch_borrowed;
    int max_rows;
};
/* Turns a start into a TopK dictionary of k features: threshold and rank scale are dropped, weights stay in encode's units (papers.md 1.2).
 * k 0: the file's own, 50 where it holds none. Only plain ones. */
int sae_make_topk(struct sae_host *s, int k, struct error *err);
int sae_upload(struct sae *dst, struct device *dev, const struct sae_host *s, int max_rows, bool bf16_products, struct error *err);
void sae_free(struct sae *s);
void sae_refresh_low(struct sae *s, const float *E); /* E_low := bf16(E), E on the host; nothing without E_low */
/* Device bytes of a dictionary (without the encoder's scratch), and of the encoder's scratch, which may be lent: sae_encode of up to
 * max_rows rows with K slots (activation, d, M and skip of s count). */
size_t sae_device_bytes(int d, int M, bool bf16_products);
size_t sae_scratch_bytes(const struct sae *s, int max_rows, int K);
/* x (N, d) act_t on the device -> indices, values (N, K) on the device, K slots a row, ascending; unless sae_fixed_k: counts (N) on the
 * device, may exceed K. N <= max_rows. Groupmax: K is the dictionary's own. */
void sae_encode(struct sae *s, int *indices, float *values, int *counts, const void *x, int N, int K);
void sae_skip(struct sae *s, float *y, const void *x, int N); /* y (N, d) = skip x, which the reconstruction gets too; only with skip */
#endif
