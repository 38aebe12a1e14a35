/* preprocess_config.c - the image settings of a checkpoint: preprocessor_config.json, or image_processor inside
 * processor_config.json (transformers 5), in both generations of keys (formats.md 6.3), and LLaVA's config.json. */
#include "host/file.h"
#include "host/image.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SIDE = 8192 };
#define MAX_JSON ((size_t)64 << 20)

/* A JSON object from a file; NULL with err, or NULL without when the file is not there (*missing). */
static json_t *read_object(const char *path, bool *missing, struct error *err) {
    char *text;
    size_t size;
    *missing = !file_exists(path);
    if (*missing || file_read(path, MAX_JSON, &text, &size, err)) return NULL;
    json_error_t bad;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &bad);
    free(text);
    if (!root)
        fail(err, "%s:%d: no valid JSON: %s", path, bad.line, bad.text);
    else if (!json_is_object(root)) {
        json_decref(root);
        root = NULL;
        fail(err, "%s: no JSON object", path);
    }
    return root;
}

static void clip_defaults(struct preprocess *p, int side) {
    *p = (struct preprocess){.shortest_edge = side,
                             .crop = side,
                             .rescale = 1 / 255.0,
                             .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                             .std = {0.26862954f, 0.26130258f, 0.27577711f},
                             .pad_color = {122, 116, 104}};
}

static bool side_ok(const json_t *v) { return json_is_integer(v) && json_integer_value(v) > 0 && json_integer_value(v) <= MAX_SIDE; }
static bool is_on(const json_t *root, const char *key, bool otherwise) {
    const json_t *v = json_object_get(root, key);
    return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

static int read_size(struct preprocess *p, const json_t *root, const char *path, struct error *err) {
    const json_t *size = json_object_get(root, "size"), *edge = json_is_object(size) ? json_object_get(size, "shortest_edge") : size;
    const json_t *height = json_object_get(size, "height"), *width = json_object_get(size, "width");
    if (!is_on(root, "do_resize", true)) {
        p->shortest_edge = 0;
        return 0;
    }
    if (side_ok(height) && side_ok(width)) {
        p->shortest_edge = 0;
        p->resize_height = (int)json_integer_value(height);
        p->resize_width = (int)json_integer_value(width);
        return 0;
    }
    if (!size || json_is_null(size)) {
        p->shortest_edge = 224;
        return 0;
    }
    if (!side_ok(edge))
        return fail(err, "%s: 'size' must be a whole number from 1 to %d, {\"shortest_edge\": N} or {\"height\": N, \"width\": N}", path,
                    MAX_SIDE);
    p->shortest_edge = (int)json_integer_value(edge);
    return 0;
}

static int read_crop(struct preprocess *p, const json_t *root, const char *path, struct error *err) {
    const json_t *crop = json_object_get(root, "crop_size");
    const json_t *height = json_is_object(crop) ? json_object_get(crop, "height") : crop,
                 *width = json_is_object(crop) ? json_object_get(crop, "width") : crop;
    if (!is_on(root, "do_center_crop", true)) {
        if (p->resize_width <= 0 || p->resize_width != p->resize_height)
            return fail(err, "%s: do_center_crop is off and 'size' is no square: pictures would have any shape, which is not supported",
                        path);
        p->crop = p->resize_width;
        return 0;
    }
    if (!crop || json_is_null(crop)) {
        p->crop = 224;
        return 0;
    }
    if (!side_ok(height) || !side_ok(width) || json_integer_value(height) != json_integer_value(width))
        return fail(err, "%s: 'crop_size' must be a whole number from 1 to %d, or {\"height\": N, \"width\": N} with both equal", path,
                    MAX_SIDE);
    p->crop = (int)json_integer_value(height);
    return 0;
}

static int read_three(float out[3], const json_t *root, const char *key, bool on, float off, const char *path, struct error *err) {
    const json_t *list = json_object_get(root, key);
    for (size_t i = 0; i < 3; i++) {
        const json_t *v = json_array_get(list, i);
        if (!on)
            out[i] = off;
        else if (list && !json_is_null(list)) {
            if (json_array_size(list) != 3 || !json_is_number(v) || !isfinite(json_number_value(v)))
                return fail(err, "%s: '%s' must be a list of three numbers", path, key);
            out[i] = (float)json_number_value(v);
        }
    }
    return 0;
}

static int read_colours(struct preprocess *p, const json_t *root, const char *path, struct error *err) {
    bool normalize = is_on(root, "do_normalize", true);
    const json_t *factor = json_object_get(root, "rescale_factor"), *mean = json_object_get(root, "image_mean");
    if (read_three(p->mean, root, "image_mean", normalize, 0, path, err) || read_three(p->std, root, "image_std", normalize, 1, path, err))
        return -1;
    for (size_t i = 0; i < 3; i++) {
        if (!(p->std[i] > 0)) return fail(err, "%s: 'image_std' must hold numbers above 0", path);
        if (json_array_size(mean) == 3) { /* LLaVA's pad colour: int(255 mean), whatever is normalised */
            double grey = 255 * json_number_value(json_array_get(mean, i));
            p->pad_color[i] = (uint8_t)(grey < 0 ? 0 : grey > 255 ? 255 : grey);
        }
    }
    if (factor && !json_is_null(factor) && (!json_is_number(factor) || !isfinite(json_number_value(factor))))
        return fail(err, "%s: 'rescale_factor' must be a number", path);
    if (json_is_number(factor)) p->rescale = json_number_value(factor);
    if (!is_on(root, "do_rescale", true)) p->rescale = 1;
    return 0;
}

static int read_settings(struct preprocess *p, const json_t *root, const char *path, struct error *err) {
    static const char *const known[] = {"CLIPImageProcessor",  "CLIPImageProcessorFast",  "CLIPImageProcessorPil", "CLIPFeatureExtractor",
                                        "LlavaImageProcessor", "LlavaImageProcessorFast", "LlavaImageProcessorPil"};
    const char *type = json_string_value(json_object_get(root, "image_processor_type"));
    const json_t *resample = json_object_get(root, "resample");
    if (!type) type = json_string_value(json_object_get(root, "feature_extractor_type"));
    bool found = !type;
    for (size_t i = 0; i < sizeof known / sizeof *known && !found; i++) found = !strcmp(type, known[i]);
    if (!found) return fail(err, "%s: the image processor %.60s is not supported; CLIPImageProcessor is", path, type);
    if (resample && !json_is_null(resample) && !(json_is_integer(resample) && json_integer_value(resample) == 3))
        return fail(err, "%s: 'resample' is not 3 (bicubic), the only one supported", path);
    clip_defaults(p, 224);
    p->pad_square = is_on(root, "do_pad", false);
    return read_size(p, root, path, err) || read_crop(p, root, path, err) || read_colours(p, root, path, err) ? -1 : 0;
}

/* A folder without image settings: CLIP's, at the image_size of its config.json. */
static int read_image_size(struct preprocess *p, const char *dir, struct error *err) {
    bool missing;
    char *path = path_join(dir, "config.json");
    json_t *root = read_object(path, &missing, err);
    const json_t *vision = json_object_get(root, "vision_config"), *size = json_object_get(vision ? vision : root, "image_size");
    int rc = 0;
    if (side_ok(size))
        clip_defaults(p, (int)json_integer_value(size));
    else if (root || missing)
        rc = fail(err,
                  "%s: holds neither preprocessor_config.json nor processor_config.json with an image_processor, and no config.json with "
                  "an image_size",
                  dir);
    else
        rc = -1;
    json_decref(root);
    free(path);
    return rc;
}

int preprocess_open(struct preprocess *p, const char *dir, struct error *err) {
    clip_defaults(p, 336);
    if (!dir) return 0;
    bool missing, missing_nested = true;
    int rc;
    char *path = path_join(dir, "preprocessor_config.json"), *nested = path_join(dir, "processor_config.json");
    json_t *root = read_object(path, &missing, err), *outer = missing ? read_object(nested, &missing_nested, err) : NULL;
    const json_t *inner = json_object_get(outer, "image_processor");
    if (root)
        rc = read_settings(p, root, path, err);
    else if (inner)
        rc = read_settings(p, inner, nested, err);
    else if (!missing || (!missing_nested && !outer))
        rc = -1;
    else
        rc = read_image_size(p, dir, err);
    json_decref(root);
    json_decref(outer);
    free(path);
    free(nested);
    return rc;
}

/* ---- LLaVA's config.json ---- */
static int side_by_hub_name(const char *name) {
    static const struct {
        const char *name;
        int side;
    } known[] = {{"openai/clip-vit-large-patch14-336", 336},
                 {"openai/clip-vit-large-patch14", 224},
                 {"openai/clip-vit-base-patch16", 224},
                 {"openai/clip-vit-base-patch32", 224}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) return known[i].side;
    return 0;
}

static int open_tower(struct preprocess *p, const char *dir, const char *tower, const char *vision_tower, struct error *err) {
    char *beside = path_join(dir, tower);
    int rc;
    if (vision_tower)
        rc =
            dir_exists(vision_tower) ? preprocess_open(p, vision_tower, err) : fail(err, "--vision-tower %s: no such folder", vision_tower);
    else if (dir_exists(beside))
        rc = preprocess_open(p, beside, err);
    else if (dir_exists(tower))
        rc = preprocess_open(p, tower, err);
    else if (side_by_hub_name(tower)) {
        clip_defaults(p, side_by_hub_name(tower));
        rc = 0;
    } else
        rc = fail(err, "%s/config.json: the vision tower '%s' is no folder; name it with --vision-tower DIR", dir, tower);
    free(beside);
    return rc;
}

int preprocess_open_model(struct preprocess *p, const char *dir, const char *vision_tower, struct error *err) {
    bool missing;
    char *path = path_join(dir, "config.json");
    if (!dir_exists(dir)) {
        free(path);
        return fail(err, "%s: no such folder", dir);
    }
    json_t *root = read_object(path, &missing, err);
    int rc = root || missing ? 0 : -1;
    const char *tower = json_string_value(json_object_get(root, "mm_vision_tower")),
               *aspect = json_string_value(json_object_get(root, "image_aspect_ratio"));
    if (!rc) rc = tower ? open_tower(p, dir, tower, vision_tower, err) : preprocess_open(p, vision_tower ? vision_tower : dir, err);
    if (!rc && tower) {
        p->pad_square = aspect && !strcmp(aspect, "pad");
        if (aspect && strcmp(aspect, "pad") != 0 && strcmp(aspect, "square") != 0)
            rc = fail(err, "%s: image_aspect_ratio '%.40s' is not supported; pad and square are", path, aspect);
    }
    json_decref(root);
    free(path);
    return rc;
}
