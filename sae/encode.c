/* encode.c - a dictionary on the device: upload and encode.
 *
 * topk, jumprelu and relu are one operation each. The others take a detour over the same operations, exact and rarely used:
 *   signed    topk over the 2M features [E; -E]: the K largest |h|, each with its sign
 *   groupmax  top-1 of each group of features
 *   skip      W x = the pre-activations of a dictionary of encoder W, all of them active */
#include "sae/sae.h"
#include "host/file.h"
#include "host/check.h"
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/sae_ops.h"
#include "kernels/sae_slots.h"

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

/* Rows of the encoder: signed ones hold every row twice, the second time with its sign turned. */
static int encoder_rows(const struct sae *s) { return s->activation == SAE_SIGNED ? 2 * s->M : s->M; }

/* (M, width) of the encoder, with the turned rows where there are any. */
static int put_encoder(struct sae *s, float **dst, const float *src, size_t width, struct error *err) {
    size_t n = (size_t)s->M * width;
    if (s->activation != SAE_SIGNED) return put(s->dev, dst, src, n, err);
    float *both = memory_take(2 * n, sizeof *both);
    for (size_t i = 0; i < n; i++) both[i] = src[i], both[n + i] = -src[i];
    int status = put(s->dev, dst, both, 2 * n, err);
    free(both);
    return status;
}

static int put_low(struct sae *dst, const float *E, struct error *err) {
    size_t n = (size_t)encoder_rows(dst) * (size_t)dst->d;
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
    for (size_t i = 0; i < n; i++) low[i].bits ^= 0x8000;
    if (s->activation == SAE_SIGNED) device_upload(s->dev, (bf16 *)s->E_low + n, low, n * sizeof *low);
    free(low);
}

/* What one call needs: scratch of the operation, then slots that it fills before they are put in order. */
static size_t scratch_of(const struct sae *s, int K, size_t *slots) {
    const size_t slot = sizeof(int) + sizeof(real_t), rows = (size_t)s->max_rows;
    const bool groups = s->activation == SAE_GROUPMAX, both = s->activation == SAE_SIGNED;
    size_t bytes = round_up(OP(sae_encode_scratch)(s->max_rows, s->d, groups ? s->M / K : encoder_rows(s), groups ? 1 : K));
    *slots = bytes;
    return bytes + (groups || both ? rows * (size_t)K * slot : 0);
}

static size_t skip_scratch_of(const struct sae *s, size_t *slots) {
    *slots = round_up(OP(sae_encode_scratch)(s->max_rows, s->d, s->d, s->d));
    return *slots + (size_t)s->max_rows * ((size_t)s->d + 1) * sizeof(int);
}

size_t sae_scratch_bytes(const struct sae *s, int max_rows, int K) {
    struct sae shape = *s;
    shape.max_rows = max_rows;
    size_t slots, bytes = scratch_of(&shape, K, &slots), skip = s->skip ? skip_scratch_of(&shape, &slots) : 0;
    return skip > bytes ? skip : bytes;
}

static int reserve_scratch(struct sae *s, int K, struct error *err) {
    size_t bytes = sae_scratch_bytes(s, s->max_rows, K);
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

static int put_skip(struct sae *dst, const float *skip, struct error *err) {
    size_t d = (size_t)dst->d;
    if (!skip) return 0;
    float *lowest = memory_take(d, sizeof *lowest), *zeros = memory_take(d, sizeof *zeros);
    for (size_t i = 0; i < d; i++) lowest[i] = -FLT_MAX;
    int status = put(dst->dev, &dst->skip, skip, d * d, err) || put(dst->dev, &dst->skip_bias, zeros, d, err) ||
                 put(dst->dev, &dst->skip_threshold, lowest, d, err);
    free(lowest), free(zeros);
    return status;
}

int sae_upload(struct sae *dst, struct device *dev, const struct sae_host *s, int max_rows, bool bf16_products, struct error *err) {
    size_t M = (size_t)s->M, d = (size_t)s->d;
    float *zeros = NULL;
    memset(dst, 0, sizeof *dst);
    dst->dev = dev, dst->activation = s->activation;
    dst->d = s->d, dst->M = s->M, dst->K = s->K, dst->max_rows = max_rows;
    if (s->activation == SAE_RELU) zeros = memory_take(M, sizeof *zeros);
    int status = put_encoder(dst, &dst->E, s->E, d, err) || put(dev, &dst->D, s->D, M * d, err) ||
                 put_encoder(dst, &dst->b_e, s->b_e, 1, err) || put(dev, &dst->b_d, s->b_d, d, err) ||
                 put(dev, &dst->threshold, zeros ? zeros : s->threshold, M, err) || put(dev, &dst->rank_scale, s->rank_scale, M, err) ||
                 put_skip(dst, s->skip, err) || (bf16_products && put_low(dst, s->E, err)) ||
                 (max_rows > 0 && reserve_scratch(dst, s->K > 0 ? s->K : 1, err));
    free(zeros);
    if (status) sae_free(dst);
    return status ? -1 : 0;
}

void sae_free(struct sae *s) {
    void *arrays[] = {s->E,
                      s->D,
                      s->b_e,
                      s->b_d,
                      s->threshold,
                      s->rank_scale,
                      s->skip,
                      s->skip_bias,
                      s->skip_threshold,
                      s->E_low,
                      s->scratch_borrowed ? NULL : s->scratch};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) device_free(s->dev, arrays[i]);
    memset(s, 0, sizeof *s);
}

/* Each group's best feature: a dictionary of `size` features, k 1. */
static void encode_groups(struct sae *s, int *indices, float *values, int *best, float *best_values, const void *x, int N) {
    const int size = s->M / s->K;
    for (int g = 0; g < s->K; g++) {
        const size_t first = (size_t)g * (size_t)size, slots = (size_t)g * (size_t)N;
        const bf16 *low = s->E_low ? (const bf16 *)s->E_low + first * (size_t)s->d : NULL;
        OP(sae_encode_topk)
        (s->dev, best + slots, best_values + slots, x, s->E + first * (size_t)s->d, low, s->b_e + first, NULL, N, s->d, size, 1,
         s->scratch);
    }
    OP(sae_merge_groups)(s->dev, indices, values, best, best_values, N, s->K, size);
}

void sae_encode(struct sae *s, int *indices, float *values, int *counts, const void *x, int N, int K) {
    struct error err = {{0}};
    size_t at;
    CHECK(N <= s->max_rows, "N=%d max_rows=%d", N, s->max_rows);
    CHECK(K >= 1 && K <= s->M && (s->activation != SAE_GROUPMAX || (K == s->K && s->M % K == 0)), "K=%d M=%d", K, s->M);
    if (reserve_scratch(s, K, &err)) CHECK(false, "%s", err.text);
    scratch_of(s, K, &at);
    int *slots = (int *)(void *)((char *)s->scratch + at);
    float *slot_values = (float *)(void *)(slots + (size_t)s->max_rows * (size_t)K);
    switch (s->activation) {
    case SAE_TOPK:
        OP(sae_encode_topk)(s->dev, indices, values, x, s->E, s->E_low, s->b_e, s->rank_scale, N, s->d, s->M, K, s->scratch);
        break;
    case SAE_SIGNED:
        OP(sae_encode_topk)(s->dev, slots, slot_values, x, s->E, s->E_low, s->b_e, NULL, N, s->d, 2 * s->M, K, s->scratch);
        OP(sae_merge_signed)(s->dev, indices, values, slots, slot_values, N, s->M, K);
        break;
    case SAE_GROUPMAX:
        encode_groups(s, indices, values, slots, slot_values, x, N);
        break;
    case SAE_JUMPRELU:
    case SAE_RELU:
        OP(sae_encode_jumprelu)(s->dev, indices, values, counts, x, s->E, s->E_low, s->b_e, s->threshold, N, s->d, s->M, K, s->scratch);
    }
}

void sae_skip(struct sae *s, float *y, const void *x, int N) {
    struct error err = {{0}};
    size_t at;
    CHECK(s->skip && N <= s->max_rows, "N=%d max_rows=%d", N, s->max_rows);
    if (reserve_scratch(s, 1, &err)) CHECK(false, "%s", err.text);
    skip_scratch_of(s, &at);
    int *indices = (int *)(void *)((char *)s->scratch + at), *counts = indices + (size_t)s->max_rows * (size_t)s->d;
    OP(sae_encode_jumprelu)(s->dev, indices, y, counts, x, s->skip, NULL, s->skip_bias, s->skip_threshold, N, s->d, s->d, s->d, s->scratch);
}
