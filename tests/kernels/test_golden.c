/* test_golden.c - the oracle's model operations must give PyTorch's results in double, on PyTorch's inputs.
 * File: tools/golden/make_ops.py. The executors are held to the oracle by the other tests here. */
#include "tests/kernels/op_test.h"
#undef fail /* cmocka's; host/error.h has a function of that name */

#include "host/tensors.h"
#include "kernels/ref_begin.h"
#include "kernels/activation.h"
#include "kernels/argmax.h"
#include "kernels/attention.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/ref_end.h"

enum { T = 9, H = 4, G = 2, D = 16, C = 24, F = 40, O = 17, IMAGE = 12, PATCH = 4, WIDTH = 8, BATCH = 2, ROW_MAX = 4096 };

static struct tensors *file;

static const struct tensor *find(const char *name) {
    const struct tensor *t = tensors_find(file, name);
    if (!t) printf("no tensor %s\n", name);
    assert_non_null(t);
    return t;
}

/* The tensor in doubles, in memory that the case frees. */
static double *load(struct op_test *t, const char *name) {
    const struct tensor *g = find(name);
    assert_int_equal(g->dtype, DTYPE_F64);
    double *values = op_ref(t, g->count);
    memcpy(values, g->data, g->bytes);
    return values;
}

static void same(struct op_test *t, const char *name, const double *got) {
    const double *want = load(t, name);
    double worst = 0, top = 0;
    for (size_t i = 0; i < find(name)->count; i++) worst = fmax(worst, fabs(got[i] - want[i])), top = fmax(top, fabs(want[i]));
    printf("  %s: largest difference from PyTorch %.3g of %.3g\n", name, worst, top);
    if (!(worst <= 1e-13 * top)) op_fail(t, "%s differs from PyTorch by %g", name, worst);
}

static void test_norms(void **state) {
    (void)state;
    struct op_test t;
    op_begin(&t, "golden norms");
    double y[5 * C], rstd[5], mean[5];
    const double *x = load(&t, "norm.x"), *w = load(&t, "norm.w"), *b = load(&t, "norm.b");
    ref_rmsnorm_forward(NULL, y, rstd, x, w, 5, C, 1e-5);
    same(&t, "norm.rms", y);
    ref_rmsnorm_forward(NULL, y, NULL, x, NULL, 5, C, 1e-5);
    same(&t, "norm.rms_plain", y);
    ref_layernorm_forward(NULL, y, mean, rstd, x, w, b, 5, C, 1e-5);
    same(&t, "norm.layer", y);
    op_end(&t);
}

static void test_activations(void **state) {
    (void)state;
    struct op_test t;
    op_begin(&t, "golden activations");
    double y[ROW_MAX];
    const double *x = load(&t, "act.x");
    ref_gelu_forward(NULL, y, x, 257);
    same(&t, "act.gelu", y);
    ref_quick_gelu_forward(NULL, y, x, 257);
    same(&t, "act.quick_gelu", y);
    ref_swiglu_forward(NULL, y, load(&t, "act.gate_up"), 6, F);
    same(&t, "act.swiglu", y);
    op_end(&t);
}

static void test_rope(void **state) {
    (void)state;
    struct op_test t;
    op_begin(&t, "golden rope");
    double q[T * H * D], k[T * G * D], v[T * G * D];
    int position[T];
    memcpy(position, find("attn.position")->data, sizeof position);
    ref_qkv_split_rope(NULL, q, k, v, load(&t, "attn.qkv"), position, load(&t, "attn.cos"), load(&t, "attn.sin"), T, H, G, D);
    same(&t, "attn.q", q);
    same(&t, "attn.k", k);
    same(&t, "attn.v", v);
    op_end(&t);
}

static void test_attention(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        struct op_test t;
        op_begin(&t, "golden attention %s", causal ? "causal" : "all");
        double z[T * H * D], lse[T * H], *q = load(&t, "attn.q"), *k = load(&t, "attn.k"), *v = load(&t, "attn.v");
        int q_start[] = {0, T}, k_start[] = {0}, k_length[] = {T};
        ref_attention_forward(NULL, z, lse, q, k, v, q_start, k_start, k_length, 1, T, H, G, D, 0.25, causal);
        same(&t, causal ? "attn.z_causal" : "attn.z_all", z);
        same(&t, causal ? "attn.lse_causal" : "attn.lse_all", lse);
        /* the last rows once more as a continuation: causal from a cache must be the same rows */
        const int past = 5, rest_start[] = {0, T - past};
        for (int i = past * H * D; causal && i < T * H * D; i++) z[i] = NAN;
        if (causal)
            ref_attention_forward(NULL, z + past * H * D, lse + past * H, q + past * H * D, k, v, rest_start, k_start, k_length, 1,
                                  T - past, H, G, D, 0.25, true);
        if (causal) same(&t, "attn.z_causal", z);
        op_end(&t);
    }
}

static void test_vision(void **state) {
    (void)state;
    struct op_test t;
    op_begin(&t, "golden vision embedding");
    enum { SIDE = IMAGE / PATCH, n = SIDE * SIDE, WIDE = 3 * PATCH * PATCH };
    double rows[BATCH * n * WIDE], patches[BATCH * n * WIDTH], x[BATCH * (n + 1) * WIDTH];
    ref_patch_extract(NULL, rows, load(&t, "clip.pixels"), BATCH, IMAGE, PATCH);
    ref_linear_forward(NULL, patches, rows, load(&t, "clip.weight"), NULL, BATCH * n, WIDE, WIDTH);
    ref_vision_embed_forward(NULL, x, patches, load(&t, "clip.class"), load(&t, "clip.position"), BATCH, n, WIDTH);
    same(&t, "clip.embedded", x);
    op_end(&t);
}

static void test_products(void **state) {
    (void)state;
    struct op_test t;
    op_begin(&t, "golden products");
    double y[7 * O];
    ref_linear_forward(NULL, y, load(&t, "linear.x"), load(&t, "linear.w"), load(&t, "linear.b"), 7, C, O);
    same(&t, "linear.y", y);
    int index[6], want[6];
    memcpy(want, find("argmax.index")->data, sizeof want);
    ref_argmax_rows(NULL, index, load(&t, "argmax.x"), 6, O);
    for (int i = 0; i < 6; i++)
        if (index[i] != want[i]) op_fail(&t, "argmax row %d: %d, PyTorch %d", i, index[i], want[i]);
    op_end(&t);
}

static int open_file(void **state) {
    (void)state;
    struct error err = {0};
    int failed = tensors_open(&file, "tests/golden/ops.safetensors", &err);
    if (failed) printf("%s\n", err.text);
    return failed;
}

static int close_file(void **state) {
    (void)state;
    tensors_close(file);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norms),  cmocka_unit_test(test_activations),
                                       cmocka_unit_test(test_rope),   cmocka_unit_test(test_attention),
                                       cmocka_unit_test(test_vision), cmocka_unit_test(test_products)};
    return cmocka_run_group_tests_name("golden", tests, open_file, close_file);
}
