/* sae_encode.c - see sae_ops.h. The K largest of M pre-activations per row.
 *
 * Screen: threads take blocks of features, round them once to 8 bits into their second-level cache and multiply them with
 * every row, tile by tile (sae_product.c). That gives each pre-activation an interval, of which 16 bits of the center
 * are kept. Then each row guesses a value that K of its pre-activations reach: a little below its K-th largest center.
 * Exact: features whose interval reaches the guess are multiplied in f32, a block of features at a time so that weights
 * come from the cache. If K exact values reach the guess, no other feature can be among the K largest. If not, the K-th
 * largest exact value is surely reached by K, and the row is done once more with it instead of the guess.
 * Rows that cannot be screened (values that are not finite) look at every feature. So the screen decides only what need
 * not be looked at, and the result is that of exact products alone, bit for bit. */
#include "kernels/sae_ops.h"

#include <omp.h>
#ifdef __AVX512BW__
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

/* A chunk of rows shares one packing of E; what it keeps takes at most CHUNK_BYTES. A packed block of features takes
 * SCREEN_BYTES, the weights of a block in the exact pass EXACT_BYTES: a part of a 2 MiB second-level cache each. Fewer rows
 * than SCREEN_MIN_ROWS do not pay for the packing. */
enum { CHUNK_TILES = 74, CHUNK_BYTES = 512 << 20, SCREEN_BYTES = 512 << 10, EXACT_BYTES = 1 << 20, MAX_THREADS = 64, SCREEN_MIN_ROWS = 12 };
static const float GUESS = 0.05f; /* how far below the K-th largest center, in widths of an interval */

/* What the intervals need of each feature, times |rank_scale|. */
struct features {
    float *unscale, *bias, *norm, *rounding, *slack;     /* bias: less the threshold, for JumpReLU */
    float *widest_norm, *widest_rounding, *widest_slack; /* of each panel */
};

/* What a thread needs for itself. */
struct own {
    char *panels;
    struct sae_turning turning;
    int32_t *start;
    struct sae_rounded *rounded;
    int16_t *least; /* (panels) */
    int32_t *key;   /* (M): ranks of a row's candidates */
};

/* One call's work, and where its parts lie in scratch. */
struct encode {
    const float *b_e, *rank_scale, *threshold; /* threshold: JumpReLU; else top-k */
    struct sae_rows x, w;
    int d, M, K;
    int panels;    /* that M takes */
    int block;     /* features of a packed block, a multiple of SAE_PANEL */
    int exact;     /* features of a block in the exact pass, also one */
    int rows;      /* of the chunk at hand */
    int most_rows; /* of a chunk */
    bool screened;
    bf16 *x_low;                    /* (rows, d): x rounded to bf16, when the weights are */
    float *sign;                    /* of the turning matrix */
    char *x_tiles;                  /* packed for the screen */
    int16_t *centers;               /* (rows, panels, SAE_PANEL) keys of centers, their upper half */
    float *unscale, *norm, *spread; /* (rows) of x: its interval is center +- (spread * norm of w + norm * rounding of w) */
    float *reach;                   /* (rows): what an interval must reach to be looked at */
    struct features feature;
    struct {
        float norm, rounding, slack;
    } usual;      /* of a panel: means */
    int stride;   /* of candidates: room for all features */
    int *index;   /* (rows, stride): a row's candidates, ascending */
    float *h;     /* (rows, stride): their exact pre-activations */
    int *ends;    /* (rows, exact blocks): where the candidates of a block end */
    int *pending; /* rows without a result yet */
    char *again;  /* (rows): whether a row's guess was too high */
    char *own;    /* MAX_THREADS of own_bytes */
    size_t own_bytes;
};

static float relu(float h) { return h > 0 ? h : h != h ? h : 0; }

/* Integers in the order of floats: -0 equals 0, NaN is the largest. */
static inline int32_t rank_key(float rank) {
    float canonical = rank + 0.0f;
    int32_t bits;
    memcpy(&bits, &canonical, sizeof bits);
    bits = bits < 0 ? bits ^ INT32_MAX : bits;
    return rank != rank ? INT32_MAX : bits;
}
static inline float key_rank(int32_t key) {
    int32_t bits = key < 0 ? key ^ INT32_MAX : key;
    float rank;
    memcpy(&rank, &bits, sizeof rank);
    return key == INT32_MAX ? HUGE_VALF : key == INT32_MIN ? -HUGE_VALF : rank;
}
/* The upper half, towards minus infinity: a >= b implies half_key(a) >= half_key(b) */
static inline int16_t half_key(float rank) { return (int16_t)(rank_key(rank) >> 16); }

static inline float larger(float a, float b) { return b > a || b != b ? b : a; }
static int round_up(int n, int to) { return (n + to - 1) / to * to; }
static int threads_now(void) { return omp_get_max_threads() < MAX_THREADS ? omp_get_max_threads() : MAX_THREADS; }
static int exact_blocks(const struct encode *e) { return (e->M + e->exact - 1) / e->exact; }

/* The next `bytes` of scratch; the size is summed up where there is no scratch yet. */
static void *take(char *scratch, size_t *used, size_t bytes) {
    size_t at = *used;
    *used += (bytes + 63) / 64 * 64;
    return scratch ? scratch + at : NULL;
}

static size_t place_own(struct own *o, char *at, const struct encode *e) {
    size_t used = 0, block = (size_t)e->block, bytes = (size_t)sae_screen_bytes(e->d);
    o->panels = take(at, &used, block * bytes);
    o->turning.sign = e->sign;
    o->turning.rounded = take(at, &used, (size_t)SAE_PANEL * bytes);
    o->turning.row = take(at, &used, (size_t)sae_screen_columns(e->d) * sizeof *o->turning.row);
    o->start = take(at, &used, block * sizeof *o->start);
    o->rounded = take(at, &used, block * sizeof *o->rounded);
    o->least = take(at, &used, (size_t)e->panels * sizeof *o->least);
    o->key = take(at, &used, (size_t)e->M * sizeof *o->key);
    return used;
}
static struct own own_of(const struct encode *e) {
    struct own o;
    place_own(&o, e->own + (size_t)omp_get_thread_num() * e->own_bytes, e);
    return o;
}

static void place_features(struct features *f, char *scratch, size_t *used, size_t panels) {
    size_t bytes = panels * SAE_PANEL * sizeof(float);
    f->unscale = take(scratch, used, bytes);
    f->bias = take(scratch, used, bytes);
    f->norm = take(scratch, used, bytes);
    f->rounding = take(scratch, used, bytes);
    f->slack = take(scratch, used, bytes);
    f->widest_norm = take(scratch, used, panels * sizeof(float));
    f->widest_rounding = take(scratch, used, panels * sizeof(float));
    f->widest_slack = take(scratch, used, panels * sizeof(float));
}

static int limited(size_t n, int least, int most) { return n < (size_t)least ? least : n > (size_t)most ? most : (int)n; }

/* Measures when scratch is NULL, else places. */
static size_t place(struct encode *e, char *scratch, int N, int d, int M, int K) {
    struct own o;
    e->d = d, e->M = M, e->K = K, e->panels = round_up(M, SAE_PANEL) / SAE_PANEL;
    size_t used = 0, bytes = (size_t)sae_screen_bytes(d), features = (size_t)e->panels * SAE_PANEL;
    e->stride = (int)features + 48; /* room behind, and rows in different sets of the caches */
    e->block = SAE_PANEL * limited(SCREEN_BYTES / (SAE_PANEL * bytes), 1, 8);
    e->exact = SAE_PANEL * limited(EXACT_BYTES / (SAE_PANEL * (size_t)d * (e->w.low ? sizeof(bf16) : sizeof(float))), 1, 64);
    size_t row_bytes = features * (sizeof(int16_t) + sizeof(int) + sizeof(float)), rows = (size_t)round_up(N, SAE_TILE_ROWS);
    size_t most = SAE_TILE_ROWS * (size_t)limited(CHUNK_BYTES / row_bytes / SAE_TILE_ROWS, 1, CHUNK_TILES);
    rows = rows < most ? rows : most;
    e->most_rows = (int)rows;
    e->own_bytes = place_own(&o, NULL, e);
    e->x_low = take(scratch, &used, rows * (size_t)d * sizeof *e->x_low);
    e->sign = take(scratch, &used, (size_t)sae_screen_columns(d) * sizeof *e->sign);
    e->x_tiles = take(scratch, &used, rows * bytes);
    e->centers = take(scratch, &used, rows * features * sizeof *e->centers);
    e->unscale = take(scratch, &used, rows * sizeof(float));
    e->norm = take(scratch, &used, rows * sizeof(float));
    e->spread = take(scratch, &used, rows * sizeof(float));
    e->reach = take(scratch, &used, rows * sizeof(float));
    place_features(&e->feature, scratch, &used, (size_t)e->panels);
    e->index = take(scratch, &used, rows * (size_t)e->stride * sizeof *e->index);
    e->h = take(scratch, &used, rows * (size_t)e->stride * sizeof *e->h);
    e->ends = take(scratch, &used, rows * features / SAE_PANEL * sizeof *e->ends);
    e->pending = take(scratch, &used, rows * sizeof *e->pending);
    e->again = take(scratch, &used, rows);
    e->own = take(scratch, &used, (size_t)MAX_THREADS * e->own_bytes);
    return used;
}

/* ---- the screen ---- */

static void pack_block(const struct encode *e, struct own *o, int first, int count) {
    const struct features *f = &e->feature;
    size_t panel = (size_t)sae_screen_bytes(e->d) * SAE_PANEL;
    for (int p = 0; p < count; p += SAE_PANEL)
        sae_screen_panel(o->panels + (size_t)(p / SAE_PANEL) * panel, o->start + p, o->rounded + p, e->w, first + p,
                         count - p < SAE_PANEL ? count - p : SAE_PANEL, e->d, o->turning);
    for (int j = first; j < first + count; j++) {
        struct sae_rounded w = o->rounded[j - first];
        float scale = e->rank_scale ? e->rank_scale[j] : 1, size = fabs(scale), threshold = e->threshold ? e->threshold[j] : 0;
        f->unscale[j] = w.unscale * scale;
        f->bias[j] = e->b_e[j] * scale - threshold;
        f->norm[j] = w.norm * size;
        f->rounding[j] = w.rounding * size;
        f->slack[j] = (fabs(e->b_e[j] * scale) + fabs(threshold)) * 0x1p-20f;
    }
    for (int j = first + count; j < first + round_up(count, SAE_PANEL); j++)
        f->unscale[j] = f->norm[j] = f->rounding[j] = f->slack[j] = 0, f->bias[j] = -HUGE_VALF;
    for (int p = first / SAE_PANEL; p < (first + count + SAE_PANEL - 1) / SAE_PANEL; p++) {
        f->widest_norm[p] = f->widest_rounding[p] = f->widest_slack[p] = 0;
        for (int j = p * SAE_PANEL; j < (p + 1) * SAE_PANEL; j++) {
            f->widest_norm[p] = larger(f->widest_norm[p], f->norm[j]);
            f->widest_rounding[p] = larger(f->widest_rounding[p], f->rounding[j]);
            f->widest_slack[p] = larger(f->widest_slack[p], f->slack[j]);
        }
    }
}

static void screen_block(const struct encode *e, struct own *o, int first, int count) {
    size_t bytes = (size_t)sae_screen_bytes(e->d);
    pack_block(e, o, first, count);
    for (int t = 0; t < e->rows; t += SAE_TILE_ROWS)
        for (int p = 0; p < count; p += SAE_PANEL) {
            int32_t sum[SAE_TILE_ROWS][SAE_PANEL];
            const float *unscale = e->feature.unscale + first + p, *bias = e->feature.bias + first + p;
            sae_screen_tile(sum, e->x_tiles + (size_t)t * bytes, o->panels + (size_t)p * bytes, o->start + p, e->d);
            for (int r = 0; r < SAE_TILE_ROWS; r++) {
                int16_t *center = e->centers + cpu_offset(t + r, e->panels * SAE_PANEL) + (size_t)(first + p);
                for (int j = 0; j < SAE_PANEL; j++) center[j] = half_key(fma((float)sum[r][j] * e->unscale[t + r], unscale[j], bias[j]));
            }
        }
}

static void screen(struct encode *e) {
    int blocks = (e->M + e->block - 1) / e->block, finite = 0;
#pragma omp parallel num_threads(threads_now())
    {
        struct own o = own_of(e);
#pragma omp for schedule(dynamic, 1)
        for (int b = 0; b < blocks; b++) screen_block(e, &o, b * e->block, e->M - b * e->block < e->block ? e->M - b * e->block : e->block);
    }
    e->usual.norm = e->usual.rounding = e->usual.slack = 0;
    for (int p = 0; p < e->panels; p++) {
        float norm = e->feature.widest_norm[p], rounding = e->feature.widest_rounding[p], slack = e->feature.widest_slack[p];
        if (!(norm + rounding + slack < HUGE_VALF)) continue;
        e->usual.norm += norm, e->usual.rounding += rounding, e->usual.slack += slack;
        finite++;
    }
    if (finite) e->usual.norm /= (float)finite, e->usual.rounding /= (float)finite, e->usual.slack /= (float)finite;
}

/* ---- guesses ---- */

static const int16_t *centers_of(const struct encode *e, int row) { return e->centers + cpu_offset(row, e->panels * SAE_PANEL); }

/* How many of n centers reach, n a multiple of SAE_PANEL */
static int centers_reaching(const int16_t *center, int n, int16_t least) {
    int count = 0;
#ifdef __AVX512BW__
    const __m512i bound = _mm512_set1_epi16(least);
    for (int i = 0; i < n; i += SAE_PANEL) count += __builtin_popcount(_mm512_cmpge_epi16_mask(_mm512_loadu_si512(center + i), bound));
#else
    for (int i = 0; i < n; i++) count += center[i] >= least;
#endif
    return count;
}

/* Appends the features of panel p whose centers reach; returns how many there are now. Writes up to SAE_PANEL beyond. */
static inline int append_reaching(int *index, int n, const int16_t *center, int p, int16_t least) {
#ifdef __AVX512BW__
    const __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask32 mask = _mm512_cmpge_epi16_mask(_mm512_loadu_si512(center + p * SAE_PANEL), _mm512_set1_epi16(least));
    for (int half = 0; half < SAE_PANEL; half += 16) {
        __mmask16 part = (__mmask16)(mask >> half);
        _mm512_storeu_si512(index + n, _mm512_maskz_compress_epi32(part, _mm512_add_epi32(place, _mm512_set1_epi32(p * SAE_PANEL + half))));
        n += __builtin_popcount(part);
    }
#else
    for (int i = p * SAE_PANEL; i < (p + 1) * SAE_PANEL; i++) {
        index[n] = i;
        n += center[i] >= least;
    }
#endif
    return n;
}

/* A half key that K centers reach, and hardly more: bisection, above what the largest of each place of the panels say */
static int16_t kth_center(const struct encode *e, const int16_t *center) {
    int16_t largest[SAE_PANEL];
    int low = INT16_MAX, high = INT16_MIN, count = e->M, n = e->panels * SAE_PANEL;
    memcpy(largest, center, sizeof largest);
    for (int i = SAE_PANEL; i < n; i += SAE_PANEL)
        for (int j = 0; j < SAE_PANEL; j++) largest[j] = center[i + j] > largest[j] ? center[i + j] : largest[j];
    for (int j = 0; j < SAE_PANEL; j++) {
        low = largest[j] < low ? largest[j] : low;
        high = largest[j] > high ? largest[j] : high;
    }
    if (e->K > SAE_PANEL) low = INT16_MIN;
    while (low < high && count > e->K + e->K / 16) {
        int middle = (low + high + 1) >> 1, c = centers_reaching(center, n, (int16_t)middle);
        if (c >= e->K)
            low = middle, count = c;
        else
            high = middle - 1;
    }
    return (int16_t)low;
}

/* A row's candidates: features whose interval reaches; the panel's widest interval is tried first, then each one's own. */
static void find_candidates(const struct encode *e, int row, int16_t *least) {
    const struct features *f = &e->feature;
    const int16_t *center = centers_of(e, row);
    const float reach = e->reach[row], norm = e->norm[row], spread = e->spread[row];
    int *index = e->index + cpu_offset(row, e->stride), *ends = e->ends + cpu_offset(row, exact_blocks(e)), n = 0;
    for (int p = 0; p < e->panels; p++) {
        float lowest = reach - fma(spread, f->widest_norm[p], fma(norm, f->widest_rounding[p], f->widest_slack[p]));
        least[p] = lowest == lowest ? half_key(lowest) : INT16_MIN;
    }
    for (int b = 0; b < exact_blocks(e); b++) {
        int near = n, panels = e->exact / SAE_PANEL;
        for (int p = b * panels; p < (b + 1) * panels && p < e->panels; p++) near = append_reaching(index, near, center, p, least[p]);
        for (int k = n; k < near; k++) {
            int i = index[k];
            float top = key_rank(center[i] * (1 << 16) + 0xFFFF) + fma(spread, f->norm[i], fma(norm, f->rounding[i], f->slack[i]));
            index[n] = i;
            n += !(top < reach) && i < e->M;
        }
        ends[b] = n;
    }
}

/* Without a screen every feature is one. */
static void all_candidates(const struct encode *e, int row) {
    for (int i = 0; i < e->M; i++) e->index[cpu_offset(row, e->stride) + (size_t)i] = i;
    for (int b = 0; b < exact_blocks(e); b++)
        e->ends[cpu_offset(row, exact_blocks(e)) + (size_t)b] = (b + 1) * e->exact < e->M ? (b + 1) * e->exact : e->M;
}

static float guess(const struct encode *e, int row) {
    float width = fma(e->spread[row], e->usual.norm, fma(e->norm[row], e->usual.rounding, e->usual.slack));
    float reach = e->threshold ? 0 : key_rank(kth_center(e, centers_of(e, row)) * (1 << 16)) - GUESS * width;
    return reach == reach ? reach : -HUGE_VALF;
}

/* ---- the exact pass ---- */

/* A block of features against all pending rows: the block's weights stay in the second-level cache, the rows pass by. */
static void exact_block(const struct encode *e, int rows, int block) {
    for (int i = 0; i < rows; i++) {
        int row = e->pending[i], *ends = e->ends + cpu_offset(row, exact_blocks(e)), from = block ? ends[block - 1] : 0;
        size_t at = cpu_offset(row, e->stride) + (size_t)from;
        sae_exact_products(e->h + at, e->x, row, e->w, e->index + at, ends[block] - from, e->d);
        for (int j = 0; j < ends[block] - from; j++) e->h[at + (size_t)j] += e->b_e[e->index[at + (size_t)j]];
    }
}

static void exact_pass(const struct encode *e, int rows, bool known) {
#pragma omp parallel num_threads(threads_now())
    {
        struct own o = own_of(e);
#pragma omp for schedule(dynamic, 16)
        for (int i = 0; i < rows; i++) {
            int row = e->pending[i];
            if (!e->screened) {
                all_candidates(e, row);
                continue;
            }
            if (!known) e->reach[row] = guess(e, row);
            find_candidates(e, row, o.least);
        }
#pragma omp for schedule(dynamic, 1)
        for (int b = 0; b < exact_blocks(e); b++) exact_block(e, rows, b);
    }
}

/* ---- a row's end ---- */

static int count_reaching(const int32_t *key, int n, int32_t bound) {
    int count = 0;
    for (int i = 0; i < n; i++) count += key[i] >= bound;
    return count;
}

/* The largest bound that at least K of n keys reach: bisection on the integers. */
static int32_t kth_largest(const int32_t *key, int n, int K) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int i = 0; i < n; i++) {
        low = key[i] < low ? key[i] : low;
        high = key[i] > high ? key[i] : high;
    }
    while (low < high) {
        int32_t middle = (int32_t)(high - ((int64_t)high - low) / 2);
        if (count_reaching(key, n, middle) >= K)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static void finish_jumprelu(const struct encode *e, int row, int *indices, float *values, int *total) {
    const int *index = e->index + cpu_offset(row, e->stride), n = e->ends[cpu_offset(row + 1, exact_blocks(e)) - 1];
    const float *h = e->h + cpu_offset(row, e->stride);
    *total = 0;
    for (int i = 0; i < n; i++) {
        if (!(h[i] > e->threshold[index[i]])) continue;
        if (*total < e->K) indices[*total] = index[i], values[*total] = h[i];
        ++*total;
    }
    for (int k = *total; k < e->K; k++) indices[k] = -1, values[k] = 0;
}

/* Chooses among a row's candidates and fills its slots; ties fall to the lower index. False, with a new `reach`, when the
 * guess was too high. */
static bool finish_topk(const struct encode *e, int32_t *key, int row, int *indices, float *values) {
    const int *index = e->index + cpu_offset(row, e->stride), n = e->ends[cpu_offset(row + 1, exact_blocks(e)) - 1];
    const float *h = e->h + cpu_offset(row, e->stride);
    CHECK(n >= e->K, "row %d: %d candidates", row, n);
    for (int i = 0; i < n; i++) key[i] = rank_key(e->rank_scale ? h[i] * e->rank_scale[index[i]] : h[i]);
    int32_t kth = kth_largest(key, n, e->K);
    if (e->screened && kth < rank_key(e->reach[row])) {
        e->reach[row] = key_rank(kth);
        return false;
    }
    int ties = e->K - (kth == INT32_MAX ? 0 : count_reaching(key, n, kth + 1));
    for (int i = 0, k = 0; i < n; i++) {
        if (key[i] < kth || (key[i] == kth && ties-- <= 0)) continue;
        indices[k] = index[i];
        values[k++] = relu(h[i]);
    }
    return true;
}

/* ---- a chunk of rows ---- */

static void prepare_tile(const struct encode *e, const float *x, int first, struct sae_turning turning) {
    int rows = e->rows - first < SAE_TILE_ROWS ? e->rows - first : SAE_TILE_ROWS;
    struct sae_rounded rounded[SAE_TILE_ROWS];
    if (e->w.low)
        for (size_t i = cpu_offset(first, e->d); i < cpu_offset(first + rows, e->d); i++) e->x_low[i] = bf16_from_float(x[i]);
    if (!e->screened) return;
    sae_screen_rows(e->x_tiles + cpu_offset(first, sae_screen_bytes(e->d)), rounded, e->x, first, rows, e->d, turning);
    const float rounding_of_sums = (float)(e->d / 8 + 96) * 0x1p-23f; /* of the exact product, turning, the bias and the interval itself */
    for (int r = 0; r < SAE_TILE_ROWS; r++) {
        struct sae_rounded v = r < rows ? rounded[r] : (struct sae_rounded){0, 0, 0};
        e->unscale[first + r] = v.unscale;
        e->norm[first + r] = v.norm + v.rounding;
        e->spread[first + r] = v.rounding + rounding_of_sums * v.norm;
    }
}

static void encode_chunk(struct encode *e, const float *x, int *indices, float *values, int *counts) {
    int left = e->rows;
    e->screened = e->rows >= SCREEN_MIN_ROWS;
    e->x = e->w.low ? (struct sae_rows){NULL, e->x_low} : (struct sae_rows){x, NULL};
#pragma omp parallel for num_threads(threads_now()) schedule(static)
    for (int t = 0; t < e->rows; t += SAE_TILE_ROWS) prepare_tile(e, x, t, own_of(e).turning);
    if (e->screened) screen(e);
    for (int r = 0; r < e->rows; r++) e->pending[r] = r;
    for (int pass = 0; left; pass++) {
        CHECK(pass < 2, "%d rows: what K exact values reach, they reach", left);
        exact_pass(e, left, pass > 0);
#pragma omp parallel for num_threads(threads_now()) schedule(dynamic, 16)
        for (int i = 0; i < left; i++) {
            int r = e->pending[i], *index = indices + cpu_offset(r, e->K);
            float *value = values + cpu_offset(r, e->K);
            e->again[i] = 0;
            if (e->threshold)
                finish_jumprelu(e, r, index, value, counts + r);
            else
                e->again[i] = !finish_topk(e, own_of(e).key, r, index, value);
        }
        int again = 0;
        for (int i = 0; i < left; i++)
            if (e->again[i]) e->pending[again++] = e->pending[i];
        left = again;
    }
}

static void encode(struct encode *e, const float *x, int *indices, float *values, int *counts, int N, int d, int M, int K, void *scratch) {
    CHECK(N >= 0 && d > 0 && d <= SAE_MOST_COLUMNS && K > 0 && (e->threshold || K <= M), "N=%d d=%d M=%d K=%d", N, d, M, K);
    place(e, scratch, N, d, M, K);
    sae_screen_signs(e->sign, d);
    for (int n = 0; n < N; n += e->most_rows) {
        e->rows = N - n < e->most_rows ? N - n : e->most_rows;
        encode_chunk(e, x + cpu_offset(n, d), indices + cpu_offset(n, K), values + cpu_offset(n, K), counts ? counts + n : NULL);
    }
}

size_t OP(sae_encode_scratch)(int N, int d, int M, int K) {
    struct encode e = {.d = d};
    return place(&e, NULL, N, d, M, K);
}

void OP(sae_encode_topk)(struct device *dev, int *indices, real_t *values, const act_t *x, const real_t *E, const bf16 *E_low,
                         const real_t *b_e, const real_t *rank_scale, int N, int d, int M, int K, void *scratch) {
    (void)dev;
    struct encode e = {.w = {E_low ? NULL : E, E_low}, .b_e = b_e, .rank_scale = rank_scale};
    encode(&e, x, indices, values, NULL, N, d, M, K, scratch);
}

void OP(sae_encode_jumprelu)(struct device *dev, int *indices, real_t *values, int *counts, const act_t *x, const real_t *E,
                             const bf16 *E_low, const real_t *b_e, const real_t *threshold, int N, int d, int M, int K, void *scratch) {
    (void)dev;
    struct encode e = {.w = {E_low ? NULL : E, E_low}, .b_e = b_e, .threshold = threshold};
    encode(&e, x, indices, values, counts, N, d, M, K, scratch);
}
#endif
