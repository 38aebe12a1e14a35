/* fuzz_tokenizer.c - JSON as tokenizer.json and as tokenizer_config.json. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_file("tokenizer.json", data, size);
    fuzz_file("tokenizer_config.json", data, size);
    fuzz_tokenizer(fuzz_folder());
    return 0;
}
