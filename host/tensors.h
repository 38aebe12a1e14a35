/* tensors.h - the tensors of a file or folder, by mmap, and the writer of safetensors.
 * Files: safetensors (safetensors.c), torch.save's zip (torch_file.c), numpy's npz (npz.c); told apart by content.
 * Everything is checked at opening, before a byte is used: sizes, offsets, strides, names; memory taken is bounded by the file's size. */
#ifndef HOST_TENSORS_H
#define HOST_TENSORS_H
#include "host/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_F64, DTYPE_I64, DTYPE_I32, DTYPE_I16, DTYPE_I8, DTYPE_U8, DTYPE_BOOL, DTYPE_OTHER };
const char *dtype_name(enum dtype t);
size_t dtype_bytes(enum dtype t); /* 0 for DTYPE_OTHER */

struct tensor { /* borrows from the file's mapping; data may be unaligned */
    const char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[8];
    int64_t stride[8];   /* in elements */
    bool strided;        /* false: row-major without gaps; true: element (i, j, ...) lies at i * stride[0] + j * stride[1] + ... */
    size_t count, bytes; /* bytes: of count elements, wherever they lie */
    const void *data;
    const char *file;       /* which shard, for messages */
    const char *dtype_text; /* as the file spells it: "BF16", "F8_E4M3", ... */
};
struct tensors; /* owns mappings and names */

/* path: a file, a shard index (.json), or a folder: model.safetensors or its index, else pytorch_model.bin or its index, else the only
 * index, else the only file of tensors in it. Nested dictionaries of torch files give names joined by dots ("sae.encoder.weight"),
 * numbers and texts in them metadata. */
int tensors_open(struct tensors **st, const char *path, struct error *err);
void tensors_close(struct tensors *st); /* NULL is fine */
int tensors_count(const struct tensors *st);
const struct tensor *tensors_at(const struct tensors *st, int i);
const struct tensor *tensors_find(const struct tensors *st, const char *name); /* NULL when absent */
const char *tensors_metadata(const struct tensors *st, const char *key);       /* NULL when absent */
int tensors_files(const struct tensors *st);                                   /* how many files are mapped */
const char *tensors_file(const struct tensors *st, int i, size_t *bytes);      /* path and size of the i-th; bytes may be NULL */
/* The tensor's pages may leave memory: for one that has been copied. Reading it again brings them back from the file. */
void tensors_release(const struct tensors *st, const struct tensor *t);
/* Finds and checks: dtype one that tensor_to_f32 knows, rank given by n_dims, dims of -1 match anything. Error names file, tensor,
 * expected, found. */
const struct tensor *tensors_require(const struct tensors *st, const char *name, int n_dims, const int64_t *dims, struct error *err);
/* dst[i] = (float) element first+i in row-major order of the shape, whatever the strides; any dtype but DTYPE_OTHER (CHECKed;
 * tensors_require refuses those). Strided tensors are gathered in tiles, a cache line at a time: ask for 16 rows or more at once. */
void tensor_to_f32(const struct tensor *t, size_t first, size_t count, float *dst);
/* All elements in row-major order and their own dtype, t->bytes of them; CHECKed as above. */
void tensor_copy(const struct tensor *t, void *dst);
/* All elements as I32; a float dtype, DTYPE_OTHER or a value that does not fit is an error. */
int tensor_to_i32(const struct tensor *t, int32_t *dst, struct error *err);

/* Writer: declare all tensors first, then the file is written in declaration order; atomic. */
struct safetensors_writer;
int safetensors_writer_open(struct safetensors_writer **w, const char *path, struct error *err);
void safetensors_writer_metadata(struct safetensors_writer *w, const char *key, const char *value);
/* data must live until commit (borrowed); name is copied. */
void safetensors_writer_add(struct safetensors_writer *w, const char *name, enum dtype dtype, int rank, const int64_t *shape,
                            const void *data);
/* As add, but takes ownership of malloced data. */
void safetensors_writer_give(struct safetensors_writer *w, const char *name, enum dtype dtype, int rank, const int64_t *shape, void *data);
int safetensors_writer_commit(struct safetensors_writer *w, struct error *err); /* frees w in any case */
void safetensors_writer_abort(struct safetensors_writer *w);
#endif
