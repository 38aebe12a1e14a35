/* test_train_config.c - CONFIG.json: defaults, paths, the sentences of its errors; which samples train and which validate. */
#include "host/samples.h"
#include "tests/analysis/train_test.h"
#include <sys/stat.h>
#include <unistd.h>

static char *folder;

static char *write_config(const char *text) {
    char *path = path_join(folder, "c.json");
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return path;
}

static void test_defaults(void **state) {
    (void)state;
    struct run_config c;
    struct error err = {{0}};
    char *path = write_config("{\"out\": \"run\", \"model\": \"/m\", \"saes\": \"../s\", \"data\": {\"train\": \"t.jsonl\"}}"),
         *out = path_join(folder, "run"), *real = realpath(folder, NULL);
    if (run_config_open(&c, path, &err)) fail_msg("%s", err.text);
    assert_true(strncmp(c.out, real, strlen(real)) == 0 && strcmp(c.out + strlen(real), "/run") == 0);
    assert_string_equal(c.model, "/m");
    char *up = path_folder(real), *sibling = path_join(up, "s");
    assert_string_equal(c.saes, sibling); /* "../" is taken off, not kept */
    free(up), free(sibling);
    assert_null(c.base);
    assert_null(c.validation_data);
    assert_int_equal(c.n_layers, 0);
    assert_int_equal(c.k, 50);
    assert_int_equal(c.batch, 4096);
    assert_int_equal(c.ring_rows, 65536);
    assert_true(c.lr == 2e-4 && c.passes == 1 && c.unit_norm_decoder && !c.remove_parallel && !c.bf16_products);
    assert_true(c.regimes[REGIME_FULL] && c.regimes[REGIME_IMAGE] && c.regimes[REGIME_TEXT] && c.regimes[REGIME_RANDOM]);
    assert_int_equal(c.diff_regime, REGIME_TEXT);
    assert_true(c.diff_eps == 0.01 && c.diff_percentile == 25);
    assert_true(json_real_value(json_object_get(json_object_get(c.resolved, "train"), "lr")) == 2e-4);
    assert_string_equal(json_string_value(json_object_get(c.resolved, "layers")), "all");
    run_config_free(&c);
    free(path), free(out), free(real);
}

static void test_values(void **state) {
    (void)state;
    struct run_config c;
    struct error err = {{0}};
    char *path = write_config("{\"out\": \"/r\", \"model\": \"/m\", \"seed\": 9007199254740991, \"layers\": [0, 3, 31], \"regimes\": "
                              "[\"random\"], \"data\": {\"train\": \"/t\", \"train_samples\": 5},\n"
                              "\"train\": {\"k\": 7, \"products\": \"bf16\", \"unit_norm_decoder\": false, \"passes\": 0.5}, \"diff\": "
                              "{\"regime\": \"full\", \"tokens\": \"text\"}}");
    if (run_config_open(&c, path, &err)) fail_msg("%s", err.text);
    assert_int_equal(c.n_layers, 3);
    assert_int_equal(c.layers[2], 31);
    assert_true(c.seed == 9007199254740991ul && c.k == 7 && c.bf16_products && !c.unit_norm_decoder && c.passes == 0.5 &&
                c.train_samples == 5);
    assert_true(c.diff_regime == REGIME_FULL && c.diff_text_tokens && c.regimes[REGIME_RANDOM] && !c.regimes[REGIME_TEXT]);
    run_config_free(&c);
    free(path);
}

static void refused(const char *text, const char *first, const char *second) {
    struct run_config c;
    struct error err = {{0}};
    char *path = write_config(text);
    if (run_config_open(&c, path, &err) == 0) fail_msg("taken: %s", text);
    print_message("    %s\n", err.text + strlen(folder));
    if (!strstr(err.text, path) || !strstr(err.text, first) || !strstr(err.text, second))
        fail_msg("\"%s\" does not name the file, \"%s\" and \"%s\"", err.text, first, second);
    free(path);
}

static void test_errors(void **state) {
    (void)state;
#define WITH(more) "{\"out\": \"r\", \"model\": \"m\", \"data\": {\"train\": \"t\"}" more "}"
    refused("{\"out\": \"r\", \"data\": {\"train\": \"t\"}}", "\"model\"", "missing");
    refused("{\"out\": \"r\", \"model\": \"m\"}", "\"data.train\"", "missing");
    refused(WITH(", \"modle\": 1"), "modle", "did you mean \"model\"");
    refused(WITH(", \"train\": {\"learning_rate\": 1}"), "train.learning_rate", "unknown");
    refused(WITH(", \"train\": {\"batchs\": 1}"), "train.batchs", "did you mean \"batch\"");
    refused(WITH(", \"train\": {\"batch\": 0}"), "train.batch", "from 2");
    refused(WITH(", \"train\": {\"batch\": 4.5}"), "train.batch", "whole number");
    refused(WITH(", \"train\": {\"lr\": \"fast\"}"), "train.lr", "\"fast\"");
    refused(WITH(", \"train\": {\"products\": \"fp8\"}"), "train.products", "\"bf16\"");
    refused(WITH(", \"train\": []"), "\"train\"", "object");
    refused(WITH(", \"layers\": [3, 1]"), "layers", "rising");
    refused(WITH(", \"layers\": \"some\""), "layers", "all");
    refused(WITH(", \"regimes\": [\"text\"]"), "text", "\"saes\" is missing");
    refused(WITH(", \"saes\": \"s\", \"regimes\": [\"texts\"]"), "regimes", "texts");
    refused(WITH(", \"saes\": \"s\", \"regimes\": [\"text\", \"text\"]"), "regimes", "once");
    refused(WITH(", \"seed\": -1"), "seed", "-1");
    refused("[]", "object", "");
    refused("{\"out\": \"r\", ", "line", "JSON");
    refused("{\"out\": \"r\", \"out\": \"q\"}", "line", "duplicate");
}

static void expect(const char *data, bool validation, long first, long count) {
    struct run_config c;
    struct samples s;
    struct error err = {{0}};
    char text[512];
    size_t f = 0, n = 0;
    snprintf(text, sizeof text, "{\"out\": \"r\", \"model\": \"m\", \"data\": {%s}}", data);
    char *path = write_config(text);
    if (run_config_open(&c, path, &err)) fail_msg("%s", err.text);
    int status = run_samples(&c, validation, &s, &f, &n, &err);
    if (count < 0) {
        assert_int_equal(status, -1);
        print_message("    %s\n", err.text + strlen(folder));
    } else {
        if (status) fail_msg("%s", err.text);
        assert_int_equal(f, first);
        assert_int_equal(n, count);
        samples_free(&s);
    }
    run_config_free(&c);
    free(path);
}

static void test_samples(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        char *path = path_join(folder, i ? "v.jsonl" : "t.jsonl");
        FILE *f = fopen(path, "w");
        for (int n = 0; n < (i ? 7 : 25); n++) fputs("{\"prompt\": \"x\"}\n", f);
        fclose(f);
        free(path);
    }
#define T "\"train\": \"t.jsonl\""
    expect(T, false, 0, 22), expect(T, true, 22, 3);
    expect(T ", \"train_samples\": 20", false, 0, 20), expect(T ", \"train_samples\": 20", true, 20, 5);
    expect(T ", \"validation_samples\": 4", false, 0, 21), expect(T ", \"validation_samples\": 4", true, 21, 4);
    expect(T ", \"train_samples\": 10, \"validation_samples\": 4", true, 10, 4);
    expect(T ", \"train_samples\": 24, \"validation_samples\": 4", true, 0, -1);
    expect(T ", \"train_samples\": 25", true, 0, -1);
    expect(T ", \"train_samples\": 26", false, 0, -1);
    expect(T ", \"validation\": \"v.jsonl\"", false, 0, 25), expect(T ", \"validation\": \"v.jsonl\"", true, 0, 7);
    expect(T ", \"validation\": \"v.jsonl\", \"validation_samples\": 8", true, 0, -1);
    expect(T ", \"validation\": \"t.jsonl\", \"train_samples\": 20", true, 20, 5);
    expect("\"train\": \"absent.jsonl\"", false, 0, -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_defaults), cmocka_unit_test(test_values), cmocka_unit_test(test_errors),
                                       cmocka_unit_test(test_samples)};
    const char *root = getenv("TMPDIR");
    char command[1024];
    folder = path_join(root ? root : "/tmp", "stagediff-config-XXXXXX");
    if (!mkdtemp(folder)) return 1;
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command)) return 1;
    free(folder);
    return failures;
}
