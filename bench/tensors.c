/* tensors.c - tensors for the benchmark, filled with seeded numbers, and the checks of results. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "host/check.h"

const double bench_act_tolerance = sizeof(act_t) == 2 ? 1e-2 : 1e-4;

/* SplitMix64 (Steele, Lea & Flood 2014) */
static uint64_t seed = 1;
static uint64_t random_bits(void) {
    uint64_t z = (seed += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
/* near enough normal: four 16-bit uniforms */
static double normal(void) {
    uint64_t z = random_bits();
    double sum = (double)(z & 0xFFFF) + (double)(z >> 16 & 0xFFFF) + (double)(z >> 32 & 0xFFFF) + (double)(z >> 48);
    return (sum / 65535 - 2) * 1.7320508;
}

static uint16_t low_bits(float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

static void *host(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    CHECK(p, "%zu bytes", bytes);
    return p;
}

void *bench_empty(struct bench *b, size_t bytes) {
    CHECK(b->tensors < BENCH_TENSORS, "%d tensors", b->tensors);
    void *p = device_alloc(b->dev, bytes);
    if (!p) {
        fprintf(stderr, "bench: not enough memory for a tensor of %zu bytes; try a smaller shape\n", bytes);
        exit(2);
    }
    return b->tensor[b->tensors++] = p;
}

static void *given(struct bench *b, void *values, size_t bytes) {
    void *p = bench_empty(b, bytes);
    device_upload(b->dev, p, values, bytes);
    free(values);
    return p;
}

void *bench_floats(struct bench *b, size_t n, double scale) {
    float *v = host(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = (float)(scale * normal());
    return given(b, v, n * sizeof *v);
}

void *bench_acts(struct bench *b, size_t n, double scale) {
    if (sizeof(act_t) == sizeof(float)) return bench_floats(b, n, scale);
    uint16_t *v = host(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = low_bits((float)(scale * normal()));
    return given(b, v, n * sizeof *v);
}

void *bench_lows(struct bench *b, const void *floats, size_t n) {
    float *from = host(n * sizeof *from);
    uint16_t *v = host(n * sizeof *v);
    device_download(b->dev, from, floats, n * sizeof *from);
    for (size_t i = 0; i < n; i++) v[i] = low_bits(from[i]);
    free(from);
    return given(b, v, n * sizeof *v);
}

void *bench_zeros(struct bench *b, size_t bytes) {
    void *p = bench_empty(b, bytes);
    device_zero(b->dev, p, bytes);
    return p;
}

void *bench_ints(struct bench *b, size_t n, const int *values) {
    return given(b, memcpy(host(n * sizeof *values), values, n * sizeof *values), n * sizeof *values);
}

void *bench_below(struct bench *b, size_t n, int below) {
    int *v = host(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = (int)(random_bits() % (uint64_t)below);
    return given(b, v, n * sizeof *v);
}

void bench_free(struct bench *b) {
    for (int i = 0; i < b->tensors; i++) device_free(b->dev, b->tensor[i]);
    b->tensors = 0;
}

static void *read_bytes(struct bench *b, const void *p, size_t first, size_t n, size_t size) {
    void *to = host(n * size);
    device_download(b->dev, to, (const char *)p + first * size, n * size);
    return to;
}

double *bench_read_floats(struct bench *b, const void *p, size_t first, size_t n) {
    float *v = read_bytes(b, p, first, n, sizeof *v);
    double *to = host(n * sizeof *to);
    for (size_t i = 0; i < n; i++) to[i] = (double)v[i];
    free(v);
    return to;
}

double *bench_read_lows(struct bench *b, const void *p, size_t first, size_t n) {
    uint16_t *v = read_bytes(b, p, first, n, sizeof *v);
    double *to = host(n * sizeof *to);
    for (size_t i = 0; i < n; i++) {
        uint32_t u = (uint32_t)v[i] << 16;
        float f;
        memcpy(&f, &u, 4);
        to[i] = (double)f;
    }
    free(v);
    return to;
}

double *bench_read_acts(struct bench *b, const void *p, size_t first, size_t n) {
    return sizeof(act_t) == 2 ? bench_read_lows(b, p, first, n) : bench_read_floats(b, p, first, n);
}

int *bench_read_ints(struct bench *b, const void *p, size_t first, size_t n) { return read_bytes(b, p, first, n, sizeof(int)); }

void bench_expect(struct bench *b, const char *what, const double *got, const double *want, size_t n, double tolerance) {
    double top = 0;
    for (size_t i = 0; i < n; i++) top = fmax(top, fabs(want[i]));
    for (size_t i = 0; i < n && !b->why[0]; i++)
        if (!(fabs(got[i] - want[i]) <= tolerance * top + 1e-30))
            snprintf(b->why, sizeof b->why, "%s element %zu is %.9g, should be %.9g", what, i, got[i], want[i]);
}

void bench_expect_true(struct bench *b, bool ok, const char *what) {
    if (!ok && !b->why[0]) snprintf(b->why, sizeof b->why, "%s", what);
}
