/* test_large.c - a checkpoint of LLaMA-3.1-8B's size, 16 GB of holes on disk, as shards of safetensors and as one torch file beyond
 * 4 GB (zip64): opened and understood in under a second, the last bytes read where they are. */
#include "host/file.h"
#include "host/tensors.h"
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define FOLDER "build/test-large"

enum { LAYERS = 32, PER_LAYER = 9, TENSORS = LAYERS * PER_LAYER + 3, SHARDS = 4 };

/* Name and shape of the i-th of LLaMA-3.1-8B's 291 tensors. */
static void describe(int i, char name[96], int64_t shape[2]) {
    static const struct {
        const char *name;
        int64_t shape[2];
    } parts[PER_LAYER] = {
        {"self_attn.q_proj", {4096, 4096}}, {"self_attn.k_proj", {1024, 4096}}, {"self_attn.v_proj", {1024, 4096}},
        {"self_attn.o_proj", {4096, 4096}}, {"mlp.gate_proj", {14336, 4096}},   {"mlp.up_proj", {14336, 4096}},
        {"mlp.down_proj", {4096, 14336}},   {"input_layernorm", {4096, 1}},     {"post_attention_layernorm", {4096, 1}},
    };
    const int layer = i / PER_LAYER;
    if (layer < LAYERS) {
        snprintf(name, 96, "model.layers.%d.%s.weight", layer, parts[i % PER_LAYER].name);
        memcpy(shape, parts[i % PER_LAYER].shape, 2 * sizeof *shape);
    } else {
        snprintf(name, 96, "%s",
                 i == TENSORS - 1   ? "lm_head.weight"
                 : i == TENSORS - 2 ? "model.norm.weight"
                                    : "model.embed_tokens.weight");
        shape[0] = i == TENSORS - 2 ? 4096 : 128256;
        shape[1] = i == TENSORS - 2 ? 1 : 4096;
    }
}

static void put(FILE *f, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) fputc(i < 8 ? (int)(value >> (8 * i) & 255) : 0, f);
}

static void seek(FILE *f, uint64_t at) { assert_int_equal(fseeko(f, (off_t)at, SEEK_SET), 0); }

/* Measures seconds and memory of opening; the last tensor's last element must be 1.5. */
static void open_and_look(const char *path, uint64_t bytes) {
    struct timespec before, after;
    struct rusage was, is;
    struct error err = {""};
    struct tensors *st;
    char name[96];
    int64_t shape[2];
    getrusage(RUSAGE_SELF, &was);
    clock_gettime(CLOCK_MONOTONIC, &before);
    if (tensors_open(&st, path, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < TENSORS; i++) {
        describe(i, name, shape);
        if (!tensors_require(st, name, 2, shape, &err)) fail_msg("%s", err.text);
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    getrusage(RUSAGE_SELF, &is);
    const double seconds = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
    float last[2];
    uint64_t found = 0, part;
    const struct tensor *t = tensors_find(st, "lm_head.weight");
    tensor_to_f32(t, t->count - 2, 2, last);
    assert_true(last[0] == 0 && last[1] == 1.5f);
    for (int i = 0; i < tensors_count(st); i++) found += tensors_at(st, i)->bytes;
    assert_int_equal(found, bytes);
    part = (uint64_t)(is.ru_maxrss - was.ru_maxrss);
    print_message("  %s: %.1f GB opened in %.4f s, %" PRIu64 " KB more memory\n", path, (double)bytes * 1e-9, seconds, part);
    assert_true(seconds < 1);
    assert_true(part < 32 << 10);
    tensors_close(st);
}

static uint64_t total(void) {
    uint64_t bytes = 0;
    for (int i = 0; i < TENSORS; i++) {
        char name[96];
        int64_t shape[2];
        describe(i, name, shape);
        bytes += 2 * (uint64_t)(shape[0] * shape[1]);
    }
    return bytes;
}

static void write_shard(const char *path, int first, int last) {
    char *header = NULL;
    size_t n = 0;
    uint64_t at = 0;
    FILE *h = open_memstream(&header, &n), *f = fopen(path, "wb");
    assert_non_null(f);
    for (int i = first; i < last; i++) {
        char name[96];
        int64_t shape[2];
        describe(i, name, shape);
        const uint64_t end = at + 2 * (uint64_t)(shape[0] * shape[1]);
        fprintf(h, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%" PRId64 ",%" PRId64 "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                i == first ? "{" : ",", name, shape[0], shape[1], at, end);
        at = end;
    }
    fputs("}", h);
    fclose(h);
    put(f, n, 8);
    fwrite(header, 1, n, f);
    seek(f, 8 + n + at - 2);
    put(f, 0x3fc0, 2); /* 1.5 */
    assert_int_equal(fclose(f), 0);
    free(header);
}

static void test_safetensors(void **state) {
    (void)state;
    FILE *index = fopen(FOLDER "/model.safetensors.index.json", "wb");
    assert_non_null(index);
    fprintf(index, "{\"metadata\":{\"total_size\":%" PRIu64 "},\"weight_map\":{", total());
    for (int s = 0; s < SHARDS; s++) {
        char path[96], name[96];
        int64_t shape[2];
        snprintf(path, sizeof path, FOLDER "/model-%05d-of-%05d.safetensors", s + 1, SHARDS);
        const int first = TENSORS * s / SHARDS, last = TENSORS * (s + 1) / SHARDS;
        write_shard(path, first, last);
        for (int i = first; i < last; i++) {
            describe(i, name, shape);
            fprintf(index, "%s\"%s\":\"%s\"", i ? "," : "", name, strrchr(path, '/') + 1);
        }
    }
    fputs("}}", index);
    fclose(index);
    open_and_look(FOLDER, total());
}

/* ---- torch ---- */
static void local_header(FILE *f, const char *name) {
    fputs("PK\3\4", f);
    put(f, 45, 2), put(f, 0, 4), put(f, 0, 8), put(f, UINT32_MAX, 4), put(f, UINT32_MAX, 4), put(f, strlen(name), 2), put(f, 0, 2);
    fputs(name, f);
}

/* As torch writes it: only what needs 64 bits has them, in the extra field. */
static void directory_record(FILE *f, const char *name, uint64_t size, uint64_t at) {
    const bool wide = at >= UINT32_MAX;
    fputs("PK\1\2", f);
    put(f, 45, 2), put(f, 45, 2), put(f, 0, 4), put(f, 0, 8), put(f, size, 4), put(f, size, 4);
    put(f, strlen(name), 2), put(f, wide ? 12 : 0, 2), put(f, 0, 10), put(f, wide ? UINT32_MAX : at, 4);
    fputs(name, f);
    if (wide) put(f, 1, 2), put(f, 8, 2), put(f, at, 8);
}

static void text(FILE *f, const char *s) { fputc('X', f), put(f, strlen(s), 4), fputs(s, f); }
static void whole(FILE *f, int64_t n) { fputs("\x8a\5", f), put(f, (uint64_t)n, 5); }

static void test_torch(void **state) {
    (void)state;
    char *pickle = NULL, *directory = NULL, name[96], entry[32];
    size_t n = 0, directory_bytes = 0;
    int64_t shape[2];
    FILE *p = open_memstream(&pickle, &n), *d = open_memstream(&directory, &directory_bytes);
    FILE *f = fopen(FOLDER "/pytorch_model.bin", "wb");
    assert_non_null(f);
    fputs("\x80\2}(", p);
    uint64_t at = 0;
    for (int i = 0; i < TENSORS; i++) {
        describe(i, name, shape);
        const uint64_t size = 2 * (uint64_t)(shape[0] * shape[1]);
        snprintf(entry, sizeof entry, "m/data/%d", i);
        directory_record(d, entry, size, at);
        seek(f, at);
        local_header(f, entry);
        at += 30 + strlen(entry) + size;
        if (i == TENSORS - 1) {
            seek(f, at - 2);
            put(f, 0x3fc0, 2);
        }
        text(p, name);
        fputs("ctorch._utils\n_rebuild_tensor_v2\n((", p);
        text(p, "storage"), fputs("ctorch\nBFloat16Storage\n", p), text(p, entry + 7), text(p, "cpu");
        whole(p, shape[0] * shape[1]), fputs("tQ", p), whole(p, 0);
        whole(p, shape[0]), whole(p, shape[1]), fputc(0x86, p); /* size, stride */
        whole(p, shape[1]), whole(p, 1), fputc(0x86, p);
        fputs("\x89)tR", p);
    }
    fputs("u.", p);
    fclose(p);
    directory_record(d, "m/data.pkl", n, at);
    fclose(d);
    seek(f, at);
    local_header(f, "m/data.pkl");
    fwrite(pickle, 1, n, f);
    at += 30 + strlen("m/data.pkl") + n;
    fwrite(directory, 1, directory_bytes, f);
    fputs("PK\6\6", f);
    put(f, 44, 8), put(f, 45, 2), put(f, 45, 2), put(f, 0, 8), put(f, TENSORS + 1, 8), put(f, TENSORS + 1, 8), put(f, directory_bytes, 8),
        put(f, at, 8);
    fputs("PK\6\7", f);
    put(f, 0, 4), put(f, at + directory_bytes, 8), put(f, 1, 4);
    fputs("PK\5\6", f);
    put(f, 0, 4), put(f, UINT16_MAX, 2), put(f, UINT16_MAX, 2), put(f, UINT32_MAX, 4), put(f, UINT32_MAX, 4), put(f, 0, 2);
    assert_int_equal(fclose(f), 0);
    free(pickle);
    free(directory);
    open_and_look(FOLDER "/pytorch_model.bin", total());
}

static int setup(void **state) {
    (void)state;
    struct error err;
    return system("rm -rf " FOLDER) ? -1 : dir_create(FOLDER, &err);
}

static int teardown(void **state) { /* du would not mind, cp -r would */
    (void)state;
    return system("rm -rf " FOLDER);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_safetensors), cmocka_unit_test(test_torch)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
