/* fuzz_text.c - text through the tokenizers: what is encoded and decoded again is the text. And as a prompt and a question with a
 * picture, where <image> and special tokens may be spelled in it. */
#include "fuzz.h"
#include "host/samples.h"
#include "host/utf8.h"
#include <stdlib.h>
#include <string.h>

static void round_trip(const struct tokenizer *tok, bool every_byte, const char *text, size_t size) {
    struct token_list ids = {0};
    struct error err = {""};
    size_t bytes;
    if (fuzz_opened(tokenizer_encode(tok, text, size, false, &ids, &err), &err)) {
        char *back = tokenizer_decode_sized(tok, ids.ids, ids.count, false, &bytes);
        if (every_byte && utf8_valid(text, size) == size && (bytes != size || memcmp(back, text, size) != 0)) abort();
        free(back);
    }
    token_list_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct tokenizer *llama3, *gpt2, *pieces;
    struct error err = {""};
    if (!llama3 && (tokenizer_open(&llama3, "tests/golden/host/llama3", &err) || tokenizer_open(&gpt2, "tests/golden/host/gpt2", &err) ||
                    tokenizer_open(&pieces, "tests/golden/host/pieces", &err)))
        abort();
    char *text = malloc(size + 1);
    if (!text) abort();
    if (size) memcpy(text, data, size);
    text[size] = 0;
    round_trip(llama3, true, text, size);
    round_trip(gpt2, false, text, size);   /* its vocabulary lacks some bytes, which are dropped */
    round_trip(pieces, false, text, size); /* puts a blank before it */
    struct sample s = {.id = "0", .image = "x.jpg", .label = -1};
    for (int i = 0; i < 8; i++) {
        struct prompt p = {0};
        s.prompt = i % 2 ? text : NULL;
        s.question = s.answer = i % 2 ? NULL : text;
        if (!fuzz_opened(prompt_build(&p, i / 4 ? pieces : llama3, i / 2 % 2 ? TEMPLATE_LLAMA_3_1 : TEMPLATE_VICUNA_V1, &s, 3, i % 2, &err),
                         &err))
            continue;
        int rows = 0;
        for (int k = 0; k < p.count; k++) rows += p.ids[k] == IMAGE_TOKEN;
        if (rows != 3 || p.image_start < 0) abort();
        prompt_free(&p);
    }
    free(text);
    return 0;
}
