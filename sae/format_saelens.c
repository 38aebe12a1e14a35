/* format_saelens.c - SAELens: cfg.json + sae_weights.safetensors with W_enc (d, M), b_enc (M), W_dec (M, d), b_dec (d).
 *
 * Forward (formats.md 2.3): x -= b_dec if apply_b_dec_to_input; h = x W_enc + b_enc; topk: h *= |W_dec| with
 * rescale_acts_by_decoder_norm, the k largest, relu, decode divides by the norm; jumprelu: relu(h) [h > threshold];
 * standard: relu(h); y = z W_dec + b_dec. Into the canonical form:
 *   apply_b_dec_to_input              b_e -= E b_d
 *   rescale_acts_by_decoder_norm      E, b_e *= n, D /= n (n = |D row|): the same codes as SAELens returns
 *   threshold                         max(threshold, 0), which relu makes of it */
#include "host/file.h"
#include "sae/format.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct lens {
    bool pre_bias, rescale;
};

/* Configurations before SAELens 6 are flat, name topk by its activation function and may spell keys otherwise. */
static int read_architecture(struct sae_host *s, struct lens *c, const json_t *o, const char *file, struct error *err) {
    const char *arch, *act, *older;
    if (json_text(o, file, "architecture", &arch, err) || json_text(o, file, "activation_fn", &act, err) ||
        json_text(o, file, "activation_fn_str", &older, err))
        return -1;
    act = act ? act : older;
    bool topk_function = act && strcmp(act, "topk") == 0;
    if (!arch) arch = "standard";
    if (strcmp(arch, "topk") == 0 || (strcmp(arch, "standard") == 0 && topk_function)) {
        const json_t *kwargs = json_object_get(o, "activation_fn_kwargs");
        s->activation = SAE_TOPK;
        if (json_count(json_is_object(kwargs) && !json_object_get(o, "k") ? kwargs : o, file, "k", 0, &s->K, err)) return -1;
        if (s->K > s->M) return fail(err, "%s: \"k\" is %d but \"d_sae\" %d", file, s->K, s->M);
        return json_bool(o, file, "rescale_acts_by_decoder_norm", false, &c->rescale, err);
    }
    if (strcmp(arch, "jumprelu") == 0)
        s->activation = SAE_JUMPRELU;
    else if (strcmp(arch, "standard") == 0 && (!act || strcmp(act, "relu") == 0))
        s->activation = SAE_RELU;
    else if (strcmp(arch, "standard") == 0)
        return fail(err, "%s: \"activation_fn\": expected \"relu\" or \"topk\", found \"%.60s\", which is not supported", file, act);
    else
        return fail(err, "%s: \"architecture\": expected \"topk\", \"standard\" or \"jumprelu\", found \"%.60s\", which is not supported",
                    file, arch);
    return 0;
}

static int read_normalisation(const json_t *o, const char *file, struct error *err) {
    const json_t *v = json_object_get(o, "normalize_activations");
    const char *text;
    if (!v || json_is_boolean(v)) { /* before 6: true meant expected_average_only_in */
        if (json_is_true(v))
            log_note("%s: activations were normalised on average during training; as in SAELens, inputs are taken as they are", file);
        return 0;
    }
    if (json_text(o, file, "normalize_activations", &text, err)) return -1;
    if (!text || strcmp(text, "none") == 0) return 0;
    if (strcmp(text, "expected_average_only_in") == 0) {
        log_note("%s: activations were normalised on average during training; as in SAELens, inputs are taken as they are", file);
        return 0;
    }
    return fail(err,
                "%s: \"normalize_activations\": expected \"none\" or \"expected_average_only_in\", found \"%.60s\", which scales every "
                "input by itself and is not supported",
                file, text);
}

static int read_config(struct sae_host *s, struct lens *c, const char *file, struct error *err) {
    json_t *o = json_open(file, err);
    const char *hook = NULL, *older = NULL, *inner = NULL;
    int d_out = 0, status = -1;
    if (!o) return -1;
    if (json_count(o, file, "d_in", 0, &s->d, err) || json_count(o, file, "d_sae", 0, &s->M, err) ||
        json_count(o, file, "d_out", s->d, &d_out, err) || json_bool(o, file, "apply_b_dec_to_input", true, &c->pre_bias, err) ||
        json_text(o, file, "hook_name", &hook, err) || json_text(o, file, "hook_point", &older, err))
        goto done;
    if (s->d == 0 || s->M == 0) {
        fail(err, "%s: \"%s\" is missing; is this the cfg.json of a SAELens dictionary?", file, s->d == 0 ? "d_in" : "d_sae");
        goto done;
    }
    if (read_architecture(s, c, o, file, err) || read_normalisation(o, file, err)) goto done;
    if (d_out != s->d) {
        fail(err, "%s: a transcoder (\"d_in\" %d, \"d_out\" %d), which is not supported", file, s->d, d_out);
        goto done;
    }
    const json_t *metadata = json_object_get(o, "metadata");
    if (json_is_object(metadata) && json_text(metadata, file, "hook_name", &inner, err)) goto done;
    hook = hook ? hook : older ? older : inner;
    snprintf(s->hook, sizeof s->hook, "%s", hook ? hook : "");
    status = 0;
done:
    json_decref(o);
    return status;
}

static int refuse_scaling(const struct tensors *st, const char *file, struct error *err) {
    static const char *const names[] = {"scaling_factor", "finetuning_scaling_factor"};
    static const char *const others[] = {"b_gate", "r_mag", "W_skip", "log_threshold"};
    for (size_t n = 0; n < 2; n++) {
        const struct tensor *t = tensors_find(st, names[n]);
        for (size_t i = 0; t && i < t->count; i++) {
            float v;
            tensor_to_f32(t, i, 1, &v);
            if (v != 1.0f)
                return fail(err, "%s: tensor %s: fine-tuned output scales are not supported (expected all 1, found %g)", file, names[n],
                            (double)v);
        }
    }
    for (size_t n = 0; n < sizeof others / sizeof *others; n++)
        if (tensors_find(st, others[n]))
            return fail(err, "%s: tensor %s: a gated, skip or training-only dictionary, which is not supported", file, others[n]);
    return 0;
}

int saelens_read(struct sae_host *s, const struct sae_files *files, bool arrays, struct error *err) {
    struct lens c = {false, false};
    struct tensors *st = NULL;
    int status = -1;
    if (read_config(s, &c, files->config, err)) return -1;
    if (tensors_open(&st, files->weights, err)) return -1;
    if (refuse_scaling(st, files->weights, err) || tensor_load(arrays ? &s->E : NULL, st, "W_enc", s->d, s->M, true, err) ||
        tensor_load(arrays ? &s->b_e : NULL, st, "b_enc", s->M, 0, false, err) ||
        tensor_load(arrays ? &s->D : NULL, st, "W_dec", s->M, s->d, false, err) ||
        tensor_load(arrays ? &s->b_d : NULL, st, "b_dec", s->d, 0, false, err) ||
        (s->activation == SAE_JUMPRELU && tensor_load(arrays ? &s->threshold : NULL, st, "threshold", s->M, 0, false, err)))
        goto done;
    status = 0;
    if (!arrays) goto done;
    for (int f = 0; f < s->M && s->threshold; f++) s->threshold[f] = fmaxf(s->threshold[f], 0);
    if (c.pre_bias) fold_pre_bias(s, 1);
    if (c.rescale) fold_decoder_norms(s);
done:
    tensors_close(st);
    return status;
}

static json_t *config_of(const struct sae_host *s) {
    static const char *const architecture[] = {"topk", "jumprelu", "standard"};
    json_t *o = json_object(), *metadata = json_object();
    json_object_set_new(o, "architecture", json_string(architecture[s->activation]));
    json_object_set_new(o, "d_in", json_integer(s->d));
    json_object_set_new(o, "d_sae", json_integer(s->M));
    if (s->activation == SAE_TOPK) {
        json_object_set_new(o, "k", json_integer(s->K));
        json_object_set_new(o, "rescale_acts_by_decoder_norm", json_false());
    }
    json_object_set_new(o, "dtype", json_string("float32"));
    json_object_set_new(o, "device", json_string("cpu"));
    json_object_set_new(o, "apply_b_dec_to_input", json_false());
    json_object_set_new(o, "normalize_activations", json_string("none"));
    json_object_set_new(o, "reshape_activations", json_string("none"));
    if (s->hook[0]) json_object_set_new(metadata, "hook_name", json_string(s->hook));
    json_object_set_new(metadata, "prepend_bos", json_true());
    json_object_set_new(metadata, "sae_lens_version",
                        json_string("6.0.0")); /* of the layout: without it SAELens migrates the file as an older one */
    json_object_set_new(metadata, "written_by", json_string("stagediff"));
    json_object_set_new(o, "metadata", metadata);
    return o;
}

static int write_config(const struct sae_host *s, const char *path, struct error *err) {
    struct file_writer w = {0};
    json_t *o = config_of(s);
    int status = file_writer_open(&w, path, err);
    if (status == 0) {
        if (json_dumpf(o, w.stream, JSON_INDENT(2)) || fputc('\n', w.stream) == EOF) {
            file_writer_abort(&w);
            status = fail(err, "%s: cannot write: %s", path, strerror(errno));
        } else {
            status = file_writer_commit(&w, err);
        }
    }
    json_decref(o);
    return status;
}

/* cfg.json goes away first and comes back last: a folder that has one is whole, whenever the writer was stopped. */
int sae_save_saelens(const struct sae_host *s, const char *dir, struct error *err) {
    struct safetensors_writer *w = NULL;
    const int64_t d = s->d, M = s->M;
    size_t columns = (size_t)s->M, rows = (size_t)s->d;
    if (dir_create(dir, err)) return -1;
    char *config = path_join(dir, "cfg.json"), *weights = path_join(dir, "sae_weights.safetensors");
    int status = -1;
    if (unlink(config) && errno != ENOENT) {
        fail(err, "%s: cannot replace: %s", config, strerror(errno));
        goto done;
    }
    if (safetensors_writer_open(&w, weights, err)) goto done;
    float *W_enc = memory_take(rows * columns, sizeof *W_enc);
#pragma omp parallel for schedule(static)
    for (size_t c = 0; c < rows; c++)
        for (size_t f = 0; f < columns; f++) W_enc[c * columns + f] = s->E[f * rows + c];
    safetensors_writer_metadata(w, "format", "pt");
    safetensors_writer_give(w, "W_enc", DTYPE_F32, 2, (const int64_t[]){d, M}, W_enc);
    safetensors_writer_add(w, "b_enc", DTYPE_F32, 1, &M, s->b_e);
    safetensors_writer_add(w, "W_dec", DTYPE_F32, 2, (const int64_t[]){M, d}, s->D);
    safetensors_writer_add(w, "b_dec", DTYPE_F32, 1, &d, s->b_d);
    if (s->threshold) safetensors_writer_add(w, "threshold", DTYPE_F32, 1, &M, s->threshold);
    if (safetensors_writer_commit(w, err)) goto done;
    status = write_config(s, config, err);
done:
    free(config), free(weights);
    return status;
}
