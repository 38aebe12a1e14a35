/* test_attention.c - attention_forward against the oracle: packing, grouped heads, causal ends, decoding. */
#include "tests/kernels/op_test.h"

#include "kernels/attention.h"
#include "kernels/ref_begin.h"
#include "kernels/attention.h"
#include "kernels/ref_end.h"
#include "kernels/variant.h"

struct sequence {
    int queries, keys;
};
struct row {
    const char *what;
    struct sequence sequence[4];
    int S, H, G, D;
    bool causal;
    double scale; /* of the inputs */
};

/* Two-pass softmax in f32, probabilities rounded to act before they meet v, as an unfused implementation stores them. */
static void plain_attention(float *z, float *lse, const double *q, const double *k, const double *v, const int *q_start, const int *k_start,
                            const int *k_length, const struct row *c, float scale) {
    int H = c->H, G = c->G, D = c->D;
    for (int s = 0; s < c->S; s++)
        for (int n = q_start[s]; n < q_start[s + 1]; n++)
            for (int h = 0; h < H; h++) {
                int keys = c->causal ? n - q_start[s] + 1 + k_length[s] - (q_start[s + 1] - q_start[s]) : k_length[s], g = h / (H / G);
                float *p = malloc((size_t)keys * sizeof(float)), top = -INFINITY, sum = 0;
                for (int j = 0; j < keys; j++) {
                    const double *a = q + (n * H + h) * D, *b = k + ((k_start[s] + j) * G + g) * D;
                    float dot = 0;
                    for (int d = 0; d < D; d++) dot += (float)a[d] * (float)b[d];
                    p[j] = dot * scale;
                    top = fmaxf(top, p[j]);
                }
                for (int j = 0; j < keys; j++) sum += p[j] = expf(p[j] - top);
                for (int d = 0; d < D; d++) {
                    float acc = 0;
                    for (int j = 0; j < keys; j++) acc += op_round(OP_ACT, p[j] / sum) * (float)v[((k_start[s] + j) * G + g) * D + d];
                    z[(n * H + h) * D + d] = op_round(OP_ACT, acc);
                }
                lse[n * H + h] = top + logf(sum);
                free(p);
            }
}

static void run(const struct row *c, int variant) {
    struct op_test t;
    op_begin(&t, "attention %s%s%s S=%d H=%d G=%d D=%d %s scale=%g", variant >= 0 ? attention_variant(variant) : "",
             variant >= 0 ? " " : "", c->what, c->S, c->H, c->G, c->D, c->causal ? "causal" : "all", c->scale);
    int q_start[5] = {0}, k_start[4], k_length[4], max_q = 0, keys = 3; /* keys nobody may see before the first sequence */
    for (int s = 0; s < c->S; s++) {
        q_start[s + 1] = q_start[s] + c->sequence[s].queries;
        k_start[s] = keys, k_length[s] = c->sequence[s].keys;
        keys += c->sequence[s].keys + 5; /* and between them: a cache with room */
        if (c->sequence[s].queries > max_q) max_q = c->sequence[s].queries;
    }
    int rows = q_start[c->S], stride = c->G * c->D;
    size_t zn = (size_t)(rows * c->H * c->D), kn = (size_t)(keys * stride);
    double *key_values = op_ref(&t, kn), *value_values = op_ref(&t, kn); /* NaN where no sequence has keys */
    for (int s = 0; s < c->S; s++)
        for (int j = k_start[s] * stride; j < (k_start[s] + k_length[s]) * stride; j++)
            key_values[j] = c->scale * op_normal(&t), value_values[j] = c->scale * op_normal(&t);
    struct op_buffer *q = op_input(&t, OP_ACT, zn, c->scale), *k = op_given(&t, OP_ACT, kn, key_values),
                     *v = op_given(&t, OP_ACT, kn, value_values);
    struct op_buffer *qs = op_given_int(&t, (size_t)c->S + 1, q_start), *ks = op_given_int(&t, (size_t)c->S, k_start),
                     *kl = op_given_int(&t, (size_t)c->S, k_length);
    struct op_buffer *z = op_output(&t, OP_ACT, zn), *lse = op_output(&t, OP_REAL, (size_t)(rows * c->H));
    device_force_variant(t.dev, variant);
    double scale = (double)(1.0f / sqrtf((float)c->D));
    OP_RUN(&t, attention_forward(t.dev, z->p, lse->p, q->p, k->p, v->p, qs->p, ks->p, kl->p, c->S, max_q, c->H, c->G, c->D, (float)scale,
                                 c->causal));
    double *ref_z = op_ref(&t, zn), *ref_lse = op_ref(&t, lse->n);
    float *plain_z = op_plain(&t, zn), *plain_lse = op_plain(&t, lse->n);
    ref_attention_forward(NULL, ref_z, ref_lse, q->real, k->real, v->real, q_start, k_start, k_length, c->S, max_q, c->H, c->G, c->D, scale,
                          c->causal);
    plain_attention(plain_z, plain_lse, q->real, k->real, v->real, q_start, k_start, k_length, c, (float)scale);
    op_check(&t, z, "z", ref_z, plain_z);
    op_check(&t, lse, "lse", ref_lse, plain_lse);
    if (variant < 0)
        OP_RUN(&t, attention_forward(t.dev, z->p, NULL, q->p, k->p, v->p, qs->p, ks->p, kl->p, c->S, max_q, c->H, c->G, c->D, (float)scale,
                                     c->causal));
    if (variant < 0) op_check(&t, z, "z without lse", ref_z, plain_z);
    device_force_variant(t.dev, -1);
    op_end(&t);
}

static void test_attention(void **state) {
    (void)state;
    static const struct row rows[] = {
        {"one token", {{1, 1}}, 1, 1, 1, 8, true, 1},
        {"short", {{7, 7}}, 1, 2, 2, 16, true, 1},
        {"one past a block", {{65, 65}}, 1, 2, 1, 64, true, 1},
        {"four turns", {{33, 257}}, 1, 2, 1, 32, true, 1},
        {"all", {{131, 131}}, 1, 3, 3, 64, false, 1},
        {"packed", {{17, 17}, {1, 1}, {64, 64}, {70, 70}}, 4, 4, 2, 32, true, 1},
        {"packed all", {{17, 17}, {33, 33}}, 2, 2, 1, 16, false, 1},
        {"decode", {{1, 300}, {1, 1}, {1, 63}, {1, 64}}, 4, 8, 2, 64, true, 1},
        {"continue", {{5, 100}, {70, 71}, {3, 130}}, 3, 6, 3, 32, true, 1},
        {"wide", {{67, 67}}, 1, 2, 1, 128, true, 1},
        {"D 72", {{66, 66}}, 1, 2, 1, 72, true, 1},
        {"D 80", {{35, 35}}, 1, 2, 2, 80, false, 1},
        {"D 256", {{33, 70}}, 1, 2, 1, 256, true, 1},
        {"D 24 tower", {{37, 37}, {37, 37}}, 2, 3, 3, 24, false, 1},
        {"one kv head", {{9, 70}}, 1, 71, 1, 64, true, 1},
        {"small", {{20, 90}}, 1, 2, 1, 32, true, 1e-3},
        {"peaked", {{20, 90}}, 1, 2, 1, 32, true, 10},
        {"one hot", {{20, 90}}, 1, 2, 1, 32, true, 1e3},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        run(&rows[i], -1);
        for (int v = 0; attention_variant(v); v++)
            if (v > 0 || rows[i].sequence[0].queries * rows[i].H < 300) run(&rows[i], v); /* row by row is slow under emulation */
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention)};
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
