/* probe.c - the ceilings that the benchmark compares with, measured in the same process: fused multiply-adds that never
 * leave the registers, and a copy of a quarter GB. A shared machine is only as fast as it is now, so both are probed anew
 * beside every table. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "host/progress.h"
#include "kernels/gemm.h"

enum { COPY_BYTES = 128 << 20, TURNS = 25 };

#ifndef STAGEDIFF_BF16
enum { SUMS = 12, LOOPS = 200000 };
typedef float vector __attribute__((vector_size(64)));

/* 12 independent sums of 16: enough for two pipes of four or five cycles' latency, with registers to spare */
static float multiply_add(float start) {
    vector sum[SUMS], a, b;
    for (int l = 0; l < 16; l++) a[l] = 0.999f * start, b[l] = 1e-3f * start;
    for (int i = 0; i < SUMS; i++) sum[i] = a * (float)i;
    for (int n = 0; n < LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) sum[i] = sum[i] * a + b;
    float total = 0;
    for (int i = 0; i < SUMS; i++) total += sum[i][0];
    return total;
}

static double arithmetic(struct device *dev) {
    (void)dev;
    double best = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        float sink = 0;
        int threads = 1;
        double start = seconds_now();
#pragma omp parallel reduction(+ : sink)
        {
#pragma omp single
            threads = omp_get_num_threads();
            sink += multiply_add(1);
        }
        double flops = 2.0 * 16 * SUMS * LOOPS * threads / (seconds_now() - start);
        if (flops > best && sink > -1) best = flops;
    }
    return best * 1e-9;
}
#else
static double arithmetic(struct device *dev) {
    const int N = strcmp(device_name(dev), "sim") ? 4096 : 128;
    struct bench b = {.dev = dev};
    void *x = bench_acts(&b, (size_t)N * (size_t)N, 1), *w = bench_acts(&b, (size_t)N * (size_t)N, 1),
         *y = bench_acts(&b, (size_t)N * (size_t)N, 1);
    double best = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        device_sync(dev);
        double start = seconds_now();
        linear_forward(dev, y, x, w, NULL, N, N, N);
        device_sync(dev);
        double flops = 2.0 * N * N * (double)N / (seconds_now() - start);
        if (flops > best) best = flops;
    }
    bench_free(&b);
    return best * 1e-9;
}
#endif

#ifndef STAGEDIFF_BF16
static void copy(struct device *dev, char *to, const char *from) {
    (void)dev;
#pragma omp parallel for schedule(static)
    for (int part = 0; part < 64; part++)
        memcpy(to + (size_t)part * (COPY_BYTES / 64), from + (size_t)part * (COPY_BYTES / 64), COPY_BYTES / 64);
}
#else
static void copy(struct device *dev, char *to, const char *from) { device_copy(dev, to, from, COPY_BYTES); }
#endif

struct machine probe_machine(struct device *dev) {
    struct bench b = {.dev = dev};
    char *from = bench_zeros(&b, COPY_BYTES), *to = bench_zeros(&b, COPY_BYTES);
    double best = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        double start = seconds_now();
        copy(dev, to, from);
        device_sync(dev);
        double rate = 2.0 * COPY_BYTES / (seconds_now() - start);
        if (rate > best) best = rate;
    }
    bench_free(&b);
    return (struct machine){arithmetic(dev), best * 1e-9};
}

void probe_cool(struct device *dev) {
    static void *spare; /* kept for the life of the program */
    if (!spare) spare = device_alloc(dev, COPY_BYTES);
    if (spare) device_zero(dev, spare, COPY_BYTES);
    device_sync(dev);
}
