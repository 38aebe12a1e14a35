/* clip.c - CLIP's vision tower (clip.h). x0 = layernorm([class; patches] + position), then per layer
 *   x += o . attention(q, k, v) + b,      q, k, v = qkv . layernorm1(x) + b
 *   x += fc2 . gelu(fc1 . layernorm2(x) + b) + b,   gelu(a) = a sigmoid(1.702 a) (quick_gelu) */
#include "models/clip.h"
#include "host/file.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void layout_weights(struct clip *m, struct arena *a) {
    const size_t C = (size_t)m->config.C, F = (size_t)m->config.F, P = (size_t)m->config.P;
    m->class_row = arena_acts(a, 1, C);
    m->patch = arena_acts(a, C, 3 * P * P);
    m->position = arena_acts(a, 1 + (size_t)m->patches, C);
    m->pre_norm_w = arena_acts(a, 1, C);
    m->pre_norm_b = arena_acts(a, 1, C);
    for (int l = 0; l < m->config.L; l++) {
        struct clip_layer *y = &m->layer[l];
        y->norm1_w = arena_acts(a, 1, C);
        y->norm1_b = arena_acts(a, 1, C);
        y->qkv = arena_acts(a, 3 * C, C);
        y->qkv_b = arena_acts(a, 3, C);
        y->o = arena_acts(a, C, C);
        y->o_b = arena_acts(a, 1, C);
        y->norm2_w = arena_acts(a, 1, C);
        y->norm2_b = arena_acts(a, 1, C);
        y->fc1 = arena_acts(a, F, C);
        y->fc1_b = arena_acts(a, 1, F);
        y->fc2 = arena_acts(a, C, F);
        y->fc2_b = arena_acts(a, 1, C);
    }
}

static int patches_of(const struct clip_config *c) { return (c->S / c->P) * (c->S / c->P); }

size_t clip_weight_bytes(const struct clip_config *c) {
    struct clip m = {.config = *c, .patches = patches_of(c)};
    struct arena a = {0};
    m.layer = memory_take((size_t)c->L, sizeof *m.layer);
    layout_weights(&m, &a);
    free(m.layer);
    return a.used;
}

static act_t *offset(act_t *p, size_t elements) { return p ? p + elements : NULL; }

static void place_weights(struct clip *m, struct weights *w, const char *p) {
    const int C = m->config.C, F = m->config.F, P = m->config.P;
    const size_t c = (size_t)C;
    char misspelt[256];
    snprintf(misspelt, sizeof misspelt, "%spre_layrnorm.weight", p); /* the published key is misspelt; some converters mend it */
    const char *pre = tensors_find(w->st, misspelt) ? "pre_layrnorm" : "pre_layernorm";
    snprintf(misspelt, sizeof misspelt, "%spre_layernorm.weight", p);
    if (!tensors_find(w->st, misspelt)) pre = "pre_layrnorm";
    weights_place(w, m->class_row, SHAPE1(C), p, "embeddings.class_embedding");
    weights_place(w, m->patch, SHAPE4(C, 3, P, P), p, "embeddings.patch_embedding.weight");
    weights_place(w, m->position, SHAPE2(1 + m->patches, C), p, "embeddings.position_embedding.weight");
    weights_place(w, m->pre_norm_w, SHAPE1(C), p, "%s.weight", pre);
    weights_place(w, m->pre_norm_b, SHAPE1(C), p, "%s.bias", pre);
    for (int l = 0; l < m->config.L; l++) {
        struct clip_layer *y = &m->layer[l];
        static const char *const qkv[] = {"q", "k", "v"};
        weights_place(w, y->norm1_w, SHAPE1(C), p, "encoder.layers.%d.layer_norm1.weight", l);
        weights_place(w, y->norm1_b, SHAPE1(C), p, "encoder.layers.%d.layer_norm1.bias", l);
        for (size_t i = 0; i < 3; i++) {
            weights_place(w, offset(y->qkv, i * c * c), SHAPE2(C, C), p, "encoder.layers.%d.self_attn.%s_proj.weight", l, qkv[i]);
            weights_place(w, offset(y->qkv_b, i * c), SHAPE1(C), p, "encoder.layers.%d.self_attn.%s_proj.bias", l, qkv[i]);
        }
        weights_place(w, y->o, SHAPE2(C, C), p, "encoder.layers.%d.self_attn.out_proj.weight", l);
        weights_place(w, y->o_b, SHAPE1(C), p, "encoder.layers.%d.self_attn.out_proj.bias", l);
        weights_place(w, y->norm2_w, SHAPE1(C), p, "encoder.layers.%d.layer_norm2.weight", l);
        weights_place(w, y->norm2_b, SHAPE1(C), p, "encoder.layers.%d.layer_norm2.bias", l);
        weights_place(w, y->fc1, SHAPE2(F, C), p, "encoder.layers.%d.mlp.fc1.weight", l);
        weights_place(w, y->fc1_b, SHAPE1(F), p, "encoder.layers.%d.mlp.fc1.bias", l);
        weights_place(w, y->fc2, SHAPE2(C, F), p, "encoder.layers.%d.mlp.fc2.weight", l);
        weights_place(w, y->fc2_b, SHAPE1(C), p, "encoder.layers.%d.mlp.fc2.bias", l);
    }
}

int clip_open(struct clip *m, const struct clip_config *config, struct weights *w, const char *prefix, struct error *err) {
    memset(m, 0, sizeof *m);
    m->config = *config;
    m->patches = patches_of(config);
    m->layer = memory_take((size_t)config->L, sizeof *m->layer);
    w->checking = true;
    place_weights(m, w, prefix);
    w->checking = false;
    if (w->faults || !w->dev) return w->faults ? -1 : 0;
    struct arena a = {0};
    layout_weights(m, &a);
    if (buffer_reserve(&m->weights, w->dev, a.used, "the vision tower's weights", err)) return -1;
    a = (struct arena){.base = m->weights.data};
    layout_weights(m, &a);
    place_weights(m, w, prefix);
    return w->faults ? -1 : 0;
}

void clip_close(struct clip *m, struct device *dev) {
    free(m->layer);
    buffer_free(&m->weights, dev);
    buffer_free(&m->scratch, dev);
}

struct clip_scratch {
    real_t *pixels;       /* (B, 3, S, S) */
    act_t *cut;           /* (B*n, 3*P*P) */
    act_t *patches;       /* (B*n, C) */
    act_t *x, *h, *out;   /* (R, C) */
    act_t *qkv;           /* (R, 3C) */
    act_t *q, *k, *v, *z; /* (R, H, D) */
    act_t *f;             /* (R, F) */
    int *index;           /* (2B+1 + B*n): starts, lengths, rows without the class row */
};

static void layout_scratch(struct clip_scratch *s, struct arena *a, const struct clip *m, size_t B) {
    const struct clip_config *c = &m->config;
    const size_t C = (size_t)c->C, n = (size_t)m->patches, R = B * (1 + n), side = (size_t)c->S, cut = 3 * (size_t)c->P * (size_t)c->P;
    s->x = arena_acts(a, R, C);
    s->h = arena_acts(a, R, C);
    s->out = arena_acts(a, R, C);
    s->index = arena_take(a, (2 * B + 1 + B * n) * sizeof(int));
    const size_t shared = a->used; /* the stem, attention and the MLP are never alive together */
    s->pixels = arena_take(a, B * 3 * side * side * sizeof(real_t));
    s->cut = arena_acts(a, B * n, cut);
    s->patches = arena_acts(a, B * n, C);
    size_t end = a->used;
    a->used = shared;
    s->qkv = arena_acts(a, R, 3 * C);
    s->q = arena_acts(a, R, C);
    s->k = arena_acts(a, R, C);
    s->v = arena_acts(a, R, C);
    s->z = arena_acts(a, R, C);
    end = a->used > end ? a->used : end;
    a->used = shared;
    s->f = arena_acts(a, R, (size_t)c->F);
    a->used = a->used > end ? a->used : end;
}

size_t clip_scratch_bytes(const struct clip_config *c, int B) {
    const struct clip m = {.config = *c, .patches = patches_of(c)};
    struct clip_scratch s;
    struct arena a = {0};
    layout_scratch(&s, &a, &m, (size_t)B);
    return a.used;
}

static void layer_forward(const struct clip *m, struct device *dev, const struct clip_scratch *s, const struct clip_layer *w, int B,
                          int R) {
    const int C = m->config.C, H = m->config.H, D = m->config.D, F = m->config.F, T = 1 + m->patches;
    const float eps = m->config.eps;
    const size_t RC = (size_t)R * (size_t)C, RF = (size_t)R * (size_t)F;
    const int *start = s->index, *length = s->index + B + 1;
    layernorm_forward(dev, s->h, NULL, NULL, s->x, w->norm1_w, w->norm1_b, R, C, eps); /* h (R, C) */
    linear_forward(dev, s->qkv, s->h, w->qkv, w->qkv_b, R, C, 3 * C);                  /* qkv (R, 3C) */
    qkv_split_rope(dev, s->q, s->k, s->v, s->qkv, NULL, NULL, NULL, R, H, H, D);       /* q, k, v (R, H, D) */
    attention_forward(dev, s->z, NULL, s->q, s->k, s->v, start, start, length, B, T, H, H, D, 1 / sqrtf((real_t)D), false);
    linear_forward(dev, s->out, s->z, w->o, w->o_b, R, C, C); /* out (R, C) */
    residual_add(dev, s->x, s->x, s->out, RC);
    layernorm_forward(dev, s->h, NULL, NULL, s->x, w->norm2_w, w->norm2_b, R, C, eps);
    linear_forward(dev, s->f, s->h, w->fc1, w->fc1_b, R, C, F); /* f (R, F) */
    if (m->config.exact_gelu)
        gelu_forward(dev, s->f, s->f, RF);
    else
        quick_gelu_forward(dev, s->f, s->f, RF);
    linear_forward(dev, s->out, s->f, w->fc2, w->fc2_b, R, F, C);
    residual_add(dev, s->x, s->x, s->out, RC);
}

/* The layers anyone needs: `layers`, or up to the last vision probe. */
static int layers_needed(const struct clip *m, int layers, const struct probes *probes) {
    for (int i = 0; i < probes->n; i++)
        if (probes->at[i].point == PROBE_VISION_RESID) {
            const int want = probes->at[i].layer < 0 ? m->config.L : probes->at[i].layer + 1;
            layers = want > layers ? want : layers;
        }
    return layers;
}

static void upload_index(const struct clip *m, struct device *dev, const struct clip_scratch *s, int B) {
    const int n = m->patches, T = 1 + n;
    const size_t count = 2 * (size_t)B + 1 + (size_t)B * (size_t)n;
    int *start = memory_take(count, sizeof *start), *length = start + B + 1, *rows = length + B;
    for (int b = 0; b <= B; b++) start[b] = b * T;
    for (int b = 0; b < B; b++) length[b] = T;
    for (int b = 0; b < B; b++)
        for (int i = 0; i < n; i++) rows[b * n + i] = b * T + 1 + i;
    device_upload(dev, s->index, start, count * sizeof *start);
    free(start);
}

int clip_forward(struct clip *m, struct device *dev, act_t *selected, const float *pixels, int B, int layers, bool keep_class,
                 const struct probes *probes, struct error *err) {
    const struct clip_config *c = &m->config;
    const int n = m->patches, C = c->C, R = B * (1 + n), side = c->S, last = layers_needed(m, layers, probes);
    struct clip_scratch s;
    struct arena a = {0};
    layout_scratch(&s, &a, m, (size_t)B);
    if (buffer_reserve(&m->scratch, dev, a.used, "activations of the vision tower", err)) return -1;
    a = (struct arena){.base = m->scratch.data};
    layout_scratch(&s, &a, m, (size_t)B);
    upload_index(m, dev, &s, B);
    device_upload(dev, s.pixels, pixels, (size_t)B * 3 * (size_t)side * (size_t)side * sizeof *pixels);
    patch_extract(dev, s.cut, s.pixels, B, side, c->P);                               /* cut (B*n, 3*P*P) */
    linear_forward(dev, s.patches, s.cut, m->patch, NULL, B * n, 3 * c->P * c->P, C); /* patches (B*n, C) */
    vision_embed_forward(dev, s.x, s.patches, m->class_row, m->position, B, n, C);    /* x (R, C) */
    layernorm_forward(dev, s.x, NULL, NULL, s.x, m->pre_norm_w, m->pre_norm_b, R, C, c->eps);
    for (int l = 0; l <= last; l++) {
        if (l > 0) {
            layer_forward(m, dev, &s, &m->layer[l - 1], B, R);
            if (probes_run(probes, dev, PROBE_VISION_RESID, l - 1, s.x, R, C, err)) return -1;
        }
        if (l != layers || !selected) continue;
        if (keep_class)
            device_copy(dev, selected, s.x, (size_t)R * (size_t)C * sizeof *selected);
        else
            gather_rows(dev, selected, s.x, s.index + 2 * B + 1, B * n, C); /* selected (B*n, C) */
    }
    return 0;
}
