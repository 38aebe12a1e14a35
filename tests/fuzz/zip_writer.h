/* zip_writer.h - a zip of stored entries, so that fuzzed bytes reach what lies behind the archive. */
#ifndef TESTS_FUZZ_ZIP_WRITER_H
#define TESTS_FUZZ_ZIP_WRITER_H
#include <stddef.h>
struct zip_part {
    const char *name;
    const void *data;
    size_t bytes;
};
/* Writes folder/name as fuzz_file does. */
const char *fuzz_zip(const char *name, const struct zip_part *parts, int n);
#endif
