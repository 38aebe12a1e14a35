/* model.h - a checkpoint folder opened for use: plain LLaMA, LLaVA (CLIP + projector + LLaMA) or a bare CLIP tower. */
#ifndef MODELS_MODEL_H
#define MODELS_MODEL_H
#include "host/image.h"
#include "host/samples.h"
#include "models/batch.h"
#include "models/probe.h"
struct llama;
struct llama_rows;
struct clip;
struct llava;
struct model_state;
struct model {
    char *dir;
    struct device *dev;
    struct llama *llm;           /* NULL for a bare CLIP folder */
    struct clip *tower;          /* NULL for a plain LLM */
    struct llava *bridge;        /* the projector, NULL for a plain LLM and a bare CLIP folder */
    struct model_state *state;   /* scratch of passes and generation */
    struct tokenizer *tokenizer; /* NULL for a bare CLIP folder */
    struct preprocess preprocess;
    enum prompt_template template;
    int n_layers, d_model, n_heads, n_kv_heads, head_dim, vocab, max_positions; /* of the LLM */
    int n_image_rows;                                                           /* rows one picture becomes, 0 without tower */
    int vision_layers, vision_width, image_size;
    int n_eos, eos[8]; /* generation_config.json, else config.json */
};
struct model_options {
    const char *vision_tower; /* --vision-tower DIR or NULL */
    const char *base;         /* --base DIR or NULL: the language model of a folder that holds a projector alone */
    const char *template;     /* --template NAME or NULL */
    int layers;               /* run only the first so many LLM layers; 0: all (weights beyond are not loaded) */
};
int model_open(struct model *m, struct device *dev, const char *dir, const struct model_options *options, struct error *err);
void model_close(struct model *m); /* also of a model that is all zero, or whose open failed */
/* Is there such a point in this model (parts, layer range, layers opened)? The error names both. */
int model_check_point(const struct model *m, enum probe_point point, int layer, struct error *err);

/* Packs samples[first .. first+n) into a batch (pictures decoded and preprocessed in parallel). with_answer as prompt_build.
 * Errors name the sample's line. Samples longer than max_positions are an error naming both lengths. */
int model_batch(const struct model *m, struct batch *b, const struct samples *s, size_t first, size_t n, bool with_answer,
                struct error *err);

/* One forward pass over a packed batch; probes run where they ask to. Stops after the last layer any probe needs unless logits
 * are asked for: last_logits [out] (n_samples, V) f32 on the host, logits at each sample's last token, or NULL. */
int model_forward(struct model *m, const struct batch *b, const struct probe *probes, int n_probes, float *last_logits, struct error *err);

/* The rows of a batch for passes of m->llm that start from a given stream (rows->stream) and for their gradients: models/llama.h,
 * models/llama_backward.h. Good until the model's next pass. */
int model_rows(struct model *m, const struct batch *b, struct llama_rows *rows, struct error *err);

/* Greedy generation with a KV cache for every sample of the batch; ids [out] malloced (n_samples, max_new), lengths [out]
 * malloced; the eos id is kept as the last id. stopped[i]: true when by eos. probes run on new tokens too (kind answer). */
int model_generate(struct model *m, const struct batch *b, int max_new, const struct probe *probes, int n_probes, int **ids, int **lengths,
                   bool **stopped, struct error *err);
#endif
