/* format_llama_scope.c - Llama Scope v1: hyperparams.json + checkpoints/final.safetensors, nn.Linear orientation, bf16.
 *
 * What its own loader does before use (formats.md 1.4), here in f32, in this order:
 *   1. norm_activation "dataset-wise": s_in = sqrt(d)/norm.in, s_out = sqrt(d)/norm.out;
 *      b_e /= s_in;  b_d /= s_out;  D *= s_in/s_out          -> takes and gives raw activations
 *   2. sparsity_include_decoder_norm: n_f = |D[f]|;  D[f] /= n_f;  E[f] *= n_f;  b_e[f] *= n_f
 *   3. apply_decoder_bias_to_pre_encoder (never in published files): b_e -= E b_d
 * Then h = E x + b_e, z = h > jump_relu_threshold ? h : 0 (strict, value not shifted), x_hat = D^T z + b_d: the threshold is a
 * scalar in raw units for unit decoder rows. */
#include "sae/format.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct scope {
    bool decoder_bias, pre_bias, decoder_norm, scaled;
    double threshold, norm_in, norm_out;
};

static int read_norm(struct scope *c, const json_t *o, const char *file, struct error *err) {
    const char *norm;
    c->scaled = false;
    if (json_text(o, file, "norm_activation", &norm, err)) return -1;
    if (!norm || strcmp(norm, "inference") == 0 || strcmp(norm, "none") == 0) return 0;
    if (strcmp(norm, "dataset-wise") != 0)
        return fail(err,
                    "%s: \"norm_activation\": expected \"dataset-wise\" or \"inference\", found \"%s\", which scales every input by itself "
                    "and cannot be folded into weights",
                    file, norm);
    const json_t *average = json_object_get(o, "dataset_average_activation_norm");
    if (!json_is_object(average))
        return fail(
            err,
            "%s: \"dataset_average_activation_norm\": expected an object with \"in\" and \"out\", needed by dataset-wise normalisation",
            file);
    if (json_number(average, file, "in", NAN, &c->norm_in, err) || json_number(average, file, "out", NAN, &c->norm_out, err)) return -1;
    if (!(c->norm_in > 0 && c->norm_out > 0 && isfinite(c->norm_in) && isfinite(c->norm_out)))
        return fail(err, "%s: \"dataset_average_activation_norm\": expected positive \"in\" and \"out\", found %g and %g", file, c->norm_in,
                    c->norm_out);
    c->scaled = true;
    return 0;
}

static int read_activation(struct sae_host *s, struct scope *c, const json_t *o, const char *file, struct error *err) {
    const char *act;
    if (json_text(o, file, "act_fn", &act, err) || json_number(o, file, "jump_relu_threshold", 0, &c->threshold, err)) return -1;
    if (!act) return fail(err, "%s: \"act_fn\" is missing; expected \"jumprelu\", \"topk\" or \"relu\"", file);
    if (strcmp(act, "jumprelu") == 0) {
        s->activation = SAE_JUMPRELU;
        if (!isfinite(c->threshold) || !json_is_number(json_object_get(o, "jump_relu_threshold")))
            return fail(err, "%s: \"jump_relu_threshold\": expected a number, as act_fn is jumprelu", file);
    } else if (strcmp(act, "topk") == 0) {
        s->activation = SAE_TOPK;
        return json_count(o, file, "top_k", 0, &s->K, err);
    } else if (strcmp(act, "relu") == 0) {
        s->activation = SAE_RELU;
    } else {
        return fail(err, "%s: \"act_fn\": expected \"jumprelu\", \"topk\" or \"relu\", found \"%s\"", file, act);
    }
    return 0;
}

static int read_config(struct sae_host *s, struct scope *c, const char *file, struct error *err) {
    json_t *o = json_open(file, err);
    const char *in = NULL, *out = NULL;
    bool glu = false;
    int status = -1;
    if (!o) return -1;
    if (json_count(o, file, "d_model", 0, &s->d, err) || json_count(o, file, "d_sae", 0, &s->M, err) ||
        json_text(o, file, "hook_point_in", &in, err) || json_text(o, file, "hook_point_out", &out, err) ||
        json_bool(o, file, "use_decoder_bias", true, &c->decoder_bias, err) ||
        json_bool(o, file, "apply_decoder_bias_to_pre_encoder", false, &c->pre_bias, err) ||
        json_bool(o, file, "sparsity_include_decoder_norm", false, &c->decoder_norm, err) ||
        json_bool(o, file, "use_glu_encoder", false, &glu, err))
        goto done;
    if (s->d == 0) {
        fail(err, "%s: \"d_model\" is missing; is this the hyperparams.json of a Llama Scope dictionary?", file);
        goto done;
    }
    if (glu) {
        fail(err, "%s: \"use_glu_encoder\": dictionaries with a gated (GLU) encoder are not supported", file);
        goto done;
    }
    s->transcoder = in && out && strcmp(in, out) != 0;
    if (read_norm(c, o, file, err) || read_activation(s, c, o, file, err)) goto done;
    snprintf(s->hook, sizeof s->hook, "%s", in ? in : out ? out : "");
    if (s->transcoder) snprintf(s->hook_out, sizeof s->hook_out, "%s", out);
    status = 0;
done:
    json_decref(o);
    return status;
}

static void fold(struct sae_host *s, const struct scope *c) {
    size_t d = (size_t)s->d, M = (size_t)s->M;
    double root = sqrt((double)s->d), s_in = c->scaled ? root / c->norm_in : 1, s_out = c->scaled ? root / c->norm_out : 1;
    for (size_t i = 0; i < d; i++) s->b_d[i] /= (float)s_out;
    for (size_t f = 0; f < M; f++) s->b_e[f] /= (float)s_in;
    for (size_t i = 0; i < M * d; i++) s->D[i] *= (float)(s_in / s_out);
    if (c->decoder_norm) fold_decoder_norms(s);
    if (c->pre_bias) fold_pre_bias(s, 1);
}

/* Pruned files carry a mask of features; only one that keeps them all is taken. */
static int refuse_mask(const struct tensors *st, const char *file, struct error *err) {
    static const char *const unsupported[] = {"encoder_glu.weight", "log_jumprelu_threshold"};
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        if (tensor_named(st, unsupported[i]))
            return fail(err, "%s: tensor %s: a GLU or 2025 dictionary under a v1 configuration, which is not supported", file,
                        unsupported[i]);
    const struct tensor *mask = tensor_named(st, "feature_act_mask");
    for (size_t i = 0; mask && mask->dtype != DTYPE_OTHER && i < mask->count; i++) {
        float v;
        tensor_to_f32(mask, i, 1, &v);
        if (v != 1.0f)
            return fail(err, "%s: tensor feature_act_mask: pruned features are not supported (expected all 1, element %zu is %g)", file, i,
                        (double)v);
    }
    return 0;
}

int llama_scope_read(struct sae_host *s, const struct sae_files *files, bool arrays, struct error *err) {
    struct scope c;
    struct tensors *st = NULL;
    int status = -1;
    if (read_config(s, &c, files->config, err)) return -1;
    if (tensors_open(&st, files->weights, err)) return -1;
    if (refuse_mask(st, files->weights, err) || sizes_of(s, st, "encoder.weight", false, err)) goto done; /* d_sae may be left out */
    if (tensor_load(arrays ? &s->E : NULL, st, "encoder.weight", s->M, s->d, false, err) ||
        tensor_load(arrays ? &s->b_e : NULL, st, "encoder.bias", s->M, 0, false, err) ||
        tensor_load(arrays ? &s->D : NULL, st, "decoder.weight", s->d, s->M, true, err) ||
        (c.decoder_bias && tensor_load(arrays ? &s->b_d : NULL, st, "decoder.bias", s->d, 0, false, err)))
        goto done;
    if (s->K > s->M) {
        fail(err, "%s: \"top_k\" is %d but the dictionary has %d features", files->config, s->K, s->M);
        goto done;
    }
    status = 0;
    if (!arrays) goto done;
    if (!c.decoder_bias) s->b_d = memory_take((size_t)s->d, sizeof *s->b_d);
    fold(s, &c);
    if (s->activation == SAE_JUMPRELU) {
        s->threshold = memory_take((size_t)s->M, sizeof *s->threshold);
        for (int f = 0; f < s->M; f++) s->threshold[f] = (float)c.threshold;
    }
done:
    tensors_close(st);
    return status;
}
