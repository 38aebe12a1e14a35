/* preprocess.c - pictures to CLIP's pixel values, bit for bit as Pillow and transformers' slow CLIPImageProcessor make them
 * (formats.md 6.4, 6.5): [pad to a square] -> bicubic resize of the short side -> centre crop -> x * rescale in double,
 * rounded to float -> (x - mean) / std in float -> channels first. Between the steps the picture is 8-bit RGB. */
#include "host/file.h"
#include "host/image.h"
#include "host/check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Pillow's bicubic: separable, support 2 max(1, in / out), 22-bit fixed point weights, horizontal pass first ---- */
enum { PRECISION = 22, HALF = 1 << (PRECISION - 1) };
#define MAX_PIXELS 178956970u

struct taps { /* of one direction: output i is the sum of weights[i * size + j] * input[first[i] + j], j < count[i] */
    int size;
    int *first, *count, *weights;
};
struct window { /* of the resized picture */
    int x, y, width, height;
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

typedef int vec4 __attribute__((vector_size(16))); /* a pixel: red, green, blue, 0 */
typedef uint32_t word4 __attribute__((vector_size(16)));

/* Four bytes are read for a pixel of three, but for the last one. */
static void spread_row(vec4 *row, const uint8_t *s, int width) {
    for (int i = 0; i + 1 < width; i++, s += 3) {
        uint32_t v = (uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 | (uint32_t)s[3] << 24; /* one load */
        row[i] = (vec4)((word4){v, v, v, v} >> (word4){0, 8, 16, 24} & (word4){255, 255, 255, 0});
    }
    row[width - 1] = (vec4){s[0], s[1], s[2], 0};
}

static vec4 clip8_4(vec4 sum) {
    vec4 v = sum >> PRECISION, below = v<0, above = v> 255;
    return (v & ~below & ~above) | (above & 255);
}

/* Columns [x, x + width) of the rows [from, to). */
static void resize_rows(uint8_t *dst, const uint8_t *src, const struct taps *t, int in, int from, int to, int x, int width) {
    vec4 *row = memory_take((size_t)in, sizeof *row);
    for (size_t y = (size_t)from; y < (size_t)to; y++) {
        spread_row(row, src + y * (size_t)in * 3, in);
        for (int i = x; i < x + width; i++, dst += 3) {
            const vec4 *p = row + t->first[i];
            const int *w = t->weights + (size_t)i * (size_t)t->size, n = t->count[i];
            vec4 even = {HALF, HALF, HALF, 0}, odd = {0};
            int j = 0;
            for (; j + 1 < n; j += 2) {
                even += p[j] * w[j];
                odd += p[j + 1] * w[j + 1];
            }
            if (j < n) even += p[j] * w[j];
            even = clip8_4(even + odd);
            for (int c = 0; c < 3; c++) dst[c] = (uint8_t)even[c];
        }
    }
    free(row);
}

/* Rows [y, y + height) of a picture whose first row is row `from` of the whole. */
static void resize_columns(uint8_t *dst, const uint8_t *src, const struct taps *t, int width, int from, int y, int height) {
    enum { BLOCK = 64 };
    const size_t stride = (size_t)width * 3;
    for (size_t i = (size_t)y; i < (size_t)(y + height); i++, dst += stride) {
        const int *w = t->weights + i * (size_t)t->size, n = t->count[i];
        const uint8_t *top = src + (size_t)(t->first[i] - from) * stride;
        for (size_t k = 0; k < stride; k += BLOCK) {
            int sum[BLOCK];
            const size_t left = stride - k < BLOCK ? stride - k : BLOCK;
            for (size_t l = 0; l < BLOCK; l++) sum[l] = HALF;
            if (left == BLOCK)
                for (int j = 0; j < n; j++)
                    for (size_t l = 0; l < BLOCK; l++) sum[l] += top[(size_t)j * stride + k + l] * w[j];
            else
                for (int j = 0; j < n; j++)
                    for (size_t l = 0; l < left; l++) sum[l] += top[(size_t)j * stride + k + l] * w[j];
            for (size_t l = 0; l < left; l++) dst[k + l] = clip8(sum[l]);
        }
    }
}

static void copy_rows(uint8_t *dst, const uint8_t *src, int stride_pixels, int from, int to, int x, int width) {
    for (size_t y = (size_t)from; y < (size_t)to; y++, dst += (size_t)width * 3)
        memcpy(dst, src + (y * (size_t)stride_pixels + (size_t)x) * 3, (size_t)width * 3);
}

static int check_size(int width, int height, struct error *err) {
    if (width <= 0 || height <= 0 || (unsigned)width > MAX_PIXELS / (unsigned)height)
        return fail(err, "the picture would have %d x %d pixels after resizing; at most %u in all are possible", width, height, MAX_PIXELS);
    return 0;
}

static int new_image(struct image *image, int width, int height, struct error *err) {
    *image = (struct image){.width = width, .height = height};
    if (check_size(width, height, err)) return -1;
    image->pixels = malloc((size_t)width * (size_t)height * 3);
    return image->pixels ? 0 : fail(err, "no memory for a picture of %d x %d pixels", width, height);
}

/* The window of src resized to (width, height), PIL BICUBIC, horizontal pass first: only the rows and columns that it needs are computed.
 */
static int resize_window(struct image *dst, const struct image *src, int width, int height, struct window w, struct error *err) {
    struct image wide = {0};
    struct taps across = {0}, down = {0};
    int from = w.y, to = w.y + w.height; /* rows of src that the window is made of */
    if (new_image(dst, w.width, w.height, err)) return -1;
    if (height != src->height) {
        taps_build(&down, src->height, height);
        from = down.first[w.y];
        to = down.first[w.y + w.height - 1] + down.count[w.y + w.height - 1];
    }
    int rc = new_image(&wide, w.width, to - from, err);
    if (!rc && width != src->width) {
        taps_build(&across, src->width, width);
        resize_rows(wide.pixels, src->pixels, &across, src->width, from, to, w.x, w.width);
    } else if (!rc) {
        copy_rows(wide.pixels, src->pixels, src->width, from, to, w.x, w.width);
    }
    if (!rc && height != src->height)
        resize_columns(dst->pixels, wide.pixels, &down, w.width, from, w.y, w.height);
    else if (!rc)
        memcpy(dst->pixels, wide.pixels, (size_t)w.width * (size_t)w.height * 3);
    taps_free(&across);
    taps_free(&down);
    image_free(&wide);
    if (rc) image_free(dst);
    return rc;
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

/* The size that a picture is resized to. */
static int resized_size(const struct preprocess *p, const struct image *src, int *width, int *height, struct error *err) {
    int edge = p->shortest_edge, shorter = src->width < src->height ? src->width : src->height,
        longer = src->width < src->height ? src->height : src->width;
    double other = edge > 0 ? (double)((int64_t)edge * longer) / shorter : 0;
    if (other > 1e9) return fail(err, "a picture of %d x %d pixels is too long for its width to be resized", src->width, src->height);
    *width = edge <= 0 ? src->width : src->width < src->height ? edge : (int)other;
    *height = edge <= 0 ? src->height : src->width < src->height ? (int)other : edge;
    if (p->resize_width > 0 && p->resize_height > 0) {
        *width = p->resize_width;
        *height = p->resize_height;
    }
    return check_size(*width, *height, err);
}

/* Floor of half, also of negative numbers. */
static int half_down(int n) { return n >= 0 ? n / 2 : -((1 - n) / 2); }

/* Where the crop lies on the resized picture: [*start, *start + *count) of it goes to *at. The odd pixel goes where transformers
 * puts it; small: one of the sides is smaller than the crop, so that the picture is put on black first. */
static void crop_side(int size, int side, bool small, int *start, int *count, int *at) {
    int grown = size > side ? size : side, before = small ? (grown - size + 1) / 2 : 0, cut = half_down(size - side) + before;
    int corner = before - (cut > 0 ? cut : 0);
    *at = corner > 0 ? corner : 0;
    *start = corner > 0 ? 0 : -corner;
    *count = size - *start < side - *at ? size - *start : side - *at;
}

int preprocess_picture(const struct preprocess *p, const struct image *image, struct image *out, struct error *err) {
    struct image square = {0}, part = {0};
    struct window w;
    int rc = -1, width = 0, height = 0, x, y, side = p->crop;
    *out = (struct image){0};
    CHECK(side > 0 && image->width > 0 && image->height > 0, "crop=%d, %d x %d", side, image->width, image->height);
    bool pad = p->pad_square && image->width != image->height;
    if (pad && pad_to_square(p, image, &square, err)) goto cleanup;
    if (resized_size(p, pad ? &square : image, &width, &height, err)) goto cleanup;
    crop_side(width, side, width < side || height < side, &w.x, &w.width, &x);
    crop_side(height, side, width < side || height < side, &w.y, &w.height, &y);
    if (resize_window(&part, pad ? &square : image, width, height, w, err) || new_image(out, side, side, err)) goto cleanup;
    memset(out->pixels, 0, (size_t)side * (size_t)side * 3);
    paste(out, &part, x, y);
    rc = 0;
cleanup:
    image_free(&square);
    image_free(&part);
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
