/* ahead.c - see ahead.h. */
#include "models/ahead.h"
#include "host/check.h"
#include <omp.h>
#include <signal.h>
#include <string.h>

static void *make(void *context) {
    struct ahead *a = context;
    omp_set_num_threads(a->threads); /* a thread of its own has settings of its own */
    a->status = model_batch(a->m, &a->batch, a->s, a->first, a->n, a->with_answer, &a->err);
    return NULL;
}

static void wait_for(struct ahead *a) {
    if (a->state != AHEAD_RUNNING) return;
    pthread_join(a->thread, NULL);
    a->state = AHEAD_READY;
}

static void drop(struct ahead *a) {
    wait_for(a);
    if (a->state == AHEAD_READY && !a->status) batch_free(&a->batch);
    a->state = AHEAD_NOTHING;
}

int ahead_take(struct ahead *a, struct batch *b, size_t first, size_t n, struct error *err) {
    if (a->state == AHEAD_NOTHING || a->first != first || a->n != n) {
        drop(a);
        return model_batch(a->m, b, a->s, first, n, a->with_answer, err);
    }
    wait_for(a);
    a->state = AHEAD_NOTHING;
    *b = a->batch;
    if (a->status) *err = a->err;
    return a->status;
}

void ahead_start(struct ahead *a, size_t first, size_t n) {
    sigset_t all, before;
    drop(a);
    if (!n) return;
    CHECK(first + n <= a->s->count, "first=%zu n=%zu count=%zu", first, n, a->s->count);
    a->first = first;
    a->n = n;
    a->threads = omp_get_max_threads();
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
    if (!pthread_create(&a->thread, NULL, make, a)) a->state = AHEAD_RUNNING;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int ahead_next(struct ahead *a, struct batch *b, size_t first, size_t size, size_t end, struct error *err) {
    const size_t n = end - first < size ? end - first : size, next = first + n;
    const int status = ahead_take(a, b, first, n, err);
    if (!status) ahead_start(a, next, end - next < size ? end - next : size);
    return status;
}

void ahead_return(struct ahead *a, struct batch *b, size_t first) {
    drop(a);
    a->batch = *b;
    a->first = first;
    a->n = (size_t)b->n_samples;
    a->status = 0;
    a->state = AHEAD_READY;
    memset(b, 0, sizeof *b);
}

void ahead_end(struct ahead *a) { drop(a); }
