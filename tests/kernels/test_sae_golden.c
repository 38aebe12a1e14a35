/* test_sae_golden.c - a dictionary trained by our ops and by PyTorch from the same start: the oracle's loss, selection and
 * gradients of the first step and its weights after 20 Adam steps must be PyTorch's (double); the executor's losses must
 * follow the oracle's on the executor's inputs. File: tools/golden/make_sae.py. */
#include "tests/kernels/op_test.h"
#undef fail /* cmocka's; host/error.h has a function of that name */

#include "host/tensors.h"
#include "kernels/sae_ops.h"
#include "kernels/ref_begin.h"
#include "kernels/sae_ops.h"
#include "kernels/ref_end.h"

enum { BATCHES = 4, N = 32, d = 16, M = 64, K = 5, STEPS = 20 };

static struct tensors *file;

static void load(double *dst, const char *name, size_t n) {
    const struct tensor *t = tensors_find(file, name);
    assert_non_null(t);
    assert_int_equal(t->dtype, DTYPE_F64);
    assert_int_equal(t->count, n);
    memcpy(dst, t->data, n * sizeof(double));
}

static void near(struct op_test *t, const char *what, const double *got, const char *name, size_t n, double tolerance) {
    double *want = malloc(n * sizeof *want), worst = 0;
    load(want, name, n);
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs(got[i] - want[i]));
    printf("  %s: largest difference from PyTorch %.3g\n", what, worst);
    if (!(worst <= tolerance)) op_fail(t, "%s differs from PyTorch by %g", what, worst);
    free(want);
}

/* everything a training step touches, in the oracle's precision */
struct oracle {
    double x[BATCHES * N * d], E[M * d], D[M * d], b_e[M], b_d[d], m_E[M * d], v_E[M * d], m_D[M * d], v_D[M * d], m_be[M], v_be[M],
        m_bd[d], v_bd[d];
    double values[N * K], dvalues[N * K], g[N * d], mean[d], channel[d], variance, error, row_error[N];
    int indices[N * K], offsets[M + 1], entries[N * K];
    bf16 E_low[M * d];
    double scratch[4096];
};

static double oracle_step(struct oracle *o, const double *x, bf16 *E_low, const struct sae_adam *a) {
    ref_sae_moments(NULL, o->mean, o->channel, &o->variance, x, N, d);
    ref_sae_encode_topk(NULL, o->indices, o->values, x, o->E, E_low, o->b_e, NULL, N, d, M, K, o->scratch);
    ref_sae_decode_backward(NULL, o->g, o->dvalues, &o->error, o->row_error, x, o->indices, o->values, o->D, o->b_d, &o->variance, N, d, K);
    ref_sae_csc(NULL, o->offsets, o->entries, o->indices, N, M, K, o->scratch);
    ref_sae_update(NULL, o->E, o->D, o->b_e, o->m_E, o->v_E, o->m_D, o->v_D, o->m_be, o->v_be, E_low, o->offsets, o->entries, o->values,
                   o->dvalues, o->g, x, a, N, d, M, K);
    ref_sae_update_bias(NULL, o->b_d, o->m_bd, o->v_bd, o->g, a, N, d);
    return o->error / (o->variance + 1e-8);
}

static void start(struct oracle *o) {
    memset(o, 0, sizeof *o);
    load(o->x, "x", BATCHES * N * d);
    load(o->E, "start.E", M * d);
    load(o->D, "start.D", M * d);
    load(o->b_e, "start.b_e", M);
    load(o->b_d, "start.b_d", d);
    assert_true(ref_sae_encode_scratch(N, d, M, K) <= sizeof o->scratch && ref_sae_csc_scratch(N, M, K) <= sizeof o->scratch);
}

static struct oracle o;

static void test_oracle(void **state) {
    (void)state;
    struct op_test t;
    op_begin(&t, "oracle against PyTorch");
    start(&o);
    struct sae_adam gradient = {0, 0, 0.999, 1e-8, 1, false, false}; /* beta1 = 0: m is the gradient */
    oracle_step(&o, o.x, NULL, &gradient);
    near(&t, "dE", o.m_E, "grad.E", M * d, 1e-13);
    near(&t, "dD", o.m_D, "grad.D", M * d, 1e-13);
    near(&t, "db_e", o.m_be, "grad.b_e", M, 1e-13);
    near(&t, "db_d", o.m_bd, "grad.b_d", d, 1e-13);
    assert_memory_equal(tensors_find(file, "kept")->data, o.indices, sizeof o.indices);
    start(&o);
    double losses[STEPS];
    struct sae_adam a = {2e-3, 0.9, 0.999, 1e-8, 1, true, false};
    for (; a.step <= STEPS; a.step++) losses[a.step - 1] = oracle_step(&o, o.x + (a.step - 1) % BATCHES * N * d, NULL, &a);
    near(&t, "losses", losses, "loss", STEPS, 1e-11);
    near(&t, "E after 20 steps", o.E, "end.E", M * d, 1e-10);
    near(&t, "D after 20 steps", o.D, "end.D", M * d, 1e-10);
    near(&t, "b_e after 20 steps", o.b_e, "end.b_e", M, 1e-10);
    near(&t, "b_d after 20 steps", o.b_d, "end.b_d", d, 1e-10);
    op_end(&t);
}

static struct op_buffer *zeros(struct op_test *t, size_t n) {
    double *v = calloc(n, sizeof *v);
    struct op_buffer *b = op_given(t, OP_REAL, n, v);
    free(v);
    return b;
}

/* The executor's own 20 steps. f32 parts from double as training goes on (a weight rounds to the other bf16, a selection
 * flips, Adam's first steps are signs), so the loss curve is compared, with room for that. */
static void run_executor(bool low, double tolerance) {
    struct op_test t;
    op_begin(&t, "20 steps, product in %s", low ? "bf16" : "f32");
    start(&o);
    struct op_buffer *x[BATCHES], *E = op_given(&t, OP_REAL, M * d, o.E), *D = op_given(&t, OP_REAL, M * d, o.D),
                                  *b_e = op_given(&t, OP_REAL, M, o.b_e), *b_d = op_given(&t, OP_REAL, d, o.b_d);
    for (int b = 0; b < BATCHES; b++) x[b] = op_given(&t, OP_ACT, N * d, o.x + b * N * d);
    struct op_buffer *E_low = op_given(&t, OP_BF16, M * d, o.E), *m_E = zeros(&t, M * d), *v_E = zeros(&t, M * d), *m_D = zeros(&t, M * d),
                     *v_D = zeros(&t, M * d), *m_be = zeros(&t, M), *v_be = zeros(&t, M), *m_bd = zeros(&t, d), *v_bd = zeros(&t, d);
    struct op_buffer *indices = op_output(&t, OP_INT, N * K), *values = op_output(&t, OP_REAL, N * K),
                     *dvalues = op_output(&t, OP_REAL, N * K), *g = op_output(&t, OP_REAL, N * d), *mean = op_output(&t, OP_REAL, d),
                     *channel = op_output(&t, OP_REAL, d), *variance = op_output(&t, OP_REAL, 1), *error = op_output(&t, OP_REAL, 1),
                     *rows = op_output(&t, OP_REAL, N), *offsets = op_output(&t, OP_INT, M + 1), *entries = op_output(&t, OP_INT, N * K);
    size_t bytes = sae_encode_scratch(N, d, M, K), csc = sae_csc_scratch(N, M, K);
    struct op_buffer *scratch = op_output(&t, OP_BYTES, bytes > csc ? bytes : csc);
    struct sae_adam a = {2e-3, 0.9, 0.999, 1e-8, 1, true, false};
    memcpy(o.E_low, E_low->low, sizeof o.E_low);
    double worst = 0;
    for (; a.step <= STEPS; a.step++) {
        void *in = x[(a.step - 1) % BATCHES]->p, *lower = low ? E_low->p : NULL;
        sae_moments(t.dev, mean->p, channel->p, variance->p, in, N, d);
        sae_encode_topk(t.dev, indices->p, values->p, in, E->p, lower, b_e->p, NULL, N, d, M, K, scratch->p);
        sae_decode_backward(t.dev, g->p, dvalues->p, error->p, rows->p, in, indices->p, values->p, D->p, b_d->p, variance->p, N, d, K);
        sae_csc(t.dev, offsets->p, entries->p, indices->p, N, M, K, scratch->p);
        sae_update(t.dev, E->p, D->p, b_e->p, m_E->p, v_E->p, m_D->p, v_D->p, m_be->p, v_be->p, lower, offsets->p, entries->p, values->p,
                   dvalues->p, g->p, in, &a, N, d, M, K);
        sae_update_bias(t.dev, b_d->p, m_bd->p, v_bd->p, g->p, &a, N, d);
        float of_rows, of_batch;
        device_download(t.dev, &of_rows, error->p, sizeof of_rows);
        device_download(t.dev, &of_batch, variance->p, sizeof of_batch);
        double loss = (double)of_rows / ((double)of_batch + 1e-8),
               want = oracle_step(&o, x[(a.step - 1) % BATCHES]->real, low ? o.E_low : NULL, &a);
        worst = fmax(worst, fabs(loss - want));
        if (a.step % 10 == 1) printf("  step %ld: loss %.6f, oracle %.6f\n", a.step, loss, want);
    }
    printf("  %s: largest difference of a loss %.3g\n", t.name, worst);
    if (!(worst <= tolerance)) op_fail(&t, "loss differs from the oracle's by %g", worst);
    op_end(&t);
}

static void test_executor(void **state) {
    (void)state;
    run_executor(false, 1e-5);
    run_executor(true, 1e-3);
}

int main(void) {
    struct error err = {""};
    if (tensors_open(&file, "tests/golden/sae_step.safetensors", &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_oracle), cmocka_unit_test(test_executor)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tensors_close(file);
    return failed;
}
