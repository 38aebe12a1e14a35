/* fuzz.h - what the fuzz targets share. Each tests/fuzz/fuzz_NAME.c is one libFuzzer target: LLVMFuzzerTestOneInput hands bytes to a
 * reader as a file. `make fuzz` lets clang's libFuzzer look for bytes that crash, hang, leak or take more memory than allowed, under
 * ASan and UBSan; tests/fuzz/test_corpus.sh replays tests/fuzz/corpus/NAME/ (seeds, and every input that once failed) with gcc. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H
#include "host/error.h"
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* A folder of this process, removed at its end. */
const char *fuzz_folder(void);
/* Writes the bytes to folder/name; the path lives until the next call. */
const char *fuzz_file(const char *name, const void *data, size_t size);
/* What every reader owes: 0, or -1 and a sentence. Returns status == 0. */
int fuzz_opened(int status, const struct error *err);
/* Opens the file of tensors at path and uses all of them. */
void fuzz_tensors(const char *path);
/* Opens the tokenizer of the folder, encodes and decodes. */
void fuzz_tokenizer(const char *dir);
#endif
