/* test_bin.c - the tiny checkpoints once more as pytorch_model.bin, whole and sharded, every matrix stored transposed with the strides
 * that say so: the same logits, bit for bit. */
#include "host/file.h"
#include "host/zip_write.h"
#include "model_test.h"

#define FOLDER "build/test-bin"

/* ---- a writer of torch's pickle ---- */
static void put(FILE *f, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) fputc((int)(value >> (8 * i) & 255), f);
}

static void text(FILE *pickle, const char *s) { fputc('X', pickle), put(pickle, strlen(s), 4), fputs(s, pickle); }

static void whole(FILE *pickle, int64_t n) { fputc('J', pickle), put(pickle, (uint64_t)n, 4); }

/* One tensor, F32 or as it is: its storage as an entry, its call in the pickle; matrices by columns. */
static void add_tensor(struct zip_write *z, FILE *pickle, const struct tensor *t, bool f32) {
    const enum dtype dtype = f32 ? DTYPE_F32 : t->dtype;
    const size_t rows = t->rank == 2 ? (size_t)t->shape[0] : 1, columns = t->count / rows, e = dtype_bytes(dtype);
    char *x = memory_take(t->count, e), *data = memory_take(t->count, e), name[32];
    if (f32)
        tensor_to_f32(t, 0, t->count, (float *)(void *)x);
    else
        tensor_copy(t, x);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) memcpy(data + (j * rows + i) * e, x + (i * columns + j) * e, e);
    free(x);
    snprintf(name, sizeof name, "%d", (int)z->entries);
    text(pickle, t->name);
    fputs("ctorch._utils\n_rebuild_tensor_v2\n((", pickle);
    text(pickle, "storage");
    fprintf(pickle, "ctorch\n%s\n", dtype == DTYPE_F32 ? "FloatStorage" : dtype == DTYPE_BF16 ? "BFloat16Storage" : "LongStorage");
    text(pickle, name), text(pickle, "cpu");
    whole(pickle, (int64_t)t->count);
    fputs("tQ", pickle);
    whole(pickle, 0);
    fputc('(', pickle);
    for (int i = 0; i < t->rank; i++) whole(pickle, t->shape[i]);
    fputs("t(", pickle);
    int64_t step = (int64_t)t->count;
    for (int i = 0; i < t->rank; i++) {
        step /= t->shape[i];
        whole(pickle, t->rank != 2 ? step : i ? t->shape[0] : 1);
    }
    fputs("t\x89"
          "ccollections\nOrderedDict\n)RtR",
          pickle);
    snprintf(name, sizeof name, "m/data/%d", (int)z->entries);
    zip_write_entry(z, name, data, t->count * e);
    free(data);
}

/* Every `step`th tensor from `first`; as a shard (names go to the index's map) or whole and in F32 (map NULL). */
static void write_bin(const char *dir, const char *name, const struct tensors *st, int first, int step, FILE *map) {
    char *path = path_join(dir, name), *pickled = NULL;
    size_t n = 0;
    FILE *file = fopen(path, "wb");
    struct zip_write z = {.f = file};
    assert_non_null(file);
    FILE *pickle = open_memstream(&pickled, &n);
    fputs("\x80\2}(", pickle);
    for (int i = first; i < tensors_count(st); i += step) {
        add_tensor(&z, pickle, tensors_at(st, i), !map);
        if (map) fprintf(map, "%s\"%s\": \"%s\"", ftell(map) > 20 ? ", " : "", tensors_at(st, i)->name, name);
    }
    fputs("u.", pickle);
    fclose(pickle);
    zip_write_entry(&z, "m/data.pkl", pickled, n);
    zip_write_entry(&z, "m/version", "3\n", 2); /* so that torch opens it too */
    zip_write_end(&z);
    assert_int_equal(fclose(file), 0);
    free(pickled);
    free(path);
}

/* dir = a copy of the golden model's folder with its weights as .bin files. */
static void rewrite(const char *dir, const char *golden, bool sharded) {
    struct tensors *st = NULL;
    char command[1024];
    snprintf(command, sizeof command, "mkdir -p %s && cp %s/*.json %s/ && rm -f %s/*.index.json %s/*.bin", dir, golden, dir, dir, dir);
    assert_int_equal(system(command), 0);
    MUST(tensors_open(&st, golden, err));
    if (sharded) {
        char *path = path_join(dir, "pytorch_model.bin.index.json");
        FILE *map = fopen(path, "wb");
        assert_non_null(map);
        fputs("{\"weight_map\":     {", map); /* 20 bytes */
        write_bin(dir, "pytorch_model-00001-of-00002.bin", st, 0, 2, map);
        write_bin(dir, "pytorch_model-00002-of-00002.bin", st, 1, 2, map);
        fputs("}}\n", map);
        fclose(map);
        free(path);
    } else {
        write_bin(dir, "pytorch_model.bin", st, 0, 1, NULL);
    }
    tensors_close(st);
}

static float *logits_of(const char *dir, const char *golden, int n, size_t *count) {
    struct model m;
    struct batch b;
    struct tensors *st = open_golden(golden);
    open_model(&m, dir);
    golden_batch(&b, &m, st, 0, n);
    *count = (size_t)n * (size_t)m.vocab;
    float *last = malloc(*count * sizeof *last);
    MUST(model_forward(&m, &b, NULL, 0, last, err));
    batch_free(&b);
    model_close(&m);
    tensors_close(st);
    return last;
}

static void same_logits(const char *golden, int samples, bool sharded) {
    char dir[128], original[128];
    size_t n, n2;
    snprintf(original, sizeof original, GOLDEN "/%s", golden);
    snprintf(dir, sizeof dir, FOLDER "/%s", golden);
    rewrite(dir, original, sharded);
    float *want = logits_of(original, golden, samples, &n), *got = logits_of(dir, golden, samples, &n2);
    assert_int_equal(n, n2);
    assert_memory_equal(got, want, n * sizeof *got);
    free(want);
    free(got);
}

static void one_bin_is_the_same_model(void **state) {
    (void)state;
    same_logits("tiny_llama", 2, false);
}

static void sharded_bins_are_the_same_model(void **state) {
    (void)state;
    same_logits("tiny_llava", 3, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_bin_is_the_same_model), cmocka_unit_test(sharded_bins_are_the_same_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
