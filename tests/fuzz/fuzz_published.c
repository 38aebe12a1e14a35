/* fuzz_published.c - bytes as VQAv2's questions, their annotations, COCO's captions or VSR's lines: the file is both data and annotations.
 */
#include "fuzz.h"
#include "host/samples.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct samples s = {0};
    struct error err = {""};
    char path[4096];
    strncpy(path, fuzz_file("x.json", data, size), sizeof path - 1);
    path[sizeof path - 1] = 0;
    for (int both = 0; both < 2; both++) {
        if (!fuzz_opened(samples_open_published(&s, path, both ? path : NULL, NULL, &err), &err)) continue;
        for (size_t i = 0; i < s.count; i++)
            if (!s.at[i].id || !s.at[i].json) abort();
        samples_free(&s);
    }
    return 0;
}
