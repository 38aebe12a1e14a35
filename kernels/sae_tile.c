/* sae_tile.c - see sae_internal.h. 14 x 32 sums are 28 of AVX-512's 32 registers; two more hold a row of the panel, one
 * an element of x: 16 loads for 28 fused multiply-adds, so the arithmetic is the limit. bf16 operands are widened while
 * packing: bf16 products are exact in f32, and vdpbf16ps has half the rate of f32 arithmetic on Sapphire Rapids. */
#include "kernels/sae_internal.h"

#ifndef STAGEDIFF_REF
#ifdef __AVX512F__
#include <immintrin.h>
#endif

void sae_pack_rows(float *x_tile, const float *x, int rows, int d, bool low) {
    for (int r = 0; r < SAE_TILE_ROWS; r++) {
        const float *in = x + cpu_offset(r, d);
        for (int i = 0; i < d; i++) {
            float v = r < rows ? in[i] : 0;
            x_tile[cpu_offset(i, SAE_TILE_ROWS) + (size_t)r] = low ? float_from_bf16(bf16_from_float(v)) : v;
        }
    }
}

static void pack_panel_columns(float *w_panel, const float *E, const bf16 *E_low, int features, int d, int from, int to) {
    for (int j = 0; j < SAE_PANEL; j++) {
        const float *in = E ? E + cpu_offset(j, d) : NULL;
        const bf16 *in_low = E_low ? E_low + cpu_offset(j, d) : NULL;
        for (int i = from; i < to; i++)
            w_panel[cpu_offset(i, SAE_PANEL) + (size_t)j] = j >= features ? 0 : in_low ? float_from_bf16(in_low[i]) : in[i];
    }
}

#ifdef __AVX512F__
static inline __m512 load16(const float *E, const bf16 *E_low, size_t at) {
    if (!E_low) return _mm512_loadu_ps(E + at);
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)(E_low + at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* 16 columns of 16 features, turned: out[i][j] = in[j][i] */
static inline void transpose16(float *out, size_t out_stride, __m512 r[16]) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int j = 0; j < 16; j += 2) {
        t[j] = _mm512_unpacklo_ps(r[j], r[j + 1]);
        t[j + 1] = _mm512_unpackhi_ps(r[j], r[j + 1]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 16; j += 4) {
        r[j] = _mm512_shuffle_ps(t[j], t[j + 2], 0x44);
        r[j + 1] = _mm512_shuffle_ps(t[j], t[j + 2], 0xEE);
        r[j + 2] = _mm512_shuffle_ps(t[j + 1], t[j + 3], 0x44);
        r[j + 3] = _mm512_shuffle_ps(t[j + 1], t[j + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512 a = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88), b = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xDD);
        __m512 c = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0x88), e = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0xDD);
        _mm512_storeu_ps(out + (size_t)j * out_stride, _mm512_shuffle_f32x4(a, c, 0x88));
        _mm512_storeu_ps(out + (size_t)(j + 4) * out_stride, _mm512_shuffle_f32x4(b, e, 0x88));
        _mm512_storeu_ps(out + (size_t)(j + 8) * out_stride, _mm512_shuffle_f32x4(a, c, 0xDD));
        _mm512_storeu_ps(out + (size_t)(j + 12) * out_stride, _mm512_shuffle_f32x4(b, e, 0xDD));
    }
}

void sae_pack_panel(float *w_panel, const float *E, const bf16 *E_low, int features, int d) {
    int whole = features == SAE_PANEL ? d / 16 * 16 : 0;
    for (int i = 0; i < whole; i += 16)
        for (int half = 0; half < SAE_PANEL; half += 16) {
            __m512 r[16];
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) r[j] = load16(E, E_low, cpu_offset(half + j, d) + (size_t)i);
            transpose16(w_panel + cpu_offset(i, SAE_PANEL) + (size_t)half, SAE_PANEL, r);
        }
    pack_panel_columns(w_panel, E, E_low, features, d, whole, d);
}

void sae_tile_product(float tile[SAE_TILE_ROWS][SAE_PANEL], const float *x_tile, const float *w_panel, int d) {
    __m512 sum[SAE_TILE_ROWS][2];
#pragma GCC unroll 14
    for (int r = 0; r < SAE_TILE_ROWS; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int i = 0; i < d; i++) {
        __m512 w0 = _mm512_loadu_ps(w_panel), w1 = _mm512_loadu_ps(w_panel + 16);
        _mm_prefetch((const char *)(w_panel + 16 * SAE_PANEL), _MM_HINT_T0);
        _mm_prefetch((const char *)(w_panel + 16 * SAE_PANEL + 16), _MM_HINT_T0);
        w_panel += SAE_PANEL;
#pragma GCC unroll 14
        for (int r = 0; r < SAE_TILE_ROWS; r++) {
            __m512 x = _mm512_set1_ps(x_tile[r]);
            sum[r][0] = _mm512_fmadd_ps(x, w0, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(x, w1, sum[r][1]);
        }
        x_tile += SAE_TILE_ROWS;
    }
#pragma GCC unroll 14
    for (int r = 0; r < SAE_TILE_ROWS; r++) {
        _mm512_storeu_ps(tile[r], sum[r][0]);
        _mm512_storeu_ps(tile[r] + 16, sum[r][1]);
    }
}
#else
void sae_pack_panel(float *w_panel, const float *E, const bf16 *E_low, int features, int d) {
    pack_panel_columns(w_panel, E, E_low, features, d, 0, d);
}

/* Two rows at a time: 64 sums are eight of AVX2's 16 registers. */
void sae_tile_product(float tile[SAE_TILE_ROWS][SAE_PANEL], const float *x_tile, const float *w_panel, int d) {
    for (int r = 0; r < SAE_TILE_ROWS; r += 2) {
        float sum[2][SAE_PANEL] = {{0}};
        for (int i = 0; i < d; i++) {
            const float *w = w_panel + cpu_offset(i, SAE_PANEL);
            float x0 = x_tile[cpu_offset(i, SAE_TILE_ROWS) + (size_t)r], x1 = x_tile[cpu_offset(i, SAE_TILE_ROWS) + (size_t)r + 1];
            for (int j = 0; j < SAE_PANEL; j++) {
                sum[0][j] = fma(x0, w[j], sum[0][j]);
                sum[1][j] = fma(x1, w[j], sum[1][j]);
            }
        }
        memcpy(tile[r], sum, sizeof sum);
    }
}
#endif
#endif
