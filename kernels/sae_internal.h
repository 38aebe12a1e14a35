/* sae_internal.h - for the CPU's sae_*.c only: gathered sums of rows, and the products behind sae_encode. */
#ifndef KERNELS_SAE_INTERNAL_H
#define KERNELS_SAE_INTERNAL_H
#include "host/check.h"
#include "kernels/cpu.h"

/* bf16 and back; to nearest even, NaN stays NaN */
static inline float float_from_bf16(bf16 v) {
    uint32_t bits = (uint32_t)v.bits << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline bf16 bf16_from_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t rounded = f != f ? bits | 0x400000u : bits + 0x7FFFu + ((bits >> 16) & 1u);
    return (bf16){(uint16_t)(rounded >> 16)};
}

/* Some rows of a matrix with a weight each; eight are taken in one pass: their loads keep the memory busy side by side. */
enum { SAE_GATHER = 8 };
struct sae_gather {
    const real_t *row[SAE_GATHER];
    real_t weight[SAE_GATHER];
    int rows;
};

/* One column: start + sum of weight * row, fused multiply-adds in the order of the rows, so that grouping changes no bit.
 * rows is a constant where it is called, and the chain stays in a register. */
static inline __attribute__((always_inline)) real_t sae_gather_column(const struct sae_gather *g, const int rows, int i, real_t start) {
#pragma GCC unroll 8
    for (int k = 0; k < rows; k++) start = fma(g->weight[k], g->row[k][i], start);
    return start;
}
static inline __attribute__((always_inline)) void sae_gather_columns(real_t *restrict sum, const struct sae_gather *g, const int rows,
                                                                     int d) {
    const struct sae_gather from = *g;
    for (int i = 0; i < d; i++) sum[i] = sae_gather_column(&from, rows, i, sum[i]);
}
#define SAE_GATHER_CASES(one) one(1) one(2) one(3) one(4) one(5) one(6) one(7) one(8)

/* sum += weights * rows; empties g */
static inline void sae_gather_flush(real_t *restrict sum, struct sae_gather *g, int d) {
#define ONE(n)                                                                                                                             \
    case n:                                                                                                                                \
        sae_gather_columns(sum, g, n, d);                                                                                                  \
        break;
    switch (g->rows) { SAE_GATHER_CASES(ONE) }
#undef ONE
    g->rows = 0;
}
static inline void sae_gather_add(real_t *restrict sum, struct sae_gather *g, const real_t *row, real_t weight, int d) {
    g->row[g->rows] = row;
    g->weight[g->rows++] = weight;
    if (g->rows == SAE_GATHER) sae_gather_flush(sum, g, d);
}

#ifndef STAGEDIFF_REF
/* ---- sae_product.c: two products of rows of x with rows of E ----
 *
 * Exact: the f32 value that counts. 16 chains of fused multiply-adds, chain l over the columns i = l mod 16, then added in
 * a fixed order: the same bits however rows and features are grouped.
 *
 * Screen: both sides turned by one orthogonal matrix (signs, then Hadamard's), which leaves products as they are and spreads
 * a massive channel over many; then rounded to integers, q = round(v * scale), of 8 bits, multiplied at four times the rate
 * of f32 arithmetic, or 16, twice. With s = scale and e = v s - q the rounding of each side,
 *   |x.w - q_x.q_w / (s_x s_w)| <= |e_x|/s_x |w| + (|x| + |e_x|/s_x) |e_w|/s_w        (Cauchy-Schwarz)
 * so a screened product bounds the exact one from both sides. Where products are spread like x and w were independent, with
 * deviation |x||w|/sqrt(d), that bound grows by sqrt(d) over it: half a deviation at d = 1024 in 8 bits. From some d on 16
 * bits are better. No sum leaves 32 bits: 65536 * 255 * 127 < 2^31, and 16 bits are used with |q| <= 46340. */
enum { SAE_TILE_ROWS = 14, SAE_PANEL = 32, SAE_MOST_COLUMNS = 65536, SAE_NARROW_COLUMNS = 2048 };

/* Where rows lie: f32, or bf16 when low is not NULL. */
struct sae_rows {
    const float *real;
    const bf16 *low;
};

/* What rounding a row did. Rows that are not finite, or so large or small that f32 leaves its normal range, cannot be
 * screened: unscale 0 and rounding infinite. */
struct sae_rounded {
    float unscale;  /* 1 / scale; 0 for a row of zeros */
    float norm;     /* at least |v| */
    float rounding; /* at least |e| / scale */
};

/* out[f] = exact product of row `row` of x with row feature[f] of w; both f32 or both bf16 */
void sae_exact_products(float *out, struct sae_rows x, int row, struct sae_rows w, const int *feature, int features, int d);

static inline int sae_screen_columns(int d) { return (d + 63) / 64 * 64; }
static inline bool sae_screen_wide(int d) { return d > SAE_NARROW_COLUMNS; }                               /* 16 bits */
static inline int sae_screen_bytes(int d) { return sae_screen_columns(d) * (sae_screen_wide(d) ? 2 : 1); } /* of a row */

/* What rounding needs: the matrix's signs (sae_screen_columns(d)), memory for SAE_PANEL rounded rows and a turned one. */
struct sae_turning {
    const float *sign;
    char *rounded;
    float *row;
};
void sae_screen_signs(float *sign, int d);

/* Packs up to SAE_TILE_ROWS rows, from row `first` of x on, into x_tile [bytes / 4][SAE_TILE_ROWS][4], missing ones 0;
 * `row` tells what rounding did. 8-bit numbers are kept as q + 128. */
void sae_screen_rows(char *x_tile, struct sae_rounded *row, struct sae_rows x, int first, int rows, int d, struct sae_turning t);
/* Packs up to SAE_PANEL features, from row `first` of w on, into w_panel [bytes / 4][SAE_PANEL][4]; start[j] makes up for
 * the 128 in x: -128 * sum of q_w, 0 for 16 bits. */
void sae_screen_panel(char *w_panel, int32_t *start, struct sae_rounded *feature, struct sae_rows w, int first, int features, int d,
                      struct sae_turning t);
/* sum[r][j] = q_x . q_w */
void sae_screen_tile(int32_t sum[SAE_TILE_ROWS][SAE_PANEL], const char *x_tile, const char *w_panel, const int32_t *start, int d);
#endif
#endif
