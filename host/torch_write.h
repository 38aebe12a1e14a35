/* torch_write.h - writes a torch.save file: a dictionary of tensors that torch.load (weights_only too) gives back. */
#ifndef HOST_TORCH_WRITE_H
#define HOST_TORCH_WRITE_H
#include "host/tensors.h"
struct torch_tensor { /* borrowed; row-major without gaps */
    const char *name; /* UTF-8 */
    enum dtype dtype; /* any but DTYPE_OTHER */
    int rank;         /* up to 8 */
    int64_t shape[8];
    const void *data;
};
/* The file appears whole or not at all. */
int torch_write(const char *path, const struct torch_tensor *tensors, int n, struct error *err);
#endif
