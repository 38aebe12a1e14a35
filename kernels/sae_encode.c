/* sae_encode.c - see sae_ops.h. The K largest of M pre-activations per row, without ever storing M of them.
 *
 * Threads take blocks of features from a counter, pack a block once into their second-level cache and multiply it with
 * every row, tile by tile, in the 16-bit screen of sae_product.c. The screen gives each pre-activation an interval. A row
 * lists the features whose upper end reaches its bound; when the list is full, the bound rises to the K-th largest lower
 * end listed. K exact values reach that, so no feature below it can be chosen. At the end the few that are left are
 * multiplied exactly and the K largest exact values chosen. Rows for which the screen is too coarse (more ties or near
 * ties than a list holds, values that are not finite) are done again with exact products alone. Both ways yield the same
 * bits: the screen decides only what need not be looked at.
 * Lists are ascending in the feature because a thread's blocks are; ties therefore fall to the lower index. */
#include "kernels/sae_ops.h"

#include <limits.h>
#include <omp.h>
#include <stdatomic.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "kernels/sae_internal.h"

#ifdef STAGEDIFF_REF
static double relu(double h) { return h > 0 ? h : h != h ? h : 0; }

/* pre-activations of one row, straight from the definition */
static void preactivations(double *h, const double *x, const double *E, const bf16 *E_low, const double *b_e, int d, int M) {
    for (int f = 0; f < M; f++) {
        double sum = 0;
        for (int i = 0; i < d; i++)
            sum +=
                E_low ? (double)float_from_bf16(bf16_from_float((float)x[i])) * (double)float_from_bf16(E_low[cpu_offset(f, d) + (size_t)i])
                      : x[i] * E[cpu_offset(f, d) + (size_t)i];
        h[f] = sum + b_e[f];
    }
}

size_t OP(sae_encode_scratch)(int N, int d, int M, int K) {
    (void)N, (void)d, (void)K;
    return (size_t)M * (sizeof(double) + 1);
}

static bool ranks_before(double a, double b) { return a != a ? b == b : a > b; }

void OP(sae_encode_topk)(struct device *dev, int *indices, real_t *values, const act_t *x, const real_t *E, const bf16 *E_low,
                         const real_t *b_e, const real_t *rank_scale, int N, int d, int M, int K, void *scratch) {
    (void)dev;
    double *h = scratch;
    char *taken = (char *)(h + M);
    for (int n = 0; n < N; n++) {
        preactivations(h, x + cpu_offset(n, d), E, E_low, b_e, d, M);
        memset(taken, 0, (size_t)M);
        for (int k = 0; k < K; k++) {
            int best = -1;
            for (int f = 0; f < M; f++)
                if (!taken[f] &&
                    (best < 0 || ranks_before(h[f] * (rank_scale ? rank_scale[f] : 1), h[best] * (rank_scale ? rank_scale[best] : 1))))
                    best = f;
            taken[best] = 1;
        }
        for (int f = 0, k = 0; f < M; f++)
            if (taken[f]) {
                indices[cpu_offset(n, K) + (size_t)k] = f;
                values[cpu_offset(n, K) + (size_t)k++] = relu(h[f]);
            }
    }
}

void OP(sae_encode_jumprelu)(struct device *dev, int *indices, real_t *values, int *counts, const act_t *x, const real_t *E,
                             const bf16 *E_low, const real_t *b_e, const real_t *threshold, int N, int d, int M, int K, void *scratch) {
    (void)dev;
    double *h = scratch;
    for (int n = 0; n < N; n++) {
        preactivations(h, x + cpu_offset(n, d), E, E_low, b_e, d, M);
        counts[n] = 0;
        for (int f = 0; f < M; f++) {
            if (!(h[f] > threshold[f])) continue;
            if (counts[n] < K) {
                indices[cpu_offset(n, K) + (size_t)counts[n]] = f;
                values[cpu_offset(n, K) + (size_t)counts[n]] = h[f];
            }
            counts[n]++;
        }
        for (int k = counts[n]; k < K; k++) {
            indices[cpu_offset(n, K) + (size_t)k] = -1;
            values[cpu_offset(n, K) + (size_t)k] = 0;
        }
    }
}
#else

/* CHUNK_ROWS share one packing of E; LISTS threads can work on the features of one row; a packed block of features takes
 * BLOCK_BYTES, a quarter of a 2 MiB second-level cache that two hardware threads may share. Fewer rows than
 * SCREEN_MIN_ROWS do not pay for the packing. */
enum {
    CHUNK_TILES = 74,
    CHUNK_ROWS = CHUNK_TILES * SAE_TILE_ROWS,
    LISTS = 4,
    BLOCK_BYTES = 512 << 10,
    MAX_THREADS = 64,
    SCREEN_MIN_ROWS = 12
};

/* Candidates of one row as one thread saw them, ascending in index: the ends of the rank's interval, as ordered integers. */
struct list {
    int32_t *low, *high;
    int *index;
};

/* What a thread holds of the features of its block: packed weights, and what the intervals need, times |rank_scale|. */
struct block {
    int16_t *panels, *temporary;
    struct sae_rounded *rounded;
    float *unscale, *bias, *norm, *rounding, *slack; /* bias: less the threshold, for JumpReLU */
    struct widest {
        float norm, rounding, slack;
    } * widest;   /* of each panel */
    float *spare; /* the same memory, for other uses between passes: SPARE_ARRAYS * LISTS * capacity at least */
};
enum { SPARE_ARRAYS = 4 };

/* x of one row: its interval is center +- (spread * norm of w + norm * rounding of w) */
struct row {
    float unscale, norm, spread;
};

/* One call's work, and where its parts lie in scratch. */
struct encode {
    const float *x, *b_e, *rank_scale, *threshold; /* threshold: JumpReLU; else top-k */
    struct sae_weights w;
    int d, M, K;
    int capacity;    /* of a list */
    int block;       /* features of a block, a multiple of SAE_PANEL */
    int rows;        /* of the chunk at hand */
    const int *redo; /* the rows of the exact pass; NULL while screening */
    int redo_rows;
    float *x_low;     /* (rows, d): x rounded to bf16, when the weights are */
    int16_t *x_tiles; /* packed for the screen */
    struct row *row;
    char *blocks; /* MAX_THREADS of block_bytes */
    size_t block_bytes;
    int32_t *low, *high; /* (LISTS, rows, capacity), and so for index */
    int *index;
    int *count;           /* (LISTS, rows): listed; -1: the list overflowed */
    int *active;          /* (LISTS, rows): JumpReLU's count in the exact pass, where lists keep the first K */
    int *again;           /* (rows): the rows to redo */
    _Atomic float *bound; /* (rows): at least K candidates of the row reach it. Threads race to raise it; any of their values is right */
};

static float relu(float h) { return h > 0 ? h : h != h ? h : 0; }

/* Integers in the order of floats: -0 equals 0, NaN is the largest. */
static inline int32_t rank_key(float rank) {
    float canonical = rank + 0.0f;
    int32_t bits;
    memcpy(&bits, &canonical, sizeof bits);
    return rank != rank ? INT32_MAX : bits < 0 ? bits ^ INT32_MAX : bits;
}
static inline float key_rank(int32_t key) {
    int32_t bits = key < 0 ? key ^ INT32_MAX : key;
    float rank;
    memcpy(&rank, &bits, sizeof rank);
    return key == INT32_MAX ? HUGE_VALF : key == INT32_MIN ? -HUGE_VALF : rank;
}

static inline float larger(float a, float b) { return b > a || b != b ? b : a; }
static int round_up(int n, int to) { return (n + to - 1) / to * to; }

/* The next `bytes` of scratch; the size is summed up where there is no scratch yet. */
static void *take(char *scratch, size_t *used, size_t bytes) {
    size_t at = *used;
    *used += (bytes + 63) / 64 * 64;
    return scratch ? scratch + at : NULL;
}

static size_t place_block(struct block *b, char *at, const struct encode *e) {
    size_t used = 0, features = (size_t)e->block, columns = 2 * (size_t)sae_screen_pairs(e->d);
    b->panels = take(at, &used, features * columns * sizeof(int16_t));
    b->temporary = take(at, &used, (size_t)SAE_PANEL * columns * sizeof(int16_t));
    b->rounded = take(at, &used, features * sizeof *b->rounded);
    b->unscale = take(at, &used, features * sizeof(float));
    b->bias = take(at, &used, features * sizeof(float));
    b->norm = take(at, &used, features * sizeof(float));
    b->rounding = take(at, &used, features * sizeof(float));
    b->slack = take(at, &used, features * sizeof(float));
    b->widest = take(at, &used, features / SAE_PANEL * sizeof *b->widest);
    b->spare = (float *)(void *)at;
    size_t spare = (size_t)SPARE_ARRAYS * (size_t)LISTS * (size_t)e->capacity * sizeof(float);
    return used > spare ? used : (spare + 63) / 64 * 64;
}

/* Measures when scratch is NULL, else places. */
static size_t place(struct encode *e, char *scratch, int N, int d, int M, int K) {
    struct block b;
    size_t used = 0, rows = (size_t)(N < CHUNK_ROWS ? round_up(N, SAE_TILE_ROWS) : CHUNK_ROWS), columns = 2 * (size_t)sae_screen_pairs(d);
    size_t panels = (size_t)BLOCK_BYTES / (SAE_PANEL * columns * sizeof(int16_t));
    e->d = d, e->M = M, e->K = K;
    e->block = SAE_PANEL * (int)(panels < 1 ? 1 : panels > 8 ? 8 : panels);
    if (e->block > round_up(M, SAE_PANEL)) e->block = round_up(M, SAE_PANEL);
    e->capacity = round_up(K + (K < 128 ? 128 : K) + SAE_PANEL, 16);
    e->block_bytes = place_block(&b, NULL, e);
    size_t lists = (size_t)LISTS * rows, entries = lists * (size_t)e->capacity;
    e->x_low = take(scratch, &used, rows * (size_t)d * sizeof(float));
    e->x_tiles = take(scratch, &used, rows * columns * sizeof(int16_t));
    e->row = take(scratch, &used, rows * sizeof *e->row);
    e->low = take(scratch, &used, entries * sizeof(int32_t));
    e->high = take(scratch, &used, entries * sizeof(int32_t));
    e->index = take(scratch, &used, entries * sizeof(int));
    e->count = take(scratch, &used, lists * sizeof(int));
    e->active = take(scratch, &used, lists * sizeof(int));
    e->again = take(scratch, &used, rows * sizeof(int));
    e->bound = take(scratch, &used, rows * sizeof(float));
    e->blocks = take(scratch, &used, (size_t)MAX_THREADS * e->block_bytes);
    return used;
}

static struct list list_of(const struct encode *e, int which, int row) {
    size_t at = (cpu_offset(which, e->rows) + (size_t)row) * (size_t)e->capacity;
    return (struct list){e->low + at, e->high + at, e->index + at};
}

/* ---- lists and bounds ---- */

static int count_reaching(const int32_t *key, int n, int32_t bound) {
    int count = 0;
    for (int i = 0; i < n; i++) count += key[i] >= bound;
    return count;
}

/* A bound that at least K and, but for ties, at most `most` of n keys reach; *reaching says how many do. With most == K
 * it is the K-th largest. Bisection on the integers. */
static int32_t bound_of(const int32_t *key, int n, int K, int most, int *reaching) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int i = 0; i < n; i++) {
        low = key[i] < low ? key[i] : low;
        high = key[i] > high ? key[i] : high;
    }
    int count = n; /* that reach low */
    while (count > most && low < high) {
        int32_t middle = (int32_t)(high - ((int64_t)high - low) / 2);
        int c = count_reaching(key, n, middle);
        if (c >= K) {
            low = middle;
            count = c;
        } else
            high = middle - 1;
    }
    *reaching = count;
    return low;
}

/* How many keys that equal the bound are among the K largest. */
static int ties_at(const int32_t *key, int n, int K, int32_t bound) {
    return K - (bound == INT32_MAX ? 0 : count_reaching(key, n, bound + 1));
}

/* Drops what cannot be among the K largest; returns how many stay. Exact lists hold points: of more ties at the bound
 * than fit, the first stay. */
static int compact(struct list l, int n, int K, bool exact, int32_t *bound) {
    int most = K + K / 4, reaching, kept = 0;
    int32_t b = *bound = bound_of(l.low, n, K, most, &reaching);
    int ties = exact && reaching > most ? ties_at(l.low, n, K, b) : INT_MAX;
    for (int i = 0; i < n; i++) {
        if (l.high[i] < b || (l.high[i] == b && ties-- <= 0)) continue;
        l.low[kept] = l.low[i];
        l.high[kept] = l.high[i];
        l.index[kept++] = l.index[i];
    }
    return kept;
}

/* Room for another panel: raises the row's bound and drops what lies below it. */
static int make_room(const struct encode *e, struct list l, int n, int row) {
    if (n <= e->capacity - SAE_PANEL) return n;
    if (e->threshold) return -1;
    int32_t key;
    n = compact(l, n, e->K, e->redo != NULL, &key);
    float raised = key_rank(key), bound = atomic_load_explicit(&e->bound[row], memory_order_relaxed);
    if (raised > bound) atomic_store_explicit(&e->bound[row], raised, memory_order_relaxed);
    return n <= e->capacity - SAE_PANEL ? n : -1;
}

/* ---- the screen ---- */

static void pack_block(const struct encode *e, struct block *b, int first, int count) {
    size_t panel = 2 * (size_t)sae_screen_pairs(e->d) * SAE_PANEL;
    for (int p = 0; p < count; p += SAE_PANEL) {
        size_t at = cpu_offset(first + p, e->d);
        struct sae_weights w = {e->w.low ? NULL : e->w.real + at, e->w.low ? e->w.low + at : NULL};
        sae_screen_panel(b->panels + (size_t)(p / SAE_PANEL) * panel, b->rounded + p, w, count - p < SAE_PANEL ? count - p : SAE_PANEL,
                         e->d, b->temporary);
    }
    for (int j = 0; j < count; j++) {
        float scale = e->rank_scale ? e->rank_scale[first + j] : 1, size = fabs(scale),
              threshold = e->threshold ? e->threshold[first + j] : 0;
        b->unscale[j] = b->rounded[j].unscale * scale;
        b->bias[j] = e->b_e[first + j] * scale - threshold;
        b->norm[j] = b->rounded[j].norm * size;
        b->rounding[j] = b->rounded[j].rounding * size;
        b->slack[j] = (fabs(e->b_e[first + j] * scale) + fabs(threshold)) * 0x1p-20f;
    }
    for (int j = count; j < round_up(count, SAE_PANEL); j++) b->unscale[j] = b->bias[j] = b->norm[j] = b->rounding[j] = b->slack[j] = 0;
    for (int p = 0; p < count; p += SAE_PANEL) {
        struct widest w = {0, 0, 0};
        for (int j = p; j < p + SAE_PANEL; j++) {
            w.norm = larger(w.norm, b->norm[j]);
            w.rounding = larger(w.rounding, b->rounding[j]);
            w.slack = larger(w.slack, b->slack[j]);
        }
        b->widest[p / SAE_PANEL] = w;
    }
}

static inline float center_of(const struct block *b, int j, struct row r, int32_t sum) {
    return fma((float)sum * r.unscale, b->unscale[j], b->bias[j]);
}
static inline float spread_of(float norm, float rounding, float slack, struct row r) {
    return fma(r.spread, norm, fma(r.norm, rounding, slack));
}

/* Which of a panel's 32 centers do not lie below reach (NaN does not). */
static inline uint32_t reaching_mask(const struct block *b, int p, struct row r, const int32_t *sum, float reach) {
#ifdef __AVX512F__
    const __m512 unscale = _mm512_set1_ps(r.unscale), least = _mm512_set1_ps(reach);
    __m512 low = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sum)), unscale),
           high = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sum + 16)), unscale);
    low = _mm512_fmadd_ps(low, _mm512_loadu_ps(b->unscale + p), _mm512_loadu_ps(b->bias + p));
    high = _mm512_fmadd_ps(high, _mm512_loadu_ps(b->unscale + p + 16), _mm512_loadu_ps(b->bias + p + 16));
    return (uint32_t)_mm512_cmp_ps_mask(low, least, _CMP_NLT_UQ) | (uint32_t)_mm512_cmp_ps_mask(high, least, _CMP_NLT_UQ) << 16;
#else
    uint32_t mask = 0;
    for (int j = 0; j < SAE_PANEL; j++) mask |= (uint32_t) !(center_of(b, p + j, r, sum[j]) < reach) << j;
    return mask;
#endif
}

/* One row of a tile: lists the features of panel p whose interval reaches the bound (for JumpReLU 0, the threshold being
 * part of the bias). All centers are first held against the panel's widest interval, the few that pass against their own. */
static inline void screen_row(const struct encode *e, const struct block *b, int which, int row, const int32_t *sum, int first, int p,
                              uint32_t valid) {
    struct row r = e->row[row];
    struct widest w = b->widest[p / SAE_PANEL];
    float bound = atomic_load_explicit(&e->bound[row], memory_order_relaxed);
    uint32_t mask = reaching_mask(b, p, r, sum, bound - spread_of(w.norm, w.rounding, w.slack, r)) & valid;
    if (!mask) return;
    int *count = e->count + cpu_offset(which, e->rows) + row, n = *count;
    if (n < 0) return;
    struct list l = list_of(e, which, row);
    for (; mask; mask &= mask - 1) {
        int j = __builtin_ctz(mask);
        float center = center_of(b, p + j, r, sum[j]), spread = spread_of(b->norm[p + j], b->rounding[p + j], b->slack[p + j], r),
              low = center - spread;
        if (center + spread < bound) continue;
        l.low[n] = low != low ? INT32_MIN : rank_key(low);
        l.high[n] = rank_key(center + spread);
        l.index[n++] = first + p + j;
    }
    *count = make_room(e, l, n, row);
}

static void screen_block(const struct encode *e, struct block *b, int which, int from, int to, int first, int count) {
    size_t pairs = (size_t)sae_screen_pairs(e->d);
    pack_block(e, b, first, count);
    for (int t = from; t < to; t += SAE_TILE_ROWS)
        for (int p = 0; p < count; p += SAE_PANEL) {
            int32_t sum[SAE_TILE_ROWS][SAE_PANEL];
            int width = count - p < SAE_PANEL ? count - p : SAE_PANEL;
            sae_screen_tile(sum, e->x_tiles + (size_t)t * 2 * pairs, b->panels + (size_t)p * 2 * pairs, e->d);
            for (int r = 0; r < SAE_TILE_ROWS && t + r < e->rows; r++)
                screen_row(e, b, which, t + r, sum[r], first, p, width == SAE_PANEL ? UINT32_MAX : (1u << width) - 1);
        }
}

/* ---- the exact pass ---- */

static const float *row_of_x(const struct encode *e, int row) { return (e->w.low ? e->x_low : e->x) + cpu_offset(row, e->d); }

static inline void list_exact(const struct encode *e, int which, int row, float *h, int feature, int width) {
    int *count = e->count + cpu_offset(which, e->rows) + row, n = *count;
    struct list l = list_of(e, which, row);
    float bound = atomic_load_explicit(&e->bound[row], memory_order_relaxed);
    for (int j = 0; j < width; j++) {
        h[j] += e->b_e[feature + j];
        if (e->threshold) {
            if (!(h[j] > e->threshold[feature + j])) continue;
            e->active[cpu_offset(which, e->rows) + (size_t)row]++;
            if (n < e->K) l.index[n++] = feature + j;
        } else {
            float rank = e->rank_scale ? h[j] * e->rank_scale[feature + j] : h[j];
            if (rank < bound) continue;
            l.low[n] = l.high[n] = rank_key(rank);
            l.index[n++] = feature + j;
        }
    }
    *count = e->threshold ? n : make_room(e, l, n, row);
}

static void exact_block(const struct encode *e, int which, int from, int to, int first, int count) {
    for (int p = first; p < first + count; p += SAE_PANEL) {
        int width = first + count - p < SAE_PANEL ? first + count - p : SAE_PANEL, feature[SAE_PANEL];
        for (int j = 0; j < SAE_PANEL; j++) feature[j] = p + j;
        for (int t = from; t < to; t += SAE_EXACT_ROWS) {
            float h[SAE_EXACT_ROWS][SAE_PANEL];
            const float *x[SAE_EXACT_ROWS];
            int rows = to - t < SAE_EXACT_ROWS ? to - t : SAE_EXACT_ROWS;
            for (int r = 0; r < rows; r++) x[r] = row_of_x(e, e->redo[t + r]);
            sae_exact_products(h[0], SAE_PANEL, x, rows, e->w, feature, width, e->d);
            for (int r = 0; r < rows; r++) list_exact(e, which, e->redo[t + r], h[r], p, width);
        }
    }
}

/* ---- a row's end ---- */

/* Merges the row's lists, ascending; returns how many candidates there are, -1 when a list overflowed. */
static int merge(const struct encode *e, int row, int *index, int32_t *low, int32_t *high) {
    int at[LISTS] = {0}, count[LISTS], n = 0;
    struct list l[LISTS];
    for (int i = 0; i < LISTS; i++) {
        l[i] = list_of(e, i, row);
        count[i] = e->count[cpu_offset(i, e->rows) + (size_t)row];
        if (count[i] < 0) return -1;
    }
    for (;; n++) {
        int next = -1;
        for (int i = 0; i < LISTS; i++)
            if (at[i] < count[i] && (next < 0 || l[i].index[at[i]] < l[next].index[at[next]])) next = i;
        if (next < 0) return n;
        index[n] = l[next].index[at[next]];
        low[n] = l[next].low[at[next]];
        high[n] = l[next].high[at[next]++];
    }
}

/* Multiplies a row's candidates exactly and fills its slots. False when the row must be done again. */
static bool finish_row(const struct encode *e, const struct block *b, int row, int *indices, float *values, int *total) {
    size_t part = (size_t)LISTS * (size_t)e->capacity;
    int *index = (int *)(void *)b->spare, kept = 0, k = 0, active = 0;
    int32_t *low = (int32_t *)(void *)(b->spare + part), *high = (int32_t *)(void *)(b->spare + 2 * part);
    float *h = b->spare + 3 * part;
    int n = merge(e, row, index, low, high), reaching;
    if (n < 0) return false;
    if (!e->threshold) {
        int32_t bound = bound_of(low, n, e->K, e->K, &reaching);
        for (int i = 0; i < n; i++)
            if (high[i] >= bound) index[kept++] = index[i];
        n = kept;
    }
    sae_exact_products(h, n, (const float *[]){row_of_x(e, row)}, 1, e->w, index, n, e->d);
    for (int i = 0; i < n; i++) {
        h[i] += e->b_e[index[i]];
        low[i] = rank_key(e->rank_scale ? h[i] * e->rank_scale[index[i]] : h[i]);
    }
    int32_t kth = e->threshold ? 0 : bound_of(low, n, e->K, e->K, &reaching);
    int ties = e->threshold ? 0 : ties_at(low, n, e->K, kth);
    for (int i = 0; i < n; i++) {
        if (e->threshold ? !(h[i] > e->threshold[index[i]]) : low[i] < kth || (low[i] == kth && ties-- <= 0)) continue;
        active++;
        if (k >= e->K) continue;
        indices[k] = index[i];
        values[k++] = e->threshold ? h[i] : relu(h[i]);
    }
    for (; k < e->K; k++) {
        indices[k] = -1;
        values[k] = 0;
    }
    for (int i = 0; total && e->redo && i < LISTS; i++)
        active += e->active[cpu_offset(i, e->rows) + (size_t)row] - e->count[cpu_offset(i, e->rows) + (size_t)row];
    if (total) *total = active;
    return true;
}

/* ---- a chunk of rows ---- */

static void prepare_rows(const struct encode *e, int from, int16_t *temporary) {
    size_t columns = 2 * (size_t)sae_screen_pairs(e->d);
    int rows = e->rows - from < SAE_TILE_ROWS ? e->rows - from : SAE_TILE_ROWS;
    struct sae_rounded rounded[SAE_TILE_ROWS];
    if (e->w.low)
        for (size_t i = cpu_offset(from, e->d); i < cpu_offset(from + rows, e->d); i++)
            e->x_low[i] = float_from_bf16(bf16_from_float(e->x[i]));
    if (e->redo) return;
    sae_screen_rows(e->x_tiles + (size_t)from * columns, rounded, row_of_x(e, from), rows, e->d, temporary);
    const float rounding_of_sums = (float)(e->d / 8 + 64) * 0x1p-23f; /* of the exact product, the bias and the interval itself */
    for (int r = 0; r < rows; r++)
        e->row[from + r] = (struct row){rounded[r].unscale, rounded[r].norm + rounded[r].rounding,
                                        rounded[r].rounding + rounding_of_sums * rounded[r].norm};
}

/* All features against the rows [0, rows) of the chunk or of the redo list. */
static void sweep(const struct encode *e, int rows) {
    int next[MAX_THREADS] = {0}, lists = LISTS, threads = omp_get_max_threads() < MAX_THREADS ? omp_get_max_threads() : MAX_THREADS;
    int step = e->redo ? SAE_EXACT_ROWS : SAE_TILE_ROWS, tiles = (rows + step - 1) / step;
    while (threads % lists) lists--;
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), groups = threads / lists, group = thread / lists, first;
        int from = (int)((long)tiles * group / groups) * step, to = (int)((long)tiles * (group + 1) / groups) * step;
        struct block b;
        place_block(&b, e->blocks + (size_t)thread * e->block_bytes, e);
        if (to > rows) to = rows;
        while (from < to) {
#pragma omp atomic capture
            {
                first = next[group];
                next[group] += e->block;
            }
            if (first >= e->M) break;
            int count = e->M - first < e->block ? e->M - first : e->block;
            if (e->redo)
                exact_block(e, thread % lists, from, to, first, count);
            else
                screen_block(e, &b, thread % lists, from, to, first, count);
        }
    }
}

static void encode_chunk(struct encode *e, int *indices, float *values, int *counts) {
    int threads = omp_get_max_threads() < MAX_THREADS ? omp_get_max_threads() : MAX_THREADS, left = 0;
    bool screen = e->rows >= SCREEN_MIN_ROWS;
    e->redo = screen ? NULL : e->again;
    memset(e->count, 0, (size_t)LISTS * (size_t)e->rows * sizeof(int));
    for (int r = 0; r < e->rows; r++) atomic_store_explicit(&e->bound[r], e->threshold ? 0 : -HUGE_VALF, memory_order_relaxed);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < e->rows; t += SAE_TILE_ROWS) {
        struct block b;
        place_block(&b, e->blocks + (size_t)omp_get_thread_num() * e->block_bytes, e);
        prepare_rows(e, t, b.temporary);
    }
    if (screen) sweep(e, e->rows);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (int r = 0; r < e->rows; r++) {
        struct block b;
        place_block(&b, e->blocks + (size_t)omp_get_thread_num() * e->block_bytes, e);
        e->active[r] =
            !screen || !finish_row(e, &b, r, indices + cpu_offset(r, e->K), values + cpu_offset(r, e->K), counts ? counts + r : NULL);
    }
    for (int r = 0; r < e->rows; r++)
        if (e->active[r]) e->again[left++] = r;
    if (!left) return;
    e->redo = e->again;
    memset(e->active, 0, (size_t)LISTS * (size_t)e->rows * sizeof(int));
    for (int i = 0; i < left; i++) {
        atomic_store_explicit(&e->bound[e->again[i]], -HUGE_VALF, memory_order_relaxed);
        for (int l = 0; l < LISTS; l++) e->count[cpu_offset(l, e->rows) + (size_t)e->again[i]] = 0;
    }
    sweep(e, left);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (int i = 0; i < left; i++) {
        struct block b;
        int r = e->again[i];
        place_block(&b, e->blocks + (size_t)omp_get_thread_num() * e->block_bytes, e);
        bool done = finish_row(e, &b, r, indices + cpu_offset(r, e->K), values + cpu_offset(r, e->K), counts ? counts + r : NULL);
        CHECK(done, "row %d: exact lists cannot overflow", r);
    }
}

static void encode(struct encode *e, int *indices, float *values, int *counts, int N, int d, int M, int K, void *scratch) {
    CHECK(N >= 0 && d > 0 && K > 0 && (e->threshold || K <= M), "N=%d d=%d M=%d K=%d", N, d, M, K);
    place(e, scratch, N, d, M, K);
    const float *x = e->x;
    for (int n = 0; n < N; n += CHUNK_ROWS) {
        e->rows = N - n < CHUNK_ROWS ? N - n : CHUNK_ROWS;
        e->x = x + cpu_offset(n, d);
        encode_chunk(e, indices + cpu_offset(n, K), values + cpu_offset(n, K), counts ? counts + n : NULL);
    }
}

size_t OP(sae_encode_scratch)(int N, int d, int M, int K) {
    struct encode e;
    return place(&e, NULL, N, d, M, K);
}

void OP(sae_encode_topk)(struct device *dev, int *indices, real_t *values, const act_t *x, const real_t *E, const bf16 *E_low,
                         const real_t *b_e, const real_t *rank_scale, int N, int d, int M, int K, void *scratch) {
    (void)dev;
    struct encode e = {.x = x, .w = {E_low ? NULL : E, E_low}, .b_e = b_e, .rank_scale = rank_scale};
    encode(&e, indices, values, NULL, N, d, M, K, scratch);
}

void OP(sae_encode_jumprelu)(struct device *dev, int *indices, real_t *values, int *counts, const act_t *x, const real_t *E,
                             const bf16 *E_low, const real_t *b_e, const real_t *threshold, int N, int d, int M, int K, void *scratch) {
    (void)dev;
    struct encode e = {.x = x, .w = {E_low ? NULL : E, E_low}, .b_e = b_e, .threshold = threshold};
    encode(&e, indices, values, counts, N, d, M, K, scratch);
}
#endif
