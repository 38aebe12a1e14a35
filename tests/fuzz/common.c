/* common.c - see fuzz.h. */
#include "fuzz.h"
#include "host/file.h"
#include "host/samples.h"
#include "host/tensors.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64];

static void remove_folder(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command)) fprintf(stderr, "%s could not be removed\n", folder);
}

const char *fuzz_folder(void) {
    if (*folder) return folder;
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.40s/fuzz-XXXXXX", parent ? parent : "/tmp");
    if (!mkdtemp(folder)) abort();
    atexit(remove_folder);
    log_quiet = 1;
    return folder;
}

const char *fuzz_file(const char *name, const void *data, size_t size) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
    FILE *f = fopen(path, "wb");
    if (!f || (size && fwrite(data, 1, size, f) != size) || fclose(f)) abort();
    return path;
}

int fuzz_opened(int status, const struct error *err) {
    if (status && (status != -1 || !*err->text || strchr(err->text, '\n'))) {
        fprintf(stderr, "status %d, sentence '%s'\n", status, err->text);
        abort();
    }
    return status == 0;
}

void fuzz_tensors(const char *path) {
    struct tensors *st = NULL;
    struct error err = {""};
    if (!fuzz_opened(tensors_open(&st, path, &err), &err)) return;
    for (int i = 0; i < tensors_count(st); i++) {
        const struct tensor *t = tensors_at(st, i);
        if (tensors_find(st, t->name) != t) abort();
        tensors_require(st, t->name, t->rank, t->shape, &err);
        if (t->dtype == DTYPE_OTHER || t->count > 1 << 20) continue;
        float *x = memory_take(t->count, sizeof *x), last;
        int32_t *n = memory_take(t->count, sizeof *n);
        char *copy = memory_take(t->count, dtype_bytes(t->dtype));
        tensor_to_f32(t, 0, t->count, x);
        if (t->count) { /* alone it is what it was among the others */
            tensor_to_f32(t, t->count - 1, 1, &last);
            if (memcmp(&last, &x[t->count - 1], sizeof last) != 0) abort();
        }
        tensor_to_i32(t, n, &err);
        tensor_copy(t, copy);
        free(x), free(n), free(copy);
    }
    tensors_metadata(st, "format");
    tensors_close(st);
}

void fuzz_tokenizer(const char *dir) {
    static const char *const texts[] = {"", "Hello world, it's 12345!", " \n\t x  ", "größe 名 \xf0\x9f\x98\x80",
                                        "<|begin_of_text|><s>a</s>"};
    struct tokenizer *tok = NULL;
    struct error err = {""};
    if (!fuzz_opened(tokenizer_open(&tok, dir, &err), &err)) return;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct token_list ids = {0};
        if (fuzz_opened(tokenizer_encode(tok, texts[i], strlen(texts[i]), i % 2, &ids, &err), &err)) {
            for (size_t k = 0; k < ids.count; k++)
                if (!tokenizer_piece(tok, ids.ids[k])) abort();
            free(tokenizer_decode(tok, ids.ids, ids.count, i % 2));
        }
        token_list_free(&ids);
    }
    const int out_of_range[] = {-1, tokenizer_vocab(tok), 1 << 30};
    free(tokenizer_decode(tok, out_of_range, 3, false));
    enum prompt_template t;
    fuzz_opened(prompt_template_of(&t, tok, false, &err), &err);
    tokenizer_close(tok);
}
