/* llama_backward.c - gradients through LLaMA (llama_backward.h): llama.c's formulas in reverse. dx is the gradient of the
 * residual stream; each half adds to it what comes back through its norm. */
#include "models/llama_backward.h"
#include "host/file.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "host/check.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the tape ---- */
static real_t *arena_reals(struct arena *a, size_t rows, size_t columns) { return arena_take(a, rows * columns * sizeof(real_t)); }

/* What a layer keeps besides its residual input. */
static void layout_kept(struct llama_kept *k, struct arena *a, const struct llama_config *c, size_t N) {
    const size_t C = (size_t)c->C, F = (size_t)c->F, HD = (size_t)c->H * (size_t)c->D, GD = (size_t)c->G * (size_t)c->D;
    k->mid = arena_acts(a, N, C);
    k->q = arena_acts(a, N, HD);
    k->k = arena_acts(a, N, GD);
    k->v = arena_acts(a, N, GD);
    k->z = arena_acts(a, N, HD);
    k->gate_up = arena_acts(a, N, 2 * F);
    k->attn_rstd = arena_reals(a, N, 1);
    k->mlp_rstd = arena_reals(a, N, 1);
    k->lse = arena_reals(a, N, (size_t)c->H);
}

static void layout_tape(struct llama_tape *t, struct arena *a, const struct llama_config *c, size_t N) {
    for (int l = 0; l < t->layers; l++) {
        struct llama_kept *k = &t->layer[l];
        if (l <= t->own)
            layout_kept(k, a, c, N);
        else
            *k = t->layer[t->own]; /* the shared place */
        k->x = arena_acts(a, N, (size_t)c->C);
    }
}

int llama_tape_reserve(struct llama_tape *tape, const struct llama *m, struct device *dev, int N, int layers, size_t most,
                       struct error *err) {
    struct llama_kept one;
    struct arena a = {0};
    CHECK(layers > 0 && layers <= m->layers && N > 0, "%d of %d layers, %d rows", layers, m->layers, N);
    layout_kept(&one, &a, &m->config, (size_t)N);
    const size_t fit = most / a.used;
    tape->layers = layers;
    tape->own = fit < (size_t)(layers - 1) ? (int)fit : layers - 1; /* the last one fills the shared place */
    tape->layer = memory_grow(tape->layer, (size_t)layers, sizeof *tape->layer);
    a = (struct arena){0};
    layout_tape(tape, &a, &m->config, (size_t)N);
    if (buffer_reserve(&tape->memory, dev, a.used, "activations kept for the gradient", err)) return -1;
    a = (struct arena){.base = tape->memory.data};
    layout_tape(tape, &a, &m->config, (size_t)N);
    return 0;
}

void llama_tape_free(struct llama_tape *tape, struct device *dev) {
    free(tape->layer);
    buffer_free(&tape->memory, dev);
    memset(tape, 0, sizeof *tape);
}

/* ---- gradients of the weights ---- */
static void layout_gradients(struct llama_gradients *g, struct arena *a, const struct llama *m) {
    const struct llama_config *c = &m->config;
    const size_t C = (size_t)c->C, F = (size_t)c->F, V = (size_t)c->V, HD = (size_t)c->H * (size_t)c->D, GD = (size_t)c->G * (size_t)c->D;
    g->embed = arena_reals(a, V, C);
    for (int l = 0; l < m->layers; l++)
        g->layer[l] = (struct llama_layer_gradients){arena_reals(a, 1, C), arena_reals(a, HD + 2 * GD, C), arena_reals(a, C, HD),
                                                     arena_reals(a, 1, C), arena_reals(a, 2 * F, C),       arena_reals(a, C, F)};
    g->final_norm = m->final_norm ? arena_reals(a, 1, C) : NULL;
    g->head = !m->head ? NULL : m->head == m->embed ? g->embed : arena_reals(a, V, C);
}

int llama_gradients_reserve(struct llama_gradients *g, const struct llama *m, struct device *dev, struct error *err) {
    struct arena a = {0};
    g->layer = memory_grow(g->layer, (size_t)m->layers, sizeof *g->layer);
    layout_gradients(g, &a, m);
    if (buffer_reserve(&g->memory, dev, a.used, "gradients of the weights", err)) return -1;
    device_zero(dev, g->memory.data, a.used);
    a = (struct arena){.base = g->memory.data};
    layout_gradients(g, &a, m);
    return 0;
}

void llama_gradients_free(struct llama_gradients *g, struct device *dev) {
    free(g->layer);
    buffer_free(&g->memory, dev);
    memset(g, 0, sizeof *g);
}

/* ---- the pass ---- */
struct backward_scratch { /* placed in llama.backward; attention's and the MLP's share their place */
    act_t *h, *dh;        /* (N, C) normalised, and its gradient */
    act_t *y, *dy;        /* (N, F) */
    act_t *dgate_up;      /* (N, 2F) */
    act_t *dz, *dq;       /* (N, H, D) */
    act_t *dk, *dv;       /* (N, G, D) */
    act_t *dqkv;          /* (N, (H+2G)*D) */
    real_t *delta;        /* (N, H) */
};

static void layout_scratch(struct backward_scratch *s, struct arena *a, const struct llama_config *c, size_t N) {
    const size_t C = (size_t)c->C, F = (size_t)c->F, HD = (size_t)c->H * (size_t)c->D, GD = (size_t)c->G * (size_t)c->D;
    s->h = arena_acts(a, N, C);
    s->dh = arena_acts(a, N, C);
    const size_t shared = a->used;
    s->y = arena_acts(a, N, F);
    s->dy = arena_acts(a, N, F);
    s->dgate_up = arena_acts(a, N, 2 * F);
    const size_t mlp_end = a->used;
    a->used = shared;
    s->dz = arena_acts(a, N, HD);
    s->dq = arena_acts(a, N, HD);
    s->dk = arena_acts(a, N, GD);
    s->dv = arena_acts(a, N, GD);
    s->dqkv = arena_acts(a, N, HD + 2 * GD);
    s->delta = arena_reals(a, N, (size_t)c->H);
    a->used = a->used > mlp_end ? a->used : mlp_end;
}

static int reserve_scratch(struct backward_scratch *s, struct llama *m, struct device *dev, int N, struct error *err) {
    struct arena a = {0};
    layout_scratch(s, &a, &m->config, (size_t)N);
    if (buffer_reserve(&m->backward, dev, a.used, "activations' gradients", err)) return -1;
    a = (struct arena){.base = m->backward.data};
    layout_scratch(s, &a, &m->config, (size_t)N);
    return 0;
}

struct pass {
    struct llama *m;
    struct device *dev;
    const struct llama_rows *rows;
    const struct probes *probes;
    const struct llama_gradients *g;
    struct backward_scratch s;
    act_t *dx;
    long until; /* place of the lowest point anyone asked for */
    struct error *err;
};

static long place(int layer, enum probe_point point) { return (long)layer * PROBE_POINTS + (long)point; }

static long lowest_place(const struct probes *p, const struct llama_gradients *g) {
    long until = g ? place(-1, PROBE_EMBED) : place(1 << 20, PROBE_EMBED);
    for (int i = 0; i < p->n; i++) {
        const int layer = p->at[i].point == PROBE_EMBED ? -1 : p->at[i].layer < 0 ? 0 : p->at[i].layer;
        const long at = place(layer, p->at[i].point);
        until = at < until ? at : until;
    }
    return until;
}

/* Shows the gradient at a point. 0: go on, 1: nobody asked for anything lower, -1: err. */
static int visit(struct pass *p, enum probe_point point, int layer, act_t *dx, int width) {
    if (probes_run(p->probes, p->dev, point, layer, dx, p->rows->N, width, p->err)) return -1;
    return place(layer, point) <= p->until;
}

/* x += down . y,  y = silu(gate) * up,  gate, up = gate_up . h,  h = rmsnorm(x) */
static int mlp_half(struct pass *p, int layer, const struct llama_kept *k) {
    const struct llama_config *c = &p->m->config;
    const struct llama_layer *w = &p->m->layer[layer];
    struct backward_scratch *s = &p->s;
    struct device *dev = p->dev;
    const int N = p->rows->N, C = c->C, F = c->F;
    int done = visit(p, PROBE_RESID_POST, layer, p->dx, C);
    if (done) return done;
    linear_backward_input(dev, s->dy, p->dx, w->down, N, F, C);              /* dy (N, F) */
    swiglu_backward(dev, s->dgate_up, s->dy, k->gate_up, N, F);              /* dgate_up (N, 2F) */
    linear_backward_input(dev, s->dh, s->dgate_up, w->gate_up, N, C, 2 * F); /* dh (N, C) */
    if (p->g) {
        const struct llama_layer_gradients *g = &p->g->layer[layer];
        swiglu_forward(dev, s->y, k->gate_up, N, F);                             /* y (N, F) */
        rmsnorm_forward(dev, s->h, NULL, k->mid, w->mlp_norm, N, C, c->eps);     /* h (N, C) */
        linear_backward_weight(dev, g->down, p->dx, s->y, N, F, C);              /* (C, F) */
        linear_backward_weight(dev, g->gate_up, s->dgate_up, s->h, N, C, 2 * F); /* (2F, C) */
        rmsnorm_backward_weight(dev, g->mlp_norm, s->dh, k->mid, k->mlp_rstd, N, C);
    }
    rmsnorm_backward(dev, p->dx, s->dh, k->mid, k->mlp_rstd, w->mlp_norm, N, C);
    return visit(p, PROBE_RESID_MID, layer, p->dx, C);
}

/* x += o . z,  z = attention(rope(q), rope(k), v),  q, k, v = qkv . h,  h = rmsnorm(x) */
static int attention_half(struct pass *p, int layer, const struct llama_kept *k) {
    const struct llama *m = p->m;
    const struct llama_config *c = &m->config;
    const struct llama_layer *w = &m->layer[layer];
    const struct llama_rows *r = p->rows;
    struct backward_scratch *s = &p->s;
    struct device *dev = p->dev;
    const int N = r->N, C = c->C, H = c->H, G = c->G, D = c->D, QKV = (H + 2 * G) * D;
    int done;
    linear_backward_input(dev, s->dz, p->dx, w->o, N, H * D, C); /* dz (N, H, D) */
    if (p->g) linear_backward_weight(dev, p->g->layer[layer].o, p->dx, k->z, N, H * D, C);
    if ((done = visit(p, PROBE_ATTN_Z, layer, s->dz, H * D))) return done;
    attention_backward(dev, s->dq, s->dk, s->dv, s->delta, s->dz, k->z, k->lse, k->q, k->k, k->v, r->q_start, r->S, r->max_q, H, G, D,
                       1 / sqrtf((real_t)D)); /* dq (N, H, D), dk, dv (N, G, D) */
    qkv_split_rope_backward(dev, s->dqkv, s->dq, s->dk, s->dv, r->position, m->cosine, m->sine, N, H, G, D); /* dqkv (N, (H+2G)*D) */
    linear_backward_input(dev, s->dh, s->dqkv, w->qkv, N, C, QKV);                                           /* dh (N, C) */
    if (p->g) {
        const struct llama_layer_gradients *g = &p->g->layer[layer];
        rmsnorm_forward(dev, s->h, NULL, k->x, w->attn_norm, N, C, c->eps); /* h (N, C) */
        linear_backward_weight(dev, g->qkv, s->dqkv, s->h, N, C, QKV);      /* ((H+2G)*D, C) */
        rmsnorm_backward_weight(dev, g->attn_norm, s->dh, k->x, k->attn_rstd, N, C);
    }
    rmsnorm_backward(dev, p->dx, s->dh, k->x, k->attn_rstd, w->attn_norm, N, C);
    return visit(p, PROBE_RESID_PRE, layer, p->dx, C);
}

static int nothing(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    (void)context, (void)dev, (void)layer, (void)x, (void)rows, (void)width, (void)b, (void)err;
    return 0;
}

/* The layer's activations once more, from its residual input: to resid_mid by the forward pass, then gate_up. */
static int again(struct pass *p, int layer, const struct llama_kept *k) {
    const struct llama_config *c = &p->m->config;
    const struct probe end = {PROBE_RESID_MID, layer, nothing, NULL};
    const struct probes probes = {&end, 1, p->probes->batch};
    struct llama_rows rows = *p->rows;
    rows.stream = k->x;
    rows.from = layer;
    if (llama_forward(p->m, p->dev, &rows, &probes, NULL, p->err)) return -1;
    rmsnorm_forward(p->dev, p->s.h, k->mlp_rstd, k->mid, p->m->layer[layer].mlp_norm, rows.N, c->C, c->eps);
    linear_forward(p->dev, k->gate_up, p->s.h, p->m->layer[layer].gate_up, NULL, rows.N, c->C, 2 * c->F);
    return 0;
}

int llama_backward(struct llama *m, struct device *dev, const struct llama_rows *rows, const struct llama_tape *tape, act_t *dx,
                   const struct probes *probes, const struct llama_gradients *g, struct error *err) {
    struct pass p = {.m = m, .dev = dev, .rows = rows, .probes = probes, .g = g, .dx = dx, .until = lowest_place(probes, g), .err = err};
    CHECK(rows->keep == tape->layer && !rows->cache && rows->from == 0, "rows of another pass");
    int done = 0;
    if (reserve_scratch(&p.s, m, dev, rows->N, err)) return -1;
    for (int l = tape->layers - 1; l >= 0 && !done; l--) {
        const struct llama_kept *k = &tape->layer[l];
        if (l >= tape->own && l < tape->layers - 1 && again(&p, l, k)) return -1;
        done = mlp_half(&p, l, k);
        if (!done) done = attention_half(&p, l, k);
    }
    if (!done) done = visit(&p, PROBE_EMBED, -1, dx, m->config.C);
    if (done < 0) return -1;
    if (g) embed_backward(dev, g->embed, NULL, rows->source, dx, rows->N, m->config.C);
    return 0;
}

int llama_backward_output(struct llama *m, struct device *dev, act_t *dx, const act_t *dlogits, const act_t *x, int N,
                          const struct llama_gradients *g, struct error *err) {
    const struct llama_config *c = &m->config;
    const int C = c->C, V = c->V;
    struct backward_scratch s;
    CHECK(m->head, "logits of a model opened with %d of %d layers", m->layers, c->L);
    if (reserve_scratch(&s, m, dev, N, err)) return -1;
    real_t *rstd = s.delta;                                          /* (N) */
    rmsnorm_forward(dev, s.h, rstd, x, m->final_norm, N, C, c->eps); /* h (N, C) */
    linear_backward_input(dev, s.dh, dlogits, m->head, N, C, V);     /* dh (N, C) */
    device_zero(dev, dx, (size_t)N * (size_t)C * sizeof *dx);
    rmsnorm_backward(dev, dx, s.dh, x, rstd, m->final_norm, N, C);
    if (g) {
        linear_backward_weight(dev, g->head, dlogits, s.h, N, C, V); /* (V, C) */
        rmsnorm_backward_weight(dev, g->final_norm, s.dh, x, rstd, N, C);
    }
    return 0;
}
