/* model_test.h - what the tests of models/ share: golden files, batches from token ids, probes that keep what they see. */
#ifndef TESTS_MODELS_MODEL_TEST_H
#define TESTS_MODELS_MODEL_TEST_H
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#undef fail /* host/error.h has a function of that name */
#define FAIL(...) (print_error(__VA_ARGS__), print_error("\n"), _fail(__FILE__, __LINE__))

#include "host/tensors.h"
#include "models/model.h"
#define GOLDEN "tests/models/golden"
#define WORLD  "tools/tinyworld/world"

struct device *test_device(void); /* one for the whole program */
#define MUST(call)                                                                                                                         \
    do {                                                                                                                                   \
        struct error err_;                                                                                                                 \
        struct error *err = &err_;                                                                                                         \
        err->text[0] = 0;                                                                                                                  \
        if (call) FAIL("%s: %s", #call, err->text);                                                                                        \
    } while (0)
void open_model(struct model *m, const char *dir);
struct tensors *open_golden(const char *name);
/* A tensor of the golden file, printf name: as f32 (malloced) or as i32. *count may be NULL. */
float *golden_real(const struct tensors *st, size_t *count, const char *name, ...) __attribute__((format(printf, 3, 4)));
int32_t *golden_int(const struct tensors *st, size_t *count, const char *name, ...) __attribute__((format(printf, 3, 4)));
/* Samples from..from+n of a golden file (<i>/ids, <i>/pixels) packed as model_batch would pack them. */
void golden_batch(struct batch *b, const struct model *m, const struct tensors *st, int from, int n);

struct kept { /* what one point gave at every layer: data[layer+1] (rows, width), layer -1 at [0] */
    enum probe_point point;
    float *data[34];
    int rows, width;
};
int keep_probe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err);
void kept_free(struct kept *k);
/* |a - b| / |b| in RMS over n; 1 when a has a NaN. */
double relative_rms(const float *a, const float *b, size_t n);
#endif
