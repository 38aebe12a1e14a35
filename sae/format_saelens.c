/* format_saelens.c - SAELens: cfg.json + sae_weights.safetensors with W_enc (d, M), b_enc (M), W_dec (M, d), b_dec (d).
 *
 * Forward (formats.md 2.3): x -= b_dec if apply_b_dec_to_input (never in transcoders); h = x W_enc + b_enc; topk: h *= |W_dec| with
 * rescale_acts_by_decoder_norm, the k largest, relu, decode divides by the norm; jumprelu: relu(h) [h > threshold];
 * standard: relu(h); gated: b_gate, b_mag, r_mag (M) in place of b_enc; y = z W_dec + b_dec (+ x W_skip^T). Into the canonical form:
 *   apply_b_dec_to_input              b_e -= E b_d
 *   rescale_acts_by_decoder_norm      E, b_e *= n, D /= n (n = |D row|): the same codes as SAELens returns
 *   threshold                         max(threshold, 0), which relu makes of it
 *   normalize_activations             layer_norm, constant_norm_rescale: of every row, undone on y; expected_average_only_in: nothing
 *   gated                             a JumpReLU (fold_gate)
 * Batch-topk and matryoshka dictionaries are saved by SAELens as jumprelu. */
#include "host/file.h"
#include "sae/format.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct lens {
    bool pre_bias, rescale, gated, skip;
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
    static const struct {
        const char *name;
        enum sae_activation activation;
        bool gated, transcoder, skip;
    } known[] = {{"standard", SAE_RELU, false, false, false},      {"jumprelu", SAE_JUMPRELU, false, false, false},
                 {"gated", SAE_JUMPRELU, true, false, false},      {"transcoder", SAE_RELU, false, true, false},
                 {"skip_transcoder", SAE_RELU, false, true, true}, {"jumprelu_transcoder", SAE_JUMPRELU, false, true, false}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(arch, known[i].name) != 0) continue;
        s->activation = known[i].activation, s->transcoder = known[i].transcoder;
        c->gated = known[i].gated, c->skip = known[i].skip;
        if (act && strcmp(act, "relu") != 0)
            return fail(err, "%s: \"activation_fn\": expected \"relu\" or \"topk\", found \"%.60s\", which is not supported", file, act);
        return 0;
    }
    return fail(err,
                "%s: \"architecture\": expected \"topk\", \"standard\", \"jumprelu\", \"gated\", \"transcoder\", \"skip_transcoder\" or "
                "\"jumprelu_transcoder\", found \"%.60s\", which is not supported",
                file, arch);
}

static int read_normalisation(struct sae_host *s, const json_t *o, const char *file, struct error *err) {
    const json_t *v = json_object_get(o, "normalize_activations");
    const char *text = json_is_true(v) ? "expected_average_only_in" : "none"; /* before 6: true or false */
    if (v && !json_is_boolean(v) && json_text(o, file, "normalize_activations", &text, err)) return -1;
    if (!text || strcmp(text, "none") == 0) return 0;
    if (strcmp(text, "expected_average_only_in") == 0)
        log_note("%s: activations were normalised on average during training; as in SAELens, inputs are taken as they are", file);
    else if (strcmp(text, "constant_norm_rescale") == 0)
        s->norm = SAE_NORM_LENGTH;
    else if (strcmp(text, "layer_norm") == 0)
        s->norm = SAE_NORM_LAYER;
    else
        return fail(err,
                    "%s: \"normalize_activations\": expected \"none\", \"expected_average_only_in\", \"constant_norm_rescale\" or "
                    "\"layer_norm\", found \"%.60s\", which is not supported",
                    file, text);
    return s->norm != SAE_NORM_NONE && s->transcoder
               ? fail(err, "%s: \"normalize_activations\": a transcoder with %s, which is not supported", file, text)
               : 0;
}

static int read_config(struct sae_host *s, struct lens *c, const char *file, struct error *err) {
    json_t *o = json_open(file, err);
    const char *hook = NULL, *older = NULL, *inner = NULL, *out = NULL;
    int d_out = 0, status = -1;
    if (!o) return -1;
    if (json_count(o, file, "d_in", 0, &s->d, err) || json_count(o, file, "d_sae", 0, &s->M, err) ||
        json_count(o, file, "d_out", s->d, &d_out, err) || json_text(o, file, "hook_name", &hook, err) ||
        json_text(o, file, "hook_point", &older, err))
        goto done;
    if (s->d == 0 || s->M == 0) {
        fail(err, "%s: \"%s\" is missing; is this the cfg.json of a SAELens dictionary?", file, s->d == 0 ? "d_in" : "d_sae");
        goto done;
    }
    if (read_architecture(s, c, o, file, err) || read_normalisation(s, o, file, err) ||
        json_bool(o, file, "apply_b_dec_to_input", !s->transcoder, &c->pre_bias, err))
        goto done;
    if (d_out != s->d) {
        fail(err, "%s: a transcoder with \"d_out\" %d other than \"d_in\" %d, which is not supported", file, d_out, s->d);
        goto done;
    }
    if (s->transcoder && c->pre_bias) {
        fail(err, "%s: \"apply_b_dec_to_input\": expected false in a transcoder, found true", file);
        goto done;
    }
    const json_t *metadata = json_object_get(o, "metadata");
    if (json_is_object(metadata) &&
        (json_text(metadata, file, "hook_name", &inner, err) || json_text(metadata, file, "hook_name_out", &out, err)))
        goto done;
    hook = hook ? hook : older ? older : inner;
    if (s->transcoder && out) snprintf(s->hook_out, sizeof s->hook_out, "%s", out);
    snprintf(s->hook, sizeof s->hook, "%s", hook ? hook : "");
    status = 0;
done:
    json_decref(o);
    return status;
}

/* Tensors that would change the result and that this architecture does not use. */
static int refuse_tensors(const struct lens *c, const struct tensors *st, const char *file, struct error *err) {
    static const char *const scales[] = {"scaling_factor", "finetuning_scaling_factor"};
    const char *const others[] = {c->gated ? NULL : "b_gate", c->gated ? NULL : "r_mag", c->skip ? NULL : "W_skip", "log_threshold"};
    for (size_t n = 0; n < sizeof scales / sizeof *scales; n++) {
        const struct tensor *t = tensors_find(st, scales[n]);
        for (size_t i = 0; t && t->dtype != DTYPE_OTHER && i < t->count; i++) {
            float v;
            tensor_to_f32(t, i, 1, &v);
            if (!(fabsf(v - 1) <= 1e-5f)) /* as torch.allclose */
                return fail(err, "%s: tensor %s: fine-tuned output scales are not supported (expected all 1, found %g)", file, scales[n],
                            (double)v);
        }
    }
    for (size_t n = 0; n < sizeof others / sizeof *others; n++)
        if (others[n] && tensors_find(st, others[n]))
            return fail(err, "%s: tensor %s: not expected with the \"architecture\" of cfg.json", file, others[n]);
    return 0;
}

int saelens_read(struct sae_host *s, const struct sae_files *files, bool arrays, struct error *err) {
    struct lens c = {0};
    struct tensors *st = NULL;
    int status = -1;
    if (read_config(s, &c, files->config, err)) return -1;
    if (tensors_open(&st, files->weights, err)) return -1;
    if (refuse_tensors(&c, st, files->weights, err) || tensor_load(arrays ? &s->E : NULL, st, "W_enc", s->d, s->M, true, err) ||
        tensor_load(arrays ? &s->D : NULL, st, "W_dec", s->M, s->d, false, err) ||
        tensor_load(arrays ? &s->b_d : NULL, st, "b_dec", s->d, 0, false, err) ||
        (c.skip && tensor_load(arrays ? &s->skip : NULL, st, "W_skip", s->d, s->d, false, err)))
        goto done;
    if (c.gated ? load_gate(s, st, "b_gate", "b_mag", arrays, err)
                : tensor_load(arrays ? &s->b_e : NULL, st, "b_enc", s->M, 0, false, err) ||
                      (s->activation == SAE_JUMPRELU && tensor_load(arrays ? &s->threshold : NULL, st, "threshold", s->M, 0, false, err)))
        goto done;
    status = 0;
    if (!arrays) goto done;
    if (c.gated) {
        fold_gate(s, c.pre_bias);
        goto done;
    }
    for (int f = 0; f < s->M && s->threshold; f++) s->threshold[f] = fmaxf(s->threshold[f], 0);
    if (c.pre_bias) fold_pre_bias(s, 1);
    if (c.rescale) fold_decoder_norms(s);
done:
    tensors_close(st);
    return status;
}
