/* test_backward_double.c - models/llama.c and llama_backward.c compiled in double, on tests/models/golden/tiny_llama: every weight's
 * gradient against PyTorch's autograd (double) and against central differences; the stream's gradients against central differences. */
#include "tests/models/ref_names.h"
#include "tests/models/model_test.h"

#include "models/llama_backward.h"
#include <math.h>

enum { L = 2, C = 32, F = 40, H = 2, G = 1, D = 24, V = 261, HD = H * D, GD = G * D, N = 44, S = 2 };
static struct llama m;
static struct llama_rows rows;
static struct llama_layer layers[L];
static struct tensors *golden;
static double *seed, *final_x; /* (N, V): f = sum seed * logits; (N, C) */
static int source[N], position[N], q_start[S + 1] = {0, 7, N}, k_length[S] = {7, N - 7};

static double *doubles(const struct tensors *st, const char *format, ...) {
    char name[128];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    const struct tensor *t = tensors_find(st, name);
    if (!t) FAIL("tensor %s is missing", name);
    double *x = malloc(t->count * sizeof *x);
    float *f = malloc(t->count * sizeof *f);
    if (t->dtype == DTYPE_F64)
        memcpy(x, t->data, t->bytes);
    else
        tensor_to_f32(t, 0, t->count, f);
    for (size_t i = 0; t->dtype != DTYPE_F64 && i < t->count; i++) x[i] = (double)f[i];
    free(f);
    return x;
}

/* The parts of a fused matrix, rows below rows. */
static double *joined(const struct tensors *st, const char *prefix, int l, int n, const char *const *names, const int *counts) {
    double *x = malloc((size_t)(4 * HD * C + 4 * F * C) * sizeof *x), *to = x;
    for (int i = 0; i < n; i++) {
        double *part = doubles(st, "%smodel.layers.%d.%s.weight", prefix, l, names[i]);
        memcpy(to, part, (size_t)counts[i] * sizeof *to);
        to += counts[i];
        free(part);
    }
    return x;
}
static const char *const qkv_names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, *const gate_up_names[] = {
                                                                                                         "mlp.gate_proj", "mlp.up_proj"};
static const int qkv_counts[] = {HD * C, GD *C, GD *C}, gate_up_counts[] = {F * C, F *C};

static int open_all(void **state) {
    struct tensors *st = NULL, *samples = open_golden("tiny_llama");
    (void)state;
    golden = open_golden("backward");
    MUST(tensors_open(&st, GOLDEN "/tiny_llama", err));
    m.config = (struct llama_config){.V = V, .C = C, .F = F, .L = L, .H = H, .G = G, .D = D, .eps = 1e-6f};
    m.layers = L;
    m.layer = layers;
    for (int l = 0; l < L; l++)
        layers[l] = (struct llama_layer){
            doubles(st, "model.layers.%d.input_layernorm.weight", l),  joined(st, "", l, 3, qkv_names, qkv_counts),
            doubles(st, "model.layers.%d.self_attn.o_proj.weight", l), doubles(st, "model.layers.%d.post_attention_layernorm.weight", l),
            joined(st, "", l, 2, gate_up_names, gate_up_counts),       doubles(st, "model.layers.%d.mlp.down_proj.weight", l)};
    m.embed = m.head = doubles(st, "model.embed_tokens.weight");
    m.final_norm = doubles(st, "model.norm.weight");
    m.cosine = doubles(golden, "llama/cos");
    m.sine = doubles(golden, "llama/sin");
    seed = malloc((size_t)(N * V) * sizeof *seed);
    final_x = malloc((size_t)(N * C) * sizeof *final_x);
    for (int i = 0; i < S; i++) {
        int32_t *ids = golden_int(samples, NULL, "%d/ids", i);
        double *part = doubles(golden, "llama/seed/%d", i);
        for (int t = 0; t < k_length[i]; t++) source[q_start[i] + t] = ids[t], position[q_start[i] + t] = t;
        memcpy(seed + q_start[i] * V, part, (size_t)(k_length[i] * V) * sizeof *part);
        free(ids);
        free(part);
    }
    rows = (struct llama_rows){.N = N,
                               .S = S,
                               .max_q = N - 7,
                               .source = source,
                               .position = position,
                               .q_start = q_start,
                               .k_start = q_start,
                               .k_length = k_length};
    tensors_close(st);
    tensors_close(samples);
    return 0;
}

static int sum_logits(void *context, struct device *dev, int layer, void *x, int n, int width, const struct batch *b, struct error *err) {
    double *f = context;
    (void)dev, (void)layer, (void)b, (void)err;
    *f = 0;
    for (int i = 0; i < n * width; i++) *f += seed[i] * ((double *)x)[i];
    return 0;
}

static int copy_rows(void *context, struct device *dev, int layer, void *x, int n, int width, const struct batch *b, struct error *err) {
    (void)dev, (void)layer, (void)b, (void)err;
    memcpy(context, x, (size_t)(n * width) * sizeof(double));
    return 0;
}

/* f, by the forward pass as it stands. */
static double value(void) {
    double f;
    const struct probe probe = {PROBE_LOGITS, -1, sum_logits, &f};
    const struct probes probes = {&probe, 1, NULL};
    MUST(llama_forward(&m, test_device(), &rows, &probes, NULL, err));
    return f;
}

struct points { /* gradients of the stream as the backward pass shows them */
    double z[L][N * HD], pre[L][N * C], embed[N * C];
};

/* All gradients of f; most: bytes for activations that need not be computed again. */
static void gradients(struct llama_gradients *g, struct points *points, size_t most) {
    struct llama_tape tape = {0};
    double *dx = malloc((size_t)(N * C) * sizeof *dx);
    const struct probe last = {PROBE_RESID_POST, L - 1, copy_rows, final_x};
    const struct probes forward = {&last, 1, NULL};
    MUST(llama_gradients_reserve(g, &m, test_device(), err));
    MUST(llama_tape_reserve(&tape, &m, test_device(), N, L, most, err));
    assert_int_equal(tape.own, most ? L - 1 : 0);
    rows.keep = tape.layer;
    MUST(llama_forward(&m, test_device(), &rows, &forward, NULL, err));
    MUST(llama_backward_output(&m, test_device(), dx, seed, final_x, N, g, err));
    struct probe probes[2 * L + 1] = {{PROBE_EMBED, -1, copy_rows, points->embed}};
    for (int l = 0; l < L; l++) {
        probes[1 + l] = (struct probe){PROBE_ATTN_Z, l, copy_rows, points->z[l]};
        probes[1 + L + l] = (struct probe){PROBE_RESID_PRE, l, copy_rows, points->pre[l]};
    }
    const struct probes backward = {probes, 2 * L + 1, NULL};
    MUST(llama_backward(&m, test_device(), &rows, &tape, dx, &backward, g, err));
    rows.keep = NULL;
    llama_tape_free(&tape, test_device());
    free(dx);
}

static double far;
static void close_to(const char *what, int l, const double *got, double *want, size_t n) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) error += (got[i] - want[i]) * (got[i] - want[i]), norm += want[i] * want[i];
    error = sqrt(error / norm);
    far = fmax(far, error);
    if (!(error < 1e-7)) FAIL("%s of layer %d: relative RMS %g from PyTorch", what, l, error); /* the file holds f32 */
    free(want);
}

static void weights_equal_pytorch(void **state) {
    struct llama_gradients g = {0};
    static struct points points;
    (void)state;
    gradients(&g, &points, SIZE_MAX);
    for (int l = 0; l < L; l++) {
        const struct llama_layer_gradients *y = &g.layer[l];
        close_to("attn_norm", l, y->attn_norm, doubles(golden, "llama/model.layers.%d.input_layernorm.weight", l), C);
        close_to("qkv", l, y->qkv, joined(golden, "llama/", l, 3, qkv_names, qkv_counts), (HD + 2 * GD) * C);
        close_to("o", l, y->o, doubles(golden, "llama/model.layers.%d.self_attn.o_proj.weight", l), C * HD);
        close_to("mlp_norm", l, y->mlp_norm, doubles(golden, "llama/model.layers.%d.post_attention_layernorm.weight", l), C);
        close_to("gate_up", l, y->gate_up, joined(golden, "llama/", l, 2, gate_up_names, gate_up_counts), 2 * F * C);
        close_to("down", l, y->down, doubles(golden, "llama/model.layers.%d.mlp.down_proj.weight", l), C * F);
    }
    close_to("final_norm", L, g.final_norm, doubles(golden, "llama/model.norm.weight"), C);
    close_to("embed", -1, g.embed, doubles(golden, "llama/model.embed_tokens.weight"), V * C);
    printf("  all weights: at most %.2g from PyTorch, relative RMS\n", far);
    struct llama_gradients again = {0};
    static struct points points_again;
    gradients(&again, &points_again, 0); /* layers run once more instead of kept: not a bit differs */
    assert_memory_equal(again.memory.data, g.memory.data, g.memory.bytes);
    assert_memory_equal(&points_again, &points, sizeof points);
    llama_gradients_free(&again, test_device());
    llama_gradients_free(&g, test_device());
}

/* (f(x + h) - f(x - h)) / 2h at some elements of a weight */
static double worst;
static void difference(const char *what, double *x, const double *g, size_t n) {
    double top = 0;
    for (size_t i = 0; i < n; i++) top = fmax(top, fabs(g[i]));
    for (size_t i = 0; i < n; i += n / 5 + 1) {
        const double kept = x[i], step = 1e-5;
        x[i] = kept + step;
        double f = value();
        x[i] = kept - step;
        f -= value();
        x[i] = kept;
        const double error = fabs(f / (2 * step) - g[i]) / top;
        worst = fmax(worst, error);
        if (!(error < 1e-6)) FAIL("%s element %zu: central difference %.12g, gradient %.12g", what, i, f / (2 * step), g[i]);
    }
}

static void weights_equal_differences(void **state) {
    struct llama_gradients g = {0};
    static struct points points;
    (void)state;
    gradients(&g, &points, SIZE_MAX);
    for (int l = 0; l < L; l++) {
        difference("attn_norm", layers[l].attn_norm, g.layer[l].attn_norm, C);
        difference("qkv", layers[l].qkv, g.layer[l].qkv, (HD + 2 * GD) * C);
        difference("o", layers[l].o, g.layer[l].o, C * HD);
        difference("mlp_norm", layers[l].mlp_norm, g.layer[l].mlp_norm, C);
        difference("gate_up", layers[l].gate_up, g.layer[l].gate_up, 2 * F * C);
        difference("down", layers[l].down, g.layer[l].down, C * F);
    }
    difference("final_norm", m.final_norm, g.final_norm, C);
    difference("embed", m.embed, g.embed, V * C);
    printf("  weights: at most %.2g of the largest from central differences\n", worst);
    llama_gradients_free(&g, test_device());
}

struct nudge {
    int layer, element;
    double by;
};
static int nudge(void *context, struct device *dev, int layer, void *x, int n, int width, const struct batch *b, struct error *err) {
    const struct nudge *d = context;
    (void)dev, (void)n, (void)width, (void)b, (void)err;
    if (layer == d->layer) ((double *)x)[d->element] += d->by;
    return 0;
}

static double nudged(enum probe_point point, int layer, int element, double by) {
    struct nudge d = {layer, element, by};
    double f;
    const struct probe list[] = {{point, layer, nudge, &d}, {PROBE_LOGITS, -1, sum_logits, &f}};
    const struct probes probes = {list, 2, NULL};
    MUST(llama_forward(&m, test_device(), &rows, &probes, NULL, err));
    return f;
}

static void stream_equals_differences(void **state) {
    struct llama_gradients g = {0};
    static struct points points;
    double furthest = 0;
    (void)state;
    gradients(&g, &points, SIZE_MAX);
    for (int l = -1; l < L; l++)
        for (int kind = 0; kind < (l < 0 ? 1 : 2); kind++) {
            const enum probe_point point = l < 0 ? PROBE_EMBED : kind ? PROBE_RESID_PRE : PROBE_ATTN_Z;
            const double *gradient = l < 0 ? points.embed : kind ? points.pre[l] : points.z[l];
            const int n = N * (point == PROBE_ATTN_Z ? HD : C);
            for (int e = l + 1; e < n; e += n / 11) {
                const double step = 1e-5, f = (nudged(point, l, e, step) - nudged(point, l, e, -step)) / (2 * step);
                furthest = fmax(furthest, fabs(f - gradient[e]));
                if (!(fabs(f - gradient[e]) < 1e-6))
                    FAIL("point %d layer %d element %d: central difference %.12g, gradient %.12g", point, l, e, f, gradient[e]);
            }
        }
    printf("  hook_embed, hook_z, hook_resid_pre: at most %.2g from central differences\n", furthest);
    llama_gradients_free(&g, test_device());
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(weights_equal_pytorch), cmocka_unit_test(weights_equal_differences),
                                       cmocka_unit_test(stream_equals_differences)};
    return cmocka_run_group_tests_name("backward in double", tests, open_all, NULL);
}
