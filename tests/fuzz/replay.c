/* replay.c - runs a target over the files named, for compilers without libFuzzer. */
#include "fuzz.h"
#include "host/file.h"
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        char *data;
        size_t size;
        struct error err;
        if (file_read(argv[i], 1 << 24, &data, &size, &err)) return fprintf(stderr, "%s\n", err.text), 2;
        fprintf(stderr, "%s\n", argv[i]);            /* the last one printed is the one that failed */
        uint8_t *exact = memory_grow(NULL, size, 1); /* so that ASan sees a byte read past the end */
        for (size_t k = 0; k < size; k++) exact[k] = (uint8_t)data[k];
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
        free(data);
    }
    return 0;
}
