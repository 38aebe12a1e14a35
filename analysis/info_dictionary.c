/* info_dictionary.c - what `stagediff info` says of a sparse dictionary: the readers of sae/ look at it as they would to load it. */
#include "host/file.h"
#include "models/info.h"
#include "sae/sae.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void text_dim(struct info *info, const char *name, const char *value) {
    if (*value) json_object_set_new(info->dims, name, json_string(value));
}

static void note(struct info *info, const char *sentence) { json_array_append_new(info->notes, json_string(sentence)); }

static void note_units(struct info *info, const struct sae_host *s) {
    static const char *const units[] = {
        [SAE_FORMAT_LLAMA_SCOPE] = "codes are in units of the raw activations for unit decoder rows",
        [SAE_FORMAT_OPENMOSS_EARLY] = "codes are the library's divided by its output scale, decoder rows as stored",
        [SAE_FORMAT_OPENMOSS] = "codes are the library's divided by its output scale, decoder rows as stored",
        [SAE_FORMAT_SAELENS] = "codes are those of SAE.load_from_disk",
        [SAE_FORMAT_SPARSIFY] = "codes are those of SparseCoder.load_from_disk",
        [SAE_FORMAT_GEMMA_SCOPE] = "codes are those of SAELens' loader",
        [SAE_FORMAT_DICTIONARY_LEARNING] = "codes are those of the library's load_dictionary",
        [SAE_FORMAT_MMDIFF] = "codes are h where h is above its threshold, without relu, or the k largest",
        [SAE_FORMAT_QWEN_SCOPE] = "codes are the k largest pre-activations",
    };
    note(info, units[s->format]);
    if (s->k_assumed) note(info, "the files do not say k; 50 is taken, --k gives another");
    if (sae_fixed_k(s->activation) && s->K == 0) note(info, "the files do not say k; give it with --k");
    if (s->transcoder) note(info, "a transcoder: encode and convert take it, training, diffing and evaluation do not");
    if (s->norm != SAE_NORM_NONE) note(info, "normalises every row: encode and convert take it, training, diffing and evaluation do not");
}

static void note_layouts(struct info *info, const struct sae_host *s) {
    char list[128] = "";
    struct error unused;
    for (int to = SAE_LAYOUT_SAELENS; to <= SAE_LAYOUT_MMDIFF; to++)
        if (sae_can_save(s, (enum sae_layout)to, &unused) == 0)
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", *list ? ", " : "convert writes it as ",
                     sae_layout_name((enum sae_layout)to));
    note(info, *list ? list : "no layout that convert writes can hold it");
}

int info_dictionary(struct info *info, struct error *err) {
    struct sae_host s;
    struct tensors *st = NULL;
    struct error why, unused;
    char text[96];
    const bool whole = sae_peek(&s, info->path, &why) == 0;
    if (!whole && !s.configured && s.d == 0) { /* nothing tells a dictionary */
        if (!file_exists(info->path)) return 0;
        *err = why;
        return -1;
    }
    char *weights = sae_weights(info->path);
    info->kind = "sae";
    info->format = sae_format_name(s.format);
    if (s.d > 0) info_dim(info, "d_in", s.d);
    if (s.M > 0) info_dim(info, "d_sae", s.M);
    if (s.K > 0) info_dim(info, "k", s.K);
    if (s.layer >= 0) info_dim(info, "layer", s.layer);
    if (whole || s.K > 0) text_dim(info, "activation", sae_activation_name(s.activation));
    text_dim(info, s.transcoder ? "hook_in" : "hook", s.hook);
    text_dim(info, "hook_out", s.hook_out);
    if (whole) {
        note_units(info, &s);
        note_layouts(info, &s);
        snprintf(text, sizeof text, "weights in memory: %.1f MB as f32", (double)sae_device_bytes(s.d, s.M, false) / 1e6);
        note(info, text);
    } else {
        info_problem(info, why.text);
    }
    if (weights && tensors_open(&st, weights, &unused) == 0) info_count(info, st);
    tensors_close(st);
    free(weights);
    return 1;
}
