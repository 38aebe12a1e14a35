/* command_info.c - `stagediff info`: what a folder is, its dimensions, and what is wrong with it. docs/cli.md has the contract.
 * Checkpoints are walked by the loaders' own lists of tensors without placing them; dictionaries are told by the names in their
 * files (docs/dictionaries.md). */
#include "host/file.h"
#include "host/tokenizer.h"
#include "models/checkpoint.h"
#include "models/command.h"
#include "models/info.h"
#include "models/state.h"
#include <stdarg.h>
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
static void check_weights(struct info *info, const struct checkpoint *c) {
    const struct checkpoint_config *g = &c->config;
    struct weights w = {.report = info_problem, .context = info};
    struct error err;
    if (c->llm) {
        struct llama llm;
        w.st = c->llm->st;
        llama_open(&llm, &g->llm, 0, &w, &c->llm->names, &err);
        llama_close(&llm, NULL);
    }
    if (c->tower) {
        struct clip tower;
        w.st = c->tower->st;
        clip_open(&tower, &g->clip, &w, c->tower->names.tower ? c->tower->names.tower : "vision_model.", &err);
        clip_close(&tower, NULL);
    }
    if (c->projector && g->has_tower) {
        struct llava bridge;
        w.st = c->projector->st;
        llava_open(&bridge, &g->llava, &g->clip, g->llm.C, &w, &c->projector->names, &err);
        llava_close(&bridge, NULL);
    }
}

/* ---- what stagediff will do with it ---- */
static void note(struct info *info, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(struct info *info, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_array_append_new(info->notes, json_string(text));
}

static void note_tower(struct info *info, const struct checkpoint *c) {
    const struct checkpoint_config *g = &c->config;
    const struct llava_config *v = &g->llava;
    const char *settings = g->layout == LAYOUT_LLAVA ? c->vision.path : c->dir;
    struct preprocess p;
    struct error err;
    if (c->tower && c->tower != &c->own) note(info, "the vision tower's weights are read from %s", c->tower->path);
    if (preprocess_open(&p, settings, &err))
        info_problem(info, err.text);
    else
        note(info, "pictures: %s, %d x %d pixels",
             g->layout == LAYOUT_LLAVA && v->pad_square ? "put on a square of the mean colour and scaled"
                                                        : "short side scaled, centre cropped",
             g->clip.S, g->clip.S);
    if (!g->has_llm) return;
    note(info, "a picture becomes %d rows: %d of %d tower layers run, patch rows%s go through %d linear layer%s", llava_rows(v, &g->clip),
         v->selected, g->clip.L, v->class_row ? " and the class row" : "", v->projector_linears,
         v->projector_linears == 1 ? "" : "s with GELU between");
}

static void note_text(struct info *info, const struct checkpoint *c) {
    struct tokenizer *tokenizer = NULL;
    enum prompt_template t;
    struct error err;
    if (c->llm == &c->base) note(info, "the language model and the tokenizer are read from %s", c->base.path);
    if (tokenizer_open(&tokenizer, checkpoint_tokenizer(c), &err))
        info_problem(info, err.text);
    else if (prompt_template_of(&t, tokenizer, c->config.layout == LAYOUT_LLAVA, &err))
        note(info, "questions: %s", err.text);
    else
        note(info, "questions are asked in the template %s", prompt_template_name(t));
    tokenizer_close(tokenizer);
}

static void describe_checkpoint(struct info *info, const struct checkpoint *c) {
    const struct checkpoint_config *g = &c->config;
    if (g->has_llm) dims_llm(info, &g->llm);
    if (g->has_tower) dims_tower(info, &g->clip);
    if (g->has_tower && g->has_llm) {
        info_dim(info, "image_rows", llava_rows(&g->llava, &g->clip));
        info_dim(info, "selected_vision_layer", g->llava.selected - 1);
    }
    check_weights(info, c);
    if (g->has_llm) note_text(info, c);
    if (g->has_tower) note_tower(info, c);
    note(info, "weights in memory: %.1f MB as %s", (double)checkpoint_weight_bytes(c, 0) / 1e6, sizeof(act_t) == 2 ? "bf16" : "f32");
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

static int inspect(struct info *info, const struct checkpoint_options *o, struct error *err) {
    static const char *const kinds[] = {"llm", "clip", "llava", "llava"};
    struct checkpoint c;
    struct tensors *st = NULL;
    struct error unused;
    const int dictionary = info_dictionary(info, err);
    if (dictionary) return dictionary > 0 ? 0 : -1;
    int status = checkpoint_open(&c, info->path, o, err);
    if (c.config.known) {
        info->kind = kinds[c.config.layout];
        info->format = layout_name(c.config.layout);
        if (status) info_problem(info, err->text);
        if (!status) describe_checkpoint(info, &c);
        status = 0;
    }
    if (!c.own.st && !c.bridge.st) tensors_open(&st, info->path, &unused);
    if (!c.config.known && st && kind_of_tensors(info, st)) {
        info_problem(info, err->text);
        status = 0;
    }
    if (c.own.st) info_count(info, c.own.st);
    if (c.bridge.st) info_count(info, c.bridge.st);
    if (st) info_count(info, st);
    tensors_close(st);
    checkpoint_close(&c);
    return status;
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
    json_array_foreach(info->notes, i, value) {
        printf("  %s\n", json_string_value(value));
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
                        .problems = json_array(),
                        .notes = json_array()};
    const struct checkpoint_options files = {.vision_tower = option(self, "--vision-tower")->text,
                                             .base = option(self, "--base")->text,
                                             .report = info_problem,
                                             .context = &info};
    int status = inspect(&info, &files, err);
    if (!status && option(self, "--json")->given) {
        json_t *root = json_pack("{s:s, s:s, s:O, s:I, s:O, s:I, s:O, s:O, s:O}", "kind", info.kind, "format", info.format, "dims",
                                 info.dims, "parameters", (json_int_t)info.parameters, "dtypes", info.dtypes, "bytes",
                                 (json_int_t)info.bytes, "files", info.files, "problems", info.problems, "notes", info.notes);
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
    json_decref(info.notes);
    return status;
}

static struct option options[] = {
    {.name = "PATH", .type = OPTION_TEXT, .required = true, .help = "folder of a checkpoint, or folder or file of a sparse dictionary"},
    {.name = "--vision-tower",
     .value = "DIR",
     .type = OPTION_TEXT,
     .help = "folder of the CLIP tower, where the checkpoint names one that is not on this disk"},
    {.name = "--base",
     .value = "DIR",
     .type = OPTION_TEXT,
     .help = "folder of the language model, where the checkpoint holds a projector alone"},
    {.name = "--json",
     .type = OPTION_FLAG,
     .help = "kind, format, dims, parameters, dtypes, bytes, files, problems, notes as one JSON object"},
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
