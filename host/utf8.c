/* utf8.c - well-formed UTF-8 (Unicode table 3-7: no overlong forms, no surrogates, up to U+10FFFF) and its repair. */
#include "host/utf8.h"
#include "host/file.h"
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the character at `text`; when it is ill-formed, *bad and the length of the longest part that could begin one
 * (at least 1): what Unicode calls the maximal subpart. */
static size_t step(const unsigned char *t, size_t left, bool *bad) {
    *bad = false;
    unsigned char c = t[0];
    if (c < 0x80) return 1;
    size_t n = c >= 0xc2 && c <= 0xdf ? 2 : c >= 0xe0 && c <= 0xef ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
    unsigned char low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < n; i++) {
        if (i >= left || t[i] < low || t[i] > high) {
            *bad = true;
            return i;
        }
        low = 0x80;
        high = 0xbf;
    }
    *bad = n == 0;
    return n ? n : 1;
}

size_t utf8_valid(const char *text, size_t bytes) {
    size_t i = 0;
    while (i < bytes) {
        bool bad;
        size_t n = step((const unsigned char *)text + i, bytes - i, &bad);
        if (bad) break;
        i += n;
    }
    return i;
}

int utf8_put(char out[4], unsigned c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00u >> n & 0xff) | c);
    return n;
}

size_t utf8_get(const char *text, size_t bytes, unsigned *code_point) {
    bool bad;
    const unsigned char *t = (const unsigned char *)text;
    size_t n = step(t, bytes, &bad);
    unsigned c = n == 1 ? t[0] : t[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) c = c << 6 | (t[i] & 0x3f);
    *code_point = bad ? 0xfffd : c;
    return n;
}

char *utf8_repair(const char *text, size_t *length) {
    size_t bytes = *length;
    char *out = memory_take(3 * bytes + 1, 1);
    size_t used = 0;
    for (size_t i = 0; i < bytes;) {
        bool bad;
        size_t n = step((const unsigned char *)text + i, bytes - i, &bad);
        memcpy(out + used, bad ? "\xef\xbf\xbd" : text + i, bad ? 3 : n);
        used += bad ? 3 : n;
        i += n;
    }
    out[used] = 0;
    *length = used;
    return out;
}
