/* test_config.c - config.json in both spellings and its faults, faults of the weights, rotary tables, names of points. */
#include "model_test.h"
#include "host/file.h"
#include "models/config.h"
#include "models/rope.h"
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/stagediff_test_XXXXXX";

static int setup(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state) {
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static void put(const char *name, const char *text) {
    char *path = path_join(folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    free(path);
}

static void has(const char *text, const char *part) {
    if (!strstr(text, part)) FAIL("\"%s\" does not say \"%s\"", text, part);
}

static void faults_of_configs(void **state) {
    static const struct {
        const char *config, *says[3];
    } cases[] = {
        {"{\"model_type\": \"qwen3\", \"architectures\": [\"Qwen3ForCausalLM\"]}",
         {"Qwen3ForCausalLM", "not supported", "LlamaForCausalLM"}},
        {"{\"model_type\": \"llama\", \"hidden_size\": \"big\"}", {"hidden_size", "expected an integer", "\"big\""}},
        {"{\"model_type\": \"llama\", \"num_hidden_layers\": 0}", {"num_hidden_layers", "found 0"}},
        {"{\"model_type\": \"llama\", \"num_attention_heads\": 32, \"num_key_value_heads\": 5}", {"5 kv heads", "multiple"}},
        {"{\"model_type\": \"llama\", \"head_dim\": 20}", {"head_dim 20", "multiples of 8"}},
        {"{\"model_type\": \"llama\", \"hidden_act\": \"gelu\"}", {"hidden_act gelu", "silu"}},
        {"{\"model_type\": \"llama\", \"attention_bias\": true}", {"attention_bias true"}},
        {"{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}}",
         {"rope_type yarn", "default, linear, llama3"}},
        {"{\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8}}", {"low_freq_factor"}},
        {"{\"model_type\": \"llama\", \"rms_norm_eps\": -1}", {"rms_norm_eps", "positive"}},
        {"{\"model_type\": \"llava_llama\", \"mm_projector_type\": \"ldp\"}", {"mm_projector_type ldp"}},
        {"{\"model_type\": \"llava_llama\", \"s2\": true}", {"s2 true"}},
        {"{\"model_type\": \"llava\", \"text_config\": {\"model_type\": \"mistral\"}}", {"text_config.model_type mistral", "llama"}},
        {"{\"model_type\": \"llava\", \"vision_config\": {\"model_type\": \"siglip_vision_model\"}}",
         {"vision_config.model_type siglip_vision_model"}},
        {"{\"model_type\": \"llava\", \"vision_feature_layer\": -40}", {"-40", "24 layers"}},
        {"{\"model_type\": \"llava\", \"vision_feature_layer\": [-2, -5]}", {"several layers"}},
        {"{\"model_type\": \"llama\", \"mlp_bias\": true}", {"mlp_bias true"}},
        {"{\"model_type\": \"llama\", \"sliding_window\": 4096}", {"sliding_window in use", "full attention"}},
        {"{\"model_type\": \"llama\", \"layer_types\": [\"full_attention\", \"sliding_attention\"]}", {"layer_types sliding_attention"}},
        {"{\"model_type\": \"llama\", \"rope_parameters\": {\"rope_type\": \"longrope\"}}", {"rope_type longrope"}},
        {"{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}}", {"rope_type dynamic"}},
        {"{\"model_type\": \"llama\", \"quantization_config\": {\"quant_method\": \"gptq\"}}", {"quantization_config", "F32, F16 or BF16"}},
        {"{\"model_type\": \"gemma2\", \"architectures\": [\"Gemma2ForCausalLM\"]}", {"Gemma2ForCausalLM", "\"gemma2\""}},
        {"{\"model_type\": \"llava_llama\", \"mm_vision_tower\": \"google/siglip-so400m-patch14-384\"}", {"siglip", "a CLIP tower"}},
        {"{\"model_type\": \"llava_llama\", \"image_aspect_ratio\": \"anyres\"}", {"image_aspect_ratio anyres", "pad, square"}},
        {"{\"model_type\": \"llava_llama\", \"mm_vision_select_layer\": [-2, -5]}", {"mm_vision_select_layer", "an integer", "[-2,-5]"}},
        {"[1]", {"JSON object"}},
        {"{\"model_type\": ", {"config.json:1", "not JSON"}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct checkpoint_config c;
        struct error err;
        put("config.json", cases[i].config);
        if (!config_open(&c, folder, &err)) FAIL("accepted: %s", cases[i].config);
        has(err.text, "config.json");
        for (int s = 0; s < 3 && cases[i].says[s]; s++) has(err.text, cases[i].says[s]);
    }
}

static void both_spellings_and_defaults(void **state) {
    struct checkpoint_config a, b;
    (void)state;
    put("config.json", "{\"model_type\": \"llama\", \"torch_dtype\": \"bfloat16\", \"rope_theta\": 500000.0, \"rope_scaling\": "
                       "{\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0,"
                       "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}, \"eos_token_id\": 7}");
    MUST(config_open(&a, folder, err));
    put("config.json", "{\"model_type\": \"llama\", \"dtype\": \"bfloat16\", \"num_key_value_heads\": null, \"rope_parameters\": "
                       "{\"rope_theta\": 500000.0, \"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0,"
                       "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}, \"eos_token_id\": [7]}");
    MUST(config_open(&b, folder, err));
    assert_memory_equal(&a.llm.rope, &b.llm.rope, sizeof a.llm.rope);
    assert_string_equal(a.dtype, b.dtype);
    assert_int_equal(a.n_eos, 1);
    assert_int_equal(b.eos[0], 7);
    assert_int_equal(a.llm.C, 4096);
    assert_int_equal(a.llm.F, 11008);
    assert_int_equal(a.llm.G, 32);
    assert_int_equal(a.llm.V, 32000);
    assert_true(fabsf(a.llm.eps - 1e-6f) < 1e-12f);
    put("generation_config.json", "{\"eos_token_id\": [3, 4]}"); /* wins over config.json */
    MUST(config_open(&b, folder, err));
    assert_int_equal(b.n_eos, 2);
    assert_int_equal(b.eos[1], 4);
    put("config.json", "{\"model_type\": \"llava\", \"text_config\": {\"vocab_size\": 32064, \"rms_norm_eps\": 1e-5}}");
    MUST(config_open(&b, folder, err));
    assert_int_equal(b.clip.S, 336); /* an absent vision_config is ViT-L/14-336 */
    assert_int_equal(b.llava.selected, 23);
    assert_int_equal(b.llm.L, 32);
    put("config.json",
        "{\"model_type\": \"llama\", \"sliding_window\": 4096, \"use_sliding_window\": false, \"layer_types\": [\"full_attention\"]}");
    MUST(config_open(&b, folder, err));
    unlink("generation_config.json");
}

/* llama3 scaling against its definition in double. */
static void rotary_tables(void **state) {
    const struct rope_config rope = {ROPE_LLAMA3, 500000, 8, 1, 4, 8192};
    enum { D = 128, T = 3000 };
    float *cosine = malloc(T * D / 2 * sizeof *cosine), *sine = malloc(T * D / 2 * sizeof *sine);
    double worst = 0;
    int kept = 0, scaled = 0;
    (void)state;
    rope_tables(cosine, sine, &rope, T, D);
    for (int i = 0; i < D / 2; i++) {
        double f = pow(500000, -2.0 * i / D), w = 2 * M_PI / f, s = (8192 / w - 1) / 3;
        kept += w < 2048;
        scaled += w > 8192;
        f = w < 2048 ? f : w > 8192 ? f / 8 : (1 - s) * f / 8 + s * f;
        for (int t = 0; t < T; t++) {
            worst = fmax(worst, fabs(cosine[t * D / 2 + i] - cos(t * f)));
            worst = fmax(worst, fabs(sine[t * D / 2 + i] - sin(t * f)));
        }
    }
    assert_true(kept > 10 && scaled > 10 && kept + scaled < D / 2);
    printf("  largest error %.2g over %d positions\n", worst, T);
    assert_true(worst < 3 * T * 6e-8); /* the angle is rounded to f32 twice, as in transformers */
    free(cosine);
    free(sine);
}

static void names_of_points(void **state) {
    static const char *const good[] = {"hook_embed",
                                       "blocks.0.hook_resid_pre",
                                       "blocks.31.attn.hook_z",
                                       "blocks.*.hook_attn_out",
                                       "blocks.7.hook_resid_mid",
                                       "blocks.7.hook_mlp_out",
                                       "blocks.12.hook_resid_post",
                                       "ln_final.hook_normalized",
                                       "logits",
                                       "vision.3.hook_resid_post",
                                       "vision.*.hook_resid_post",
                                       "vision.selected",
                                       "projector"};
    static const char *const bad[] = {"",
                                      "blocks..hook_resid_pre",
                                      "blocks.x.hook_resid_post",
                                      "blocks.-1.hook_resid_post",
                                      "blocks.01.hook_resid_post",
                                      "hook_resid_post",
                                      "logit",
                                      "blocks.1.hook_resid_posts",
                                      "blocks.99999999999.hook_resid_post"};
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        enum probe_point point;
        int layer;
        char name[64];
        MUST(probe_parse(good[i], &point, &layer, err));
        probe_name(point, layer, name, sizeof name);
        assert_string_equal(name, good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        enum probe_point point;
        int layer;
        struct error err;
        assert_int_equal(probe_parse(bad[i], &point, &layer, &err), -1);
        has(err.text, "point");
    }
}

/* tiny_llama with one tensor left out, of another shape, or of a dtype that weights cannot have. */
static void spoil(const char *which, int how) {
    struct tensors *st = NULL;
    struct safetensors_writer *w = NULL;
    char *path = path_join(folder, "model.safetensors");
    MUST(tensors_open(&st, GOLDEN "/tiny_llama", err));
    MUST(safetensors_writer_open(&w, path, err));
    for (int i = 0; i < tensors_count(st); i++) {
        const struct tensor *t = tensors_at(st, i);
        const bool hit = !strcmp(t->name, which);
        if (hit && how == 0) continue;
        if (hit && how == 1)
            safetensors_writer_add(w, t->name, t->dtype, 2, (const int64_t[]){t->shape[1], t->shape[0]}, t->data);
        else
            safetensors_writer_add(w, t->name, hit ? DTYPE_I16 : t->dtype, t->rank, t->shape, t->data);
    }
    MUST(safetensors_writer_commit(w, err));
    tensors_close(st);
    free(path);
}

static void copy_here(const char *name) {
    char *path = path_join(GOLDEN "/tiny_llama", name), *data;
    size_t size;
    MUST(file_read(path, 1 << 20, &data, &size, err));
    put(name, data);
    free(data);
    free(path);
}

static void faults_of_weights(void **state) {
    static const char q[] = "model.layers.1.self_attn.q_proj.weight";
    static const char *const says[3][4] = {{"model.safetensors", q, "missing", ""},
                                           {"model.safetensors", q, "expected shape (48, 32)", "found (32, 48)"},
                                           {"model.safetensors", q, "expected", "I16"}};
    (void)state;
    copy_here("config.json");
    copy_here("tokenizer.json");
    copy_here("tokenizer_config.json");
    for (int how = 0; how < 3; how++) {
        struct model m;
        struct error err;
        spoil(q, how);
        assert_int_equal(model_open(&m, test_device(), folder, NULL, &err), -1);
        for (int s = 0; s < 4; s++) has(err.text, says[how][s]);
        model_close(&m); /* allowed after a failed open */
    }
    struct model m;
    struct error why;
    spoil("", 0);
    const struct model_options one = {.layers = 1};
    MUST(model_open(&m, test_device(), folder, &one, err));
    assert_int_equal(m.n_layers, 1);
    assert_int_equal(model_check_point(&m, PROBE_LOGITS, -1, &why), -1);
    assert_int_equal(model_check_point(&m, PROBE_RESID_POST, 1, &why), -1);
    assert_int_equal(model_check_point(&m, PROBE_VISION_RESID, 0, &why), -1);
    assert_int_equal(model_check_point(&m, PROBE_RESID_POST, 0, &why), 0);
    model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(faults_of_configs), cmocka_unit_test(both_spellings_and_defaults), cmocka_unit_test(rotary_tables),
        cmocka_unit_test(names_of_points),   cmocka_unit_test(faults_of_weights),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
