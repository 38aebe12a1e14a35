/* train_test.h - a run small enough to be repeated many times: tests/models/golden/tiny_llava, drawn pictures, random base dictionaries. */
#ifndef TESTS_ANALYSIS_TRAIN_TEST_H
#define TESTS_ANALYSIS_TRAIN_TEST_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/run.h" /* before cmocka, which has a macro fail() */
#include "host/file.h"
#include "host/progress.h"
#include "host/tensors.h"
#include "kernels/device.h"
#include "sae/sae.h"

#include <cmocka.h>

enum { TINY_LAYERS = 2, TINY_D = 48, TINY_M = 80, TINY_K = 6, TINY_TRAIN = 40, TINY_VALIDATION = 19 };
struct tiny { /* a folder with data.jsonl, pictures and saes/layer_N */
    char *folder;
    int config_count;
};
void tiny_make(struct tiny *t);
void tiny_remove(struct tiny *t);
/* Writes a CONFIG.json with OUT = out; `train` is JSON inside the train object ("" or starting with a comma), `top` likewise at the top. */
char *tiny_config(struct tiny *t, const char *out, const char *train, const char *top);
/* stage_train in this process; its return value. db rows stay in OUT/run.db. Fails the test on -1. */
int tiny_train(const char *config, int threads);
char *tiny_path(const struct tiny *t, const char *out, const char *name);
void same_file(const struct tiny *t, const char *a_out, const char *b_out, const char *name);
void same_run(const struct tiny *t, const char *a_out, const char *b_out);
#endif
