/* test_world.c - the small world against transformers in f32 (tools/golden/make_models.py): tokens and pixel values identical, every
 * layer's hidden states and the logits, the tower, and 200 greedy answers. */
#include "model_test.h"

static const double LIMIT = 1e-5; /* f32 against f32; the issue asks 1e-4 */

static void close_to(const char *what, int layer, const float *a, const float *b, size_t n) {
    const double e = relative_rms(a, b, n);
    printf("  %-16s layer %2d   relative RMS %.2g\n", what, layer, e);
    if (!(e <= LIMIT))
        FAIL("%s, layer %d: relative RMS error %g, limit %g; if the world's weights changed, remake: python "
             "tools/golden/make_models.py " WORLD " " GOLDEN,
             what, layer, e, LIMIT);
}

/* FNV-1a, 64 bit. */
static uint64_t hash(const void *data, size_t bytes) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) h = (h ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
    return h;
}

struct world {
    struct model m;
    struct samples s;
    struct tensors *st;
};

static void open_world(struct world *w) {
    open_model(&w->m, WORLD "/vlm");
    MUST(samples_open(&w->s, WORLD "/data/vqa_test.jsonl", err));
    w->st = open_golden("world");
}

static void close_world(struct world *w) {
    model_close(&w->m);
    samples_free(&w->s);
    tensors_close(w->st);
}

static size_t line_of(const struct world *w, int i) {
    int32_t *line = golden_int(w->st, NULL, "%d/line", i);
    const size_t at = (size_t)*line;
    free(line);
    return at;
}

static void tokens_and_pixels_are_identical(void **state) {
    struct world w;
    (void)state;
    open_world(&w);
    for (int i = 0; i < 8; i++) {
        struct batch b;
        size_t count;
        int32_t *ids = golden_int(w.st, &count, "%d/ids", i), *want = golden_int(w.st, NULL, "%d/pixel_hash", i);
        MUST(model_batch(&w.m, &b, &w.s, line_of(&w, i), 1, false, err));
        assert_int_equal(b.n_tokens, count);
        assert_memory_equal(b.ids, ids, count * sizeof *ids);
        const uint64_t h = hash(b.pixels, 3 * (size_t)w.m.image_size * (size_t)w.m.image_size * sizeof *b.pixels);
        assert_int_equal((uint32_t)h, (uint32_t)want[0]);
        assert_int_equal((uint32_t)(h >> 32), (uint32_t)want[1]);
        free(ids);
        free(want);
        batch_free(&b);
    }
    close_world(&w);
}

static void states_and_logits(void **state) {
    struct world w;
    (void)state;
    open_world(&w);
    const size_t C = (size_t)w.m.d_model, V = (size_t)w.m.vocab;
    float *last = malloc(V * sizeof *last);
    for (int i = 0; i < 8; i++) {
        struct batch b;
        struct kept embed = {.point = PROBE_EMBED}, post = {.point = PROBE_RESID_POST};
        const struct probe probes[] = {{PROBE_EMBED, -1, keep_probe, &embed}, {PROBE_RESID_POST, -1, keep_probe, &post}};
        size_t n;
        int32_t *rows = golden_int(w.st, &n, "%d/rows", i);
        float *states = golden_real(w.st, NULL, "%d/states", i), *logits = golden_real(w.st, NULL, "%d/logits", i),
              *mine = malloc(n * C * sizeof *mine);
        MUST(model_batch(&w.m, &b, &w.s, line_of(&w, i), 1, false, err));
        MUST(model_forward(&w.m, &b, probes, 2, last, err));
        for (int l = -1; l < w.m.n_layers; l++) {
            for (size_t r = 0; r < n; r++)
                memcpy(mine + r * C, (l < 0 ? embed.data[0] : post.data[l + 1]) + (size_t)rows[r] * C, C * sizeof *mine);
            close_to("hidden state", l, mine, states + (size_t)(l + 1) * n * C, n * C);
        }
        close_to("logits", w.m.n_layers, last, logits, V);
        free(rows);
        free(states);
        free(logits);
        free(mine);
        kept_free(&embed);
        kept_free(&post);
        batch_free(&b);
    }
    free(last);
    close_world(&w);
}

static void tower_and_projector(void **state) {
    struct world w;
    struct batch b;
    struct kept vision = {.point = PROBE_VISION_RESID}, rows = {.point = PROBE_PROJECTOR};
    const struct probe probes[] = {{PROBE_VISION_RESID, -1, keep_probe, &vision}, {PROBE_PROJECTOR, -1, keep_probe, &rows}};
    (void)state;
    open_world(&w);
    MUST(model_batch(&w.m, &b, &w.s, line_of(&w, 0), 1, false, err));
    MUST(model_forward(&w.m, &b, probes, 2, NULL, err));
    size_t count;
    float *want = golden_real(w.st, &count, "vision"), *projected = golden_real(w.st, NULL, "projector");
    const size_t width = (size_t)w.m.vision_width, C = (size_t)w.m.d_model,
                 kept = count / ((size_t)w.m.vision_layers + 1) / width; /* every 16th row */
    for (int l = 0; l < w.m.vision_layers; l++)
        for (size_t r = 0; r < kept; r++)
            close_to("tower", l, vision.data[l + 1] + r * 16 * width, want + ((size_t)(l + 1) * kept + r) * width, width);
    for (size_t r = 0; r < (size_t)w.m.n_image_rows / 16; r++) close_to("projector", 0, rows.data[0] + r * 16 * C, projected + r * C, C);
    free(want);
    free(projected);
    kept_free(&vision);
    kept_free(&rows);
    batch_free(&b);
    close_world(&w);
}

/* The answers, in batches of 8, token by token. */
static void answers_are_identical(void **state) {
    enum { N = 200, NEW = 16 };
    struct world w;
    struct samples want;
    int same = 0;
    (void)state;
    open_world(&w);
    MUST(samples_open(&want, GOLDEN "/world_texts.jsonl", err));
    assert_int_equal(want.count, N);
    for (size_t first = 0; first < N; first += 8) {
        struct batch b;
        int *ids, *lengths;
        bool *stopped;
        MUST(model_batch(&w.m, &b, &w.s, first, 8, false, err));
        MUST(model_generate(&w.m, &b, NEW, NULL, 0, &ids, &lengths, &stopped, err));
        for (size_t i = 0; i < 8; i++) {
            json_t *line = want.at[first + i].json, *golden = json_object_get(line, "ids");
            char *text = tokenizer_decode(w.m.tokenizer, ids + i * NEW, (size_t)lengths[i], true);
            bool equal = json_array_size(golden) == (size_t)lengths[i] && !strcmp(text, json_string_value(json_object_get(line, "text")));
            for (int t = 0; equal && t < lengths[i]; t++)
                equal = json_integer_value(json_array_get(golden, (size_t)t)) == ids[i * NEW + (size_t)t];
            if (!equal)
                printf("  line %zu: ours \"%s\", transformers \"%s\"\n", first + i, text, json_string_value(json_object_get(line, "text")));
            same += equal;
            free(text);
        }
        free(ids);
        free(lengths);
        free(stopped);
        batch_free(&b);
    }
    printf("  %d of %d answers identical\n", same, N);
    assert_int_equal(same, N);
    samples_free(&want);
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_and_pixels_are_identical),
        cmocka_unit_test(states_and_logits),
        cmocka_unit_test(tower_and_projector),
        cmocka_unit_test(answers_are_identical),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
