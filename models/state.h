/* state.h - scratch a model keeps between passes. Private to models/. */
#ifndef MODELS_STATE_H
#define MODELS_STATE_H
#include "models/clip.h"
#include "models/llama.h"
#include "models/llava.h"
#include "models/model.h"

struct model_state {
    struct buffer index;  /* int arrays of struct llama_rows */
    struct buffer logits; /* (S, V) real, then (S) i32 of argmax */
    struct buffer cache;  /* keys, then values */
};
/* Image rows of the batch (vision probes run), NULL without pictures. project: the LLM will read them. */
int model_image_rows(struct model *m, const struct batch *b, const struct probes *probes, bool project, const act_t **image_rows,
                     struct error *err);
/* Uploads what llama_rows needs; host arrays as in struct batch. k_start NULL: the rows' own places. */
int model_upload_rows(struct model *m, struct llama_rows *rows, const struct batch *b, const int *k_start, const int *k_length,
                      struct error *err);
/* (S, V) real on the device, and (S) i32 behind it. */
int model_logits(struct model *m, int S, real_t **logits, int **argmax, struct error *err);
#endif
