/* jsonl.h - a file of JSON objects, one a line; blank lines are skipped, a bad line is an error with file and line number. */
#ifndef HOST_JSONL_H
#define HOST_JSONL_H
#include "host/error.h"
#include <jansson.h>
#include <stddef.h>
struct jsonl { /* owns data */
    char *path, *data;
    size_t size, at;
    long line; /* number of the line last read, from 1 */
};
int jsonl_open(struct jsonl *j, const char *path, struct error *err);
/* 1: *object is the next line's (caller decrefs); 0: the end; -1: err. flags: jansson's, beside JSON_REJECT_DUPLICATES. */
int jsonl_next(struct jsonl *j, json_t **object, size_t flags, struct error *err);
void jsonl_close(struct jsonl *j);
#endif
