/* attention.c - see attention.h. Blocked softmax after Milakov & Gimelshein 2018 and Dao et al. 2022.
 *
 * A task is one run of queries of one sequence together with all query heads of one kv head: `rows` = queries * H/G rows,
 * held transposed, so that keys and values are read as they lie in memory and no row ever needs a horizontal sum:
 *   S^T (KEYS, rows) = K (KEYS, D) Q^T (D, rows);  O (rows, D) += P (rows, KEYS) V (KEYS, D), P^T held over S^T
 * Tasks never share a result: the number of threads changes no bit. */
#include "kernels/attention.h"

#include "host/check.h"
#include "kernels/attention_cpu.h"

struct shape {
    int H, G, D, group; /* group = H / G */
    real_t scale;
    bool causal;
};

#ifdef STAGEDIFF_REF

/* One query row: scores, softmax, weighted sum; score [tmp] (keys). */
static void attend(double *z, double *lse, const double *q, const double *k, const double *v, double *score, int keys,
                   const struct shape *a) {
    size_t stride = (size_t)a->G * (size_t)a->D;
    double top = -INFINITY, sum = 0;
    for (int j = 0; j < keys; j++) {
        double dot = 0;
        for (int d = 0; d < a->D; d++) dot += q[d] * k[(size_t)j * stride + (size_t)d];
        score[j] = dot * a->scale;
        top = score[j] > top ? score[j] : top;
    }
    for (int d = 0; d < a->D; d++) z[d] = 0;
    for (int j = 0; j < keys; j++) {
        double p = exp(score[j] - top);
        sum += p;
        for (int d = 0; d < a->D; d++) z[d] += p * v[(size_t)j * stride + (size_t)d];
    }
    for (int d = 0; d < a->D; d++) z[d] /= sum;
    if (lse) *lse = top + log(sum);
}

static void attend_sequence(double *z, double *lse, const double *q, const double *k, const double *v, int queries, int keys,
                            const struct shape *a) {
#pragma omp parallel for schedule(static) collapse(2)
    for (int i = 0; i < queries; i++)
        for (int h = 0; h < a->H; h++) {
            int seen = a->causal ? i + keys - queries + 1 : keys;
            double *score = malloc((size_t)seen * sizeof(double));
            CHECK(score, "%d keys", seen);
            size_t row = cpu_offset(i, a->H) + (size_t)h, at = (size_t)(h / a->group) * (size_t)a->D;
            attend(z + row * (size_t)a->D, lse ? lse + row : NULL, q + row * (size_t)a->D, k + at, v + at, score, seen, a);
            free(score);
        }
}

static void attend_all(double *z, double *lse, const double *q, const double *k, const double *v, const int *q_start, const int *k_start,
                       const int *k_length, int S, int max_q, const struct shape *a) {
    (void)max_q;
    for (int s = 0; s < S; s++) {
        size_t row = (size_t)q_start[s] * (size_t)a->H, key = cpu_offset(k_start[s], a->G) * (size_t)a->D;
        attend_sequence(z + row * (size_t)a->D, lse ? lse + row : NULL, q + row * (size_t)a->D, k + key, v + key,
                        q_start[s + 1] - q_start[s], k_length[s], a);
    }
}

#else

enum { KEYS = 64, ROWS = 64 };

/* One thread's scratch. R rows and W columns are rows and D rounded up to LANES. */
struct scratch {
    int R, W;
    float *q;                /* (D, R) queries, transposed and scaled */
    float *s;                /* (KEYS, R) scores, then probabilities */
    float *o;                /* (R, W) */
    float *tile;             /* (KEYS, W) keys or values that need padding */
    float *top, *sum, *fade; /* (R) running maximum, denominator, exp(old maximum - new) */
    float *query;            /* (R) r / group */
};

static void scratch_make(struct scratch *t, int rows, int group, int D) {
    int R = round_up(rows, LANES), W = round_up(D, LANES);
    size_t count = (size_t)R * (size_t)(D + KEYS + W + 4) + (size_t)KEYS * (size_t)W;
    float *p = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
    CHECK(p, "%zu floats", count);
    *t = (struct scratch){.R = R, .W = W, .q = p};
    t->s = t->q + (size_t)D * (size_t)R;
    t->o = t->s + (size_t)KEYS * (size_t)R;
    t->tile = t->o + (size_t)R * (size_t)W;
    t->top = t->tile + (size_t)KEYS * (size_t)W;
    t->sum = t->top + R;
    t->fade = t->sum + R;
    t->query = t->fade + R;
    for (int r = 0; r < R; r++) t->query[r] = (float)(r / group);
}

/* The keys or values in place, or where D or their number needs padding a copy with zeros: `rows` rows of W. */
static const float *tile_rows(const struct scratch *t, const float *from, size_t *stride, int keys, int rows, int D) {
    if (keys == rows && D == t->W) return from;
    memset(t->tile, 0, (size_t)rows * (size_t)t->W * sizeof(float));
    for (int j = 0; j < keys; j++) memcpy(t->tile + cpu_offset(j, t->W), from + (size_t)j * *stride, (size_t)D * sizeof(float));
    *stride = (size_t)t->W;
    return t->tile;
}

/* 2^x for x <= 0: the nearest integer into the exponent, polynomial of degree 6 in the rest; 0 below -126, NaN stays.
 * Polynomial: exp_real's (cpu.h), coefficients times powers of ln 2. */
static inline float exp2_negative(float x) {
    const float low = -126.0f, magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float c = x < low ? low : x, shifted = c + magic, r = c - (shifted - magic);
    float p = 1.5320992e-4f;
    p = p * r + 1.3390275e-3f;
    p = p * r + 9.6185276e-3f;
    p = p * r + 5.5503620e-2f;
    p = p * r + 2.4022648e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.0f;
    uint32_t bits, shift;
    memcpy(&bits, &p, 4);
    memcpy(&shift, &shifted, 4);
    bits += shift << 23;
    memcpy(&p, &bits, 4);
    p = x < low ? 0.0f : p;
    return x != x ? x : p;
}

/* S^T from scores (base 2) to probabilities against the new running maximum; row r sees keys j < seen0 + query[r] of this tile. */
static void soften(const struct scratch *t, int keys, int seen0, bool mask) {
    float *restrict top = t->top, *restrict sum = t->sum, *restrict fade = t->fade;
    int R = t->R;
    for (int j = mask && seen0 > 0 ? seen0 : 0; mask && j < keys; j++) {
        float *restrict s = t->s + cpu_offset(j, R), past = (float)(j - seen0);
        for (int r = 0; r < R; r++) s[r] = past >= t->query[r] ? -INFINITY : s[r];
    }
    for (int r = 0; r < R; r++) fade[r] = top[r];
    for (int j = 0; j < keys; j++) {
        const float *s = t->s + cpu_offset(j, R);
        for (int r = 0; r < R; r++) top[r] = s[r] > top[r] ? s[r] : top[r];
    }
    for (int r = 0; r < R; r++) {
        fade[r] = exp2_negative(fade[r] - top[r]);
        sum[r] *= fade[r];
    }
    for (int j = 0; j < keys; j++) {
        float *restrict s = t->s + cpu_offset(j, R);
        for (int r = 0; r < R; r++) {
            s[r] = exp2_negative(s[r] - top[r]);
            sum[r] += s[r];
        }
    }
}

/* `queries` queries of one kv head; q, z, lse at the first of them, k, v at the sequence's first key; the first query sees `seen` keys. */
static void attend(const struct scratch *t, float *z, float *lse, const float *q, const float *k, const float *v, int queries, int keys,
                   int seen, const struct shape *a) {
    int D = a->D, R = t->R, rows = queries * a->group;
    float scale = a->scale * 1.44269504f; /* log2 e: softmax in base 2 */
    memset(t->q, 0, (size_t)D * (size_t)R * sizeof(float));
    for (int r = 0; r < rows; r++) {
        const float *from = q + (cpu_offset(r / a->group, a->H) + (size_t)(r % a->group)) * (size_t)D;
        for (int d = 0; d < D; d++) t->q[cpu_offset(d, R) + (size_t)r] = from[d] * scale;
    }
    memset(t->o, 0, (size_t)R * (size_t)t->W * sizeof(float));
    for (int r = 0; r < R; r++) t->top[r] = -INFINITY, t->sum[r] = 0;
    int last = a->causal ? seen + queries - 1 : keys;
    for (int first = 0; first < last; first += KEYS) {
        int here = last - first < KEYS ? last - first : KEYS, tall = round_up(here, TALL);
        size_t row = (size_t)a->G * (size_t)D, stride = row;
        const float *tile = tile_rows(t, k + (size_t)first * row, &stride, here, tall, D);
        memset(t->s, 0, (size_t)tall * (size_t)R * sizeof(float));
        multiply(t->s, (size_t)R, tile, stride, 1, t->q, (size_t)R, tall, R, D);
        soften(t, here, seen - first, a->causal && first + KEYS > seen);
        for (int r = 0; r < R && first; r++)
            for (int d = 0; d < t->W; d++) t->o[cpu_offset(r, t->W) + (size_t)d] *= t->fade[r];
        stride = row;
        tile = tile_rows(t, v + (size_t)first * row, &stride, here, here, D);
        multiply(t->o, (size_t)t->W, t->s, 1, (size_t)R, tile, stride, R, t->W, here);
    }
    for (int r = 0; r < rows; r++) {
        size_t at = cpu_offset(r / a->group, a->H) + (size_t)(r % a->group);
        float share = 1.0f / t->sum[r];
        for (int d = 0; d < D; d++) z[at * (size_t)D + (size_t)d] = t->o[cpu_offset(r, t->W) + (size_t)d] * share;
        if (lse) lse[at] = (t->top[r] + log2f(t->sum[r])) * 0.693147181f;
    }
}

static void attend_all(float *z, float *lse, const float *q, const float *k, const float *v, const int *q_start, const int *k_start,
                       const int *k_length, int S, int max_q, const struct shape *a) {
    int span = ROWS / a->group > 0 ? ROWS / a->group : 1; /* queries of a task */
    if (span > max_q) span = max_q;
    int blocks = (max_q + span - 1) / span, tasks = S * a->G * blocks;
#pragma omp parallel if (tasks > 1)
    {
        struct scratch t;
        scratch_make(&t, span * a->group, a->group, a->D);
#pragma omp for schedule(dynamic)
        for (int task = 0; task < tasks; task++) {
            int g = task % a->G, s = task / a->G % S, b = blocks - 1 - task / a->G / S; /* the longest causal rows first */
            int i = b * span, queries = q_start[s + 1] - q_start[s] - i, keys = k_length[s];
            if (queries <= 0) continue;
            int seen = a->causal ? keys - queries + 1 : keys;
            if (queries > span) queries = span;
            size_t row = cpu_offset(q_start[s] + i, a->H) + (size_t)(g * a->group),
                   key = (cpu_offset(k_start[s], a->G) + (size_t)g) * (size_t)a->D;
            attend(&t, z + row * (size_t)a->D, lse ? lse + row : NULL, q + row * (size_t)a->D, k + key, v + key, queries, keys, seen, a);
        }
        free(t.q);
    }
}
#endif

void OP(attention_forward)(struct device *dev, act_t *z, real_t *lse, const act_t *q, const act_t *k, const act_t *v, const int *q_start,
                           const int *k_start, const int *k_length, int S, int max_q, int H, int G, int D, real_t scale, bool causal) {
    (void)dev;
    CHECK(G > 0 && H % G == 0 && D % 8 == 0 && D <= 256, "H=%d G=%d D=%d", H, G, D);
    if (S <= 0 || max_q <= 0) return;
    struct shape a = {.H = H, .G = G, .D = D, .group = H / G, .scale = scale, .causal = causal};
    attend_all(z, lse, q, k, v, q_start, k_start, k_length, S, max_q, &a);
}
