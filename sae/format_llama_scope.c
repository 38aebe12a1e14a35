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
    if (!norm || strcmp(norm, "inference") == 0) return 0;
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
    if (s->d == 0 || s->M == 0) {
        fail(err, "%s: \"%s\" is missing; is this the hyperparams.json of a Llama Scope dictionary?", file,
             s->d == 0 ? "d_model" : "d_sae");
        goto done;
    }
    if (glu) {
        fail(err, "%s: \"use_glu_encoder\": dictionaries with a gated (GLU) encoder are not supported", file);
        goto done;
    }
    if (in && out && strcmp(in, out) != 0) {
        fail(err, "%s: a transcoder from %.100s to %.100s; expected one hook point for input and output", file, in, out);
        goto done;
    }
    if (read_norm(c, o, file, err) || read_activation(s, c, o, file, err)) goto done;
    if (s->activation == SAE_TOPK && s->K > s->M) {
        fail(err, "%s: \"top_k\" is %d but \"d_sae\" %d", file, s->K, s->M);
        goto done;
    }
    snprintf(s->hook, sizeof s->hook, "%s", out ? out : in ? in : "");
    status = 0;
done:
    json_decref(o);
    return status;
}

static void fold(struct sae_host *s, const struct scope *c) {
    size_t d = (size_t)s->d;
    double root = sqrt((double)s->d);
    float s_in = c->scaled ? (float)(root / c->norm_in) : 1, s_out = c->scaled ? (float)(root / c->norm_out) : 1;
    float ratio = c->scaled ? (float)((root / c->norm_in) / (root / c->norm_out)) : 1;
    for (size_t i = 0; i < d; i++) s->b_d[i] /= s_out;
#pragma omp parallel for schedule(static)
    for (int f = 0; f < s->M; f++) {
        float *E = s->E + (size_t)f * d, *D = s->D + (size_t)f * d, b = s->b_e[f] / s_in;
        double sum = 0, shift = 0;
        for (size_t i = 0; i < d; i++) {
            D[i] *= ratio;
            sum += (double)D[i] * (double)D[i];
        }
        float n = (float)sqrt(sum);
        if (c->decoder_norm) {
            for (size_t i = 0; i < d; i++) {
                D[i] = n > 0 ? D[i] / n : 0; /* a zero row is a feature that writes nothing: it stays silent */
                E[i] *= n;
            }
            b *= n;
        }
        for (size_t i = 0; i < d; i++) shift += (double)E[i] * (double)s->b_d[i];
        s->b_e[f] = c->pre_bias ? (float)((double)b - shift) : b;
    }
}

int llama_scope_read(struct sae_host *s, const struct sae_files *files, bool arrays, struct error *err) {
    struct scope c;
    struct tensors *st = NULL;
    int status = -1;
    if (read_config(s, &c, files->config, err)) return -1;
    if (!arrays) return 0;
    if (tensors_open(&st, files->weights, err)) return -1;
    static const char *const unsupported[] = {"encoder_glu.weight", "feature_act_mask", "log_jumprelu_threshold"};
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        if (tensors_find(st, unsupported[i])) {
            fail(err, "%s: tensor %s: this variant (GLU, pruned or 2025 dictionary) is not supported", files->weights, unsupported[i]);
            goto done;
        }
    if (tensor_load(&s->E, st, "encoder.weight", s->M, s->d, false, err) || tensor_load(&s->b_e, st, "encoder.bias", s->M, 0, false, err) ||
        tensor_load(&s->D, st, "decoder.weight", s->d, s->M, true, err))
        goto done;
    if (c.decoder_bias) {
        if (tensor_load(&s->b_d, st, "decoder.bias", s->d, 0, false, err)) goto done;
    } else {
        s->b_d = memory_take((size_t)s->d, sizeof *s->b_d);
    }
    fold(s, &c);
    if (s->activation == SAE_JUMPRELU) {
        s->threshold = memory_take((size_t)s->M, sizeof *s->threshold);
        for (int f = 0; f < s->M; f++) s->threshold[f] = (float)c.threshold;
    }
    status = 0;
done:
    tensors_close(st);
    return status;
}
