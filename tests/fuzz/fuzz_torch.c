/* fuzz_torch.c - bytes as a torch file: a zip as it is, anything else as the pickle inside one, beside two storages. */
#include "fuzz.h"
#include "zip_writer.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char storage[64] = "torch storage";
    const struct zip_part parts[] = {{"x/data.pkl", data, size}, {"x/data/0", storage, sizeof storage}, {"x/data/1", storage, 8}};
    const int is_zip = size >= 2 && !memcmp(data, "PK", 2);
    fuzz_tensors(is_zip ? fuzz_file("x.pt", data, size) : fuzz_zip("x.pt", parts, 3));
    return 0;
}
