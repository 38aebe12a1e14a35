/* test_sae_train.c - the backward half of a dictionary's step against the oracle: moments, decode, loss and gradient of
 * the code, feature-major view, update, statistics; and the oracle's gradients against central differences. */
#include "tests/kernels/op_test.h"

#include "kernels/sae_ops.h"
#include "kernels/ref_begin.h"
#include "kernels/sae_ops.h"
#include "kernels/ref_end.h"

struct shape {
    int N, d, M, K;
};
static const struct shape shapes[] = {{1, 1, 1, 1}, {2, 8, 5, 3}, {7, 33, 20, 4}, {37, 64, 129, 8}, {70, 136, 50, 16}, {33, 520, 97, 5}};
enum { SHAPES = sizeof shapes / sizeof *shapes };
static const double scales[] = {1e-3, 1, 1e3};

static size_t area(int a, int b) { return (size_t)a * (size_t)b; }

/* A code as encode would give it: ascending indices, some slots unused, some values 0. `hot`: every row uses feature 0. */
static void make_code(struct op_test *t, struct shape s, double scale, bool hot, struct op_buffer **indices, struct op_buffer **values) {
    int *index = op_ints(t, area(s.N, s.K)), *seen = op_ints(t, (size_t)s.M);
    double *value = op_ref(t, area(s.N, s.K));
    for (int n = 0; n < s.N; n++) {
        int used = n % 5 == 4 ? s.K / 2 : s.K, k = 0;
        memset(seen, 0, (size_t)s.M * sizeof *seen);
        if (hot && used) seen[0] = 1;
        for (int i = hot ? 1 : 0; i < used;) {
            int f = op_below(t, s.M);
            if (!seen[f]) seen[f] = 1, i++;
        }
        for (int f = 0; f < s.M; f++)
            if (seen[f] && k < s.K) {
                index[n * s.K + k] = f;
                value[n * s.K + k++] = op_below(t, 6) == 0 ? 0 : scale * fabs(op_normal(t));
            }
        for (; k < s.K; k++) index[n * s.K + k] = -1, value[n * s.K + k] = 0;
    }
    *indices = op_given_int(t, area(s.N, s.K), index);
    *values = op_given(t, OP_REAL, area(s.N, s.K), value);
}

static void check_moments(struct shape s, double scale, double offset) {
    struct op_test t;
    op_begin(&t, "sae_moments N=%d d=%d scale=%g offset=%g", s.N, s.d, scale, offset);
    double *v = op_ref(&t, area(s.N, s.d));
    for (size_t i = 0; i < area(s.N, s.d); i++) v[i] = scale * op_normal(&t) + (i % (size_t)s.d == 0 ? offset : 0);
    struct op_buffer *x = op_given(&t, OP_ACT, area(s.N, s.d), v), *mean = op_output(&t, OP_REAL, (size_t)s.d),
                     *channel = op_output(&t, OP_REAL, (size_t)s.d), *sum = op_output(&t, OP_REAL, 1);
    OP_RUN(&t, sae_moments(t.dev, mean->p, channel->p, sum->p, x->p, s.N, s.d));
    double *want = op_ref(&t, (size_t)s.d), *want_channel = op_ref(&t, (size_t)s.d), want_sum;
    ref_sae_moments(NULL, want, want_channel, &want_sum, x->real, s.N, s.d);
    float *plain = op_plain(&t, (size_t)s.d), *plain_channel = op_plain(&t, (size_t)s.d), plain_sum = 0;
    for (int i = 0; i < s.d; i++) {
        float m = 0, q = 0;
        for (int n = 0; n < s.N; n++) m += (float)x->real[n * s.d + i];
        m /= (float)s.N;
        for (int n = 0; n < s.N; n++) q += ((float)x->real[n * s.d + i] - m) * ((float)x->real[n * s.d + i] - m);
        plain[i] = m, plain_channel[i] = q, plain_sum += q;
    }
    op_check(&t, mean, "mean", want, plain);
    op_check(&t, channel, "channel variance", want_channel, plain_channel);
    op_check(&t, sum, "variance sum", &want_sum, &plain_sum);
    op_end(&t);
}

static void test_moments(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (int k = 0; k < 3; k++) check_moments(shapes[i], scales[k], 0);
    check_moments((struct shape){300, 40, 0, 0}, 1, 1000); /* a massive channel */
    check_moments((struct shape){1500, 8, 0, 0}, 1, 0);
}

/* the plain f32 form of decode and its gradient */
static void plain_decode(float *x_hat, float *error, float *dvalues, const struct shape *s, const double *x, const int *indices,
                         const double *values, const double *D, const double *b_d, double variance) {
    for (int n = 0; n < s->N; n++) {
        float *row = x_hat + area(n, s->d), sum = 0;
        for (int i = 0; i < s->d; i++) {
            float v = (float)b_d[i];
            for (int k = 0; k < s->K; k++)
                if (indices[n * s->K + k] >= 0) v += (float)values[n * s->K + k] * (float)D[indices[n * s->K + k] * s->d + i];
            row[i] = v;
            sum += (v - (float)x[n * s->d + i]) * (v - (float)x[n * s->d + i]);
        }
        error[n] = sum;
        for (int k = 0; k < s->K; k++) {
            float dot = 0;
            for (int i = 0; i < s->d && values[n * s->K + k] > 0; i++)
                dot += 2 * (row[i] - (float)x[n * s->d + i]) / ((float)variance + 1e-8f) * (float)D[indices[n * s->K + k] * s->d + i];
            dvalues[n * s->K + k] = dot;
        }
    }
}

static void check_decode(struct shape s, double scale) {
    struct op_test t;
    op_begin(&t, "sae_decode N=%d d=%d M=%d K=%d scale=%g", s.N, s.d, s.M, s.K, scale);
    size_t nd = area(s.N, s.d), nk = area(s.N, s.K);
    struct op_buffer *indices, *values, *x = op_input(&t, OP_ACT, nd, scale), *D = op_input(&t, OP_REAL, area(s.M, s.d), 1 / sqrt(s.d)),
                                        *b_d = op_input(&t, OP_REAL, (size_t)s.d, 0.1 * scale);
    make_code(&t, s, scale, false, &indices, &values);
    struct op_buffer *variance = op_given(&t, OP_REAL, 1, (double[]){scale * scale * s.N * s.d * 0.8});
    struct op_buffer *x_hat = op_output(&t, OP_REAL, nd), *g = op_output(&t, OP_REAL, nd), *dvalues = op_output(&t, OP_REAL, nk),
                     *sum = op_output(&t, OP_REAL, 1);
    struct op_buffer *rows = op_output(&t, OP_REAL, (size_t)s.N), *rows_only = op_output(&t, OP_REAL, (size_t)s.N);
    OP_RUN(&t, (sae_decode(t.dev, x_hat->p, indices->p, values->p, D->p, b_d->p, s.N, s.d, s.K),
                sae_decode_backward(t.dev, g->p, dvalues->p, sum->p, rows->p, x->p, indices->p, values->p, D->p, b_d->p, variance->p, s.N,
                                    s.d, s.K),
                sae_row_error(t.dev, rows_only->p, x->p, indices->p, values->p, D->p, b_d->p, s.N, s.d, s.K)));
    double *want_x = op_ref(&t, nd), *want_g = op_ref(&t, nd), *want_dvalues = op_ref(&t, nk), *want_rows = op_ref(&t, (size_t)s.N),
           want_sum;
    ref_sae_decode(NULL, want_x, indices->ints, values->real, D->real, b_d->real, s.N, s.d, s.K);
    ref_sae_decode_backward(NULL, want_g, want_dvalues, &want_sum, want_rows, x->real, indices->ints, values->real, D->real, b_d->real,
                            variance->real, s.N, s.d, s.K);
    float *plain = op_plain(&t, nd), *plain_g = op_plain(&t, nd), *plain_rows = op_plain(&t, (size_t)s.N),
          *plain_dvalues = op_plain(&t, nk), plain_sum = 0;
    plain_decode(plain, plain_rows, plain_dvalues, &s, x->real, indices->ints, values->real, D->real, b_d->real, variance->real[0]);
    for (size_t i = 0; i < nd; i++) plain_g[i] = 2 * (plain[i] - (float)x->real[i]) / ((float)variance->real[0] + 1e-8f);
    for (int n = 0; n < s.N; n++) plain_sum += plain_rows[n];
    op_check(&t, x_hat, "x_hat", want_x, plain);
    op_check_gradient(&t, g, "g", want_g, plain_g);
    op_check_gradient(&t, dvalues, "dvalues", want_dvalues, plain_dvalues);
    op_check(&t, rows, "row error", want_rows, plain_rows);
    op_check(&t, rows_only, "row error alone", want_rows, plain_rows);
    op_check(&t, sum, "error sum", &want_sum, &plain_sum);
    op_end(&t);
}

static void test_decode(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (int k = 0; k < 3; k++) check_decode(shapes[i], scales[k]);
    check_decode((struct shape){5, 2056, 40, 33}, 1);
    check_decode((struct shape){2, 12287, 4, 2}, 1); /* a row just fills the shared memory that needs no asking */
    check_decode((struct shape){40, 260, 200, 50}, 1);
    check_decode((struct shape){33, 780, 200, 150}, 1); /* more slots than a block of threads holds at once */
}

static void check_csc(struct shape s, bool hot) {
    struct op_test t;
    op_begin(&t, "sae_csc N=%d M=%d K=%d%s", s.N, s.M, s.K, hot ? " hot" : "");
    struct op_buffer *indices, *values;
    make_code(&t, s, 1, hot, &indices, &values);
    size_t nk = area(s.N, s.K);
    struct op_buffer *offsets = op_output(&t, OP_INT, (size_t)s.M + 1), *entries = op_output(&t, OP_INT, nk),
                     *scratch = op_output(&t, OP_BYTES, sae_csc_scratch(s.N, s.M, s.K));
    OP_RUN(&t, sae_csc(t.dev, offsets->p, entries->p, indices->p, s.N, s.M, s.K, scratch->p));
    int *want_offsets = op_ints(&t, (size_t)s.M + 1), *want = op_ints(&t, nk),
        at = 0; /* the definition; what lies past the last entry stays untouched */
    for (int f = 0; f < s.M; f++) {
        want_offsets[f] = at;
        for (size_t i = 0; i < nk; i++)
            if (indices->ints[i] == f) want[at++] = (int)i;
    }
    want_offsets[s.M] = at;
    op_check_ints(&t, offsets, "offsets", want_offsets);
    op_check_ints(&t, entries, "entries", want);
    op_end(&t);
}

static void test_csc(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++) check_csc(shapes[i], i % 2 == 1);
    check_csc((struct shape){257, 1, 3000, 9}, true);
    check_csc((struct shape){1000, 1, 12, 12}, false);
    check_csc((struct shape){1500, 1, 600, 5}, true);   /* blocks of slots, two digits */
    check_csc((struct shape){40, 1, 300000, 3}, false); /* three */
}

static float plain_adam(float p, float *m, float *v, float g, const struct sae_adam *a) {
    *m = (float)a->beta1 * *m + (float)(1 - a->beta1) * g;
    *v = (float)a->beta2 * *v + (float)(1 - a->beta2) * g * g;
    float m_hat = *m / (float)(1 - pow(a->beta1, (double)a->step)), v_hat = *v / (float)(1 - pow(a->beta2, (double)a->step));
    return p - (float)a->lr * m_hat / (sqrtf(v_hat) + (float)a->eps);
}

/* one parameter tensor of the update: executor, oracle, plain */
struct parameter {
    struct op_buffer *b;
    double *ref;
    float *plain;
};

static struct parameter parameter(struct op_test *t, size_t n, double scale, bool positive) {
    double *v = op_ref(t, n);
    for (size_t i = 0; i < n; i++) v[i] = positive ? scale * op_uniform(t) : scale * op_normal(t);
    struct parameter p = {op_inout(t, OP_REAL, n, v), NULL, op_plain(t, n)};
    p.ref = op_copy(t, p.b->real, n);
    for (size_t i = 0; i < n; i++) p.plain[i] = (float)p.b->real[i];
    return p;
}

enum { P_E, P_D, P_BE, P_ME, P_VE, P_MD, P_VD, P_MBE, P_VBE, P_COUNT };
static const char *parameter_name[] = {"E", "D", "b_e", "m_E", "v_E", "m_D", "v_D", "m_be", "v_be"};

static void plain_update(struct parameter *p, const int *offsets, const int *entries, const double *values, const double *dvalues,
                         const double *g, const double *x, const struct sae_adam *a, struct shape s) {
    float *dD = calloc((size_t)s.d, sizeof *dD), *dE = calloc((size_t)s.d, sizeof *dE);
    for (int f = 0; f < s.M; f++) {
        float bias = 0, along = 0, square = 0, norm = 0, *D = p[P_D].plain + area(f, s.d);
        for (int i = 0; i < s.d; i++) {
            dD[i] = dE[i] = 0;
            for (int e = offsets[f]; e < offsets[f + 1]; e++) {
                dD[i] += (float)values[entries[e]] * (float)g[entries[e] / s.K * s.d + i];
                dE[i] += (float)dvalues[entries[e]] * (float)x[entries[e] / s.K * s.d + i];
            }
            along += dD[i] * D[i], square += D[i] * D[i];
        }
        for (int e = offsets[f]; e < offsets[f + 1]; e++) bias += (float)dvalues[entries[e]];
        for (int i = 0; i < s.d; i++) {
            size_t at = area(f, s.d) + (size_t)i;
            if (a->remove_parallel) dD[i] -= along / square * D[i];
            D[i] = plain_adam(D[i], p[P_MD].plain + at, p[P_VD].plain + at, dD[i], a);
            norm += D[i] * D[i];
            p[P_E].plain[at] = plain_adam(p[P_E].plain[at], p[P_ME].plain + at, p[P_VE].plain + at, dE[i], a);
        }
        for (int i = 0; i < s.d && a->unit_norm_decoder; i++) D[i] /= sqrtf(norm);
        p[P_BE].plain[f] = plain_adam(p[P_BE].plain[f], p[P_MBE].plain + f, p[P_VBE].plain + f, bias, a);
    }
    free(dD), free(dE);
}

static void check_update(struct shape s, double scale, struct sae_adam a, bool hot, bool zero_moments) {
    struct op_test t;
    op_begin(&t, "sae_update N=%d d=%d M=%d K=%d scale=%g step=%ld norm=%d parallel=%d%s%s", s.N, s.d, s.M, s.K, scale, a.step,
             a.unit_norm_decoder, a.remove_parallel, hot ? " hot" : "", zero_moments ? " first" : "");
    size_t nd = area(s.N, s.d), nk = area(s.N, s.K), md = area(s.M, s.d);
    struct op_buffer *indices, *values, *x = op_input(&t, OP_ACT, nd, scale), *g = op_input(&t, OP_REAL, nd, scale),
                                        *dvalues = op_input(&t, OP_REAL, nk, scale);
    make_code(&t, s, scale, hot, &indices, &values);
    int *offsets = op_ints(&t, (size_t)s.M + 1), *entries = op_ints(&t, nk);
    void *scratch = malloc(ref_sae_csc_scratch(s.N, s.M, s.K));
    ref_sae_csc(NULL, offsets, entries, indices->ints, s.N, s.M, s.K, scratch);
    free(scratch);
    struct op_buffer *off = op_given_int(&t, (size_t)s.M + 1, offsets), *ent = op_given_int(&t, nk, entries),
                     *low = op_output(&t, OP_BF16, md);
    double moment = zero_moments ? 0 : scale * scale;
    size_t n[P_COUNT] = {md, md, (size_t)s.M, md, md, md, md, (size_t)s.M, (size_t)s.M};
    struct parameter p[P_COUNT];
    for (int i = 0; i < P_COUNT; i++)
        p[i] = parameter(&t, n[i],
                         i < P_ME                               ? 1 / sqrt(s.d)
                         : i == P_VE || i == P_VD || i == P_VBE ? moment * moment
                                                                : moment,
                         i == P_VE || i == P_VD || i == P_VBE);
    OP_RUN(&t, sae_update(t.dev, p[P_E].b->p, p[P_D].b->p, p[P_BE].b->p, p[P_ME].b->p, p[P_VE].b->p, p[P_MD].b->p, p[P_VD].b->p,
                          p[P_MBE].b->p, p[P_VBE].b->p, low->p, off->p, ent->p, values->p, dvalues->p, g->p, x->p, &a, s.N, s.d, s.M, s.K));
    ref_sae_update(NULL, p[P_E].ref, p[P_D].ref, p[P_BE].ref, p[P_ME].ref, p[P_VE].ref, p[P_MD].ref, p[P_VD].ref, p[P_MBE].ref,
                   p[P_VBE].ref, NULL, offsets, entries, values->real, dvalues->real, g->real, x->real, &a, s.N, s.d, s.M, s.K);
    plain_update(p, offsets, entries, values->real, dvalues->real, g->real, x->real, &a, s);
    for (int i = 0; i < P_COUNT; i++) op_check_gradient(&t, p[i].b, parameter_name[i], p[i].ref, p[i].plain);
    double *rounded = op_ref(&t, md);
    for (size_t i = 0; i < md; i++) rounded[i] = (double)op_round(OP_BF16, (float)p[P_E].b->real[i]);
    op_check_exact(&t, low, "E_low", rounded);
    op_end(&t);
}

static const struct sae_adam standard = {2e-4, 0.9, 0.999, 1e-8, 1, false, false};

static void test_update(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (int k = 0; k < 3; k++) {
            struct sae_adam a = standard;
            a.step = i * 50 + 1, a.unit_norm_decoder = i % 2, a.remove_parallel = i % 3 == 1;
            check_update(shapes[i], scales[k], a, false, false);
        }
    struct sae_adam a = standard;
    check_update((struct shape){37, 64, 129, 8}, 1, a, true, true);
    a.step = 100000, a.lr = 0.1, a.unit_norm_decoder = true, a.remove_parallel = true;
    check_update((struct shape){300, 40, 129, 3}, 1, a, true, false);
    check_update((struct shape){2, 12288, 3, 2}, 1, a, true, false); /* a row just fills the shared memory that needs no asking */
}

static void check_bias(struct shape s, double scale, long step) {
    struct op_test t;
    op_begin(&t, "sae_update_bias N=%d d=%d scale=%g step=%ld", s.N, s.d, scale, step);
    struct sae_adam a = standard;
    a.step = step;
    struct op_buffer *g = op_input(&t, OP_REAL, area(s.N, s.d), scale);
    struct parameter b = parameter(&t, (size_t)s.d, 1, false), m = parameter(&t, (size_t)s.d, scale, false),
                     v = parameter(&t, (size_t)s.d, scale * scale, true);
    OP_RUN(&t, sae_update_bias(t.dev, b.b->p, m.b->p, v.b->p, g->p, &a, s.N, s.d));
    ref_sae_update_bias(NULL, b.ref, m.ref, v.ref, g->real, &a, s.N, s.d);
    for (int i = 0; i < s.d; i++) {
        float sum = 0;
        for (int n = 0; n < s.N; n++) sum += (float)g->real[n * s.d + i];
        b.plain[i] = plain_adam(b.plain[i], m.plain + i, v.plain + i, sum, &a);
    }
    op_check_gradient(&t, b.b, "b_d", b.ref, b.plain);
    op_check_gradient(&t, m.b, "m_bd", m.ref, m.plain);
    op_check_gradient(&t, v.b, "v_bd", v.ref, v.plain);
    op_end(&t);
}

static void test_bias(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (int k = 0; k < 3; k++) check_bias(shapes[i], scales[k], 1 + 10 * k);
    check_bias((struct shape){1500, 8, 0, 0}, 1, 3);
}

static void check_stats(struct shape s, int groups) {
    struct op_test t;
    op_begin(&t, "sae_feature_stats N=%d M=%d K=%d groups=%d", s.N, s.M, s.K, groups);
    struct op_buffer *indices, *values;
    make_code(&t, s, 1, true, &indices, &values);
    int *offsets = op_ints(&t, (size_t)s.M + 1), *entries = op_ints(&t, area(s.N, s.K));
    void *scratch = malloc(ref_sae_csc_scratch(s.N, s.M, s.K));
    ref_sae_csc(NULL, offsets, entries, indices->ints, s.N, s.M, s.K, scratch);
    free(scratch);
    uint8_t *group = (uint8_t *)op_ints(&t, (size_t)s.N);
    for (int n = 0; n < s.N; n++) group[n] = n % 7 == 3 ? 255 : (uint8_t)op_below(&t, groups);
    size_t cells = area(groups, s.M);
    double *start = op_ref(&t, cells), *counts = op_ref(&t, cells);
    for (size_t i = 0; i < cells; i++) start[i] = op_uniform(&t), counts[i] = op_below(&t, 1000);
    struct op_buffer *off = op_given_int(&t, (size_t)s.M + 1, offsets), *ent = op_given_int(&t, area(s.N, s.K), entries),
                     *of = op_given_u8(&t, (size_t)s.N, group);
    struct op_buffer *energy = op_inout(&t, OP_F64, cells, start), *fired = op_inout(&t, OP_I64, cells, counts);
    OP_RUN(&t, sae_feature_stats(t.dev, energy->p, fired->p, off->p, ent->p, values->p, of->p, groups, s.N, s.M, s.K));
    for (int f = 0; f < s.M; f++)
        for (int e = offsets[f]; e < offsets[f + 1]; e++) { /* the definition, in the same order: equal to the bit */
            double z = values->real[entries[e]];
            if (group[entries[e] / s.K] == 255 || z <= 0) continue;
            start[group[entries[e] / s.K] * s.M + f] += z * z;
            counts[group[entries[e] / s.K] * s.M + f] += 1;
        }
    op_check_exact(&t, energy, "energy", start);
    for (size_t i = 0; i < cells; i++)
        if (fired->longs[i] != (int64_t)counts[i]) op_fail(&t, "fired %zu: got %lld, want %.0f", i, (long long)fired->longs[i], counts[i]);
    op_end(&t);
}

static void check_cosine(int M, int d, double scale) {
    struct op_test t;
    op_begin(&t, "row_cosine M=%d d=%d scale=%g", M, d, scale);
    double *va = op_ref(&t, area(M, d)), *vb = op_ref(&t, area(M, d));
    for (size_t i = 0; i < area(M, d); i++)
        va[i] = scale * op_normal(&t), vb[i] = i / (size_t)d % 3 == 0 ? 2 * va[i] : i / (size_t)d % 5 == 1 ? 0 : scale * op_normal(&t);
    struct op_buffer *a = op_given(&t, OP_REAL, area(M, d), va), *b = op_given(&t, OP_REAL, area(M, d), vb),
                     *c = op_output(&t, OP_REAL, (size_t)M);
    OP_RUN(&t, row_cosine(t.dev, c->p, a->p, b->p, M, d));
    double *want = op_ref(&t, (size_t)M);
    ref_row_cosine(NULL, want, a->real, b->real, M, d);
    float *plain = op_plain(&t, (size_t)M);
    for (int f = 0; f < M; f++) {
        float aa = 0, bb = 0, ab = 0;
        for (int i = 0; i < d; i++) {
            float p = (float)a->real[f * d + i], q = (float)b->real[f * d + i];
            aa += p * p, bb += q * q, ab += p * q;
        }
        plain[f] = aa > 0 && bb > 0 ? ab / sqrtf(aa * bb) : 0;
    }
    op_check(&t, c, "cosine", want, plain);
    op_end(&t);
}

static void test_stats(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++) check_stats(shapes[i], 1 + i % 4);
    for (int k = 0; k < 3; k++) check_cosine(1, 1, scales[k]), check_cosine(67, 40, scales[k]), check_cosine(31, 1033, scales[k]);
}

/* ---- the oracle's gradient against central differences of the loss, with the selection held ---- */

struct model {
    struct shape s;
    double *x, *E, *D, *b_e, *b_d, *values;
    int *indices;
    double variance;
};

static double loss(const struct model *m) {
    double sum = 0;
    for (int n = 0; n < m->s.N; n++)
        for (int i = 0; i < m->s.d; i++) {
            double r = m->b_d[i] - m->x[n * m->s.d + i];
            for (int k = 0; k < m->s.K; k++) {
                int f = m->indices[n * m->s.K + k];
                double h = m->b_e[f];
                for (int j = 0; j < m->s.d; j++) h += m->E[f * m->s.d + j] * m->x[n * m->s.d + j];
                r += (h > 0 ? h : 0) * m->D[f * m->s.d + i];
            }
            sum += r * r;
        }
    return sum / (m->variance + 1e-8);
}

static void compare(struct op_test *t, const struct model *m, const char *what, double *p, const double *gradient, size_t n) {
    double worst = 0, top = 0;
    for (size_t i = 0; i < n; i++) {
        double kept = p[i], h = 1e-5;
        p[i] = kept + h;
        double up = loss(m);
        p[i] = kept - h;
        double down = loss(m);
        p[i] = kept;
        worst = fmax(worst, fabs((up - down) / (2 * h) - gradient[i]));
        top = fmax(top, fabs(gradient[i]));
    }
    printf("  central differences: %s off by %.3g of %.3g\n", what, worst, top);
    if (!(worst < 1e-7 * (1 + top)) || top == 0) op_fail(t, "%s differs from central differences by %g", what, worst);
}

static void test_gradient(void **state) {
    (void)state;
    struct op_test t;
    struct shape s = {9, 6, 14, 4};
    op_begin(&t, "gradient of the loss");
    size_t nd = area(s.N, s.d), md = area(s.M, s.d), nk = area(s.N, s.K);
    struct model m = {.s = s,
                      .x = op_ref(&t, nd),
                      .E = op_ref(&t, md),
                      .D = op_ref(&t, md),
                      .b_e = op_ref(&t, (size_t)s.M),
                      .b_d = op_ref(&t, (size_t)s.d),
                      .values = op_ref(&t, nk),
                      .indices = op_ints(&t, nk)};
    for (size_t i = 0; i < nd; i++) m.x[i] = op_normal(&t);
    for (size_t i = 0; i < md; i++) m.E[i] = op_normal(&t), m.D[i] = op_normal(&t);
    for (int f = 0; f < s.M; f++) m.b_e[f] = op_normal(&t) - 1; /* some kept slots are negative */
    for (int i = 0; i < s.d; i++) m.b_d[i] = op_normal(&t);
    double *mean = op_ref(&t, (size_t)s.d), *channel = op_ref(&t, (size_t)s.d), *g = op_ref(&t, nd), *dvalues = op_ref(&t, nk),
           *rows = op_ref(&t, (size_t)s.N), error;
    ref_sae_moments(NULL, mean, channel, &m.variance, m.x, s.N, s.d);
    void *scratch = malloc(ref_sae_encode_scratch(s.N, s.d, s.M, s.K) + ref_sae_csc_scratch(s.N, s.M, s.K));
    ref_sae_encode_topk(NULL, m.indices, m.values, m.x, m.E, NULL, m.b_e, NULL, s.N, s.d, s.M, s.K, scratch);
    ref_sae_decode_backward(NULL, g, dvalues, &error, rows, m.x, m.indices, m.values, m.D, m.b_d, &m.variance, s.N, s.d, s.K);
    if (fabs(error / (m.variance + 1e-8) - loss(&m)) > 1e-12 * loss(&m))
        op_fail(&t, "loss %g, want %g", error / (m.variance + 1e-8), loss(&m));
    int *offsets = op_ints(&t, (size_t)s.M + 1), *entries = op_ints(&t, nk);
    ref_sae_csc(NULL, offsets, entries, m.indices, s.N, s.M, s.K, scratch);
    free(scratch);
    /* beta1 = 0 leaves the gradient itself in m */
    struct sae_adam a = {0, 0, 0.999, 1e-8, 1, false, false};
    double *p[P_COUNT], *dbd = op_ref(&t, (size_t)s.d), *vbd = op_ref(&t, (size_t)s.d), *bd = op_copy(&t, m.b_d, (size_t)s.d);
    size_t n[P_COUNT] = {md, md, (size_t)s.M, md, md, md, md, (size_t)s.M, (size_t)s.M};
    for (int i = 0; i < P_COUNT; i++) p[i] = memset(op_ref(&t, n[i]), 0, n[i] * sizeof(double));
    memset(dbd, 0, (size_t)s.d * sizeof(double)), memset(vbd, 0, (size_t)s.d * sizeof(double));
    ref_sae_update(NULL, p[P_E], p[P_D], p[P_BE], p[P_ME], p[P_VE], p[P_MD], p[P_VD], p[P_MBE], p[P_VBE], NULL, offsets, entries, m.values,
                   dvalues, g, m.x, &a, s.N, s.d, s.M, s.K);
    ref_sae_update_bias(NULL, bd, dbd, vbd, g, &a, s.N, s.d);
    compare(&t, &m, "dE", m.E, p[P_ME], md);
    compare(&t, &m, "dD", m.D, p[P_MD], md);
    compare(&t, &m, "db_e", m.b_e, p[P_MBE], (size_t)s.M);
    compare(&t, &m, "db_d", m.b_d, dbd, (size_t)s.d);
    op_end(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_moments), cmocka_unit_test(test_decode), cmocka_unit_test(test_csc),
                                       cmocka_unit_test(test_update),  cmocka_unit_test(test_bias),   cmocka_unit_test(test_stats),
                                       cmocka_unit_test(test_gradient)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
