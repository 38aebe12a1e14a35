/* llama.c - LLaMA forward (llama.h). One layer, x the residual stream (Touvron et al. 2023; HF modeling_llama):
 *   x += o . attention(rope(q), rope(k), v),   q, k, v = qkv . rmsnorm(x)
 *   x += down . (silu(gate) * up),             gate, up = gate_up . rmsnorm(x)
 * logits = head . rmsnorm(x). Sums in f32; stored activations in act_t. */
#include "models/llama.h"
#include "host/file.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "host/check.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "models/rope.h"
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void layout_weights(struct llama *m, struct arena *a, bool whole, bool own_head) {
    const struct llama_config *c = &m->config;
    const size_t C = (size_t)c->C, F = (size_t)c->F, V = (size_t)c->V, HD = (size_t)c->H * (size_t)c->D, GD = (size_t)c->G * (size_t)c->D;
    m->embed = arena_acts(a, V, C);
    for (int l = 0; l < m->layers; l++) {
        struct llama_layer *w = &m->layer[l];
        w->attn_norm = arena_acts(a, 1, C);
        w->qkv = arena_acts(a, HD + 2 * GD, C);
        w->o = arena_acts(a, C, HD);
        w->mlp_norm = arena_acts(a, 1, C);
        w->gate_up = arena_acts(a, 2 * F, C);
        w->down = arena_acts(a, C, F);
    }
    m->final_norm = whole ? arena_acts(a, 1, C) : NULL;
    m->head = !whole ? NULL : own_head ? arena_acts(a, V, C) : m->embed;
}

static act_t *rows_from(act_t *matrix, size_t row, size_t columns) { return matrix ? matrix + row * columns : NULL; }

static void place_weights(struct llama *m, struct weights *w, const struct weight_names *names, bool whole) {
    const struct llama_config *c = &m->config;
    const size_t C = (size_t)c->C, HD = (size_t)c->H * (size_t)c->D, GD = (size_t)c->G * (size_t)c->D;
    const int64_t hd = (int64_t)HD, gd = (int64_t)GD;
    const char *p = names->llm ? names->llm : "model.";
    weights_place(w, m->embed, SHAPE2(c->V, c->C), p, "embed_tokens.weight");
    for (int l = 0; l < m->layers; l++) {
        struct llama_layer *y = &m->layer[l];
        weights_place(w, y->attn_norm, SHAPE1(c->C), p, "layers.%d.input_layernorm.weight", l);
        weights_place(w, y->qkv, SHAPE2(hd, c->C), p, "layers.%d.self_attn.q_proj.weight", l);
        weights_place(w, rows_from(y->qkv, HD, C), SHAPE2(gd, c->C), p, "layers.%d.self_attn.k_proj.weight", l);
        weights_place(w, rows_from(y->qkv, HD + GD, C), SHAPE2(gd, c->C), p, "layers.%d.self_attn.v_proj.weight", l);
        weights_place(w, y->o, SHAPE2(c->C, hd), p, "layers.%d.self_attn.o_proj.weight", l);
        weights_place(w, y->mlp_norm, SHAPE1(c->C), p, "layers.%d.post_attention_layernorm.weight", l);
        weights_place(w, y->gate_up, SHAPE2(c->F, c->C), p, "layers.%d.mlp.gate_proj.weight", l);
        weights_place(w, rows_from(y->gate_up, (size_t)c->F, C), SHAPE2(c->F, c->C), p, "layers.%d.mlp.up_proj.weight", l);
        weights_place(w, y->down, SHAPE2(c->C, c->F), p, "layers.%d.mlp.down_proj.weight", l);
    }
    if (!whole) return;
    weights_place(w, m->final_norm, SHAPE1(c->C), p, "norm.weight");
    if (names->head || !c->tied) /* a head that is in the file wins over tying, as in transformers 5 */
        weights_place(w, m->head, SHAPE2(c->V, c->C), "", "%s", names->head ? names->head : "lm_head.weight");
}

int llama_open(struct llama *m, const struct llama_config *config, int layers, struct weights *w, const struct weight_names *names,
               struct error *err) {
    memset(m, 0, sizeof *m);
    m->config = *config;
    m->layers = layers > 0 && layers < config->L ? layers : config->L;
    const bool whole = m->layers == config->L;
    m->layer = memory_take((size_t)m->layers, sizeof *m->layer);
    w->checking = true;
    place_weights(m, w, names, whole);
    w->checking = false;
    if (w->faults || !w->dev) return w->faults ? -1 : 0;
    struct arena a = {0};
    const bool own_head = names->head || !config->tied;
    layout_weights(m, &a, whole, own_head);
    if (buffer_reserve(&m->weights, w->dev, a.used, "the language model's weights", err)) return -1;
    a = (struct arena){.base = m->weights.data};
    layout_weights(m, &a, whole, own_head);
    place_weights(m, w, names, whole);
    return w->faults ? -1 : 0;
}

size_t llama_weight_bytes(const struct llama_config *c, int layers, bool own_head) {
    struct llama m = {.config = *c, .layers = layers > 0 && layers < c->L ? layers : c->L};
    struct arena a = {0};
    m.layer = memory_take((size_t)m.layers, sizeof *m.layer);
    layout_weights(&m, &a, m.layers == c->L, own_head);
    free(m.layer);
    return a.used;
}

void llama_close(struct llama *m, struct device *dev) {
    free(m->layer);
    buffer_free(&m->weights, dev);
    buffer_free(&m->rope, dev);
    buffer_free(&m->scratch, dev);
    buffer_free(&m->logits, dev);
    buffer_free(&m->backward, dev);
}

int llama_reserve_positions(struct llama *m, struct device *dev, int positions, struct error *err) {
    if (positions <= m->positions) return 0;
    int n = 256;
    while (n < positions) n *= 2;
    const size_t half = (size_t)m->config.D / 2, count = (size_t)n * half, bytes = count * sizeof(real_t);
    float *host = memory_take(2 * count, sizeof *host);
    int status = buffer_reserve(&m->rope, dev, 2 * bytes, "rotary tables", err);
    if (!status) {
        rope_tables(host, host + count, &m->config.rope, n, m->config.D);
        device_upload(dev, m->rope.data, host, 2 * bytes);
        m->cosine = m->rope.data;
        m->sine = m->cosine + count;
        m->positions = n;
    }
    free(host);
    return status;
}

static void layout_scratch(struct llama_scratch *s, struct arena *a, const struct llama_config *c, size_t N, size_t S) {
    const size_t C = (size_t)c->C, F = (size_t)c->F, HD = (size_t)c->H * (size_t)c->D, GD = (size_t)c->G * (size_t)c->D;
    s->x = arena_acts(a, N, C);
    s->h = arena_acts(a, N, C);
    s->out = arena_acts(a, N, C);
    s->last = arena_acts(a, S, C);
    const size_t shared = a->used;
    s->qkv = arena_acts(a, N, HD + 2 * GD);
    s->q = arena_acts(a, N, HD);
    s->k = arena_acts(a, N, GD);
    s->v = arena_acts(a, N, GD);
    s->z = arena_acts(a, N, HD);
    const size_t attention_end = a->used;
    a->used = shared;
    s->gate_up = arena_acts(a, N, 2 * F);
    s->y = arena_acts(a, N, F);
    a->used = a->used > attention_end ? a->used : attention_end;
}

size_t llama_scratch_bytes(const struct llama_config *c, int N, int S) {
    struct llama_scratch s;
    struct arena a = {0};
    layout_scratch(&s, &a, c, (size_t)N, (size_t)S);
    return a.used;
}

/* ---- the pass ---- */
struct pass {
    struct llama *m;
    struct device *dev;
    const struct llama_rows *rows;
    const struct probes *probes;
    struct llama_scratch s;
    long until;  /* place of the last thing anyone asked for */
    int N;       /* rows of the stream: rows->N, after narrowing rows->S */
    bool narrow; /* only last_logits are asked for after the last layer's keys: its other work is done for the last rows alone */
    struct error *err;
};

static long place(int layer, enum probe_point point) { return (long)layer * PROBE_POINTS + (long)point; }

static long last_place(const struct llama *m, const struct probes *p, bool logits) {
    long until = logits ? LONG_MAX : LONG_MIN;
    for (int i = 0; i < p->n; i++) {
        const enum probe_point point = p->at[i].point;
        long at = LONG_MIN;
        if (p->at[i].layer == PROBE_EDIT) continue;
        if (point == PROBE_EMBED)
            at = place(-1, PROBE_EMBED);
        else if (point == PROBE_FINAL_NORM || point == PROBE_LOGITS)
            at = LONG_MAX;
        else if (point < PROBE_VISION_RESID)
            at = place(p->at[i].layer < 0 ? m->layers - 1 : p->at[i].layer, point);
        until = at > until ? at : until;
    }
    return until;
}

/* Runs the probes of a point. 0: go on, 1: nobody asked for anything later, -1: err. */
static int visit(struct pass *p, enum probe_point point, int layer, void *x, int width) {
    if (probes_run(p->probes, p->dev, point, layer, x, p->N, width, p->err)) return -1;
    return place(layer, point) >= p->until;
}

/* (N, C) stream to `to`; NULL: not kept */
static void keep_stream(const struct pass *p, act_t *to) {
    if (to && to != p->rows->stream) device_copy(p->dev, to, p->s.x, (size_t)p->N * (size_t)p->m->config.C * sizeof *to);
}

/* This layer's new keys and values go to their sequences' places in the cache; k, v then point at the layer's whole cache. */
static void store_keys(const struct pass *p, int layer, const act_t **k, const act_t **v) {
    const struct kv_cache *cache = p->rows->cache;
    const size_t width = (size_t)p->m->config.G * (size_t)p->m->config.D, base = (size_t)layer * cache->rows;
    for (int s = 0; s < p->rows->S; s++) {
        const size_t from = (size_t)cache->q_start[s] * width, to = (base + (size_t)cache->store_row[s]) * width;
        const size_t bytes = (size_t)(cache->q_start[s + 1] - cache->q_start[s]) * width * sizeof(act_t);
        device_copy(p->dev, cache->k + to, *k + from, bytes);
        device_copy(p->dev, cache->v + to, *v + from, bytes);
    }
    *k = cache->k + base * width;
    *v = cache->v + base * width;
}

/* From here on the stream and the queries are those of each sequence's last row; keys and values stay all rows'. */
static void narrow(struct pass *p) {
    const struct llama_config *c = &p->m->config;
    struct llama_scratch *s = &p->s;
    gather_rows(p->dev, s->last, s->x, p->rows->last, p->rows->S, c->C);       /* x (S, C) */
    gather_rows(p->dev, s->qkv, s->q, p->rows->last, p->rows->S, c->H * c->D); /* q (S, H, D), where qkv was */
    s->x = s->last;
    s->q = s->qkv;
    p->N = p->rows->S;
}

/* What this layer computes goes where the caller keeps it. */
static void keep_layer(struct pass *p, const struct llama_kept *k) {
    struct llama_scratch *s = &p->s;
    s->q = k->q, s->k = k->k, s->v = k->v, s->z = k->z, s->gate_up = k->gate_up;
    s->attn_rstd = k->attn_rstd, s->mlp_rstd = k->mlp_rstd, s->lse = k->lse;
    keep_stream(p, k->x);
}

static int attention_half(struct pass *p, int layer) {
    const struct llama *m = p->m;
    const struct llama_config *c = &m->config;
    const struct llama_layer *w = &m->layer[layer];
    const struct llama_rows *r = p->rows;
    struct llama_scratch *s = &p->s;
    struct device *dev = p->dev;
    const int C = c->C, H = c->H, G = c->G, D = c->D;
    const bool few = p->narrow && layer == c->L - 1;
    const act_t *k = s->k, *v = s->v;
    int N = p->N, done;
    rmsnorm_forward(dev, s->h, s->attn_rstd, s->x, w->attn_norm, N, C, c->eps);                 /* h (N, C) */
    linear_forward(dev, s->qkv, s->h, w->qkv, NULL, N, C, (H + 2 * G) * D);                     /* qkv (N, (H+2G)*D) */
    qkv_split_rope(dev, s->q, s->k, s->v, s->qkv, r->position, m->cosine, m->sine, N, H, G, D); /* q (N, H, D), k, v (N, G, D) */
    if (r->cache) store_keys(p, layer, &k, &v);
    if (few) {
        narrow(p);
        N = p->N;
    }
    attention_forward(dev, s->z, s->lse, s->q, k, v, few ? r->one_each : r->q_start, r->k_start, r->k_length, r->S, few ? 1 : r->max_q, H,
                      G, D, 1 / sqrtf((real_t)D), true);
    if ((done = visit(p, PROBE_ATTN_Z, layer, s->z, H * D))) /* z (N, H, D) */
        return done;
    linear_forward(dev, s->out, s->z, w->o, NULL, N, H * D, C); /* out (N, C) */
    if ((done = visit(p, PROBE_ATTN_OUT, layer, s->out, C))) return done;
    residual_add(dev, s->x, s->x, s->out, (size_t)N * (size_t)C);
    done = visit(p, PROBE_RESID_MID, layer, s->x, C);
    if (r->keep) keep_stream(p, r->keep[layer].mid);
    return done;
}

static int mlp_half(struct pass *p, int layer) {
    const struct llama_config *c = &p->m->config;
    const struct llama_layer *w = &p->m->layer[layer];
    struct llama_scratch *s = &p->s;
    struct device *dev = p->dev;
    const int N = p->N, C = c->C, F = c->F;
    int done;
    rmsnorm_forward(dev, s->h, s->mlp_rstd, s->x, w->mlp_norm, N, C, c->eps); /* h (N, C) */
    linear_forward(dev, s->gate_up, s->h, w->gate_up, NULL, N, C, 2 * F);     /* gate_up (N, 2F) */
    swiglu_forward(dev, s->y, s->gate_up, N, F);                              /* y (N, F) */
    linear_forward(dev, s->out, s->y, w->down, NULL, N, F, C);                /* out (N, C) */
    if ((done = visit(p, PROBE_MLP_OUT, layer, s->out, C))) return done;
    residual_add(dev, s->x, s->x, s->out, (size_t)N * (size_t)C);
    return visit(p, PROBE_RESID_POST, layer, s->x, C);
}

/* Final norm and head: for all rows where probes ask, for each sequence's last row where the caller asks. */
static int output(struct pass *p, real_t *last_logits) {
    struct llama *m = p->m;
    const struct llama_config *c = &m->config;
    const struct llama_rows *r = p->rows;
    struct llama_scratch *s = &p->s;
    struct device *dev = p->dev;
    const int N = p->N, S = r->S, C = c->C, V = c->V;
    CHECK(m->head, "logits of a model opened with %d of %d layers", m->layers, c->L);
    if (probes_want(p->probes, PROBE_FINAL_NORM, -1)) {
        rmsnorm_forward(dev, s->h, NULL, s->x, NULL, N, C, c->eps); /* h (N, C) */
        if (probes_run(p->probes, dev, PROBE_FINAL_NORM, -1, s->h, N, C, p->err)) return -1;
    }
    if (probes_want(p->probes, PROBE_LOGITS, -1)) {
        const size_t bytes = (size_t)N * (size_t)V * sizeof(real_t);
        if (buffer_reserve(&m->logits, dev, bytes, "the logits of every token", p->err)) return -1;
        rmsnorm_forward(dev, s->h, NULL, s->x, m->final_norm, N, C, c->eps);
        linear_forward_real(dev, m->logits.data, s->h, m->head, N, C, V); /* logits (N, V) */
        if (probes_run(p->probes, dev, PROBE_LOGITS, -1, m->logits.data, N, V, p->err)) return -1;
    }
    if (last_logits) {
        if (!p->narrow) gather_rows(dev, s->last, s->x, r->last, S, C); /* last (S, C) */
        rmsnorm_forward(dev, s->last, NULL, s->last, m->final_norm, S, C, c->eps);
        linear_forward_real(dev, last_logits, s->last, m->head, S, C, V); /* last_logits (S, V) */
    }
    return 0;
}

/* Does any probe look at or behind hook_z of the last layer? */
static bool late_probes(const struct llama *m, const struct probes *p) {
    for (int i = 0; i < p->n; i++) {
        const enum probe_point point = p->at[i].point;
        if (p->at[i].layer == PROBE_EDIT) continue;
        if (point == PROBE_FINAL_NORM || point == PROBE_LOGITS) return true;
        if (point >= PROBE_ATTN_Z && point <= PROBE_RESID_POST && (p->at[i].layer < 0 || p->at[i].layer == m->config.L - 1)) return true;
    }
    return false;
}

int llama_forward(struct llama *m, struct device *dev, const struct llama_rows *rows, const struct probes *probes, real_t *last_logits,
                  struct error *err) {
    struct pass p = {
        .m = m, .dev = dev, .rows = rows, .probes = probes, .until = last_place(m, probes, last_logits != NULL), .N = rows->N, .err = err};
    struct arena a = {0};
    if (p.until == LONG_MIN || rows->N == 0) return 0;
    CHECK(!last_logits || !rows->keep, "last_logits of a pass that is kept");
    p.narrow = last_logits && rows->N > rows->S && !late_probes(m, probes);
    layout_scratch(&p.s, &a, &m->config, (size_t)rows->N, (size_t)rows->S);
    if (buffer_reserve(&m->scratch, dev, a.used, "activations of the language model", err)) return -1;
    a = (struct arena){.base = m->scratch.data};
    layout_scratch(&p.s, &a, &m->config, (size_t)rows->N, (size_t)rows->S);

    const int C = m->config.C;
    int done = 0;
    if (rows->stream) {
        device_copy(dev, p.s.x, rows->stream, (size_t)rows->N * (size_t)C * sizeof(act_t)); /* x (N, C) */
    } else {
        embed_forward(dev, p.s.x, rows->source, m->embed, rows->image_rows, rows->N, C); /* x (N, C) */
        done = visit(&p, PROBE_EMBED, -1, p.s.x, C);
    }
    for (int l = rows->from; l < m->layers && !done; l++) {
        done = visit(&p, PROBE_RESID_PRE, l, p.s.x, C);
        if (!done && rows->keep) keep_layer(&p, &rows->keep[l]);
        if (!done) done = attention_half(&p, l);
        if (!done) done = mlp_half(&p, l);
    }
    if (done) return done < 0 ? -1 : 0;
    return output(&p, last_logits);
}
