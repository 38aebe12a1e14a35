/* image.h - pictures in, pixel values out: decoding as Pillow's convert('RGB'), CLIP preprocessing bit for bit (formats.md 6.4, 6.5). */
#ifndef HOST_IMAGE_H
#define HOST_IMAGE_H
#include "host/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
struct image { /* owns pixels: (height, width, 3) u8 RGB */
    int width, height;
    uint8_t *pixels;
};
int image_open(struct image *image, const char *path, struct error *err); /* JPEG or PNG by content */
void image_free(struct image *image);
int image_write_png(const struct image *image, uint8_t **png, size_t *bytes, struct error *err); /* malloced PNG file in memory */

struct preprocess {                  /* from preprocessor_config.json / processor_config.json and the LLaVA config */
    int shortest_edge;               /* resize so that the short side is this; 0: no resize */
    int resize_width, resize_height; /* both > 0: resize to exactly this instead */
    int crop;                        /* centre crop to crop x crop, > 0: the side of what the tower gets */
    bool pad_square;                 /* LLaVA "pad": paste on a square of the mean colour first */
    double rescale;                  /* 1/255, applied in double as transformers does */
    float mean[3], std[3];
    uint8_t pad_color[3];
};
/* dir: the folder holding the image settings; NULL: CLIP's at 336 pixels. */
int preprocess_open(struct preprocess *p, const char *dir, struct error *err);
/* The settings of a checkpoint folder: its own, or those of the tower that a LLaVA config.json names (looked for in
 * vision_tower when that is not NULL, beside the folder, as a path, by its Hub name); "pad" as config.json says. */
int preprocess_open_model(struct preprocess *p, const char *dir, const char *vision_tower, struct error *err);
/* pixel_values [out] (3, S, S) f32, malloced by the caller; S = crop. */
int preprocess_image(const struct preprocess *p, const struct image *image, float *pixel_values, struct error *err);
/* The square, resized, cropped u8 picture that the patches are cut from (for overlays in the report). */
int preprocess_picture(const struct preprocess *p, const struct image *image, struct image *out, struct error *err);
#endif
