/* test_batch.c - what a packed batch can be asked without a model. */
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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_after_image)};
    return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
