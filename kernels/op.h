/* op.h - the types that every operation's contract is written in.
 *
 * One prototype, three executors and one oracle:
 *   cpu        act_t = float    op.c, OpenMP
 *   cuda, sim  act_t = bf16     op.cu, by nvcc or through kernels/simt/    (-DSTAGEDIFF_BF16)
 *   ref        act_t = double   op.c once more, names prefixed ref_        (-DSTAGEDIFF_REF)
 * act_t is what activations and model weights are stored in, real_t what sums, norms, softmax, statistics, SAE
 * weights and optimizer state are kept in (f32; double in the oracle).
 *
 * Op headers hold prototypes only, written as `void OP(name)(...)`, and have no include guard: tests include
 * them a second time between ref_begin.h and ref_end.h to see the oracle's prototypes. */
#ifndef KERNELS_OP_H
#define KERNELS_OP_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define EXTERN_C_BEGIN extern "C" {
#define EXTERN_C_END   }
#define bf16           __nv_bfloat16 /* same bits; a .cu includes kernels/simt/simt.h first */
#else
#define EXTERN_C_BEGIN
#define EXTERN_C_END
/* bfloat16 as stored: sign, 8 exponent bits, 7 fraction bits (the upper half of a float). */
typedef struct bf16 {
    uint16_t bits;
} bf16;
#endif

struct device;

#include "kernels/ref_end.h" /* act_t, real_t and OP of this build */

#endif
