/* test_norm.c - rmsnorm_forward and layernorm_forward against the oracle. */
#include "tests/kernels/op_test.h"

#include "kernels/norm.h"
#include "kernels/ref_begin.h"
#include "kernels/norm.h"
#include "kernels/ref_end.h"

struct row {
    int N, C;
    double scale, offset; /* x = scale * (normal + offset) */
};

static const struct row rows[] = {
    {1, 1, 1, 0},    {1, 8, 1, 0},    {3, 7, 1, 0},      {2, 257, 1, 0},      {5, 64, 1e-3, 0}, {5, 64, 1e3, 0},   {17, 512, 1, 0},
    {3, 1024, 1, 5}, {2, 4096, 1, 0}, {1, 8200, 1e3, 1}, {2, 10007, 1e-3, 0}, {131, 72, 1, 0},  {3, 1024, 1, 100},
};

/* Normal values with an offset, and one massive channel, as LLaMA's residual stream has; far from zero without it, so that variance
 * cancels. */
static struct op_buffer *activations(struct op_test *t, const struct row *c, bool in_place) {
    size_t n = (size_t)(c->N * c->C);
    double *x = op_ref(t, n);
    for (size_t i = 0; i < n; i++) x[i] = c->scale * (op_normal(t) + c->offset) * (i % (size_t)c->C == 5 && c->offset < 50 ? 50 : 1);
    return in_place ? op_inout(t, OP_ACT, n, x) : op_given(t, OP_ACT, n, x);
}

static void plain_rmsnorm(float *y, float *rstd, const double *x, const double *w, int N, int C, float eps) {
    for (int n = 0; n < N; n++) {
        float square = 0;
        for (int c = 0; c < C; c++) square += (float)x[n * C + c] * (float)x[n * C + c];
        rstd[n] = 1.0f / sqrtf(square / (float)C + eps);
        for (int c = 0; c < C; c++) {
            float v = op_round(OP_ACT, (float)x[n * C + c] * rstd[n]);
            y[n * C + c] = w ? op_round(OP_ACT, v * (float)w[c]) : v;
        }
    }
}

static void run_rmsnorm(const struct row *c, bool weighted, bool in_place) {
    struct op_test t;
    op_begin(&t, "rmsnorm N=%d C=%d scale=%g%s%s", c->N, c->C, c->scale, weighted ? "" : " no weight", in_place ? " in place" : "");
    size_t n = (size_t)(c->N * c->C), rows_n = (size_t)c->N;
    struct op_buffer *x = activations(&t, c, in_place), *w = op_input(&t, OP_ACT, (size_t)c->C, 1);
    double *x0 = op_copy(&t, x->real, n), eps = (double)1e-5f;
    struct op_buffer *y = in_place ? x : op_output(&t, OP_ACT, n), *rstd = op_output(&t, OP_REAL, rows_n);
    OP_RUN(&t, rmsnorm_forward(t.dev, y->p, in_place ? NULL : rstd->p, x->p, weighted ? w->p : NULL, c->N, c->C, 1e-5f));
    double *ref_y = op_ref(&t, n), *ref_rstd = op_ref(&t, rows_n);
    float *plain_y = op_plain(&t, n), *plain_rstd = op_plain(&t, rows_n);
    ref_rmsnorm_forward(NULL, ref_y, ref_rstd, x0, weighted ? w->real : NULL, c->N, c->C, eps);
    plain_rmsnorm(plain_y, plain_rstd, x0, weighted ? w->real : NULL, c->N, c->C, 1e-5f);
    op_check(&t, y, "y", ref_y, plain_y);
    if (!in_place) op_check(&t, rstd, "rstd", ref_rstd, plain_rstd);
    op_end(&t);
}

static void plain_layernorm(float *y, float *mean, float *rstd, const double *x, const double *w, const double *b, int N, int C,
                            float eps) {
    for (int n = 0; n < N; n++) {
        float sum = 0, square = 0;
        for (int c = 0; c < C; c++) sum += (float)x[n * C + c];
        mean[n] = sum / (float)C;
        for (int c = 0; c < C; c++) square += ((float)x[n * C + c] - mean[n]) * ((float)x[n * C + c] - mean[n]);
        rstd[n] = 1.0f / sqrtf(square / (float)C + eps);
        for (int c = 0; c < C; c++) y[n * C + c] = op_round(OP_ACT, ((float)x[n * C + c] - mean[n]) * rstd[n] * (float)w[c] + (float)b[c]);
    }
}

static void run_layernorm(const struct row *c, bool in_place) {
    struct op_test t;
    op_begin(&t, "layernorm N=%d C=%d scale=%g%s", c->N, c->C, c->scale, in_place ? " in place" : "");
    size_t n = (size_t)(c->N * c->C), rows_n = (size_t)c->N;
    struct op_buffer *x = activations(&t, c, in_place), *w = op_input(&t, OP_ACT, (size_t)c->C, 1),
                     *b = op_input(&t, OP_ACT, (size_t)c->C, 1);
    double *x0 = op_copy(&t, x->real, n), eps = (double)1e-5f;
    struct op_buffer *y = in_place ? x : op_output(&t, OP_ACT, n), *mean = op_output(&t, OP_REAL, rows_n),
                     *rstd = op_output(&t, OP_REAL, rows_n);
    OP_RUN(&t, layernorm_forward(t.dev, y->p, in_place ? NULL : mean->p, in_place ? NULL : rstd->p, x->p, w->p, b->p, c->N, c->C, 1e-5f));
    double *ref_y = op_ref(&t, n), *ref_mean = op_ref(&t, rows_n), *ref_rstd = op_ref(&t, rows_n);
    float *plain_y = op_plain(&t, n), *plain_mean = op_plain(&t, rows_n), *plain_rstd = op_plain(&t, rows_n);
    ref_layernorm_forward(NULL, ref_y, ref_mean, ref_rstd, x0, w->real, b->real, c->N, c->C, eps);
    plain_layernorm(plain_y, plain_mean, plain_rstd, x0, w->real, b->real, c->N, c->C, 1e-5f);
    op_check(&t, y, "y", ref_y, plain_y);
    if (!in_place) {
        double magnitude = 0;
        for (int r = 0; r < c->N; r++) {
            double sum = 0;
            for (int i = 0; i < c->C; i++) sum += fabs(x0[r * c->C + i]) / c->C;
            magnitude = fmax(magnitude, sum);
        }
        op_check_sum(&t, mean, "mean", ref_mean, plain_mean, magnitude);
        op_check(&t, rstd, "rstd", ref_rstd, plain_rstd);
    }
    op_end(&t);
}

static void test_rmsnorm(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        run_rmsnorm(&rows[i], true, false);
        run_rmsnorm(&rows[i], i % 2 == 0, true);
        if (i % 3 == 0) run_rmsnorm(&rows[i], false, false);
    }
}

static void test_layernorm(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].C > 1) {
            run_layernorm(&rows[i], false);
            run_layernorm(&rows[i], true);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rmsnorm), cmocka_unit_test(test_layernorm)};
    return cmocka_run_group_tests_name("norm", tests, NULL, NULL);
}
