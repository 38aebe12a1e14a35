/* test_train_rows.c - `train --rows` and `encode` from their options to their files: batches as documented, the same bits after stops,
 * inputs of every float type, and the sentences for what cannot be used. */
#include "analysis/rows.h"
#include "analysis/train_rows.h"
#include "host/options.h"
#include "tests/analysis/train_test.h"
#include <signal.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

extern struct command command_encode, command_train;
static char *folder;
#define GOLDEN "tests/sae/golden/train.safetensors"

static char *in_folder(const char *name) { return path_join(folder, name); }

/* stagediff NAME ARGS...: what run() returns, or -1 of the parser. Words are split at blanks; '@' stands for the folder. */
static int stagediff(struct command *cmd, const char *line, struct error *err) {
    static char words[40][256];
    char *argv[40], copy[1024];
    int n = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *w = strtok(copy, " "); w; w = strtok(NULL, " ")) {
        if (w[0] == '@')
            snprintf(words[n], sizeof words[n], "%s/%s", folder, w + 1);
        else
            snprintf(words[n], sizeof words[n], "%s", w);
        argv[n] = words[n];
        n++;
    }
    err->text[0] = 0;
    int status = options_parse(cmd, n, argv, err);
    return status ? status : cmd->run(cmd, err);
}

static void refused(struct command *cmd, const char *line, const char *first, const char *second) {
    struct error err;
    int status = stagediff(cmd, line, &err);
    print_message("    %s\n", err.text);
    if (status != -1 || !strstr(err.text, first) || !strstr(err.text, second))
        fail_msg("%s: status %d, \"%s\" does not say \"%s\" and \"%s\"", line, status, err.text, first, second);
}

static void write_rows(const char *name, enum dtype dtype, int rank, const int64_t *shape, const void *data) {
    struct safetensors_writer *w;
    struct error err = {{0}};
    char *path = in_folder(name);
    assert_int_equal(safetensors_writer_open(&w, path, &err), 0);
    safetensors_writer_add(w, "x", dtype, rank, shape, data);
    if (safetensors_writer_commit(w, &err)) fail_msg("%s", err.text);
    free(path);
}

static void write_start(void) {
    struct tensors *st;
    struct sae_host s = {.activation = SAE_TOPK, .d = 24, .M = 96, .K = 5, .layer = -1};
    struct error err = {{0}};
    assert_int_equal(tensors_open(&st, GOLDEN, &err), 0);
    const struct {
        const char *name;
        float **slot;
    } parts[] = {{"E", &s.E}, {"D", &s.D}, {"b_e", &s.b_e}, {"b_d", &s.b_d}};
    for (size_t i = 0; i < 4; i++) {
        const struct tensor *t = tensors_find(st, parts[i].name);
        *parts[i].slot = memory_take(t->count, sizeof(float));
        tensor_to_f32(t, 0, t->count, *parts[i].slot);
    }
    tensors_close(st);
    char *dir = in_folder("start");
    if (sae_save_saelens(&s, dir, &err)) fail_msg("%s", err.text);
    s.activation = SAE_JUMPRELU;
    s.threshold = memory_take(96, sizeof(float));
    free(dir);
    dir = in_folder("jump");
    if (sae_save_saelens(&s, dir, &err)) fail_msg("%s", err.text);
    free(dir);
    sae_host_free(&s);
}

static double line_number(const char *line, const char *key) {
    json_t *o = json_loads(line, 0, NULL);
    assert_non_null(o);
    double x = json_number_value(json_object_get(o, key));
    json_decref(o);
    return x;
}

static void test_losses(void **state) {
    (void)state;
    struct tensors *st;
    struct error err;
    if (stagediff(&command_train,
                  "--rows " GOLDEN " --tensor x --sae @start --steps 20 --batch 32 --lr 1e-2 --no-shuffle --out @trained --quiet", &err))
        fail_msg("%s", err.text);
    assert_int_equal(tensors_open(&st, GOLDEN, &err), 0);
    float losses[20];
    tensor_to_f32(tensors_find(st, "unit.loss.f64"), 0, 20, losses);
    tensors_close(st);
    char *path = in_folder("trained/metrics.jsonl"), line[256];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    for (int s = 0; s < 20; s++) {
        assert_non_null(fgets(line, sizeof line, f));
        assert_true(line_number(line, "step") == s);
        assert_true(fabs(line_number(line, "loss") - (double)losses[s]) < 2e-6);
        assert_true(line_number(line, "fvu") == line_number(line, "loss") && line_number(line, "l0") == 5);
    }
    assert_null(fgets(line, sizeof line, f));
    fclose(f);
    free(path);
    const char *const left[] = {"trained/state.json", "trained/state.safetensors"};
    for (int i = 0; i < 2; i++) {
        path = in_folder(left[i]);
        assert_false(file_exists(path));
        free(path);
    }
}

static void stop_now(int number) {
    (void)number;
    stop_signal = SIGTERM;
}

static void same(const char *a, const char *b, const char *name) {
    struct tiny t = {.folder = folder};
    same_file(&t, a, b, name);
}

static void test_stops(void **state) {
    (void)state;
    struct error err;
    static const char line[] =
        "--rows " GOLDEN " --tensor x --random 64 --k 4 --steps 300 --batch 100 --lr 1e-3 --seed 3 --quiet --threads 1 --out ";
    char whole[256], stopped[256];
    snprintf(whole, sizeof whole, "%s@whole", line);
    snprintf(stopped, sizeof stopped, "%s@stopped", line);
    if (stagediff(&command_train, whole, &err)) fail_msg("%s", err.text);
    struct sigaction action = {.sa_handler = stop_now, .sa_flags = SA_ONSTACK}; /* as stop_install does */
    stop_install();
    sigaction(SIGALRM, &action, NULL);
    int status, stops = 0;
    for (;; stops++) {
        struct itimerval timer = {.it_value = {.tv_usec = 4000 + 3000 * stops}}, off = {{0}, {0}};
        setitimer(ITIMER_REAL, &timer, NULL);
        status = stagediff(&command_train, stopped, &err);
        setitimer(ITIMER_REAL, &off, NULL);
        stop_signal = 0;
        if (status != 128 + SIGTERM || stops > 200) break;
        refused(&command_train, "--rows " GOLDEN " --tensor x --random 64 --k 4 --steps 300 --batch 99 --lr 1e-3 --out @stopped --quiet",
                "state.json", "another training");
    }
    if (status) fail_msg("%s", err.text);
    print_message("    stopped %d times\n", stops);
    assert_true(stops > 0);
    same("whole", "stopped", "sae_weights.safetensors");
    same("whole", "stopped", "metrics.jsonl");
}

static void test_refused(void **state) {
    (void)state;
    float x[6 * 24];
    for (int i = 0; i < 6 * 24; i++) x[i] = (float)(i % 7) - 3;
    write_rows("good.safetensors", DTYPE_F32, 2, (const int64_t[]){6, 24}, x);
    write_rows("flat.safetensors", DTYPE_F32, 1, (const int64_t[]){144}, x);
    write_rows("none.safetensors", DTYPE_F32, 2, (const int64_t[]){0, 24}, x);
    write_rows("whole_numbers.safetensors", DTYPE_I32, 2, (const int64_t[]){6, 24}, x);
    x[4 * 24 + 7] = INFINITY;
    write_rows("inf.safetensors", DTYPE_F32, 2, (const int64_t[]){6, 24}, x);
    x[4 * 24 + 7] = NAN;
    write_rows("nan.safetensors", DTYPE_F32, 3, (const int64_t[]){2, 3, 24}, x);
#define REST " --steps 2 --batch 4 --lr 1e-3 --out @refused --quiet"
    refused(&command_train, "--rows @nan.safetensors --tensor x --sae @start" REST, "nan.safetensors", "row 4");
    refused(&command_train, "--rows @inf.safetensors --tensor x --sae @start" REST, "inf.safetensors", "row 4");
    refused(&command_train, "--rows @good.safetensors --tensor y --sae @start" REST, "good.safetensors", "no tensor y");
    refused(&command_train, "--rows @flat.safetensors --tensor x --sae @start" REST, "flat.safetensors", "dimensions");
    refused(&command_train, "--rows @none.safetensors --tensor x --sae @start" REST, "none.safetensors", "no rows");
    refused(&command_train, "--rows @whole_numbers.safetensors --tensor x --sae @start" REST, "I32", "floating point");
    refused(&command_train, "--rows @good.safetensors --tensor x --sae tests/sae/golden/saelens_topk" REST, "rows of 16", "found 24");
    refused(&command_train, "--rows @good.safetensors --tensor x --random 8 --k 9" REST, "k 9", "8");
    refused(&command_train, "--rows @good.safetensors --tensor x --random 8" REST, "--k", "--random");
    refused(&command_train, "--rows @good.safetensors --tensor x --random 8 --k 2 --sae @start" REST, "not both", "--sae");
    refused(&command_train, "--rows @good.safetensors --tensor x" REST, "--sae", "--random");
    refused(&command_train, "--rows @good.safetensors --tensor x --sae @start --batch 4 --lr 1 --out @refused", "--steps", "");
    refused(&command_train, "--rows @good.safetensors --tensor x --sae @start --products fp8" REST, "bf16", "fp8");
    refused(&command_train, "--rows @good.safetensors --tensor x --sae @start --steps 1 --batch 4 --lr 1 --out @no/such/folder", "no/such",
            "folder");
    refused(&command_train, "@c.json --rows @good.safetensors", "not both", "CONFIG");
    refused(&command_train, "@c.json --lr 1", "--lr", "CONFIG");
    char *out = in_folder("refused");
    assert_false(dir_exists(out)); /* nothing is left behind */
    free(out);
    refused(&command_encode, "--sae @jump --in @good.safetensors --tensor x --k 4 --out @o.safetensors", "--k", "no k");
    refused(&command_encode, "--sae @start --in @good.safetensors --tensor x --k 97 --out @o.safetensors", "97", "96");
    refused(&command_encode, "--sae tests/sae/golden/saelens_topk --in @good.safetensors --tensor x --out @o.safetensors", "rows of 16",
            "found 24");
    refused(&command_encode, "--sae @start --in @good.safetensors --tensor x --out @no/o.safetensors", "no/o.safetensors", "folder");
    out = in_folder("o.safetensors");
    assert_false(file_exists(out));
    free(out);
}

static float *output(const char *name, const char *tensor, int64_t *rows, int64_t *columns) {
    struct tensors *st;
    struct error err;
    char *path = in_folder(name);
    if (tensors_open(&st, path, &err)) fail_msg("%s", err.text);
    const struct tensor *t = tensors_find(st, tensor);
    assert_non_null(t);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->dtype, strcmp(tensor, "indices") ? DTYPE_F32 : DTYPE_I32);
    *rows = t->shape[0], *columns = t->shape[1];
    float *x = memory_take(t->count + 1, sizeof *x);
    tensor_to_f32(t, 0, t->count, x);
    tensors_close(st);
    free(path);
    return x;
}

/* Rows of a JumpReLU dictionary with more active features than the first try has room for, in every float type; padded codes give the
 * reconstruction that stands beside them. */
static void test_encode(void **state) {
    (void)state;
    enum { N = 40, WIDE_M = 700, WIDE_D = 12 };
    struct sae_host s;
    struct error err;
    float x[N * WIDE_D];
    double wide[N * WIDE_D];
    assert_int_equal(sae_random(&s, WIDE_D, WIDE_M, 1, 3, &err), 0);
    s.activation = SAE_JUMPRELU;
    s.threshold = memory_take(WIDE_M, sizeof(float));
    for (int f = 0; f < WIDE_M; f++) s.threshold[f] = 0.05f * (float)(f % 5);
    char *dir = in_folder("wide");
    assert_int_equal(sae_save_saelens(&s, dir, &err), 0);
    free(dir);
    for (int i = 0; i < N * WIDE_D; i++) wide[i] = x[i] = (float)((i * 37 % 101) - 50) / 32 * (i / WIDE_D == 11 ? 0 : 1); /* exact in f32 */
    write_rows("wide32.safetensors", DTYPE_F32, 2, (const int64_t[]){N, WIDE_D}, x);
    write_rows("wide64.safetensors", DTYPE_F64, 3, (const int64_t[]){4, N / 4, WIDE_D}, wide);
    if (stagediff(&command_encode, "--sae @wide --in @wide32.safetensors --tensor x --out @o32.safetensors --quiet", &err) ||
        stagediff(&command_encode, "--sae @wide --in @wide64.safetensors --tensor x --out @o64.safetensors --quiet --threads 1", &err))
        fail_msg("%s", err.text);
    int64_t n, K, rows, d;
    float *indices = output("o64.safetensors", "indices", &n, &K), *values = output("o64.safetensors", "values", &rows, &d),
          *rebuilt = output("o32.safetensors", "reconstruction", &rows, &d);
    assert_int_equal(n, N);
    assert_int_equal(d, WIDE_D);
    assert_true(K > 128);
    int64_t widest = 0;
    for (int r = 0; r < N; r++) {
        double y[WIDE_D] = {0};
        int64_t count = 0;
        for (int64_t k = 0; k < K; k++) {
            int f = (int)indices[r * K + k];
            if (f < 0) {
                assert_true(values[r * K + k] == 0);
                continue;
            }
            assert_int_equal(count, k); /* no hole before it */
            assert_true(k == 0 || indices[r * K + k - 1] < (float)f);
            assert_true(values[r * K + k] > s.threshold[f]);
            for (int i = 0; i < WIDE_D; i++) y[i] += (double)values[r * K + k] * (double)s.D[f * WIDE_D + i];
            count++;
        }
        widest = count > widest ? count : widest;
        for (int i = 0; i < WIDE_D; i++) assert_true(fabs(y[i] - (double)rebuilt[r * WIDE_D + i]) < 1e-4);
        if (r == 11) assert_int_equal(count, 0);
    }
    assert_int_equal(widest, K);
    free(indices), free(values), free(rebuilt);
    sae_host_free(&s);
}

static void test_shuffle(void **state) {
    (void)state;
    enum { N = 1000 };
    int a[N], b[N], seen[N] = {0}, moved = 0;
    for (int i = 0; i < N; i++) a[i] = b[i] = i;
    shuffle(a, N, seed_mix(1, 2, 3)), shuffle(b, N, seed_mix(1, 2, 4));
    for (int i = 0; i < N; i++) {
        seen[a[i]]++;
        moved += a[i] != b[i];
    }
    for (int i = 0; i < N; i++) assert_int_equal(seen[i], 1);
    assert_true(moved > 900);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_losses), cmocka_unit_test(test_stops), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_encode), cmocka_unit_test(test_shuffle)};
    const char *root = getenv("TMPDIR");
    char command[1024];
    folder = path_join(root ? root : "/tmp", "stagediff-rows-XXXXXX");
    if (!mkdtemp(folder)) return 1;
    log_quiet = 1;
    write_start();
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command)) return 1;
    free(folder);
    return failures;
}
