/* command_info.c - `stagediff info`: what a folder is, its dimensions, and what is wrong with it. docs/cli.md has the contract.
 * Checkpoints are walked by the loaders' own lists of tensors without placing them; dictionaries are told by the names in their
 * files (docs/formats.md). */
#include "host/file.h"
#include "host/tokenizer.h"
#include "models/command.h"
#include "models/info.h"
#include "models/state.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void info_problem(void *context, const char *sentence) {
    struct info *info = context;
    if (json_array_size(info->problems) < 100) json_array_append_new(info->problems, json_string(sentence));
}

void info_dim(struct info *info, const char *name, long value) { json_object_set_new(info->dims, name, json_integer(value)); }

/* Counts of the files behind st: parameters are floating-point elements (buffers such as inv_freq and position_ids are none). */
void info_count(struct info *info, const struct tensors *st) {
    for (int i = 0; i < tensors_files(st); i++) {
        size_t bytes;
        const char *path = tensors_file(st, i, &bytes), *slash = strrchr(path, '/');
        json_array_append_new(info->files, json_string(slash ? slash + 1 : path));
        info->bytes += bytes;
    }
    for (int i = 0; i < tensors_count(st); i++) {
        const struct tensor *t = tensors_at(st, i);
        const char *dtype = dtype_name(t->dtype);
        const bool real = t->dtype == DTYPE_F32 || t->dtype == DTYPE_F16 || t->dtype == DTYPE_BF16 || t->dtype == DTYPE_F64;
        const json_int_t old = json_integer_value(json_object_get(info->dtypes, dtype));
        json_object_set_new(info->dtypes, dtype, json_integer(old + (json_int_t)t->count));
        info->parameters += real && !strstr(t->name, "rotary_emb.inv_freq") ? t->count : 0;
    }
}

static void dims_llm(struct info *info, const struct llama_config *c) {
    info_dim(info, "n_layers", c->L);
    info_dim(info, "d_model", c->C);
    info_dim(info, "n_heads", c->H);
    info_dim(info, "n_kv_heads", c->G);
    info_dim(info, "head_dim", c->D);
    info_dim(info, "d_mlp", c->F);
    info_dim(info, "vocab", c->V);
    info_dim(info, "max_positions", c->max_positions);
}

static void dims_tower(struct info *info, const struct clip_config *c) {
    info_dim(info, "vision_layers", c->L);
    info_dim(info, "vision_width", c->C);
    info_dim(info, "vision_heads", c->H);
    info_dim(info, "vision_mlp", c->F);
    info_dim(info, "image_size", c->S);
    info_dim(info, "patch_size", c->P);
}

/* Walks every tensor that the config promises; faults go to info->problems. */
static void check_weights(struct info *info, const struct checkpoint_config *c, const struct tensors *st) {
    struct weights w = {.st = st, .path = info->path, .report = info_problem, .context = info};
    struct weight_names names;
    struct error err;
    weight_names_find(&names, st);
    if (c->has_llm) {
        struct llama llm;
        llama_open(&llm, &c->llm, 0, &w, &names, &err);
        llama_close(&llm, NULL);
    }
    if (c->has_tower && (c->layout != LAYOUT_LLAVA || names.tower)) {
        struct clip tower;
        clip_open(&tower, &c->clip, &w, names.tower ? names.tower : "vision_model.", &err);
        clip_close(&tower, NULL);
    }
    if (c->has_tower && c->has_llm) {
        struct llava bridge;
        llava_open(&bridge, &c->llava, &c->clip, c->llm.C, &w, &names, &err);
        llava_close(&bridge, NULL);
    }
}

/* The original layout's tower stands in another folder; its dims are needed to check projector and rows. */
static void look_for_tower(struct info *info, struct checkpoint_config *c, const char *option, bool in_file) {
    struct error err;
    char *folder = tower_folder(info->path, option, c->llava.vision_tower);
    if (folder ? !config_tower_open(&c->clip, folder, &err) : config_tower_known(&c->clip, c->llava.vision_tower))
        c->has_tower = !config_select(c, info->path, &err);
    else if (!folder)
        fail(&err, "%s: the vision tower \"%s\" is not on this disk; name its folder with --vision-tower DIR", info->path,
             c->llava.vision_tower);
    if (!c->has_tower)
        info_problem(info, err.text);
    else if (!folder && !in_file) {
        fail(&err,
             "%s: the weights of the vision tower \"%s\" are neither in the folder's files nor on this disk; --vision-tower DIR names them",
             info->path, c->llava.vision_tower);
        info_problem(info, err.text);
    }
    free(folder);
}

static void describe_checkpoint(struct info *info, struct checkpoint_config *c, const struct tensors *st, const char *vision_tower) {
    struct weight_names names = {0};
    struct error err;
    if (st) weight_names_find(&names, st);
    if (c->layout == LAYOUT_LLAVA) look_for_tower(info, c, vision_tower, names.tower != NULL);
    if (c->has_llm) dims_llm(info, &c->llm);
    if (c->has_tower) dims_tower(info, &c->clip);
    if (c->has_tower && c->has_llm) {
        const int side = c->clip.S / c->clip.P;
        info_dim(info, "image_rows", side * side + (c->llava.class_row ? 1 : 0));
        info_dim(info, "selected_vision_layer", c->llava.selected - 1);
    }
    if (st) check_weights(info, c, st);
    if (c->has_llm) {
        struct tokenizer *tokenizer = NULL;
        if (tokenizer_open(&tokenizer, info->path, &err)) info_problem(info, err.text);
        tokenizer_close(tokenizer);
    }
}

/* A checkpoint whose config.json cannot be read is told by its tensors. */
static bool kind_of_tensors(struct info *info, const struct tensors *st) {
    struct weight_names names;
    weight_names_find(&names, st);
    if (!names.llm && !names.tower) return false;
    info->kind = !names.llm ? "clip" : names.projector ? "llava" : "llm";
    info->format = !names.llm ? "clip" : !names.projector ? "llama" : names.projector_hf ? "llava-hf" : "llava";
    return true;
}

static int inspect(struct info *info, const char *vision_tower, struct error *err) {
    struct checkpoint_config config = {0};
    struct tensors *st = NULL;
    struct error why_config, why_weights;
    if (info_dictionary(info)) return 0;
    if (!dir_exists(info->path))
        return fail(
            err, "%s: no such folder, nor a dictionary's file; give a Hugging Face folder of LLaMA, LLaVA or CLIP, or a sparse dictionary",
            info->path);
    const bool config_ok = !config_open(&config, info->path, &why_config);
    const bool weights_ok = !tensors_open(&st, info->path, &why_weights);
    static const char *const kinds[] = {"llm", "clip", "llava", "llava"};
    if (config.known) {
        info->kind = kinds[config.layout];
        info->format = layout_name(config.layout);
    } else if (!weights_ok || !kind_of_tensors(info, st)) {
        tensors_close(st);
        *err = why_config;
        return -1;
    }
    if (!config_ok) info_problem(info, why_config.text);
    if (!weights_ok)
        info_problem(info, why_weights.text);
    else
        info_count(info, st);
    if (config_ok) describe_checkpoint(info, &config, weights_ok ? st : NULL, vision_tower);
    tensors_close(st);
    return 0;
}

static void print_text(const struct info *info) {
    const char *key;
    json_t *value;
    size_t i;
    printf("%s\n  %s, %s layout\n", info->path,
           !strcmp(info->kind, "llm")     ? "language model"
           : !strcmp(info->kind, "clip")  ? "vision tower"
           : !strcmp(info->kind, "llava") ? "vision-language model"
                                          : "sparse dictionary",
           info->format);
    printf("  %zu parameters, %.1f MB in %zu file%s", info->parameters, (double)info->bytes / 1e6, json_array_size(info->files),
           json_array_size(info->files) == 1 ? "" : "s");
    json_object_foreach(info->dtypes, key, value) {
        printf(", %s", key);
    }
    puts("");
    json_object_foreach(info->dims, key, value) {
        if (json_is_string(value))
            printf("  %-22s %s\n", key, json_string_value(value));
        else if (json_is_real(value))
            printf("  %-22s %g\n", key, json_real_value(value));
        else
            printf("  %-22s %" JSON_INTEGER_FORMAT "\n", key, json_integer_value(value));
    }
    if (json_array_size(info->problems))
        printf("  %zu problem%s:\n", json_array_size(info->problems), json_array_size(info->problems) == 1 ? "" : "s");
    json_array_foreach(info->problems, i, value) {
        printf("    %s\n", json_string_value(value));
    }
}

static int run(const struct command *self, struct error *err) {
    struct info info = {.path = option(self, "PATH")->text,
                        .dims = json_object(),
                        .dtypes = json_object(),
                        .files = json_array(),
                        .problems = json_array()};
    int status = inspect(&info, option(self, "--vision-tower")->text, err);
    if (!status && option(self, "--json")->given) {
        json_t *root = json_pack("{s:s, s:s, s:O, s:I, s:O, s:I, s:O, s:O}", "kind", info.kind, "format", info.format, "dims", info.dims,
                                 "parameters", (json_int_t)info.parameters, "dtypes", info.dtypes, "bytes", (json_int_t)info.bytes, "files",
                                 info.files, "problems", info.problems);
        char *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(9));
        puts(text);
        free(text);
        json_decref(root);
    } else if (!status) {
        print_text(&info);
    }
    json_decref(info.dims);
    json_decref(info.dtypes);
    json_decref(info.files);
    json_decref(info.problems);
    return status;
}

static struct option options[] = {
    {.name = "PATH", .type = OPTION_TEXT, .required = true, .help = "folder of a checkpoint, or folder or file of a sparse dictionary"},
    {.name = "--vision-tower",
     .value = "DIR",
     .type = OPTION_TEXT,
     .help = "folder of the CLIP tower, where the checkpoint names one that is not on this disk"},
    {.name = "--json", .type = OPTION_FLAG, .help = "kind, format, dims, parameters, dtypes, bytes, files, problems as one JSON object"},
    {.name = NULL},
};
struct command command_info = {
    .name = "info",
    .summary = "what a checkpoint or dictionary is: kind, dimensions, files, problems",
    .description = "Reads configuration and tensor headers, no weights. Names every tensor that is missing or has the wrong shape.\n\n"
                   "Example:\n  stagediff info tools/tinyworld/world/vlm",
    .options = options,
    .run = run,
};
