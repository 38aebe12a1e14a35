/* test_edit.c - edits of chosen rows: the rows named change as the oracle's do, the others keep their bits. */
#include "tests/kernels/op_test.h"

#include "kernels/edit.h"
#include "kernels/ref_begin.h"
#include "kernels/edit.h"
#include "kernels/ref_end.h"

struct shape {
    int N, n, C; /* rows of the tensor, rows chosen, width */
    double scale;
};
static const struct shape shapes[] = {
    {1, 1, 1, 1},   {4, 0, 8, 1},       {3, 2, 7, 1},    {9, 9, 64, 1e-3}, {40, 17, 257, 1},
    {5, 2, 264, 1}, {33, 12, 512, 1e3}, {3, 1, 4096, 1}, {2, 2, 8200, 1},  {70, 66, 260, 1},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

struct edited { /* a case: y before and after, and what is expected */
    struct op_test t;
    struct shape s;
    int *index;
    bool *chosen;
    struct op_buffer *y, *rows;
    double *y0, *ref;
    float *plain;
};

/* y normal, n of its rows chosen out of order. */
static void begin(struct edited *e, const char *name, struct shape s) {
    struct op_test *t = &e->t;
    op_begin(t, "%s N=%d n=%d C=%d scale=%g", name, s.N, s.n, s.C, s.scale);
    const size_t count = (size_t)(s.N * s.C);
    e->s = s;
    e->index = op_ints(t, (size_t)s.N);
    e->chosen = calloc((size_t)s.N, sizeof *e->chosen);
    for (int i = 0; i < s.N; i++) e->index[i] = i;
    for (int i = 0; i < s.n; i++) {
        const int j = i + op_below(t, s.N - i), r = e->index[j];
        e->index[j] = e->index[i];
        e->index[i] = r;
        e->chosen[r] = true;
    }
    double *x = op_ref(t, count);
    for (size_t i = 0; i < count; i++) x[i] = s.scale * op_normal(t);
    e->y = op_inout(t, OP_ACT, count, x);
    e->y0 = op_copy(t, e->y->real, count);
    e->ref = op_copy(t, e->y0, count);
    e->plain = op_plain(t, count);
    for (size_t i = 0; i < count; i++) e->plain[i] = (float)e->y0[i];
    e->rows = op_given_int(t, (size_t)s.N, e->index);
}

static void end(struct edited *e) {
    op_check(&e->t, e->y, "y", e->ref, e->plain);
    for (int r = 0; r < e->s.N; r++)
        for (int c = 0; c < e->s.C && !e->chosen[r]; c++)
            if (e->y->real[r * e->s.C + c] != e->y0[r * e->s.C + c]) {
                op_fail(&e->t, "row %d was not chosen and changed", r);
                break;
            }
    free(e->chosen);
    op_end(&e->t);
}

static void run_project(struct shape s, double amount) {
    struct edited e;
    begin(&e, amount == 1 ? "edit_project_out" : "edit_project_out part", s);
    double *u0 = op_ref(&e.t, (size_t)s.C), norm = 0;
    for (int c = 0; c < s.C; c++) {
        u0[c] = op_normal(&e.t);
        norm += u0[c] * u0[c];
    }
    for (int c = 0; c < s.C; c++) u0[c] /= sqrt(norm);
    struct op_buffer *u = op_given(&e.t, OP_REAL, (size_t)s.C, u0);
    OP_RUN(&e.t, edit_project_out(e.t.dev, e.y->p, e.rows->p, u->p, s.n, s.C, (float)amount));
    ref_edit_project_out(NULL, e.ref, e.index, u->real, s.n, s.C, (double)(float)amount);
    for (int i = 0; i < s.n; i++) {
        float *row = e.plain + e.index[i] * s.C, dot = 0;
        for (int c = 0; c < s.C; c++) dot += row[c] * (float)u->real[c];
        for (int c = 0; c < s.C; c++) row[c] = op_round(OP_ACT, row[c] - (float)amount * dot * (float)u->real[c]);
    }
    end(&e);
}

static void test_project(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++) run_project(shapes[i], 1), run_project(shapes[i], -0.7);
}

static void test_add_and_replace(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++) {
        struct edited e;
        const struct shape s = shapes[i];
        begin(&e, "edit_add", s);
        struct op_buffer *v = op_input(&e.t, OP_REAL, (size_t)s.C, s.scale);
        OP_RUN(&e.t, edit_add(e.t.dev, e.y->p, e.rows->p, v->p, s.n, s.C));
        ref_edit_add(NULL, e.ref, e.index, v->real, s.n, s.C);
        for (int j = 0; j < s.n; j++)
            for (int c = 0; c < s.C; c++) {
                float *at = e.plain + e.index[j] * s.C + c;
                *at = op_round(OP_ACT, *at + (float)v->real[c]);
            }
        end(&e);
        begin(&e, "edit_replace", s);
        struct op_buffer *x = op_input(&e.t, OP_REAL, (size_t)(s.n * s.C), s.scale);
        OP_RUN(&e.t, edit_replace(e.t.dev, e.y->p, e.rows->p, x->p, s.n, s.C));
        ref_edit_replace(NULL, e.ref, e.index, x->real, s.n, s.C);
        for (int k = 0; k < s.N * s.C; k++) e.ref[k] = e.plain[k] = op_round(OP_ACT, (float)e.ref[k]);
        op_check_exact(&e.t, e.y, "y", e.ref);
        end(&e);
    }
}

static void run_heads(int N, int n, int H, int D, int n_heads, bool mean) {
    struct edited e;
    begin(&e, mean ? "edit_heads mean" : "edit_heads zero", (struct shape){N, n, H * D, 1});
    int *heads = op_ints(&e.t, (size_t)n_heads);
    for (int j = 0; j < n_heads; j++) heads[j] = H - 1 - 2 * j;
    struct op_buffer *list = op_given_int(&e.t, (size_t)n_heads, heads), *value = op_input(&e.t, OP_REAL, (size_t)(H * D), 1);
    OP_RUN(&e.t, edit_heads(e.t.dev, e.y->p, e.rows->p, list->p, mean ? value->p : NULL, n, n_heads, H, D));
    ref_edit_heads(NULL, e.ref, e.index, heads, mean ? value->real : NULL, n, n_heads, H, D);
    for (int k = 0; k < N * H * D; k++) e.ref[k] = e.plain[k] = op_round(OP_ACT, (float)e.ref[k]);
    op_check_exact(&e.t, e.y, "y", e.ref);
    end(&e);
}

static void test_heads(void **state) {
    (void)state;
    for (int mean = 0; mean < 2; mean++)
        run_heads(1, 1, 1, 1, 1, mean), run_heads(9, 4, 5, 24, 2, mean), run_heads(30, 30, 8, 64, 4, mean), run_heads(3, 0, 2, 8, 1, mean),
            run_heads(7, 3, 33, 128, 17, mean);
}

/* Codes with K slots a row, some unused, over M features; F of them are edited, the first listed in every row that has room. */
static void run_features(struct shape s, int K, int M, int F, float value, bool clamp) {
    struct edited e;
    begin(&e, clamp ? "edit_features clamp" : "edit_features scale", s);
    const size_t slots = (size_t)(s.n * K) + 1;
    int *code = op_ints(&e.t, slots), *feature = op_ints(&e.t, (size_t)F);
    double *z = op_ref(&e.t, slots);
    for (int j = 0; j < F; j++) feature[j] = (M - 1 - 3 * j % M + M) % M;
    for (size_t i = 0; i < slots; i++) code[i] = -1, z[i] = 0;
    for (int i = 0; i < s.n; i++)
        for (int k = 0, f = op_below(&e.t, M); k < K - i % 2; k++, f = (f + 1) % M) code[i * K + k] = f, z[i * K + k] = op_uniform(&e.t);
    struct op_buffer *indices = op_given_int(&e.t, slots, code), *values = op_given(&e.t, OP_REAL, slots, z);
    struct op_buffer *list = op_given_int(&e.t, (size_t)F, feature), *D = op_input(&e.t, OP_REAL, (size_t)(F * s.C), 1);
    const size_t weights = (size_t)(s.n * F) + 1;
    struct op_buffer *c = op_output(&e.t, OP_BYTES, weights * sizeof(float));
    OP_RUN(&e.t, edit_features(e.t.dev, e.y->p, e.rows->p, c->p, indices->p, values->p, list->p, D->p, s.n, s.C, K, F, value, clamp));
    double *ref_c = op_ref(&e.t, weights);
    ref_edit_features(NULL, e.ref, e.index, ref_c, code, values->real, feature, D->real, s.n, s.C, K, F, (double)value, clamp);
    for (int i = 0; i < s.n; i++)
        for (int k = 0; k < s.C; k++) {
            float *at = e.plain + e.index[i] * s.C + k, sum = *at;
            for (int j = 0; j < F; j++) {
                float found = 0;
                for (int l = 0; l < K; l++)
                    if (code[i * K + l] == feature[j]) found = (float)values->real[i * K + l];
                sum += (clamp ? value - found : (value - 1) * found) * (float)D->real[j * s.C + k];
            }
            *at = op_round(OP_ACT, sum);
        }
    end(&e);
}

static void test_features(void **state) {
    (void)state;
    for (int i = 0; i < SHAPES; i++) {
        run_features(shapes[i], 5, 12, 3, 0, false);
        run_features(shapes[i], 5, 12, 3, 2.5f, true);
    }
    run_features((struct shape){20, 11, 96, 1}, 50, 1000, 41, -1, false);
    run_features((struct shape){20, 11, 96, 1}, 1, 1, 1, 0, true);
    run_features((struct shape){300, 260, 72, 1}, 8, 40, 9, 3, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_project), cmocka_unit_test(test_add_and_replace), cmocka_unit_test(test_heads),
                                       cmocka_unit_test(test_features)};
    return cmocka_run_group_tests_name("edit", tests, NULL, NULL);
}
