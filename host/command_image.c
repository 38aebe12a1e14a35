/* command_image.c - stagediff preprocess: pictures to the pixel values that the vision tower gets. */
#include "host/file.h"
#include "host/image.h"
#include "host/options.h"
#include "host/progress.h"
#include "host/tensors.h"
#include <stdio.h>
#include <stdlib.h>

static struct option options[] = {
    {.name = "--model", .value = "DIR", .type = OPTION_TEXT, .required = true, .help = "checkpoint folder (LLaVA or CLIP)"},
    {.name = "--image", .value = "FILE", .type = OPTION_LIST, .required = true, .help = "JPEG or PNG file"},
    {.name = "--out", .value = "FILE", .type = OPTION_TEXT, .required = true, .help = "safetensors file to write"},
    {.name = "--vision-tower", .value = "DIR", .type = OPTION_TEXT, .help = "folder of the vision tower, where it is not beside the model"},
    {.name = NULL},
};

static int add_picture(struct safetensors_writer *w, const struct preprocess *p, const char *path, int index, struct error *err) {
    struct image image;
    char name[48];
    if (image_open(&image, path, err)) return -1;
    size_t n = (size_t)p->crop * (size_t)p->crop * 3;
    float *values = memory_take(n, sizeof *values);
    int rc = preprocess_image(p, &image, values, err);
    image_free(&image);
    if (rc) {
        free(values);
        return error_context(err, "%s", path);
    }
    snprintf(name, sizeof name, "pixel_values/%d", index);
    safetensors_writer_give(w, name, DTYPE_F32, 3, (const int64_t[]){3, p->crop, p->crop}, values);
    return 0;
}

static int run(const struct command *self, struct error *err) {
    const struct option *images = option(self, "--image");
    struct preprocess p;
    struct safetensors_writer *w;
    struct progress progress;
    if (preprocess_open_model(&p, option(self, "--model")->text, option(self, "--vision-tower")->text, err)) return -1;
    if (safetensors_writer_open(&w, option(self, "--out")->text, err)) return -1;
    progress_start(&progress, "preprocess", "pictures", images->n_list);
    for (int i = 0; i < images->n_list; i++) {
        if (add_picture(w, &p, images->list[i], i, err)) {
            safetensors_writer_abort(w);
            return -1;
        }
        progress_update(&progress, i + 1, NULL);
    }
    progress_end(&progress);
    return safetensors_writer_commit(w, err);
}

struct command command_preprocess = {
    .name = "preprocess",
    .summary = "pictures to the pixel values of a model's vision tower",
    .description = "Follows the checkpoint: its image settings (size, crop, mean, std) and, for LLaVA's own layout, image_aspect_ratio.\n"
                   "The result equals Pillow's and transformers' slow CLIPImageProcessor bit for bit; tensors pixel_values/0, /1, ... (3, "
                   "H, W) F32.\n\n"
                   "  stagediff preprocess --model llava --image cat.jpg --image dog.png --out pixels.safetensors",
    .options = options,
    .run = run,
};
