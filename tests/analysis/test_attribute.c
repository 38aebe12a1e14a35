/* test_attribute.c - attribution patching on the tiny LLaVA against the same with PyTorch's hooks and autograd in double
 * (tools/golden/make_attribution.py): every corruption, gradient and metric, exact patching, batches, the CUDA kernels through
 * build/sim/stagediff, and what is refused. The file says how far PyTorch itself is from double in f32 and in bf16. */
#include "analysis/attribute.h"
#include "host/file.h"
#include "host/tensors.h"
#include "kernels/device.h"
#include "models/llama.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define GOLDEN "tests/analysis/golden/attribute"
#define MODEL  "tests/models/golden/tiny_llava"
enum { LAYER = 1, SAMPLES = 5, N_FEATURES = 5 };
static const int features[N_FEATURES] = {3, 17, 40, 41, 90};
static char sim_program[512];
static struct tensors *golden;
static struct samples samples;
static struct sae_host sae;
static struct model m;

static void must(int status, const struct error *err) {
    if (status) fail_msg("%s", err->text);
}

static float *tensor_of(const struct tensors *st, size_t *n, const char *format, ...) {
    char name[128];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    const struct tensor *t = tensors_find(st, name);
    if (!t) fail_msg("no tensor %s", name);
    float *x = malloc(t->count * sizeof *x);
    tensor_to_f32(t, 0, t->count, x);
    if (n) *n = t->count;
    return x;
}

/* ---- the cases of the golden file ---- */
static const struct golden_case {
    const char *name;
    enum attribute_corruption corruption;
    enum attribute_gradient gradient;
    int steps, exact;
    bool code;
    const char *options; /* the same for the command line */
} cases[] = {
    {"mean", CORRUPT_MEAN, GRADIENT_CORRUPT, 0, 1, false, "--corrupt mean --exact 1"},
    {"zero", CORRUPT_ZERO, GRADIENT_CLEAN, 0, 0, false, "--corrupt zero --gradient clean"},
    {"swap", CORRUPT_SWAP, GRADIENT_PATH, 3, 0, false, "--corrupt swap --gradient ig:3"},
    {"prompt", CORRUPT_PROMPT, GRADIENT_CORRUPT, 0, 0, false, "--corrupt prompt"},
    {"code", CORRUPT_MEAN, GRADIENT_CORRUPT, 0, 2, true, "--corrupt mean --metric code --exact 2"},
};
enum { CASES = sizeof cases / sizeof *cases };

struct sums { /* squared error and size of all scores of a case */
    double error, size, metric;
};

static void compare(struct sums *s, const char *name, size_t i, const float *score, size_t n, const double metric[2]) {
    size_t count;
    float *want = tensor_of(golden, &count, "%s/%zu/score", name, i), *want_metric = tensor_of(golden, NULL, "%s/%zu/metric", name, i);
    assert_int_equal(count, n);
    for (size_t e = 0; e < n; e++) {
        s->error += ((double)score[e] - (double)want[e]) * ((double)score[e] - (double)want[e]);
        s->size += (double)want[e] * (double)want[e];
    }
    for (int run = 0; run < 2; run++)
        s->metric = fmax(s->metric, fabs(metric[run] - (double)want_metric[run]) / (1 + fabs((double)want_metric[run])));
    free(want);
    free(want_metric);
}

struct told {
    const struct golden_case *c;
    struct sums sums;
    size_t next;
    float *kept[SAMPLES];
    size_t sizes[SAMPLES];
};

static void hear(void *context, size_t i, float *score, int T, const double metric[2]) {
    struct told *t = context;
    assert_int_equal(i, t->next++);
    t->sizes[i] = (size_t)(LAYER + 1) * (size_t)m.n_heads * (size_t)T;
    t->kept[i] = score;
    compare(&t->sums, t->c->name, i, score, t->sizes[i], metric);
}

static void forget(struct told *t) {
    for (int i = 0; i < SAMPLES; i++) free(t->kept[i]);
}

static void same_heads(const char *name, const char *what, const double *got, double limit) {
    size_t n;
    float *want = tensor_of(golden, &n, "%s/%s", name, what);
    double error = 0, size = 0;
    for (size_t i = 0; i < n; i++) error += pow(got[i] - (double)want[i], 2), size += pow((double)want[i], 2);
    if (!(sqrt(error / size) <= limit)) fail_msg("%s of %s: relative RMS %g, limit %g", what, name, sqrt(error / size), limit);
    free(want);
}

static void same_exact(const struct golden_case *c, const struct attribution *a, double limit) {
    size_t n;
    float *want = tensor_of(golden, &n, "%s/exact", c->name);
    assert_int_equal(a->n_exact, 2 * c->exact);
    double top = 0;
    for (size_t r = 0; r < n / 4; r++) top = fmax(top, fabs((double)want[4 * r + 2]));
    for (int i = 0; i < a->n_exact; i++) {
        size_t r = 0;
        while (r < n / 4 && ((int)want[4 * r] != a->exact[i].layer || (int)want[4 * r + 1] != a->exact[i].head)) r++;
        assert_true(r < n / 4);
        if (i < c->exact) assert_int_equal(r, i); /* the top heads come first, falling */
        printf("  %s: head %d.%d effect %.6g (PyTorch %.6g), estimate %.6g\n", c->name, a->exact[i].layer, a->exact[i].head,
               a->exact[i].effect, (double)want[4 * r + 2], a->exact[i].estimate);
        assert_true(fabs(a->exact[i].effect - (double)want[4 * r + 2]) <= limit * top);
        assert_true(fabs(a->exact[i].estimate - (double)want[4 * r + 3]) <= limit * top);
    }
    free(want);
}

static struct attribute_job job_of(const struct golden_case *c, const struct attribute_set *set, int batch) {
    return (struct attribute_job){.m = &m,
                                  .samples = &samples,
                                  .sets = set,
                                  .n_sets = 1,
                                  .batch = batch,
                                  .code = c->code,
                                  .corruption = c->corruption,
                                  .gradient = c->gradient,
                                  .steps = c->steps,
                                  .exact = c->exact,
                                  .seed = 5};
}

static void equals_pytorch(void **state) {
    const struct attribute_set set = {LAYER, &sae, features, N_FEATURES};
    (void)state;
    for (int k = 0; k < CASES; k++) {
        struct told first = {.c = &cases[k]}, other = {.c = &cases[k]};
        struct attribution a, b;
        struct error err = {""};
        float *floor = tensor_of(golden, NULL, "%s/floor", cases[k].name);
        struct attribute_job j = job_of(&cases[k], &set, SAMPLES);
        j.sample = hear, j.context = &first;
        must(attribute(&j, &a, &err), &err);
        const double error = sqrt(first.sums.error / first.sums.size);
        printf("  %-6s scores: relative RMS %.2g (PyTorch in f32 %.2g); metric off by %.2g\n", cases[k].name, error, (double)floor[0],
               first.sums.metric);
        assert_true(error <= 2 * (double)floor[0]);
        assert_true(first.sums.metric < 1e-5);
        same_heads(cases[k].name, "signed", a.signed_score, 1e-5);
        same_heads(cases[k].name, "mean_abs", a.mean_abs, 1e-5);
        if (cases[k].exact) same_exact(&cases[k], &a, 1e-5);
        j.batch = 2, j.context = &other; /* another batch: f32 rounding alone */
        must(attribute(&j, &b, &err), &err);
        double far = 0, size = 0;
        for (int i = 0; i < SAMPLES; i++)
            for (size_t e = 0; e < first.sizes[i]; e++)
                far += pow((double)first.kept[i][e] - (double)other.kept[i][e], 2), size += pow((double)first.kept[i][e], 2);
        assert_true(sqrt(far / size) <= 2 * (double)floor[0]);
        for (int i = 0; i < a.n_exact; i++) assert_true(a.exact[i].layer == b.exact[i].layer && a.exact[i].head == b.exact[i].head);
        for (size_t e = 0; (cases[k].corruption != CORRUPT_PROMPT) && e < first.sizes[2]; e++)
            assert_true(first.kept[2][e] == 0); /* no picture */
        attribution_free(&a);
        attribution_free(&b);
        forget(&first);
        forget(&other);
        free(floor);
    }
}

/* Sets of two layers in one pass are the sum of each set alone. */
static void layers_add_up(void **state) {
    static const int low[] = {5, 60};
    const struct attribute_set sets[] = {{0, &sae, low, 2}, {LAYER, &sae, features, N_FEATURES}};
    struct attribution both, one, two;
    struct error err = {""};
    struct attribute_job j = job_of(&cases[0], sets, SAMPLES);
    (void)state;
    j.exact = 4, j.n_sets = 2;
    must(attribute(&j, &both, &err), &err);
    j.n_sets = 1;
    must(attribute(&j, &one, &err), &err);
    j.sets = sets + 1;
    must(attribute(&j, &two, &err), &err);
    assert_int_equal(one.layers, 1);
    assert_int_equal(both.n_exact, both.layers * both.heads);
    for (int i = 0; i < both.layers * both.heads; i++) {
        double sum = two.signed_score[i] + (i < one.layers * one.heads ? one.signed_score[i] : 0), effect = 0;
        assert_true(fabs(both.signed_score[i] - sum) <= 1e-4 * (1 + fabs(sum)));
        for (int e = 0; e < two.n_exact; e++)
            if (two.exact[e].layer == both.exact[i].layer && two.exact[e].head == both.exact[i].head) effect += two.exact[e].effect;
        for (int e = 0; e < one.n_exact; e++)
            if (one.exact[e].layer == both.exact[i].layer && one.exact[e].head == both.exact[i].head) effect += one.exact[e].effect;
        assert_true(fabs(both.exact[i].effect - effect) <= 1e-4 * (1 + fabs(effect)));
    }
    attribution_free(&both);
    attribution_free(&one);
    attribution_free(&two);
}

/* Where heads look: PyTorch's softmax (eager, f32), sample 1. */
static void attention_equals_pytorch(void **state) {
    struct attribute_head heads[4];
    struct batch b;
    struct error err = {""};
    size_t n;
    int rows;
    float *want = tensor_of(golden, &n, "attention"), *got;
    (void)state;
    for (int i = 0; i < 4; i++) heads[i] = (struct attribute_head){(i + 1) % 4 / 2, (i + 1) % 4 % 2}; /* in any order */
    must(model_batch(&m, &b, &samples, 1, 1, false, &err), &err);
    must(attribute_attention(&m, &b, heads, 4, &got, &rows, &err), &err);
    assert_int_equal(rows, 9);
    assert_int_equal(n, 4 * 9);
    for (int i = 0; i < 4 * 9; i++)
        assert_true(fabs((double)got[i] - (double)want[(heads[i / 9].layer * 2 + heads[i / 9].head) * 9 + i % 9]) < 1e-5);
    free(got);
    batch_free(&b);
    must(model_batch(&m, &b, &samples, 2, 1, false, &err), &err); /* no picture */
    must(attribute_attention(&m, &b, heads, 4, &got, &rows, &err), &err);
    assert_int_equal(rows, 0);
    batch_free(&b);
    free(want);
}

/* ---- the kernels, bf16 ---- */
static void sim_is_as_near_as_bf16_can_be(void **state) {
    char dir[] = "/tmp/stagediff_test_XXXXXX", command[2048], path[64];
    int far = 0;
    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/out.safetensors", dir);
    for (int k = 0; k < CASES; k++) {
        struct tensors *st = NULL;
        struct error err = {""};
        struct sums s = {0};
        float *floor = tensor_of(golden, NULL, "%s/floor", cases[k].name);
        snprintf(command, sizeof command,
                 "%s attribute --quiet --model " MODEL " --sae " GOLDEN "/sae --layer %d --features 3,17,40,41,90 --data " GOLDEN
                 "/data.jsonl %s --out %s",
                 sim_program, LAYER, cases[k].options, path);
        if (system(command)) fail_msg("failed: %s", command);
        must(tensors_open(&st, path, &err), &err);
        for (size_t i = 0; i < SAMPLES; i++) {
            size_t n;
            float *score = tensor_of(st, &n, "%zu/score", i), *metric = tensor_of(st, NULL, "%zu/metric", i);
            compare(&s, cases[k].name, i, score, n, (const double[]){(double)metric[0], (double)metric[1]});
            free(score);
            free(metric);
        }
        const double error = sqrt(s.error / s.size);
        printf("  %-6s sim scores: relative RMS %.2g (PyTorch in bf16 %.2g), ratio %.2f\n", cases[k].name, error, (double)floor[1],
               error / (double)floor[1]);
        far += !(error <= 1.25 * (double)floor[1]);
        free(floor);
        tensors_close(st);
    }
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(far, 0);
}

/* ---- what is refused ---- */
static void refused(enum attribute_corruption corruption, const char *text, const char *says) {
    char dir[] = "/tmp/stagediff_test_XXXXXX", path[64];
    struct error err = {""};
    struct samples s;
    struct attribution a;
    const struct attribute_set set = {LAYER, &sae, features, N_FEATURES};
    struct attribute_job j = {.m = &m, .samples = &s, .sets = &set, .n_sets = 1, .batch = 4, .corruption = corruption};
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/data.jsonl", dir);
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
    must(samples_open(&s, path, &err), &err);
    assert_int_equal(attribute(&j, &a, &err), -1);
    printf("  %s\n", err.text);
    assert_non_null(strstr(err.text, says));
    attribution_free(&a);
    samples_free(&s);
    unlink(path);
    rmdir(dir);
}

static void faults_of_the_world(void **state) {
    char *picture = realpath("tests/golden/host/pictures/rgb_32x32.png", NULL), line[1024];
    struct error err = {""};
    int *list = NULL, n, steps;
    enum attribute_gradient g;
    (void)state;
    snprintf(line, sizeof line, "{\"prompt\": \"a\"}\n{\"image\": \"%s\", \"prompt\": \"b\"}\n", picture);
    refused(CORRUPT_SWAP, line, "line 2: no other sample has a picture");
    refused(CORRUPT_PROMPT, "{\"prompt\": \"a\", \"corrupt_prompt\": \"b\"}\n{\"prompt\": \"a\"}\n", "line 2: --corrupt prompt needs");
    refused(CORRUPT_PROMPT, "{\"prompt\": \"ab\", \"corrupt_prompt\": \"abc\"}\n", "line 1: the corrupt prompt has 3 tokens, the prompt 2");
    free(picture);
    static const char *const wrong[] = {"", "3,", ",3", "3,x", "-1", "96", "99999999999999999999", "3 4"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(attribute_features(&list, &n, wrong[i], LAYER, &sae, GOLDEN "/sae", &err), -1);
        free(list);
        list = NULL;
    }
    must(attribute_features(&list, &n, "17,3,17", LAYER, &sae, GOLDEN "/sae", &err), &err);
    assert_true(n == 2 && list[0] == 3 && list[1] == 17);
    free(list);
    assert_int_equal(attribute_features(&list, &n, "task:spatial", LAYER, &sae, GOLDEN "/sae", &err), -1);
    assert_non_null(strstr(err.text, "lies in no run"));
    static const char *const gradients[] = {"", "ig", "ig:", "ig:0", "ig:-3", "ig:2x", "Clean"};
    for (size_t i = 0; i < sizeof gradients / sizeof *gradients; i++)
        assert_int_equal(attribute_gradient_read(gradients[i], &g, &steps, &err), -1);
    must(attribute_gradient_read("ig:8", &g, &steps, &err), &err);
    assert_true(g == GRADIENT_PATH && steps == 8);
}

static int open_all(void **state) {
    char why[256];
    struct error err = {""};
    struct device *dev = device_open(0, 0, why, sizeof why);
    (void)state;
    if (!dev || tensors_open(&golden, GOLDEN "/expected.safetensors", &err) || samples_open(&samples, GOLDEN "/data.jsonl", &err) ||
        attribute_sae(&sae, GOLDEN "/sae", LAYER, &err) || model_open(&m, dev, MODEL, NULL, &err))
        return print_error("%s\n", err.text), -1;
    struct batch b; /* the golden file's tokens are ours */
    must(model_batch(&m, &b, &samples, 0, SAMPLES, false, &err), &err);
    for (int i = 0; i < SAMPLES; i++) {
        char name[32];
        int32_t ids[256];
        snprintf(name, sizeof name, "%d/ids", i);
        const struct tensor *t = tensors_find(golden, name);
        must(tensor_to_i32(t, ids, &err), &err);
        assert_int_equal(t->count, b.cu_seqlens[i + 1] - b.cu_seqlens[i]);
        assert_memory_equal(ids, b.ids + b.cu_seqlens[i], t->count * sizeof *ids);
    }
    batch_free(&b);
    return 0;
}

static int close_all(void **state) {
    struct device *dev = m.dev;
    (void)state;
    model_close(&m);
    device_close(dev);
    sae_host_free(&sae);
    samples_free(&samples);
    tensors_close(golden);
    return 0;
}

int main(int argc, char **argv) {
    const char *mark = argc ? strstr(argv[0], "/cpu/tests/") : NULL;
    const struct CMUnitTest tests[] = {cmocka_unit_test(equals_pytorch), cmocka_unit_test(layers_add_up),
                                       cmocka_unit_test(attention_equals_pytorch), cmocka_unit_test(faults_of_the_world),
                                       cmocka_unit_test(sim_is_as_near_as_bf16_can_be)};
    if (!mark)
        return fprintf(stderr, "run as BUILD/cpu/tests/analysis/test_attribute: the sim program is looked for at BUILD/sim/stagediff\n"), 1;
    snprintf(sim_program, sizeof sim_program, "%.*s/sim/stagediff", (int)(mark - argv[0]), argv[0]);
    return cmocka_run_group_tests_name("attribute", tests, open_all, close_all);
}
