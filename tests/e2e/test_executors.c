/* test_executors.c - the CUDA path end to end: build/sim/stagediff (the CUDA kernels, executed by the SIMT layer) against
 * build/cpu/stagediff on the small world: every layer's residual stream, the logits, and SAE training steps.
 * Limits are measured: 1.25 times the error of transformers' own bf16 run (tests/golden/executors.json, by
 * tools/golden/make_executors.py) for hidden states; for training, the effect of bf16 rows and products on the cpu build. */
#include "tests/e2e/relative_rms.h"
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h> /* after host/error.h: cmocka.h has a macro fail() */

#define WORLD "tools/tinyworld/world"
#define STEPS 6
static char build[512], scratch[512];

static void run(const char *format, ...) {
    char command[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    int status = system(command);
    if (status != 0) fail_msg("status %d from: %s", status, command);
}

/* The first n lines of a data file, into WORLD/data so that picture paths stay relative. */
static void few_samples(int n, char *path, size_t bytes) {
    snprintf(path, bytes, "%s/few.jsonl", scratch);
    run("head -%d " WORLD "/data/vqa_test.jsonl | sed 's#\"image\": \"#\"image\": \"'$PWD'/" WORLD "/data/#' > %s", n, path);
}

static void test_forward(void **state) {
    (void)state;
    char data[600], file[2][600];
    few_samples(6, data, sizeof data);
    const char *names[2] = {"cpu", "sim"};
    struct tensors *st[2];
    struct error err;
    for (int e = 0; e < 2; e++) {
        snprintf(file[e], sizeof file[e], "%s/%s.safetensors", scratch, names[e]);
        run("%s/%s/stagediff harvest --quiet --model " WORLD "/vlm --data %s --points 'blocks.*.hook_resid_post,logits' --out %s", build,
            names[e], data, file[e]);
        if (tensors_open(&st[e], file[e], &err) != 0) fail_msg("%s", err.text);
    }
    json_t *golden = json_load_file("tests/golden/executors.json", 0, NULL);
    assert_non_null(golden);
    const char *point;
    json_t *floor;
    int points = 0;
    json_object_foreach(json_object_get(golden, "floors"), point, floor) {
        double rms = relative_rms(st[0], st[1], point), limit = 1.25 * json_real_value(floor);
        assert_true(rms >= 0); /* both have the point, with equal sizes */
        printf("%-28s sim against cpu %.5f, bf16 floor %.5f\n", point, rms, json_real_value(floor));
        if (!(rms <= limit)) fail_msg("%s: %.5f is over %.5f", point, rms, limit);
        if (!(rms > 0)) fail_msg("%s: no difference at all, so bf16 was not used", point);
        points++;
    }
    assert_true(points >= 2);
    json_decref(golden);
    tensors_close(st[0]);
    tensors_close(st[1]);
}

/* The fvu of every step of metrics.jsonl. */
static void read_fvu(const char *dir, double fvu[STEPS]) {
    char path[720], line[1000];
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    for (int s = 0; s < STEPS; s++) {
        assert_non_null(fgets(line, sizeof line, f));
        json_t *row = json_loads(line, 0, NULL);
        fvu[s] = json_number_value(json_object_get(row, "fvu"));
        assert_true(fvu[s] > 0 && fvu[s] < 1e4);
        json_decref(row);
    }
    fclose(f);
}

static void test_sae_steps(void **state) {
    (void)state;
    static const struct {
        const char *name, *executor, *products;
    } runs[] = {{"f32", "cpu", "f32"}, {"bf16", "cpu", "bf16"}, {"sim", "sim", "bf16"}};
    double fvu[3][STEPS], floor = 0, worst = 0;
    for (int r = 0; r < 3; r++) {
        char dir[700];
        snprintf(dir, sizeof dir, "%s/sae-%s", scratch, runs[r].name);
        run("%s/%s/stagediff train --quiet --rows %s/cpu.safetensors --tensor 0/blocks.4.hook_resid_post --random 1024 --k 16 --steps %d"
            " --batch 64 --lr 1e-3 --no-shuffle --products %s --out %s >/dev/null",
            build, runs[r].executor, scratch, STEPS, runs[r].products, dir);
        read_fvu(dir, fvu[r]);
    }
    for (int s = 0; s < STEPS; s++) {
        floor = fmax(floor, fabs(fvu[1][s] - fvu[0][s]));
        worst = fmax(worst, fabs(fvu[2][s] - fvu[0][s]));
        printf("step %d: fvu cpu f32 %.6f, cpu bf16 products %.6f, sim %.6f\n", s, fvu[0][s], fvu[1][s], fvu[2][s]);
    }
    double limit = 2 * floor;
    printf("largest difference %.6f, limit %.6f\n", worst, limit);
    assert_true(worst <= limit);
    assert_true(fvu[2][STEPS - 1] < fvu[2][0]);
}

int main(int argc, char **argv) {
    (void)argc;
    snprintf(build, sizeof build, "%s", argv[0]); /* BUILD/cpu/tests/e2e/test_executors */
    char *cut = strstr(build, "/cpu/tests/");
    if (cut == NULL) return 2;
    *cut = 0;
    snprintf(scratch, sizeof scratch, "/tmp/stagediff-e2e-XXXXXX");
    if (mkdtemp(scratch) == NULL) return 2;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forward), cmocka_unit_test(test_sae_steps)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[600];
    snprintf(command, sizeof command, "rm -rf %s", scratch);
    return system(command) == 0 ? failed : 1;
}
