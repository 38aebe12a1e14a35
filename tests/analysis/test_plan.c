/* test_plan.c - the arithmetic of `plan` against the memory that loaders and passes really take, and its refusals. */
#include "train_test.h"
#include "analysis/train_job.h"
#include "models/clip.h"
#include "models/llama.h"
#include "models/llava.h"

static struct tiny tiny;
static struct device *device;

/* The plan of tiny's configuration; ring_rows, layers_at_once 0: its own. -1 with err. */
static int plan(struct train_plan *p, struct run_config *c, long ring_rows, int layers_at_once, struct error *err) {
    struct samples s;
    size_t first, count;
    char *path = tiny_config(&tiny, "plan", "", "");
    assert_int_equal(run_config_open(c, path, err), 0);
    if (ring_rows) c->ring_rows = ring_rows;
    c->layers_at_once = layers_at_once;
    assert_int_equal(run_samples(c, false, &s, &first, &count, err), 0);
    int status = train_plan_open(p, c, device, &s, first, count, 0, err);
    samples_free(&s);
    free(path);
    return status;
}

static void bytes_are_those_taken(void **state) {
    struct train_plan p;
    struct run_config c;
    struct error err = {{0}};
    struct model m;
    struct samples s;
    struct batch b;
    struct checkpoint files;
    size_t first, count;
    (void)state;
    if (plan(&p, &c, 0, 0, &err)) fail_msg("%s", err.text);
    assert_int_equal(run_samples(&c, false, &s, &first, &count, &err), 0);
    assert_int_equal(model_open(&m, device, c.model, NULL, &err), 0);
    assert_int_equal(p.memory.weights, m.llm->weights.bytes + m.tower->weights.bytes + m.bridge->weights.bytes);

    int most = 0;
    float *logits = memory_take((size_t)p.memory.pass.samples * (size_t)m.vocab, sizeof *logits);
    for (size_t i = 0; i < count; i += (size_t)p.memory.pass.samples) {
        const size_t n = count - i < (size_t)p.memory.pass.samples ? count - i : (size_t)p.memory.pass.samples;
        assert_int_equal(model_batch(&m, &b, &s, first + i, n, true, &err), 0);
        most = b.n_tokens > most ? b.n_tokens : most;
        const struct checkpoint_pass pass = {b.n_tokens, b.n_samples, b.n_images};
        assert_int_equal(model_forward(&m, &b, NULL, 0, logits, &err), 0);
        assert_int_equal(checkpoint_open(&files, c.model, &(struct checkpoint_options){0}, &err), 0);
        assert_true(checkpoint_scratch_bytes(&files, &pass) <= m.llm->scratch.bytes + m.tower->scratch.bytes + m.bridge->scratch.bytes);
        if (i == 0)
            assert_int_equal(checkpoint_scratch_bytes(&files, &pass),
                             m.llm->scratch.bytes + m.tower->scratch.bytes + m.bridge->scratch.bytes);
        checkpoint_close(&files);
        batch_free(&b);
    }
    free(logits);
    print_message("    largest pass: %d tokens, planned %d\n", most, p.memory.pass.tokens);
    assert_true(abs(p.memory.pass.tokens - most) <= most / 20); /* it is chosen by bytes of text */
    assert_int_equal(p.memory.ring, ring_bytes_per_layer((int)c.ring_rows, TINY_D));
    assert_int_equal(p.memory.needed, train_memory_needed(&p.memory, TINY_LAYERS));
    model_close(&m);
    samples_free(&s);
    train_plan_free(&p);
    run_config_free(&c);
}

/* What cannot fit is refused, and what the sentence says would fit does. Other programs may take memory in between: three tries. */
static void refusals_say_what_fits(void **state) {
    bool fits = false;
    (void)state;
    for (int try = 0; try < 3 && !fits; try++) {
        struct train_plan p;
        struct run_config c;
        struct error err = {{0}};
        long rows;
        int batch;
        assert_int_equal(plan(&p, &c, 1 << 30, 0, &err), -1);
        train_plan_free(&p);
        run_config_free(&c);
        print_message("    %s\n", err.text);
        const char *advice = strstr(err.text, "\"train.ring_rows\" ");
        assert_non_null(advice);
        assert_int_equal(sscanf(advice, "\"train.ring_rows\" %ld with \"train.batch\" %d", &rows, &batch), 2);
        fits = plan(&p, &c, rows, 0, &err) == 0;
        assert_true(!fits || (p.layers_at_once >= 1 && p.memory.needed <= p.memory.free));
        train_plan_free(&p);
        run_config_free(&c);
        assert_int_equal(plan(&p, &c, 1 << 29, TINY_LAYERS, &err), -1);
        train_plan_free(&p);
        run_config_free(&c);
    }
    assert_true(fits);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bytes_are_those_taken), cmocka_unit_test(refusals_say_what_fits)};
    char why[128];
    device = device_open(0, 1, why, sizeof why);
    tiny_make(&tiny);
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    tiny_remove(&tiny);
    device_close(device);
    return failures;
}
