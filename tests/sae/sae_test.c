/* sae_test.c - see sae_test.h. */
#include "tests/sae/sae_test.h"
#include <sys/stat.h>
#include <unistd.h>

float *golden(const char *file, const char *name, size_t *count) {
    struct tensors *st = NULL;
    struct error err = {{0}};
    if (tensors_open(&st, file, &err)) fail_msg("%s", err.text);
    const struct tensor *t = tensors_find(st, name);
    if (!t) fail_msg("%s: no %s", file, name);
    float *x = memory_take(t->count, sizeof *x);
    tensor_to_f32(t, 0, t->count, x);
    if (count) *count = t->count;
    tensors_close(st);
    return x;
}

void check_floor(const char *what, const float *ours, const float *f64, const float *f32, size_t n) {
    double error = 0, floor = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        error = fmax(error, fabs((double)ours[i] - (double)f64[i]));
        floor = fmax(floor, fabs((double)f32[i] - (double)f64[i]));
        largest = fmax(largest, fabs((double)f64[i]));
        if (isnan(ours[i])) error = INFINITY;
    }
    floor = fmax(floor, largest * 0x1p-24);
    print_message("    %-28s error %.3g, floor %.3g\n", what, error, floor);
    if (!(error <= 2 * floor)) fail_msg("%s: error %g above twice the floor %g", what, error, floor);
}

struct device *test_device(int threads) {
    char why[256];
    struct device *dev = device_open(0, threads, why, sizeof why);
    if (!dev) fail_msg("%s", why);
    return dev;
}

char *folder_make(void) {
    const char *root = getenv("TMPDIR");
    char *folder = path_join(root ? root : "/tmp", "stagediff-test-XXXXXX");
    if (!mkdtemp(folder)) fail_msg("no temporary folder");
    return folder;
}

void folder_remove(char *folder) {
    char command[1024];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command)) print_message("could not remove %s\n", folder);
    free(folder);
}

void write_text(const char *folder, const char *name, const char *text) {
    char *path = path_join(folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    free(path);
}
