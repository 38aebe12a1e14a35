/* image.c - decodes JPEG and PNG to 8-bit RGB as Pillow's convert('RGB') does (up to version 11): gray repeated, palette
 * looked up, alpha and transparency dropped, 16-bit samples by their high byte, CMYK by round(C K / 255) as Adobe stores it;
 * EXIF orientation and gamma are ignored. A file that ends too early is an error. */
#include "host/image.h"
#include "host/file.h"
#include <limits.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jpeglib.h>
#include <png.h>

#define MAX_FILE ((size_t)1 << 30)
/* Pillow refuses more pixels than this as a decompression bomb. */
#define MAX_PIXELS 178956970u
enum { MAX_SCANS = 500 };

/* Checked before anything of the picture's size is allocated. ratio: pixels that one byte of the file can hold at most. */
static int allocate(struct image *image, const char *path, unsigned long width, unsigned long height, size_t file_bytes, size_t ratio,
                    struct error *err) {
    if (!width || !height || width > INT_MAX || height > INT_MAX || width > MAX_PIXELS / height)
        return fail(err, "%s: %lu x %lu pixels; at most %u in all are decoded", path, width, height, MAX_PIXELS);
    if ((size_t)width * height / ratio > file_bytes + 64)
        return fail(err, "%s: %zu bytes cannot hold %lu x %lu pixels; the picture is truncated or damaged", path, file_bytes, width,
                    height);
    image->width = (int)width;
    image->height = (int)height;
    image->pixels = malloc((size_t)width * height * 3);
    return image->pixels ? 0 : fail(err, "%s: no memory for %lu x %lu pixels", path, width, height);
}

/* ---- JPEG ---- */
struct jpeg_state {
    struct jpeg_error_mgr errors; /* first: libjpeg hands it back */
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    char why[JMSG_LENGTH_MAX];
    uint8_t *row;
};

static void jpeg_on_error(j_common_ptr info) {
    struct jpeg_state *s = (struct jpeg_state *)info->err;
    info->err->format_message(info, s->why);
    longjmp(s->escape, 1);
}

/* Each scan of a progressive picture walks all of it: a file of a few kilobytes could keep us busy for hours. Real ones have ten. */
static void jpeg_count_scans(j_common_ptr info) {
    struct jpeg_state *s = (struct jpeg_state *)info->err;
    if (((j_decompress_ptr)info)->input_scan_number <= MAX_SCANS) return;
    snprintf(s->why, sizeof s->why, "it has more than %d scans", MAX_SCANS);
    longjmp(s->escape, 1);
}

static void jpeg_silent(j_common_ptr info) { (void)info; }
static void jpeg_nothing(j_decompress_ptr info) { (void)info; }
static boolean jpeg_no_more(j_decompress_ptr info) /* the whole file was given: asking for more means that it ends too early */
{
    (void)info;
    return FALSE;
}

static void jpeg_skip(j_decompress_ptr info, long n) {
    if (n <= 0) return;
    size_t step = (size_t)n < info->src->bytes_in_buffer ? (size_t)n : info->src->bytes_in_buffer;
    info->src->next_input_byte += step;
    info->src->bytes_in_buffer -= step;
}

/* One decoded row of 1 or 4 components to RGB. */
static void jpeg_row(uint8_t *rgb, const uint8_t *row, int width, int components) {
    for (int x = 0; x < width; x++, rgb += 3) {
        const uint8_t *in = row + (size_t)x * (size_t)components;
        for (int c = 0; c < 3; c++) rgb[c] = components == 1 ? in[0] : (uint8_t)((2 * in[c] * in[3] + 255) / 510);
    }
}

static int jpeg_read(struct image *image, struct jpeg_decompress_struct *info, struct jpeg_state *s, const char *path, size_t bytes,
                     struct error *err) {
    if (jpeg_read_header(info, TRUE) != JPEG_HEADER_OK) return fail(err, "%s: the JPEG picture is truncated: it ends in its header", path);
    int n = info->num_components;
    if (n != 1 && n != 3 && n != 4) return fail(err, "%s: a JPEG picture of %d components is not supported; 1, 3 and 4 are", path, n);
    info->out_color_space = n == 1 ? JCS_GRAYSCALE : n == 3 ? JCS_RGB : JCS_CMYK;
    if (allocate(image, path, info->image_width, info->image_height, bytes, 4096, err)) return -1;
    if (!jpeg_start_decompress(info)) return fail(err, "%s: the JPEG picture is truncated", path);
    s->row = memory_take((size_t)image->width * 4, 1);
    while (info->output_scanline < info->output_height) {
        size_t y = info->output_scanline;
        uint8_t *rgb = image->pixels + y * (size_t)image->width * 3, *row = n == 3 ? rgb : s->row;
        if (jpeg_read_scanlines(info, &row, 1) != 1)
            return fail(err, "%s: the JPEG picture is truncated after %zu of %d rows", path, y, image->height);
        if (n != 3) jpeg_row(rgb, row, image->width, n);
    }
    return 0;
}

/* libjpeg's errors come back here by longjmp; what must outlive that belongs to the caller. */
static int jpeg_guarded(struct image *image, struct jpeg_decompress_struct *info, struct jpeg_state *s, const char *path, const char *data,
                        size_t bytes, struct error *err) {
    if (setjmp(s->escape)) return fail(err, "%s: the JPEG picture is damaged: %s", path, s->why);
    jpeg_create_decompress(info);
    s->source =
        (struct jpeg_source_mgr){(const JOCTET *)data, bytes, jpeg_nothing, jpeg_no_more, jpeg_skip, jpeg_resync_to_restart, jpeg_nothing};
    info->src = &s->source;
    s->progress.progress_monitor = jpeg_count_scans;
    info->progress = &s->progress;
    return jpeg_read(image, info, s, path, bytes, err);
}

static int jpeg_open(struct image *image, const char *path, const char *data, size_t bytes, struct error *err) {
    struct jpeg_decompress_struct info;
    struct jpeg_state s = {.row = NULL};
    memset(&info, 0, sizeof info);
    info.err = jpeg_std_error(&s.errors);
    s.errors.error_exit = jpeg_on_error;
    s.errors.output_message = jpeg_silent;
    int rc = jpeg_guarded(image, &info, &s, path, data, bytes, err);
    jpeg_destroy_decompress(&info);
    free(s.row);
    return rc;
}

/* ---- PNG ---- */
struct png_input {
    const char *data;
    size_t left;
    jmp_buf escape;
    char why[160];
    uint8_t *raw;
    png_bytep *rows;
};

static void png_on_error(png_structp png, png_const_charp text) {
    struct png_input *in = png_get_error_ptr(png);
    snprintf(in->why, sizeof in->why, "%s", text);
    longjmp(in->escape, 1);
}

static void png_silent(png_structp png, png_const_charp text) {
    (void)png;
    (void)text;
}

static void png_read_bytes(png_structp png, png_bytep out, size_t n) {
    struct png_input *in = png_get_io_ptr(png);
    if (n > in->left) png_error(png, "the file ends too early");
    memcpy(out, in->data, n);
    in->data += n;
    in->left -= n;
}

/* Samples as stored (8 or 16 bits each after unpacking) to RGB. */
static void png_convert(uint8_t *rgb, const uint8_t *raw, size_t pixels, int channels, int depth, int type, const png_color *palette,
                        int n_palette) {
    size_t sample = depth == 16 ? 2 : 1, stride = sample * (size_t)channels;
    for (size_t i = 0; i < pixels; i++, rgb += 3, raw += stride) {
        if (type == PNG_COLOR_TYPE_PALETTE) {
            int k = raw[0];
            png_color c = k < n_palette ? palette[k] : (png_color){0, 0, 0};
            rgb[0] = c.red;
            rgb[1] = c.green;
            rgb[2] = c.blue;
        } else {
            bool gray = !(type & PNG_COLOR_MASK_COLOR);
            for (size_t k = 0; k < 3; k++) rgb[k] = raw[gray ? 0 : k * sample];
        }
    }
}

static int png_read(struct image *image, png_structp png, png_infop info, struct png_input *in, const char *path, size_t bytes,
                    struct error *err) {
    png_set_read_fn(png, in, png_read_bytes);
    png_set_user_limits(png, INT_MAX, INT_MAX);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, 0);
    png_read_info(png, info);
    size_t width = png_get_image_width(png, info), height = png_get_image_height(png, info);
    int depth = png_get_bit_depth(png, info), type = png_get_color_type(png, info);
    if (allocate(image, path, width, height, bytes, 1032u * 8, err)) return -1;
    if (depth < 8 && type == PNG_COLOR_TYPE_GRAY)
        png_set_expand_gray_1_2_4_to_8(png);
    else if (depth < 8)
        png_set_packing(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    png_colorp palette = NULL;
    int n_palette = 0, channels = png_get_channels(png, info);
    if (type == PNG_COLOR_TYPE_PALETTE && !png_get_PLTE(png, info, &palette, &n_palette))
        return fail(err, "%s: the PNG picture has a palette type but no palette", path);
    size_t stride = png_get_rowbytes(png, info);
    in->raw = calloc(height, stride);
    in->rows = malloc(height * sizeof *in->rows);
    if (!in->raw || !in->rows) return fail(err, "%s: no memory for %zu x %zu pixels", path, width, height);
    for (size_t y = 0; y < height; y++) in->rows[y] = in->raw + y * stride;
    png_read_image(png, in->rows);
    for (size_t y = 0; y < height; y++)
        png_convert(image->pixels + y * width * 3, in->rows[y], width, channels, depth, type, palette, n_palette);
    return 0;
}

/* As jpeg_guarded. */
static int png_guarded(struct image *image, png_structp png, png_infop info, struct png_input *in, const char *path, size_t bytes,
                       struct error *err) {
    if (setjmp(in->escape)) return fail(err, "%s: the PNG picture is truncated or damaged: %s", path, in->why);
    return png_read(image, png, info, in, path, bytes, err);
}

static int png_open(struct image *image, const char *path, const char *data, size_t bytes, struct error *err) {
    struct png_input in = {.data = data, .left = bytes};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &in, png_on_error, png_silent);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    int rc = info ? png_guarded(image, png, info, &in, path, bytes, err) : fail(err, "%s: no memory to decode it", path);
    png_destroy_read_struct(&png, &info, NULL);
    free(in.raw);
    free(in.rows);
    return rc;
}

/* ---- the interface ---- */
static const char *other_format(const char *data, size_t n) {
    if (n >= 12 && !memcmp(data, "RIFF", 4) && !memcmp(data + 8, "WEBP", 4)) return "WebP";
    if (n >= 4 && !memcmp(data, "GIF8", 4)) return "GIF";
    if (n >= 2 && !memcmp(data, "BM", 2)) return "BMP";
    if (n >= 4 && (!memcmp(data, "II*\0", 4) || !memcmp(data, "MM\0*", 4))) return "TIFF";
    return n ? "of an unknown format" : "empty";
}

int image_open(struct image *image, const char *path, struct error *err) {
    char *data;
    size_t bytes;
    *image = (struct image){0};
    if (file_read(path, MAX_FILE, &data, &bytes, err)) return -1;
    int rc;
    if (bytes >= 3 && !memcmp(data, "\xff\xd8\xff", 3))
        rc = jpeg_open(image, path, data, bytes, err);
    else if (bytes >= 8 && !memcmp(data, "\x89PNG\r\n\x1a\n", 8))
        rc = png_open(image, path, data, bytes, err);
    else
        rc = fail(err, "%s: the picture is %s; JPEG and PNG are read, convert it to one of them", path, other_format(data, bytes));
    free(data);
    if (rc) image_free(image);
    return rc;
}

void image_free(struct image *image) {
    free(image->pixels);
    *image = (struct image){0};
}

int image_write_png(const struct image *image, uint8_t **png, size_t *bytes, struct error *err) {
    png_image header = {
        .version = PNG_IMAGE_VERSION, .width = (png_uint_32)image->width, .height = (png_uint_32)image->height, .format = PNG_FORMAT_RGB};
    png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(header);
    *png = malloc(size);
    if (!*png) return fail(err, "no memory to write a PNG picture of %d x %d pixels", image->width, image->height);
    if (!png_image_write_to_memory(&header, *png, &size, 0, image->pixels, 0, NULL)) {
        free(*png);
        *png = NULL;
        return fail(err, "a PNG picture of %d x %d pixels cannot be written: %s", image->width, image->height, header.message);
    }
    *bytes = size;
    return 0;
}
