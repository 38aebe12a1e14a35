/* tensors.h - the tensors of a file or folder, by mmap (safetensors, single and sharded), and the writer of safetensors.
 * Layout: u64 LE n | n bytes of JSON | data; entries name -> {dtype, shape, data_offsets}. (formats.md 0.3)
 * Checked at open, before a byte is used: header size, duplicate keys, tiling of the buffer, shape x bits == bytes. */
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
    size_t count, bytes;
    const void *data;
    const char *file;       /* which shard, for messages */
    const char *dtype_text; /* as the file spells it: "BF16", "F8_E4M3", ... */
};
struct tensors; /* owns mappings and names */

/* path: a .safetensors file, an index .json, or a folder (model.safetensors or its index; one single *.safetensors). */
int tensors_open(struct tensors **st, const char *path, struct error *err);
void tensors_close(struct tensors *st); /* NULL is fine */
int tensors_count(const struct tensors *st);
const struct tensor *tensors_at(const struct tensors *st, int i);
const struct tensor *tensors_find(const struct tensors *st, const char *name); /* NULL when absent */
const char *tensors_metadata(const struct tensors *st, const char *key);       /* NULL when absent */
int tensors_files(const struct tensors *st);                                   /* how many files are mapped */
const char *tensors_file(const struct tensors *st, int i, size_t *bytes);      /* path and size of the i-th; bytes may be NULL */
/* Finds and checks: dtype one that tensor_to_f32 knows, rank given by n_dims, dims of -1 match anything. Error names file, tensor,
 * expected, found. */
const struct tensor *tensors_require(const struct tensors *st, const char *name, int n_dims, const int64_t *dims, struct error *err);
/* dst[i] = (float) element first+i, any dtype but DTYPE_OTHER (CHECKed; tensors_require refuses those). */
void tensor_to_f32(const struct tensor *t, size_t first, size_t count, float *dst);
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
