/* attribute_map.c - attention of chosen heads to the picture (attribute.h): p[i,j] = exp(scale q_i . k_j - lse_i), formed on the host
 * from what the pass kept, for the queries behind the image and the keys of the image. */
#include "analysis/attribute.h"
#include "host/file.h"
#include "kernels/activation.h"
#include "models/llama_backward.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int nothing(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    (void)context, (void)dev, (void)layer, (void)x, (void)rows, (void)width, (void)b, (void)err;
    return 0;
}

static int copy_rows(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    struct buffer *to = context;
    const size_t bytes = (size_t)rows * (size_t)width * sizeof(act_t);
    (void)layer, (void)b;
    if (buffer_reserve(to, dev, bytes, "a stream", err)) return -1;
    device_copy(dev, to->data, x, bytes);
    return 0;
}

/* n elements of an act tensor as f32 on the host, malloced. */
static float *fetch(struct device *dev, struct buffer *staging, const act_t *x, size_t n, struct error *err) {
    const void *from = x;
    if (sizeof(act_t) != sizeof(float)) {
        if (buffer_reserve(staging, dev, n * sizeof(real_t), "attention on its way from the device", err)) return NULL;
        real_from_act(dev, staging->data, x, n);
        from = staging->data;
    }
    float *out = memory_take(n, sizeof *out);
    device_download(dev, out, from, n * sizeof *out);
    return out;
}

/* One head's weights (rows) from q (T, H, D), k (T, G, D), lse (T, H). */
static void head_weights(float *to, const float *q, const float *k, const float *lse, int h, const struct model *m, const struct batch *b,
                         const uint8_t *after) {
    const int H = m->n_heads, G = m->n_kv_heads, D = m->head_dim, g = h / (H / G);
    int behind = 0, row = 0;
    for (int t = 0; t < b->n_tokens; t++) behind += after[t];
    for (int j = 0; j < b->n_tokens; j++) {
        double sum = 0;
        if (b->ids[j] != IMAGE_TOKEN) continue;
        for (int i = j + 1; i < b->n_tokens; i++) {
            double dot = 0;
            if (!after[i]) continue;
            for (int d = 0; d < D; d++) dot += (double)q[(i * H + h) * D + d] * (double)k[(j * G + g) * D + d];
            sum += exp(dot / sqrt(D) - (double)lse[i * H + h]);
        }
        to[row++] = (float)(sum / behind);
    }
}

int attribute_attention(struct model *m, const struct batch *b, const struct attribute_head *heads, int n, float **weights, int *rows,
                        struct error *err) {
    struct llama_tape tape = {0};
    struct llama_rows index;
    struct buffer staging = {0}, stream = {0};
    const size_t N = (size_t)b->n_tokens, H = (size_t)m->n_heads, G = (size_t)m->n_kv_heads, D = (size_t)m->head_dim;
    uint8_t *after = memory_take(N, 1);
    int layers = 0, behind = 0, status = -1;
    *weights = NULL;
    *rows = 0;
    for (int i = 0; i < n; i++) layers = heads[i].layer >= layers ? heads[i].layer + 1 : layers;
    batch_after_image(b, after);
    for (int t = 0; t < b->n_tokens; t++) behind += after[t], *rows += b->ids[t] == IMAGE_TOKEN;
    if (!behind || n == 0) *rows = 0;
    if (*rows == 0) {
        free(after);
        return 0;
    }
    *weights = memory_take((size_t)n * (size_t)*rows, sizeof **weights);
    const struct probe first = {PROBE_EMBED, -1, copy_rows, &stream}, end = {PROBE_ATTN_Z, layers - 1, nothing, NULL};
    const struct probes last = {&end, 1, b};
    if (model_forward(m, b, &first, 1, NULL, err) || model_rows(m, b, &index, err) ||
        llama_tape_reserve(&tape, m->llm, m->dev, b->n_tokens, layers, SIZE_MAX, err))
        goto cleanup;
    index.stream = stream.data;
    index.keep = tape.layer;
    if (llama_forward(m->llm, m->dev, &index, &last, NULL, err)) goto cleanup;
    for (int i = 0; i < n; i++) {
        const struct llama_kept *kept = &tape.layer[heads[i].layer];
        float *q = fetch(m->dev, &staging, kept->q, N * H * D, err), *k = q ? fetch(m->dev, &staging, kept->k, N * G * D, err) : NULL,
              *lse = memory_take(N * H, sizeof *lse);
        if (k) {
            device_download(m->dev, lse, kept->lse, N * H * sizeof *lse);
            head_weights(*weights + (size_t)i * (size_t)*rows, q, k, lse, heads[i].head, m, b, after);
        }
        free(q);
        free(lse);
        if (!k) goto cleanup;
        free(k);
    }
    status = 0;
cleanup:
    free(after);
    buffer_free(&staging, m->dev);
    buffer_free(&stream, m->dev);
    llama_tape_free(&tape, m->dev);
    return status;
}
