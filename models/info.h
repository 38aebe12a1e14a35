/* info.h - what `stagediff info` gathers: checkpoints in models/command_info.c, dictionaries in analysis/info_dictionary.c. */
#ifndef MODELS_INFO_H
#define MODELS_INFO_H
#include "host/tensors.h"
#include <jansson.h>
struct info {
    const char *path, *kind, *format;
    json_t *dims, *dtypes, *files, *problems;
    json_t *notes;            /* what stagediff will do with it, a sentence each */
    size_t parameters, bytes; /* bytes: of the weight files */
};
void info_problem(void *info, const char *sentence);
void info_dim(struct info *info, const char *name, long value);
void info_count(struct info *info, const struct tensors *st);
/* 1: the path is a sparse dictionary, and info says which. 0: it is none. -1: a file that is nothing we know. */
int info_dictionary(struct info *info, struct error *err);
#endif
