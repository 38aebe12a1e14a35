/* fuzz_tokenizer_model.c - bytes as SentencePiece's tokenizer.model, beside the golden one's settings. */
#include "fuzz.h"
#include "host/file.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const beside[] = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"};
    static bool copied;
    for (int i = 0; i < 3 && !copied; i++) {
        struct error err;
        char *path = path_join("tests/golden/host/pieces", beside[i]), *text;
        size_t bytes;
        if (file_read(path, 1 << 20, &text, &bytes, &err)) abort();
        fuzz_file(beside[i], text, bytes);
        free(text);
        free(path);
    }
    copied = true;
    fuzz_file("tokenizer.model", data, size);
    fuzz_tokenizer(fuzz_folder());
    return 0;
}
