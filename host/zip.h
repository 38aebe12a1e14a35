/* zip.h - the directory of a zip archive in memory (APPNOTE 6.3, sections 4.3 and 4.5.3: zip64). Nothing is copied but the names:
 * a stored entry's data is a pointer into the archive, which no library's interface gives (libzip only reads into buffers), and a
 * checkpoint of 16 GB is mapped, not copied. Checked: every offset and size, and that the entries together are not longer than the
 * archive, so that no archive can ask for more memory than deflate's 1032 times its own size. */
#ifndef HOST_ZIP_H
#define HOST_ZIP_H
#include "host/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct zip_entry {
    const char *name;
    const unsigned char *data; /* as stored: `packed` bytes */
    size_t packed, size;       /* equal unless deflated */
    bool deflated;
    uint32_t crc;
};
struct zip { /* entries by name; borrows the archive */
    struct zip_entry *entries;
    size_t count;
    char *names;
};

bool zip_is(const unsigned char *bytes, size_t size); /* begins as a zip archive does */
/* path is for messages. Archives in parts, encrypted entries, other methods and two entries of one name are refused. */
int zip_open(struct zip *z, const char *path, const unsigned char *bytes, size_t size, struct error *err);
void zip_close(struct zip *z);                                           /* a zeroed struct is fine */
const struct zip_entry *zip_find(const struct zip *z, const char *name); /* NULL when absent */
/* The first `count` <= e->size bytes of the entry into dst. The checksum is compared when all bytes of a deflated entry are read; stored
 * data is used where it lies, unread, as in every mapped checkpoint. */
int zip_read(const struct zip_entry *e, const char *path, unsigned char *dst, size_t count, struct error *err);
#endif
