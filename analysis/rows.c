/* rows.c - a matrix of activations in a safetensors file, fed to the device in batches; seeded shuffles. */
#include "analysis/rows.h"
#include "host/file.h"
#include "host/tensors.h"
#include "host/check.h"
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/activation.h"

enum { BAND = 256 };

static int check_finite(const struct rows *r, const char *path, struct error *err) {
    size_t d = (size_t)r->d;
    float *band = memory_take(BAND * d, sizeof *band);
    long bad = -1;
    double value = 0;
    for (int first = 0; first < r->n && bad < 0; first += BAND) {
        int n = r->n - first < BAND ? r->n - first : BAND;
        tensor_to_f32(r->tensor, (size_t)first * d, (size_t)n * d, band);
        for (size_t i = 0; i < (size_t)n * d && bad < 0; i++)
            if (!isfinite(band[i])) {
                bad = first + (long)(i / d);
                value = (double)band[i];
            }
    }
    free(band);
    if (bad >= 0)
        return fail(err, "%s: tensor %s: row %ld holds %g; expected finite values: remove the row", path, r->tensor->name, bad, value);
    return 0;
}

static int check_shape(struct rows *r, const char *path, int d, const char *whose, struct error *err) {
    const struct tensor *t = r->tensor;
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_F16 && t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F64)
        return fail(err, "%s: tensor %s: expected floating point (F32, F16, BF16, F64), found %s", path, t->name, dtype_name(t->dtype));
    if (t->rank < 2) return fail(err, "%s: tensor %s: expected two or more dimensions (rows, d), found %d", path, t->name, t->rank);
    int64_t last = t->shape[t->rank - 1];
    if (d > 0 && last != d)
        return fail(err, "%s: tensor %s: expected rows of %d as %s has, found %lld", path, t->name, d, whose, (long long)last);
    if (last < 1 || last > INT_MAX || t->count / (size_t)last > INT_MAX)
        return fail(err, "%s: tensor %s: expected 1 to %d rows and columns, found %zu values in rows of %lld", path, t->name, INT_MAX,
                    t->count, (long long)last);
    r->d = (int)last;
    r->n = (int)(t->count / (size_t)last);
    return 0;
}

int rows_open(struct rows *r, const char *path, const char *name, int d, const char *whose, struct error *err) {
    memset(r, 0, sizeof *r);
    if (tensors_open(&r->file, path, err)) return -1;
    r->tensor = tensors_find(r->file, name);
    if (!r->tensor) {
        fail(err, "%s: no tensor %s; it holds %d tensors, the first is %s", path, name, tensors_count(r->file),
             tensors_count(r->file) > 0 ? tensors_at(r->file, 0)->name : "none");
        goto failed;
    }
    if (check_shape(r, path, d, whose, err) || check_finite(r, path, err)) goto failed;
    return 0;
failed:
    rows_close(r);
    return -1;
}

void rows_close(struct rows *r) {
    tensors_close(r->file);
    memset(r, 0, sizeof *r);
}

int row_feed_open(struct row_feed *f, struct device *dev, const struct rows *rows, int max, struct error *err) {
    size_t n = (size_t)max * (size_t)rows->d;
    *f = (struct row_feed){.dev = dev, .rows = rows, .max = max};
    f->host = memory_take(n, sizeof *f->host);
    f->staging = device_alloc(dev, n * sizeof(float));
    f->x = device_alloc(dev, n * sizeof(act_t));
    if (f->staging && f->x) return 0;
    row_feed_close(f);
    return fail(err, "%s: a batch of %d rows needs %zu bytes, %zu are free; use a smaller batch", device_name(dev), max,
                n * (sizeof(float) + sizeof(act_t)), device_memory_free(dev));
}

void row_feed_close(struct row_feed *f) {
    if (f->dev) {
        device_free(f->dev, f->staging);
        device_free(f->dev, f->x);
    }
    free(f->host);
    memset(f, 0, sizeof *f);
}

void row_feed_put(struct row_feed *f, const int *index, int first, int n) {
    size_t d = (size_t)f->rows->d, count = (size_t)n * d;
    CHECK(n >= 1 && n <= f->max, "n=%d max=%d", n, f->max);
    if (!index) tensor_to_f32(f->rows->tensor, (size_t)first * d, count, f->host);
    for (int i = 0; index && i < n; i++) tensor_to_f32(f->rows->tensor, (size_t)index[i] * d, d, f->host + (size_t)i * d);
    if (f->prepare) f->prepare(f->host, n, f->rows->d, f->context);
    device_upload(f->dev, f->staging, f->host, count * sizeof(float));
    OP(act_from_real)(f->dev, f->x, f->staging, count);
}

/* splitmix64 (Steele, Lea & Flood 2014) */
static uint64_t next_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t seed_mix(uint64_t seed, uint64_t a, uint64_t b) {
    uint64_t state = seed;
    state = next_bits(&state) ^ a;
    state = next_bits(&state) ^ b;
    return next_bits(&state);
}

/* Fisher-Yates; a draw below n by multiplication (bias below n / 2^32). */
void shuffle(int *index, int n, uint64_t seed) {
    uint64_t state = seed;
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(((next_bits(&state) >> 32) * (uint64_t)(i + 1)) >> 32);
        int t = index[i];
        index[i] = index[j], index[j] = t;
    }
}
