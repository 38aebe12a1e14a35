/* test_sae_detours.c - activations that sae/encode.c reaches over other operations, on every executor: signed topk (a dictionary of
 * twice the features), groupmax (one encode a group), the skip connection; against sums in double by the definition. */
#include "sae/sae.h" /* before cmocka, which has a macro fail() */

#include "tests/kernels/op_test.h"

#include "kernels/activation.h"

enum { N = 37 };
struct problem {
    struct op_test t;
    int d, M, K;
    struct sae_host host;
    double *h; /* (N, M) */
    float *x;  /* (N, d), as stored in act_t */
    void *device_x;
};

static float *draw(struct op_test *t, size_t n, double scale) {
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = (float)(scale * op_normal(t));
    return v;
}

static void begin(struct problem *p, enum sae_activation activation, int d, int M, int K, bool low) {
    const size_t n = (size_t)N * (size_t)d;
    *p = (struct problem){.d = d, .M = M, .K = K};
    op_begin(&p->t, "%s d=%d M=%d K=%d%s", sae_activation_name(activation), d, M, K, low ? " bf16" : "");
    p->host = (struct sae_host){.activation = activation, .d = d, .M = M, .K = K};
    p->host.E = draw(&p->t, (size_t)M * (size_t)d, 0.3), p->host.D = draw(&p->t, (size_t)M * (size_t)d, 0.3);
    p->host.b_e = draw(&p->t, (size_t)M, 0.2), p->host.b_d = draw(&p->t, (size_t)d, 0.2);
    p->x = draw(&p->t, n, 1);
    for (size_t i = 0; i < n; i++) p->x[i] = op_round(low ? OP_BF16 : OP_ACT, p->x[i]);
    for (size_t i = 0; low && i < (size_t)M * (size_t)d; i++) p->host.E[i] = op_round(OP_BF16, p->host.E[i]);
    p->h = malloc((size_t)N * (size_t)M * sizeof *p->h);
    for (int r = 0; r < N; r++)
        for (int f = 0; f < M; f++) {
            double sum = (double)p->host.b_e[f];
            for (int i = 0; i < d; i++) sum += (double)p->x[r * d + i] * (double)p->host.E[f * d + i];
            p->h[r * M + f] = sum;
        }
    float *staging = device_alloc(p->t.dev, n * sizeof *staging);
    p->device_x = device_alloc(p->t.dev, n * sizeof(act_t));
    device_upload(p->t.dev, staging, p->x, n * sizeof *staging);
    OP(act_from_real)(p->t.dev, p->device_x, staging, n);
    device_free(p->t.dev, staging);
}

static void end(struct problem *p) {
    device_free(p->t.dev, p->device_x);
    sae_host_free(&p->host);
    free(p->x), free(p->h);
    op_end(&p->t);
}

/* The value that feature f of row r should have, 0 when it is not kept. */
static double expected(const struct problem *p, int r, int f) {
    const double *h = p->h + (size_t)r * (size_t)p->M;
    int before = 0;
    if (p->host.activation == SAE_GROUPMAX) {
        const int size = p->M / p->K;
        for (int j = f / size * size; j < (f / size + 1) * size; j++) before += h[j] > h[f];
        return before == 0 && h[f] > 0 ? h[f] : 0;
    }
    for (int j = 0; j < p->M; j++) before += fabs(h[j]) > fabs(h[f]);
    return before < p->K ? h[f] : 0;
}

static void run_codes(enum sae_activation activation, int d, int M, int K, bool low) {
    struct problem p;
    struct sae sae;
    struct error err;
    const size_t slots = (size_t)N * (size_t)K;
    begin(&p, activation, d, M, K, low);
    if (sae_upload(&sae, p.t.dev, &p.host, N, low, &err)) op_fail(&p.t, "%s", err.text);
    int *device_indices = device_alloc(p.t.dev, slots * sizeof(int)), *indices = malloc(slots * sizeof(int));
    float *device_values = device_alloc(p.t.dev, slots * sizeof(float)), *values = malloc(slots * sizeof(float));
    sae_encode(&sae, device_indices, device_values, NULL, p.device_x, N, K);
    device_download(p.t.dev, indices, device_indices, slots * sizeof(int));
    device_download(p.t.dev, values, device_values, slots * sizeof(float));
    double error = 0;
    for (int r = 0; r < N; r++) {
        double *dense = calloc((size_t)M, sizeof *dense);
        for (int k = 0; k < K; k++) {
            const int f = indices[r * K + k];
            if (f < 0 || f >= M || (k > 0 && f <= indices[r * K + k - 1] && values[r * K + k] != 0))
                op_fail(&p.t, "row %d slot %d: index %d", r, k, f);
            if (f >= 0 && f < M) dense[f] += (double)values[r * K + k];
        }
        for (int f = 0; f < M; f++) error = fmax(error, fabs(dense[f] - expected(&p, r, f)));
        free(dense);
    }
    print_message("  %s: error %.3g\n", p.t.name, error);
    if (!(error < 1e-5)) op_fail(&p.t, "error %g", error); /* a wrong feature costs 0.1 and more, f32 sums 1e-6 */
    device_free(p.t.dev, device_indices), device_free(p.t.dev, device_values);
    free(indices), free(values);
    sae_free(&sae);
    end(&p);
}

static void test_signed(void **state) {
    (void)state;
    run_codes(SAE_SIGNED, 16, 64, 5, false);
    run_codes(SAE_SIGNED, 19, 41, 41, false);
    run_codes(SAE_SIGNED, 24, 300, 33, true);
}

static void test_groupmax(void **state) {
    (void)state;
    run_codes(SAE_GROUPMAX, 16, 64, 8, false);
    run_codes(SAE_GROUPMAX, 19, 39, 13, false); /* rows and groups at odd addresses */
    run_codes(SAE_GROUPMAX, 24, 300, 3, true);
    run_codes(SAE_GROUPMAX, 8, 20, 20, false); /* groups of one */
}

static void test_skip(void **state) {
    (void)state;
    static const int widths[] = {16, 19, 130};
    for (size_t i = 0; i < 3; i++) {
        struct problem p;
        struct sae sae;
        struct error err;
        const int d = widths[i];
        const size_t n = (size_t)N * (size_t)d;
        begin(&p, SAE_TOPK, d, 40, 4, false);
        p.host.skip = draw(&p.t, (size_t)d * (size_t)d, 0.3);
        if (sae_upload(&sae, p.t.dev, &p.host, N, false, &err)) op_fail(&p.t, "%s", err.text);
        float *device_y = device_alloc(p.t.dev, n * sizeof(float)), *y = malloc(n * sizeof *y);
        sae_skip(&sae, device_y, p.device_x, N);
        device_download(p.t.dev, y, device_y, n * sizeof *y);
        double error = 0;
        for (int r = 0; r < N; r++)
            for (int o = 0; o < d; o++) {
                double sum = 0;
                for (int c = 0; c < d; c++) sum += (double)p.host.skip[o * d + c] * (double)p.x[r * d + c];
                error = fmax(error, fabs((double)y[r * d + o] - sum));
            }
        print_message("  skip %s: error %.3g\n", p.t.name, error);
        if (!(error < 1e-5)) op_fail(&p.t, "skip: error %g", error);
        device_free(p.t.dev, device_y);
        free(y);
        sae_free(&sae);
        end(&p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_signed), cmocka_unit_test(test_groupmax), cmocka_unit_test(test_skip)};
    return cmocka_run_group_tests_name("sae_detours", tests, NULL, NULL);
}
