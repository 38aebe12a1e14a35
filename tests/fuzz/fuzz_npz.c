/* fuzz_npz.c - bytes as a numpy archive: a zip as it is, anything else as a .npy inside one. */
#include "fuzz.h"
#include "zip_writer.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const struct zip_part part = {"x.npy", data, size};
    const int is_zip = size >= 2 && !memcmp(data, "PK", 2);
    fuzz_tensors(is_zip ? fuzz_file("x.npz", data, size) : fuzz_zip("x.npz", &part, 1));
    return 0;
}
