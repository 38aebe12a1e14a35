/* bench.h - what the parts of the benchmark share: one table row per op, tensors with known contents, checks, probes. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/device.h"
#include "kernels/op.h"

enum { BENCH_DIMS = 8, BENCH_TENSORS = 48 };

/* One op at one shape. Owns its tensors. */
struct bench {
    struct device *dev;
    const struct bench_op *op;
    int dim[BENCH_DIMS]; /* in the order of the op's table */
    bool low;            /* --dtype bf16 where the op has the choice */
    void *tensor[BENCH_TENSORS];
    int tensors;
    long runs;           /* finished so far: ops with state count their steps by it */
    double flops, bytes; /* of one run: counted arithmetic, and traffic if each tensor moved once */
    char why[200];       /* first failed check */
};

struct bench_dim {
    const char *name, *help; /* "--rows" */
    int fallback, least;
};

struct bench_op {
    const char *name, *what;
    struct bench_dim dim[BENCH_DIMS]; /* ends with name NULL */
    bool has_low;                     /* takes --dtype bf16 on the cpu executor */
    bool in_loop;                     /* runs follow each other as in use: no cold caches in between */
    void (*prepare)(struct bench *b); /* tensors, flops, bytes */
    void (*run)(struct bench *b);
    void (*verify)(struct bench *b); /* after one run; bench_expect fills why */
};
extern const struct bench_op bench_model_ops[], bench_sae_ops[]; /* end with name NULL */

/* ---- prefill.c ---- */
void prefill_prepare(struct bench *b);
void prefill_run(struct bench *b);
void prefill_verify(struct bench *b);

/* ---- attribution.c ---- */
void attribution_prepare(struct bench *b);
void attribution_run(struct bench *b);
void attribution_verify(struct bench *b);

/* ---- model.c ---- */
enum { BENCH_VOCAB = 1024 };
struct llama;
struct llama_rows;
/* Random weights and one sequence; dims 0 to 5: width, layers, heads, kv heads, mlp, tokens. Sets flops and bytes of a prefill. m: all
 * zero, or made by this before. */
void bench_llama(struct bench *b, struct llama *m, struct llama_rows *rows);

/* ---- tensors.c ---- */
void *bench_floats(struct bench *b, size_t n, double scale);     /* f32, normal values times scale */
void *bench_acts(struct bench *b, size_t n, double scale);       /* act_t */
void *bench_lows(struct bench *b, const void *floats, size_t n); /* bf16 copy of an f32 tensor */
void *bench_zeros(struct bench *b, size_t bytes);
void *bench_empty(struct bench *b, size_t bytes);
void *bench_ints(struct bench *b, size_t n, const int *values);
void *bench_below(struct bench *b, size_t n, int below); /* uniform integers */
void bench_free(struct bench *b);

/* Elements [first, first + n) of a device tensor as doubles or ints; malloced. */
double *bench_read_floats(struct bench *b, const void *p, size_t first, size_t n);
double *bench_read_acts(struct bench *b, const void *p, size_t first, size_t n);
double *bench_read_lows(struct bench *b, const void *p, size_t first, size_t n);
int *bench_read_ints(struct bench *b, const void *p, size_t first, size_t n);
/* got within tolerance * largest |want| of want, everywhere; else notes what and where */
void bench_expect(struct bench *b, const char *what, const double *got, const double *want, size_t n, double tolerance);
void bench_expect_true(struct bench *b, bool ok, const char *what);
extern const double bench_act_tolerance; /* of results stored as act_t */

/* ---- probe.c: what this machine can do at most, now ---- */
struct machine {
    double gflops; /* f32 fused multiply-adds on the cpu; bf16 products of 4096^3 on a GPU */
    double copy;   /* GB/s, read and write counted */
};
struct machine probe_machine(struct device *dev);
/* Pushes everything else out of the caches. */
void probe_cool(struct device *dev);
#endif
