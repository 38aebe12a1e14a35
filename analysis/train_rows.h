/* train_rows.h - the training loop fed from a matrix of rows (`train --rows`). */
#ifndef ANALYSIS_TRAIN_ROWS_H
#define ANALYSIS_TRAIN_ROWS_H
#include "sae/trainer.h"
struct train_rows {
    const char *rows, *tensor; /* file and tensor */
    const char *sae;           /* start, or NULL: random of `features` */
    int features, k;           /* k 0: the start's own, 50 where it has none */
    long steps;
    int batch;
    bool shuffle;
    unsigned long seed;
    struct train_settings settings;
    const char *out;
};
/* 0, -1 with err, 128 + signal with the state saved in `out`: the same call then goes on bit for bit. */
int train_rows(const struct train_rows *job, struct device *dev, struct error *err);
#endif
