/* fuzz_samples.c - bytes as data lines; those that are good become prompts in every template. */
#include "fuzz.h"
#include "host/samples.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct tokenizer *tok;
    struct samples s = {0};
    struct error err = {""};
    if (!tok && tokenizer_open(&tok, "tests/golden/host/llama3", &err)) abort();
    if (!fuzz_opened(samples_open(&s, fuzz_file("x.jsonl", data, size), &err), &err)) return 0;
    for (size_t i = 0; i < s.count && i < 50; i++)
        for (enum prompt_template t = TEMPLATE_NONE; t <= TEMPLATE_SMOLLM2; t++) {
            struct prompt p = {0};
            if (!fuzz_opened(prompt_build(&p, tok, t, &s.at[i], 3, size % 2, &err), &err)) continue;
            for (int k = 0; k < p.count; k++)
                if (p.kinds[k] >= KIND_COUNT || (p.ids[k] == IMAGE_TOKEN) != (p.kinds[k] == KIND_IMAGE)) abort();
            prompt_free(&p);
        }
    samples_free(&s);
    return 0;
}
