/* preprocess.c - pictures to CLIP's pixel values, bit for bit as Pillow and transformers' slow CLIPImageProcessor make them
 * (formats.md 6.4, 6.5): [pad to a square] -> bicubic resize of the short side -> centre crop -> x * rescale in double,
 * rounded to float -> (x - mean) / std in float -> channels first. Between the steps the picture is 8-bit RGB. */
#include "host/file.h"
#include "host/image.h"
#include "kernels/check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Pillow's bicubic: separable, support 2 max(1, in / out), 22-bit fixed point weights, horizontal pass first ---- */
enum { PRECISION = 22 };
#define MAX_PIXELS 178956970u

struct taps { /* of one direction: output i is the sum of weights[i * size + j] * input[first[i] + j], j < count[i] */
    int size;
    int *first, *count, *weights;
};

static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

static void taps_free(struct taps *t) {
    free(t->first);
    free(t->count);
    free(t->weights);
}

/* The order of these double operations is Pillow's; a fused multiply-add would change last bits (-std=c11 forbids it). */
static void taps_build(struct taps *t, int in, int out) {
    double scale = (double)in / out, filter_scale = scale < 1 ? 1 : scale, support = 2.0 * filter_scale, inverse = 1.0 / filter_scale;
    t->size = (int)ceil(support) * 2 + 1;
    t->first = memory_take((size_t)out, sizeof *t->first);
    t->count = memory_take((size_t)out, sizeof *t->count);
    t->weights = memory_take((size_t)out * (size_t)t->size, sizeof *t->weights);
    double *w = memory_take((size_t)t->size, sizeof *w);
    for (int i = 0; i < out; i++) {
        double center = (i + 0.5) * scale, sum = 0;
        int low = (int)(center - support + 0.5), high = (int)(center + support + 0.5);
        low = low < 0 ? 0 : low;
        high = high > in ? in : high;
        for (int j = 0; j < high - low; j++) {
            w[j] = bicubic((j + low - center + 0.5) * inverse);
            sum += w[j];
        }
        t->first[i] = low;
        t->count[i] = high - low;
        for (int j = 0; j < high - low; j++) {
            double weight = sum != 0 ? w[j] / sum : w[j];
            t->weights[(size_t)i * (size_t)t->size + (size_t)j] =
                (int)(weight < 0 ? weight * (1 << PRECISION) - 0.5 : weight * (1 << PRECISION) + 0.5);
        }
    }
    free(w);
}

static uint8_t clip8(int sum) {
    int v = sum >> PRECISION;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void resize_rows(uint8_t *dst, const uint8_t *src, const struct taps *t, int rows, int in, int out) {
    for (size_t y = 0; y < (size_t)rows; y++)
        for (int x = 0; x < out; x++) {
            const uint8_t *s = src + (y * (size_t)in + (size_t)t->first[x]) * 3;
            const int *w = t->weights + (size_t)x * (size_t)t->size;
            int sum[3] = {1 << (PRECISION - 1), 1 << (PRECISION - 1), 1 << (PRECISION - 1)};
            for (int j = 0; j < t->count[x]; j++, s += 3)
                for (int c = 0; c < 3; c++) sum[c] += s[c] * w[j];
            uint8_t *d = dst + (y * (size_t)out + (size_t)x) * 3;
            for (int c = 0; c < 3; c++) d[c] = clip8(sum[c]);
        }
}

static void resize_columns(uint8_t *dst, const uint8_t *src, const struct taps *t, int width, int out) {
    size_t stride = (size_t)width * 3;
    int *sum = memory_take(stride, sizeof *sum);
    for (int y = 0; y < out; y++) {
        const int *w = t->weights + (size_t)y * (size_t)t->size;
        for (size_t k = 0; k < stride; k++) sum[k] = 1 << (PRECISION - 1);
        for (int j = 0; j < t->count[y]; j++) {
            const uint8_t *s = src + (size_t)(t->first[y] + j) * stride;
            for (size_t k = 0; k < stride; k++) sum[k] += s[k] * w[j];
        }
        for (size_t k = 0; k < stride; k++) dst[(size_t)y * stride + k] = clip8(sum[k]);
    }
    free(sum);
}

static int new_image(struct image *image, int width, int height, struct error *err) {
    *image = (struct image){.width = width, .height = height};
    if (width <= 0 || height <= 0 || (unsigned)width > MAX_PIXELS / (unsigned)height)
        return fail(err, "the picture would have %d x %d pixels after resizing; at most %u in all are possible", width, height, MAX_PIXELS);
    image->pixels = malloc((size_t)width * (size_t)height * 3);
    return image->pixels ? 0 : fail(err, "no memory for a picture of %d x %d pixels", width, height);
}

int image_resize_bicubic(struct image *dst, const struct image *src, int width, int height, struct error *err) {
    struct image wide = {0};
    struct taps t = {0};
    if (new_image(dst, width, height, err)) return -1;
    const uint8_t *rows = src->pixels;
    if (width != src->width) {
        if (new_image(&wide, width, src->height, err)) {
            image_free(dst);
            return -1;
        }
        taps_build(&t, src->width, width);
        resize_rows(wide.pixels, src->pixels, &t, src->height, src->width, width);
        taps_free(&t);
        rows = wide.pixels;
    }
    if (height != src->height) {
        taps_build(&t, src->height, height);
        resize_columns(dst->pixels, rows, &t, width, height);
        taps_free(&t);
    } else {
        memcpy(dst->pixels, rows, (size_t)width * (size_t)height * 3);
    }
    image_free(&wide);
    return 0;
}

/* ---- the steps ---- */

/* Copies src onto dst with its corner at (x, y); what falls outside is cut off. */
static void paste(struct image *dst, const struct image *src, int x, int y) {
    int left = x < 0 ? 0 : x, right = x + src->width < dst->width ? x + src->width : dst->width;
    for (int row = y < 0 ? 0 : y; row < y + src->height && row < dst->height && right > left; row++)
        memcpy(dst->pixels + ((size_t)row * (size_t)dst->width + (size_t)left) * 3,
               src->pixels + ((size_t)(row - y) * (size_t)src->width + (size_t)(left - x)) * 3, (size_t)(right - left) * 3);
}

static int pad_to_square(const struct preprocess *p, const struct image *src, struct image *dst, struct error *err) {
    int side = src->width > src->height ? src->width : src->height;
    if (new_image(dst, side, side, err)) return -1;
    for (size_t i = 0; i < (size_t)side * (size_t)side; i++) memcpy(dst->pixels + 3 * i, p->pad_color, 3);
    paste(dst, src, (side - src->width) / 2, (side - src->height) / 2);
    return 0;
}

static int resize(const struct preprocess *p, const struct image *src, struct image *dst, struct error *err) {
    int width = src->width, height = src->height, edge = p->shortest_edge;
    if (p->resize_width > 0 && p->resize_height > 0) return image_resize_bicubic(dst, src, p->resize_width, p->resize_height, err);
    if (edge <= 0) return image_resize_bicubic(dst, src, width, height, err);
    int shorter = width < height ? width : height, longer = width < height ? height : width;
    double other = (double)((int64_t)edge * longer) / shorter;
    if (other > 1e9) return fail(err, "a picture of %d x %d pixels is too long for its width to be resized", width, height);
    return image_resize_bicubic(dst, src, width < height ? edge : (int)other, width < height ? (int)other : edge, err);
}

/* Floor of half, also of negative numbers, and its counterpart upward. */
static int half_down(int n) { return n >= 0 ? n / 2 : -((1 - n) / 2); }

/* Centre of src, black where src is smaller; the odd pixel goes where transformers puts it. */
static int crop(const struct preprocess *p, const struct image *src, struct image *dst, struct error *err) {
    int side = p->crop, corner[2], size[2] = {src->width, src->height};
    if (new_image(dst, side, side, err)) return -1;
    memset(dst->pixels, 0, (size_t)side * (size_t)side * 3);
    bool small = src->width < side || src->height < side;
    for (int i = 0; i < 2; i++) {
        int grown = size[i] > side ? size[i] : side; /* the padded picture, cut from `start` on */
        int before = small ? (grown - size[i] + 1) / 2 : 0, start = half_down(size[i] - side) + before;
        corner[i] = before - (start > 0 ? start : 0);
    }
    paste(dst, src, corner[0], corner[1]);
    return 0;
}

int preprocess_picture(const struct preprocess *p, const struct image *image, struct image *out, struct error *err) {
    struct image square = {0}, resized = {0};
    int rc = -1;
    *out = (struct image){0};
    CHECK(p->crop > 0 && image->width > 0 && image->height > 0, "crop=%d, %d x %d", p->crop, image->width, image->height);
    bool pad = p->pad_square && image->width != image->height;
    if (pad && pad_to_square(p, image, &square, err)) goto cleanup;
    if (resize(p, pad ? &square : image, &resized, err)) goto cleanup;
    rc = crop(p, &resized, out, err);
cleanup:
    image_free(&square);
    image_free(&resized);
    if (rc) image_free(out);
    return rc;
}

int preprocess_image(const struct preprocess *p, const struct image *image, float *pixel_values, struct error *err) {
    struct image picture;
    if (preprocess_picture(p, image, &picture, err)) return -1;
    size_t n = (size_t)p->crop * (size_t)p->crop;
    float value[3][256];
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++) value[c][v] = ((float)(v * p->rescale) - p->mean[c]) / p->std[c];
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < 3; c++) pixel_values[c * n + i] = value[c][picture.pixels[3 * i + c]];
    image_free(&picture);
    return 0;
}
