/* format_write.c - dictionaries written in the layouts of SAELens, sparsify and MMDiff (formats.md 2, 3, 4.x).
 *
 *   SAELens   cfg.json + sae_weights.safetensors: W_enc (d, M), b_enc, W_dec (M, d), b_dec, threshold (M), W_skip (d, d);
 *             apply_b_dec_to_input false, as the canonical form has folded it
 *   sparsify  cfg.json + sae.safetensors: encoder.weight (M, d), encoder.bias, W_dec (M, d), b_dec, W_skip (d, d);
 *             it takes b_dec from the input unless transcode: b = b_e + E b_d
 *   MMDiff    one torch file: W_enc (d, M), b_enc, W_dec (M, d), b_dec, threshold (M) for JumpReLU; k is not part of the
 *             layout, which means 50: another one is added as the number `k` */
#include "host/file.h"
#include "host/torch_write.h"
#include "sae/format.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *sae_layout_name(enum sae_layout to) {
    static const char *const names[] = {"saelens", "sparsify", "mmdiff"};
    return names[to];
}

int sae_can_save(const struct sae_host *s, enum sae_layout to, struct error *err) {
    static const struct { /* which activations each layout has */
        bool autoencoder[5], transcoder[5], skip[5];
    } has[] = {
        [SAE_LAYOUT_SAELENS] = {{[SAE_TOPK] = true, [SAE_JUMPRELU] = true, [SAE_RELU] = true},
                                {[SAE_JUMPRELU] = true, [SAE_RELU] = true},
                                {[SAE_RELU] = true}},
        [SAE_LAYOUT_SPARSIFY] = {{[SAE_TOPK] = true, [SAE_GROUPMAX] = true},
                                 {[SAE_TOPK] = true, [SAE_GROUPMAX] = true},
                                 {[SAE_TOPK] = true, [SAE_GROUPMAX] = true}},
        [SAE_LAYOUT_MMDIFF] = {{[SAE_TOPK] = true, [SAE_JUMPRELU] = true, [SAE_RELU] = true}, {0}, {0}},
    };
    const char *name = sae_layout_name(to), *kind = s->skip         ? "transcoder with a skip connection"
                                                    : s->transcoder ? "transcoder"
                                                                    : "autoencoder";
    if (!(s->skip ? has[to].skip : s->transcoder ? has[to].transcoder : has[to].autoencoder)[s->activation])
        return fail(err, "the %s layout has no %s %s; choose another with --to", name, sae_activation_name(s->activation), kind);
    if (s->norm != SAE_NORM_NONE && to != SAE_LAYOUT_SAELENS)
        return fail(err, "the %s layout has no normalisation of rows, which this dictionary needs; --to saelens has", name);
    if (s->ranked)
        return fail(err, "the %s layout cannot rank features by decoder norm and keep codes as they are, as this topk dictionary does",
                    name);
    if (sae_fixed_k(s->activation) && s->K == 0)
        return fail(err, "the %s layout needs the dictionary's k, which its files do not say; give it with --k", name);
    if (s->K > s->M) return fail(err, "k is %d, the dictionary has %d features; give a smaller --k", s->K, s->M);
    for (int f = 0; s->threshold && to == SAE_LAYOUT_SAELENS && f < s->M; f++)
        if (s->threshold[f] < 0)
            return fail(err, "the saelens layout has no negative thresholds (it applies relu), feature %d has %g; --to mmdiff has", f,
                        (double)s->threshold[f]);
    return 0;
}

static float *transposed(const float *x, size_t rows, size_t columns) {
    float *t = memory_take(rows * columns, sizeof *t);
#pragma omp parallel for schedule(static)
    for (size_t c = 0; c < columns; c++)
        for (size_t r = 0; r < rows; r++) t[c * rows + r] = x[r * columns + c];
    return t;
}

static json_t *saelens_config(const struct sae_host *s) {
    static const char *const autoencoder[] = {"topk", "jumprelu", "standard"}, *const transcoder[] = {"", "jumprelu_transcoder",
                                                                                                      "transcoder"};
    static const char *const norms[] = {"none", "constant_norm_rescale", "layer_norm"};
    json_t *o = json_object(), *metadata = json_object();
    json_object_set_new(o, "architecture",
                        json_string(s->skip ? "skip_transcoder" : (s->transcoder ? transcoder : autoencoder)[s->activation]));
    json_object_set_new(o, "d_in", json_integer(s->d));
    if (s->transcoder) json_object_set_new(o, "d_out", json_integer(s->d));
    json_object_set_new(o, "d_sae", json_integer(s->M));
    if (s->activation == SAE_TOPK) {
        json_object_set_new(o, "k", json_integer(s->K));
        json_object_set_new(o, "rescale_acts_by_decoder_norm", json_false());
    }
    json_object_set_new(o, "dtype", json_string("float32"));
    json_object_set_new(o, "device", json_string("cpu"));
    json_object_set_new(o, "apply_b_dec_to_input", json_false());
    json_object_set_new(o, "normalize_activations", json_string(norms[s->norm]));
    json_object_set_new(o, "reshape_activations", json_string("none"));
    if (s->hook[0]) json_object_set_new(metadata, "hook_name", json_string(s->hook));
    if (s->hook_out[0]) json_object_set_new(metadata, "hook_name_out", json_string(s->hook_out));
    json_object_set_new(metadata, "prepend_bos", json_true());
    json_object_set_new(metadata, "sae_lens_version",
                        json_string("6.0.0")); /* of the layout: without it SAELens migrates the file as an older one */
    json_object_set_new(metadata, "written_by", json_string("stagediff"));
    json_object_set_new(o, "metadata", metadata);
    return o;
}

static bool unit_rows(const struct sae_host *s) {
    float *n = decoder_norms(s);
    bool unit = true;
    for (int f = 0; f < s->M; f++) unit &= fabsf(n[f] - 1) < 1e-3f;
    free(n);
    return unit;
}

static json_t *sparsify_config(const struct sae_host *s) {
    json_t *o = json_object();
    json_object_set_new(o, "activation", json_string(s->activation == SAE_GROUPMAX ? "groupmax" : "topk"));
    json_object_set_new(o, "expansion_factor", json_integer(s->M > s->d ? s->M / s->d : 1));
    json_object_set_new(o, "normalize_decoder", json_boolean(unit_rows(s)));
    json_object_set_new(o, "num_latents", json_integer(s->M));
    json_object_set_new(o, "k", json_integer(s->K));
    json_object_set_new(o, "multi_topk", json_false());
    json_object_set_new(o, "skip_connection", json_boolean(s->skip != NULL));
    json_object_set_new(o, "transcode", json_boolean(s->transcoder));
    json_object_set_new(o, "d_in", json_integer(s->d));
    return o;
}

static int write_config(json_t *o, const char *path, struct error *err) {
    struct file_writer w = {0};
    int status = file_writer_open(&w, path, err);
    if (status == 0) {
        if (json_dumpf(o, w.stream, JSON_INDENT(2)) || fputc('\n', w.stream) == EOF) {
            file_writer_abort(&w);
            status = fail(err, "%s: cannot write: %s", path, strerror(errno));
        } else {
            status = file_writer_commit(&w, err);
        }
    }
    return status;
}

static void add_saelens(struct safetensors_writer *w, const struct sae_host *s) {
    const int64_t d = s->d, M = s->M;
    safetensors_writer_give(w, "W_enc", DTYPE_F32, 2, (const int64_t[]){d, M}, transposed(s->E, (size_t)s->M, (size_t)s->d));
    safetensors_writer_add(w, "b_enc", DTYPE_F32, 1, &M, s->b_e);
    safetensors_writer_add(w, "W_dec", DTYPE_F32, 2, (const int64_t[]){M, d}, s->D);
    safetensors_writer_add(w, "b_dec", DTYPE_F32, 1, &d, s->b_d);
    if (s->threshold) safetensors_writer_add(w, "threshold", DTYPE_F32, 1, &M, s->threshold);
    if (s->skip) safetensors_writer_add(w, "W_skip", DTYPE_F32, 2, (const int64_t[]){d, d}, s->skip);
}

static void add_sparsify(struct safetensors_writer *w, const struct sae_host *s) {
    const int64_t d = s->d, M = s->M;
    struct sae_host biased = *s; /* b_e of its own */
    biased.b_e = memory_take((size_t)s->M, sizeof *biased.b_e);
    memcpy(biased.b_e, s->b_e, (size_t)s->M * sizeof *biased.b_e);
    if (!s->transcoder) fold_pre_bias(&biased, -1);
    safetensors_writer_add(w, "encoder.weight", DTYPE_F32, 2, (const int64_t[]){M, d}, s->E);
    safetensors_writer_give(w, "encoder.bias", DTYPE_F32, 1, &M, biased.b_e);
    safetensors_writer_add(w, "W_dec", DTYPE_F32, 2, (const int64_t[]){M, d}, s->D);
    safetensors_writer_add(w, "b_dec", DTYPE_F32, 1, &d, s->b_d);
    if (s->skip) safetensors_writer_add(w, "W_skip", DTYPE_F32, 2, (const int64_t[]){d, d}, s->skip);
}

/* cfg.json goes away first and comes back last: a folder that has one is whole, whenever the writer was stopped. */
static int save_folder(const struct sae_host *s, const char *dir, const char *weights_name, json_t *o,
                       void (*add)(struct safetensors_writer *, const struct sae_host *), struct error *err) {
    struct safetensors_writer *w = NULL;
    int status = -1;
    char *config = path_join(dir, "cfg.json"), *weights = path_join(dir, weights_name);
    if (dir_create(dir, err)) goto done;
    if (unlink(config) && errno != ENOENT) {
        fail(err, "%s: cannot replace: %s", config, strerror(errno));
        goto done;
    }
    if (safetensors_writer_open(&w, weights, err)) goto failed;
    safetensors_writer_metadata(w, "format", "pt");
    add(w, s);
    if (safetensors_writer_commit(w, err) || write_config(o, config, err)) goto failed;
    status = 0;
    goto done;
failed:
    rmdir(dir); /* only an empty one, as we made it */
done:
    json_decref(o);
    free(config), free(weights);
    return status;
}

static int save_mmdiff(const struct sae_host *s, const char *path, struct error *err) {
    const int64_t k = s->K;
    float *W_enc = transposed(s->E, (size_t)s->M, (size_t)s->d),
          *zeros = s->activation == SAE_RELU ? memory_take((size_t)s->M, sizeof *zeros) : NULL;
    struct torch_tensor t[6] = {{"W_enc", DTYPE_F32, 2, {s->d, s->M}, W_enc},
                                {"b_enc", DTYPE_F32, 1, {s->M}, s->b_e},
                                {"W_dec", DTYPE_F32, 2, {s->M, s->d}, s->D},
                                {"b_dec", DTYPE_F32, 1, {s->d}, s->b_d}};
    int n = 4;
    if (s->activation != SAE_TOPK) t[n++] = (struct torch_tensor){"threshold", DTYPE_F32, 1, {s->M}, zeros ? zeros : s->threshold};
    if (s->activation == SAE_TOPK && s->K != SAE_MMDIFF_K) t[n++] = (struct torch_tensor){"k", DTYPE_I64, 0, {0}, &k};
    int status = torch_write(path, t, n, err);
    free(W_enc), free(zeros);
    return status;
}

int sae_save_saelens(const struct sae_host *s, const char *dir, struct error *err) {
    return save_folder(s, dir, "sae_weights.safetensors", saelens_config(s), add_saelens, err);
}

int sae_save(const struct sae_host *s, enum sae_layout to, const char *path, struct error *err) {
    if (sae_can_save(s, to, err)) return -1;
    if (to == SAE_LAYOUT_SAELENS) return sae_save_saelens(s, path, err);
    if (to == SAE_LAYOUT_SPARSIFY) return save_folder(s, path, "sae.safetensors", sparsify_config(s), add_sparsify, err);
    return save_mmdiff(s, path, err);
}
