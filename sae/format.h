/* format.h - inside sae/: one dictionary on disk, recognised, and what every format's reader shares. */
#ifndef SAE_FORMAT_H
#define SAE_FORMAT_H
#include "host/tensors.h"
#include "sae/sae.h"
#include <jansson.h>

struct sae_files { /* owned paths */
    enum sae_format format;
    char *folder, *config, *weights; /* config: NULL for a format that is one file */
};
/* A folder, or a file in one (the configuration or the weights): which format it is. When weights are missing, f->config says that the
 * configuration alone has told the format. Fills f in any case: sae_files_free. */
int sae_recognise(struct sae_files *f, const char *path, struct error *err);
void sae_files_free(struct sae_files *f);

/* Readers: fill the scalars and check every tensor's name, shape and type; with `arrays` load them too, folded into the canonical form. */
int llama_scope_read(struct sae_host *s, const struct sae_files *f, bool arrays, struct error *err);
int openmoss_read(struct sae_host *s, const struct sae_files *f, bool arrays, struct error *err);
int saelens_read(struct sae_host *s, const struct sae_files *f, bool arrays, struct error *err);
int sparsify_read(struct sae_host *s, const struct sae_files *f, bool arrays, struct error *err);
int dictionary_learning_read(struct sae_host *s, const struct sae_files *f, bool arrays, struct error *err);
int gemma_scope_read(struct sae_host *s, const struct sae_files *f, bool arrays, struct error *err);
int tensor_file_read(struct sae_host *s, const struct sae_files *f, bool arrays, struct error *err); /* says which format in s->format */

/* Configuration values, with errors that name file, key, expected and found. A missing key gives `fallback`. */
json_t *json_open(const char *path, struct error *err); /* an object; NULL with err */
int json_bool(const json_t *o, const char *file, const char *key, bool fallback, bool *value, struct error *err);
int json_number(const json_t *o, const char *file, const char *key, double fallback, double *value, struct error *err);
int json_count(const json_t *o, const char *file, const char *key, int fallback, int *value, struct error *err); /* 1 .. 2^30 */
/* A string, or NULL when absent or null; -1 for other types. */
int json_text(const json_t *o, const char *file, const char *key, const char **value, struct error *err);

const struct tensor *tensor_named(const struct tensors *st, const char *name); /* NULL when absent; NAME or sae.NAME */
/* The tensor (rank 1 when columns is 0, else 2; floating point) as f32; transposed: (a, b) stored becomes (b, a). Values that are NaN
 * or infinite are refused. out NULL: name, shape and type are checked, nothing is read. */
int tensor_load(float **out, const struct tensors *st, const char *name, int rows, int columns, bool transposed, struct error *err);
int tensor_number(double *value, const struct tensors *st, const char *name, struct error *err); /* one element of any shape and type */
/* s->d and s->M, where still 0, from the encoder's matrix: (M, d), or (d, M) where transposed. */
int sizes_of(struct sae_host *s, const struct tensors *st, const char *encoder, bool transposed, struct error *err);
int layer_of_hook(const char *hook); /* -1 when it names none */

/* Folds, sums in double: n_f = |D[f]| (M, malloced);  D[f] /= n_f, E[f] *= n_f, b_e[f] *= n_f;  b_e -= sign E b_d. */
float *decoder_norms(const struct sae_host *s);
void fold_decoder_norms(struct sae_host *s);
void fold_pre_bias(struct sae_host *s, double sign);
/* Gated encoders (Rajamanoharan et al. 2024): with p = E (x - pre_bias), z = p + gate > 0 ? relu(exp(r_mag) p + mag) : 0. Both conditions
 * are on one product, so a JumpReLU says the same: E *= exp(r_mag), b_e = mag, threshold = max(0, mag - exp(r_mag) gate).
 * load_gate: b_e := mag, threshold := gate, scale of E into rank_scale; fold_gate makes the JumpReLU of it, and folds b_d where pre_bias.
 */
int load_gate(struct sae_host *s, const struct tensors *st, const char *gate, const char *mag, bool arrays, struct error *err);
void fold_gate(struct sae_host *s, bool pre_bias);
#endif
