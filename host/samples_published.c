/* samples_published.c - benchmark files as their authors publish them, as data lines:
 *   VQAv2   questions   {"data_subtype": "val2014", "questions": [{"image_id", "question", "question_id"}, ..], ..}
 *           annotations {"annotations": [{"question_id", "answer_type", "question_type", "answers": [{"answer": ..}, ..]}, ..], ..}
 *           pictures COCO_<subset>_<12 digits>.jpg, in the folder of pictures or its subfolder <subset>
 *   COCO    captions    {"images": [{"id", "file_name"}, ..], "annotations": [{"image_id", "caption"}, ..], ..}
 *   VSR     JSON lines with image (a name), image_link, caption, label, relation; pictures in the folder or its subfolders train2017,
 * val2017 The JSON files are hundreds of megabytes in a line: only one entry at a time becomes a tree. */
#include "host/file.h"
#include "host/samples.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct text { /* a file of one JSON object */
    const char *path;
    char *data;
    size_t size;
};

static size_t skip_blanks(const struct text *t, size_t at) {
    while (at < t->size && strchr(" \t\r\n", t->data[at]) && t->data[at]) at++;
    return at;
}

/* The byte after the JSON value at `at`; t->size when it does not end. Its inside is checked when it is decoded. */
static size_t skip_value(const struct text *t, size_t at) {
    long depth = 0;
    bool quoted = false;
    for (at = skip_blanks(t, at); at < t->size; at++) {
        const char c = t->data[at];
        if (quoted) {
            if (c == '\\')
                at++;
            else if (c == '"') {
                quoted = false;
                if (depth == 0) return at + 1;
            }
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            depth++;
        } else if (c == ']' || c == '}') {
            if (depth == 0) return at;
            if (--depth == 0) return at + 1;
        } else if (depth == 0 && strchr(", \t\r\n:", c)) {
            return at;
        }
    }
    return t->size;
}

/* Where the value of a key of the top object begins, 0: no such key. */
static size_t find_key(const struct text *t, const char *key) {
    const size_t n = strlen(key);
    size_t at = skip_blanks(t, 0);
    if (at >= t->size || t->data[at] != '{') return 0;
    for (at = skip_blanks(t, at + 1); at < t->size && t->data[at] == '"'; at = skip_blanks(t, at + 1)) {
        const size_t end = skip_value(t, at), colon = skip_blanks(t, end);
        if (colon >= t->size || t->data[colon] != ':') return 0;
        if (end == at + n + 2 && !memcmp(t->data + at + 1, key, n)) return skip_blanks(t, colon + 1);
        at = skip_blanks(t, skip_value(t, colon + 1));
        if (at >= t->size || t->data[at] != ',') return 0;
    }
    return 0;
}

/* The entries of the list `key`, one after the other: *entry is decoded and the caller's. 1, 0 at the end, -1 with err. *at: 0 at first. */
static int next_entry(const struct text *t, const char *key, size_t *at, long *number, json_t **entry, struct error *err) {
    json_error_t bad;
    if (*at == 0) {
        *number = -1;
        *at = find_key(t, key);
        if (*at == 0 || *at >= t->size || t->data[*at] != '[') return fail(err, "%s: expected a list under the key \"%s\"", t->path, key);
        *at = skip_blanks(t, *at + 1);
        if (*at < t->size && t->data[*at] == ']') return 0;
    } else {
        *at = skip_blanks(t, *at);
        if (*at < t->size && t->data[*at] == ']') return 0;
        if (*at >= t->size || t->data[*at] != ',')
            return fail(err, "%s: no valid JSON: \"%s\", after entry %ld: expected , or ]; the file is cut off or damaged", t->path, key,
                        *number);
        ++*at;
    }
    const size_t end = skip_value(t, *at);
    ++*number;
    *entry = json_loadb(t->data + *at, end - *at, JSON_REJECT_DUPLICATES, &bad);
    if (!*entry) return fail(err, "%s: no valid JSON: \"%s\", entry %ld: %s", t->path, key, *number, bad.text);
    *at = end;
    if (json_is_object(*entry)) return 1;
    json_decref(*entry);
    return fail(err, "%s: \"%s\", entry %ld: expected an object", t->path, key, *number);
}

static int text_open(struct text *t, const char *path, struct error *err) {
    t->path = path;
    return file_read(path, SIZE_MAX / 2, &t->data, &t->size, err);
}

static int bad_entry(const struct text *t, const char *key, long number, const char *expected, struct error *err) {
    return fail(err, "%s: \"%s\", entry %ld: expected %s", t->path, key, number, expected);
}

/* name in folder, or in the subfolder where it is not there itself but in that. */
static char *find_picture(const char *folder, const char *subfolder, const char *name) {
    char *path = path_join(folder, name);
    if (!subfolder || !*subfolder || file_exists(path)) return path;
    char *inside = path_join(folder, subfolder), *other = path_join(inside, name);
    free(inside);
    if (!file_exists(other)) {
        free(other);
        return path;
    }
    free(path);
    return other;
}

static struct sample *add_sample(struct samples *s, size_t *capacity) {
    if (s->count == *capacity) {
        *capacity = *capacity ? 2 * *capacity : 256;
        s->at = memory_grow(s->at, *capacity, sizeof *s->at);
    }
    s->at[s->count] = (struct sample){.label = -1, .line = (long)s->count + 1};
    return &s->at[s->count++];
}

static char *id_text(json_int_t id) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)id);
    return memory_string(text);
}

/* ---- VQAv2 ---- */

struct place { /* where an id's sample is */
    json_int_t id;
    size_t at;
};

static int by_id(const void *a, const void *b) {
    json_int_t x = ((const struct place *)a)->id, y = ((const struct place *)b)->id;
    return (x > y) - (x < y);
}

static int read_questions(struct samples *s, const struct text *t, const char *images, struct error *err) {
    json_t *entry, *subset;
    size_t at = find_key(t, "data_subtype"), capacity = 0;
    long number = 0;
    int rc;
    subset = at ? json_loadb(t->data + at, skip_value(t, at) - at, JSON_DECODE_ANY, NULL) : NULL;
    const char *name = json_string_value(subset);
    if (!name || !*name || strchr(name, '/')) {
        json_decref(subset);
        return fail(err, "%s: expected \"data_subtype\", the subset that the pictures' names have, such as \"val2014\"", t->path);
    }
    if (!strcmp(name, "test-dev2015")) name = "test2015"; /* the same pictures */
    at = 0;
    while ((rc = next_entry(t, "questions", &at, &number, &entry, err)) == 1) {
        const json_t *image = json_object_get(entry, "image_id"), *id = json_object_get(entry, "question_id");
        const char *question = json_string_value(json_object_get(entry, "question"));
        char picture[64];
        if (!json_is_integer(image) || json_integer_value(image) < 0 || !json_is_integer(id) || !question) {
            rc = bad_entry(t, "questions", number, "\"image_id\" and \"question_id\", whole numbers, and a \"question\"", err);
            json_decref(entry);
            break;
        }
        struct sample *one = add_sample(s, &capacity);
        snprintf(picture, sizeof picture, "COCO_%.20s_%012lld.jpg", name, (long long)json_integer_value(image));
        one->json = entry;
        one->image = find_picture(images, name, picture);
        one->id = id_text(json_integer_value(id));
        one->question = memory_string(question);
    }
    json_decref(subset);
    return rc;
}

/* References and types into the questions' lines. */
static int read_answers(struct samples *s, const char *path, struct error *err) {
    static const char *const kept[] = {"answer_type", "question_type", "multiple_choice_answer", "answers"};
    struct text t = {0};
    struct place *places = memory_take(s->count + 1, sizeof *places);
    json_t *entry;
    size_t at = 0, found = 0;
    long number;
    for (size_t i = 0; i < s->count; i++) places[i] = (struct place){json_integer_value(json_object_get(s->at[i].json, "question_id")), i};
    qsort(places, s->count, sizeof *places, by_id);
    int rc = text_open(&t, path, err);
    while (rc == 0 && (rc = next_entry(&t, "annotations", &at, &number, &entry, err)) == 1) {
        const struct place key = {json_integer_value(json_object_get(entry, "question_id")), 0};
        const struct place *place = bsearch(&key, places, s->count, sizeof *places, by_id);
        rc = json_is_integer(json_object_get(entry, "question_id")) && json_is_array(json_object_get(entry, "answers"))
                 ? 0
                 : bad_entry(&t, "annotations", number, "a \"question_id\" and a list of \"answers\"", err);
        for (size_t i = 0; rc == 0 && place && i < sizeof kept / sizeof *kept; i++)
            json_object_set(s->at[place->at].json, kept[i], json_object_get(entry, kept[i]));
        found += place != NULL;
        json_decref(entry);
    }
    if (rc == 0 && found == 0)
        rc = fail(err, "%s: has an answer to none of the %zu questions of %s; give the annotations of the same split", path, s->count,
                  s->path);
    free(t.data);
    free(places);
    return rc;
}

/* ---- COCO captions ---- */

static int read_captions(struct samples *s, const struct text *t, const char *images, struct error *err) {
    json_t *entry;
    size_t at = 0, capacity = 0;
    long number;
    int rc;
    while ((rc = next_entry(t, "images", &at, &number, &entry, err)) == 1) {
        const json_t *id = json_object_get(entry, "id");
        const char *name = json_string_value(json_object_get(entry, "file_name"));
        if (!json_is_integer(id) || !name || !*name) {
            json_decref(entry);
            return bad_entry(t, "images", number, "an \"id\", a whole number, and a \"file_name\"", err);
        }
        struct sample *one = add_sample(s, &capacity);
        one->json = json_pack("{s:I, s:s, s:[]}", "image_id", json_integer_value(id), "file_name", name, "captions");
        one->image = find_picture(images, NULL, name);
        one->id = id_text(json_integer_value(id));
        one->question = memory_string("Provide a one-sentence caption for the provided image.");
        json_decref(entry);
    }
    struct place *places = memory_take(s->count + 1, sizeof *places);
    for (size_t i = 0; i < s->count; i++) places[i] = (struct place){json_integer_value(json_object_get(s->at[i].json, "image_id")), i};
    qsort(places, s->count, sizeof *places, by_id);
    for (at = 0; rc == 0 && (rc = next_entry(t, "annotations", &at, &number, &entry, err)) == 1; json_decref(entry)) {
        const struct place key = {json_integer_value(json_object_get(entry, "image_id")), 0};
        const struct place *place = bsearch(&key, places, s->count, sizeof *places, by_id);
        json_t *caption = json_object_get(entry, "caption");
        rc = 0;
        if (!json_is_integer(json_object_get(entry, "image_id")) || !json_is_string(caption))
            rc = bad_entry(t, "annotations", number, "an \"image_id\" and a \"caption\"", err);
        else if (place)
            json_array_append(json_object_get(s->at[place->at].json, "captions"), caption);
    }
    free(places);
    return rc;
}

/* ---- which of them it is ---- */

/* VSR's pictures may lie in the subfolder that image_link names: http://images.cocodataset.org/train2017/000000085637.jpg */
static int place_pictures(struct samples *s, const char *images) {
    for (size_t i = 0; i < s->count; i++) {
        struct sample *one = &s->at[i];
        const char *name = json_string_value(json_object_get(one->json, "image")),
                   *link = json_string_value(json_object_get(one->json, "image_link"));
        if (!name) continue;
        char *folder = link ? path_folder(link) : NULL, *slash = folder ? strrchr(folder, '/') : NULL;
        free(one->image);
        one->image = find_picture(images, slash && strcmp(slash, "/..") ? slash + 1 : NULL, name);
        free(folder);
    }
    return 0;
}

int samples_open_published(struct samples *s, const char *path, const char *annotations, const char *images, struct error *err) {
    struct text t = {0};
    *s = (struct samples){0};
    if (text_open(&t, path, err)) return -1;
    char *folder = images ? memory_string(images) : path_folder(path);
    const bool vqa = find_key(&t, "questions") != 0, captions = find_key(&t, "images") && find_key(&t, "annotations");
    int rc = 0;
    if (images && !dir_exists(images)) rc = fail(err, "%s: no such folder of pictures", images);
    if (rc == 0 && annotations && !vqa)
        rc = fail(err, "%s: annotations go with VQAv2's questions, a JSON object with a list \"questions\", which %s is not", annotations,
                  path);
    if (rc == 0 && (vqa || captions)) {
        s->path = memory_string(path);
        rc = vqa ? read_questions(s, &t, folder, err) : read_captions(s, &t, folder, err);
        if (rc == 0 && s->count == 0) rc = fail(err, "%s: holds no entry", path);
        if (rc == 0 && annotations) rc = read_answers(s, annotations, err);
        if (rc) samples_free(s);
    } else if (rc == 0) {
        rc = samples_open(s, path, err);
        if (rc == 0) rc = place_pictures(s, folder);
    }
    free(t.data);
    free(folder);
    return rc;
}
