/* trainer.h - trains one dictionary on rows of activations: TopK, FVU loss, Adam (papers.md 1.2). Bitwise repeatable. */
#ifndef SAE_TRAINER_H
#define SAE_TRAINER_H
#include "sae/sae.h"
struct train_settings {
    double lr; /* 2e-4 */
    double beta1, beta2, eps;
    bool unit_norm_decoder, remove_parallel, bf16_products;
    int max_batch; /* rows */
};
extern const struct train_settings train_defaults; /* 2e-4, 0.9, 0.999, 1e-8, unit norm, f32 products; max_batch 4096 */
struct train_metrics {                             /* of one step, before its update */
    double loss, fvu, l0;
    long step;
    int rows;
};
/* Device bytes of one trainer: dictionary, Adam's moments, counters; and of the scratch that trainers of one shape share. */
size_t sae_trainer_bytes(int d, int M, bool bf16_products);
size_t sae_workspace_bytes(int d, int M, int K, int max_batch);

/* Scratch of a step (codes, gradients, feature-major view). Trainers of the same d and no larger M, K and batch share one, since
 * a device runs one step at a time. */
struct sae_workspace;
int sae_workspace_open(struct sae_workspace **w, struct device *dev, int d, int M, int K, int max_batch, struct error *err);
void sae_workspace_close(struct sae_workspace *w); /* NULL is fine */

struct sae_trainer; /* owns the dictionary, Adam's moments and, unless lent one, its workspace on the device */
/* shared: a workspace, borrowed; NULL: the trainer opens its own. start: TopK (sae_make_topk). */
int sae_trainer_open(struct sae_trainer **t, struct device *dev, const struct sae_host *start, const struct train_settings *settings,
                     struct sae_workspace *shared, struct error *err);
void sae_trainer_close(struct sae_trainer *t); /* NULL is fine */
/* One update on x (n, d) act_t on the device. Metrics are read back (a wait) only when `metrics` is not NULL. */
void sae_trainer_step(struct sae_trainer *t, const void *x, int n, struct train_metrics *metrics);
struct sae *sae_trainer_sae(struct sae_trainer *t); /* the live dictionary, borrowed */
long sae_trainer_steps(const struct sae_trainer *t);
long sae_trainer_rows(const struct sae_trainer *t); /* rows trained on */
/* Dead features: no positive code in the last `window` rows trained on. Firing is looked at every 16 steps, so a feature counts
 * as firing when it did in any stretch of 16 steps that reaches into the window. */
int sae_trainer_dead(struct sae_trainer *t, long window);
/* fired (M): positive codes so far; since (M): rows trained on since the stretch a feature last fired in, all rows when it never did. */
void sae_trainer_firing(struct sae_trainer *t, int64_t *fired, int64_t *since);
int sae_trainer_download(struct sae_trainer *t, struct sae_host *out, struct error *err);
/* Full state (weights, moments, counters) as one safetensors file, atomic; a loaded state continues bit for bit. */
int sae_trainer_save(struct sae_trainer *t, const char *path, struct error *err);
int sae_trainer_load(struct sae_trainer *t, const char *path, struct error *err);
#endif
