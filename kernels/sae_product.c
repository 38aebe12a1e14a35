/* sae_product.c - see sae_internal.h. Rates on one core of Sapphire Rapids, of 182 GFLOP/s in f32: vpdpwssd 384,
 * vdpbf16ps 89 (half of f32, so bf16 is widened here, which is exact). The screen's tile is 14 x 32 sums in 28 of
 * AVX-512's 32 registers: 16 loads for 28 multiply-adds. */
#include "kernels/sae_internal.h"

#ifndef STAGEDIFF_REF
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum { LANES = 16, NORM_LIMIT = 46340 }; /* 46340^2 < 2^31 */

/* ---- sixteen floats: one AVX-512 register, or an array that the compiler maps to what there is ---- */
#ifdef __AVX512F__
typedef __m512 lanes;
static inline lanes lanes_zero(void) { return _mm512_setzero_ps(); }
static inline lanes lanes_load(const float *p, int n) {
    return n >= LANES ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline lanes lanes_load_low(const bf16 *p, int n) {
    __mmask16 mask = (__mmask16)(n >= LANES ? 0xFFFFu : (1u << n) - 1);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}
static inline lanes lanes_fma(lanes a, lanes b, lanes c) { return _mm512_fmadd_ps(a, b, c); }
static inline float lanes_sum(lanes a) { return _mm512_reduce_add_ps(a); }
static inline lanes lanes_set(float v) { return _mm512_set1_ps(v); }
static inline lanes lanes_larger(lanes a, lanes v) { return _mm512_max_ps(_mm512_abs_ps(v), a); } /* a NaN in v leaves a */
/* q = round(v * scale) to 16 bits; sum + (v * scale - q)^2 */
static inline lanes lanes_round(int16_t *q, lanes v, lanes scale, lanes sum) {
    lanes rounded = _mm512_roundscale_ps(_mm512_mul_ps(v, scale), 0), miss = _mm512_fmsub_ps(v, scale, rounded);
    _mm256_storeu_si256((__m256i *)(void *)q, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(rounded)));
    return _mm512_fmadd_ps(miss, miss, sum);
}
#else
typedef struct {
    float v[LANES];
} lanes;
static inline lanes lanes_zero(void) { return (lanes){{0}}; }
static inline lanes lanes_load(const float *p, int n) {
    lanes a = {{0}};
    for (int l = 0; l < LANES && l < n; l++) a.v[l] = p[l];
    return a;
}
static inline lanes lanes_load_low(const bf16 *p, int n) {
    lanes a = {{0}};
    for (int l = 0; l < LANES && l < n; l++) a.v[l] = float_from_bf16(p[l]);
    return a;
}
static inline lanes lanes_fma(lanes a, lanes b, lanes c) {
    for (int l = 0; l < LANES; l++) c.v[l] = fma(a.v[l], b.v[l], c.v[l]);
    return c;
}
static inline float lanes_sum(lanes a) {
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) a.v[l] += a.v[l + half];
    return a.v[0];
}
static inline lanes lanes_set(float v) {
    lanes a;
    for (int l = 0; l < LANES; l++) a.v[l] = v;
    return a;
}
static inline lanes lanes_larger(lanes a, lanes v) {
    for (int l = 0; l < LANES; l++) a.v[l] = fabs(v.v[l]) > a.v[l] ? fabs(v.v[l]) : a.v[l];
    return a;
}
static inline lanes lanes_round(int16_t *q, lanes v, lanes scale, lanes sum) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    for (int l = 0; l < LANES; l++) {
        float rounded = fma(v.v[l], scale.v[l], magic) - magic, miss = fma(v.v[l], scale.v[l], -rounded);
        q[l] = (int16_t)(int)rounded;
        sum.v[l] = fma(miss, miss, sum.v[l]);
    }
    return sum;
}
#endif

static inline lanes load_weights(struct sae_weights w, size_t at, int n) {
    return w.low ? lanes_load_low(w.low + at, n) : lanes_load(w.real + at, n);
}

/* ---- the exact product ---- */

/* n of 16 columns from i on: sums += x * w for R rows and F features */
static inline __attribute__((always_inline)) void exact_columns(lanes sum[SAE_EXACT_ROWS][SAE_EXACT_FEATURES], const float *const *x,
                                                                const int R, struct sae_weights w, const bool low, const size_t *start,
                                                                const int F, int i, const int n) {
    lanes wv[SAE_EXACT_FEATURES];
#pragma GCC unroll 4
    for (int f = 0; f < F; f++) wv[f] = low ? lanes_load_low(w.low + start[f] + i, n) : lanes_load(w.real + start[f] + i, n);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        lanes xv = lanes_load(x[r] + i, n);
#pragma GCC unroll 4
        for (int f = 0; f < F; f++) sum[r][f] = lanes_fma(xv, wv[f], sum[r][f]);
    }
}

/* R rows and F features; both and `low` are constants where it is called, so every sum is a register. */
static inline __attribute__((always_inline)) void exact_group(float *out, int width, const float *const *x, const int R,
                                                              struct sae_weights w, const bool low, const int *feature, const int F,
                                                              int d) {
    lanes sum[SAE_EXACT_ROWS][SAE_EXACT_FEATURES];
    size_t start[SAE_EXACT_FEATURES];
    int whole = d / LANES * LANES;
#pragma GCC unroll 4
    for (int f = 0; f < F; f++) {
        start[f] = cpu_offset(feature[f], d);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) sum[r][f] = lanes_zero();
    }
    for (int i = 0; i < whole; i += LANES) exact_columns(sum, x, R, w, low, start, F, i, LANES);
    if (whole < d) exact_columns(sum, x, R, w, low, start, F, whole, d - whole);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int f = 0; f < F; f++) out[cpu_offset(r, width) + (size_t)f] = lanes_sum(sum[r][f]);
}

static inline __attribute__((always_inline)) void exact_products(float *out, int width, const float *const *x, int rows,
                                                                 struct sae_weights w, const bool low, const int *feature, int features,
                                                                 int d) {
    int f = 0;
    for (; rows == SAE_EXACT_ROWS && f + SAE_EXACT_FEATURES <= features; f += SAE_EXACT_FEATURES)
        exact_group(out + f, width, x, SAE_EXACT_ROWS, w, low, feature + f, SAE_EXACT_FEATURES, d);
    for (int r = 0; r < rows; r++) {
        float *to = out + cpu_offset(r, width);
        int g = f;
        for (; g + SAE_EXACT_FEATURES <= features; g += SAE_EXACT_FEATURES)
            exact_group(to + g, width, x + r, 1, w, low, feature + g, SAE_EXACT_FEATURES, d);
        for (; g < features; g++) exact_group(to + g, width, x + r, 1, w, low, feature + g, 1, d);
    }
}

void sae_exact_products(float *out, int width, const float *const *x, int rows, struct sae_weights w, const int *feature, int features,
                        int d) {
    if (w.low)
        exact_products(out, width, x, rows, w, true, feature, features, d);
    else
        exact_products(out, width, x, rows, w, false, feature, features, d);
}

/* ---- the screen ---- */

/* q = round(v * scale), padded with zeros to whole groups of 32 */
static struct sae_rounded round_row(int16_t *q, struct sae_weights w, size_t at, int d) {
    lanes square = lanes_zero(), largest = lanes_zero(), missed = lanes_zero();
    for (int i = 0; i < d; i += LANES) {
        lanes v = load_weights(w, at + (size_t)i, d - i);
        square = lanes_fma(v, v, square);
        largest = lanes_larger(largest, v);
    }
    float size[LANES], top = 0;
    memcpy(size, &largest, sizeof size);
    for (int l = 0; l < LANES; l++) top = size[l] > top ? size[l] : top;
    double norm = sqrt((double)lanes_sum(square)) * (1 + 1e-3);
    memset(q, 0, 2 * (size_t)sae_screen_pairs(d) * sizeof *q);
    if (norm == 0 && top == 0) return (struct sae_rounded){0, 0, 0};
    if (!(norm > 1e-15 && norm < 1e15)) return (struct sae_rounded){0, HUGE_VALF, HUGE_VALF};
    double room = (NORM_LIMIT - 1 - 0.5 * sqrt((double)d)) / norm, limit = 32766 / (double)top;
    float scale = (float)(room < limit ? room : limit);
    for (int i = 0; i < d; i += LANES) missed = lanes_round(q + i, load_weights(w, at + (size_t)i, d - i), lanes_set(scale), missed);
    return (struct sae_rounded){1 / scale, (float)norm, (float)(sqrt((double)lanes_sum(missed)) * (1 + 1e-3) / (double)scale)};
}

void sae_screen_rows(int16_t *x_tile, struct sae_rounded *row, const float *x, int rows, int d, int16_t *temporary) {
    int pairs = sae_screen_pairs(d);
    for (int r = 0; r < SAE_TILE_ROWS; r++) {
        if (r < rows)
            row[r] = round_row(temporary, (struct sae_weights){x, NULL}, cpu_offset(r, d), d);
        else
            memset(temporary, 0, 2 * (size_t)pairs * sizeof *temporary);
        for (int p = 0; p < pairs; p++)
            memcpy(x_tile + 2 * (cpu_offset(p, SAE_TILE_ROWS) + (size_t)r), temporary + 2 * p, 2 * sizeof *x_tile);
    }
}

#ifdef __AVX512F__
/* 16 pairs of columns of 16 features, turned */
static inline void turn16(int16_t *out, const int16_t *in, size_t stride) {
    __m512 r[16], t[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) r[j] = _mm512_loadu_ps(in + (size_t)j * stride);
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
        _mm512_storeu_ps(out + (size_t)(2 * SAE_PANEL * j), _mm512_shuffle_f32x4(a, c, 0x88));
        _mm512_storeu_ps(out + (size_t)(2 * SAE_PANEL * (j + 4)), _mm512_shuffle_f32x4(b, e, 0x88));
        _mm512_storeu_ps(out + (size_t)(2 * SAE_PANEL * (j + 8)), _mm512_shuffle_f32x4(a, c, 0xDD));
        _mm512_storeu_ps(out + (size_t)(2 * SAE_PANEL * (j + 12)), _mm512_shuffle_f32x4(b, e, 0xDD));
    }
}
#else
static inline void turn16(int16_t *out, const int16_t *in, size_t stride) {
    for (int p = 0; p < 16; p++)
        for (int j = 0; j < 16; j++)
            memcpy(out + (size_t)(2 * (SAE_PANEL * p + j)), in + (size_t)j * stride + (size_t)(2 * p), 2 * sizeof *out);
}
#endif

void sae_screen_panel(int16_t *w_panel, struct sae_rounded *feature, struct sae_weights w, int features, int d, int16_t *temporary) {
    int pairs = sae_screen_pairs(d);
    size_t stride = 2 * (size_t)pairs;
    for (int j = 0; j < SAE_PANEL; j++) {
        if (j < features)
            feature[j] = round_row(temporary + (size_t)j * stride, w, cpu_offset(j, d), d);
        else
            memset(temporary + (size_t)j * stride, 0, stride * sizeof *temporary);
    }
    for (int p = 0; p < pairs; p += 16)
        for (int half = 0; half < SAE_PANEL; half += 16)
            turn16(w_panel + 2 * (cpu_offset(p, SAE_PANEL) + (size_t)half), temporary + (size_t)half * stride + (size_t)(2 * p), stride);
}

#ifdef __AVX512BW__
static inline __m512i multiply_add_pairs(__m512i sum, __m512i a, __m512i b) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}

void sae_screen_tile(int32_t sum[SAE_TILE_ROWS][SAE_PANEL], const int16_t *x_tile, const int16_t *w_panel, int d) {
    __m512i s[SAE_TILE_ROWS][2];
#pragma GCC unroll 14
    for (int r = 0; r < SAE_TILE_ROWS; r++) s[r][0] = s[r][1] = _mm512_setzero_si512();
    for (int p = sae_screen_pairs(d); p > 0; p--) {
        __m512i w0 = _mm512_loadu_si512(w_panel), w1 = _mm512_loadu_si512(w_panel + SAE_PANEL);
        _mm_prefetch((const char *)(w_panel + 32 * SAE_PANEL), _MM_HINT_T0);
        _mm_prefetch((const char *)(w_panel + 33 * SAE_PANEL), _MM_HINT_T0);
        w_panel += 2 * SAE_PANEL;
#pragma GCC unroll 14
        for (int r = 0; r < SAE_TILE_ROWS; r++) {
            int32_t pair;
            memcpy(&pair, x_tile + 2 * r, sizeof pair);
            __m512i x = _mm512_set1_epi32(pair);
            s[r][0] = multiply_add_pairs(s[r][0], x, w0);
            s[r][1] = multiply_add_pairs(s[r][1], x, w1);
        }
        x_tile += 2 * SAE_TILE_ROWS;
    }
#pragma GCC unroll 14
    for (int r = 0; r < SAE_TILE_ROWS; r++) {
        _mm512_storeu_si512(sum[r], s[r][0]);
        _mm512_storeu_si512(sum[r] + 16, s[r][1]);
    }
}
#else
void sae_screen_tile(int32_t sum[SAE_TILE_ROWS][SAE_PANEL], const int16_t *x_tile, const int16_t *w_panel, int d) {
    int pairs = sae_screen_pairs(d);
    for (int r = 0; r < SAE_TILE_ROWS; r++) {
        int32_t s[SAE_PANEL] = {0};
        for (int p = 0; p < pairs; p++) {
            const int16_t *w = w_panel + 2 * cpu_offset(p, SAE_PANEL), *x = x_tile + 2 * (cpu_offset(p, SAE_TILE_ROWS) + (size_t)r);
            for (int j = 0; j < SAE_PANEL; j++) s[j] += x[0] * w[2 * j] + x[1] * w[2 * j + 1];
        }
        memcpy(sum[r], s, sizeof s);
    }
}
#endif
#endif
