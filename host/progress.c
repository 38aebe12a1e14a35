/* progress.c - the line with done/total, rate and time to go; SIGINT and SIGTERM as a flag that loops look at. */
#include "host/progress.h"
#include "host/error.h"
#include "host/file.h"
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

volatile int stop_signal = 0;

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int drawing(void) {
    static int terminal = -1;
    if (terminal < 0) terminal = isatty(STDERR_FILENO);
    return terminal && !log_quiet;
}

void progress_start(struct progress *p, const char *what, const char *unit, long total) {
    *p = (struct progress){.what = what, .unit = unit, .total = total, .started = seconds_now()};
}

static void write_duration(char out[32], double seconds) {
    long s = seconds < 0 || seconds > 3e8 ? 0 : (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, 32, "%ld h %02ld min", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(out, 32, "%ld min %02ld s", s / 60, s % 60);
    else
        snprintf(out, 32, "%ld s", s);
}

void progress_update(struct progress *p, long done, const char *note) {
    if (!drawing()) return;
    double now = seconds_now(), spent = now - p->started;
    if (now - p->drawn < 0.1 && done != p->total) return;
    p->drawn = now;
    double rate = spent > 0 ? (double)done / spent : 0;
    char left[32] = "?";
    if (done > 0 && p->total > 0) write_duration(left, spent * (double)(p->total - done) / (double)done);
    fprintf(stderr, "\r\033[K%s: ", p->what);
    if (p->total > 0)
        fprintf(stderr, "%ld/%ld %s, %.*f/s, %s left", done, p->total, p->unit, rate < 10 ? 1 : 0, rate, left);
    else
        fprintf(stderr, "%ld %s, %.*f/s", done, p->unit, rate < 10 ? 1 : 0, rate);
    if (note) fprintf(stderr, ", %s", note);
    fflush(stderr);
    log_line_drawn = 1;
}

void progress_end(struct progress *p) {
    if (!drawing() || !p->drawn) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    log_line_drawn = 0;
}

/* The first signal asks; a second one of a user who will not wait ends the program at once. */
static void on_stop(int number) {
    if (stop_signal) {
        file_remove_temporaries();
        _exit(128 + number);
    }
    stop_signal = number;
}

/* The handler runs on a stack of its own: oneDNN's sgemm (2.6, AVX-512) keeps data below the stack pointer, which the frame of a
 * signal on the normal stack overwrites; it ended in "corrupted size vs. prev_size" or wrong sums. */
void stop_install(void) {
    static char stack[1 << 16];
    const stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_stop, .sa_flags = SA_RESTART | (sigaltstack(&own, NULL) ? 0 : SA_ONSTACK)};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}
