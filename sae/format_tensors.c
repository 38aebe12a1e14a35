/* format_tensors.c - dictionaries that are one file of tensors: dictionary_learning, Gemma Scope, MMDiff, Qwen Scope. (formats.md 2.5, 4)
 *
 *   dictionary_learning  ae.pt + config.json, whose trainer.dict_class says which class; without it the names of the tensors do
 *     AutoEncoder            bias (d), encoder.weight (M, d), encoder.bias, decoder.weight (d, M): relu(E (x - bias) + b), D z + bias;
 *                            its loader gives the decoder unit norms
 *     AutoEncoderNew         decoder.bias, not taken from the input
 *     GatedAutoEncoder       decoder_bias, r_mag, gate_bias, mag_bias (M): see fold_gate
 *     JumpReluAutoEncoder    W_enc (d, M), b_enc, W_dec (M, d), b_dec, threshold (M), not taken from the input
 *     AutoEncoderTopK        encoder.weight, encoder.bias, decoder.weight, b_dec, k: the k largest of relu(E (x - b_dec) + b)
 *     BatchTopKSAE           the same tensors and threshold (1): at inference relu(h) where it is above the threshold
 *     MatryoshkaBatchTopKSAE the same in W_enc (d, M), W_dec (M, d); group_sizes do not matter when all groups are active
 *   Gemma Scope          params.npz: W_enc (d, M), b_enc, W_dec (M, d), b_dec, threshold (M), relu; .../embedding/width_... divides
 *                        W_enc by sqrt(d) and multiplies W_dec by it, as SAELens does
 *   MMDiff               W_enc (d, M), b_enc, W_dec (M, d), b_dec, and threshold (M), without relu, or topk with k 50
 *   Qwen Scope           layer<n>.sae.pt: W_enc (M, d), b_enc, W_dec (d, M), b_dec: topk, k in the path (L0_50)
 * The length of b_enc tells MMDiff from Qwen Scope; where d is M, the file's name. */
#include "host/file.h"
#include "sae/format.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum class { AUTOENCODER, AUTOENCODER_NEW, GATED, JUMPRELU, TOPK, BATCH_TOPK, MATRYOSHKA, CLASSES };
static const char *const class_names[CLASSES] = {"AutoEncoder",     "AutoEncoderNew", "GatedAutoEncoder",      "JumpReluAutoEncoder",
                                                 "AutoEncoderTopK", "BatchTopKSAE",   "MatryoshkaBatchTopKSAE"};

/* The number after the last `key` in the text, -1 when there is none. */
static int number_after(const char *text, const char *key) {
    int number = -1;
    for (const char *at = text; (at = strstr(at, key)); at++) {
        const char *digits = at + strlen(key);
        if (*digits >= '0' && *digits <= '9') {
            long n = strtol(digits, NULL, 10);
            if (n <= 1 << 30) number = (int)n;
        }
    }
    return number;
}

/* The four tensors that all have; prefix of the names is "encoder.weight"'s or "W_enc"'s kind. */
struct four {
    const char *E, *b_e, *D, *b_d;
    bool encoder_turned, decoder_turned; /* stored (d, M) */
};

static int load_four(struct sae_host *s, const struct tensors *st, const struct four *n, bool arrays, struct error *err) {
    if (sizes_of(s, st, n->E, n->encoder_turned, err)) return -1;
    const int M = s->M, d = s->d;
    return tensor_load(arrays ? &s->E : NULL, st, n->E, n->encoder_turned ? d : M, n->encoder_turned ? M : d, n->encoder_turned, err) ||
                   (n->b_e && tensor_load(arrays ? &s->b_e : NULL, st, n->b_e, M, 0, false, err)) ||
                   tensor_load(arrays ? &s->D : NULL, st, n->D, n->decoder_turned ? d : M, n->decoder_turned ? M : d, n->decoder_turned,
                               err) ||
                   tensor_load(arrays ? &s->b_d : NULL, st, n->b_d, d, 0, false, err)
               ? -1
               : 0;
}

static int load_threshold(struct sae_host *s, const struct tensors *st, bool relu, bool arrays, struct error *err) {
    s->activation = SAE_JUMPRELU;
    if (tensor_load(arrays ? &s->threshold : NULL, st, "threshold", s->M, 0, false, err)) return -1;
    for (int f = 0; arrays && relu && f < s->M; f++) s->threshold[f] = fmaxf(s->threshold[f], 0);
    return 0;
}

/* ---- dictionary_learning ---- */

static int class_of_config(struct sae_host *s, enum class *c, int *k, const char *file, struct error *err) {
    json_t *o = json_open(file, err);
    const char *name = NULL, *module = NULL;
    double number;
    int status = -1;
    if (!o) return -1;
    const json_t *trainer = json_object_get(o, "trainer");
    if (!json_is_object(trainer)) {
        fail(err, "%s: \"trainer\" is missing; is this the config.json of a dictionary_learning dictionary?", file);
        goto done;
    }
    if (json_text(trainer, file, "dict_class", &name, err) || json_count(trainer, file, "k", 0, k, err)) goto done;
    if (json_number(trainer, file, "layer", -1, &number, err) || json_text(trainer, file, "submodule_name", &module, err)) goto done;
    s->layer = number >= 0 && number < 100000 ? (int)number : -1;
    if (module && strncmp(module, "resid_post", 10) == 0 && s->layer >= 0)
        snprintf(s->hook, sizeof s->hook, "blocks.%d.hook_resid_post", s->layer);
    for (*c = 0; *c < CLASSES; (*c)++)
        if (name && strcmp(name, class_names[*c]) == 0) break;
    if (*c == CLASSES)
        fail(err,
             "%s: \"dict_class\": expected AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, AutoEncoderTopK, "
             "BatchTopKSAE or MatryoshkaBatchTopKSAE, found %.60s",
             file, name ? name : "none");
    else
        status = 0;
done:
    json_decref(o);
    return status;
}

static int class_of_tensors(enum class *c, const struct tensors *st, struct error *err) {
    const char *file = tensors_file(st, 0, NULL);
    if (tensors_find(st, "gate_bias"))
        *c = GATED;
    else if (tensors_find(st, "bias"))
        *c = AUTOENCODER;
    else if (tensors_find(st, "decoder.bias"))
        *c = AUTOENCODER_NEW;
    else if (tensors_find(st, "group_sizes"))
        *c = MATRYOSHKA;
    else
        return fail(err, "%s: its tensors are of no dictionary that is known without its configuration file; expected that beside it",
                    file);
    return 0;
}

static int load_k(struct sae_host *s, const struct tensors *st, int k, struct error *err) {
    double own;
    s->activation = SAE_TOPK;
    s->K = k;
    if (tensor_named(st, "k")) {
        if (tensor_number(&own, st, "k", err)) return -1;
        if (k > 0 && own != k)
            return fail(err, "%s: tensor k: expected %d as config.json says, found %g", tensors_file(st, 0, NULL), k, own);
        if (!(own >= 1 && own <= s->M) || own != floor(own))
            return fail(err, "%s: tensor k: expected a whole number from 1 to %d, found %g", tensors_file(st, 0, NULL), s->M, own);
        s->K = (int)own;
    }
    return s->K > s->M ? fail(err, "%s: k is %d but the dictionary has %d features", tensors_file(st, 0, NULL), s->K, s->M) : 0;
}

/* One threshold for all features; -1 means that training never set it. */
static int load_batch_threshold(struct sae_host *s, const struct tensors *st, bool arrays, struct error *err) {
    double threshold;
    s->activation = SAE_JUMPRELU;
    if (tensor_number(&threshold, st, "threshold", err)) return -1;
    if (!arrays) return 0;
    s->threshold = memory_take((size_t)s->M, sizeof *s->threshold);
    for (int f = 0; f < s->M; f++) s->threshold[f] = fmaxf((float)threshold, 0);
    return 0;
}

/* AutoEncoder's loader gives the decoder unit norms, unless all are within torch.allclose of 1. */
static void unit_decoder(struct sae_host *s) {
    float *n = decoder_norms(s);
    bool unit = true;
    for (int f = 0; f < s->M; f++) unit &= fabs((double)n[f] - 1) <= 1e-8 + 1e-5;
    free(n);
    if (!unit) fold_decoder_norms(s);
}

static int load_class(struct sae_host *s, enum class c, const struct tensors *st, int k, bool arrays, struct error *err) {
    static const struct four linear = {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", false, true},
                             matrices = {"W_enc", "b_enc", "W_dec", "b_dec", true, false};
    struct four n = c == JUMPRELU || c == MATRYOSHKA ? matrices : linear;
    if (c == AUTOENCODER) n.b_d = "bias";
    if (c == AUTOENCODER_NEW) n.b_d = "decoder.bias";
    if (c == GATED) n.b_d = "decoder_bias", n.b_e = NULL;
    if (load_four(s, st, &n, arrays, err)) return -1;
    s->activation = SAE_RELU;
    if ((c == JUMPRELU && load_threshold(s, st, true, arrays, err)) || (c == TOPK && load_k(s, st, k, err)) ||
        ((c == BATCH_TOPK || c == MATRYOSHKA) && load_batch_threshold(s, st, arrays, err)) ||
        (c == GATED && load_gate(s, st, "gate_bias", "mag_bias", arrays, err)))
        return -1;
    if (!arrays) return 0;
    if (c != AUTOENCODER_NEW && c != JUMPRELU && c != GATED) fold_pre_bias(s, 1);
    if (c == GATED) fold_gate(s, true);
    if (c == AUTOENCODER) unit_decoder(s);
    return 0;
}

int dictionary_learning_read(struct sae_host *s, const struct sae_files *files, bool arrays, struct error *err) {
    struct tensors *st = NULL;
    enum class c;
    int k;
    if (class_of_config(s, &c, &k, files->config, err) || tensors_open(&st, files->weights, err)) return -1;
    int status = load_class(s, c, st, k, arrays, err);
    tensors_close(st);
    return status;
}

/* ---- Gemma Scope ---- */

int gemma_scope_read(struct sae_host *s, const struct sae_files *files, bool arrays, struct error *err) {
    static const struct four upper = {"W_enc", "b_enc", "W_dec", "b_dec", true, false},
                             lower = {"w_enc", "b_enc", "w_dec", "b_dec", true, false};
    static const struct {
        const char *repository, *hook;
    } hooks[] = {{"-res", "hook_resid_post"}, {"-mlp", "hook_mlp_out"}, {"-att", "attn.hook_z"}};
    struct tensors *st = NULL;
    char *path = realpath(files->weights, NULL);
    const char *where = path ? path : files->weights;
    if (tensors_open(&st, files->weights, err)) {
        free(path);
        return -1;
    }
    int status =
        load_four(s, st, tensors_find(st, "w_enc") ? &lower : &upper, arrays, err) || load_threshold(s, st, true, arrays, err) ? -1 : 0;
    const float root = sqrtf((float)s->d);
    for (size_t i = 0; status == 0 && arrays && strstr(where, "/embedding/width_") && i < (size_t)s->M * (size_t)s->d; i++)
        s->E[i] /= root, s->D[i] *= root;
    s->layer = number_after(where, "layer_");
    const char *repository = strstr(where, "gemma-scope-");
    for (size_t i = 0; repository && s->layer >= 0 && i < sizeof hooks / sizeof *hooks; i++) {
        const char *end = strchr(repository, '/'), *at = strstr(repository, hooks[i].repository);
        if (at && end && at < end) snprintf(s->hook, sizeof s->hook, "blocks.%d.%s", s->layer, hooks[i].hook);
    }
    tensors_close(st);
    free(path);
    return status;
}

/* ---- MMDiff, Qwen Scope ---- */

static int read_mmdiff(struct sae_host *s, const struct tensors *st, const char *name, bool arrays, struct error *err) {
    static const struct four n = {"W_enc", "b_enc", "W_dec", "b_dec", true, false};
    s->format = SAE_FORMAT_MMDIFF;
    s->layer = number_after(name, "layer_");
    if (s->layer >= 0) snprintf(s->hook, sizeof s->hook, "blocks.%d.hook_resid_post", s->layer);
    if (load_four(s, st, &n, arrays, err)) return -1;
    if (tensors_find(st, "threshold")) return load_threshold(s, st, false, arrays, err);
    s->k_assumed = !tensors_find(st, "k");
    if (!s->k_assumed) return load_k(s, st, 0, err);
    s->activation = SAE_TOPK;
    s->K = SAE_MMDIFF_K;
    return 0;
}

static int read_qwen(struct sae_host *s, const struct tensors *st, const char *name, const char *path, bool arrays, struct error *err) {
    static const struct four n = {"W_enc", "b_enc", "W_dec", "b_dec", false, true};
    const int k = number_after(path, "L0_");
    s->format = SAE_FORMAT_QWEN_SCOPE;
    s->layer = number_after(name, "layer");
    s->activation = SAE_TOPK;
    s->K = k > 0 ? k : 0;
    return load_four(s, st, &n, arrays, err);
}

int tensor_file_read(struct sae_host *s, const struct sae_files *files, bool arrays, struct error *err) {
    struct tensors *st = NULL;
    enum class c = CLASSES;
    int status;
    if (tensors_open(&st, files->weights, err)) return -1;
    char *path = realpath(files->weights, NULL);
    const char *where = path ? path : files->weights, *slash = strrchr(where, '/'), *name = slash ? slash + 1 : where;
    const struct tensor *W = tensors_find(st, "W_enc"), *b = tensors_find(st, "b_enc");
    if (W && b && W->rank == 2 && b->rank == 1 && !tensors_find(st, "group_sizes")) {
        const size_t n = strlen(name), suffix = strlen(".sae.pt");
        const bool named = strncmp(name, "layer", 5) == 0 && n > suffix && strcmp(name + n - suffix, ".sae.pt") == 0;
        const bool qwen = W->shape[0] == W->shape[1] ? named : W->shape[0] == b->shape[0];
        status = qwen ? read_qwen(s, st, name, where, arrays, err) : read_mmdiff(s, st, name, arrays, err);
    } else {
        s->format = SAE_FORMAT_DICTIONARY_LEARNING;
        status = class_of_tensors(&c, st, err) || load_class(s, c, st, 0, arrays, err) ? -1 : 0;
    }
    tensors_close(st);
    free(path);
    return status;
}
