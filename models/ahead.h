/* ahead.h - batches made ahead: while the model runs one, a thread tokenises, decodes and preprocesses the next. */
#ifndef MODELS_AHEAD_H
#define MODELS_AHEAD_H
#include "models/model.h"
#include <pthread.h>
#include <stddef.h>

struct ahead {             /* one of all zero with its first three set is ready; ended with ahead_end */
    const struct model *m; /* these two outlive it */
    const struct samples *s;
    bool with_answer;
    enum { AHEAD_NOTHING, AHEAD_RUNNING, AHEAD_READY } state;
    pthread_t thread;
    int threads; /* OpenMP's, those of whoever began it */
    size_t first, n;
    struct batch batch;
    int status;
    struct error err;
};
/* model_batch of samples [first, first + n): the batch made ahead when it is this one, else made now. */
int ahead_take(struct ahead *a, struct batch *b, size_t first, size_t n, struct error *err);
/* Begins to make samples [first, first + n) < s->count; n 0: nothing. What was made ahead and not taken is dropped. */
void ahead_start(struct ahead *a, size_t first, size_t n);
/* Both, for a pass over samples [.., end), `size` a batch: takes the batch that begins at `first` and starts the one behind it. */
int ahead_next(struct ahead *a, struct batch *b, size_t first, size_t size, size_t end, struct error *err);
/* Puts back a batch just taken: the next ahead_take of the same samples gets it. */
void ahead_return(struct ahead *a, struct batch *b, size_t first);
void ahead_end(struct ahead *a); /* also of one that is all zero */
#endif
