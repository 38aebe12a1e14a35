/* train_test.c - see train_test.h. */
#include "tests/analysis/train_test.h"
#include "host/image.h"
#include <sys/stat.h>
#include <unistd.h>

static uint64_t random_state = 88172645463325252u;
static uint64_t next_random(void) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state;
}

static void write_picture(const char *path) {
    struct image image = {.width = 24, .height = 24, .pixels = memory_take(24 * 24, 3)};
    struct error err = {{0}};
    uint8_t *png = NULL;
    size_t n = 0;
    uint64_t ground = next_random();
    for (size_t i = 0; i < 24 * 24 * 3; i++) image.pixels[i] = (uint8_t)((ground >> (i % 3 * 8)) + (next_random() & 31));
    if (image_write_png(&image, &png, &n, &err)) fail_msg("%s", err.text);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(png, 1, n, f), n);
    fclose(f);
    free(png);
    image_free(&image);
}

static void write_data(const struct tiny *t) {
    static const char *const words[] = {"the", "cat", "left", "of", "a", "dog", "is", "red", "what", "under", "two", "blue"};
    char *path = path_join(t->folder, "data.jsonl");
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < TINY_TRAIN + TINY_VALIDATION; i++) {
        char picture[32];
        snprintf(picture, sizeof picture, "p%d.png", i);
        fputc('{', f);
        if (i % 4 != 3) {
            char *file = path_join(t->folder, picture);
            write_picture(file);
            free(file);
            fprintf(f, "\"image\": \"%s\", ", picture);
        }
        fputs("\"prompt\": \"", f);
        for (int n = 3 + (int)(next_random() % 9); n > 0; n--) fprintf(f, "%s%s", words[next_random() % 12], n > 1 ? " " : "");
        fputs("\", \"answer\": \" yes\"}\n", f);
    }
    fclose(f);
    free(path);
}

void tiny_make(struct tiny *t) {
    const char *root = getenv("TMPDIR");
    struct error err = {{0}};
    t->folder = path_join(root ? root : "/tmp", "stagediff-train-XXXXXX");
    t->config_count = 0;
    if (!mkdtemp(t->folder)) fail_msg("no temporary folder");
    write_data(t);
    char *saes = path_join(t->folder, "saes");
    assert_int_equal(mkdir(saes, 0777), 0);
    for (int l = 0; l < TINY_LAYERS; l++) {
        char name[32];
        struct sae_host s;
        assert_int_equal(sae_random(&s, TINY_D, TINY_M, TINY_K, 5 + (unsigned long)l, &err), 0);
        if (l == 1) { /* a base of another kind: its threshold is dropped by training, kept in the row "base" */
            s.activation = SAE_JUMPRELU;
            s.threshold = memory_take(TINY_M, sizeof *s.threshold);
            for (int i = 0; i < TINY_M; i++) s.threshold[i] = 0.05f;
        }
        snprintf(s.hook, sizeof s.hook, "blocks.%d.hook_resid_post", l);
        snprintf(name, sizeof name, "layer_%d", l);
        char *dir = path_join(saes, name);
        if (sae_save_saelens(&s, dir, &err)) fail_msg("%s", err.text);
        free(dir);
        sae_host_free(&s);
    }
    free(saes);
}

void tiny_remove(struct tiny *t) {
    char command[1024];
    snprintf(command, sizeof command, "rm -rf '%s'", t->folder);
    if (system(command)) print_message("could not remove %s\n", t->folder);
    free(t->folder);
}

char *tiny_config(struct tiny *t, const char *out, const char *train, const char *top) {
    char name[32], *model = realpath("tests/models/golden/tiny_llava", NULL);
    snprintf(name, sizeof name, "config%d.json", t->config_count++);
    char *path = path_join(t->folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(model);
    assert_non_null(f);
    fprintf(f,
            "{\"out\": \"%s\", \"model\": \"%s\", \"saes\": \"saes\", \"data\": {\"train\": \"data.jsonl\", \"train_samples\": %d, "
            "\"validation_samples\": %d},\n"
            "\"train\": {\"k\": %d, \"batch\": 64, \"lr\": 1e-3, \"ring_rows\": 256, \"forward_samples\": 4, \"log_every\": 1%s}%s}\n",
            out, model, TINY_TRAIN, TINY_VALIDATION, TINY_K, train, top);
    fclose(f);
    free(model);
    return path;
}

int tiny_train(const char *config, int threads) {
    struct run_config c;
    struct error err = {{0}};
    sqlite3 *db = NULL;
    char why[256];
    struct device *dev = device_open(0, threads, why, sizeof why);
    assert_non_null(dev);
    if (run_config_open(&c, config, &err) || run_db_open(&db, &c, &err)) fail_msg("%s", err.text);
    int status = stage_train(&c, dev, db, &err);
    if (status < 0) fail_msg("%s", err.text);
    sqlite3_close(db);
    run_config_free(&c);
    device_close(dev);
    return status;
}

char *tiny_path(const struct tiny *t, const char *out, const char *name) {
    char *folder = path_join(t->folder, out), *path = path_join(folder, name);
    free(folder);
    return path;
}

void same_file(const struct tiny *t, const char *a_out, const char *b_out, const char *name) {
    char *a = tiny_path(t, a_out, name), *b = tiny_path(t, b_out, name), *x = NULL, *y = NULL;
    size_t n = 0, m = 0;
    struct error err = {{0}};
    if (file_read(a, 1 << 28, &x, &n, &err) || file_read(b, 1 << 28, &y, &m, &err)) fail_msg("%s", err.text);
    if (n != m || memcmp(x, y, n)) fail_msg("%s and %s differ", a, b);
    free(a), free(b), free(x), free(y);
}

void same_run(const struct tiny *t, const char *a_out, const char *b_out) {
    for (int r = 0; r < REGIME_COUNT; r++)
        for (int l = 0; l < TINY_LAYERS; l++) {
            char name[96];
            snprintf(name, sizeof name, "sae/%s/layer_%d/sae_weights.safetensors", regime_names[r], l);
            same_file(t, a_out, b_out, name);
            snprintf(name, sizeof name, "sae/%s/layer_%d/sparsity.safetensors", regime_names[r], l);
            same_file(t, a_out, b_out, name);
        }
}
