/* sae_test.h - what the tests of sae/ share: golden tensors, and comparison against a measured error floor. */
#ifndef TESTS_SAE_SAE_TEST_H
#define TESTS_SAE_SAE_TEST_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/file.h" /* before cmocka, which has a macro fail() */
#include "host/tensors.h"
#include "sae/sae.h"

#include <cmocka.h>

/* A tensor of a file as floats; fails the test when it is not there. */
float *golden(const char *file, const char *name, size_t *count);
/* max |ours - f64| <= 2 max |f32 - f64| (f32: the plain single-precision computation), never less than 2 roundings of the largest value.
 * Prints both. */
void check_floor(const char *what, const float *ours, const float *f64, const float *f32, size_t n);
struct device *test_device(int threads);
/* Dense codes (n, M) and reconstruction (n, d) as encode and decode make them. */
void forward(struct device *dev, const struct sae_host *host, const float *x, int n, float *codes, float *reconstruction);
#define GOLDEN "tests/sae/golden/"
/* tests/sae/golden/NAME/INNER is a dictionary of that kind and gives the codes and reconstruction of NAME/expected.safetensors. */
void check_codes(struct device *dev, const char *name, const struct sae_host *s); /* the last of that */
void check_golden(struct device *dev, const char *name, const char *inner, enum sae_format format, enum sae_activation activation, int K,
                  int layer);
/* A new folder under the system's temporary folder; removed by folder_remove. */
char *folder_make(void);
void folder_remove(char *folder);
void write_text(const char *folder, const char *name, const char *text);
#endif
