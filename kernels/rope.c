/* rope.c - see rope.h. Rotary embedding: Su et al. 2021, in the half-split layout of Hugging Face's rotate_half. */
#include "kernels/rope.h"

#include "host/check.h"
#include "kernels/cpu.h"

static void rotate(act_t *restrict y, const act_t *restrict x, const real_t *restrict c, const real_t *restrict s, int heads, int half) {
    for (int h = 0; h < heads; h++) {
        const act_t *a = x + cpu_offset(h, 2 * half), *b = a + half;
        act_t *p = y + cpu_offset(h, 2 * half), *q = p + half;
        for (int i = 0; i < half; i++) {
            p[i] = a[i] * c[i] - b[i] * s[i];
            q[i] = b[i] * c[i] + a[i] * s[i];
        }
    }
}

void OP(qkv_split_rope)(struct device *dev, act_t *q, act_t *k, act_t *v, const act_t *qkv, const int *position, const real_t *cosine,
                        const real_t *sine, int N, int H, int G, int D) {
    (void)dev;
    CHECK(D % 2 == 0 && !cosine == !sine, "D=%d", D);
    size_t q_width = (size_t)H * (size_t)D, k_width = (size_t)G * (size_t)D, width = q_width + 2 * k_width;
#pragma omp parallel for schedule(static) if ((size_t)N * width > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) {
        size_t row = (size_t)n;
        const act_t *in = qkv + row * width;
        if (cosine) {
            size_t at = (size_t)position[n] * (size_t)(D / 2);
            rotate(q + row * q_width, in, cosine + at, sine + at, H, D / 2);
            rotate(k + row * k_width, in + q_width, cosine + at, sine + at, G, D / 2);
        } else {
            memcpy(q + row * q_width, in, q_width * sizeof(act_t));
            memcpy(k + row * k_width, in + q_width, k_width * sizeof(act_t));
        }
        memcpy(v + row * k_width, in + q_width + k_width, k_width * sizeof(act_t));
    }
}

static void rotate_back(act_t *restrict x, const act_t *restrict y, const real_t *restrict c, const real_t *restrict s, int heads,
                        int half) {
    for (int h = 0; h < heads; h++) {
        const act_t *a = y + cpu_offset(h, 2 * half), *b = a + half;
        act_t *p = x + cpu_offset(h, 2 * half), *q = p + half;
        for (int i = 0; i < half; i++) {
            p[i] = a[i] * c[i] + b[i] * s[i];
            q[i] = b[i] * c[i] - a[i] * s[i];
        }
    }
}

void OP(qkv_split_rope_backward)(struct device *dev, act_t *dqkv, const act_t *dq, const act_t *dk, const act_t *dv, const int *position,
                                 const real_t *cosine, const real_t *sine, int N, int H, int G, int D) {
    (void)dev;
    CHECK(D % 2 == 0, "D=%d", D);
    size_t q_width = (size_t)H * (size_t)D, k_width = (size_t)G * (size_t)D, width = q_width + 2 * k_width;
#pragma omp parallel for schedule(static) if ((size_t)N * width > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) {
        size_t row = (size_t)n, at = (size_t)position[n] * (size_t)(D / 2);
        act_t *out = dqkv + row * width;
        rotate_back(out, dq + row * q_width, cosine + at, sine + at, H, D / 2);
        rotate_back(out + q_width, dk + row * k_width, cosine + at, sine + at, G, D / 2);
        memcpy(out + q_width + k_width, dv + row * k_width, k_width * sizeof(act_t));
    }
}
