/* format.c - which dictionary format a folder or file holds (formats.md 0.1). */
#include "sae/format.h"
#include "host/file.h"
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

/* Formats by the configuration that gives them away and the weights beside it, in the order in which they are looked for. */
static const struct layout {
    enum sae_format format;
    const char *config, *weights[7];
} layouts[] = {
    {SAE_FORMAT_LLAMA_SCOPE,
     "hyperparams.json",
     {"sae_weights.safetensors", "sae_weights.pt", "checkpoints/pruned.safetensors", "checkpoints/pruned.pt",
      "checkpoints/final.safetensors", "checkpoints/final.pt"}},
    {SAE_FORMAT_SPARSIFY, "cfg.json", {"sae.safetensors"}},
    {SAE_FORMAT_SAELENS, "cfg.json", {"sae_weights.safetensors"}},
    {SAE_FORMAT_DICTIONARY_LEARNING, "config.json", {"ae.pt"}},
    {SAE_FORMAT_GEMMA_SCOPE, NULL, {"params.npz"}},
    {SAE_FORMAT_OPENMOSS,
     "config.json",
     {"sae_weights.safetensors", "sae_weights.pt", "checkpoints/pruned.safetensors", "checkpoints/pruned.pt",
      "checkpoints/final.safetensors", "checkpoints/final.pt"}},
};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

void sae_files_free(struct sae_files *f) {
    free(f->folder), free(f->config), free(f->weights);
    memset(f, 0, sizeof *f);
}

static bool has(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    bool there = file_exists(path);
    free(path);
    return there;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static const char *extension(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot && !strchr(dot, '/') ? dot : "";
}

/* Is the file that was named this layout's: by its name, or (loosely) by its extension? */
static bool fits(const struct layout *y, const char *given, bool loosely) {
    for (int i = 0; y->weights[i]; i++)
        if (loosely ? strcmp(extension(given), extension(y->weights[i])) == 0 : ends_with(given, y->weights[i])) return true;
    return false;
}

/* A folder's only torch file, malloced; NULL when there is none or more than one. */
static char *only_torch_file(const char *folder) {
    char *found = NULL;
    DIR *dir = opendir(folder);
    if (!dir) return NULL;
    for (const struct dirent *e; (e = readdir(dir));) {
        if (strcmp(extension(e->d_name), ".pt") != 0 || !has(folder, e->d_name)) continue;
        if (found) {
            free(found);
            found = NULL;
            break;
        }
        found = path_join(folder, e->d_name);
    }
    closedir(dir);
    return found;
}

/* Which format a configuration without weights is of; false when it may be a model's. */
static bool told(enum sae_format *format, const char *folder) {
    bool is = true;
    if (has(folder, "hyperparams.json")) {
        *format = SAE_FORMAT_LLAMA_SCOPE;
    } else if (has(folder, "cfg.json")) {
        *format = SAE_FORMAT_SAELENS;
    } else {
        struct error unused;
        char *config = path_join(folder, "config.json");
        json_t *o = json_open(config, &unused);
        *format = json_object_get(o, "sae_type") ? SAE_FORMAT_OPENMOSS : SAE_FORMAT_DICTIONARY_LEARNING;
        is = json_object_get(o, "sae_type") || json_object_get(json_object_get(o, "trainer"), "dict_class");
        json_decref(o);
        free(config);
    }
    return is;
}

/* The layout's configuration and weights in the folder; given: that very file, whatever lies beside it. Loosely, a config.json counts only
 * when it tells the format. */
static bool matches(struct sae_files *f, const struct layout *y, const char *given, bool loosely) {
    enum sae_format format;
    if ((y->config && !has(f->folder, y->config)) || (given && !fits(y, given, loosely))) return false;
    if (loosely && y->config && strcmp(y->config, "config.json") == 0 && !(told(&format, f->folder) && format == y->format)) return false;
    for (int i = 0; y->weights[i]; i++)
        if (given || has(f->folder, y->weights[i])) {
            f->format = y->format;
            f->config = y->config ? path_join(f->folder, y->config) : NULL;
            f->weights = given ? memory_string(given) : path_join(f->folder, y->weights[i]);
            return true;
        }
    return false;
}

/* The sentence; what the configuration tells of the format stays in f. */
static int not_found(struct sae_files *f, struct error *err) {
    static const char *const expected[] = {[SAE_FORMAT_LLAMA_SCOPE] = "checkpoints/final.safetensors",
                                           [SAE_FORMAT_OPENMOSS] = "sae_weights.safetensors",
                                           [SAE_FORMAT_SAELENS] = "sae_weights.safetensors (SAELens) or sae.safetensors (sparsify)",
                                           [SAE_FORMAT_DICTIONARY_LEARNING] = "ae.pt"};
    if (told(&f->format, f->folder)) {
        const char *name = f->format == SAE_FORMAT_LLAMA_SCOPE ? "hyperparams.json"
                           : f->format == SAE_FORMAT_SAELENS   ? "cfg.json"
                                                               : "config.json";
        f->config = path_join(f->folder, name);
        return fail(err, "%s: %s found, but no weights beside it; expected %s", f->folder, name, expected[f->format]);
    }
    if (has(f->folder, "config.json"))
        return fail(err, "%s: config.json found, but no dictionary's weights beside it; is this a model folder?", f->folder);
    return fail(err,
                "%s: no dictionary found; expected hyperparams.json (Llama Scope), cfg.json (SAELens, sparsify), config.json (OpenMOSS, "
                "dictionary_learning), params.npz (Gemma Scope) or one .pt file (MMDiff, Qwen Scope)",
                f->folder);
}

int sae_recognise(struct sae_files *f, const char *path, struct error *err) {
    const char *given = NULL;
    memset(f, 0, sizeof *f);
    if (dir_exists(path)) {
        f->folder = memory_string(path);
    } else if (!file_exists(path)) {
        return fail(err, "%s: no such file or folder; expected a dictionary", path);
    } else {
        if (!ends_with(path, ".json")) given = path;
        f->folder = path_folder(path);
        if (ends_with(f->folder, "checkpoints")) {
            char *inner = f->folder;
            f->folder = path_folder(inner);
            free(inner);
        }
    }
    for (int loosely = 0; loosely < (given ? 2 : 1); loosely++)
        for (int i = 0; i < LAYOUTS; i++)
            if (matches(f, &layouts[i], given, loosely)) return 0;
    f->format = given && strcmp(extension(given), ".npz") == 0 ? SAE_FORMAT_GEMMA_SCOPE : SAE_FORMAT_MMDIFF;
    f->weights = given ? memory_string(given) : has(f->folder, "config.json") ? NULL : only_torch_file(f->folder);
    return f->weights ? 0 : not_found(f, err);
}

static int read_any(struct sae_host *s, const char *path, bool arrays, struct error *err) {
    static int (*const readers[])(struct sae_host *, const struct sae_files *, bool, struct error *) = {
        [SAE_FORMAT_LLAMA_SCOPE] = llama_scope_read, [SAE_FORMAT_OPENMOSS] = openmoss_read,
        [SAE_FORMAT_SAELENS] = saelens_read,         [SAE_FORMAT_SPARSIFY] = sparsify_read,
        [SAE_FORMAT_GEMMA_SCOPE] = gemma_scope_read, [SAE_FORMAT_DICTIONARY_LEARNING] = dictionary_learning_read,
        [SAE_FORMAT_MMDIFF] = tensor_file_read,
    };
    struct sae_files f;
    memset(s, 0, sizeof *s);
    s->layer = -1;
    int status = sae_recognise(&f, path, err);
    s->format = f.format;
    s->configured = f.config != NULL;
    if (status == 0) status = readers[f.format](s, &f, arrays, err);
    if (status)
        sae_host_free(s);
    else if (s->layer < 0)
        s->layer = layer_of_hook(s->hook);
    sae_files_free(&f);
    return status;
}

char *sae_weights(const char *path) {
    struct sae_files f;
    struct error unused;
    sae_recognise(&f, path, &unused);
    char *weights = f.weights;
    f.weights = NULL;
    sae_files_free(&f);
    return weights;
}

int sae_load(struct sae_host *s, const char *path, struct error *err) { return read_any(s, path, true, err); }
int sae_peek(struct sae_host *s, const char *path, struct error *err) { return read_any(s, path, false, err); }
