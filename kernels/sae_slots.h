/* sae_slots.h - sparse codes put in order for dictionaries that the encoder reaches by a detour (sae/encode.c). */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* A code over 2M features, of which M+f is feature f with its sign turned, becomes one over M, ascending again:
 *   indices [out] (N, K)  values [out] (N, K)  =  index i: i < M ? (i, v) : (i - M, -v), sorted by index within the row
 *   doubled [in] (N, K) i32 ascending within a row, 0 .. 2M-1    doubled_values [in] (N, K) real
 * Both halves of one feature may be there (value 0): the first half comes first. No overlap of in and out. */
void OP(sae_merge_signed)(struct device *dev, int *indices, real_t *values, const int *doubled, const real_t *doubled_values, int N, int M,
                          int K);

/* Codes of K groups of `size` features, one slot each, become rows of K slots:
 *   indices[n,g] = groups[g,n] + g * size    values[n,g] = group_values[g,n]    groups [in] (K, N) i32    group_values [in] (K, N) real */
void OP(sae_merge_groups)(struct device *dev, int *indices, real_t *values, const int *groups, const real_t *group_values, int N, int K,
                          int size);

EXTERN_C_END
