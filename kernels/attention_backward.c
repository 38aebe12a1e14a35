/* attention_backward.c - see attention.h. Formulas: Dao et al. 2022, appendix B.
 *
 * A task is one sequence and one kv head with all its query heads: dk and dv are summed inside it, so the number of threads
 * changes no bit. Rows r are (query, head of the group); scores are held transposed as in attention.c:
 *   P^T (KEYS, rows) = exp(K Q^T - lse),  dS^T = P^T * (V dO^T - delta)
 *   dV += P^T dO,  dK += dS^T Q,  dQ += dS K */
#include "kernels/attention.h"

#include "kernels/attention_cpu.h"
#include "host/check.h"

struct shape {
    int H, G, D, group; /* group = H / G */
    real_t scale;
};
/* One sequence and kv head: pointers at its first row and head; rows lie H*D (dq, q, dz), H (lse, delta) or G*D apart. */
struct part {
    act_t *dq, *dk, *dv;
    const act_t *dz, *q, *k, *v;
    const real_t *lse, *delta;
    int T;
};

#ifdef STAGEDIFF_REF

static void backward(const struct part *p, const struct shape *a) {
    const size_t D = (size_t)a->D, wide = (size_t)a->H * D, narrow = (size_t)a->G * D;
    for (int j = 0; j < p->T; j++)
        for (size_t d = 0; d < D; d++) p->dk[(size_t)j * narrow + d] = p->dv[(size_t)j * narrow + d] = 0;
    for (int i = 0; i < p->T; i++)
        for (int h = 0; h < a->group; h++) {
            const size_t row = (size_t)i * wide + (size_t)h * D, at = cpu_offset(i, a->H) + (size_t)h;
            for (size_t d = 0; d < D; d++) p->dq[row + d] = 0;
            for (int j = 0; j <= i; j++) {
                const size_t key = (size_t)j * narrow;
                double score = 0, dp = 0;
                for (size_t d = 0; d < D; d++) score += p->q[row + d] * p->k[key + d], dp += p->dz[row + d] * p->v[key + d];
                const double prob = exp(score * a->scale - p->lse[at]), ds = prob * (dp - p->delta[at]) * a->scale;
                for (size_t d = 0; d < D; d++) {
                    p->dq[row + d] += ds * p->k[key + d];
                    p->dk[key + d] += ds * p->q[row + d];
                    p->dv[key + d] += prob * p->dz[row + d];
                }
            }
        }
}

static void backward_all(const struct part *parts, int n, int max_q, const struct shape *a) {
    (void)max_q;
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n; i++) backward(&parts[i], a);
}

#else

enum { KEYS = 64, ROWS = 64 };

/* One thread's scratch. R: rows of a task, W: D, both rounded up to LANES; T: the longest sequence rounded up to KEYS. */
struct scratch {
    int R, W;
    float *k, *v, *dk, *dv; /* (T, W) */
    float *q, *o, *dq;      /* (R, W): queries, dz, and the sum */
    float *qt, *ot;         /* (D, R): queries times scale, dz, transposed */
    float *p, *ds;          /* (KEYS, R) */
    float *lse, *delta;     /* (R) */
};

static void scratch_make(struct scratch *t, int rows, int D, int max_q) {
    const size_t R = (size_t)round_up(rows, LANES), W = (size_t)round_up(D, LANES), T = (size_t)round_up(max_q, KEYS);
    const size_t count = 4 * T * W + 3 * R * W + 2 * (size_t)D * R + 2 * KEYS * R + 2 * R;
    float *p = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
    CHECK(p, "%zu floats", count);
    *t = (struct scratch){.R = (int)R, .W = (int)W, .k = p};
    t->v = t->k + T * W, t->dk = t->v + T * W, t->dv = t->dk + T * W;
    t->q = t->dv + T * W, t->o = t->q + R * W, t->dq = t->o + R * W;
    t->qt = t->dq + R * W, t->ot = t->qt + (size_t)D * R;
    t->p = t->ot + (size_t)D * R, t->ds = t->p + KEYS * R;
    t->lse = t->ds + KEYS * R, t->delta = t->lse + R;
}

/* Queries first .. first+queries of all heads of the group into q, o, qt, ot, lse, delta; rows past them become zero, p = 0. */
static void take_rows(const struct scratch *t, const struct part *p, int first, int queries, const struct shape *a) {
    const int D = a->D, R = t->R, rows = queries * a->group;
    memset(t->q, 0, 2 * cpu_offset(R, t->W) * sizeof(float));
    memset(t->qt, 0, 2 * cpu_offset(D, R) * sizeof(float));
    for (int r = 0; r < R; r++) {
        t->lse[r] = INFINITY, t->delta[r] = 0;
        if (r >= rows) continue;
        const size_t at = cpu_offset(first + r / a->group, a->H) + (size_t)(r % a->group);
        const float *q = p->q + at * (size_t)D, *o = p->dz + at * (size_t)D;
        t->lse[r] = p->lse[at], t->delta[r] = p->delta[at];
        memcpy(t->q + cpu_offset(r, t->W), q, (size_t)D * sizeof(float));
        memcpy(t->o + cpu_offset(r, t->W), o, (size_t)D * sizeof(float));
        for (int d = 0; d < D; d++) t->qt[cpu_offset(d, R) + (size_t)r] = q[d] * a->scale, t->ot[cpu_offset(d, R) + (size_t)r] = o[d];
    }
}

/* p, ds (keys, R) of one tile: p holds scores, ds holds dz.v; key j is seen by queries from j - ahead on. */
static void differentiate(const struct scratch *t, int keys, int ahead, int group) {
    const float *restrict lse = t->lse, *restrict delta = t->delta;
    for (int j = 0; j < keys; j++) {
        float *restrict p = t->p + cpu_offset(j, t->R), *restrict ds = t->ds + cpu_offset(j, t->R);
        const int hidden = (j - ahead) * group; /* rows before it are hidden */
        for (int r = 0; r < t->R; r++) {
            const float x = p[r] - lse[r];
            p[r] = exp_real(x < 0.0f || x != x ? x : 0.0f);
        }
        for (int r = 0; r < hidden && r < t->R; r++) p[r] = 0;
        for (int r = 0; r < t->R; r++) ds[r] = p[r] * (ds[r] - delta[r]);
    }
}

static void backward(const struct scratch *t, const struct part *p, int span, const struct shape *a) {
    const int D = a->D, R = t->R, W = t->W, padded = round_up(p->T, KEYS);
    const size_t narrow = (size_t)a->G * (size_t)D, all = cpu_offset(padded, W);
    memset(t->k, 0, all * sizeof(float));
    memset(t->v, 0, all * sizeof(float));
    for (int j = 0; j < p->T; j++) {
        memcpy(t->k + cpu_offset(j, W), p->k + (size_t)j * narrow, (size_t)D * sizeof(float));
        memcpy(t->v + cpu_offset(j, W), p->v + (size_t)j * narrow, (size_t)D * sizeof(float));
    }
    memset(t->dk, 0, all * sizeof(float));
    memset(t->dv, 0, all * sizeof(float));
    for (int first = 0; first < p->T; first += span) {
        const int queries = p->T - first < span ? p->T - first : span;
        take_rows(t, p, first, queries, a);
        memset(t->dq, 0, cpu_offset(R, W) * sizeof(float));
        for (int key = 0; key < first + queries; key += KEYS) {
            const size_t at = cpu_offset(key, W), r = (size_t)R, w = (size_t)W;
            const int left = round_up(first + queries - key, TALL), keys = left < KEYS ? left : KEYS;
            memset(t->p, 0, 2 * KEYS * r * sizeof(float));
            multiply(t->p, r, t->k + at, w, 1, t->qt, r, keys, R, D);
            multiply(t->ds, r, t->v + at, w, 1, t->ot, r, keys, R, D);
            differentiate(t, keys, first - key, a->group);
            multiply(t->dv + at, w, t->p, r, 1, t->o, w, keys, W, R);
            multiply(t->dk + at, w, t->ds, r, 1, t->q, w, keys, W, R);
            multiply(t->dq, w, t->ds, 1, r, t->k + at, w, R, W, keys);
        }
        for (int i = 0; i < queries * a->group; i++) {
            float *to = p->dq + (cpu_offset(first + i / a->group, a->H) + (size_t)(i % a->group)) * (size_t)D;
            for (int d = 0; d < D; d++) to[d] = t->dq[cpu_offset(i, W) + (size_t)d] * a->scale;
        }
    }
    for (int j = 0; j < p->T; j++)
        for (int d = 0; d < D; d++) {
            p->dk[(size_t)j * narrow + (size_t)d] = t->dk[cpu_offset(j, W) + (size_t)d] * a->scale;
            p->dv[(size_t)j * narrow + (size_t)d] = t->dv[cpu_offset(j, W) + (size_t)d];
        }
}

static void backward_all(const struct part *parts, int n, int max_q, const struct shape *a) {
    int span = ROWS / a->group > 0 ? ROWS / a->group : 1; /* queries of a block */
    if (span > max_q) span = max_q;
#pragma omp parallel if (n > 1)
    {
        struct scratch t;
        scratch_make(&t, span * a->group, a->D, max_q);
#pragma omp for schedule(dynamic)
        for (int i = 0; i < n; i++) backward(&t, &parts[i], span, a);
        free(t.k);
    }
}
#endif

/* delta (N, H) = dz . z */
static void row_products(real_t *delta, const act_t *dz, const act_t *z, size_t rows, int D) {
#pragma omp parallel for schedule(static) if (rows * (size_t)D > CPU_PARALLEL_MIN)
    for (size_t r = 0; r < rows; r++) {
        real_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int d = 0; d < D; d++) sum += dz[r * (size_t)D + (size_t)d] * z[r * (size_t)D + (size_t)d];
        delta[r] = sum;
    }
}

void OP(attention_backward)(struct device *dev, act_t *dq, act_t *dk, act_t *dv, real_t *delta, const act_t *dz, const act_t *z,
                            const real_t *lse, const act_t *q, const act_t *k, const act_t *v, const int *start, int S, int max_q, int H,
                            int G, int D, real_t scale) {
    (void)dev;
    CHECK(G > 0 && H % G == 0 && D % 8 == 0 && D <= 256, "H=%d G=%d D=%d", H, G, D);
    if (S <= 0 || max_q <= 0) return;
    const struct shape a = {.H = H, .G = G, .D = D, .group = H / G, .scale = scale};
    struct part *parts = malloc((size_t)S * (size_t)G * sizeof *parts);
    CHECK(parts, "S=%d G=%d", S, G);
    row_products(delta, dz, z, cpu_offset(start[S], H), D);
    for (int i = 0; i < S * G; i++) {
        const int s = i / G, g = i % G;
        const size_t row = cpu_offset(start[s], H) + (size_t)(g * a.group), key = cpu_offset(start[s], G) + (size_t)g, d = (size_t)D;
        parts[i] = (struct part){dq + row * d, dk + key * d, dv + key * d, dz + row * d, q + row * d,
                                 k + key * d,  v + key * d,  lse + row,    delta + row,  start[s + 1] - start[s]};
    }
    backward_all(parts, S * G, max_q, &a);
    free(parts);
}
