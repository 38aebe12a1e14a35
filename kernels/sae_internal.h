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
 * Screen: both sides rounded to 16-bit integers, q = round(v * scale), multiplied at twice the rate of f32 arithmetic.
 * With s = scale and e = v s - q the rounding of each side,
 *   |x.w - q_x.q_w / (s_x s_w)| <= |e_x|/s_x |w| + (|x| + |e_x|/s_x) |e_w|/s_w        (Cauchy-Schwarz)
 * so a screened product bounds the exact one from both sides. scale makes |q| <= 46340: no sum of products leaves 32 bits,
 * by the same inequality. */
enum { SAE_TILE_ROWS = 14, SAE_PANEL = 32, SAE_EXACT_ROWS = 6, SAE_EXACT_FEATURES = 4 };

/* Where rows of weights lie: f32, or bf16 when low is not NULL. */
struct sae_weights {
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

/* out[r][f] = exact product of row r of x with row feature[f] of w; x points at them. At most SAE_EXACT_ROWS
 * rows, any number of features; out has `width` columns. */
void sae_exact_products(float *out, int width, const float *const *x, int rows, struct sae_weights w, const int *feature, int features,
                        int d);

/* Packs up to SAE_TILE_ROWS rows into x_tile [pairs of columns][SAE_TILE_ROWS][2], missing ones 0; `row` tells what rounding did. */
void sae_screen_rows(int16_t *x_tile, struct sae_rounded *row, const float *x, int rows, int d, int16_t *temporary);
/* Packs up to SAE_PANEL features into w_panel [pairs of columns][SAE_PANEL][2]. temporary: SAE_PANEL * (d + 32) elements for both. */
void sae_screen_panel(int16_t *w_panel, struct sae_rounded *feature, struct sae_weights w, int features, int d, int16_t *temporary);
/* sum[r][j] = q_x . q_w */
void sae_screen_tile(int32_t sum[SAE_TILE_ROWS][SAE_PANEL], const int16_t *x_tile, const int16_t *w_panel, int d);
static inline int sae_screen_pairs(int d) { return (d + 31) / 32 * 16; }
#endif
#endif
