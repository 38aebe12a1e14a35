/* tensors_internal.h - what tensors.c (folders, indices, names) and the readers of single files share. */
#ifndef HOST_TENSORS_INTERNAL_H
#define HOST_TENSORS_INTERNAL_H
#include "host/tensors.h"
#include "host/zip.h"
#include <jansson.h>

enum { TENSOR_MAX_RANK = 8 };

struct tensor_memory; /* names and inflated data that tensors borrow */
struct tensor_file {
    char *path;
    const unsigned char *bytes; /* the mapping */
    size_t size;
    json_t *header;         /* safetensors: owns names and dtype texts that tensors borrow */
    json_t *metadata;       /* text -> text; NULL: none */
    struct tensor *tensors; /* what the reader found; taken over by tensors.c */
    size_t count;
    struct tensor_memory *owned;
};
/* malloced bytes that live as long as the file; NULL when there is no memory. */
void *tensor_file_take(struct tensor_file *f, size_t bytes);
/* Room for one more tensor at f->tensors[f->count]; the caller fills it and counts it. */
struct tensor *tensor_file_next(struct tensor_file *f);
/* t->count and t->bytes from t->shape and element bytes; strides row-major. -1: more elements than a size_t holds / 64. */
int tensor_measure(struct tensor *t, size_t element);

/* Readers of one mapped file: fill f->tensors, header, metadata; f is freed by the caller in any case. */
int safetensors_read(struct tensor_file *f, struct error *err);
int torch_file_read(struct tensor_file *f, const struct zip *z, struct error *err);
int npz_read(struct tensor_file *f, const struct zip *z, struct error *err);
#endif
