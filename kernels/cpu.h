/* cpu.h - for the CPU ops only: exponential and error function in forms that the compiler vectorises.
 *
 * exp_real: e^x. Cody-Waite reduction x = n ln 2 + r, |r| <= ln 2 / 2, polynomial of degree 6 in r, exponent added in
 * integers. At most 1.1 units in the last place off on [-87.33, 88.37]; below 0, above infinity, NaN stays. In the oracle
 * it is the library's. */
#ifndef KERNELS_CPU_H
#define KERNELS_CPU_H
#include <stdint.h>
#include <string.h>
#include <tgmath.h>
#undef I /* complex.h's; here a dimension */

#include "kernels/op.h"

/* Below this many elements a parallel region costs more than it saves. */
#define CPU_PARALLEL_MIN 16384

static inline size_t cpu_offset(int row, int columns) { return (size_t)row * (size_t)columns; }

#ifdef STAGEDIFF_REF
static inline double exp_real(double x) { return exp(x); }
#else
static inline float exp_real(float x) {
    const float low = -87.33f, high = 88.37f, magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float c = x < low ? low : x;
    c = c > high ? high : c;
    float shifted = c * 1.44269504f + magic;
    float n = shifted - magic;
    float r = c - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.3814467e-3f; /* minimax for (e^r - 1 - r) / r^2, 3.1e-9 of e^r */
    p = p * r + 8.3687808e-3f;
    p = p * r + 4.1668393e-2f;
    p = p * r + 1.6666520e-1f;
    p = p * r + 4.9999994e-1f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    uint32_t bits, shift;
    memcpy(&bits, &p, 4);
    memcpy(&shift, &shifted, 4);
    bits += shift << 23; /* 2^n */
    memcpy(&p, &bits, 4);
    p = x < low ? 0.0f : p;
    p = x > high ? HUGE_VALF : p;
    return x != x ? x : p;
}
#endif
#endif
