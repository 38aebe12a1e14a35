/* error.c - the sentence of a fault, and notes on stderr. */
#include "host/error.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int log_quiet = 0;
int log_line_drawn = 0;

int fail(struct error *err, const char *format, ...)
{
    if (!err)
        return -1;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    return -1;
}

int error_context(struct error *err, const char *format, ...)
{
    if (!err)
        return -1;
    char prefix[512], old[sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    memcpy(old, err->text, sizeof old);
    old[sizeof old - 1] = 0;
    int n = snprintf(err->text, sizeof err->text, "%s: ", prefix);
    size_t used = n < 0 ? 0 : (size_t)n;
    snprintf(err->text + used, sizeof err->text - used, "%s", old);
    return -1;
}

void log_note(const char *format, ...)
{
    if (log_quiet)
        return;
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
