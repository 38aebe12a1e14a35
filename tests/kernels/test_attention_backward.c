/* test_attention_backward.c - attention_backward against the oracle: packing, grouped heads, every variant; the oracle against
 * central differences of attention_forward. */
#include "tests/kernels/op_test.h"

#include "kernels/attention.h"
#include "kernels/ref_begin.h"
#include "kernels/attention.h"
#include "kernels/ref_end.h"
#include "kernels/variant.h"

struct row {
    const char *what;
    int length[4], S, H, G, D;
    double scale; /* of the inputs */
};

/* Largest sum of |terms| of any element of dq, dk and dv: ds sums to zero over the keys, so these sums cancel. */
struct magnitudes {
    double dq, dk, dv;
};

/* The same formulas in f32, p and ds rounded to act before they meet the next product, as an unfused implementation stores them. */
static struct magnitudes plain_backward(float *dq, float *dk, float *dv, const double *dz, const double *z, const double *lse,
                                        const double *q, const double *k, const double *v, const int *start, const struct row *c,
                                        float scale) {
    const int H = c->H, G = c->G, D = c->D, N = start[c->S];
    struct magnitudes top = {0};
    float *size = calloc((size_t)(N * (H + 2 * G) * D), sizeof *size), *size_k = size + N * H * D, *size_v = size_k + N * G * D;
    for (int i = 0; i < N * H * D; i++) dq[i] = 0;
    for (int i = 0; i < N * G * D; i++) dk[i] = dv[i] = 0;
    for (int s = 0; s < c->S; s++)
        for (int n = start[s]; n < start[s + 1]; n++)
            for (int h = 0; h < H; h++) {
                const double *a = q + (n * H + h) * D, *o = dz + (n * H + h) * D, *y = z + (n * H + h) * D;
                float delta = 0;
                for (int d = 0; d < D; d++) delta += (float)o[d] * (float)y[d];
                for (int j = start[s]; j <= n; j++) {
                    const int at = (j * G + h / (H / G)) * D;
                    float score = 0, dp = 0;
                    for (int d = 0; d < D; d++) score += (float)a[d] * (float)k[at + d], dp += (float)o[d] * (float)v[at + d];
                    const float exact = expf(score * scale - (float)lse[n * H + h]), p = op_round(OP_ACT, exact),
                                ds = op_round(OP_ACT, exact * (dp - delta));
                    for (int d = 0; d < D; d++) {
                        dq[(n * H + h) * D + d] += ds * (float)k[at + d];
                        dk[at + d] += ds * (float)a[d];
                        dv[at + d] += p * (float)o[d];
                        const float terms = exact * (fabsf(dp) + fabsf(delta)) * scale;
                        size[(n * H + h) * D + d] += terms * fabsf((float)k[at + d]);
                        size_k[at + d] += terms * fabsf((float)a[d]);
                        size_v[at + d] += exact * fabsf((float)o[d]);
                    }
                }
            }
    for (int i = 0; i < N * H * D; i++) dq[i] = op_round(OP_ACT, dq[i] * scale), top.dq = fmax(top.dq, (double)size[i]);
    for (int i = 0; i < N * G * D; i++) {
        dk[i] = op_round(OP_ACT, dk[i] * scale), dv[i] = op_round(OP_ACT, dv[i]);
        top.dk = fmax(top.dk, (double)size_k[i]), top.dv = fmax(top.dv, (double)size_v[i]);
    }
    free(size);
    return top;
}

static int packed(const struct row *c, int *start) {
    int longest = 0;
    start[0] = 0;
    for (int s = 0; s < c->S; s++) {
        start[s + 1] = start[s] + c->length[s];
        longest = c->length[s] > longest ? c->length[s] : longest;
    }
    return longest;
}

static void run(const struct row *c, int variant) {
    struct op_test t;
    op_begin(&t, "attention_backward %s%s%s S=%d H=%d G=%d D=%d scale=%g", variant >= 0 ? attention_backward_variant(variant) : "",
             variant >= 0 ? " " : "", c->what, c->S, c->H, c->G, c->D, c->scale);
    int start[5];
    const int longest = packed(c, start), N = start[c->S];
    const size_t zn = (size_t)(N * c->H * c->D), kn = (size_t)(N * c->G * c->D), ln = (size_t)(N * c->H);
    const double scale = (double)(1.0f / sqrtf((float)c->D));
    struct op_buffer *q = op_input(&t, OP_ACT, zn, c->scale), *k = op_input(&t, OP_ACT, kn, c->scale),
                     *v = op_input(&t, OP_ACT, kn, c->scale), *dz = op_input(&t, OP_ACT, zn, c->scale);
    int k_length[4];
    for (int s = 0; s < c->S; s++) k_length[s] = c->length[s];
    double *z_exact = op_ref(&t, zn), *lse_exact = op_ref(&t, ln);
    ref_attention_forward(NULL, z_exact, lse_exact, q->real, k->real, v->real, start, start, k_length, c->S, longest, c->H, c->G, c->D,
                          scale, true);
    struct op_buffer *z = op_given(&t, OP_ACT, zn, z_exact), *lse = op_given(&t, OP_REAL, ln, lse_exact),
                     *at = op_given_int(&t, (size_t)c->S + 1, start);
    struct op_buffer *dq = op_output(&t, OP_ACT, zn), *dk = op_output(&t, OP_ACT, kn), *dv = op_output(&t, OP_ACT, kn),
                     *delta = op_output(&t, OP_REAL, ln);
    device_force_variant(t.dev, variant);
    OP_RUN(&t, attention_backward(t.dev, dq->p, dk->p, dv->p, delta->p, dz->p, z->p, lse->p, q->p, k->p, v->p, at->p, c->S, longest, c->H,
                                  c->G, c->D, (float)scale));
    double *rq = op_ref(&t, zn), *rk = op_ref(&t, kn), *rv = op_ref(&t, kn), *scratch = op_ref(&t, ln);
    float *pq = op_plain(&t, zn), *pk = op_plain(&t, kn), *pv = op_plain(&t, kn);
    ref_attention_backward(NULL, rq, rk, rv, scratch, dz->real, z->real, lse->real, q->real, k->real, v->real, start, c->S, longest, c->H,
                           c->G, c->D, scale);
    const struct magnitudes top =
        plain_backward(pq, pk, pv, dz->real, z->real, lse->real, q->real, k->real, v->real, start, c, (float)scale);
    op_check_gradient_sum(&t, dq, "dq", rq, pq, top.dq);
    op_check_gradient_sum(&t, dk, "dk", rk, pk, top.dk);
    op_check_gradient_sum(&t, dv, "dv", rv, pv, top.dv);
    device_force_variant(t.dev, -1);
    op_end(&t);
}

static void test_attention_backward(void **state) {
    (void)state;
    static const struct row rows[] = {
        {"one token", {1}, 1, 1, 1, 8, 1},
        {"short", {7}, 1, 2, 2, 16, 1},
        {"one past a tile", {65}, 1, 2, 1, 64, 1},
        {"four turns", {257}, 1, 2, 1, 32, 1},
        {"packed", {17, 1, 64, 70}, 4, 4, 2, 32, 1},
        {"wide", {131}, 1, 4, 1, 128, 1},
        {"D 24", {37, 5}, 2, 3, 3, 24, 1},
        {"D 72", {66}, 1, 2, 1, 72, 1},
        {"D 80", {35}, 1, 2, 2, 80, 1},
        {"D 256", {70}, 1, 2, 1, 256, 1},
        {"one kv head", {9}, 1, 71, 1, 64, 1},
        {"small", {90}, 1, 2, 1, 32, 1e-3},
        {"peaked", {90}, 1, 2, 1, 32, 3},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        run(&rows[i], -1);
        for (int v = 0; attention_backward_variant(v); v++) run(&rows[i], v);
    }
}

/* f = sum dz . z by the double forward; its central differences in some elements of q, k and v are the double backward's values. */
static void test_differences(void **state) {
    (void)state;
    const struct row c = {"differences", {9, 1, 6}, 3, 4, 2, 8, 1};
    struct op_test t;
    op_begin(&t, "attention_backward central differences");
    int start[5], k_length[4];
    const int longest = packed(&c, start), N = start[c.S];
    const size_t zn = (size_t)(N * c.H * c.D), kn = (size_t)(N * c.G * c.D), ln = (size_t)(N * c.H);
    double *x[3] = {op_ref(&t, zn), op_ref(&t, kn), op_ref(&t, kn)}, *g[3] = {op_ref(&t, zn), op_ref(&t, kn), op_ref(&t, kn)};
    double *dz = op_ref(&t, zn), *z = op_ref(&t, zn), *lse = op_ref(&t, ln), *delta = op_ref(&t, ln), worst = 0;
    const size_t sizes[3] = {zn, kn, kn};
    for (int s = 0; s < c.S; s++) k_length[s] = c.length[s];
    for (int i = 0; i < 3; i++)
        for (size_t e = 0; e < sizes[i]; e++) x[i][e] = op_normal(&t);
    for (size_t e = 0; e < zn; e++) dz[e] = op_normal(&t);
    ref_attention_forward(NULL, z, lse, x[0], x[1], x[2], start, start, k_length, c.S, longest, c.H, c.G, c.D, 0.35, true);
    ref_attention_backward(NULL, g[0], g[1], g[2], delta, dz, z, lse, x[0], x[1], x[2], start, c.S, longest, c.H, c.G, c.D, 0.35);
    for (int i = 0; i < 3; i++)
        for (size_t e = 0; e < sizes[i]; e += 3) {
            const double kept = x[i][e], step = 1e-5;
            double f[2] = {0};
            for (int side = 0; side < 2; side++) {
                x[i][e] = kept + (side ? -step : step);
                ref_attention_forward(NULL, z, lse, x[0], x[1], x[2], start, start, k_length, c.S, longest, c.H, c.G, c.D, 0.35, true);
                for (size_t d = 0; d < zn; d++) f[side] += dz[d] * z[d];
            }
            x[i][e] = kept;
            worst = fmax(worst, fabs((f[0] - f[1]) / (2 * step) - g[i][e]));
        }
    printf("  central differences: largest distance %.3g\n", worst);
    if (!(worst < 1e-8)) op_fail(&t, "central differences differ by %g", worst);
    op_end(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention_backward), cmocka_unit_test(test_differences)};
    return cmocka_run_group_tests_name("attention_backward", tests, NULL, NULL);
}
