/* fuzz_safetensors.c - bytes as a .safetensors file. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_tensors(fuzz_file("x.safetensors", data, size));
    return 0;
}
