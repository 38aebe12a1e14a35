/* sae_encode.c - see sae_ops.h. The K largest of M pre-activations per row, without ever storing M of them.
 *
 * Threads take blocks of features from a counter; a block is packed once into their second-level cache and multiplied
 * with every row, tile by tile. A pre-activation is looked at while its tile is in the first-level cache and listed when
 * it reaches the row's bound. When a row's list is full, the bound is raised to a value that K listed candidates reach.
 * The bound never exceeds the true K-th largest, so the choice is exact, with no second try, whatever the order.
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
            sum += E_low ? (double)float_from_bf16(bf16_from_float((float)x[i])) * (double)float_from_bf16(E_low[cpu_offset(f, d) + (size_t)i])
                         : x[i] * E[cpu_offset(f, d) + (size_t)i];
        h[f] = sum + b_e[f];
    }
}

size_t OP(sae_encode_scratch)(int N, int d, int M, int K) {
    (void)N, (void)d, (void)K;
    return (size_t)M * (sizeof(double) + 1);
}

static bool ranks_before(double a, double b) { return a != a ? b == b : a > b; }

void OP(sae_encode_topk)(struct device *dev, int *indices, real_t *values, const act_t *x, const real_t *E, const bf16 *E_low, const real_t *b_e, const real_t *rank_scale, int N, int d, int M, int K, void *scratch) {
    (void)dev;
    double *h = scratch;
    char *taken = (char *)(h + M);
    for (int n = 0; n < N; n++) {
        preactivations(h, x + cpu_offset(n, d), E, E_low, b_e, d, M);
        memset(taken, 0, (size_t)M);
        for (int k = 0; k < K; k++) {
            int best = -1;
            for (int f = 0; f < M; f++)
                if (!taken[f] && (best < 0 || ranks_before(h[f] * (rank_scale ? rank_scale[f] : 1), h[best] * (rank_scale ? rank_scale[best] : 1)))) best = f;
            taken[best] = 1;
        }
        for (int f = 0, k = 0; f < M; f++)
            if (taken[f]) {
                indices[cpu_offset(n, K) + (size_t)k] = f;
                values[cpu_offset(n, K) + (size_t)k++] = relu(h[f]);
            }
    }
}

void OP(sae_encode_jumprelu)(struct device *dev, int *indices, real_t *values, int *counts, const act_t *x, const real_t *E, const bf16 *E_low, const real_t *b_e, const real_t *threshold, int N, int d, int M, int K, void *scratch) {
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

/* CHUNK_ROWS share one packing of E; LISTS threads can work on the features of one row; a block of features takes
 * BLOCK_BYTES packed, a quarter of a 2 MiB second-level cache that two hardware threads may share. */
enum { CHUNK_TILES = 74, CHUNK_ROWS = CHUNK_TILES * SAE_TILE_ROWS, LISTS = 4, BLOCK_BYTES = 512 << 10, MAX_THREADS = 64 };

/* Candidates of one row as one thread saw them, ascending in index. */
struct list {
    int32_t *key; /* order of the rank as an integer */
    float *h;
    int *index;
};

/* One call's work, and where its parts lie in scratch. */
struct encode {
    const float *x, *E, *b_e, *rank_scale, *threshold; /* threshold: JumpReLU; else top-k */
    const bf16 *E_low;
    int d, M, K;
    int capacity;        /* of a list */
    int block;           /* features of a block, a multiple of SAE_PANEL */
    int rows, tiles;     /* of the chunk at hand */
    float *x_tiles;      /* (CHUNK_TILES, d, SAE_TILE_ROWS) */
    size_t block_floats; /* of a thread's part of w_blocks */
    float *w_blocks;     /* (MAX_THREADS, block, d): one packed block per thread; at the end the keys of a row's lists */
    int32_t *key;        /* (LISTS, CHUNK_ROWS, capacity), and so for h and index */
    float *h;
    int *index;
    int *count, *active; /* (LISTS, CHUNK_ROWS): listed, and found in all (JumpReLU) */
    _Atomic float *bound; /* (CHUNK_ROWS): at least K candidates of the row reach it. Threads race to raise it; any of their values is right */
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
    return key == INT32_MAX ? HUGE_VALF : rank;
}

static int round_up(int n, int to) { return (n + to - 1) / to * to; }

static size_t take(size_t *used, size_t bytes) {
    size_t at = *used;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

/* Measures when scratch is NULL, else places. */
static size_t place(struct encode *e, char *scratch, int N, int d, int M, int K) {
    int rows = N < CHUNK_ROWS ? round_up(N, SAE_TILE_ROWS) : CHUNK_ROWS;
    size_t per_panel = (size_t)SAE_PANEL * (size_t)d * sizeof(float), panels = (size_t)BLOCK_BYTES / per_panel;
    e->block = SAE_PANEL * (int)(panels < 1 ? 1 : panels > 8 ? 8 : panels);
    if (e->block > round_up(M, SAE_PANEL)) e->block = round_up(M, SAE_PANEL);
    e->capacity = round_up(K + (K < 128 ? 128 : K) + SAE_PANEL, 16);
    e->block_floats = (size_t)e->block * (size_t)d;
    if (e->block_floats < (size_t)LISTS * (size_t)e->capacity) e->block_floats = (size_t)LISTS * (size_t)e->capacity;
    size_t used = 0, entries = (size_t)LISTS * (size_t)rows * (size_t)e->capacity;
    size_t x_at = take(&used, (size_t)rows * (size_t)d * sizeof(float));
    size_t key_at = take(&used, entries * sizeof(int32_t)), h_at = take(&used, entries * sizeof(float)), index_at = take(&used, entries * sizeof(int));
    size_t count_at = take(&used, (size_t)LISTS * (size_t)rows * sizeof(int)), active_at = take(&used, (size_t)LISTS * (size_t)rows * sizeof(int));
    size_t bound_at = take(&used, (size_t)rows * sizeof(float)), w_at = take(&used, (size_t)MAX_THREADS * e->block_floats * sizeof(float));
    e->d = d, e->M = M, e->K = K;
    if (!scratch) return used;
    e->w_blocks = (float *)(void *)(scratch + w_at);
    e->x_tiles = (float *)(void *)(scratch + x_at);
    e->key = (int32_t *)(void *)(scratch + key_at);
    e->h = (float *)(void *)(scratch + h_at);
    e->index = (int *)(void *)(scratch + index_at);
    e->count = (int *)(void *)(scratch + count_at);
    e->active = (int *)(void *)(scratch + active_at);
    e->bound = (_Atomic float *)(void *)(scratch + bound_at);
    return used;
}

static struct list list_of(const struct encode *e, int which, int row) {
    size_t at = (cpu_offset(which, e->rows) + (size_t)row) * (size_t)e->capacity;
    return (struct list){e->key + at, e->h + at, e->index + at};
}

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

/* Drops what cannot be among the K largest; returns how many stay. Ties at the bound: the first ones, as lists ascend. */
static int compact(struct list l, int n, int K, int most, int32_t *bound) {
    int reaching, kept = 0;
    int32_t b = bound_of(l.key, n, K, most, &reaching);
    int ties = reaching > most ? K - (b == INT32_MAX ? 0 : count_reaching(l.key, n, b + 1)) : INT_MAX;
    for (int i = 0; i < n; i++) {
        if (l.key[i] < b || (l.key[i] == b && ties-- <= 0)) continue;
        l.key[kept] = l.key[i];
        l.h[kept] = l.h[i];
        l.index[kept++] = l.index[i];
    }
    *bound = b;
    return kept;
}

/* Which of 32 ranks do not lie below the bound (NaN does not). */
static inline uint32_t reaching_mask(const float *rank, float bound) {
#ifdef __AVX512F__
    __m512 b = _mm512_set1_ps(bound);
    return (uint32_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(rank), b, _CMP_NLT_UQ) | (uint32_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(rank + 16), b, _CMP_NLT_UQ) << 16;
#else
    uint32_t mask = 0;
    for (int j = 0; j < SAE_PANEL; j++) mask |= (uint32_t)!(rank[j] < bound) << j;
    return mask;
#endif
}

static void list_topk(const struct encode *e, int which, int row, const float *h, int feature, uint32_t valid) {
    float scaled[SAE_PANEL];
    const float *rank = h;
    if (e->rank_scale) {
        for (int j = 0; j < SAE_PANEL; j++) scaled[j] = valid >> j & 1 ? h[j] * e->rank_scale[feature + j] : 0;
        rank = scaled;
    }
    float bound = atomic_load_explicit(&e->bound[row], memory_order_relaxed);
    uint32_t mask = reaching_mask(rank, bound) & valid;
    if (!mask) return;
    struct list l = list_of(e, which, row);
    int *count = e->count + cpu_offset(which, e->rows) + row, n = *count;
    for (; mask; mask &= mask - 1) {
        int j = __builtin_ctz(mask);
        l.key[n] = rank_key(rank[j]);
        l.h[n] = h[j];
        l.index[n++] = feature + j;
    }
    if (n > e->capacity - SAE_PANEL) {
        int32_t key;
        n = compact(l, n, e->K, e->K + e->K / 4, &key);
        float raised = key_rank(key);
        if (!(raised <= bound)) atomic_store_explicit(&e->bound[row], raised, memory_order_relaxed);
    }
    *count = n;
}

static void list_active(const struct encode *e, int which, int row, const float *h, int feature, uint32_t valid) {
    struct list l = list_of(e, which, row);
    int *count = e->count + cpu_offset(which, e->rows) + row, *active = e->active + cpu_offset(which, e->rows) + row;
    for (int j = 0; j < SAE_PANEL; j++) {
        if (!(valid >> j & 1) || !(h[j] > e->threshold[feature + j])) continue;
        if (*count < e->K) {
            l.h[*count] = h[j];
            l.index[(*count)++] = feature + j;
        }
        (*active)++;
    }
}

/* Rows of tiles [from, to) against features [first, first + count), listed in list `which`. */
static void encode_block(const struct encode *e, float *w_block, int which, int from, int to, int first, int count) {
    for (int p = 0; p < count; p += SAE_PANEL) {
        size_t at = cpu_offset(first + p, e->d);
        sae_pack_panel(w_block + cpu_offset(p, e->d), e->E ? e->E + at : NULL, e->E_low ? e->E_low + at : NULL, count - p < SAE_PANEL ? count - p : SAE_PANEL, e->d);
    }
    for (int t = from; t < to; t++)
        for (int p = 0; p < count; p += SAE_PANEL) {
            float tile[SAE_TILE_ROWS][SAE_PANEL], bias[SAE_PANEL] = {0};
            int width = count - p < SAE_PANEL ? count - p : SAE_PANEL;
            uint32_t valid = width == SAE_PANEL ? UINT32_MAX : (1u << width) - 1;
            memcpy(bias, e->b_e + first + p, (size_t)width * sizeof(float));
            sae_tile_product(tile, e->x_tiles + cpu_offset(t, SAE_TILE_ROWS) * (size_t)e->d, w_block + cpu_offset(p, e->d), e->d);
            for (int r = 0; r < SAE_TILE_ROWS && t * SAE_TILE_ROWS + r < e->rows; r++) {
                for (int j = 0; j < SAE_PANEL; j++) tile[r][j] += bias[j];
                if (e->threshold) list_active(e, which, t * SAE_TILE_ROWS + r, tile[r], first + p, valid);
                else list_topk(e, which, t * SAE_TILE_ROWS + r, tile[r], first + p, valid);
            }
        }
}

/* Merges a row's lists into its K slots, ascending in the feature. */
static void finish_row(const struct encode *e, int row, int lists, int *indices, float *values, int *total, int32_t *keys) {
    int at[LISTS] = {0}, count[LISTS] = {0}, n = 0, found = 0;
    struct list l[LISTS];
    for (int i = 0; i < lists; i++) {
        l[i] = list_of(e, i, row);
        count[i] = e->count[cpu_offset(i, e->rows) + (size_t)row];
        found += e->active[cpu_offset(i, e->rows) + (size_t)row];
    }
    int32_t kth = INT32_MIN;
    int ties = INT_MAX;
    if (!e->threshold) {
        for (int i = 0; i < lists; n += count[i++]) memcpy(keys + n, l[i].key, (size_t)count[i] * sizeof *keys);
        int reaching;
        kth = bound_of(keys, n, e->K, e->K, &reaching);
        ties = e->K - (kth == INT32_MAX ? 0 : count_reaching(keys, n, kth + 1));
    }
    int k = 0;
    while (k < e->K) {
        int next = -1;
        for (int i = 0; i < lists; i++)
            if (at[i] < count[i] && (next < 0 || l[i].index[at[i]] < l[next].index[at[next]])) next = i;
        if (next < 0) break;
        int i = at[next]++;
        if (!e->threshold && (l[next].key[i] < kth || (l[next].key[i] == kth && ties-- <= 0))) continue;
        indices[k] = l[next].index[i];
        values[k++] = e->threshold ? l[next].h[i] : relu(l[next].h[i]);
    }
    for (; k < e->K; k++) {
        indices[k] = -1;
        values[k] = 0;
    }
    if (total) *total = found;
}

/* One chunk of rows. `next` holds a counter of blocks for each group of threads that shares rows. */
static void encode_chunk(struct encode *e, int *indices, float *values, int *counts) {
    int next[MAX_THREADS] = {0}, lists = LISTS, threads = omp_get_max_threads() < MAX_THREADS ? omp_get_max_threads() : MAX_THREADS;
    while (threads % lists) lists--;
    e->tiles = (e->rows + SAE_TILE_ROWS - 1) / SAE_TILE_ROWS;
    memset(e->count, 0, (size_t)LISTS * (size_t)e->rows * sizeof(int));
    memset(e->active, 0, (size_t)LISTS * (size_t)e->rows * sizeof(int));
    for (int r = 0; r < e->rows; r++) atomic_store_explicit(&e->bound[r], -HUGE_VALF, memory_order_relaxed);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int t = 0; t < e->tiles; t++) {
            int left = e->rows - t * SAE_TILE_ROWS;
            sae_pack_rows(e->x_tiles + cpu_offset(t, SAE_TILE_ROWS) * (size_t)e->d, e->x + cpu_offset(t * SAE_TILE_ROWS, e->d), left < SAE_TILE_ROWS ? left : SAE_TILE_ROWS, e->d, e->E_low != NULL);
        }
        int thread = omp_get_thread_num(), groups = threads / lists, group = thread / lists;
        int from = (int)((long)e->tiles * group / groups), to = (int)((long)e->tiles * (group + 1) / groups), first;
        float *w_block = e->w_blocks + (size_t)thread * e->block_floats;
        for (;;) {
#pragma omp atomic capture
            {
                first = next[group];
                next[group] += e->block;
            }
            if (first >= e->M) break;
            encode_block(e, w_block, thread % lists, from, to, first, e->M - first < e->block ? e->M - first : e->block);
        }
#pragma omp barrier
        int32_t *keys = (int32_t *)(void *)w_block;
#pragma omp for schedule(static)
        for (int r = 0; r < e->rows; r++)
            finish_row(e, r, lists, indices + cpu_offset(r, e->K), values + cpu_offset(r, e->K), counts ? counts + r : NULL, keys);
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

void OP(sae_encode_topk)(struct device *dev, int *indices, real_t *values, const act_t *x, const real_t *E, const bf16 *E_low, const real_t *b_e, const real_t *rank_scale, int N, int d, int M, int K, void *scratch) {
    (void)dev;
    struct encode e = {.x = x, .E = E_low ? NULL : E, .E_low = E_low, .b_e = b_e, .rank_scale = rank_scale};
    encode(&e, indices, values, NULL, N, d, M, K, scratch);
}

void OP(sae_encode_jumprelu)(struct device *dev, int *indices, real_t *values, int *counts, const act_t *x, const real_t *E, const bf16 *E_low, const real_t *b_e, const real_t *threshold, int N, int d, int M, int K, void *scratch) {
    (void)dev;
    struct encode e = {.x = x, .E = E_low ? NULL : E, .E_low = E_low, .b_e = b_e, .threshold = threshold};
    encode(&e, indices, values, counts, N, d, M, K, scratch);
}
#endif
