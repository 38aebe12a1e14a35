/* sae_internal.h - for the CPU's sae_*.c only: the dense product behind sae_encode, one small tile at a time.
 *
 * A tile is SAE_TILE_ROWS rows of x times SAE_PANEL features. Both operands are packed so that the product streams:
 *   x_tile [d][SAE_TILE_ROWS]    w_panel [d][SAE_PANEL]
 * The 448 sums stay in registers over the whole of d, in the order of d: the bits of a sum depend on nothing but its
 * row and its feature, so any split among threads gives the same answer. */
#ifndef KERNELS_SAE_INTERNAL_H
#define KERNELS_SAE_INTERNAL_H
#include "kernels/check.h"
#include "kernels/cpu.h"

enum { SAE_TILE_ROWS = 14, SAE_PANEL = 32 };

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

/* Some rows of a matrix with a weight each; they are taken four at a time to spare passes over the sum. */
enum { SAE_GATHER = 4 };
struct sae_gather {
    const real_t *row[SAE_GATHER];
    real_t weight[SAE_GATHER];
    int count;
};

/* sum += weights * rows, one fused multiply-add after the other in the order of the rows, so that grouping changes no bit */
static inline void sae_gather_flush(real_t *restrict sum, struct sae_gather *g, int d) {
    const real_t *restrict a = g->row[0], *restrict b = g->row[1], *restrict c = g->row[2], *restrict e = g->row[3];
    real_t wa = g->weight[0], wb = g->weight[1], wc = g->weight[2], we = g->weight[3];
    if (g->count == SAE_GATHER) {
        for (int i = 0; i < d; i++) sum[i] = fma(we, e[i], fma(wc, c[i], fma(wb, b[i], fma(wa, a[i], sum[i]))));
    } else {
        for (int k = 0; k < g->count; k++)
            for (int i = 0; i < d; i++) sum[i] = fma(g->weight[k], g->row[k][i], sum[i]);
    }
    g->count = 0;
}
static inline void sae_gather_add(real_t *restrict sum, struct sae_gather *g, const real_t *row, real_t weight, int d) {
    g->row[g->count] = row;
    g->weight[g->count++] = weight;
    if (g->count == SAE_GATHER) sae_gather_flush(sum, g, d);
}

/* A gathered row is a few KB at an address nobody can guess: ask for it before its turn. */
static inline void sae_prefetch_row(const real_t *row, int d) {
    for (int i = 0; i < d; i += 64 / (int)sizeof(real_t)) __builtin_prefetch(row + i, 0, 3);
}

#ifndef STAGEDIFF_REF
/* x_tile from `rows` rows of x (missing ones become 0); rounded through bf16 when `low`. */
void sae_pack_rows(float *x_tile, const float *x, int rows, int d, bool low);
/* w_panel from `features` rows of E, or of E_low where that is not NULL (missing ones become 0). */
void sae_pack_panel(float *w_panel, const float *E, const bf16 *E_low, int features, int d);
/* tile[r][j] = sum over i of x_tile[i][r] * w_panel[i][j], fused multiply-adds in the order of i. */
void sae_tile_product(float tile[SAE_TILE_ROWS][SAE_PANEL], const float *x_tile, const float *w_panel, int d);
#endif
#endif
