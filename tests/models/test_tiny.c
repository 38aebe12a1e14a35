/* test_tiny.c - random checkpoints of odd shapes (head_dim 24, one kv head, vocabulary no multiple of 8, H*D != C, tied head, sharded
 * file, both spellings of the config) against transformers in f32: every layer, logits, tower; packing; the other key layouts. */
#include "model_test.h"
#include "host/file.h"
#include <sys/stat.h>
#include <unistd.h>

static const double LIMIT = 1e-5; /* f32 against f32: sums in another order; the issue asks 1e-4 */

static void close_to(const char *what, const float *a, const float *b, size_t n) {
    const double e = relative_rms(a, b, n);
    printf("  %-40s relative RMS %.2g\n", what, e);
    if (!(e <= LIMIT)) FAIL("%s: relative RMS error %g, limit %g", what, e, LIMIT);
}

/* All layers' streams and logits of the samples, run as one packed batch, against each sample's golden tensors. */
static void against_golden(const char *name, int n) {
    struct model m;
    struct batch b;
    char dir[128], what[64];
    struct tensors *st = open_golden(name);
    struct kept embed = {.point = PROBE_EMBED}, post = {.point = PROBE_RESID_POST}, logits = {.point = PROBE_LOGITS},
                vision = {.point = PROBE_VISION_RESID};
    snprintf(dir, sizeof dir, GOLDEN "/%s", name);
    open_model(&m, dir);
    golden_batch(&b, &m, st, 0, n);
    const struct probe probes[] = {{PROBE_EMBED, -1, keep_probe, &embed},
                                   {PROBE_RESID_POST, -1, keep_probe, &post},
                                   {PROBE_LOGITS, -1, keep_probe, &logits},
                                   {PROBE_VISION_RESID, -1, keep_probe, &vision}};
    float *last = malloc((size_t)n * (size_t)m.vocab * sizeof *last), *alone = malloc((size_t)n * (size_t)m.vocab * sizeof *alone);
    MUST(model_forward(&m, &b, NULL, 0, alone, err)); /* nothing but last_logits: the last layer runs for the last rows only */
    MUST(model_forward(&m, &b, probes, m.tower ? 4 : 3, last, err));
    for (int i = 0; i < n; i++) {
        const size_t C = (size_t)m.d_model, V = (size_t)m.vocab, from = (size_t)b.cu_seqlens[i], rows = (size_t)b.cu_seqlens[i + 1] - from;
        float *states = golden_real(st, NULL, "%d/states", i), *want = golden_real(st, NULL, "%d/logits", i);
        for (int l = -1; l < m.n_layers; l++) {
            snprintf(what, sizeof what, "%s sample %d layer %d", name, i, l);
            close_to(what, (l < 0 ? embed.data[0] : post.data[l + 1]) + from * C, states + (size_t)(l + 1) * rows * C, rows * C);
        }
        close_to("logits", logits.data[0] + from * V, want, rows * V);
        close_to("last logits", last + (size_t)i * V, want + (rows - 1) * V, V);
        close_to("last logits alone", alone + (size_t)i * V, want + (rows - 1) * V, V);
        if (b.picture[i] >= 0) {
            float *tower = golden_real(st, NULL, "%d/vision", i);
            const size_t size = (size_t)(vision.rows / b.n_images) * (size_t)vision.width;
            for (int l = 0; l < m.vision_layers; l++)
                close_to("tower layer", vision.data[l + 1] + (size_t)b.picture[i] * size, tower + (size_t)(l + 1) * size, size);
            free(tower);
        }
        free(states);
        free(want);
    }
    free(last);
    free(alone);
    kept_free(&embed);
    kept_free(&post);
    kept_free(&logits);
    kept_free(&vision);
    batch_free(&b);
    model_close(&m);
    tensors_close(st);
}

static void llava_equals_transformers(void **state) {
    (void)state;
    against_golden("tiny_llava", 3);
}

static void llama_equals_transformers(void **state) {
    (void)state;
    against_golden("tiny_llama", 2);
}

/* mm_projector.bin beside config.json; language model and tower in folders of their own. */
static void stage1_equals_transformers(void **state) {
    (void)state;
    against_golden("tiny_stage1", 3);
}

/* ---- the other ways the same weights are stored ---- */
struct rule {
    const char *from, *to;
};
static void copy_file(const char *from_dir, const char *to_dir, const char *name) {
    char *from = path_join(from_dir, name), *to = path_join(to_dir, name), *data;
    size_t size;
    MUST(file_read(from, 1 << 24, &data, &size, err));
    FILE *f = fopen(to, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    fclose(f);
    free(data);
    free(from);
    free(to);
}

/* tiny_llava once more under other key prefixes, as one file, F32 or BF16. */
static void rewrite(const char *dir, const struct rule *rules, bool f32) {
    struct tensors *st = NULL;
    struct safetensors_writer *w = NULL;
    mkdir(dir, 0777);
    char *path = path_join(dir, "model.safetensors");
    MUST(tensors_open(&st, GOLDEN "/tiny_llava", err));
    MUST(safetensors_writer_open(&w, path, err));
    for (int i = 0; i < tensors_count(st); i++) {
        const struct tensor *t = tensors_at(st, i);
        char name[256];
        snprintf(name, sizeof name, "%s", t->name);
        for (const struct rule *r = rules; r->from; r++)
            if (!strncmp(t->name, r->from, strlen(r->from))) {
                snprintf(name, sizeof name, "%s%s", r->to, t->name + strlen(r->from));
                break;
            }
        if (f32) {
            float *x = malloc(t->count * sizeof *x);
            tensor_to_f32(t, 0, t->count, x);
            safetensors_writer_give(w, name, DTYPE_F32, t->rank, t->shape, x);
        } else {
            safetensors_writer_add(w, name, t->dtype, t->rank, t->shape, t->data);
        }
    }
    MUST(safetensors_writer_commit(w, err));
    tensors_close(st);
    free(path);
    copy_file(GOLDEN "/tiny_llava", dir, "tokenizer.json");
    copy_file(GOLDEN "/tiny_llava", dir, "tokenizer_config.json");
    copy_file(GOLDEN "/tiny_llava", dir, "preprocessor_config.json");
}

static void write_text(const char *dir, const char *name, const char *text) {
    char *path = path_join(dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    free(path);
}

static float *logits_of(const char *dir, int *count) {
    struct model m;
    struct batch b;
    struct tensors *st = open_golden("tiny_llava");
    open_model(&m, dir);
    golden_batch(&b, &m, st, 0, 3);
    float *last = malloc(3 * (size_t)m.vocab * sizeof *last);
    MUST(model_forward(&m, &b, NULL, 0, last, err));
    *count = 3 * m.vocab;
    batch_free(&b);
    model_close(&m);
    tensors_close(st);
    return last;
}

static void every_layout_is_the_same_model(void **state) {
    static const struct rule in_memory[] = {{"language_model.model.", "model.language_model."},
                                            {"language_model.lm_head", "lm_head"},
                                            {"vision_tower.", "model.vision_tower."},
                                            {"multi_modal", "model.multi_modal"},
                                            {NULL, NULL}};
    static const struct rule v5[] = {{"vision_tower.vision_model.", "vision_tower."}, {NULL, NULL}};
    static const struct rule original[] = {{"language_model.", ""},
                                           {"vision_tower.", "model.vision_tower.vision_tower."},
                                           {"multi_modal_projector.linear_1", "model.mm_projector.0"},
                                           {"multi_modal_projector.linear_2", "model.mm_projector.2"},
                                           {NULL, NULL}};
    static const char llava[] = "{\"model_type\": \"llava_llama\", \"mm_vision_tower\": \"clip\", \"mm_projector_type\": \"mlp2x_gelu\", "
                                "\"vocab_size\": 267, \"hidden_size\": 48, \"intermediate_size\": 56,"
                                "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 24, "
                                "\"max_position_embeddings\": 128, \"rms_norm_eps\": 1e-5,"
                                "\"rope_parameters\": {\"rope_theta\": 5000.0, \"rope_type\": \"default\"}, \"dtype\": \"float32\", "
                                "\"image_aspect_ratio\": \"pad\"}";
    static const char clip[] = "{\"model_type\": \"clip_vision_model\", \"hidden_size\": 32, \"intermediate_size\": 40, "
                               "\"num_hidden_layers\": 3, \"num_attention_heads\": 2, \"image_size\": 24, \"patch_size\": 8}";
    char dir[] = "/tmp/stagediff_test_XXXXXX", path[4][64];
    int n, n2;
    (void)state;
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i < 4; i++) snprintf(path[i], sizeof path[i], "%s/%d", dir, i);
    rewrite(path[0], in_memory, false);
    copy_file(GOLDEN "/tiny_llava", path[0], "config.json");
    rewrite(path[1], v5, true);
    copy_file(GOLDEN "/tiny_llava", path[1], "config.json");
    rewrite(path[2], original, true);
    write_text(path[2], "config.json", llava);
    char *tower = path_join(path[2], "clip");
    mkdir(tower, 0777);
    write_text(tower, "config.json", clip);
    copy_file(GOLDEN "/tiny_llava", tower, "preprocessor_config.json");
    free(tower);
    float *want = logits_of(GOLDEN "/tiny_llava", &n);
    for (int i = 0; i < 3; i++) {
        float *got = logits_of(path[i], &n2);
        assert_int_equal(n, n2);
        assert_memory_equal(got, want, (size_t)n * sizeof *got); /* bit for bit */
        free(got);
    }
    free(want);
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

/* ---- packing, stopping, editing, generating ---- */
static void packing_changes_nothing(void **state) {
    struct model m;
    struct tensors *st = open_golden("tiny_llava");
    struct batch all, one;
    (void)state;
    open_model(&m, GOLDEN "/tiny_llava");
    const size_t V = (size_t)m.vocab;
    float *together = malloc(3 * V * sizeof *together), *alone = malloc(V * sizeof *alone);
    golden_batch(&all, &m, st, 0, 3);
    MUST(model_forward(&m, &all, NULL, 0, together, err));
    for (int i = 0; i < 3; i++) {
        golden_batch(&one, &m, st, i, 1);
        MUST(model_forward(&m, &one, NULL, 0, alone, err));
        assert_true(relative_rms(alone, together + (size_t)i * V, V) < 1e-6);
        batch_free(&one);
    }
    free(together);
    free(alone);
    batch_free(&all);
    model_close(&m);
    tensors_close(st);
}

static int zero_probe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b,
                      struct error *err) {
    (void)context;
    (void)layer;
    (void)b;
    (void)err;
    device_zero(dev, x, (size_t)rows * (size_t)width * sizeof(act_t));
    return 0;
}

static int refuse_probe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b,
                        struct error *err) {
    (void)context;
    (void)dev;
    (void)layer;
    (void)x;
    (void)rows;
    (void)width;
    (void)b;
    return fail(err, "enough");
}

/* With attn_out and mlp_out of every layer set to zero the stream stays the embedding; a probe's error stops the pass. */
static void probes_edit_and_stop(void **state) {
    struct model m;
    struct batch b;
    struct error why;
    struct tensors *st = open_golden("tiny_llama");
    struct kept embed = {.point = PROBE_EMBED}, post = {.point = PROBE_RESID_POST}, mid = {.point = PROBE_RESID_MID};
    (void)state;
    open_model(&m, GOLDEN "/tiny_llama");
    golden_batch(&b, &m, st, 0, 2);
    const struct probe edits[] = {{PROBE_ATTN_OUT, -1, zero_probe, NULL},
                                  {PROBE_MLP_OUT, -1, zero_probe, NULL},
                                  {PROBE_EMBED, -1, keep_probe, &embed},
                                  {PROBE_RESID_POST, 1, keep_probe, &post}};
    MUST(model_forward(&m, &b, edits, 4, NULL, err));
    assert_memory_equal(post.data[2], embed.data[0], (size_t)post.rows * (size_t)post.width * sizeof(float));
    const struct probe stop[] = {{PROBE_RESID_MID, -1, keep_probe, &mid}, {PROBE_RESID_POST, 0, refuse_probe, NULL}};
    assert_int_equal(model_forward(&m, &b, stop, 2, NULL, &why), -1);
    assert_string_equal(why.text, "enough");
    assert_non_null(mid.data[1]);
    assert_null(mid.data[2]);
    const struct probe early[] = {{PROBE_RESID_PRE, 1, keep_probe, &embed}, {PROBE_RESID_POST, 0, keep_probe, &post}};
    MUST(model_forward(&m, &b, early, 2, NULL, err)); /* resid_pre of a layer is resid_post of the one before */
    assert_memory_equal(post.data[1], embed.data[2], (size_t)post.rows * (size_t)post.width * sizeof(float));
    kept_free(&embed);
    kept_free(&post);
    kept_free(&mid);
    batch_free(&b);
    model_close(&m);
    tensors_close(st);
}

/* Generation with the cache equals running the whole sequence again for every token. */
static void cache_changes_nothing(void **state) {
    enum { NEW = 12 };
    struct model m;
    struct batch b, one;
    int *ids, *lengths, checked = 0;
    bool *stopped;
    struct tensors *st = open_golden("tiny_llava");
    (void)state;
    open_model(&m, GOLDEN "/tiny_llava");
    m.n_eos = 0;
    float *logits = malloc((size_t)m.vocab * sizeof *logits);
    golden_batch(&b, &m, st, 0, 3);
    MUST(model_generate(&m, &b, NEW, NULL, 0, &ids, &lengths, &stopped, err));
    for (int i = 0; i < 3; i++) {
        golden_batch(&one, &m, st, i, 1);
        for (int t = 0; t < NEW; t++, checked++) {
            int best = 0;
            MUST(model_forward(&m, &one, NULL, 0, logits, err));
            for (int v = 1; v < m.vocab; v++) best = logits[v] > logits[best] ? v : best;
            assert_int_equal(ids[i * NEW + t], best);
            const int at = one.n_tokens++;
            one.ids[at] = one.source[at] = best;
            one.position[at] = at;
            one.kinds[at] = KIND_ANSWER;
            one.cu_seqlens[1] = one.longest = one.n_tokens;
        }
        assert_int_equal(lengths[i], NEW);
        assert_false(stopped[i]);
        batch_free(&one);
    }
    m.n_eos = 1; /* an end-of-text id ends its own sample alone, and is kept */
    m.eos[0] = ids[NEW + 3];
    int *ids2, *lengths2;
    bool *stopped2;
    MUST(model_generate(&m, &b, NEW, NULL, 0, &ids2, &lengths2, &stopped2, err));
    for (int i = 0; i < 3; i++) {
        int end = 0;
        while (end < NEW - 1 && ids[i * NEW + end] != m.eos[0]) end++;
        assert_int_equal(lengths2[i], end + 1);
        assert_int_equal(stopped2[i], ids[i * NEW + end] == m.eos[0]);
        assert_memory_equal(ids2 + i * NEW, ids + i * NEW, (size_t)lengths2[i] * sizeof(int));
    }
    printf("  %d tokens with the cache equal those without\n", checked);
    free(ids);
    free(ids2);
    free(lengths);
    free(lengths2);
    free(stopped);
    free(stopped2);
    free(logits);
    batch_free(&b);
    model_close(&m);
    tensors_close(st);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llava_equals_transformers),  cmocka_unit_test(llama_equals_transformers),
        cmocka_unit_test(stage1_equals_transformers), cmocka_unit_test(every_layout_is_the_same_model),
        cmocka_unit_test(packing_changes_nothing),    cmocka_unit_test(probes_edit_and_stop),
        cmocka_unit_test(cache_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
