/* fuzz_config.c - JSON as config.json of a checkpoint and of a tower, and as both files of image settings. */
#include "fuzz.h"
#include "host/image.h"
#include "models/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct checkpoint_config c = {0};
    struct clip_config tower;
    struct preprocess p;
    struct error err = {""};
    fuzz_file("config.json", data, size);
    fuzz_file("generation_config.json", data, size);
    fuzz_file("preprocessor_config.json", data, size);
    if (fuzz_opened(config_open(&c, fuzz_folder(), &err), &err)) fuzz_opened(config_select(&c, fuzz_folder(), &err), &err);
    fuzz_opened(config_tower_open(&tower, fuzz_folder(), &err), &err);
    fuzz_opened(preprocess_open(&p, fuzz_folder(), &err), &err);
    fuzz_opened(preprocess_open_model(&p, fuzz_folder(), NULL, &err), &err);
    return 0;
}
