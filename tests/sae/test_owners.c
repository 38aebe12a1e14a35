/* test_owners.c - dictionaries written by the libraries that own the formats give those libraries' codes and reconstructions
 * (tools/golden/make_dictionaries.py). */
#include "host/torch_write.h"
#include "tests/sae/sae_test.h"

static struct device *dev;

static void test_sparsify(void **state) {
    (void)state;
    check_golden(dev, "sparsify_topk", "layers.3", SAE_FORMAT_SPARSIFY, SAE_TOPK, 5, 3);
    check_golden(dev, "sparsify_bf16", "layers.3/sae.safetensors", SAE_FORMAT_SPARSIFY, SAE_TOPK, 3, 3);
    check_golden(dev, "sparsify_groupmax", "layers.3.mlp", SAE_FORMAT_SPARSIFY, SAE_GROUPMAX, 8, 3);
    check_golden(dev, "sparsify_skip", "layers.3.mlp/", SAE_FORMAT_SPARSIFY, SAE_TOPK, 5, 3);
    check_golden(dev, "sparsify_signed", "layer_3", SAE_FORMAT_SPARSIFY, SAE_SIGNED, 5, 3);
}

static void test_llama_scope(void **state) {
    (void)state;
    check_golden(dev, "llama_scope_transcoder", "", SAE_FORMAT_LLAMA_SCOPE, SAE_JUMPRELU, 0, 9);
    check_golden(dev, "llama_scope_pt", "", SAE_FORMAT_LLAMA_SCOPE, SAE_JUMPRELU, 0, 9);
}

static void test_openmoss(void **state) {
    (void)state;
    check_golden(dev, "openmoss_jumprelu", "", SAE_FORMAT_OPENMOSS, SAE_JUMPRELU, 0, 2);
    check_golden(dev, "openmoss_topk", "", SAE_FORMAT_OPENMOSS, SAE_TOPK, 5, 2);
    check_golden(dev, "openmoss_relu", "", SAE_FORMAT_OPENMOSS, SAE_RELU, 0, 2);
    check_golden(dev, "openmoss_transcoder", "", SAE_FORMAT_OPENMOSS, SAE_JUMPRELU, 0, 2);
    check_golden(dev, "openmoss_pt", "", SAE_FORMAT_OPENMOSS, SAE_JUMPRELU, 0, 2);
    check_golden(dev, "openmoss_early", "", SAE_FORMAT_OPENMOSS_EARLY, SAE_JUMPRELU, 0, 2);
}

static void test_saelens(void **state) {
    (void)state;
    check_golden(dev, "saelens_gated", "", SAE_FORMAT_SAELENS, SAE_JUMPRELU, 0, 7);
    check_golden(dev, "saelens_transcoder", "", SAE_FORMAT_SAELENS, SAE_RELU, 0, 7);
    check_golden(dev, "saelens_skip_transcoder", "", SAE_FORMAT_SAELENS, SAE_RELU, 0, 7);
    check_golden(dev, "saelens_jumprelu_transcoder", "", SAE_FORMAT_SAELENS, SAE_JUMPRELU, 0, 7);
    check_golden(dev, "saelens_batchtopk", "", SAE_FORMAT_SAELENS, SAE_JUMPRELU, 0, 7);
    check_golden(dev, "saelens_matryoshka", "", SAE_FORMAT_SAELENS, SAE_JUMPRELU, 0, 7);
    check_golden(dev, "saelens_layer_norm", "", SAE_FORMAT_SAELENS, SAE_TOPK, 5, 7);
    check_golden(dev, "saelens_constant_norm", "", SAE_FORMAT_SAELENS, SAE_RELU, 0, 7);
}

static void test_dictionary_learning(void **state) {
    (void)state;
    check_golden(dev, "dl_autoencoder", "", SAE_FORMAT_DICTIONARY_LEARNING, SAE_RELU, 0, 4);
    check_golden(dev, "dl_autoencoder_new", "ae.pt", SAE_FORMAT_DICTIONARY_LEARNING, SAE_RELU, 0, 4);
    check_golden(dev, "dl_gated", "", SAE_FORMAT_DICTIONARY_LEARNING, SAE_JUMPRELU, 0, 4);
    check_golden(dev, "dl_jumprelu", "", SAE_FORMAT_DICTIONARY_LEARNING, SAE_JUMPRELU, 0, 4);
    check_golden(dev, "dl_topk", "config.json", SAE_FORMAT_DICTIONARY_LEARNING, SAE_TOPK, 5, 4);
    check_golden(dev, "dl_batch_topk", "", SAE_FORMAT_DICTIONARY_LEARNING, SAE_JUMPRELU, 0, 4);
    check_golden(dev, "dl_matryoshka", "", SAE_FORMAT_DICTIONARY_LEARNING, SAE_JUMPRELU, 0, 4);
}

static void test_files(void **state) {
    (void)state;
    check_golden(dev, "gemma_scope", "layer_6/width_16k/average_l0_9", SAE_FORMAT_GEMMA_SCOPE, SAE_JUMPRELU, 0, 6);
    check_golden(dev, "gemma_scope_embedding", "embedding/width_4k/average_l0_9/params.npz", SAE_FORMAT_GEMMA_SCOPE, SAE_JUMPRELU, 0, -1);
    check_golden(dev, "mmdiff_jumprelu", "text-only_layer_13.pt", SAE_FORMAT_MMDIFF, SAE_JUMPRELU, 0, 13);
    check_golden(dev, "mmdiff_topk", "text-only_layer_3.pt", SAE_FORMAT_MMDIFF, SAE_TOPK, 50, 3);
    check_golden(dev, "qwen_scope", "SAE-W64-L0_5/layer7.sae.pt", SAE_FORMAT_QWEN_SCOPE, SAE_TOPK, 5, 7);
}

/* Weights of a golden dictionary under another configuration: loading must fail with a sentence that holds both words. */
static void refused(const char *weights, const char *name, const char *config, const char *text, const char *w1, const char *w2) {
    char *folder = folder_make(), *to = path_join(folder, name), *data = NULL;
    size_t size;
    struct sae_host s;
    struct error err = {{0}};
    assert_int_equal(file_read(weights, 1 << 28, &data, &size, &err), 0);
    FILE *f = fopen(to, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    fclose(f);
    write_text(folder, config, text);
    if (sae_load(&s, folder, &err) == 0) fail_msg("%s was taken", text);
    print_message("    %s\n", err.text);
    if (!strstr(err.text, w1) || !strstr(err.text, w2)) fail_msg("\"%s\" does not say \"%s\" and \"%s\"", err.text, w1, w2);
    free(data), free(to);
    folder_remove(folder);
}

static void test_refused(void **state) {
    (void)state;
    static const char sparsify[] = GOLDEN "sparsify_topk/layers.3/sae.safetensors";
    static const struct {
        const char *text, *w1, *w2;
    } coders[] = {{"{\"k\": 5}", "d_in", "missing"},
                  {"{\"d_in\": 16, \"k\": 65, \"num_latents\": 64}", "\"k\"", "65"},
                  {"{\"d_in\": 16, \"k\": 5}", "encoder.weight", "512"}, /* expansion_factor 32 */
                  {"{\"d_in\": 16, \"num_latents\": 1e30}", "num_latents", "1e+30"},
                  {"{\"d_in\": 16, \"num_latents\": 64, \"k\": 5, \"activation\": \"gelu\"}", "activation", "gelu"},
                  {"{\"d_in\": 16, \"num_latents\": 64, \"k\": 5, \"activation\": \"groupmax\"}", "groupmax", "64"},
                  {"{\"d_in\": 16, \"num_latents\": 64, \"k\": 5, \"skip_connection\": true}", "W_skip", "missing"}};
    for (size_t i = 0; i < sizeof coders / sizeof *coders; i++)
        refused(sparsify, "sae.safetensors", "cfg.json", coders[i].text, coders[i].w1, coders[i].w2);
    refused(GOLDEN "sparsify_skip/layers.3.mlp/sae.safetensors", "sae.safetensors", "cfg.json",
            "{\"d_in\": 16, \"num_latents\": 64, \"k\": 5}", "W_skip", "skip_connection");

    static const char moss[] = GOLDEN "openmoss_jumprelu/sae_weights.safetensors";
#define HOOKS "\"d_model\": 16, \"hook_point_in\": \"a\", \"hook_point_out\": \"a\""
    static const struct {
        const char *text, *w1, *w2;
    } mosses[] = {{"{\"sae_type\": \"crosscoder\", " HOOKS "}", "sae_type", "crosscoder"},
                  {"{\"sae_type\": \"sae\", \"d_model\": 16}", "hook_point_in", "missing"},
                  {"{" HOOKS ", \"act_fn\": \"batchtopk\"}", "act_fn", "batchtopk"},
                  {"{" HOOKS ", \"norm_activation\": \"token-wise\"}", "norm_activation", "token-wise"},
                  {"{" HOOKS "}", "dataset_average_activation_norm.a", "missing"},
                  {"{" HOOKS ", \"use_glu_encoder\": true}", "use_glu_encoder", "GLU"},
                  {"{" HOOKS ", \"norm_activation\": \"inference\", \"act_fn\": \"topk\", \"top_k\": 65}", "top_k", "65"},
                  {"{\"d_model\": 15, \"hook_point_in\": \"a\", \"norm_activation\": \"inference\"}", "W_E", "16"}};
    for (size_t i = 0; i < sizeof mosses / sizeof *mosses; i++)
        refused(moss, "sae_weights.safetensors", "config.json", mosses[i].text, mosses[i].w1, mosses[i].w2);
}

/* A torch file of four tensors of a dictionary (d 4, M 6), one of them changed, must be refused with a sentence that holds both words. */
static void refused_torch(const char *config, struct torch_tensor changed, const char *w1, const char *w2) {
    float values[64];
    char *folder = folder_make(), *path = path_join(folder, config ? "ae.pt" : "layer_1.pt");
    struct torch_tensor t[6] = {{"W_enc", DTYPE_F32, 2, {4, 6}, values},
                                {"b_enc", DTYPE_F32, 1, {6}, values},
                                {"W_dec", DTYPE_F32, 2, {6, 4}, values},
                                {"b_dec", DTYPE_F32, 1, {4}, values},
                                {"threshold", DTYPE_F32, 1, {6}, values}};
    int n = 5, at = 0;
    struct sae_host s;
    struct error err = {{0}};
    for (int i = 0; i < 64; i++) values[i] = 0.01f * (float)i;
    while (at < n && strcmp(t[at].name, changed.name) != 0) at++;
    if (!changed.data) changed.data = values;
    t[at] = changed;
    if (at == n) n++;
    if (changed.rank < 0) t[at] = t[--n]; /* left out */
    if (torch_write(path, t, n, &err)) fail_msg("%s", err.text);
    if (config) write_text(folder, "config.json", config);
    if (sae_load(&s, folder, &err) == 0) fail_msg("%s with %s was taken", changed.name, config ? config : "no configuration");
    print_message("    %s\n", err.text);
    if (!strstr(err.text, w1) || !strstr(err.text, w2)) fail_msg("\"%s\" does not say \"%s\" and \"%s\"", err.text, w1, w2);
    free(path);
    folder_remove(folder);
}

static void test_refused_files(void **state) {
    (void)state;
    static const float not_a_number[24] = {[13] = NAN}, infinite[6] = {[2] = INFINITY};
    static const int64_t whole[24] = {0};
    refused_torch(NULL, (struct torch_tensor){"b_enc", DTYPE_F32, 1, {5}, NULL}, "b_enc", "(5)");
    refused_torch(NULL, (struct torch_tensor){"W_dec", DTYPE_F32, 2, {4, 6}, NULL}, "W_dec", "(6, 4)");
    refused_torch(NULL, (struct torch_tensor){"W_dec", DTYPE_F32, 2, {6, 4}, not_a_number}, "W_dec", "nan");
    refused_torch(NULL, (struct torch_tensor){"threshold", DTYPE_F32, 1, {6}, infinite}, "threshold", "inf");
    refused_torch(NULL, (struct torch_tensor){"W_enc", DTYPE_I64, 2, {4, 6}, whole}, "W_enc", "I64");
    refused_torch(NULL, (struct torch_tensor){"b_dec", DTYPE_F32, -1, {0}, NULL}, "b_dec", "missing");
    refused_torch(NULL, (struct torch_tensor){"W_enc", DTYPE_F32, -1, {0}, NULL}, "layer_1.pt", "configuration");
    refused_torch("{\"trainer\": {\"dict_class\": \"IdentityDict\"}}", (struct torch_tensor){"b_enc", DTYPE_F32, 1, {6}, NULL},
                  "dict_class", "IdentityDict");
    refused_torch("{\"trainer\": 3}", (struct torch_tensor){"b_enc", DTYPE_F32, 1, {6}, NULL}, "trainer", "missing");
    refused_torch("{\"trainer\": {\"dict_class\": \"AutoEncoder\"}}", (struct torch_tensor){"b_enc", DTYPE_F32, 1, {6}, NULL},
                  "encoder.weight", "missing");
    refused_torch("{\"trainer\": {\"dict_class\": \"MatryoshkaBatchTopKSAE\"}}", (struct torch_tensor){"b_enc", DTYPE_F32, 1, {6}, NULL},
                  "threshold", "one number");

    char *data = NULL; /* truncated anywhere */
    size_t size;
    struct error err = {{0}};
    assert_int_equal(file_read(GOLDEN "dl_topk/ae.pt", 1 << 28, &data, &size, &err), 0);
    for (size_t cut = 0; cut < size; cut += 397) {
        char *folder = folder_make(), *path = path_join(folder, "ae.pt");
        struct sae_host s;
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(data, 1, cut, f), cut);
        fclose(f);
        write_text(folder, "config.json", "{\"trainer\": {\"dict_class\": \"AutoEncoderTopK\", \"k\": 5}}");
        assert_int_equal(sae_load(&s, folder, &err), -1);
        assert_non_null(strstr(err.text, "ae.pt"));
        free(path);
        folder_remove(folder);
    }
    free(data);
    refused(GOLDEN "dl_topk/ae.pt", "ae.pt", "config.json", "{\"trainer\": {\"dict_class\": \"AutoEncoderTopK\", \"k\": 6}}", "tensor k",
            "6");
}

static int setup(void **state) {
    (void)state;
    dev = test_device(2);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    device_close(dev);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sparsify), cmocka_unit_test(test_llama_scope),         cmocka_unit_test(test_openmoss),
        cmocka_unit_test(test_saelens),  cmocka_unit_test(test_dictionary_learning), cmocka_unit_test(test_files),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_refused_files)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
