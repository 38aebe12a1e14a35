/* checkpoint.c - which files hold the parts of a checkpoint (checkpoint.h). */
#include "models/checkpoint.h"
#include "host/file.h"
#include "models/llama.h"
#include "models/llava.h"
#include <stdlib.h>
#include <string.h>

static bool holds(const char *dir, const char *name) {
    char *path = path_join(dir, name);
    bool there = file_exists(path);
    free(path);
    return there;
}

static bool holds_model(const char *dir) {
    return holds(dir, "model.safetensors") || holds(dir, "model.safetensors.index.json") || holds(dir, "pytorch_model.bin") ||
           holds(dir, "pytorch_model.bin.index.json");
}

/* A folder as a config names it: relative to dir, else as a path; malloced, NULL: nowhere. */
static char *named_folder(const char *dir, const char *written) {
    if (!*written) return NULL;
    char *inside = path_join(dir, written);
    if (dir_exists(inside)) return inside;
    free(inside);
    return dir_exists(written) ? path_join(NULL, written) : NULL;
}

/* Takes path. */
static int source_open(struct weight_source *s, char *path, struct error *err) {
    s->path = path;
    if (tensors_open(&s->st, path, err)) return -1;
    weight_names_find(&s->names, s->st);
    return 0;
}

static void source_close(struct weight_source *s) {
    tensors_close(s->st);
    free(s->path);
    *s = (struct weight_source){0};
}

/* Folders that people do have and that look like a model's. */
static int refuse_folder(const char *dir, struct error *err) {
    const size_t n = strlen(dir);
    if (n > 5 && !strcmp(dir + n - 5, ".gguf"))
        return fail(err, "%s: a GGUF file, expected a Hugging Face folder; tools/gguf_to_hf.py turns LLaMA-kind files into one", dir);
    if (!dir_exists(dir)) return fail(err, "%s: no such folder; expected a Hugging Face folder of LLaMA, LLaVA or CLIP", dir);
    if (holds(dir, "adapter_config.json") && !holds_model(dir))
        return fail(
            err, "%s/adapter_config.json: a LoRA adapter, expected a whole model; merge it into its base model and give that folder", dir);
    if (holds(dir, "params.json") && !holds(dir, "config.json"))
        return fail(
            err, "%s/params.json: Meta's own layout, expected a Hugging Face folder; transformers' convert_llama_weights_to_hf makes one",
            dir);
    return 0;
}

static int find_own(struct checkpoint *c, const struct checkpoint_options *o, struct error *err) {
    (void)o;
    if (c->config.layout == LAYOUT_LLAVA && !holds_model(c->dir) && holds(c->dir, "mm_projector.bin")) return 0;
    return source_open(&c->own, path_join(NULL, c->dir), err);
}

static int find_llm(struct checkpoint *c, const struct checkpoint_options *o, struct error *err) {
    if (!c->config.has_llm || c->own.path) {
        c->llm = c->config.has_llm && c->own.st ? &c->own : NULL;
        return 0;
    }
    const char *written = c->config.llava.base;
    char *folder = o->base ? path_join(NULL, o->base) : named_folder(c->dir, written);
    if (!folder)
        return fail(err,
                    "%s: holds a projector alone (mm_projector.bin); its language model%s%s%s is not on this disk; --base DIR names it",
                    c->dir, *written ? " \"" : "", written, *written ? "\"" : "");
    if (source_open(&c->base, folder, err)) return -1;
    c->llm = &c->base;
    return 0;
}

/* In the model's file, else in mm_projector.bin beside it (LLaVA's first stage writes that alone). */
static int find_projector(struct checkpoint *c, const struct checkpoint_options *o, struct error *err) {
    (void)o;
    if (!c->config.has_llm || c->config.layout == LAYOUT_LLAMA) return 0;
    c->projector = c->own.st ? &c->own : NULL;
    if (c->config.layout != LAYOUT_LLAVA || c->own.names.projector || !holds(c->dir, "mm_projector.bin")) return 0;
    c->projector = NULL;
    if (source_open(&c->bridge, path_join(c->dir, "mm_projector.bin"), err)) return -1;
    c->projector = &c->bridge;
    return 0;
}

/* The original layout's tower: weights in the model's file win; its folder gives heads, patch size and pictures. */
static int find_tower(struct checkpoint *c, const struct checkpoint_options *o, struct error *err) {
    struct checkpoint_config *g = &c->config;
    if (g->layout == LAYOUT_LLAMA) return 0;
    c->tower = c->own.st && (c->own.names.tower || g->layout != LAYOUT_LLAVA) ? &c->own : NULL;
    if (g->layout != LAYOUT_LLAVA) return 0;
    const char *written = g->llava.vision_tower;
    c->vision.path = o->vision_tower ? path_join(NULL, o->vision_tower) : named_folder(c->dir, written);
    if (c->vision.path ? config_tower_open(&g->clip, c->vision.path, err) != 0 : !config_tower_known(&g->clip, written))
        return c->vision.path
                   ? -1
                   : fail(err, "%s/config.json: the vision tower \"%s\" is not on this disk; --vision-tower DIR names its folder", c->dir,
                          written);
    if (config_select(g, c->dir, err)) return -1;
    g->has_tower = true;
    if (c->tower) return 0;
    if (!c->vision.path)
        return fail(
            err,
            "%s: the weights of the vision tower \"%s\" are neither in the folder's files nor on this disk; --vision-tower DIR names "
            "their folder",
            c->dir, written);
    char *folder = c->vision.path;
    c->vision.path = NULL;
    if (source_open(&c->vision, folder, err)) return -1;
    c->tower = &c->vision;
    return 0;
}

int checkpoint_open(struct checkpoint *c, const char *dir, const struct checkpoint_options *o, struct error *err) {
    static int (*const find[])(struct checkpoint *, const struct checkpoint_options *, struct error *) = {find_own, find_llm,
                                                                                                          find_projector, find_tower};
    memset(c, 0, sizeof *c);
    c->dir = path_join(NULL, dir);
    int status = refuse_folder(dir, err) || config_open(&c->config, dir, err) ? -1 : 0;
    for (size_t i = 0; i < sizeof find / sizeof *find && status == 0; i++) {
        struct error why;
        if (!find[i](c, o, &why)) continue;
        if (o->report) {
            o->report(o->context, why.text);
            continue;
        }
        *err = why;
        status = -1;
    }
    return status;
}

void checkpoint_close(struct checkpoint *c) {
    source_close(&c->own), source_close(&c->base), source_close(&c->bridge), source_close(&c->vision);
    free(c->dir);
    memset(c, 0, sizeof *c);
}

const char *checkpoint_tokenizer(const struct checkpoint *c) {
    bool own = holds(c->dir, "tokenizer.json") || holds(c->dir, "tokenizer.model") || !c->base.path;
    return own ? c->dir : c->base.path;
}

size_t checkpoint_weight_bytes(const struct checkpoint *c, int layers) {
    const struct checkpoint_config *g = &c->config;
    size_t bytes = 0;
    if (g->has_llm) bytes += llama_weight_bytes(&g->llm, layers, (c->llm && c->llm->names.head) || !g->llm.tied);
    if (g->has_tower) bytes += clip_weight_bytes(&g->clip);
    if (g->has_llm && g->has_tower) bytes += llava_weight_bytes(&g->llava, &g->clip, g->llm.C);
    return bytes;
}

size_t checkpoint_scratch_bytes(const struct checkpoint *c, const struct checkpoint_pass *p) {
    const struct checkpoint_config *g = &c->config;
    size_t bytes = 0;
    if (g->has_llm) bytes += llama_scratch_bytes(&g->llm, p->tokens, p->samples);
    if (g->has_tower && p->pictures > 0) bytes += clip_scratch_bytes(&g->clip, p->pictures);
    if (g->has_llm && g->has_tower && p->pictures > 0) bytes += llava_scratch_bytes(&g->llava, &g->clip, g->llm.C, p->pictures);
    return bytes;
}
