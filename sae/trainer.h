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
struct train_metrics { /* of one step, before its update */
    double loss, fvu, l0;
    long step;
    int rows;
};
struct sae_trainer; /* owns the dictionary, Adam's moments and scratch on the device */
int sae_trainer_open(struct sae_trainer **t, struct device *dev, const struct sae_host *start, const struct train_settings *settings, struct error *err);
void sae_trainer_close(struct sae_trainer *t);
/* One update on x (n, d) act_t on the device. Metrics are read back (a wait) only when `metrics` is not NULL. */
void sae_trainer_step(struct sae_trainer *t, const void *x, int n, struct train_metrics *metrics);
struct sae *sae_trainer_sae(struct sae_trainer *t); /* the live dictionary, borrowed */
long sae_trainer_steps(const struct sae_trainer *t);
/* dead features: no positive code in the last `window` rows trained on */
int sae_trainer_dead(struct sae_trainer *t, long window);
int sae_trainer_download(struct sae_trainer *t, struct sae_host *out, struct error *err);
/* Full state (weights, moments, counters) as one safetensors file, atomic; a loaded state continues bit for bit. */
int sae_trainer_save(struct sae_trainer *t, const char *path, struct error *err);
int sae_trainer_load(struct sae_trainer *t, const char *path, struct error *err);
#endif
