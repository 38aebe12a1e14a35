/* info_dictionary.c - tells a sparse dictionary by the names of its files and tensors (docs/formats.md). */
#include "host/file.h"
#include "models/config.h"
#include "models/info.h"
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* How a format stores a dictionary of M features over width d. A matrix is (M, d), or (d, M) where turned. */
static const struct dictionary {
    const char *format;
    const char *config;     /* file of the folder that must be there */
    const char *weights[4]; /* the first that is there */
    const char *encoder, *encoder_bias, *decoder, *decoder_bias;
    bool encoder_turned, decoder_turned;
} dictionaries[] = {
    {"Llama Scope v1",
     "hyperparams.json",
     {"sae_weights.safetensors", "checkpoints/pruned.safetensors", "checkpoints/final.safetensors"},
     "encoder.weight",
     "encoder.bias",
     "decoder.weight",
     "decoder.bias",
     false,
     true},
    {"OpenMOSS (since June 2025)", "config.json", {"sae_weights.safetensors"}, "W_E", "b_E", "W_D", "b_D", true, false},
    {"OpenMOSS (early 2025)",
     "config.json",
     {"sae_weights.safetensors"},
     "encoder.weight",
     "encoder.bias",
     "decoder.weight",
     "decoder.bias",
     false,
     true},
    {"SAELens", "cfg.json", {"sae_weights.safetensors"}, "W_enc", "b_enc", "W_dec", "b_dec", true, false},
    {"sparsify", "cfg.json", {"sae.safetensors"}, "encoder.weight", "encoder.bias", "W_dec", "b_dec", false, false},
};
/* Formats that are not safetensors: told, not looked into. */
static const struct { const char *format, *file; } others[] = {{"Gemma Scope", "params.npz"}, {"dictionary_learning", "ae.pt"}};

static void weight_file(struct info *info, const char *path) {
    struct stat s;
    const char *slash = strrchr(path, '/');
    json_array_append_new(info->files, json_string(slash ? slash + 1 : path));
    info->bytes += stat(path, &s) == 0 ? (size_t)s.st_size : 0;
}

static void check(struct info *info, const struct tensors *st, const char *name, int rank, const int64_t *shape) {
    struct error err;
    if (!tensors_require(st, name, rank, shape, &err)) info_problem(info, err.text);
}

static void dimensions(struct info *info, const struct dictionary *y, const struct tensors *st) {
    const struct tensor *e = tensors_find(st, y->encoder);
    int64_t M, d;
    if (!e || e->rank != 2) {
        check(info, st, y->encoder, 2, (const int64_t[]){-1, -1});
        return;
    }
    M = e->shape[y->encoder_turned ? 1 : 0];
    d = e->shape[y->encoder_turned ? 0 : 1];
    info_dim(info, "d_in", (long)d);
    info_dim(info, "d_sae", (long)M);
    check(info, st, y->encoder_bias, 1, &M);
    check(info, st, y->decoder, 2, y->decoder_turned ? (const int64_t[]){d, M} : (const int64_t[]){M, d});
    if (tensors_find(st, y->decoder_bias)) check(info, st, y->decoder_bias, 1, &d);
}

/* k, activation and hook as the folder's configuration spells them. */
static void settings(struct info *info, const char *folder, const struct dictionary *y) {
    static const char *const keys[][5] = {{"k", "k", "top_k", NULL},
                                          {"activation", "act_fn", "architecture", "activation_fn", NULL},
                                          {"hook", "hook_point_in", "hook_name", "hookpoint", NULL}};
    struct error err;
    json_t *root = config_json(folder, y->config, &err);
    if (!root) {
        info_problem(info, err.text);
        return;
    }
    const json_t *metadata = json_object_get(root, "metadata");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        for (int a = 1; keys[i][a]; a++) {
            json_t *v = json_object_get(root, keys[i][a]);
            if (!v) v = json_object_get(metadata, keys[i][a]);
            if ((!json_is_string(v) && !json_is_integer(v)) || json_object_get(info->dims, keys[i][0])) continue;
            json_object_set(info->dims, keys[i][0], v);
        }
    json_decref(root);
}

static bool describe(struct info *info, const struct dictionary *y, const char *folder, const char *weights) {
    struct tensors *st = NULL;
    struct error err;
    const bool open = !tensors_open(&st, weights, &err);
    if (open && !tensors_find(st, y->encoder) && !tensors_find(st, y->decoder)) { /* another format's names */
        tensors_close(st);
        return false;
    }
    info->kind = "sae";
    info->format = y->format;
    if (open) {
        info_count(info, st);
        dimensions(info, y, st);
        tensors_close(st);
    } else {
        info_problem(info, err.text);
    }
    if (folder) settings(info, folder, y);
    return true;
}

static bool in_folder(struct info *info, const struct dictionary *y) {
    char *config = path_join(info->path, y->config);
    bool told = false, there = file_exists(config), any = false;
    for (int i = 0; there && !told && y->weights[i]; i++) {
        char *weights = path_join(info->path, y->weights[i]);
        if (file_exists(weights)) {
            any = true;
            told = describe(info, y, info->path, weights);
        }
        free(weights);
    }
    if (there && !any && !strcmp(y->config, "hyperparams.json")) { /* the name is this format's own */
        struct error err;
        info->kind = "sae";
        info->format = y->format;
        fail(&err, "%s: hyperparams.json is there, the weights (checkpoints/final.safetensors) are not", info->path);
        info_problem(info, err.text);
        settings(info, info->path, y);
        told = true;
    }
    free(config);
    return told;
}

bool info_dictionary(struct info *info) {
    const size_t n = sizeof dictionaries / sizeof *dictionaries;
    if (!dir_exists(info->path)) {
        const char *dot = strrchr(info->path, '.');
        if (!file_exists(info->path) || !dot) return false;
        for (size_t i = 0; i < sizeof others / sizeof *others; i++)
            if (!strcmp(dot, strrchr(others[i].file, '.'))) {
                info->kind = "sae";
                info->format = others[i].format;
                weight_file(info, info->path);
                return true;
            }
        for (size_t i = 0; i < n; i++)
            if (!strcmp(dot, ".safetensors") && describe(info, &dictionaries[i], NULL, info->path)) return true;
        return false;
    }
    for (size_t i = 0; i < n; i++)
        if (in_folder(info, &dictionaries[i])) return true;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char *path = path_join(info->path, others[i].file);
        const bool there = file_exists(path);
        if (there) {
            info->kind = "sae";
            info->format = others[i].format;
            weight_file(info, path);
        }
        free(path);
        if (there) return true;
    }
    return false;
}
