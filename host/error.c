/* error.c - the sentence of a fault, and notes on stderr. */
#include "host/error.h"
#include "host/utf8.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int log_quiet = 0;
int log_line_drawn = 0;

/* Names and values out of files stand in sentences: what is no UTF-8 (a cut at the end too) and every control character becomes '?',
 * so that a sentence stays one line, cannot steer a terminal, and can be written as JSON. */
static void clean(char *text) {
    size_t n = strlen(text);
    for (size_t i = utf8_valid(text, n); i < n; i += utf8_valid(text + i, n - i)) text[i] = '?';
    for (unsigned char *c = (unsigned char *)text; *c; c++)
        if (*c < 0x20 || *c == 0x7f || (*c == 0xc2 && c[1] < 0xa0)) { /* U+0080 to U+009F are controls too */
            if (*c == 0xc2) c[1] = '?';
            *c = '?';
        }
}

int fail(struct error *err, const char *format, ...) {
    if (!err) return -1;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    clean(err->text);
    return -1;
}

int error_context(struct error *err, const char *format, ...) {
    if (!err) return -1;
    char joined[sizeof err->text], *end = joined + sizeof joined - 1;
    va_list args;
    va_start(args, format);
    vsnprintf(joined, 512, format, args);
    va_end(args);
    char *at = stpcpy(joined + strlen(joined), ": ");
    size_t room = (size_t)(end - at), n = strnlen(err->text, sizeof err->text - 1);
    memcpy(at, err->text, n < room ? n : room);
    at[n < room ? n : room] = 0;
    strcpy(err->text, joined);
    clean(err->text);
    return -1;
}

void log_note(const char *format, ...) {
    if (log_quiet) return;
    if (log_line_drawn) {
        fputs("\r\033[K", stderr);
        log_line_drawn = 0;
    }
    fputs("stagediff: ", stderr);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}
