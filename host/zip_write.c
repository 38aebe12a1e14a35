/* zip_write.c - see zip_write.h. */
#include "host/zip_write.h"
#include "host/check.h"
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { ALIGNMENT = 64, VERSION_STORED = 20, VERSION_ZIP64 = 45, EXTRA_ZIP64 = 1, EXTRA_PADDING = 0x4246, DATE = 0x21 /* 1980-01-01 */ };
static const uint32_t large = 0xffffffff; /* "see the zip64 field" */

static void put(FILE *f, uint64_t value, int width) { /* little endian */
    for (int i = 0; i < width; i++) putc((int)(value >> (8 * i) & 255), f);
}

static uint32_t crc_of(const unsigned char *data, size_t n) {
    uLong crc = crc32(0, NULL, 0);
    for (size_t done = 0; done < n;) {
        uInt step = n - done < 1u << 30 ? (uInt)(n - done) : 1u << 30;
        crc = crc32(crc, data + done, step);
        done += step;
    }
    return (uint32_t)crc;
}

/* What local header and directory share: version to checksum and sizes, length of the name. */
static void put_common(FILE *f, uint32_t crc, uint64_t size, bool zip64, size_t name) {
    put(f, zip64 ? VERSION_ZIP64 : VERSION_STORED, 2);
    put(f, 0, 2), put(f, 0, 2), put(f, 0, 2), put(f, DATE, 2); /* flags, stored, time, date */
    put(f, crc, 4);
    put(f, zip64 ? large : size, 4), put(f, zip64 ? large : size, 4);
    put(f, name, 2);
}

void zip_write_entry(struct zip_write *z, const char *name, const void *data, size_t bytes) {
    if (!z->directory) z->directory = open_memstream(&z->records, &z->record_bytes);
    CHECK(z->directory, "entries=%zu", (size_t)z->entries);
    FILE *f = z->f, *d = z->directory;
    const size_t length = strlen(name);
    const bool zip64 = bytes >= large, far = z->at >= large;
    const uint32_t crc = crc_of(data, bytes);
    const size_t fixed = 30 + length + (zip64 ? 20 : 0) + 4, padding = (ALIGNMENT - (z->at + fixed) % ALIGNMENT) % ALIGNMENT;
    fputs("PK\3\4", f);
    put_common(f, crc, bytes, zip64, length);
    put(f, (zip64 ? 20u : 0u) + 4 + padding, 2);
    fputs(name, f);
    if (zip64) put(f, EXTRA_ZIP64, 2), put(f, 16, 2), put(f, bytes, 8), put(f, bytes, 8);
    put(f, EXTRA_PADDING, 2), put(f, padding, 2);
    for (size_t i = 0; i < padding; i++) putc('Z', f);
    if (bytes) fwrite(data, 1, bytes, f);

    const size_t extra = (zip64 ? 16u : 0u) + (far ? 8u : 0u);
    fputs("PK\1\2", d);
    put(d, zip64 || far ? VERSION_ZIP64 : VERSION_STORED, 2); /* made by */
    put_common(d, crc, bytes, zip64, length);
    put(d, extra ? extra + 4 : 0, 2);
    put(d, 0, 2), put(d, 0, 2), put(d, 0, 2), put(d, 0, 4); /* comment, disk, attributes */
    put(d, far ? large : z->at, 4);
    fputs(name, d);
    if (extra) put(d, EXTRA_ZIP64, 2), put(d, extra, 2);
    if (zip64) put(d, bytes, 8), put(d, bytes, 8);
    if (far) put(d, z->at, 8);
    z->at += fixed + padding + bytes;
    z->entries++;
}

void zip_write_end(struct zip_write *z) {
    FILE *f = z->f;
    if (z->directory) CHECK(!fclose(z->directory), "entries=%zu", (size_t)z->entries);
    const uint64_t size = z->record_bytes, end = z->at + size;
    const bool zip64 = end >= large || z->entries >= 0xffff;
    if (size) fwrite(z->records, 1, size, f);
    if (zip64) {
        fputs("PK\6\6", f);
        put(f, 44, 8), put(f, VERSION_ZIP64, 2), put(f, VERSION_ZIP64, 2), put(f, 0, 4), put(f, 0, 4);
        put(f, z->entries, 8), put(f, z->entries, 8), put(f, size, 8), put(f, z->at, 8);
        fputs("PK\6\7", f);
        put(f, 0, 4), put(f, end, 8), put(f, 1, 4);
    }
    fputs("PK\5\6", f);
    put(f, 0, 4);
    put(f, zip64 ? 0xffff : z->entries, 2), put(f, zip64 ? 0xffff : z->entries, 2);
    put(f, zip64 ? large : size, 4), put(f, zip64 ? large : z->at, 4), put(f, 0, 2);
    free(z->records);
    *z = (struct zip_write){0};
}
