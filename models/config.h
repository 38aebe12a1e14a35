/* config.h - what a checkpoint folder's config.json says, in one shape for every layout and both spellings of transformers.
 * Sources: LlamaConfig, CLIPVisionConfig, LlavaConfig of transformers 4.44 to 5.x; LLaVA's own config (docs/models.md). */
#ifndef MODELS_CONFIG_H
#define MODELS_CONFIG_H
#include "host/error.h"
#include <jansson.h>
#include <stdbool.h>

enum checkpoint_layout { LAYOUT_LLAMA, LAYOUT_CLIP, LAYOUT_LLAVA, LAYOUT_LLAVA_HF };
enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };
enum projector_type { PROJECTOR_LINEAR, PROJECTOR_MLP };

struct rope_config {
    enum rope_type type;
    double theta, factor, low_freq_factor, high_freq_factor, original_positions;
};
struct llama_config {
    int V, C, F, L, H, G, D; /* vocabulary, width, mlp, layers, heads, kv heads, head dim */
    int max_positions;
    float eps;
    bool tied; /* the head is the embedding table */
    struct rope_config rope;
};
struct clip_config {
    int C, F, L, H, D; /* width, mlp, layers, heads, head dim */
    int S, P;          /* picture side, patch side: n = (S/P)^2 patches */
    float eps;
    bool exact_gelu; /* hidden_act "gelu"; else quick_gelu */
};
struct llava_config {
    int selected;   /* index into hidden_states, from 0: that many tower layers are run */
    bool class_row; /* the class row is kept among the image rows */
    enum projector_type projector;
    int projector_linears; /* 1 for linear, 2 for mlp2x_gelu, ... */
    bool projector_bias;
    int image_token;        /* llava-hf: image_token_index, else -1 */
    bool pad_square;        /* image_aspect_ratio "pad" */
    char vision_tower[512]; /* original layout: mm_vision_tower */
    char base[512];         /* original layout: _name_or_path, the language model of a folder with a projector alone */
    int select_layer;       /* as written, -2: resolved by config_select once the tower's dims are known */
};
struct checkpoint_config {
    bool known; /* the layout could be told, even where config_open failed later */
    enum checkpoint_layout layout;
    bool has_llm, has_tower; /* has_tower: the dims in `clip` are known */
    struct llama_config llm;
    struct clip_config clip;
    struct llava_config llava;
    int n_eos, eos[8];
    char dtype[16]; /* as declared, "" when absent */
};

/* Reads DIR/config.json (and generation_config.json for the eos ids). Errors name file, key, expected, found. */
int config_open(struct checkpoint_config *c, const char *dir, struct error *err);
/* The tower's dims from its own folder, or from the table of known Hub names (1: found, 0: unknown name). */
int config_tower_open(struct clip_config *c, const char *dir, struct error *err);
int config_tower_known(struct clip_config *c, const char *hub_name);
/* select_layer -> selected, checked against the tower's layers. */
int config_select(struct checkpoint_config *c, const char *dir, struct error *err);
/* A JSON file as an object, at most 64 MB; NULL with err. */
json_t *config_json(const char *dir, const char *name, struct error *err);
const char *layout_name(enum checkpoint_layout l); /* "llama", "clip", "llava", "llava-hf" */
#endif
