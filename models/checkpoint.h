/* checkpoint.h - the files behind a checkpoint folder: where its language model, projector and vision tower lie (docs/models.md).
 * Reads configs and tensor headers only. */
#ifndef MODELS_CHECKPOINT_H
#define MODELS_CHECKPOINT_H
#include "models/config.h"
#include "models/weights.h"

struct checkpoint {
    char *dir;
    struct checkpoint_config config;
    struct weight_source own, base, bridge, vision;      /* the folder's files; --base; mm_projector.bin; the tower's folder */
    const struct weight_source *llm, *projector, *tower; /* which of them holds the part; NULL: no such part, or not found */
};
struct checkpoint_options {
    const char *base;         /* --base DIR: the language model of a folder that holds a projector alone, or NULL */
    const char *vision_tower; /* --vision-tower DIR or NULL */
    void (*report)(void *context, const char *sentence); /* NULL: the first fault ends the opening */
    void *context;
};
/* -1: config.json cannot be read (c->config.known tells whether the layout could), or, without report, a part is not found. */
int checkpoint_open(struct checkpoint *c, const char *dir, const struct checkpoint_options *options, struct error *err);
void checkpoint_close(struct checkpoint *c); /* also of one that is all zero, or whose open failed */
/* The folder whose tokenizer is the model's: the checkpoint's own, else the base's. */
const char *checkpoint_tokenizer(const struct checkpoint *c);

struct checkpoint_pass { /* what a forward pass takes in */
    int tokens, samples, pictures;
};
/* Device bytes of the opened model (its first `layers` LLM layers; 0: all) and of the scratch of a pass: the loaders' own layouts,
 * measured. */
size_t checkpoint_weight_bytes(const struct checkpoint *c, int layers);
size_t checkpoint_scratch_bytes(const struct checkpoint *c, const struct checkpoint_pass *pass);
#endif
