/* prefix.h - a batch of prompts run several times under different probes; what comes out the same every time is done once: the image rows,
 * and where the probes leave everything up to the last image row alone, the keys and values of those rows. */
#ifndef MODELS_PREFIX_H
#define MODELS_PREFIX_H
#include "models/model.h"
struct prefix;
/* Runs what is shared. keys: every later probe touches rows behind the image alone (batch_after_image). b is borrowed. Uses the model's
 * key-value cache and image rows: until it is closed nothing else may run this model. max_new: most new tokens of prefix_generate. */
int prefix_open(struct prefix **p, struct model *m, const struct batch *b, bool keys, int max_new, struct error *err);
void prefix_close(struct prefix *p); /* NULL is fine */
/* As model_forward for last_logits [out] (n_samples, V) on the host, and as model_generate, any number of times. Probes see the rows that
 * are run: with keys only those behind the image (a prompt that ends with its image has none: then nothing is left out). */
int prefix_forward(struct prefix *p, const struct probe *probes, int n_probes, float *last_logits, struct error *err);
int prefix_generate(struct prefix *p, const struct probe *probes, int n_probes, int **ids, int **lengths, bool **stopped,
                    struct error *err);
#endif
