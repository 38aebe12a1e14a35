/* bench.c - build/cpu/bench [OP [--shape ...] [--dtype f32|bf16] [--runs N] [--json]]: time, rates and share of the floor
 * of one op, or of all of them at their usual shapes. An op is timed only after its result was checked against the double
 * oracle or the definition, in the same process and at the same shape. Floor: the larger of counted arithmetic at the
 * probed multiply-add rate and bytes (each tensor once) at the probed copy rate. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench.h"
#include "host/options.h"
#include "host/progress.h"
#include "host/threads.h"
#include "host/check.h"

enum { WARM_UP = 2, MOST_RUNS = 10000 };

struct result {
    double best, median, p90; /* ms */
    int runs;
};

/* --clock thread: processor time of the calling thread, for machines that others use too. With OMP_WAIT_POLICY=passive in the environment
 * it leaves out what the others took, but also any wait for the other threads: an estimate of the quiet machine, no more. */
static bool thread_clock;
static double clock_now(void) {
    if (!thread_clock) return seconds_now();
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double timed_run(struct bench *b) {
    if (!b->op->in_loop) probe_cool(b->dev);
    device_sync(b->dev);
    double start = clock_now();
    b->op->run(b);
    device_sync(b->dev);
    b->runs++;
    return (clock_now() - start) * 1e3;
}

static struct result measure(struct bench *b, int runs) {
    double *ms = malloc((size_t)runs * sizeof *ms);
    CHECK(ms, "%d runs", runs);
    for (int i = 0; i < WARM_UP; i++) timed_run(b);
    for (int i = 0; i < runs; i++) ms[i] = timed_run(b);
    qsort(ms, (size_t)runs, sizeof *ms, compare);
    struct result r = {ms[0], ms[runs / 2], ms[runs * 9 / 10], runs};
    free(ms);
    return r;
}

static double floor_ms(const struct bench *b, struct machine p) {
    double arithmetic = b->flops / (p.gflops * 1e6), memory = b->bytes / (p.copy * 1e6);
    return arithmetic > memory ? arithmetic : memory;
}

static void shape_text(const struct bench *b, char *text, size_t size) {
    text[0] = 0;
    for (int i = 0; b->op->dim[i].name; i++)
        snprintf(text + strlen(text), size - strlen(text), "%s%s=%d", i ? " " : "", b->op->dim[i].name + 2, b->dim[i]);
}

static const char *dtype_text(const struct bench *b) { return (b->op->has_low ? b->low : sizeof(act_t) == 2) ? "bf16" : "f32"; }

static void print_json(const struct bench *b, struct result r, struct machine p) {
    printf("{\"op\": \"%s\", \"device\": \"%s\", \"dtype\": \"%s\", \"shape\": {", b->op->name, device_name(b->dev), dtype_text(b));
    for (int i = 0; b->op->dim[i].name; i++) printf("%s\"%s\": %d", i ? ", " : "", b->op->dim[i].name + 2, b->dim[i]);
    printf("}, \"verified\": true, \"clock\": \"%s\", \"runs\": %d, \"median_ms\": %.4f, \"best_ms\": %.4f, \"p90_ms\": %.4f, ",
           thread_clock ? "thread" : "wall", r.runs, r.median, r.best, r.p90);
    printf("\"gflops\": %.2f, \"gb_per_s\": %.2f, \"floor_ms\": %.4f, \"floor_share\": %.3f, ", b->flops / r.best * 1e-6,
           b->bytes / r.best * 1e-6, floor_ms(b, p), floor_ms(b, p) / r.best);
    printf("\"probe\": {\"fma_gflops\": %.1f, \"copy_gb_per_s\": %.1f}}\n", p.gflops, p.copy);
}

static void print_row(const struct bench *b, struct result r, struct machine p) {
    char shape[200];
    shape_text(b, shape, sizeof shape);
    printf("%-20s %-62s %-4s %10.3f %10.3f %10.3f %8.1f %9.1f %6.0f%%\n", b->op->name, shape, dtype_text(b), r.best, r.median, r.p90,
           b->bytes / r.best * 1e-6, b->flops / r.best * 1e-6, 100 * floor_ms(b, p) / r.best);
    fflush(stdout);
}

static void print_head(struct device *dev, struct machine p) {
    printf("%s; probed now: %.0f GFLOP/s multiply-add, %.1f GB/s copy\n", device_name(dev), p.gflops, p.copy);
    printf("%-20s %-62s %-4s %10s %10s %10s %8s %9s %7s\n", "op", "shape", "type", "best ms", "median", "p90", "GB/s", "GFLOP/s", "floor");
}

/* Prepares, checks, times, prints. 0, or -1 when the result is wrong. */
static int bench_op(struct bench *b, int runs, bool json, const struct machine *known) {
    b->op->prepare(b);
    b->op->run(b);
    b->runs++;
    device_sync(b->dev);
    b->op->verify(b);
    if (b->why[0]) {
        fprintf(stderr, "bench: %s is not timed, its result is wrong: %s\n", b->op->name, b->why);
        bench_free(b);
        return -1;
    }
    struct machine p = known ? *known : probe_machine(b->dev);
    struct result r = measure(b, runs);
    if (json)
        print_json(b, r, p);
    else {
        if (!known) print_head(b->dev, p);
        print_row(b, r, p);
    }
    bench_free(b);
    return 0;
}

static int bench_all(struct device *dev, int runs, bool json) {
    const struct bench_op *tables[] = {bench_model_ops, bench_sae_ops};
    struct machine p = probe_machine(dev);
    int wrong = 0;
    if (!json) print_head(dev, p);
    for (int t = 0; t < 2; t++)
        for (const struct bench_op *op = tables[t]; op->name; op++)
            for (int low = 0; low <= (op->has_low && sizeof(act_t) == sizeof(float) ? 1 : 0); low++) {
                struct bench b = {.dev = dev, .op = op, .low = low};
                for (int i = 0; op->dim[i].name; i++) b.dim[i] = op->dim[i].fallback;
                wrong |= bench_op(&b, runs, json, &p);
            }
    return wrong;
}

static const struct bench_op *find(const char *name) {
    for (const struct bench_op *op = bench_model_ops; op->name; op++)
        if (!strcmp(op->name, name)) return op;
    for (const struct bench_op *op = bench_sae_ops; op->name; op++)
        if (!strcmp(op->name, name)) return op;
    return NULL;
}

static int unknown(const char *name) {
    fprintf(stderr, "bench: there is no op %s; there are:", name);
    for (const struct bench_op *op = bench_model_ops; op->name; op++) fprintf(stderr, " %s", op->name);
    for (const struct bench_op *op = bench_sae_ops; op->name; op++) fprintf(stderr, " %s", op->name);
    fprintf(stderr, "\n");
    return 2;
}

int main(int argc, char **argv) {
    threads_wait_asleep(argv);
    const struct bench_op *op = argc > 1 && argv[1][0] != '-' ? find(argv[1]) : NULL;
    if (argc > 1 && argv[1][0] != '-' && !op) return unknown(argv[1]);
    struct option options[BENCH_DIMS + 6] = {{0}};
    int n = 0;
    for (; op && op->dim[n].name; n++) {
        static char numbers[BENCH_DIMS][16];
        snprintf(numbers[n], sizeof numbers[n], "%d", op->dim[n].fallback);
        options[n] = (struct option){.name = op->dim[n].name,
                                     .type = OPTION_INT,
                                     .low = op->dim[n].least,
                                     .high = 1e9,
                                     .fallback = numbers[n],
                                     .help = op->dim[n].help};
    }
    options[n++] = (struct option){.name = "--dtype",
                                   .type = OPTION_TEXT,
                                   .fallback = sizeof(act_t) == 2 ? "bf16" : "f32",
                                   .help = "f32, or bf16 for ops that take a bf16 operand on the cpu"};
    options[n++] = (struct option){
        .name = "--runs", .type = OPTION_INT, .low = 1, .high = MOST_RUNS, .fallback = "15", .help = "timed runs after the warm-up"};
    options[n++] = (struct option){.name = "--clock",
                                   .type = OPTION_TEXT,
                                   .fallback = "wall",
                                   .help = "wall, or thread: the main thread's processor time (busy machines)"};
    options[n++] = (struct option){.name = "--json", .type = OPTION_FLAG, .help = "one JSON object per line instead of a table"};
    struct command command = {.name = op ? op->name : "bench",
                              .summary = op ? op->what : "time every op",
                              .description = "bench [OP]: without an op, all of them at their usual shapes.",
                              .options = options};
    struct error err = {""};
    int parsed = options_parse(&command, argc - (op ? 2 : 1), argv + (op ? 2 : 1), &err);
    if (parsed > 0) return 0;
    bool low = parsed == 0 && !strcmp(option(&command, "--dtype")->text, "bf16");
    if (parsed == 0 && !low && strcmp(option(&command, "--dtype")->text, "f32"))
        parsed = fail(&err, "--dtype is f32 or bf16, not %s", option(&command, "--dtype")->text);
    if (parsed == 0 && low != (sizeof(act_t) == 2) && !(op && op->has_low))
        parsed = fail(&err, "this op has no --dtype %s on this executor", option(&command, "--dtype")->text);
    struct device *dev = parsed == 0 ? device_open(0, command.threads, err.text, sizeof err.text) : NULL;
    if (!dev) {
        fprintf(stderr, "bench: %s\n", err.text);
        return 2;
    }
    int status;
    thread_clock = !strcmp(option(&command, "--clock")->text, "thread");
    int runs = (int)option(&command, "--runs")->number;
    if (op) {
        struct bench b = {.dev = dev, .op = op, .low = low};
        for (int i = 0; op->dim[i].name; i++) b.dim[i] = (int)options[i].number;
        status = bench_op(&b, runs, option(&command, "--json")->number != 0, NULL);
    } else {
        status = bench_all(dev, runs, option(&command, "--json")->number != 0);
    }
    device_close(dev);
    return status ? 1 : 0;
}
