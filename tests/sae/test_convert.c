/* test_convert.c - a dictionary of any format, written in another layout and read back, gives the codes of its owner; what a layout cannot
 * say is refused and leaves nothing behind. The other direction, our files in the owners' libraries, is
 * `tools/golden/make_dictionaries.py check`. */
#include "tests/sae/sae_test.h"
#include <unistd.h>

static struct device *dev;

/* Which layouts each golden dictionary fits: s saelens, p sparsify, m mmdiff. */
static const struct golden_case {
    const char *name, *inner, *layouts;
} cases[] = {
    {"llama_scope", "", "sm"},
    {"llama_scope_topk", "", "spm"},
    {"saelens_topk", "", "spm"},
    {"saelens_topk_rescaled", "", "spm"},
    {"saelens_jumprelu", "", "sm"},
    {"saelens_standard", "", "sm"},
    {"saelens_before_6", "", "spm"},
    {"saelens_gated", "", "sm"},
    {"saelens_layer_norm", "", "s"},
    {"saelens_constant_norm", "", "s"},
    {"saelens_transcoder", "", "s"},
    {"saelens_skip_transcoder", "", "s"},
    {"saelens_jumprelu_transcoder", "", "s"},
    {"sparsify_topk", "layers.3", "spm"},
    {"sparsify_bf16", "layers.3", "spm"},
    {"sparsify_groupmax", "layers.3.mlp", "p"},
    {"sparsify_signed", "layer_3", ""},
    {"sparsify_skip", "layers.3.mlp", "p"},
    {"openmoss_jumprelu", "", "sm"},
    {"openmoss_topk", "", ""},
    {"openmoss_relu", "", "sm"},
    {"openmoss_transcoder", "", "s"},
    {"openmoss_early", "", "sm"},
    {"dl_autoencoder", "", "sm"},
    {"dl_gated", "", "sm"},
    {"dl_topk", "", "spm"},
    {"dl_batch_topk", "", "sm"},
    {"gemma_scope", "layer_6/width_16k/average_l0_9", "sm"},
    {"mmdiff_jumprelu", "", "m"}, /* negative thresholds */
    {"mmdiff_topk", "", "spm"},
    {"qwen_scope", "SAE-W64-L0_5", "spm"},
};

static void convert(const struct golden_case *c, enum sae_layout to) {
    char from[192];
    char *folder = folder_make(), *path = path_join(folder, "converted");
    struct sae_host s, back;
    struct error err = {{0}};
    snprintf(from, sizeof from, GOLDEN "%s/%s", c->name, c->inner);
    if (sae_load(&s, from, &err)) fail_msg("%s", err.text);
    if (strchr(c->layouts, "spm"[to])) {
        for (int twice = 0; twice < 2; twice++)
            if (sae_save(&s, to, path, &err)) fail_msg("%s", err.text);
        if (sae_load(&back, path, &err)) fail_msg("%s", err.text);
        assert_int_equal(back.activation, to == SAE_LAYOUT_MMDIFF && s.activation == SAE_RELU ? SAE_JUMPRELU : s.activation);
        assert_int_equal(back.K, s.K);
        assert_int_equal(back.transcoder, s.transcoder);
        if (to == SAE_LAYOUT_SAELENS) assert_string_equal(back.hook, s.hook);
        if (to == SAE_LAYOUT_SAELENS) assert_string_equal(back.hook_out, s.hook_out);
        check_codes(dev, c->name, &back);
        sae_host_free(&back);
    } else {
        if (sae_save(&s, to, path, &err) == 0) fail_msg("%s was written as %s", c->name, sae_layout_name(to));
        print_message("    %s: %s\n", c->name, err.text);
        assert_true(access(path, F_OK) != 0 && strstr(err.text, sae_layout_name(to)));
    }
    sae_host_free(&s);
    free(path);
    folder_remove(folder);
}

static void test_layouts(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int to = SAE_LAYOUT_SAELENS; to <= SAE_LAYOUT_MMDIFF; to++) convert(&cases[i], (enum sae_layout)to);
}

/* A layout in itself loses nothing: every array of the second writing is the first's. */
static void test_stable(void **state) {
    (void)state;
    static const char *const names[] = {GOLDEN "saelens_jumprelu", GOLDEN "sparsify_skip/layers.3.mlp", GOLDEN "mmdiff_topk"};
    for (int to = SAE_LAYOUT_SAELENS; to <= SAE_LAYOUT_MMDIFF; to++) {
        char *folder = folder_make(), *path = path_join(folder, "a");
        struct sae_host a, b;
        struct error err = {{0}};
        if (sae_load(&a, names[to], &err) || sae_save(&a, (enum sae_layout)to, path, &err) || sae_load(&b, path, &err))
            fail_msg("%s", err.text);
        const size_t n = (size_t)a.M * (size_t)a.d;
        assert_memory_equal(a.E, b.E, n * sizeof *a.E);
        assert_memory_equal(a.D, b.D, n * sizeof *a.D);
        assert_memory_equal(a.b_e, b.b_e, (size_t)a.M * sizeof *a.b_e);
        assert_memory_equal(a.b_d, b.b_d, (size_t)a.d * sizeof *a.b_d);
        if (a.skip) assert_memory_equal(a.skip, b.skip, (size_t)a.d * (size_t)a.d * sizeof *a.skip);
        sae_host_free(&a), sae_host_free(&b);
        free(path);
        folder_remove(folder);
    }
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layouts), cmocka_unit_test(test_stable)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
