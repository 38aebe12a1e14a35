/* fuzz_tokenizer.c - JSON as tokenizer.json and as tokenizer_config.json; a tokenizer that opens encodes and decodes. */
#include "fuzz.h"
#include "host/samples.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const texts[] = {"", "Hello world, it's 12345!", " \n\t x  ", "größe 名 \xf0\x9f\x98\x80",
                                        "<|begin_of_text|><s>a</s>"};
    struct tokenizer *tok = NULL;
    struct error err = {""};
    fuzz_file("tokenizer.json", data, size);
    fuzz_file("tokenizer_config.json", data, size);
    if (!fuzz_opened(tokenizer_open(&tok, fuzz_folder(), &err), &err)) return 0;
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
    fuzz_opened(prompt_template_of(&t, tok, size % 2, &err), &err);
    tokenizer_close(tok);
    return 0;
}
