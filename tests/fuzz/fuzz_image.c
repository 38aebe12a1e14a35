/* fuzz_image.c - bytes as a picture; one that opens is preprocessed, padded and not, and written as PNG. */
#include "fuzz.h"
#include "host/file.h"
#include "host/image.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct image image = {0}, picture = {0};
    struct error err = {""};
    float pixels[3 * 16 * 16];
    struct preprocess p;
    if (!fuzz_opened(image_open(&image, fuzz_file("x.jpg", data, size), &err), &err)) return 0;
    if (image.width < 1 || image.height < 1) abort();
    if ((long)image.width * image.height <= 1 << 20) {
        if (preprocess_open(&p, NULL, &err)) abort();
        p.shortest_edge = p.crop = 16;
        for (int pad = 0; pad < 2; pad++) {
            p.pad_square = pad;
            fuzz_opened(preprocess_image(&p, &image, pixels, &err), &err);
            if (fuzz_opened(preprocess_picture(&p, &image, &picture, &err), &err)) {
                uint8_t *png = NULL;
                size_t bytes;
                if (fuzz_opened(image_write_png(&picture, &png, &bytes, &err), &err)) free(png);
                image_free(&picture);
            }
        }
    }
    image_free(&image);
    return 0;
}
