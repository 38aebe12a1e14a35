/* samples.c - data lines (JSONL) as docs/cli.md fixes them: checked line by line, unknown keys kept. */
#include "host/samples.h"
#include "host/file.h"
#include "host/jsonl.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const token_kind_names[KIND_COUNT] = {"bos", "image", "template", "question", "answer"};

/* A text key: absent and null are the same. *out is malloced. */
static int read_text(const json_t *line, const char *key, char **out, struct error *err) {
    const json_t *value = json_object_get(line, key);
    if (!value || json_is_null(value)) return 0;
    if (!json_is_string(value)) return fail(err, "the key '%s' must be a text", key);
    *out = memory_string(json_string_value(value));
    return 0;
}

static int read_id(struct sample *s, size_t index, struct error *err) {
    const json_t *id = json_object_get(s->json, "id");
    char text[32];
    if (id && !json_is_null(id) && !json_is_string(id) && !json_is_number(id)) return fail(err, "the key 'id' must be a text or a number");
    if (id && !json_is_null(id)) {
        s->id = json_dumps(id, JSON_ENCODE_ANY | JSON_COMPACT);
        return s->id ? 0 : fail(err, "the key 'id' cannot be written back as JSON");
    }
    snprintf(text, sizeof text, "%zu", index);
    s->id = memory_string(text);
    return 0;
}

static int read_label(struct sample *s, struct error *err) {
    const json_t *label = json_object_get(s->json, "label");
    s->label = -1;
    if (!label || json_is_null(label)) return 0;
    if (json_is_boolean(label))
        s->label = json_is_true(label);
    else if (json_is_integer(label) && (json_integer_value(label) == 0 || json_integer_value(label) == 1))
        s->label = (int)json_integer_value(label);
    else
        return fail(err, "the key 'label' must be 0 or 1");
    return 0;
}

static int read_sample(struct sample *s, size_t index, const char *folder, struct error *err) {
    char *image = NULL;
    const json_t *answers = json_object_get(s->json, "answers");
    if (answers && !json_is_null(answers) && !json_is_array(answers)) return fail(err, "the key 'answers' must be a list");
    if (read_id(s, index, err) || read_label(s, err) || read_text(s->json, "prompt", &s->prompt, err) ||
        read_text(s->json, "question", &s->question, err) || read_text(s->json, "answer", &s->answer, err) ||
        read_text(s->json, "caption", &s->caption, err) || read_text(s->json, "relation", &s->relation, err) ||
        read_text(s->json, "image", &image, err))
        return -1;
    if (image && *image) s->image = path_join(folder, image);
    bool empty = image && !*image;
    free(image);
    return empty ? fail(err, "the key 'image' is empty; leave it out where there is no picture") : 0;
}

static void sample_free(struct sample *s) {
    char *const texts[] = {s->id, s->image, s->prompt, s->question, s->answer, s->caption, s->relation};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) free(texts[i]);
    json_decref(s->json);
}

int samples_open(struct samples *s, const char *path, struct error *err) {
    struct jsonl lines;
    size_t capacity = 0;
    *s = (struct samples){0};
    if (jsonl_open(&lines, path, err)) return -1;
    s->path = memory_string(path);
    char *folder = path_folder(path);
    json_t *object;
    int rc;
    while ((rc = jsonl_next(&lines, &object, 0, err)) == 1) {
        if (s->count == capacity) {
            capacity = capacity ? 2 * capacity : 256;
            s->at = memory_grow(s->at, capacity, sizeof *s->at);
        }
        struct sample *one = &s->at[s->count];
        *one = (struct sample){.json = object, .line = lines.line};
        s->count++;
        if (read_sample(one, s->count - 1, folder, err)) {
            rc = error_context(err, "%s:%ld", path, lines.line);
            break;
        }
    }
    if (!rc && !s->count) rc = fail(err, "%s: holds no line of data; one JSON object a line is needed", path);
    free(folder);
    jsonl_close(&lines);
    if (rc) samples_free(s);
    return rc;
}

void samples_free(struct samples *s) {
    for (size_t i = 0; i < s->count; i++) sample_free(&s->at[i]);
    free(s->at);
    free(s->path);
    *s = (struct samples){0};
}
