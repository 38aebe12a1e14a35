/* helpers.c - what the tests of models/ share (model_test.h). */
#include "model_test.h"
#include <math.h>

struct device *test_device(void) {
    static struct device *dev;
    char why[256];
    if (!dev && !(dev = device_open(0, 0, why, sizeof why))) FAIL("%s", why);
    return dev;
}

void open_model(struct model *m, const char *dir) { MUST(model_open(m, test_device(), dir, NULL, err)); }

struct tensors *open_golden(const char *name) {
    char path[256];
    struct tensors *st = NULL;
    snprintf(path, sizeof path, GOLDEN "/%s.safetensors", name);
    MUST(tensors_open(&st, path, err));
    return st;
}

static const struct tensor *find(const struct tensors *st, const char *format, va_list args) {
    char name[128];
    vsnprintf(name, sizeof name, format, args);
    const struct tensor *t = tensors_find(st, name);
    if (!t) FAIL("golden tensor %s is missing; remake: python tools/golden/make_models.py " WORLD " " GOLDEN, name);
    return t;
}

float *golden_real(const struct tensors *st, size_t *count, const char *name, ...) {
    va_list args;
    va_start(args, name);
    const struct tensor *t = find(st, name, args);
    va_end(args);
    float *x = malloc(t->count * sizeof *x);
    tensor_to_f32(t, 0, t->count, x);
    if (count) *count = t->count;
    return x;
}

int32_t *golden_int(const struct tensors *st, size_t *count, const char *name, ...) {
    va_list args;
    va_start(args, name);
    const struct tensor *t = find(st, name, args);
    va_end(args);
    int32_t *x = malloc(t->count * sizeof *x);
    MUST(tensor_to_i32(t, x, err));
    if (count) *count = t->count;
    return x;
}

void golden_batch(struct batch *b, const struct model *m, const struct tensors *st, int from, int n) {
    const size_t room = 4096, side = (size_t)m->image_size, size = 3 * side * side;
    memset(b, 0, sizeof *b);
    b->n_samples = n;
    b->cu_seqlens = calloc((size_t)n + 1, sizeof(int));
    b->sample = calloc((size_t)n, sizeof(long));
    b->picture = calloc((size_t)n, sizeof(int));
    b->ids = calloc(room, sizeof(int));
    b->source = calloc(room, sizeof(int));
    b->position = calloc(room, sizeof(int));
    b->kinds = calloc(room, 1);
    b->pixels = calloc((size_t)n * size + 1, sizeof(float));
    for (int i = 0; i < n; i++) {
        size_t count;
        int32_t *ids = golden_int(st, &count, "%d/ids", from + i);
        char name[64];
        snprintf(name, sizeof name, "%d/pixels", from + i);
        b->sample[i] = i;
        b->picture[i] = -1;
        if (tensors_find(st, name)) {
            float *pixels = golden_real(st, NULL, "%s", name);
            memcpy(b->pixels + (size_t)b->n_images * size, pixels, size * sizeof *pixels);
            free(pixels);
            b->picture[i] = b->n_images++;
        }
        int row = b->picture[i] * m->n_image_rows;
        for (size_t t = 0; t < count; t++) {
            const int at = b->n_tokens++;
            b->ids[at] = ids[t];
            b->source[at] = ids[t] == IMAGE_TOKEN ? -1 - row++ : ids[t];
            b->kinds[at] = ids[t] == IMAGE_TOKEN ? KIND_IMAGE : KIND_QUESTION;
            b->position[at] = (int)t;
        }
        b->cu_seqlens[i + 1] = b->n_tokens;
        b->longest = (int)count > b->longest ? (int)count : b->longest;
        free(ids);
    }
}

int keep_probe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    struct kept *k = context;
    const size_t bytes = (size_t)rows * (size_t)width * sizeof(float);
    (void)b;
    (void)err;
    free(k->data[layer + 1]);
    k->data[layer + 1] = malloc(bytes);
    device_download(dev, k->data[layer + 1], x, bytes);
    k->rows = rows;
    k->width = width;
    return 0;
}

void kept_free(struct kept *k) {
    for (size_t i = 0; i < sizeof k->data / sizeof *k->data; i++) {
        free(k->data[i]);
        k->data[i] = NULL;
    }
}

double relative_rms(const float *a, const float *b, size_t n) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(a[i])) return 1;
        error += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return norm > 0 ? sqrt(error / norm) : error > 0;
}
