/* op_test.h - how an op is tested: seeded inputs rounded to the executor's types, poisoned outputs between guard bands,
 * the double oracle, and an error floor measured on a plain computation in the executor's own precision.
 *
 *   struct op_test t;
 *   op_begin(&t, "rmsnorm N=%d C=%d scale=%g", N, C, scale);            seed = hash of the name
 *   struct op_buffer *x = op_input(&t, OP_ACT, n, scale), *y = op_output(&t, OP_ACT, n);
 *   OP_RUN(&t, rmsnorm_forward(t.dev, y->p, NULL, x->p, w->p, N, C, 1e-5f));   twice, bits compared, guards checked
 *   double *ref = op_ref(&t, n);   ref_rmsnorm_forward(NULL, ref, NULL, x->real, w->real, N, C, 1e-5);
 *   float *plain = op_plain(&t, n);  ... naive float loop, results through op_round(OP_ACT, v)
 *   op_check(&t, y, "y", ref, plain);
 *   op_end(&t);                                                          frees; fails the cmocka test if anything did
 *
 * Accepted: max error <= 2 * floor_max and RMS error <= 1.25 * floor_rms (gradients: 3 and 1.25). The floor is the plain
 * computation's error against double, but never less than what rounding alone may do, or a lucky draw of few elements would
 * be the limit: bf16: one rounding, u * max|ref| and 0.4 u * rms(ref), u = 2^-8; f32: a chain of some, 4 u * max|ref| and
 * 2 u * rms(ref), u = 2^-24; a sum that cancels (op_check_sum): one f32 rounding of sum |terms|. RMS is judged from 32 elements on. NaN is
 * right only where ref has it; infinities must agree. Every check prints both errors, green or not. */
#ifndef TESTS_KERNELS_OP_TEST_H
#define TESTS_KERNELS_OP_TEST_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/device.h"
#include "kernels/op.h"

/* Storage types. OP_ACT is act_t of this executor (f32 on cpu, bf16 on sim), OP_REAL is f32, OP_BF16 always bf16. */
enum op_type { OP_ACT, OP_REAL, OP_BF16, OP_F64, OP_INT, OP_I64, OP_U8, OP_BYTES };

/* One tensor. p is what the op gets. The field of its type holds the same values as the oracle wants them: for an input
 * what the device holds, exactly; for an output what the op wrote, after OP_RUN. The others are NULL. */
struct op_buffer {
    enum op_type type;
    bool output, initialised;
    size_t n;
    void *p;
    double *real;   /* OP_ACT, OP_REAL, OP_BF16, OP_F64 */
    bf16 *low;      /* OP_BF16: the same once more as stored */
    int *ints;      /* OP_INT */
    int64_t *longs; /* OP_I64 */
    uint8_t *bytes; /* OP_U8, OP_BYTES */
    void *base;     /* private: device allocation with its guard bands, stored form of the initial values, bits of turn 0 */
    uint8_t *stored, *first;
};

enum { OP_TEST_BUFFERS = 48, OP_TEST_HOST = 64 };
struct op_test {
    struct device *dev;
    char name[200];
    uint64_t random;
    int failures, buffers, hosts;
    struct op_buffer buffer[OP_TEST_BUFFERS];
    void *host[OP_TEST_HOST];
};

/* Starts a case (printf name) and its random numbers; opens the device once per process. */
void op_begin(struct op_test *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void op_end(struct op_test *t);
/* Counts a failure and prints why. */
void op_fail(struct op_test *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Uniform in [0, 1), standard normal, integer in [0, n). */
double op_uniform(struct op_test *t);
double op_normal(struct op_test *t);
int op_below(struct op_test *t, int n);

/* Rounds to what the type stores (round to nearest even), and back. */
float op_round(enum op_type type, float v);
/* The plain product of n bf16 values as tensor cores add it up: 16 exact products at a time, each sum cut towards zero to f32.
 * Measured on an H100: their sums lie below the double product by about as much as these. */
float op_cut_product(const double *x, const double *w, int n);

/* Inputs on the device: normal values times scale; given values; given integers (as they are). Owned by the case. */
struct op_buffer *op_input(struct op_test *t, enum op_type type, size_t n, double scale);
struct op_buffer *op_given(struct op_test *t, enum op_type type, size_t n, const double *values);
struct op_buffer *op_given_int(struct op_test *t, size_t n, const int *values);
struct op_buffer *op_given_u8(struct op_test *t, size_t n, const uint8_t *values);
/* Outputs: NaN (integers -1) before each turn. op_inout starts each turn from what `initial` holds ([acc], y == x);
 * its fields change to the op's result, so keep the oracle's copy first (op_copy). OP_BYTES: scratch of n bytes, not compared. */
struct op_buffer *op_output(struct op_test *t, enum op_type type, size_t n);
struct op_buffer *op_inout(struct op_test *t, enum op_type type, size_t n, const double *initial);

/* Host arrays owned by the case: NaN-filled; a copy of n doubles. */
double *op_ref(struct op_test *t, size_t n);
float *op_plain(struct op_test *t, size_t n);
double *op_copy(struct op_test *t, const double *values, size_t n);
int *op_ints(struct op_test *t, size_t n);

/* On the cpu turn 0 with three OpenMP threads, turn 1 with one; every output must have the same bits and guards untouched. */
#define OP_RUN(t, call)                                                                                                                    \
    do {                                                                                                                                   \
        for (int turn_ = 0; turn_ < 2; turn_++) {                                                                                          \
            op_before((t), turn_);                                                                                                         \
            call;                                                                                                                          \
            op_after((t), turn_);                                                                                                          \
        }                                                                                                                                  \
    } while (0)
void op_before(struct op_test *t, int turn);
void op_after(struct op_test *t, int turn);

/* Judges an output against the oracle with the floor of `plain`; returns true when accepted. */
bool op_check(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, const float *plain);
bool op_check_gradient(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, const float *plain);
/* For sums: `magnitude` is the largest sum of |terms| of any element. */
bool op_check_sum(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, const float *plain,
                  double magnitude);
bool op_check_gradient_sum(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, const float *plain,
                           double magnitude);
/* Elementwise ops, bf16 outputs only (f32: true): each element within `units` roundings of its own magnitude, 1e-30 apart from zero. */
bool op_check_each(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, double units);
/* Every element equal (copies, permutations), integers equal. */
bool op_check_exact(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref);
bool op_check_ints(struct op_test *t, const struct op_buffer *out, const char *what, const int *ref);

#endif
