/* error.c - the sentence of a fault, and notes on stderr. */
#include "host/error.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int log_quiet = 0;
int log_line_drawn = 0;

int fail(struct error *err, const char *format, ...) {
    if (!err) return -1;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
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
