/* sae_test.c - see sae_test.h. */
#include "tests/sae/sae_test.h"
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/sae_ops.h"

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

static void *on_device(struct device *dev, const void *host, size_t bytes) {
    void *p = device_alloc(dev, bytes);
    assert_non_null(p);
    if (host) device_upload(dev, p, host, bytes);
    return p;
}

void forward(struct device *dev, const struct sae_host *host, const float *x, int n, float *codes, float *reconstruction) {
    struct sae sae;
    struct error err = {{0}};
    int K = sae_fixed_k(host->activation) ? host->K : host->M;
    size_t slots = (size_t)n * (size_t)K, rows = (size_t)n * (size_t)host->d;
    assert_int_equal(sae_upload(&sae, dev, host, n, false, &err), 0);
    float *rows_in = memory_take(rows, sizeof *rows_in), *shift = memory_take((size_t)n, sizeof *shift);
    float *scale = memory_take((size_t)n, sizeof *scale);
    memcpy(rows_in, x, rows * sizeof *rows_in);
    if (host->norm != SAE_NORM_NONE) sae_normalise(host->norm, rows_in, shift, scale, n, host->d);
    float *dx = on_device(dev, rows_in, rows * sizeof *x), *dv = on_device(dev, NULL, slots * sizeof(float));
    float *dr = on_device(dev, NULL, rows * sizeof(float)), *skip = memory_take(rows, sizeof *skip);
    int *di = on_device(dev, NULL, slots * sizeof(int)), *dc = on_device(dev, NULL, (size_t)n * sizeof(int));
    sae_encode(&sae, di, dv, dc, dx, n, K);
    sae_decode(dev, dr, di, dv, sae.D, sae.b_d, n, host->d, K);
    int *indices = memory_take(slots, sizeof *indices);
    float *values = memory_take(slots, sizeof *values);
    device_download(dev, indices, di, slots * sizeof *indices);
    device_download(dev, values, dv, slots * sizeof *values);
    device_download(dev, reconstruction, dr, rows * sizeof *reconstruction);
    if (sae.skip) {
        sae_skip(&sae, dr, dx, n);
        device_download(dev, skip, dr, rows * sizeof *skip);
        for (size_t i = 0; i < rows; i++) reconstruction[i] += skip[i];
    }
    if (host->norm != SAE_NORM_NONE) sae_denormalise(reconstruction, shift, scale, n, host->d);
    memset(codes, 0, (size_t)n * (size_t)host->M * sizeof *codes);
    for (size_t i = 0; i < slots; i++) {
        if (indices[i] < 0) continue;
        if (i % (size_t)K && indices[i] <= indices[i - 1] && values[i] != 0) fail_msg("slot %zu is not ascending", i);
        codes[i / (size_t)K * (size_t)host->M + (size_t)indices[i]] = values[i];
    }
    device_free(dev, dx), device_free(dev, dv), device_free(dev, dr), device_free(dev, di), device_free(dev, dc);
    free(indices), free(values), free(skip), free(rows_in), free(shift), free(scale);
    sae_free(&sae);
}

void check_codes(struct device *dev, const char *name, const struct sae_host *s) {
    char expected[192];
    size_t n, m, N;
    snprintf(expected, sizeof expected, GOLDEN "%s/expected.safetensors", name);
    float *x = golden(expected, "x", &N), *codes = golden(expected, "codes", &n), *codes32 = golden(expected, "codes.f32", NULL);
    float *r = golden(expected, "reconstruction", &m), *r32 = golden(expected, "reconstruction.f32", NULL);
    float *ours = memory_take(n, sizeof *ours), *rebuilt = memory_take(m, sizeof *rebuilt);
    N /= (size_t)s->d;
    assert_true(N * (size_t)s->M == n && N * (size_t)s->d == m);
    forward(dev, s, x, (int)N, ours, rebuilt);
    print_message("  %s\n", name);
    for (size_t i = 0; i < n; i++)
        if ((ours[i] != 0) != (codes[i] != 0))
            fail_msg("%s: row %zu feature %zu: %g, expected %g", name, i / (size_t)s->M, i % (size_t)s->M, (double)ours[i],
                     (double)codes[i]);
    check_floor("codes", ours, codes, codes32, n);
    check_floor("reconstruction", rebuilt, r, r32, m);
    free(x), free(codes), free(codes32), free(r), free(r32), free(ours), free(rebuilt);
}

void check_golden(struct device *dev, const char *name, const char *inner, enum sae_format format, enum sae_activation activation, int K,
                  int layer) {
    char folder[192];
    struct sae_host s, peeked;
    struct error err = {{0}};
    snprintf(folder, sizeof folder, GOLDEN "%s/%s", name, inner);
    if (sae_load(&s, folder, &err) || sae_peek(&peeked, folder, &err)) fail_msg("%s", err.text);
    assert_int_equal(s.format, format);
    assert_int_equal(s.activation, activation);
    assert_int_equal(s.K, K);
    assert_int_equal(s.layer, layer);
    assert_true(peeked.M == s.M && peeked.d == s.d && peeked.K == K && peeked.layer == layer && !peeked.E && !peeked.threshold);
    check_codes(dev, name, &s);
    sae_host_free(&s);
}
