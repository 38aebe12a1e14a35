/* zip_writer.c - see zip_writer.h. */
#include "zip_writer.h"
#include "fuzz.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(FILE *f, size_t value, int bytes) {
    for (int i = 0; i < bytes; i++) fputc(i < 8 ? (int)(value >> (8 * i) & 255) : 0, f);
}

const char *fuzz_zip(const char *name, const struct zip_part *parts, int n) {
    char *archive = NULL, *directory = NULL;
    size_t bytes = 0, directory_bytes = 0;
    FILE *f = open_memstream(&archive, &bytes), *d = open_memstream(&directory, &directory_bytes);
    if (!f || !d) abort();
    for (int i = 0; i < n; i++) {
        const size_t at = (size_t)ftell(f), length = strlen(parts[i].name);
        fputs("PK\1\2", d), put(d, 20, 4), put(d, 0, 12), put(d, parts[i].bytes, 4), put(d, parts[i].bytes, 4), put(d, length, 2);
        put(d, 0, 12), put(d, at, 4), fputs(parts[i].name, d);
        fputs("PK\3\4", f), put(f, 20, 2), put(f, 0, 12), put(f, parts[i].bytes, 4), put(f, parts[i].bytes, 4), put(f, length, 4);
        fputs(parts[i].name, f);
        if (parts[i].bytes) fwrite(parts[i].data, 1, parts[i].bytes, f);
    }
    const size_t at = (size_t)ftell(f);
    fclose(d);
    fwrite(directory, 1, directory_bytes, f);
    fputs("PK\5\6", f), put(f, 0, 4), put(f, (size_t)n, 2), put(f, (size_t)n, 2), put(f, directory_bytes, 4), put(f, at, 4), put(f, 0, 2);
    fclose(f);
    const char *path = fuzz_file(name, archive, bytes);
    free(archive);
    free(directory);
    return path;
}
