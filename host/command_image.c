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

static int read_picture(const struct preprocess *p, const char *path, float *values, struct error *err) {
    struct image image;
    if (image_open(&image, path, err)) return -1;
    int rc = preprocess_image(p, &image, values, err);
    image_free(&image);
    return rc ? error_context(err, "%s", path) : 0;
}

/* All pictures, several at a time; the error is that of the first one that has one. */
static int read_pictures(const struct preprocess *p, const struct option *images, float **values, struct error *err) {
    struct progress progress;
    int bad = images->n_list, done = 0;
    progress_start(&progress, "preprocess", "pictures", images->n_list);
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < images->n_list; i++) {
        struct error why;
        values[i] = memory_take((size_t)p->crop * (size_t)p->crop * 3, sizeof **values);
        int rc = read_picture(p, images->list[i], values[i], &why);
#pragma omp critical(read_pictures)
        {
            progress_update(&progress, ++done, NULL);
            if (rc && i < bad) {
                bad = i;
                *err = why;
            }
        }
    }
    progress_end(&progress);
    return bad < images->n_list ? -1 : 0;
}

static int run(const struct command *self, struct error *err) {
    const struct option *images = option(self, "--image");
    struct preprocess p;
    struct safetensors_writer *w;
    if (preprocess_open_model(&p, option(self, "--model")->text, option(self, "--vision-tower")->text, err)) return -1;
    if (safetensors_writer_open(&w, option(self, "--out")->text, err)) return -1;
    float **values = memory_take((size_t)images->n_list, sizeof *values);
    int rc = read_pictures(&p, images, values, err);
    for (int i = 0; i < images->n_list; i++) {
        char name[48];
        snprintf(name, sizeof name, "pixel_values/%d", i);
        if (rc)
            free(values[i]);
        else
            safetensors_writer_give(w, name, DTYPE_F32, 3, (const int64_t[]){3, p.crop, p.crop}, values[i]);
    }
    free(values);
    if (rc) safetensors_writer_abort(w);
    return rc ? rc : safetensors_writer_commit(w, err);
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
