/* sae_product.c - see sae_internal.h. Rates on one core of Sapphire Rapids, of 182 GFLOP/s in f32: vpdpbusd 767,
 * vpdpwssd 384, vdpbf16ps 89 (half of f32, so bf16 is widened here, which is exact). The screen's tile is 14 x 32 sums in 28 of
 * AVX-512's 32 registers: 16 loads for 28 multiply-adds. */
#include "kernels/sae_internal.h"

#ifndef STAGEDIFF_REF
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum {
    LANES = 16,
    EXACT_FEATURES = 8,
    UNIT = 4 /* bytes that one instruction multiplies into a sum */,
    NORM_LIMIT = 46340 /* its square < 2^31 */
};

/* ---- sixteen floats: one AVX-512 register, or an array that the compiler maps to what there is ---- */
#ifdef __AVX512F__
typedef __m512 lanes;
static inline lanes lanes_zero(void) { return _mm512_setzero_ps(); }
static inline lanes lanes_load(const float *p, int n) {
    return n >= LANES ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline lanes lanes_load_low(const bf16 *p, int n) {
    __m256i v = n >= LANES ? _mm256_loadu_si256((const __m256i *)(const void *)p) : _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
static inline lanes lanes_fma(lanes a, lanes b, lanes c) { return _mm512_fmadd_ps(a, b, c); }
static inline float lanes_sum(lanes a) { return _mm512_reduce_add_ps(a); }
static inline void lanes_store(float *p, lanes a) { _mm512_storeu_ps(p, a); }
static inline lanes lanes_multiply(lanes a, lanes b) { return _mm512_mul_ps(a, b); }
static inline lanes lanes_set(float v) { return _mm512_set1_ps(v); }
static inline lanes lanes_larger(lanes a, lanes v) { return _mm512_max_ps(_mm512_abs_ps(v), a); } /* a NaN in v leaves a */
/* q = round(v * scale) to 16 bits when wide, else 8; sum + (v * scale - q)^2 */
static inline lanes lanes_round(char *q, const bool wide, lanes v, lanes scale, lanes sum) {
    lanes rounded = _mm512_roundscale_ps(_mm512_mul_ps(v, scale), 0), miss = _mm512_fmsub_ps(v, scale, rounded);
    __m512i whole = _mm512_cvtps_epi32(rounded);
    if (wide)
        _mm256_storeu_si256((__m256i *)(void *)q, _mm512_cvtepi32_epi16(whole));
    else
        _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8(whole));
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
static inline void lanes_store(float *p, lanes a) { memcpy(p, a.v, sizeof a.v); }
static inline lanes lanes_multiply(lanes a, lanes b) {
    for (int l = 0; l < LANES; l++) a.v[l] *= b.v[l];
    return a;
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
static inline lanes lanes_round(char *q, const bool wide, lanes v, lanes scale, lanes sum) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    for (int l = 0; l < LANES; l++) {
        float rounded = fma(v.v[l], scale.v[l], magic) - magic, miss = fma(v.v[l], scale.v[l], -rounded);
        if (wide)
            memcpy(q + 2 * l, &(int16_t){(int16_t)(int)rounded}, 2);
        else
            q[l] = (char)(int)rounded;
        sum.v[l] = fma(miss, miss, sum.v[l]);
    }
    return sum;
}
#endif

/* ---- the exact product ---- */

static inline __attribute__((always_inline)) lanes load_part(struct sae_rows v, const bool low, size_t at, const int n) {
    return low ? lanes_load_low(v.low + at, n) : lanes_load(v.real + at, n);
}
/* n of 16 columns from i on: sums += x * w for F features */
static inline __attribute__((always_inline)) void exact_columns(lanes *sum, struct sae_rows x, size_t row, struct sae_rows w,
                                                                const size_t *start, const int F, const bool low, int i, const int n) {
    lanes xv = load_part(x, low, row + (size_t)i, n);
#pragma GCC unroll 8
    for (int f = 0; f < F; f++) sum[f] = lanes_fma(xv, load_part(w, low, start[f] + (size_t)i, n), sum[f]);
}

/* A row and F features; F and `low` are constants where it is called, so every sum is a register. */
static inline __attribute__((always_inline)) void exact_features(float *out, struct sae_rows x, int row, struct sae_rows w,
                                                                 const int *feature, const int F, const bool low, int d) {
    lanes sum[EXACT_FEATURES];
    size_t start[EXACT_FEATURES], at = cpu_offset(row, d);
    int whole = d / LANES * LANES;
#pragma GCC unroll 8
    for (int f = 0; f < F; f++) {
        sum[f] = lanes_zero();
        start[f] = cpu_offset(feature[f], d);
    }
    for (int i = 0; i < whole; i += LANES) exact_columns(sum, x, at, w, start, F, low, i, LANES);
    if (whole < d) exact_columns(sum, x, at, w, start, F, low, whole, d - whole);
#pragma GCC unroll 8
    for (int f = 0; f < F; f++) out[f] = lanes_sum(sum[f]);
}

void sae_exact_products(float *out, struct sae_rows x, int row, struct sae_rows w, const int *feature, int features, int d) {
#define ONE(n)                                                                                                                             \
    case n:                                                                                                                                \
        if (w.low)                                                                                                                         \
            exact_features(out, x, row, w, feature, n, true, d);                                                                           \
        else                                                                                                                               \
            exact_features(out, x, row, w, feature, n, false, d);                                                                          \
        break;
    for (; features > 0; features -= EXACT_FEATURES, feature += EXACT_FEATURES, out += EXACT_FEATURES)
        switch (features < EXACT_FEATURES ? features : EXACT_FEATURES) { SAE_GATHER_CASES(ONE) }
#undef ONE
}

/* ---- the screen ---- */

/* Groups of LANES columns, and the largest power of two that is not more */
static int groups_of(int d) { return sae_screen_columns(d) / LANES; }
static int turned_at_once(int d) { return 1 << (31 - __builtin_clz((unsigned)groups_of(d))); }

void sae_screen_signs(float *sign, int d) {
    int n = turned_at_once(d);
    for (int i = 0; i < sae_screen_columns(d); i++) {
        float size = i < n * LANES ? 1 / sqrtf((float)n) : 1;
        uint32_t h = (uint32_t)i * 0x9E3779B1u; /* bits of the place, well mixed */
        h = (h ^ h >> 15) * 0x85EBCA77u;
        h = (h ^ h >> 13) * 0xC2B2AE3Du;
        sign[i] = h >> 31 ? -size : size;
    }
}

/* v = H v with Hadamard's matrix over n groups of LANES, n a power of two: orthogonal but for a factor sqrt(n) */
typedef float group __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
static void hadamard(group *v, int n) {
    int step = 1;
    if (__builtin_ctz((unsigned)n) % 2)
        for (; step < 2; step *= 2)
            for (int i = 0; i < n; i += 2) {
                group a = v[i], b = v[i + 1];
                v[i] = a + b, v[i + 1] = a - b;
            }
    for (; step < n; step *= 4)
        for (int from = 0; from < n; from += 4 * step)
            for (int i = from; i < from + step; i++) {
                group a = v[i] + v[i + step], b = v[i] - v[i + step];
                group c = v[i + 2 * step] + v[i + 3 * step], e = v[i + 2 * step] - v[i + 3 * step];
                v[i] = a + c, v[i + step] = b + e;
                v[i + 2 * step] = a - c, v[i + 3 * step] = b - e;
            }
}

/* A row turned: signs, then Hadamard's matrix over the first 2^k groups of LANES and over the last 2^k, which together are all. */
static void turn_row(float *turned, struct sae_rows v, size_t at, const float *sign, int d) {
    int groups = groups_of(d), n = turned_at_once(d), rest = groups - n;
    for (int i = 0; i < d; i += LANES) {
        lanes part =
            d - i < LANES ? load_part(v, v.low != NULL, at + (size_t)i, d - i) : load_part(v, v.low != NULL, at + (size_t)i, LANES);
        lanes_store(turned + i, lanes_multiply(part, lanes_load(sign + i, LANES)));
    }
    for (int i = (d + LANES - 1) / LANES * LANES; i < groups * LANES; i++) turned[i] = 0;
    hadamard((group *)(void *)turned, n);
    if (!rest) return;
    for (int i = rest * LANES; i < groups * LANES; i++) turned[i] *= 1 / sqrtf((float)n);
    hadamard((group *)(void *)turned + rest, n);
}

static double sum_of(const lanes *sum, int sums) {
    double total = 0;
    for (int s = 0; s < sums; s++) total += (double)lanes_sum(sum[s]);
    return total;
}

/* Rounds a turned row, q = round(v * scale). Four sums side by side: one alone would wait for itself. */
static inline __attribute__((always_inline)) struct sae_rounded round_turned(char *q, const bool wide, const float *turned, int columns) {
    enum { SUMS = 4 }; /* SUMS * LANES divide the columns */
    lanes square[SUMS], largest[SUMS], missed[SUMS];
    for (int s = 0; s < SUMS; s++) square[s] = largest[s] = missed[s] = lanes_zero();
    for (int i = 0; i < columns; i += SUMS * LANES)
#pragma GCC unroll 4
        for (int s = 0; s < SUMS; s++) {
            lanes part = lanes_load(turned + i + s * LANES, LANES);
            square[s] = lanes_fma(part, part, square[s]);
            largest[s] = lanes_larger(largest[s], part);
        }
    float size[SUMS * LANES], top = 0;
    memcpy(size, largest, sizeof size);
    for (int l = 0; l < SUMS * LANES; l++) top = size[l] > top ? size[l] : top;
    double norm = sqrt(sum_of(square, SUMS)) * (1 + 1e-3);
    if (!(norm > 1e-15 && norm < 1e15)) {
        bool zero = norm == 0 && top == 0;
        memset(q, 0, (size_t)columns * (wide ? 2 : 1));
        return (struct sae_rounded){0, zero ? 0 : HUGE_VALF, zero ? 0 : HUGE_VALF};
    }
    double room = (NORM_LIMIT - 1 - 0.5 * sqrt((double)columns)) / norm, limit = (wide ? 32766 : 127) / (double)top;
    float scale = (float)(wide && room < limit ? room : limit);
    for (int i = 0; i < columns; i += SUMS * LANES)
#pragma GCC unroll 4
        for (int s = 0; s < SUMS; s++) {
            int at = i + s * LANES;
            missed[s] = lanes_round(q + at * (wide ? 2 : 1), wide, lanes_load(turned + at, LANES), lanes_set(scale), missed[s]);
        }
    return (struct sae_rounded){1 / scale, (float)norm, (float)(sqrt(sum_of(missed, SUMS)) * (1 + 1e-3) / (double)scale)};
}

static struct sae_rounded round_row(char *q, struct sae_rows v, int row, int d, struct sae_turning t) {
    turn_row(t.row, v, cpu_offset(row, d), t.sign, d);
    return sae_screen_wide(d) ? round_turned(q, true, t.row, sae_screen_columns(d)) : round_turned(q, false, t.row, sae_screen_columns(d));
}

void sae_screen_rows(char *x_tile, struct sae_rounded *row, struct sae_rows x, int first, int rows, int d, struct sae_turning t) {
    int bytes = sae_screen_bytes(d);
    const char raise = (char)(sae_screen_wide(d) ? 0 : 128); /* q + 128, without a sign */
    for (int r = 0; r < SAE_TILE_ROWS; r++) {
        if (r < rows) row[r] = round_row(t.rounded, x, first + r, d, t);
        for (int i = 0; i < bytes; i++) t.rounded[i] = r < rows ? (char)(t.rounded[i] ^ raise) : 0;
        for (int i = 0; i < bytes; i += UNIT) memcpy(x_tile + cpu_offset(i, SAE_TILE_ROWS) + (size_t)(UNIT * r), t.rounded + i, UNIT);
    }
}

#ifdef __AVX512F__
/* 16 units of 16 features, turned */
static inline void turn16(char *out, const char *in, size_t stride) {
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
        _mm512_storeu_ps(out + (size_t)(UNIT * SAE_PANEL * j), _mm512_shuffle_f32x4(a, c, 0x88));
        _mm512_storeu_ps(out + (size_t)(UNIT * SAE_PANEL * (j + 4)), _mm512_shuffle_f32x4(b, e, 0x88));
        _mm512_storeu_ps(out + (size_t)(UNIT * SAE_PANEL * (j + 8)), _mm512_shuffle_f32x4(a, c, 0xDD));
        _mm512_storeu_ps(out + (size_t)(UNIT * SAE_PANEL * (j + 12)), _mm512_shuffle_f32x4(b, e, 0xDD));
    }
}
#else
static inline void turn16(char *out, const char *in, size_t stride) {
    for (int p = 0; p < 16; p++)
        for (int j = 0; j < 16; j++) memcpy(out + (size_t)(UNIT * (SAE_PANEL * p + j)), in + (size_t)j * stride + (size_t)(UNIT * p), UNIT);
}
#endif

void sae_screen_panel(char *w_panel, int32_t *start, struct sae_rounded *feature, struct sae_rows w, int first, int features, int d,
                      struct sae_turning t) {
    size_t bytes = (size_t)sae_screen_bytes(d);
    for (int j = 0; j < SAE_PANEL; j++) {
        char *q = t.rounded + (size_t)j * bytes;
        int sum = 0;
        if (j < features)
            feature[j] = round_row(q, w, first + j, d, t);
        else
            memset(q, 0, bytes);
        for (size_t i = 0; !sae_screen_wide(d) && i < bytes; i++) sum += (int8_t)q[i];
        start[j] = -128 * sum;
    }
    for (size_t i = 0; i < bytes; i += 16 * UNIT)
        for (size_t half = 0; half < SAE_PANEL; half += 16)
            turn16(w_panel + i * SAE_PANEL + UNIT * half, t.rounded + half * bytes + i, bytes);
}

#ifdef __AVX512VNNI__
/* Two functions of one text: as one inline function gcc keeps sums in memory. */
#define SCREEN_TILE(name, multiply_add)                                                                                                    \
    static void name(int32_t sum[SAE_TILE_ROWS][SAE_PANEL], const char *x_tile, const char *w_panel, const int32_t *start, int units) {    \
        __m512i s[SAE_TILE_ROWS][2];                                                                                                       \
        _Pragma("GCC unroll 14") for (int r = 0; r < SAE_TILE_ROWS; r++) {                                                                 \
            s[r][0] = _mm512_loadu_si512(start);                                                                                           \
            s[r][1] = _mm512_loadu_si512(start + 16);                                                                                      \
        }                                                                                                                                  \
        for (; units > 0; units--) {                                                                                                       \
            __m512i w0 = _mm512_loadu_si512(w_panel), w1 = _mm512_loadu_si512(w_panel + 16 * UNIT);                                        \
            _mm_prefetch(w_panel + 16 * UNIT * SAE_PANEL, _MM_HINT_T0);                                                                    \
            _mm_prefetch(w_panel + 16 * UNIT * SAE_PANEL + 64, _MM_HINT_T0);                                                               \
            w_panel += UNIT * SAE_PANEL;                                                                                                   \
            _Pragma("GCC unroll 14") for (int r = 0; r < SAE_TILE_ROWS; r++) {                                                             \
                int32_t unit;                                                                                                              \
                memcpy(&unit, x_tile + UNIT * r, sizeof unit);                                                                             \
                __m512i x = _mm512_set1_epi32(unit);                                                                                       \
                s[r][0] = multiply_add(s[r][0], x, w0);                                                                                    \
                s[r][1] = multiply_add(s[r][1], x, w1);                                                                                    \
            }                                                                                                                              \
            x_tile += UNIT * SAE_TILE_ROWS;                                                                                                \
        }                                                                                                                                  \
        _Pragma("GCC unroll 14") for (int r = 0; r < SAE_TILE_ROWS; r++) {                                                                 \
            _mm512_storeu_si512(sum[r], s[r][0]);                                                                                          \
            _mm512_storeu_si512(sum[r] + 16, s[r][1]);                                                                                     \
        }                                                                                                                                  \
    }
SCREEN_TILE(screen_narrow, _mm512_dpbusd_epi32)
SCREEN_TILE(screen_wide, _mm512_dpwssd_epi32)
#undef SCREEN_TILE
#else
static void screen_narrow(int32_t sum[SAE_TILE_ROWS][SAE_PANEL], const char *x_tile, const char *w_panel, const int32_t *start, int units) {
    for (int r = 0; r < SAE_TILE_ROWS; r++) {
        memcpy(sum[r], start, sizeof sum[r]);
        for (int u = 0; u < units; u++)
            for (int i = 0; i < SAE_PANEL * UNIT; i++) {
                const char *x = x_tile + UNIT * (cpu_offset(u, SAE_TILE_ROWS) + (size_t)r), *w = w_panel + UNIT * cpu_offset(u, SAE_PANEL);
                sum[r][i / UNIT] += (uint8_t)x[i % UNIT] * (int8_t)w[i];
            }
    }
}
static void screen_wide(int32_t sum[SAE_TILE_ROWS][SAE_PANEL], const char *x_tile, const char *w_panel, const int32_t *start, int units) {
    for (int r = 0; r < SAE_TILE_ROWS; r++) {
        memcpy(sum[r], start, sizeof sum[r]);
        for (int u = 0; u < units; u++)
            for (int j = 0; j < SAE_PANEL; j++) {
                int16_t x[UNIT / 2], w[UNIT / 2];
                memcpy(x, x_tile + UNIT * (cpu_offset(u, SAE_TILE_ROWS) + (size_t)r), sizeof x);
                memcpy(w, w_panel + UNIT * (cpu_offset(u, SAE_PANEL) + (size_t)j), sizeof w);
                sum[r][j] += x[0] * w[0] + x[1] * w[1];
            }
    }
}
#endif

void sae_screen_tile(int32_t sum[SAE_TILE_ROWS][SAE_PANEL], const char *x_tile, const char *w_panel, const int32_t *start, int d) {
    (sae_screen_wide(d) ? screen_wide : screen_narrow)(sum, x_tile, w_panel, start, sae_screen_bytes(d) / UNIT);
}
#endif
