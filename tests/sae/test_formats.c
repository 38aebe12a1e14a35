/* test_formats.c - dictionaries of every readable format give the codes of their own definition (tools/golden/make_train.py), hostile
 * and foreign folders are refused with a sentence that names them, and what is written is read back bit for bit. */
#include "tests/sae/sae_test.h"
#include <sys/stat.h>
#include <unistd.h>

static struct device *dev;

static void test_definitions(void **state) {
    (void)state;
    check_golden(dev, "llama_scope", "", SAE_FORMAT_LLAMA_SCOPE, SAE_JUMPRELU, 0, 5);
    check_golden(dev, "llama_scope_topk", "", SAE_FORMAT_LLAMA_SCOPE, SAE_TOPK, 6, 5);
    check_golden(dev, "llama_scope_unscaled", "", SAE_FORMAT_LLAMA_SCOPE, SAE_JUMPRELU, 0, 5);
    check_golden(dev, "saelens_topk", "", SAE_FORMAT_SAELENS, SAE_TOPK, 5, 7);
    check_golden(dev, "saelens_topk_rescaled", "", SAE_FORMAT_SAELENS, SAE_TOPK, 5, 7);
    check_golden(dev, "saelens_jumprelu", "", SAE_FORMAT_SAELENS, SAE_JUMPRELU, 0, 7);
    check_golden(dev, "saelens_before_6", "", SAE_FORMAT_SAELENS, SAE_TOPK, 4, 7);
    check_golden(dev, "saelens_standard", "", SAE_FORMAT_SAELENS, SAE_RELU, 0, 7);
}

/* Llama Scope with decoder norms: unit decoder rows after loading. Files are taken by name as well as folders. */
static void test_fold_and_paths(void **state) {
    (void)state;
    static const char *const paths[] = {GOLDEN "llama_scope", GOLDEN "llama_scope/", GOLDEN "llama_scope/hyperparams.json",
                                        GOLDEN "llama_scope/checkpoints/final.safetensors"};
    for (size_t p = 0; p < 4; p++) {
        struct sae_host s;
        struct error err = {{0}};
        if (sae_load(&s, paths[p], &err)) fail_msg("%s", err.text);
        for (int f = 0; f < s.M; f++) {
            double sum = 0;
            for (int i = 0; i < s.d; i++) sum += (double)s.D[f * s.d + i] * (double)s.D[f * s.d + i];
            assert_true(fabs(sum - 1) < 1e-6);
            assert_true(s.threshold[f] == 0.75f);
        }
        sae_host_free(&s);
    }
}

static void test_written_is_read(void **state) {
    (void)state;
    static const char *const names[] = {"saelens_topk", "saelens_jumprelu", "saelens_standard", "llama_scope"};
    for (size_t i = 0; i < 4; i++) {
        char from[128], *folder = folder_make();
        struct sae_host a, b;
        struct error err = {{0}};
        snprintf(from, sizeof from, GOLDEN "%s", names[i]);
        assert_int_equal(sae_load(&a, from, &err), 0);
        for (int twice = 0; twice < 2; twice++)
            if (sae_save_saelens(&a, folder, &err)) fail_msg("%s", err.text);
        if (sae_load(&b, folder, &err)) fail_msg("%s", err.text);
        size_t n = (size_t)a.M * (size_t)a.d;
        assert_int_equal(a.activation, b.activation);
        assert_int_equal(a.K, b.K);
        assert_string_equal(a.hook, b.hook);
        assert_memory_equal(a.E, b.E, n * sizeof *a.E);
        assert_memory_equal(a.D, b.D, n * sizeof *a.D);
        assert_memory_equal(a.b_e, b.b_e, (size_t)a.M * sizeof *a.b_e);
        assert_memory_equal(a.b_d, b.b_d, (size_t)a.d * sizeof *a.b_d);
        if (a.threshold) assert_memory_equal(a.threshold, b.threshold, (size_t)a.M * sizeof *a.threshold);
        sae_host_free(&a), sae_host_free(&b);
        folder_remove(folder);
    }
}

/* Loading must fail with a sentence that holds every one of the words. */
static void refused(const char *path, const char *const *words) {
    struct sae_host s;
    struct error err = {{0}};
    if (sae_load(&s, path, &err) == 0) fail_msg("%s was taken", path);
    print_message("    %s\n", err.text);
    for (; *words; words++)
        if (!strstr(err.text, *words)) fail_msg("\"%s\" does not say \"%s\"", err.text, *words);
}
#define REFUSED(path, ...) refused(path, (const char *const[]){__VA_ARGS__, NULL})

static void copy_file(const char *from, const char *folder, const char *name, size_t limit) {
    char *data = NULL, *to = path_join(folder, name);
    size_t n = 0;
    struct error err = {{0}};
    assert_int_equal(file_read(from, 1 << 28, &data, &n, &err), 0);
    FILE *f = fopen(to, "wb");
    assert_non_null(f);
    fwrite(data, 1, n < limit ? n : limit, f);
    fclose(f);
    free(data), free(to);
}

static void test_foreign_formats(void **state) {
    (void)state;
    static const struct {
        const char *files[2], *word;
    } cases[] = {{{"cfg.json", "sae.safetensors"}, "sparsify"},
                 {{"config.json", "sae_weights.safetensors"}, "OpenMOSS"},
                 {{"config.json", NULL}, "model folder"},
                 {{"notes.txt", NULL}, "no dictionary found"},
                 {{"cfg.json", NULL}, "no weights"},
                 {{"hyperparams.json", NULL}, "checkpoints/final.safetensors"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = folder_make();
        for (int f = 0; f < 2 && cases[i].files[f]; f++) write_text(folder, cases[i].files[f], "{}");
        REFUSED(folder, folder, cases[i].word);
        folder_remove(folder);
    }
    REFUSED("/nowhere/at/all", "/nowhere/at/all");
    REFUSED("tests/sae/golden/absent.pt", "absent.pt");
}

static void hostile_saelens(const char *cfg, const char *w1, const char *w2) {
    char *folder = folder_make();
    write_text(folder, "cfg.json", cfg);
    copy_file(GOLDEN "saelens_topk/sae_weights.safetensors", folder, "sae_weights.safetensors", SIZE_MAX);
    REFUSED(folder, folder, w1, w2);
    folder_remove(folder);
}

static void test_hostile(void **state) {
    (void)state;
    hostile_saelens("{\"d_in\": 16, \"d_sae\": 41, \"architecture\": \"topk\", \"k\": 5}", "W_enc", "41");
    hostile_saelens("{\"d_in\": 16, \"d_sae\": 1000000000, \"architecture\": \"topk\", \"k\": 5}", "W_enc", "1000000000");
    hostile_saelens("{\"d_in\": -16, \"d_sae\": 40}", "d_in", "-16");
    hostile_saelens("{\"d_in\": 16.5, \"d_sae\": 40}", "d_in", "16.5");
    hostile_saelens("{\"d_in\": \"16\", \"d_sae\": 40}", "d_in", "number");
    hostile_saelens("{\"d_sae\": 40}", "d_in", "missing");
    hostile_saelens("{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"topk\", \"k\": 41}", "\"k\"", "41");
    hostile_saelens("{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"gated\"}", "b_gate", "missing");
    hostile_saelens("{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"transcoder\", \"d_out\": 8}", "d_out", "transcoder");
    hostile_saelens(
        "{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"topk\", \"k\": 5, \"normalize_activations\": \"covariance_whitening\"}",
        "normalize_activations", "covariance_whitening");
    hostile_saelens("{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"transcoder\", \"normalize_activations\": \"layer_norm\"}",
                    "normalize_activations", "transcoder");
    static const char *const others[] = {"abstopk", "matching_pursuit", "temporal", "jumprelu_skip_transcoder", "batchtopk"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char cfg[128];
        snprintf(cfg, sizeof cfg, "{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"%s\"}", others[i]);
        hostile_saelens(cfg, "architecture", others[i]);
    }
    hostile_saelens("{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"transcoder\", \"apply_b_dec_to_input\": true}",
                    "apply_b_dec_to_input", "transcoder");
    hostile_saelens("{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"skip_transcoder\"}", "W_skip", "missing");
    hostile_saelens("{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"jumprelu\"}", "threshold", "sae_weights");
    hostile_saelens("{\"d_in\": 16, \"d_in\": 16}", "cfg.json", "duplicate");
    hostile_saelens("[1]", "cfg.json", "object");
    hostile_saelens("{\"d_in\": 16,", "cfg.json", "JSON");
    for (size_t cut = 0; cut < 5616; cut += 401) { /* truncated weights */
        char *folder = folder_make();
        write_text(folder, "cfg.json", "{\"d_in\": 16, \"d_sae\": 40, \"architecture\": \"topk\", \"k\": 5}");
        copy_file(GOLDEN "saelens_topk/sae_weights.safetensors", folder, "sae_weights.safetensors", cut);
        struct sae_host s;
        struct error err = {{0}};
        assert_int_equal(sae_load(&s, folder, &err), -1);
        assert_non_null(strstr(err.text, "sae_weights.safetensors"));
        folder_remove(folder);
    }
}

static void test_hostile_llama_scope(void **state) {
    (void)state;
    static const struct {
        const char *text, *word;
    } cases[] = {
        {"{\"d_model\": 16, \"d_sae\": 40}", "act_fn"},
        {"{\"d_model\": 16, \"d_sae\": 40, \"act_fn\": \"jumprelu\"}", "jump_relu_threshold"},
        {"{\"d_model\": 16, \"d_sae\": 40, \"act_fn\": \"gelu\"}", "gelu"},
        {"{\"d_model\": 16, \"d_sae\": 40, \"act_fn\": \"relu\", \"norm_activation\": \"token-wise\"}", "token-wise"},
        {"{\"d_model\": 16, \"d_sae\": 40, \"act_fn\": \"relu\", \"norm_activation\": \"dataset-wise\"}",
         "dataset_average_activation_norm"},
        {"{\"d_model\": 16, \"d_sae\": 40, \"act_fn\": \"relu\", \"norm_activation\": \"dataset-wise\", "
         "\"dataset_average_activation_norm\": {\"in\": 0, \"out\": 1}}",
         "positive"},
        {"{\"d_model\": 16, \"d_sae\": 40, \"act_fn\": \"relu\", \"use_glu_encoder\": true}", "GLU"},
        {"{\"d_model\": 15, \"d_sae\": 40, \"act_fn\": \"relu\"}", "encoder.weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = folder_make(), *inner = path_join(folder, "checkpoints");
        mkdir(inner, 0777);
        write_text(folder, "hyperparams.json", cases[i].text);
        copy_file(GOLDEN "llama_scope/checkpoints/final.safetensors", inner, "final.safetensors", SIZE_MAX);
        REFUSED(folder, folder, cases[i].word);
        free(inner);
        folder_remove(folder);
    }
}

static void test_not_finite(void **state) {
    (void)state;
    struct sae_host s;
    struct error err = {{0}};
    char *folder = folder_make();
    assert_int_equal(sae_random(&s, 8, 16, 2, 1, &err), 0);
    s.E[37] = NAN;
    assert_int_equal(sae_save_saelens(&s, folder, &err), 0);
    REFUSED(folder, folder, "W_enc", "nan");
    sae_host_free(&s);
    folder_remove(folder);
}

static void test_random_start(void **state) {
    (void)state;
    struct sae_host a, b, c;
    struct error err = {{0}};
    assert_int_equal(sae_random(&a, 24, 50, 3, 7, &err), 0);
    assert_int_equal(sae_random(&b, 24, 50, 3, 7, &err), 0);
    assert_int_equal(sae_random(&c, 24, 50, 3, 8, &err), 0);
    assert_memory_equal(a.D, b.D, 24 * 50 * sizeof *a.D);
    assert_memory_equal(a.D, a.E, 24 * 50 * sizeof *a.D);
    assert_memory_not_equal(a.D, c.D, 24 * 50 * sizeof *a.D);
    double mean = 0;
    for (int f = 0; f < 50; f++) {
        double sum = 0;
        for (int i = 0; i < 24; i++) sum += (double)a.D[f * 24 + i] * (double)a.D[f * 24 + i], mean += (double)a.D[f * 24 + i];
        assert_true(fabs(sum - 1) < 1e-6);
    }
    assert_true(fabs(mean / (24 * 50)) < 5 / sqrt(24.0) / sqrt(24.0 * 50));
    assert_int_equal(sae_random(&c, 24, 50, 51, 8, &err), -1);
    sae_host_free(&a), sae_host_free(&b), sae_host_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_definitions),     cmocka_unit_test(test_fold_and_paths),
                                       cmocka_unit_test(test_written_is_read), cmocka_unit_test(test_foreign_formats),
                                       cmocka_unit_test(test_hostile),         cmocka_unit_test(test_hostile_llama_scope),
                                       cmocka_unit_test(test_not_finite),      cmocka_unit_test(test_random_start)};
    log_quiet = 1;
    dev = test_device(0);
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    device_close(dev);
    return failures;
}
