/* format_openmoss.c - OpenMOSS since 2025: config.json with sae_type + sae_weights.safetensors.
 *   January to June 2025: encoder.weight (M, d), encoder.bias, decoder.weight (d, M), decoder.bias, log_jumprelu_threshold (M)
 *   since then:           W_E (d, M), b_E, W_D (M, d), b_D, activation_function.log_jumprelu_threshold (M)
 *   both:                 dataset_average_activation_norm.<hook point>, one number each
 *
 * Forward (formats.md 1.6), s_in = sqrt(d)/norm of the input's hook, s_out of the output's, 1 unless norm_activation is dataset-wise:
 *   h = E (s_in x) + b;  n_f = |D[f]| with sparsity_include_decoder_norm, else 1;  z = h where h n > exp(log threshold), or the top_k
 *   relu(h) by h n;  y = (D^T z + b_d) / s_out
 * Canonical, in `encode`'s units (z / s_out, decoder rows as stored; docs/cli.md):
 *   E *= s_in/s_out;  b_e /= s_out;  threshold = exp(log threshold) / (n s_out);  rank_scale = n;  b_d /= s_out
 * apply_decoder_bias_to_pre_encoder (early files): b -= E b_d, all as stored. */
#include "host/file.h"
#include "sae/format.h"
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct moss {
    bool decoder_bias, pre_bias, decoder_norm, scaled;
    double s_in, s_out;
};
struct names { /* of the tensors */
    const char *E, *b_e, *D, *b_d, *glu;
    bool encoder_turned, decoder_turned;
};
static const struct names names_early = {
    "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "encoder_glu.weight", false, true};
static const struct names names_now = {"W_E", "b_E", "W_D", "b_D", "W_E_glu", true, false};

static int read_activation(struct sae_host *s, const json_t *o, const char *file, struct error *err) {
    const char *act;
    if (json_text(o, file, "act_fn", &act, err)) return -1;
    if (!act || strcmp(act, "relu") == 0)
        s->activation = SAE_RELU;
    else if (strcmp(act, "jumprelu") == 0)
        s->activation = SAE_JUMPRELU;
    else if (strcmp(act, "topk") == 0)
        s->activation = SAE_TOPK;
    else
        return fail(err, "%s: \"act_fn\": expected \"jumprelu\", \"topk\" or \"relu\", found \"%.60s\"%s", file, act,
                    strcmp(act, "batchtopk") == 0 ? ", whose codes depend on which rows are encoded together; convert it to jumprelu" : "");
    return s->activation == SAE_TOPK ? json_count(o, file, "top_k", 50, &s->K, err) : 0;
}

static int read_norm(struct moss *c, const json_t *o, const char *file, struct error *err) {
    const char *norm;
    if (json_text(o, file, "norm_activation", &norm, err)) return -1;
    c->scaled = !norm || strcmp(norm, "dataset-wise") == 0; /* the library's default */
    if (c->scaled || strcmp(norm, "inference") == 0) return 0;
    return fail(err,
                "%s: \"norm_activation\": expected \"dataset-wise\" or \"inference\", found \"%.60s\", which scales every input by itself "
                "and cannot be folded into weights",
                file, norm);
}

static int read_config(struct sae_host *s, struct moss *c, const char *file, struct error *err) {
    json_t *o = json_open(file, err);
    const char *type = NULL, *in = NULL, *out = NULL;
    bool glu = false;
    int status = -1;
    if (!o) return -1;
    if (json_text(o, file, "sae_type", &type, err)) goto done;
    if (type && strcmp(type, "sae") != 0) {
        fail(err, "%s: \"sae_type\": expected \"sae\", found \"%.60s\", which is not supported", file, type);
        goto done;
    }
    if (json_count(o, file, "d_model", 0, &s->d, err) || json_text(o, file, "hook_point_in", &in, err) ||
        json_text(o, file, "hook_point_out", &out, err) || json_bool(o, file, "use_decoder_bias", true, &c->decoder_bias, err) ||
        json_bool(o, file, "apply_decoder_bias_to_pre_encoder", false, &c->pre_bias, err) ||
        json_bool(o, file, "sparsity_include_decoder_norm", true, &c->decoder_norm, err) ||
        json_bool(o, file, "use_glu_encoder", false, &glu, err) || read_activation(s, o, file, err) || read_norm(c, o, file, err))
        goto done;
    if (s->d == 0 || !in) {
        fail(err, "%s: \"%s\" is missing; is this the config.json of an OpenMOSS dictionary?", file,
             s->d == 0 ? "d_model" : "hook_point_in");
        goto done;
    }
    if (glu) {
        fail(err, "%s: \"use_glu_encoder\": dictionaries with a gated (GLU) encoder are not supported", file);
        goto done;
    }
    snprintf(s->hook, sizeof s->hook, "%s", in);
    s->ranked = s->activation == SAE_TOPK && c->decoder_norm;
    s->transcoder = out && strcmp(in, out) != 0;
    if (s->transcoder) snprintf(s->hook_out, sizeof s->hook_out, "%s", out);
    status = 0;
done:
    json_decref(o);
    return status;
}

static int read_scale(double *scale, const struct tensors *st, const char *hook, int d, struct error *err) {
    char name[192];
    double norm;
    snprintf(name, sizeof name, "dataset_average_activation_norm.%s", hook);
    if (tensor_number(&norm, st, name, err)) return -1;
    if (!(norm > 0)) return fail(err, "%s: tensor %s: expected a positive number, found %g", tensors_file(st, 0, NULL), name, norm);
    *scale = sqrt((double)d) / norm;
    return 0;
}

static int read_tensors(struct sae_host *s, struct moss *c, const struct tensors *st, const struct names *n, bool arrays,
                        struct error *err) {
    const char *threshold = "activation_function.log_jumprelu_threshold";
    if (tensor_named(st, n->glu))
        return fail(err, "%s: tensor %s: a gated (GLU) encoder, which is not supported", tensors_file(st, 0, NULL), n->glu);
    if (sizes_of(s, st, n->E, n->encoder_turned, err)) return -1;
    int M = s->M, d = s->d;
    if (s->K > M) return fail(err, "%s: %d features, fewer than \"top_k\" %d", tensors_file(st, 0, NULL), M, s->K);
    if (!tensor_named(st, threshold) && tensor_named(st, "log_jumprelu_threshold")) threshold = "log_jumprelu_threshold";
    c->s_in = c->s_out = 1;
    if (c->scaled &&
        (read_scale(&c->s_in, st, s->hook, d, err) || read_scale(&c->s_out, st, s->transcoder ? s->hook_out : s->hook, d, err)))
        return -1;
    if (tensor_load(arrays ? &s->E : NULL, st, n->E, n->encoder_turned ? d : M, n->encoder_turned ? M : d, n->encoder_turned, err) ||
        tensor_load(arrays ? &s->b_e : NULL, st, n->b_e, M, 0, false, err) ||
        tensor_load(arrays ? &s->D : NULL, st, n->D, n->decoder_turned ? d : M, n->decoder_turned ? M : d, n->decoder_turned, err) ||
        (c->decoder_bias && tensor_load(arrays ? &s->b_d : NULL, st, n->b_d, d, 0, false, err)) ||
        (s->activation == SAE_JUMPRELU && tensor_load(arrays ? &s->threshold : NULL, st, threshold, M, 0, false, err)))
        return -1;
    if (arrays && !c->decoder_bias) s->b_d = memory_take((size_t)d, sizeof *s->b_d);
    return 0;
}

static void fold(struct sae_host *s, const struct moss *c) {
    float *norms = c->decoder_norm ? decoder_norms(s) : NULL;
    const float ratio = (float)(c->s_in / c->s_out), s_out = (float)c->s_out;
    if (c->pre_bias) fold_pre_bias(s, 1);
#pragma omp parallel for schedule(static)
    for (int f = 0; f < s->M; f++) {
        float *E = s->E + (size_t)f * (size_t)s->d;
        for (int i = 0; i < s->d; i++) E[i] *= ratio;
        s->b_e[f] /= s_out;
        if (!s->threshold) continue;
        /* a decoder row of zeros never passes: its h n is 0 */
        double t = exp((double)s->threshold[f]) / ((norms ? (double)norms[f] : 1) * c->s_out);
        s->threshold[f] = t < (double)FLT_MAX ? (float)t : FLT_MAX;
    }
    for (int i = 0; i < s->d; i++) s->b_d[i] /= s_out;
    if (s->ranked)
        s->rank_scale = norms;
    else
        free(norms);
}

int openmoss_read(struct sae_host *s, const struct sae_files *files, bool arrays, struct error *err) {
    struct moss c;
    struct tensors *st = NULL;
    if (read_config(s, &c, files->config, err) || tensors_open(&st, files->weights, err)) return -1;
    bool early = !tensor_named(st, names_now.E) && tensor_named(st, names_early.E);
    if (early) s->format = SAE_FORMAT_OPENMOSS_EARLY;
    int status = read_tensors(s, &c, st, early ? &names_early : &names_now, arrays, err);
    if (status == 0 && arrays) fold(s, &c);
    tensors_close(st);
    return status;
}
