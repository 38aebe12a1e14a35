/* fuzz_dictionary.c - JSON as the configuration of a sparse dictionary, beside weights that hold every format's names. The last byte
 * chooses the format and is not part of it. */
#include "fuzz.h"
#include "host/tensors.h"
#include "sae/sae.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { D = 4, M = 6, FORMATS = 5 };
static const struct {
    const char *folder, *config, *weights;
} formats[FORMATS] = {{"saelens", "cfg.json", "sae_weights.safetensors"},
                      {"sparsify", "cfg.json", "sae.safetensors"},
                      {"scope", "hyperparams.json", "final.safetensors"},
                      {"openmoss", "config.json", "sae_weights.safetensors"},
                      {"learning", "config.json", "ae.pt"}}; /* told apart by content */

static void write_weights(const char *path) {
    static const char *const vectors[] = {"b_enc",  "encoder.bias", "b_E",   "threshold", "log_jumprelu_threshold",
                                          "b_gate", "b_mag",        "r_mag", "gate_bias", "mag_bias"};
    static const char *const outputs[] = {"b_dec", "decoder.bias", "b_D", "bias", "decoder_bias"};
    static const char *const by_feature[] = {"encoder.weight", "W_dec", "W_D"}, *const by_row[] = {"W_enc", "decoder.weight", "W_E"};
    static const float one[D * M] = {1, 0.5f, -1, 2};
    const int64_t m = M, d = D, md[2] = {M, D}, dm[2] = {D, M};
    struct safetensors_writer *w;
    struct error err;
    if (safetensors_writer_open(&w, path, &err)) abort();
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) safetensors_writer_add(w, vectors[i], DTYPE_F32, 1, &m, one);
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) safetensors_writer_add(w, outputs[i], DTYPE_F32, 1, &d, one);
    for (size_t i = 0; i < 3; i++) safetensors_writer_add(w, by_feature[i], DTYPE_F32, 2, md, one);
    for (size_t i = 0; i < 3; i++) safetensors_writer_add(w, by_row[i], DTYPE_F32, 2, dm, one);
    safetensors_writer_add(w, "dataset_average_activation_norm.blocks.3.hook_resid_post", DTYPE_F32, 0, NULL, one);
    safetensors_writer_add(w, "activation_function.log_jumprelu_threshold", DTYPE_F32, 1, &m, one);
    safetensors_writer_add(w, "k", DTYPE_F32, 0, NULL, one);
    if (safetensors_writer_commit(w, &err)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool made[FORMATS];
    const int f = size ? data[size - 1] % FORMATS : 0;
    char path[256], name[64];
    struct sae_host s = {0};
    struct error err = {""};
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), formats[f].folder);
    if (!made[f]) {
        char inner[300];
        snprintf(inner, sizeof inner, "%s/checkpoints", path);
        if (mkdir(path, 0700) || mkdir(inner, 0700)) abort();
        snprintf(inner, sizeof inner, "%s/%s%s", path, f == 2 ? "checkpoints/" : "", formats[f].weights);
        write_weights(inner);
        made[f] = true;
    }
    snprintf(name, sizeof name, "%s/%s", formats[f].folder, formats[f].config);
    fuzz_file(name, data, size ? size - 1 : 0);
    const int peeked = fuzz_opened(sae_peek(&s, path, &err), &err);
    sae_host_free(&s);
    const int loaded = fuzz_opened(sae_load(&s, path, &err), &err);
    if (loaded && (!peeked || s.d < 1 || s.M < 1 || s.K > s.M || !s.E || !s.D)) abort();
    sae_host_free(&s);
    return 0;
}
