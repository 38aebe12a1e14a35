/* zip_writer.c - see zip_writer.h. */
#include "zip_writer.h"
#include "fuzz.h"
#include "host/zip_write.h"
#include <stdlib.h>

const char *fuzz_zip(const char *name, const struct zip_part *parts, int n) {
    char *archive = NULL;
    size_t bytes = 0;
    struct zip_write z = {.f = open_memstream(&archive, &bytes)};
    FILE *f = z.f;
    if (!f) abort();
    for (int i = 0; i < n; i++) zip_write_entry(&z, parts[i].name, parts[i].data, parts[i].bytes);
    zip_write_end(&z);
    fclose(f);
    const char *path = fuzz_file(name, archive, bytes);
    free(archive);
    return path;
}
