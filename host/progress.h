/* progress.h - one line on a terminal (done/total, rate, ETA); silent when stderr is no terminal or with --quiet. */
#ifndef HOST_PROGRESS_H
#define HOST_PROGRESS_H
struct progress {
    const char *what, *unit;
    long total;
    double started, drawn;
};
void progress_start(struct progress *p, const char *what, const char *unit, long total);
void progress_update(struct progress *p, long done, const char *note); /* note may be NULL */
void progress_end(struct progress *p);
double seconds_now(void); /* monotonic */
/* Set by SIGINT/SIGTERM after stop_install(): loops look at it and save. 0 or the signal's number. */
extern volatile int stop_signal;
void stop_install(void);
#endif
