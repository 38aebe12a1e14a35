/* format_sparsify.c - EleutherAI sparsify: cfg.json + sae.safetensors with encoder.weight (M, d), encoder.bias (M), W_dec (M, d),
 * b_dec (d), W_skip (d, d) with skip_connection.
 *
 * Forward (formats.md 3.2): x -= b_dec unless transcode; h = W x + b; the k largest of relu(h), or, groupmax, the largest of each of k
 * groups; y = z W_dec + b_dec (+ x W_skip^T). `signed` (June to August 2024): the k largest |h|, sign kept, no relu.
 * Canonical: b_e -= E b_d unless transcode. The folder carries the name of the module whose output it was trained on. */
#include "host/file.h"
#include "sae/format.h"
#include <stdlib.h>
#include <string.h>

struct coder {
    bool skip;
};

static int read_activation(struct sae_host *s, const json_t *o, const char *file, struct error *err) {
    const char *act;
    bool keep_sign;
    if (json_text(o, file, "activation", &act, err) || json_bool(o, file, "signed", false, &keep_sign, err) ||
        json_count(o, file, "k", 32, &s->K, err))
        return -1;
    if (!act || strcmp(act, "topk") == 0)
        s->activation = keep_sign ? SAE_SIGNED : SAE_TOPK;
    else if (strcmp(act, "groupmax") == 0 && !keep_sign)
        s->activation = SAE_GROUPMAX;
    else
        return fail(err, "%s: \"activation\": expected \"topk\" or \"groupmax\", found \"%.60s\"%s", file, act,
                    keep_sign ? " with \"signed\"" : "");
    if (s->K > s->M) return fail(err, "%s: \"k\" is %d but the dictionary has %d features", file, s->K, s->M);
    if (s->activation == SAE_GROUPMAX && s->M % s->K)
        return fail(err, "%s: \"k\": groupmax needs a divisor of the %d features, found %d", file, s->M, s->K);
    return 0;
}

static int read_config(struct sae_host *s, struct coder *c, const char *file, struct error *err) {
    json_t *o = json_open(file, err);
    int expansion, status = -1;
    double latents;
    if (!o) return -1;
    if (json_count(o, file, "d_in", 0, &s->d, err) || json_number(o, file, "num_latents", 0, &latents, err) ||
        json_count(o, file, "expansion_factor", 32, &expansion, err) || json_bool(o, file, "transcode", false, &s->transcoder, err) ||
        json_bool(o, file, "skip_connection", false, &c->skip, err))
        goto done;
    if (s->d == 0) {
        fail(err, "%s: \"d_in\" is missing; is this the cfg.json of a sparsify dictionary?", file);
        goto done;
    }
    double features = latents > 0 ? latents : (double)s->d * expansion; /* num_latents 0: expansion_factor counts */
    if (!(features >= 1 && features <= 1 << 30) || features != (int)features) {
        fail(err, "%s: \"num_latents\": expected a whole number up to %d, found %g", file, 1 << 30, features);
        goto done;
    }
    s->M = (int)features;
    status = read_activation(s, o, file, err);
done:
    json_decref(o);
    return status;
}

/* The module's name as TransformerLens calls its output. It is the folder's name, or its parent's where runs have seeds. */
static void read_hook(struct sae_host *s, const char *folder) {
    static const struct {
        const char *module, *hook;
    } names[] = {{"", "hook_resid_post"}, {".mlp", "hook_mlp_out"}, {".self_attn", "hook_attn_out"}};
    static const char *const before[] = {"model.layers.", "layers.", "layer_"};
    char *path = realpath(folder, NULL), *slash = path ? strrchr(path, '/') : NULL;
    if (slash && strncmp(slash, "/seed", 5) == 0) {
        *slash = 0;
        slash = strrchr(path, '/');
    }
    for (size_t b = 0; slash && b < sizeof before / sizeof *before; b++) {
        const char *name = slash + 1, *digits = name + strlen(before[b]);
        char *end;
        if (strncmp(name, before[b], strlen(before[b])) || *digits < '0' || *digits > '9') continue;
        long layer = strtol(digits, &end, 10);
        if (layer >= 100000) break;
        s->layer = (int)layer;
        for (size_t i = 0; i < sizeof names / sizeof *names && !s->transcoder; i++)
            if (strcmp(end, names[i].module) == 0) snprintf(s->hook, sizeof s->hook, "blocks.%ld.%s", layer, names[i].hook);
        break;
    }
    free(path);
}

int sparsify_read(struct sae_host *s, const struct sae_files *files, bool arrays, struct error *err) {
    struct coder c;
    struct tensors *st = NULL;
    int status = -1;
    if (read_config(s, &c, files->config, err)) return -1;
    read_hook(s, files->folder);
    if (tensors_open(&st, files->weights, err)) return -1;
    if (tensor_load(arrays ? &s->E : NULL, st, "encoder.weight", s->M, s->d, false, err) ||
        tensor_load(arrays ? &s->b_e : NULL, st, "encoder.bias", s->M, 0, false, err) ||
        tensor_load(arrays ? &s->D : NULL, st, "W_dec", s->M, s->d, false, err) ||
        tensor_load(arrays ? &s->b_d : NULL, st, "b_dec", s->d, 0, false, err) ||
        (c.skip && tensor_load(arrays ? &s->skip : NULL, st, "W_skip", s->d, s->d, false, err)))
        goto done;
    if (!c.skip && tensors_find(st, "W_skip")) {
        fail(err, "%s: tensor W_skip: not expected, as %s does not set \"skip_connection\"", files->weights, files->config);
        goto done;
    }
    if (arrays && !s->transcoder) fold_pre_bias(s, 1);
    status = 0;
done:
    tensors_close(st);
    return status;
}
