/* error.h - the world's faults (file, value, memory, peer): one sentence that says what, where, found, remedy.
 * Functions that can meet them return 0 or -1 and fill *err; commands print it and exit with status 2.
 * Our own bugs abort through CHECK (host/check.h). */
#ifndef HOST_ERROR_H
#define HOST_ERROR_H
struct error {
    char text[1024];
};
/* Writes the sentence, returns -1: `return fail(err, "%s: ...", path)`. A sentence that is already there is kept as it is
 * only by error_context, which puts "prefix: " before it. */
int fail(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
int error_context(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Warnings and notes on stderr, "stagediff: ..." and one newline; silent with --quiet (log_quiet). */
extern int log_quiet;
extern int log_line_drawn; /* a progress line stands on the terminal: cleared before the next note */
void log_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
#endif
