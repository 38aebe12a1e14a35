/* test_backward.c - backward of norm, swiglu, rope, embedding and products: against the oracle, and the oracle against PyTorch's
 * autograd in double (tools/golden/make_backward.py) and against central differences. Attention has its own file. */
#include "tests/kernels/op_test.h"
#undef fail /* cmocka's; host/error.h has a function of that name */

#include "host/tensors.h"
#include "kernels/activation.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/ref_begin.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/ref_end.h"

/* ---- executors against the oracle ---- */

static void run_norm(int N, int C, double scale) {
    struct op_test t;
    op_begin(&t, "rmsnorm_backward N=%d C=%d scale=%g", N, C, scale);
    const size_t n = (size_t)(N * C), c = (size_t)C;
    struct op_buffer *x = op_input(&t, OP_ACT, n, scale), *w = op_input(&t, OP_ACT, c, 1), *dy = op_input(&t, OP_ACT, n, 1);
    double *y = op_ref(&t, n), *rstd_exact = op_ref(&t, (size_t)N), *start = op_ref(&t, n), *start_w = op_ref(&t, c);
    ref_rmsnorm_forward(NULL, y, rstd_exact, x->real, w->real, N, C, 1e-5);
    for (size_t i = 0; i < n; i++) start[i] = op_normal(&t) / scale;
    for (size_t i = 0; i < c; i++) start_w[i] = op_normal(&t);
    struct op_buffer *rstd = op_given(&t, OP_REAL, (size_t)N, rstd_exact), *dx = op_inout(&t, OP_ACT, n, start),
                     *dw = op_inout(&t, OP_REAL, c, start_w);
    double *ref = op_copy(&t, dx->real, n), *ref_w = op_copy(&t, dw->real, c), magnitude = 0, magnitude_w = 0;
    float *plain = op_plain(&t, n), *plain_w = op_plain(&t, c);
    for (size_t i = 0; i < c; i++) plain_w[i] = (float)dw->real[i];
    for (int r = 0; r < N; r++) {
        const double *a = x->real + r * C, *g = dy->real + r * C;
        float dot = 0, s = (float)rstd->real[r];
        double size = 0;
        for (int i = 0; i < C; i++) dot += (float)g[i] * (float)w->real[i] * (float)a[i], size += fabs(g[i] * w->real[i] * a[i]);
        for (int i = 0; i < C; i++) {
            const double terms = s * (fabs(g[i] * w->real[i]) + fabs(a[i]) * size * s * s / C) + fabs(ref[r * C + i]);
            magnitude = fmax(magnitude, terms);
            plain[r * C + i] =
                op_round(OP_ACT, (float)ref[r * C + i] + s * ((float)g[i] * (float)w->real[i] - (float)a[i] * s * s * dot / (float)C));
            plain_w[i] += (float)g[i] * (float)a[i] * s;
        }
    }
    for (int i = 0; i < C; i++) {
        double size = fabs(ref_w[i]);
        for (int r = 0; r < N; r++) size += fabs(dy->real[r * C + i] * x->real[r * C + i] * rstd->real[r]);
        magnitude_w = fmax(magnitude_w, size);
    }
    OP_RUN(&t, rmsnorm_backward(t.dev, dx->p, dy->p, x->p, rstd->p, w->p, N, C);
           rmsnorm_backward_weight(t.dev, dw->p, dy->p, x->p, rstd->p, N, C));
    ref_rmsnorm_backward(NULL, ref, dy->real, x->real, rstd->real, w->real, N, C);
    ref_rmsnorm_backward_weight(NULL, ref_w, dy->real, x->real, rstd->real, N, C);
    op_check_gradient_sum(&t, dx, "dx", ref, plain, magnitude);
    op_check_gradient_sum(&t, dw, "dw", ref_w, plain_w, magnitude_w);
    op_end(&t);
}

static void test_norm(void **state) {
    (void)state;
    run_norm(1, 1, 1), run_norm(1, 8, 1), run_norm(3, 7, 1), run_norm(2, 257, 1), run_norm(5, 64, 1e-3), run_norm(5, 64, 1e3);
    run_norm(17, 512, 1), run_norm(2, 4096, 1), run_norm(131, 72, 1), run_norm(300, 40, 1), run_norm(1, 8200, 1e3);
}

static void run_swiglu(int N, int F, double scale) {
    struct op_test t;
    op_begin(&t, "swiglu_backward N=%d F=%d scale=%g", N, F, scale);
    const size_t n = (size_t)(N * F);
    struct op_buffer *gate_up = op_input(&t, OP_ACT, 2 * n, scale), *dy = op_input(&t, OP_ACT, n, 1), *d = op_output(&t, OP_ACT, 2 * n);
    double *ref = op_ref(&t, 2 * n), magnitude = 0;
    float *plain = op_plain(&t, 2 * n);
    for (int r = 0; r < N; r++)
        for (int f = 0; f < F; f++) {
            const float g = (float)gate_up->real[2 * r * F + f], u = (float)gate_up->real[(2 * r + 1) * F + f],
                        y = (float)dy->real[r * F + f];
            const float s = 1 / (1 + expf(-g));
            plain[2 * r * F + f] = op_round(OP_ACT, y * u * s * (1 + g * (1 - s)));
            plain[(2 * r + 1) * F + f] = op_round(OP_ACT, y * g * s);
            magnitude = fmax(magnitude, fabs((double)(y * u * s)) * (1 + fabs((double)g)));
        }
    OP_RUN(&t, swiglu_backward(t.dev, d->p, dy->p, gate_up->p, N, F));
    ref_swiglu_backward(NULL, ref, dy->real, gate_up->real, N, F);
    op_check_gradient_sum(&t, d, "dgate_up", ref, plain, magnitude);
    op_end(&t);
}

static void test_swiglu(void **state) {
    (void)state;
    run_swiglu(1, 1, 1), run_swiglu(3, 7, 1), run_swiglu(5, 64, 1e-3), run_swiglu(5, 64, 1e3), run_swiglu(17, 257, 1),
        run_swiglu(2, 2056, 10);
}

static void run_rope(int N, int H, int G, int D) {
    enum { POSITIONS = 97 };
    struct op_test t;
    op_begin(&t, "qkv_split_rope_backward N=%d H=%d G=%d D=%d", N, H, G, D);
    const size_t half = (size_t)(D / 2), width = (size_t)((H + 2 * G) * D), qn = (size_t)(N * H * D), kn = (size_t)(N * G * D);
    double *angle_cos = op_ref(&t, POSITIONS * half), *angle_sin = op_ref(&t, POSITIONS * half);
    for (size_t i = 0; i < POSITIONS * half; i++) {
        const double angle = (double)(i / half) * pow(10000, -2.0 * (double)(i % half) / D);
        angle_cos[i] = cos(angle), angle_sin[i] = sin(angle);
    }
    int *position = op_ints(&t, (size_t)N);
    for (int n = 0; n < N; n++) position[n] = n ? op_below(&t, POSITIONS) : POSITIONS - 1;
    struct op_buffer *dq = op_input(&t, OP_ACT, qn, 1), *dk = op_input(&t, OP_ACT, kn, 1), *dv = op_input(&t, OP_ACT, kn, 1),
                     *at = op_given_int(&t, (size_t)N, position), *c = op_given(&t, OP_REAL, POSITIONS * half, angle_cos),
                     *s = op_given(&t, OP_REAL, POSITIONS * half, angle_sin), *d = op_output(&t, OP_ACT, (size_t)N * width);
    double *ref = op_ref(&t, d->n);
    float *plain = op_plain(&t, d->n);
    for (int n = 0; n < N; n++)
        for (int h = 0; h < H + 2 * G; h++)
            for (int i = 0; i < D / 2; i++) {
                const double *y = h < H       ? dq->real + (n * H + h) * D
                                  : h < H + G ? dk->real + (n * G + h - H) * D
                                              : dv->real + (n * G + h - H - G) * D;
                const size_t angle = (size_t)position[n] * half + (size_t)i, to = (size_t)n * width + (size_t)(h * D + i);
                const float a = (float)y[i], b = (float)y[i + D / 2], co = h < H + G ? (float)c->real[angle] : 1,
                            si = h < H + G ? (float)s->real[angle] : 0;
                plain[to] = op_round(OP_ACT, a * co + b * si);
                plain[to + half] = op_round(OP_ACT, b * co - a * si);
            }
    OP_RUN(&t, qkv_split_rope_backward(t.dev, d->p, dq->p, dk->p, dv->p, at->p, c->p, s->p, N, H, G, D));
    ref_qkv_split_rope_backward(NULL, ref, dq->real, dk->real, dv->real, position, c->real, s->real, N, H, G, D);
    op_check_gradient(&t, d, "dqkv", ref, plain);
    op_end(&t);
}

static void test_rope(void **state) {
    (void)state;
    run_rope(1, 1, 1, 2), run_rope(3, 2, 1, 6), run_rope(17, 4, 2, 16), run_rope(5, 3, 3, 24), run_rope(2, 71, 1, 64),
        run_rope(33, 2, 2, 128);
}

static void run_embed(int N, int V, int R, int C, bool table, bool image) {
    struct op_test t;
    op_begin(&t, "embed_backward N=%d V=%d R=%d C=%d%s%s", N, V, R, C, table ? " table" : "", image ? " image" : "");
    int *source = op_ints(&t, (size_t)N);
    for (int n = 0; n < N; n++) source[n] = n < R ? -1 - n : op_below(&t, V);
    const size_t v = (size_t)(V * C), r = (size_t)(R * C);
    double *start = op_ref(&t, v), *start_image = op_ref(&t, r), magnitude = 0;
    for (size_t i = 0; i < v; i++) start[i] = op_normal(&t);
    for (size_t i = 0; i < r; i++) start_image[i] = op_normal(&t);
    struct op_buffer *dx = op_input(&t, OP_ACT, (size_t)(N * C), 1), *at = op_given_int(&t, (size_t)N, source),
                     *dtable = op_inout(&t, OP_REAL, v, start), *drows = op_inout(&t, OP_REAL, r, start_image);
    double *ref = op_copy(&t, dtable->real, v), *ref_image = op_copy(&t, drows->real, r);
    float *plain = op_plain(&t, v), *plain_image = op_plain(&t, r);
    for (size_t i = 0; i < v; i++) plain[i] = (float)ref[i], magnitude = fmax(magnitude, fabs(ref[i]) + 3.0 * N / V);
    for (size_t i = 0; i < r; i++) plain_image[i] = (float)ref_image[i];
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++)
            if (source[n] >= 0 ? table : image)
                *(source[n] >= 0 ? &plain[source[n] * C + c] : &plain_image[(-1 - source[n]) * C + c]) += (float)dx->real[n * C + c];
    OP_RUN(&t, embed_backward(t.dev, table ? dtable->p : NULL, image ? drows->p : NULL, at->p, dx->p, N, C));
    ref_embed_backward(NULL, table ? ref : NULL, image ? ref_image : NULL, source, dx->real, N, C);
    op_check_gradient_sum(&t, dtable, "dtable", ref, plain, magnitude);
    op_check_gradient(&t, drows, "dimage_rows", ref_image, plain_image);
    op_end(&t);
}

static void test_embed(void **state) {
    (void)state;
    run_embed(1, 3, 1, 1, true, true), run_embed(9, 4, 2, 7, true, false), run_embed(65, 11, 9, 64, true, true);
    run_embed(300, 5, 100, 40, true, true), run_embed(20, 5, 10, 257, false, true), run_embed(20, 5, 10, 257, true, false);
}

static void run_products(int N, int I, int O, double scale) {
    struct op_test t;
    op_begin(&t, "linear_backward N=%d I=%d O=%d scale=%g", N, I, O, scale);
    const size_t nx = (size_t)(N * I), nw = (size_t)(O * I);
    struct op_buffer *dy = op_input(&t, OP_ACT, (size_t)(N * O), scale), *w = op_input(&t, OP_ACT, nw, 1), *x = op_input(&t, OP_ACT, nx, 1);
    double *start = op_ref(&t, nw), size_x = 0, size_w = 0;
    for (size_t i = 0; i < nw; i++) start[i] = scale * op_normal(&t);
    struct op_buffer *dx = op_output(&t, OP_ACT, nx), *dw = op_inout(&t, OP_REAL, nw, start);
    double *ref_x = op_ref(&t, nx), *ref_w = op_copy(&t, dw->real, nw);
    float *plain_x = op_plain(&t, nx), *plain_w = op_plain(&t, nw);
    for (int n = 0; n < N; n++)
        for (int i = 0; i < I; i++) {
            float sum = 0;
            double size = 0;
            for (int o = 0; o < O; o++)
                sum += (float)dy->real[n * O + o] * (float)w->real[o * I + i], size += fabs(dy->real[n * O + o] * w->real[o * I + i]);
            plain_x[n * I + i] = op_round(OP_ACT, sum);
            size_x = fmax(size_x, size);
        }
    for (int o = 0; o < O; o++)
        for (int i = 0; i < I; i++) {
            float sum = (float)ref_w[o * I + i];
            double size = fabs(ref_w[o * I + i]);
            for (int n = 0; n < N; n++)
                sum += (float)dy->real[n * O + o] * (float)x->real[n * I + i], size += fabs(dy->real[n * O + o] * x->real[n * I + i]);
            plain_w[o * I + i] = sum;
            size_w = fmax(size_w, size);
        }
    OP_RUN(&t, linear_backward_input(t.dev, dx->p, dy->p, w->p, N, I, O); linear_backward_weight(t.dev, dw->p, dy->p, x->p, N, I, O));
    ref_linear_backward_input(NULL, ref_x, dy->real, w->real, N, I, O);
    ref_linear_backward_weight(NULL, ref_w, dy->real, x->real, N, I, O);
    op_check_gradient_sum(&t, dx, "dx", ref_x, plain_x, size_x);
    op_check_gradient_sum(&t, dw, "dw", ref_w, plain_w, size_w);
    op_end(&t);
}

static void test_products(void **state) {
    (void)state;
    static const int shapes[][3] = {{1, 1, 1},   {1, 7, 3},     {1, 513, 67},   {2, 64, 33},   {3, 129, 31},
                                    {5, 64, 16}, {17, 33, 257}, {67, 131, 259}, {321, 40, 24}, {33, 300, 8}};
    static const double scales[] = {1, 1e-3, 1e3};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) run_products(shapes[i][0], shapes[i][1], shapes[i][2], scales[i % 3]);
}

/* ---- the oracle against PyTorch's autograd and central differences ---- */

enum { T = 11, H = 4, G = 2, D = 16, C = 24, F = 40, O = 17, V = 7, SEQUENCES = 2 };
static struct tensors *file;

static double *load(struct op_test *t, const char *name) {
    const struct tensor *g = tensors_find(file, name);
    if (!g) printf("no tensor %s\n", name);
    assert_non_null(g);
    assert_int_equal(g->dtype, DTYPE_F64);
    double *values = op_ref(t, g->count);
    memcpy(values, g->data, g->bytes);
    return values;
}

static void same(struct op_test *t, const char *name, const double *got) {
    const double *want = load(t, name);
    double worst = 0, top = 0;
    for (size_t i = 0; i < tensors_find(file, name)->count; i++)
        worst = fmax(worst, fabs(got[i] - want[i])), top = fmax(top, fabs(want[i]));
    printf("  %s: largest difference from PyTorch %.3g of %.3g\n", name, worst, top);
    if (!(worst <= 1e-13 * top)) op_fail(t, "%s differs from PyTorch by %g", name, worst);
}

static double *zeros(struct op_test *t, size_t n) { return memset(op_ref(t, n), 0, n * sizeof(double)); }

static void test_golden(void **state) {
    (void)state;
    struct op_test t;
    op_begin(&t, "golden backward");
    double *x = load(&t, "norm.x"), *w = load(&t, "norm.w"), *dy = load(&t, "norm.dy"), rstd[5], y[5 * C];
    double *dx = zeros(&t, 5 * C), *dw = zeros(&t, C);
    ref_rmsnorm_forward(NULL, y, rstd, x, w, 5, C, 1e-5);
    ref_rmsnorm_backward(NULL, dx, dy, x, rstd, w, 5, C);
    ref_rmsnorm_backward_weight(NULL, dw, dy, x, rstd, 5, C);
    same(&t, "norm.dx", dx);
    same(&t, "norm.dw", dw);
    double *gate_up = zeros(&t, 6 * 2 * F);
    ref_swiglu_backward(NULL, gate_up, load(&t, "swiglu.dy"), load(&t, "swiglu.gate_up"), 6, F);
    same(&t, "swiglu.dgate_up", gate_up);
    double *lx = zeros(&t, 7 * C), *lw = zeros(&t, O * C);
    ref_linear_backward_input(NULL, lx, load(&t, "linear.dy"), load(&t, "linear.w"), 7, C, O);
    ref_linear_backward_weight(NULL, lw, load(&t, "linear.dy"), load(&t, "linear.x"), 7, C, O);
    same(&t, "linear.dx", lx);
    same(&t, "linear.dw", lw);
    int source[9];
    memcpy(source, tensors_find(file, "embed.source")->data, sizeof source);
    double *table = zeros(&t, V * C);
    ref_embed_backward(NULL, table, NULL, source, load(&t, "embed.dx"), 9, C);
    same(&t, "embed.dtable", table);
    op_end(&t);
}

/* qkv -> rope -> attention of two packed sequences -> z, back to dqkv. */
static void test_golden_attention(void **state) {
    (void)state;
    struct op_test t;
    op_begin(&t, "golden backward of attention");
    double *qkv = load(&t, "attn.qkv"), *dz = load(&t, "attn.dz"), *cosine = load(&t, "attn.cos"), *sine = load(&t, "attn.sin");
    int position[T];
    const int start[SEQUENCES + 1] = {0, 7, T}, length[SEQUENCES] = {7, T - 7};
    memcpy(position, tensors_find(file, "attn.position")->data, sizeof position);
    double *q = zeros(&t, T * H * D), *k = zeros(&t, T * G * D), *v = zeros(&t, T * G * D), *z = zeros(&t, T * H * D),
           *lse = zeros(&t, T * H);
    double *dq = zeros(&t, T * H * D), *dk = zeros(&t, T * G * D), *dv = zeros(&t, T * G * D), *dqkv = zeros(&t, T * (H + 2 * G) * D);
    ref_qkv_split_rope(NULL, q, k, v, qkv, position, cosine, sine, T, H, G, D);
    ref_attention_forward(NULL, z, lse, q, k, v, start, start, length, SEQUENCES, 7, H, G, D, 0.25, true);
    same(&t, "attn.z", z);
    ref_attention_backward(NULL, dq, dk, dv, zeros(&t, T * H), dz, z, lse, q, k, v, start, SEQUENCES, 7, H, G, D, 0.25);
    ref_qkv_split_rope_backward(NULL, dqkv, dq, dk, dv, position, cosine, sine, T, H, G, D);
    same(&t, "attn.dqkv", dqkv);
    op_end(&t);
}

/* f(x) = sum dy . y(x) of each op, differentiated at every element. */
enum kind { NORM, NORM_WEIGHT, SWIGLU, ROPE, EMBED, LINEAR, LINEAR_WEIGHT, KINDS };
static const char *const kind_names[KINDS] = {"rmsnorm x", "rmsnorm w", "swiglu", "rope", "embed", "linear x", "linear w"};
struct difference {
    double *x, *w, *dy, *cosine, *sine, y[512];
    int position[4], source[4];
};

static double value(enum kind kind, struct difference *d) {
    size_t n = 4 * 8;
    if (kind == NORM || kind == NORM_WEIGHT) ref_rmsnorm_forward(NULL, d->y, NULL, d->x, d->w, 4, 8, 1e-5);
    if (kind == SWIGLU) ref_swiglu_forward(NULL, d->y, d->x, 4, 8);
    if (kind == ROPE) {
        n = 4 * 4 * 4;
        ref_qkv_split_rope(NULL, d->y, d->y + 4 * 2 * 4, d->y + 4 * 3 * 4, d->x, d->position, d->cosine, d->sine, 4, 2, 1, 4);
    }
    if (kind == EMBED) ref_embed_forward(NULL, d->y, d->source, d->x, NULL, 4, 8);
    if (kind == LINEAR || kind == LINEAR_WEIGHT) {
        n = 4 * 5;
        ref_linear_forward(NULL, d->y, d->x, d->w, NULL, 4, 8, 5);
    }
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += d->dy[i] * d->y[i];
    return sum;
}

/* The backward's gradient of x (of w for the weight kinds); its number of elements. */
static int gradient(enum kind kind, struct difference *d, double *g) {
    double rstd[4], y[64];
    memset(g, 0, 64 * sizeof *g);
    ref_rmsnorm_forward(NULL, y, rstd, d->x, d->w, 4, 8, 1e-5);
    switch (kind) {
    case NORM:
        return ref_rmsnorm_backward(NULL, g, d->dy, d->x, rstd, d->w, 4, 8), 32;
    case NORM_WEIGHT:
        return ref_rmsnorm_backward_weight(NULL, g, d->dy, d->x, rstd, 4, 8), 8;
    case SWIGLU:
        return ref_swiglu_backward(NULL, g, d->dy, d->x, 4, 8), 64;
    case ROPE:
        ref_qkv_split_rope_backward(NULL, g, d->dy, d->dy + 4 * 2 * 4, d->dy + 4 * 3 * 4, d->position, d->cosine, d->sine, 4, 2, 1, 4);
        return 64;
    case EMBED:
        return ref_embed_backward(NULL, g, NULL, d->source, d->dy, 4, 8), 24;
    case LINEAR:
        return ref_linear_backward_input(NULL, g, d->dy, d->w, 4, 8, 5), 32;
    default:
        return ref_linear_backward_weight(NULL, g, d->dy, d->x, 4, 8, 5), 40;
    }
}

static void test_differences(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        struct op_test t;
        struct difference d = {.position = {3, 0, 5, 1}, .source = {2, 0, 2, 1}};
        op_begin(&t, "central differences %s", kind_names[kind]);
        d.x = op_ref(&t, 64), d.w = op_ref(&t, 64), d.dy = op_ref(&t, 64), d.cosine = op_ref(&t, 16), d.sine = op_ref(&t, 16);
        for (int i = 0; i < 64; i++) d.x[i] = op_normal(&t), d.w[i] = op_normal(&t), d.dy[i] = op_normal(&t);
        for (int i = 0; i < 16; i++) d.cosine[i] = cos(i), d.sine[i] = sin(i);
        double g[64], worst = 0, *at = kind == NORM_WEIGHT || kind == LINEAR_WEIGHT ? d.w : d.x;
        const int n = gradient((enum kind)kind, &d, g);
        for (int i = 0; i < n; i++) {
            const double kept = at[i], step = 1e-5;
            at[i] = kept + step;
            double f = value((enum kind)kind, &d);
            at[i] = kept - step;
            f -= value((enum kind)kind, &d);
            at[i] = kept;
            worst = fmax(worst, fabs(f / (2 * step) - g[i]));
        }
        printf("  %s: largest distance from central differences %.3g\n", kind_names[kind], worst);
        if (!(worst < 1e-8)) op_fail(&t, "%s differs from central differences by %g", kind_names[kind], worst);
        op_end(&t);
    }
}

static int open_file(void **state) {
    (void)state;
    struct error err = {0};
    int failed = tensors_open(&file, "tests/golden/backward.safetensors", &err);
    if (failed) printf("%s\n", err.text);
    return failed;
}

static int close_file(void **state) {
    (void)state;
    tensors_close(file);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norm),
                                       cmocka_unit_test(test_swiglu),
                                       cmocka_unit_test(test_rope),
                                       cmocka_unit_test(test_embed),
                                       cmocka_unit_test(test_products),
                                       cmocka_unit_test(test_golden),
                                       cmocka_unit_test(test_golden_attention),
                                       cmocka_unit_test(test_differences)};
    return cmocka_run_group_tests_name("backward", tests, open_file, close_file);
}
