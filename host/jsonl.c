/* jsonl.c - reads a file of JSON objects line by line. */
#include "host/jsonl.h"
#include "host/file.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int jsonl_open(struct jsonl *j, const char *path, struct error *err) {
    *j = (struct jsonl){0};
    if (file_read(path, SIZE_MAX / 2, &j->data, &j->size, err)) return -1;
    j->path = memory_string(path);
    if (j->size >= 3 && !memcmp(j->data, "\xef\xbb\xbf", 3)) /* byte order mark */
        j->at = 3;
    return 0;
}

void jsonl_close(struct jsonl *j) {
    free(j->path);
    free(j->data);
    *j = (struct jsonl){0};
}

int jsonl_next(struct jsonl *j, json_t **object, size_t flags, struct error *err) {
    while (j->at < j->size) {
        const char *line = j->data + j->at;
        const char *end = memchr(line, '\n', j->size - j->at);
        size_t n = end ? (size_t)(end - line) : j->size - j->at, used = n;
        j->at += end ? n + 1 : n;
        j->line++;
        while (used && strchr(" \t\r", line[used - 1]) && line[used - 1]) used--;
        size_t blank = 0;
        while (blank < used && (line[blank] == ' ' || line[blank] == '\t')) blank++;
        if (blank == used) continue;
        json_error_t bad;
        *object = json_loadb(line, used, JSON_REJECT_DUPLICATES | flags, &bad);
        if (!*object) return fail(err, "%s:%ld: no valid JSON: %s (byte %d of the line)", j->path, j->line, bad.text, bad.position);
        if (!json_is_object(*object)) {
            json_decref(*object);
            *object = NULL;
            return fail(err, "%s:%ld: a JSON object is needed, one a line", j->path, j->line);
        }
        return 1;
    }
    return 0;
}
