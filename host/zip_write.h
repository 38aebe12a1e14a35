/* zip_write.h - writes a zip of stored entries (APPNOTE 6.3). Data start at multiples of 64, as in torch's own archives; sizes and offsets
 * of 4 GiB and more go to zip64 fields. */
#ifndef HOST_ZIP_WRITE_H
#define HOST_ZIP_WRITE_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
struct zip_write {   /* of all zero with f set is an empty archive; ended with zip_write_end */
    FILE *f;         /* borrowed, at its beginning; what fails shows in ferror */
    FILE *directory; /* the rest is its own */
    char *records;
    size_t record_bytes;
    uint64_t at, entries;
};
void zip_write_entry(struct zip_write *z, const char *name, const void *data, size_t bytes);
void zip_write_end(struct zip_write *z); /* the directory */
#endif
