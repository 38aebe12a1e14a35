/* test_batch.c - what a packed batch can be asked without a model; batches made ahead are those made when asked for. */
#include "models/ahead.h"
#include "tests/models/model_test.h"

static void test_after_image(void **state) {
    (void)state;
    enum { I = IMAGE_TOKEN };
    int ids[] = {1, I, I, 5, 6, /* picture, then text */
                 1, 7,          /* none */
                 1, 4, I,       /* nothing follows */
                 1, I, 8, I, 9 /* text between two runs */},
        starts[] = {0, 5, 7, 10, 15};
    const uint8_t expected[] = {0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1};
    const struct batch b = {.n_samples = 4, .n_tokens = 15, .cu_seqlens = starts, .ids = ids};
    uint8_t after[15];
    memset(after, 9, sizeof after);
    batch_after_image(&b, after);
    assert_memory_equal(after, expected, sizeof expected);
}

static void same_batch(const struct model *m, const struct batch *a, const struct batch *b) {
    const size_t pixels = 3 * (size_t)m->image_size * (size_t)m->image_size * (size_t)b->n_images;
    assert_int_equal(a->n_samples, b->n_samples);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_int_equal(a->n_images, b->n_images);
    assert_memory_equal(a->ids, b->ids, (size_t)b->n_tokens * sizeof *b->ids);
    assert_memory_equal(a->kinds, b->kinds, (size_t)b->n_tokens);
    assert_memory_equal(a->sample, b->sample, (size_t)b->n_samples * sizeof *b->sample);
    if (pixels) assert_memory_equal(a->pixels, b->pixels, pixels * sizeof *b->pixels);
}

/* Takes samples [first, first + n) and compares them with model_batch's. */
static void take(struct ahead *a, size_t first, size_t n) {
    struct batch got, want;
    MUST(ahead_take(a, &got, first, n, err));
    MUST(model_batch(a->m, &want, a->s, first, n, a->with_answer, err));
    same_batch(a->m, &got, &want);
    batch_free(&got);
    batch_free(&want);
}

/* In order, out of order, put back, dropped; a bad picture is the error of the batch that has it. */
static void test_ahead(void **state) {
    struct model m;
    struct samples s;
    struct error why;
    struct batch b, want;
    (void)state;
    open_model(&m, WORLD "/vlm");
    MUST(samples_open(&s, WORLD "/data/vqa_test.jsonl", err));
    struct ahead a = {.m = &m, .s = &s, .with_answer = true};
    for (size_t first = 0; first < 11; first += 3) {
        MUST(ahead_next(&a, &b, first, 3, 11, err));
        MUST(model_batch(&m, &want, &s, first, first < 9 ? 3 : 2, true, err));
        same_batch(&m, &b, &want);
        batch_free(&want);
        if (first < 9) batch_free(&b);
    }
    assert_int_equal(a.state, AHEAD_NOTHING);
    ahead_return(&a, &b, 9);
    take(&a, 9, 2);
    ahead_start(&a, 4, 2);
    take(&a, 5, 2); /* another one */
    ahead_start(&a, 4, 2);
    take(&a, 4, 3); /* another size */
    ahead_start(&a, 7, 1);
    ahead_start(&a, 8, 1);
    take(&a, 8, 1);
    char *path = s.at[6].image;
    s.at[6].image = (char *)(uintptr_t) "no such picture.png";
    MUST(ahead_next(&a, &b, 4, 2, 11, err)); /* begins 6 and 7 */
    batch_free(&b);
    why.text[0] = 0;
    assert_int_equal(ahead_take(&a, &b, 6, 2, &why), -1);
    assert_non_null(strstr(why.text, "no such picture.png"));
    assert_non_null(strstr(why.text, "line 7"));
    ahead_start(&a, 6, 1);
    take(&a, 7, 1); /* the error of a batch that nobody takes is nobody's */
    s.at[6].image = path;
    ahead_start(&a, 0, 8);
    ahead_end(&a);
    ahead_end(&a);
    samples_free(&s);
    model_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_after_image), cmocka_unit_test(test_ahead)};
    return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
