/* test_image.c - decoded pixels and pixel values, bit for bit those of Pillow and transformers' slow CLIPImageProcessor (hashes in
 * tests/golden/host/pictures.jsonl, tools/golden/make_host.py); truncated and hostile files; the image settings' two generations. */
#include "host/file.h"
#include "host/image.h"
#include "host/jsonl.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define GOLDEN "tests/golden/host/"

static bool same_hash(const void *data, size_t bytes, const json_t *line, const char *key) {
    uint64_t h = 1469598103934665603u;
    char text[20];
    for (size_t i = 0; i < bytes; i++) h = (h ^ ((const unsigned char *)data)[i]) * 1099511628211u;
    snprintf(text, sizeof text, "%016llx", (unsigned long long)h);
    return !strcmp(text, json_string_value(json_object_get(line, key)));
}

static const struct {
    const char *name;
    int edge, crop;
    bool pad;
} settings[] = {{"crop", 32, 32, false}, {"pad", 32, 32, true}, {"wider", 24, 31, false}, {"odd", 35, 27, false}};

static void test_pictures(void **state) {
    (void)state;
    struct error err = {""};
    struct jsonl lines;
    json_t *line;
    int n = 0, wrong = 0;
    assert_int_equal(jsonl_open(&lines, GOLDEN "pictures.jsonl", &err), 0);
    for (; jsonl_next(&lines, &line, 0, &err) == 1; n++) {
        const char *name = json_string_value(json_object_get(line, "file"));
        char path[256];
        snprintf(path, sizeof path, GOLDEN "pictures/%s", name);
        struct image image;
        if (image_open(&image, path, &err)) fail_msg("%s", err.text);
        assert_int_equal(image.width, json_integer_value(json_object_get(line, "width")));
        assert_int_equal(image.height, json_integer_value(json_object_get(line, "height")));
        if (!same_hash(image.pixels, (size_t)image.width * (size_t)image.height * 3, line, "rgb")) {
            print_error("%s: decoded pixels differ from Pillow's\n", name);
            wrong++;
        }
        for (size_t s = 0; s < sizeof settings / sizeof *settings; s++) {
            struct preprocess p;
            float values[3 * 32 * 32];
            assert_int_equal(preprocess_open(&p, NULL, &err), 0);
            p.shortest_edge = settings[s].edge;
            p.crop = settings[s].crop;
            p.pad_square = settings[s].pad;
            assert_int_equal(preprocess_image(&p, &image, values, &err), 0);
            if (!same_hash(values, (size_t)(3 * p.crop * p.crop) * sizeof *values, line, settings[s].name)) {
                print_error("%s: pixel values (%s) differ from transformers'\n", name, settings[s].name);
                wrong++;
            }
        }
        image_free(&image);
        json_decref(line);
    }
    jsonl_close(&lines);
    assert_true(n >= 40);
    assert_int_equal(wrong, 0);
}

static void write_file(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

/* Every picture cut anywhere before its last rows is refused with its name; nothing crashes. */
static void test_truncated(void **state) {
    (void)state;
    const char *const names[] = {"progressive.jpg", "subsampling_2.jpg", "cmyk.jpg",     "restarts.jpg",
                                 "rgb_32x32.png",   "interlaced.png",    "palette_4.png"};
    const char *path = "build/test-truncated";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct error err = {""};
        struct image image;
        char *data, source[256];
        size_t n;
        snprintf(source, sizeof source, GOLDEN "pictures/%s", names[i]);
        assert_int_equal(file_read(source, 1 << 20, &data, &n, &err), 0);
        bool png = strstr(names[i], ".png") != NULL;
        for (size_t cut = 0; cut < n - (png ? 16 : 2);
             cut += cut < 64 || n - cut < 64 ? 1 : 37) { /* the rest is a checksum and IEND, or EOI: Pillow does without */
            write_file(path, data, cut);
            if (!image_open(&image, path, &err)) fail_msg("%s cut to %zu of %zu bytes was accepted", names[i], cut, n);
            assert_non_null(strstr(err.text, path));
            assert_null(image.pixels);
        }
        for (size_t at = 0; at < n; at += 7) { /* damaged: any answer but a crash */
            data[at] = (char)(data[at] ^ 0x5a);
            write_file(path, data, n);
            if (!image_open(&image, path, &err)) image_free(&image);
            data[at] = (char)(data[at] ^ 0x5a);
        }
        free(data);
    }
    unlink(path);
}

/* Headers that promise more pixels than the file can hold are refused before memory is asked for. */
static void test_bombs(void **state) {
    (void)state;
    const char *path = "build/test-bomb";
    struct error err = {""};
    struct image image;
    char *data;
    size_t n;
    assert_int_equal(file_read(GOLDEN "pictures/optimized.jpg", 1 << 20, &data, &n, &err), 0);
    char *frame = memmem(data, n, "\xff\xc0", 2);
    assert_non_null(frame);
    memcpy(frame + 5, "\x2f\xff\x2f\xff", 4);
    write_file(path, data, n);
    assert_int_equal(image_open(&image, path, &err), -1);
    assert_non_null(strstr(err.text, "cannot hold"));
    free(data);
    write_file(path, "GIF89a", 6);
    assert_int_equal(image_open(&image, path, &err), -1);
    assert_non_null(strstr(err.text, "GIF"));
    write_file(path, "", 0);
    assert_int_equal(image_open(&image, path, &err), -1);
    assert_int_equal(image_open(&image, "build", &err), -1);
    assert_int_equal(image_open(&image, "build/no such picture", &err), -1);
    unlink(path);
}

/* A progressive picture whose first scan comes 600 times: each would be a walk over the whole picture. */
static void test_scans(void **state) {
    (void)state;
    struct error err = {""};
    struct image image;
    char *data, path[] = "/tmp/stagediff_scans_XXXXXX";
    size_t size, from = 0, to;
    assert_int_equal(file_read(GOLDEN "pictures/progressive.jpg", 1 << 20, &data, &size, &err), 0);
    while (memcmp(data + from, "\xff\xda", 2) != 0) from++;
    for (to = from + 2; data[to] != '\xff' || data[to + 1] == 0; to++) continue; /* the next marker */
    for (int copies = 1; copies <= 600; copies += 599) {
        int fd = mkstemp(path);
        FILE *f = fdopen(fd, "wb");
        fwrite(data, 1, from, f);
        for (int i = 0; i < copies; i++) fwrite(data + from, 1, to - from, f);
        fwrite(data + to, 1, size - to, f);
        fclose(f);
        const int status = image_open(&image, path, &err);
        unlink(path);
        strcpy(path + sizeof path - 7, "XXXXXX");
        assert_int_equal(status, copies == 1 ? 0 : -1);
        if (!status) image_free(&image);
    }
    assert_non_null(strstr(err.text, "more than 500 scans"));
    free(data);
}

static void test_png_back(void **state) {
    (void)state;
    struct error err = {""};
    struct image image, again;
    uint8_t *png;
    size_t bytes;
    const char *path = "build/test-image.png";
    assert_int_equal(image_open(&image, GOLDEN "pictures/rgb_96x70.png", &err), 0);
    assert_int_equal(image_write_png(&image, &png, &bytes, &err), 0);
    write_file(path, png, bytes);
    assert_int_equal(image_open(&again, path, &err), 0);
    assert_int_equal(again.width, image.width);
    assert_memory_equal(again.pixels, image.pixels, (size_t)image.width * (size_t)image.height * 3);
    free(png);
    image_free(&image);
    image_free(&again);
    unlink(path);
}

/* ---- settings ---- */
static int open_settings(struct preprocess *p, const char *file, const char *json, const char *config, struct error *err) {
    char dir[] = "build/settings.XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *path = path_join(dir, file), *config_path = path_join(dir, "config.json");
    if (json) write_file(path, json, strlen(json));
    if (config) write_file(config_path, config, strlen(config));
    int rc = preprocess_open_model(p, dir, NULL, err);
    unlink(path);
    unlink(config_path);
    rmdir(dir);
    free(path);
    free(config_path);
    return rc;
}

static void test_settings(void **state) {
    (void)state;
    struct error err = {""};
    struct preprocess p;
    const char *old = "{\"crop_size\": 48, \"size\": 50, \"do_resize\": true, \"resample\": 3, \"feature_extractor_type\": "
                      "\"CLIPFeatureExtractor\", \"image_mean\": [0.5, 0.25, 0.1], \"image_std\": [1, 2, 4]}";
    if (open_settings(&p, "preprocessor_config.json", old, NULL, &err)) fail_msg("%s", err.text);
    assert_int_equal(p.crop, 48);
    assert_int_equal(p.shortest_edge, 50);
    assert_true(p.std[2] == 4 && p.mean[1] == 0.25f && p.rescale == 1 / 255.0);
    assert_int_equal(p.pad_color[0], 127);
    const char *nested = "{\"image_processor\": {\"crop_size\": {\"height\": 20, \"width\": 20}, \"size\": {\"height\": 21, \"width\": "
                         "22}, \"do_rescale\": false, \"do_normalize\": false}}";
    if (open_settings(&p, "processor_config.json", nested, NULL, &err)) fail_msg("%s", err.text);
    assert_int_equal(p.resize_height, 21);
    assert_int_equal(p.resize_width, 22);
    assert_true(p.rescale == 1 && p.mean[0] == 0 && p.std[0] == 1);
    if (open_settings(&p, "x", NULL, "{\"vision_config\": {\"image_size\": 28}}", &err)) fail_msg("%s", err.text);
    assert_int_equal(p.crop, 28);
    if (open_settings(&p, "x", NULL, "{\"mm_vision_tower\": \"openai/clip-vit-large-patch14-336\", \"image_aspect_ratio\": \"pad\"}", &err))
        fail_msg("%s", err.text);
    assert_int_equal(p.crop, 336);
    assert_true(p.pad_square && p.pad_color[0] == 122 && p.pad_color[1] == 116 && p.pad_color[2] == 104);
    static const struct {
        const char *json, *config, *expected;
    } bad[] = {{"{\"resample\": 2}", NULL, "resample"},
               {"{\"size\": -3}", NULL, "size"},
               {"{\"size\": 1e9}", NULL, "size"},
               {"{\"crop_size\": {\"height\": 3, \"width\": 4}}", NULL, "crop_size"},
               {"{\"image_std\": [0, 1, 1]}", NULL, "image_std"},
               {"{\"image_mean\": [0, 1]}", NULL, "image_mean"},
               {"{\"image_processor_type\": \"SiglipImageProcessor\"}", NULL, "Siglip"},
               {"{\"do_center_crop\": false, \"size\": 30}", NULL, "do_center_crop"},
               {"[1]", NULL, "object"},
               {"{", NULL, "JSON"},
               {NULL, NULL, "preprocessor_config.json"},
               {NULL, "{\"mm_vision_tower\": \"../nowhere\"}", "nowhere"},
               {NULL, "{\"mm_vision_tower\": \"openai/clip-vit-base-patch32\", \"image_aspect_ratio\": \"anyres\"}", "anyres"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (!open_settings(&p, "preprocessor_config.json", bad[i].json, bad[i].config, &err))
            fail_msg("accepted: %s", bad[i].json ? bad[i].json : bad[i].config);
        if (!strstr(err.text, bad[i].expected)) fail_msg("the message should name %s: %s", bad[i].expected, err.text);
    }
}

/* A picture a pixel wide and very long must not ask for gigabytes. */
static void test_long_picture(void **state) {
    (void)state;
    struct error err = {""};
    struct preprocess p;
    uint8_t *pixels = memory_take(60000, 3);
    struct image image = {60000, 1, pixels};
    float *values = memory_take(3 * 336 * 336, sizeof *values);
    preprocess_open(&p, NULL, &err);
    p.shortest_edge = 8000;
    assert_int_equal(preprocess_image(&p, &image, values, &err), -1);
    assert_non_null(strstr(err.text, "pixels"));
    free(pixels);
    free(values);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pictures), cmocka_unit_test(test_truncated), cmocka_unit_test(test_bombs),       cmocka_unit_test(test_scans),
        cmocka_unit_test(test_png_back), cmocka_unit_test(test_settings),  cmocka_unit_test(test_long_picture)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
