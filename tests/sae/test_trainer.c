/* test_trainer.c - 20 training steps equal torch.autograd and torch.optim.Adam within twice PyTorch's own f32 error; the same bits
 * whatever the threads, after save and load, with a shared workspace; dead features are counted. */
#include "sae/trainer.h"
#include "tests/sae/sae_test.h"

#include "kernels/activation.h"

#define TRAINING GOLDEN "train.safetensors"
enum { D = 24, M = 96, K = 5, BATCH = 32, ROWS = 540, STEPS = 20 };

static void start_of(struct sae_host *s) {
    *s = (struct sae_host){.activation = SAE_TOPK, .d = D, .M = M, .K = K, .layer = -1};
    s->E = golden(TRAINING, "E", NULL), s->D = golden(TRAINING, "D", NULL), s->b_e = golden(TRAINING, "b_e", NULL),
    s->b_d = golden(TRAINING, "b_d", NULL);
}

static void put_batch(struct device *dev, void *x, const float *rows, long step) {
    float batch[BATCH * D];
    for (int i = 0; i < BATCH; i++) memcpy(batch + i * D, rows + ((size_t)step * BATCH + (size_t)i) % ROWS * D, D * sizeof *batch);
    device_upload(dev, x, batch, sizeof batch);
}

static struct train_settings settings_of(bool unit, bool parallel) {
    struct train_settings s = train_defaults;
    s.lr = 1e-2, s.unit_norm_decoder = unit, s.remove_parallel = parallel, s.max_batch = BATCH;
    return s;
}

/* Trains from step `first` of t to `last`; losses may be NULL. */
static void train(struct sae_trainer *t, struct device *dev, const float *rows, long last, float *losses) {
    void *x = device_alloc(dev, BATCH * D * sizeof(float));
    for (long s = sae_trainer_steps(t); s < last; s++) {
        struct train_metrics m;
        put_batch(dev, x, rows, s);
        sae_trainer_step(t, x, BATCH, &m);
        assert_int_equal(m.step, s);
        assert_int_equal(m.rows, BATCH);
        if (losses) losses[s] = (float)m.loss;
    }
    device_free(dev, x);
}

static struct sae_trainer *open_trainer(struct device *dev, const struct train_settings *settings, struct sae_workspace *shared) {
    struct sae_host start;
    struct sae_trainer *t;
    struct error err = {{0}};
    start_of(&start);
    if (sae_trainer_open(&t, dev, &start, settings, shared, &err)) fail_msg("%s", err.text);
    sae_host_free(&start);
    return t;
}

static void same_weights(struct sae_trainer *a, struct sae_trainer *b) {
    struct sae_host x, y;
    struct error err = {{0}};
    assert_int_equal(sae_trainer_download(a, &x, &err), 0);
    assert_int_equal(sae_trainer_download(b, &y, &err), 0);
    assert_memory_equal(x.E, y.E, M * D * sizeof *x.E);
    assert_memory_equal(x.D, y.D, M * D * sizeof *x.D);
    assert_memory_equal(x.b_e, y.b_e, M * sizeof *x.b_e);
    assert_memory_equal(x.b_d, y.b_d, D * sizeof *x.b_d);
    sae_host_free(&x), sae_host_free(&y);
}

static void against_torch(const char *name, bool unit, bool parallel) {
    struct device *dev = test_device(0);
    struct train_settings settings = settings_of(unit, parallel);
    struct sae_trainer *t = open_trainer(dev, &settings, NULL);
    struct sae_host trained;
    struct error err = {{0}};
    float losses[STEPS], *rows = golden(TRAINING, "x", NULL);
    train(t, dev, rows, STEPS, losses);
    assert_int_equal(sae_trainer_download(t, &trained, &err), 0);
    const struct {
        const char *what;
        const float *ours;
    } checks[] = {{"loss", losses}, {"E", trained.E}, {"D", trained.D}, {"b_e", trained.b_e}, {"b_d", trained.b_d}};
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        char f64[64], f32[64];
        size_t n;
        snprintf(f64, sizeof f64, "%s.%s.f64", name, checks[i].what);
        snprintf(f32, sizeof f32, "%s.%s.f32", name, checks[i].what);
        float *a = golden(TRAINING, f64, &n), *b = golden(TRAINING, f32, NULL);
        check_floor(f64, checks[i].ours, a, b, n);
        free(a), free(b);
    }
    sae_host_free(&trained);
    sae_trainer_close(t);
    device_close(dev);
    free(rows);
}

static void test_against_torch(void **state) {
    (void)state;
    against_torch("unit", true, false);
    against_torch("plain", false, false);
    against_torch("parallel", true, true);
}

static void test_threads(void **state) {
    (void)state;
    for (int bf16_products = 0; bf16_products < 2; bf16_products++) {
        struct device *one = test_device(1);
        struct train_settings settings = settings_of(true, false);
        settings.bf16_products = bf16_products != 0;
        float *rows = golden(TRAINING, "x", NULL), a[STEPS], b[STEPS];
        struct sae_trainer *first = open_trainer(one, &settings, NULL);
        train(first, one, rows, STEPS, a);
        struct device *two = test_device(2);
        struct sae_trainer *second = open_trainer(two, &settings, NULL);
        train(second, two, rows, STEPS, b);
        assert_memory_equal(a, b, sizeof a);
        same_weights(first, second);
        sae_trainer_close(first), sae_trainer_close(second);
        device_close(one), device_close(two);
        free(rows);
    }
}

/* Stopped at every step, saved, loaded into a trainer of another start, continued: the bits of the run that never stopped. */
static void test_resume(void **state) {
    (void)state;
    for (int bf16_products = 0; bf16_products < 2; bf16_products++) {
        struct device *dev = test_device(0);
        struct train_settings settings = settings_of(true, false);
        settings.bf16_products = bf16_products != 0;
        char *folder = folder_make(), *whole_path = path_join(folder, "whole.safetensors"), *path = path_join(folder, "state.safetensors");
        float *rows = golden(TRAINING, "x", NULL), a[STEPS], b[STEPS];
        struct error err = {{0}};
        struct sae_trainer *whole = open_trainer(dev, &settings, NULL);
        train(whole, dev, rows, STEPS, a);
        assert_int_equal(sae_trainer_save(whole, whole_path, &err), 0);
        for (long stop = 1; stop < STEPS; stop += 6) {
            struct sae_trainer *part = open_trainer(dev, &settings, NULL);
            train(part, dev, rows, stop, b);
            assert_int_equal(sae_trainer_save(part, path, &err), 0);
            sae_trainer_close(part);
            part = open_trainer(dev, &settings, NULL);
            train(part, dev, rows, 3, NULL); /* anything: load replaces it */
            if (sae_trainer_load(part, path, &err)) fail_msg("%s", err.text);
            assert_int_equal(sae_trainer_steps(part), stop);
            assert_int_equal(sae_trainer_rows(part), stop * BATCH);
            train(part, dev, rows, STEPS, b);
            assert_memory_equal(a, b, sizeof a);
            same_weights(whole, part);
            assert_int_equal(sae_trainer_save(part, path, &err), 0); /* moments and counters too */
            char *x = NULL, *y = NULL;
            size_t n, m;
            assert_int_equal(file_read(whole_path, 1 << 28, &x, &n, &err), 0);
            assert_int_equal(file_read(path, 1 << 28, &y, &m, &err), 0);
            assert_int_equal(n, m);
            assert_memory_equal(x, y, n);
            free(x), free(y);
            sae_trainer_close(part);
        }
        sae_trainer_close(whole);
        device_close(dev);
        free(rows), free(whole_path), free(path);
        folder_remove(folder);
    }
}

static void test_hostile_state(void **state) {
    (void)state;
    struct device *dev = test_device(0);
    struct train_settings settings = settings_of(true, false);
    struct sae_trainer *t = open_trainer(dev, &settings, NULL);
    struct error err = {{0}};
    assert_int_equal(sae_trainer_load(t, "/nowhere/state.safetensors", &err), -1);
    assert_int_equal(sae_trainer_load(t, TRAINING, &err), -1);
    assert_non_null(strstr(err.text, "train.safetensors"));
    sae_trainer_close(t);
    device_close(dev);
}

/* Trainers that take turns on one workspace do what they do alone. */
static void test_shared_workspace(void **state) {
    (void)state;
    struct device *dev = test_device(0);
    struct sae_workspace *shared;
    struct error err = {{0}};
    struct train_settings settings = settings_of(true, false), other = settings_of(false, true);
    float *rows = golden(TRAINING, "x", NULL);
    assert_int_equal(sae_workspace_open(&shared, dev, D, M + 7, K + 2, 2 * BATCH, &err), 0);
    struct sae_trainer *alone = open_trainer(dev, &settings, NULL), *a = open_trainer(dev, &settings, shared),
                       *b = open_trainer(dev, &other, shared);
    for (long s = 1; s <= STEPS; s++) {
        train(a, dev, rows, s, NULL);
        train(b, dev, rows, s, NULL);
    }
    train(alone, dev, rows, STEPS, NULL);
    same_weights(alone, a);
    sae_trainer_close(a), sae_trainer_close(b), sae_trainer_close(alone);
    sae_workspace_close(shared);
    device_close(dev);
    free(rows);
}

/* Features whose encoder bias keeps them silent are dead, all others fire on these rows. */
static void test_dead_features(void **state) {
    (void)state;
    struct device *dev = test_device(0);
    struct train_settings settings = settings_of(true, false);
    struct sae_host start;
    struct sae_trainer *t;
    struct error err = {{0}};
    float *rows = golden(TRAINING, "x", NULL);
    start_of(&start);
    for (int f = 0; f < 30; f++) start.b_e[f * 3] = -1000;
    assert_int_equal(sae_trainer_open(&t, dev, &start, &settings, NULL, &err), 0);
    train(t, dev, rows, STEPS, NULL);
    int64_t fired[M], since[M], total = 0;
    sae_trainer_firing(t, fired, since);
    int never = 0;
    for (int f = 0; f < M; f++) {
        if (f % 3 == 0 && f < 90) assert_int_equal(fired[f], 0);
        never += fired[f] == 0;
        total += fired[f];
        assert_true(fired[f] == 0 ? since[f] == STEPS * BATCH : since[f] <= STEPS * BATCH);
    }
    assert_true(total <= (int64_t)STEPS * BATCH * K && total > 0);
    assert_int_equal(sae_trainer_dead(t, 1L << 40), never);
    assert_true(sae_trainer_dead(t, 1) >= never);
    sae_trainer_close(t);
    sae_host_free(&start);
    device_close(dev);
    free(rows);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_torch),    cmocka_unit_test(test_threads),
                                       cmocka_unit_test(test_resume),           cmocka_unit_test(test_hostile_state),
                                       cmocka_unit_test(test_shared_workspace), cmocka_unit_test(test_dead_features)};
    log_quiet = 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
