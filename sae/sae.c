/* sae.c - a dictionary on the device: upload, encode; and its random start. */
#include "sae/sae.h"
#include "host/file.h"
#include "kernels/check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/sae_ops.h"

const char *sae_format_name(enum sae_format f) { return f == SAE_FORMAT_LLAMA_SCOPE ? "Llama Scope v1" : "SAELens"; }

const char *sae_activation_name(enum sae_activation a) { return a == SAE_TOPK ? "topk" : a == SAE_JUMPRELU ? "jumprelu" : "relu"; }

void sae_host_free(struct sae_host *s) {
    float *arrays[] = {s->E, s->D, s->b_e, s->b_d, s->threshold, s->rank_scale};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    s->E = s->D = s->b_e = s->b_d = s->threshold = s->rank_scale = NULL;
}

/* splitmix64 (Steele, Lea & Flood 2014) */
static uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A normal variate as the sum of 12 uniforms less 6: additions alone, so the same bits on every machine. */
static double random_normal(uint64_t *state) {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += (double)(random_bits(state) >> 11) * 0x1p-53;
    return sum;
}

int sae_random(struct sae_host *s, int d, int M, int K, unsigned long seed, struct error *err) {
    if (d < 1 || M < 1 || K < 1 || K > M)
        return fail(err, "a random dictionary needs d_model >= 1 and 1 <= k <= features; found d_model %d, features %d, k %d", d, M, K);
    size_t n = (size_t)M * (size_t)d;
    memset(s, 0, sizeof *s);
    s->format = SAE_FORMAT_SAELENS;
    s->activation = SAE_TOPK;
    s->d = d, s->M = M, s->K = K, s->layer = -1;
    s->E = memory_take(n, sizeof *s->E);
    s->D = memory_take(n, sizeof *s->D);
    s->b_e = memory_take((size_t)M, sizeof *s->b_e);
    s->b_d = memory_take((size_t)d, sizeof *s->b_d);
#pragma omp parallel for schedule(static)
    for (int f = 0; f < M; f++) {
        uint64_t state = (uint64_t)seed;
        state = random_bits(&state) + (uint64_t)f * 0xd1342543de82ef95u;
        float *row = s->D + (size_t)f * (size_t)d;
        double norm = 0;
        for (int c = 0; c < d; c++) {
            row[c] = (float)random_normal(&state);
            norm += (double)row[c] * (double)row[c];
        }
        norm = norm > 0 ? sqrt(norm) : 1;
        for (int c = 0; c < d; c++) row[c] = (float)((double)row[c] / norm);
    }
    memcpy(s->E, s->D, n * sizeof *s->E);
    return 0;
}

int sae_make_topk(struct sae_host *s, int k, struct error *err) {
    free(s->threshold);
    s->threshold = NULL;
    if (s->activation != SAE_TOPK || k > 0 || s->K == 0) s->K = k > 0 ? k : s->activation == SAE_TOPK && s->K > 0 ? s->K : 50;
    s->activation = SAE_TOPK;
    if (s->K > s->M) return fail(err, "k is %d but the dictionary has %d features; give a smaller k", s->K, s->M);
    return 0;
}

static size_t round_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

size_t sae_device_bytes(int d, int M, bool bf16_products) {
    size_t n = (size_t)M * (size_t)d;
    return 2 * round_up(n * sizeof(real_t)) + 3 * round_up((size_t)M * sizeof(real_t)) + round_up((size_t)d * sizeof(real_t)) +
           (bf16_products ? round_up(n * sizeof(bf16)) : 0);
}

static int put(struct device *dev, float **dst, const float *src, size_t n, struct error *err) {
    *dst = NULL;
    if (!src) return 0;
    *dst = device_alloc(dev, n * sizeof **dst);
    if (!*dst)
        return fail(err, "%s: a dictionary needs %zu more bytes, %zu are free; use fewer layers or a smaller batch", device_name(dev),
                    n * sizeof **dst, device_memory_free(dev));
    device_upload(dev, *dst, src, n * sizeof **dst);
    return 0;
}

/* Round to nearest even, NaN kept: the same bits as the update kernels' low-precision copy. */
static uint16_t bf16_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static int put_low(struct sae *dst, const float *E, struct error *err) {
    size_t n = (size_t)dst->M * (size_t)dst->d;
    dst->E_low = device_alloc(dst->dev, n * sizeof(bf16));
    if (!dst->E_low)
        return fail(err, "%s: the bf16 encoder needs %zu more bytes, %zu are free", device_name(dst->dev), n * sizeof(bf16),
                    device_memory_free(dst->dev));
    sae_refresh_low(dst, E);
    return 0;
}

void sae_refresh_low(struct sae *s, const float *E) {
    size_t n = (size_t)s->M * (size_t)s->d;
    if (!s->E_low) return;
    bf16 *low = memory_take(n, sizeof *low);
    for (size_t i = 0; i < n; i++) low[i].bits = bf16_bits(E[i]);
    device_upload(s->dev, s->E_low, low, n * sizeof *low);
    free(low);
}

static int reserve_scratch(struct sae *s, int K, struct error *err) {
    size_t bytes = OP(sae_encode_scratch)(s->max_rows, s->d, s->M, K);
    if (bytes <= s->scratch_bytes) return 0;
    CHECK(!s->scratch_borrowed, "K=%d needs %zu bytes of scratch, %zu lent", K, bytes, s->scratch_bytes);
    device_sync(s->dev);
    device_free(s->dev, s->scratch);
    s->scratch_bytes = 0;
    s->scratch = device_alloc(s->dev, bytes);
    if (!s->scratch)
        return fail(err, "%s: encoding %d rows needs %zu more bytes, %zu are free; use a smaller batch", device_name(s->dev), s->max_rows,
                    bytes, device_memory_free(s->dev));
    s->scratch_bytes = bytes;
    return 0;
}

int sae_upload(struct sae *dst, struct device *dev, const struct sae_host *s, int max_rows, bool bf16_products, struct error *err) {
    size_t M = (size_t)s->M, d = (size_t)s->d;
    float *zeros = NULL;
    memset(dst, 0, sizeof *dst);
    dst->dev = dev, dst->activation = s->activation;
    dst->d = s->d, dst->M = s->M, dst->K = s->K, dst->max_rows = max_rows;
    if (s->activation == SAE_RELU) zeros = memory_take(M, sizeof *zeros);
    int status = put(dev, &dst->E, s->E, M * d, err) || put(dev, &dst->D, s->D, M * d, err) || put(dev, &dst->b_e, s->b_e, M, err) ||
                 put(dev, &dst->b_d, s->b_d, d, err) || put(dev, &dst->threshold, zeros ? zeros : s->threshold, M, err) ||
                 put(dev, &dst->rank_scale, s->rank_scale, M, err) || (bf16_products && put_low(dst, s->E, err)) ||
                 (max_rows > 0 && reserve_scratch(dst, s->K > 0 ? s->K : 1, err));
    free(zeros);
    if (status) sae_free(dst);
    return status ? -1 : 0;
}

void sae_free(struct sae *s) {
    void *arrays[] = {s->E, s->D, s->b_e, s->b_d, s->threshold, s->rank_scale, s->E_low, s->scratch_borrowed ? NULL : s->scratch};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) device_free(s->dev, arrays[i]);
    memset(s, 0, sizeof *s);
}

void sae_encode(struct sae *s, int *indices, float *values, int *counts, const void *x, int N, int K) {
    struct error err = {{0}};
    CHECK(N <= s->max_rows, "N=%d max_rows=%d", N, s->max_rows);
    CHECK(K >= 1 && K <= s->M, "K=%d M=%d", K, s->M);
    if (reserve_scratch(s, K, &err)) CHECK(false, "%s", err.text);
    if (s->activation == SAE_TOPK)
        OP(sae_encode_topk)(s->dev, indices, values, x, s->E, s->E_low, s->b_e, s->rank_scale, N, s->d, s->M, K, s->scratch);
    else
        OP(sae_encode_jumprelu)(s->dev, indices, values, counts, x, s->E, s->E_low, s->b_e, s->threshold, N, s->d, s->M, K, s->scratch);
}
