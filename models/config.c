/* config.c - config.json of LLaMA, CLIP, LLaVA and llava-hf folders (config.h). */
#include "models/config.h"
#include "host/file.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *layout_name(enum checkpoint_layout l) {
    static const char *const names[] = {"llama", "clip", "llava", "llava-hf"};
    return names[l];
}

json_t *config_json(const char *dir, const char *name, struct error *err) {
    char *path = path_join(dir, name), *data = NULL;
    size_t size;
    json_error_t why;
    json_t *root = NULL;
    if (file_read(path, (size_t)64 << 20, &data, &size, err)) goto cleanup;
    root = json_loadb(data, size, 0, &why);
    if (!root) {
        fail(err, "%s:%d: not JSON: %s", path, why.line, why.text);
    } else if (!json_is_object(root)) {
        json_decref(root);
        root = NULL;
        fail(err, "%s: expected a JSON object", path);
    }
cleanup:
    free(data);
    free(path);
    return root;
}

/* ---- one reader for all keys: an absent or null key takes the fallback, a wrong one is an error with its place ---- */
struct reader {
    const char *file;
    const json_t *object;
    const char *section; /* "" or "text_config." */
    struct error *err;
    bool failed;
};

static const json_t *key(const struct reader *r, const char *name) {
    const json_t *v = json_object_get(r->object, name);
    return json_is_null(v) ? NULL : v;
}

static int get_int(struct reader *r, const char *name, int fallback, int low, int high) {
    const json_t *v = key(r, name);
    if (!v || r->failed) return fallback;
    if (!json_is_integer(v) || json_integer_value(v) < low || json_integer_value(v) > high) {
        char *found = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        fail(r->err, "%s: %s%s: expected an integer from %d to %d, found %.60s", r->file, r->section, name, low, high, found ? found : "?");
        free(found);
        r->failed = true;
        return fallback;
    }
    return (int)json_integer_value(v);
}

static double get_real(struct reader *r, const char *name, double fallback) {
    const json_t *v = key(r, name);
    if (!v || r->failed) return fallback;
    double x = json_number_value(v);
    if (!json_is_number(v) || !isfinite(x) || x <= 0) {
        char *found = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        fail(r->err, "%s: %s%s: expected a positive number, found %.60s", r->file, r->section, name, found ? found : "?");
        free(found);
        r->failed = true;
        return fallback;
    }
    return x;
}

static bool get_bool(struct reader *r, const char *name, bool fallback) {
    const json_t *v = key(r, name);
    if (!v || r->failed) return fallback;
    if (!json_is_boolean(v)) {
        fail(r->err, "%s: %s%s: expected true or false", r->file, r->section, name);
        r->failed = true;
        return fallback;
    }
    return json_is_true(v);
}

static const char *get_text(struct reader *r, const char *name, const char *fallback) {
    const json_t *v = key(r, name);
    if (!v || r->failed) return fallback;
    if (!json_is_string(v)) {
        fail(r->err, "%s: %s%s: expected a string", r->file, r->section, name);
        r->failed = true;
        return fallback;
    }
    return json_string_value(v);
}

/* A folder or a Hub name under `name` or its older spelling, "" when absent. */
static void get_name(struct reader *r, const char *name, const char *older, char *out, size_t room) {
    const char *text = get_text(r, name, get_text(r, older, ""));
    if (strlen(text) < room)
        memcpy(out, text, strlen(text) + 1);
    else if (!r->failed)
        r->failed =
            fail(r->err, "%s: %s%s: expected a folder or a Hub name, found %zu bytes", r->file, r->section, name, strlen(text)) != 0;
}

/* Refuses a setting this code does not compute. */
static void only(struct reader *r, bool ok, const char *name, const char *found, const char *supported) {
    if (ok || r->failed) return;
    fail(r->err, "%s: %s%s %s is not supported; supported: %s", r->file, r->section, name, found, supported);
    r->failed = true;
}

/* ---- sections ---- */
static void read_rope(struct reader *r, struct llama_config *c) {
    /* transformers 5: rope_parameters {rope_theta, rope_type, ...}; before: rope_theta beside rope_scaling {type | rope_type, ...} */
    struct rope_config *rope = &c->rope;
    const json_t *p = key(r, "rope_parameters");
    rope->theta = get_real(r, "rope_theta", 10000);
    rope->type = ROPE_DEFAULT;
    rope->factor = 1;
    if (!p) p = key(r, "rope_scaling");
    if (!p) return;
    if (!json_is_object(p)) {
        only(r, false, "rope_scaling", "that is no object", "an object with rope_type");
        return;
    }
    struct reader s = {r->file, p, "rope_parameters.", r->err, r->failed};
    const char *type = get_text(&s, "rope_type", get_text(&s, "type", "default"));
    rope->theta = get_real(&s, "rope_theta", rope->theta);
    only(&s, get_real(&s, "partial_rotary_factor", 1) == 1, "partial_rotary_factor", "below 1", "1");
    if (!strcmp(type, "linear"))
        rope->type = ROPE_LINEAR;
    else if (!strcmp(type, "llama3"))
        rope->type = ROPE_LLAMA3;
    else
        only(&s, !strcmp(type, "default"), "rope_type", type, "default, linear, llama3");
    if (rope->type != ROPE_DEFAULT) rope->factor = get_real(&s, "factor", 0);
    if (rope->type == ROPE_LLAMA3) {
        rope->low_freq_factor = get_real(&s, "low_freq_factor", 0);
        rope->high_freq_factor = get_real(&s, "high_freq_factor", 0);
        rope->original_positions = get_real(&s, "original_max_position_embeddings", c->max_positions);
        only(&s, s.failed || (rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor),
             "low_freq_factor and high_freq_factor", "as written", "0 < low < high");
    }
    only(&s, s.failed || rope->factor > 0, "factor", "missing", "a positive factor");
    r->failed = s.failed;
}

static void read_llama(struct reader *r, struct llama_config *c) {
    enum { BIG = 1 << 24 };
    c->C = get_int(r, "hidden_size", 4096, 1, BIG);
    c->F = get_int(r, "intermediate_size", 11008, 1, BIG);
    c->L = get_int(r, "num_hidden_layers", 32, 1, 4096);
    c->H = get_int(r, "num_attention_heads", 32, 1, 65536);
    c->G = get_int(r, "num_key_value_heads", c->H, 1, 65536);
    c->V = get_int(r, "vocab_size", 32000, 1, BIG);
    c->D = get_int(r, "head_dim", c->C / c->H, 1, 65536);
    c->max_positions = get_int(r, "max_position_embeddings", 2048, 1, 1 << 28);
    c->eps = (float)get_real(r, "rms_norm_eps", 1e-6);
    c->tied = get_bool(r, "tie_word_embeddings", false);
    const char *act = get_text(r, "hidden_act", "silu");
    only(r, !strcmp(act, "silu"), "hidden_act", act, "silu");
    only(r, !get_bool(r, "attention_bias", false), "attention_bias", "true", "false");
    only(r, !get_bool(r, "mlp_bias", false), "mlp_bias", "true", "false");
    only(r, !get_bool(r, "use_sliding_window", key(r, "sliding_window") != NULL), "sliding_window", "in use", "full attention");
    for (size_t i = 0; i < json_array_size(key(r, "layer_types")); i++) {
        const char *type = json_string_value(json_array_get(key(r, "layer_types"), i));
        only(r, type && !strcmp(type, "full_attention"), "layer_types", type ? type : "as written", "full_attention");
    }
    read_rope(r, c);
    if (r->failed) return;
    char found[160];
    snprintf(found, sizeof found, "%d with %d heads, %d kv heads, head_dim %d", c->C, c->H, c->G, c->D);
    only(r, c->H % c->G == 0, "hidden_size", found, "heads a multiple of kv heads");
    only(r, key(r, "head_dim") || c->C % c->H == 0, "hidden_size", found, "a multiple of num_attention_heads where head_dim is absent");
    only(r, c->C % 8 == 0 && c->F % 8 == 0, "hidden_size, intermediate_size", found, "multiples of 8");
    only(r, c->D % 8 == 0 && c->D <= 256, "head_dim", found, "multiples of 8 up to 256");
}

static void read_clip(struct reader *r, struct clip_config *c) {
    c->C = get_int(r, "hidden_size", 768, 1, 1 << 20);
    c->F = get_int(r, "intermediate_size", 3072, 1, 1 << 20);
    c->L = get_int(r, "num_hidden_layers", 12, 1, 4096);
    c->H = get_int(r, "num_attention_heads", 12, 1, 65536);
    c->S = get_int(r, "image_size", 224, 1, 16384);
    c->P = get_int(r, "patch_size", 32, 1, 16384);
    c->eps = (float)get_real(r, "layer_norm_eps", 1e-5);
    const char *act = get_text(r, "hidden_act", "quick_gelu");
    c->exact_gelu = !strcmp(act, "gelu");
    only(r, c->exact_gelu || !strcmp(act, "quick_gelu"), "hidden_act", act, "quick_gelu, gelu");
    only(r, get_int(r, "num_channels", 3, 1, 64) == 3, "num_channels", "as written", "3");
    if (r->failed) return;
    char found[160];
    snprintf(found, sizeof found, "%d with %d heads, image_size %d, patch_size %d", c->C, c->H, c->S, c->P);
    only(r, c->C % c->H == 0 && c->C / c->H % 8 == 0 && c->C / c->H <= 256, "hidden_size", found,
         "a head_dim that is a multiple of 8, up to 256");
    only(r, c->F % 8 == 0, "intermediate_size", found, "multiples of 8");
    only(r, c->S % c->P == 0, "image_size", found, "a multiple of patch_size");
    c->D = c->C / c->H;
}

static void read_llava(struct reader *r, struct llava_config *v) {
    const char *projector = get_text(r, "mm_projector_type", "linear");
    int depth = 0, used = 0;
    v->projector = strcmp(projector, "linear") ? PROJECTOR_MLP : PROJECTOR_LINEAR;
    if (v->projector == PROJECTOR_LINEAR)
        depth = 1;
    else if (sscanf(projector, "mlp%dx_gelu%n", &depth, &used) != 1 || (size_t)used != strlen(projector) || depth < 1 || depth > 8)
        only(r, false, "mm_projector_type", projector, "linear, mlp2x_gelu (mlp1x to mlp8x)");
    v->projector_linears = depth;
    v->projector_bias = true;
    v->image_token = -1;
    v->select_layer = get_int(r, "mm_vision_select_layer", -2, -4096, 4096);
    const char *feature = get_text(r, "mm_vision_select_feature", "patch");
    v->class_row = !strcmp(feature, "cls_patch");
    only(r, v->class_row || !strcmp(feature, "patch"), "mm_vision_select_feature", feature, "patch, cls_patch");
    const char *merge = get_text(r, "mm_patch_merge_type", "flat");
    only(r, !strcmp(merge, "flat"), "mm_patch_merge_type", merge, "flat");
    const char *aspect = get_text(r, "image_aspect_ratio", "square");
    v->pad_square = !strcmp(aspect, "pad");
    only(r, v->pad_square || !strcmp(aspect, "square"), "image_aspect_ratio", aspect, "pad, square");
    only(r, !get_bool(r, "s2", false), "s2", "true", "false (one scale)");
    only(r, !get_bool(r, "siglip", false), "siglip", "true", "false (a CLIP tower)");
    only(r, !get_bool(r, "mm_use_im_start_end", false), "mm_use_im_start_end", "true", "false");
    get_name(r, "mm_vision_tower", "vision_tower", v->vision_tower, sizeof v->vision_tower);
    get_name(r, "_name_or_path", "_name_or_path", v->base, sizeof v->base);
    only(r, !strstr(v->vision_tower, "siglip") && !strstr(v->vision_tower, "dinov2"), "mm_vision_tower", v->vision_tower, "a CLIP tower");
}

static void read_llava_hf(struct reader *r, struct checkpoint_config *c) {
    struct llava_config *v = &c->llava;
    const json_t *layer = key(r, "vision_feature_layer");
    if (json_is_array(layer)) { /* a list of one is that layer; several would be concatenated */
        only(r, json_array_size(layer) == 1 && json_is_integer(json_array_get(layer, 0)), "vision_feature_layer", "with several layers",
             "one layer");
        v->select_layer = (int)json_integer_value(json_array_get(layer, 0));
    } else {
        v->select_layer = get_int(r, "vision_feature_layer", -2, -4096, 4096);
    }
    const char *strategy = get_text(r, "vision_feature_select_strategy", "default");
    v->class_row = !strcmp(strategy, "full");
    only(r, v->class_row || !strcmp(strategy, "default"), "vision_feature_select_strategy", strategy, "default, full");
    const char *act = get_text(r, "projector_hidden_act", "gelu");
    only(r, !strcmp(act, "gelu"), "projector_hidden_act", act, "gelu");
    v->projector = PROJECTOR_MLP;
    v->projector_linears = 2;
    v->projector_bias = get_bool(r, "multimodal_projector_bias", true);
    v->image_token = get_int(r, "image_token_index", get_int(r, "image_token_id", 32000, 0, 1 << 24), 0, 1 << 24);

    static const char nothing[] = "{}";
    json_t *empty = json_loads(nothing, 0, NULL);
    const json_t *text = key(r, "text_config"), *vision = key(r, "vision_config");
    struct reader t = {r->file, text ? text : empty, "text_config.", r->err, r->failed};
    const char *text_type = get_text(&t, "model_type", "llama");
    only(&t, !strcmp(text_type, "llama"), "model_type", text_type, "llama");
    read_llama(&t, &c->llm);
    c->llm.tied |= get_bool(r, "tie_word_embeddings", false);
    struct reader w = {r->file, vision ? vision : empty, "vision_config.", r->err, t.failed};
    const char *vision_type = get_text(&w, "model_type", "clip_vision_model");
    only(&w, !strcmp(vision_type, "clip_vision_model"), "model_type", vision_type, "clip_vision_model");
    if (vision)
        read_clip(&w, &c->clip);
    else
        config_tower_known(&c->clip, "openai/clip-vit-large-patch14-336");
    r->failed = r->failed || w.failed;
    json_decref(empty);
}

/* eos_token_id as a number or a list, appended nowhere twice. */
static void read_eos(struct reader *r, struct checkpoint_config *c) {
    const json_t *v = key(r, "eos_token_id");
    size_t n = json_is_array(v) ? json_array_size(v) : v ? 1 : 0;
    c->n_eos = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        only(r, json_is_integer(id) && json_integer_value(id) >= -1 && json_integer_value(id) < 1 << 24 && i < 8, "eos_token_id",
             "as written", "an id or a list of up to 8 ids");
        if (r->failed) return;
        c->eos[c->n_eos++] = (int)json_integer_value(id);
    }
}

/* Which layout config.json describes; -1 with err naming the architecture. */
static int read_layout(struct reader *r, enum checkpoint_layout *layout) {
    const char *type = get_text(r, "model_type", "");
    const json_t *archs = key(r, "architectures");
    const char *arch = json_string_value(json_array_get(archs, 0));
    if (r->failed) return -1;
    if (!arch) arch = "";
    if (!strcmp(type, "llava_llama") || !strcmp(arch, "LlavaLlamaForCausalLM") || (!strcmp(type, "llava") && key(r, "mm_vision_tower")))
        *layout = LAYOUT_LLAVA;
    else if (!strcmp(type, "llava"))
        *layout = LAYOUT_LLAVA_HF;
    else if (!strcmp(type, "llama") || (!*type && !strcmp(arch, "LlamaForCausalLM")))
        *layout = LAYOUT_LLAMA;
    else if (!strcmp(type, "clip_vision_model") || !strcmp(type, "clip"))
        *layout = LAYOUT_CLIP;
    else
        return fail(r->err,
                    "%s: architecture %s (model_type \"%s\") is not supported; supported: LlamaForCausalLM, LlavaLlamaForCausalLM, "
                    "LlavaForConditionalGeneration, CLIPVisionModel",
                    r->file, *arch ? arch : "unknown", type);
    return 0;
}

static void read_tower_root(struct reader *r, struct clip_config *c) {
    const json_t *nested = key(r, "vision_config"); /* a full CLIP file holds both towers */
    struct reader s = {r->file, nested ? nested : r->object, nested ? "vision_config." : "", r->err, r->failed};
    read_clip(&s, c);
    r->failed = s.failed;
}

int config_open(struct checkpoint_config *c, const char *dir, struct error *err) {
    memset(c, 0, sizeof *c);
    char *file = path_join(dir, "config.json"), *generation = path_join(dir, "generation_config.json");
    json_t *root = config_json(dir, "config.json", err), *more = NULL;
    struct reader r = {file, root, "", err, false};
    int status = -1;
    if (!root || read_layout(&r, &c->layout)) goto cleanup;
    c->known = true;
    c->has_llm = c->layout != LAYOUT_CLIP;
    c->has_tower = c->layout == LAYOUT_CLIP || c->layout == LAYOUT_LLAVA_HF;
    if (c->layout == LAYOUT_LLAMA || c->layout == LAYOUT_LLAVA) read_llama(&r, &c->llm);
    if (c->layout == LAYOUT_LLAVA) read_llava(&r, &c->llava);
    if (c->layout == LAYOUT_LLAVA_HF) read_llava_hf(&r, c);
    if (c->layout == LAYOUT_CLIP) read_tower_root(&r, &c->clip);
    snprintf(c->dtype, sizeof c->dtype, "%s", get_text(&r, "torch_dtype", get_text(&r, "dtype", "")));
    only(&r, !key(&r, "quantization_config"), "quantization_config", "(quantised weights)", "weights in F32, F16 or BF16");
    read_eos(&r, c);
    const json_t *text = key(&r, "text_config");
    if (!c->n_eos && text) {
        struct reader t = {file, text, "text_config.", err, r.failed};
        read_eos(&t, c);
        r.failed = t.failed;
    }
    if (!r.failed && c->has_llm && file_exists(generation)) {
        more = config_json(dir, "generation_config.json", err);
        struct reader g = {generation, more, "", err, !more};
        if (more && key(&g, "eos_token_id")) read_eos(&g, c);
        r.failed = g.failed;
    }
    if (!r.failed && c->layout == LAYOUT_LLAVA_HF) r.failed = config_select(c, dir, err) != 0;
    status = r.failed ? -1 : 0;
cleanup:
    json_decref(root);
    json_decref(more);
    free(file);
    free(generation);
    return status;
}

int config_tower_open(struct clip_config *c, const char *dir, struct error *err) {
    char *file = path_join(dir, "config.json");
    json_t *root = config_json(dir, "config.json", err);
    struct reader r = {file, root, "", err, !root};
    enum checkpoint_layout layout;
    int status = -1;
    memset(c, 0, sizeof *c);
    if (!root || read_layout(&r, &layout)) goto cleanup;
    only(&r, layout == LAYOUT_CLIP, "model_type", get_text(&r, "model_type", ""), "clip_vision_model, clip");
    if (!r.failed) read_tower_root(&r, c);
    status = r.failed ? -1 : 0;
cleanup:
    json_decref(root);
    free(file);
    return status;
}

int config_tower_known(struct clip_config *c, const char *hub_name) {
    static const struct {
        const char *name;
        struct clip_config dims;
    } known[] = {
        {"openai/clip-vit-large-patch14-336", {1024, 4096, 24, 16, 64, 336, 14, 1e-5f, false}},
        {"openai/clip-vit-large-patch14", {1024, 4096, 24, 16, 64, 224, 14, 1e-5f, false}},
        {"openai/clip-vit-base-patch16", {768, 3072, 12, 12, 64, 224, 16, 1e-5f, false}},
        {"openai/clip-vit-base-patch32", {768, 3072, 12, 12, 64, 224, 32, 1e-5f, false}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(hub_name, known[i].name)) {
            *c = known[i].dims;
            return 1;
        }
    return 0;
}

int config_select(struct checkpoint_config *c, const char *dir, struct error *err) {
    int states = c->clip.L + 1, at = c->llava.select_layer;
    if (at < -states || at >= states)
        return fail(err, "%s/config.json: the selected vision layer is %d, but the tower has %d layers (-%d to %d)", dir, at, c->clip.L,
                    states, states - 1);
    c->llava.selected = at < 0 ? at + states : at;
    return 0;
}
