/* variant.h - for tests and bench only: the variants of an op on the cuda and sim executors, and a way to force one.
 * The cpu executor has one form of each op: names are NULL and forcing does nothing. */
#ifndef KERNELS_VARIANT_H
#define KERNELS_VARIANT_H
#include "kernels/op.h"
EXTERN_C_BEGIN

/* Name of row `index` of the op's variant table, NULL past its end. */
const char *attention_variant(int index);
const char *attention_backward_variant(int index);

/* From now on ops take this row of their tables where it fits the shape; -1: their own choice. */
void device_force_variant(struct device *dev, int index);

EXTERN_C_END
#endif
