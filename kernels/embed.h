/* embed.h - token embedding with image rows spliced in; vision embedding. */
#include "kernels/op.h"
EXTERN_C_BEGIN

/* x[n] = source[n] >= 0 ? table[source[n]] : image_rows[-1 - source[n]]
 *   x [out] (N, C) act    source [in] (N) i32    table [in] (V, C) act    image_rows [in] (R, C) act, NULL when unused
 * Cost: reads and writes N*C elements; memory bound. */
void OP(embed_forward)(struct device *dev, act_t *x, const int *source, const act_t *table, const act_t *image_rows, int N, int C);

/* Its backward, rows of one source added in the order of n:
 *   dtable[s] += dx[n] where source[n] == s,    dimage_rows[r] += dx[n] where source[n] == -1 - r
 *   dtable [acc] (V, C) f32    dimage_rows [acc] (R, C) f32, either NULL: not wanted    dx [in] (N, C) act */
void OP(embed_backward)(struct device *dev, real_t *dtable, real_t *dimage_rows, const int *source, const act_t *dx, int N, int C);

/* Non-overlapping patches as rows, in the order of a convolution weight (C_in, P, P):
 * rows[b*(S/P)^2 + i*(S/P) + j][c*P*P + u*P + v] = pixels[b][c][i*P+u][j*P+v]
 *   rows [out] (B*(S/P)^2, 3*P*P) act    pixels [in] (B, 3, S, S) f32.  Needs S % P == 0. */
void OP(patch_extract)(struct device *dev, act_t *rows, const real_t *pixels, int B, int S, int P);

/* CLIP embedding: x[b][0] = class_row + position[0]; x[b][1+i] = patches[b][i] + position[1+i]
 *   x [out] (B, 1+n, C) act    patches [in] (B, n, C) act    class_row [in] (C)    position [in] (1+n, C) */
void OP(vision_embed_forward)(struct device *dev, act_t *x, const act_t *patches, const act_t *class_row, const act_t *position, int B,
                              int n, int C);

EXTERN_C_END
