/* control.c - see control.h. */
#include "analysis/control.h"
#include "analysis/codes.h"
#include "analysis/paired.h"
#include "host/file.h"
#include "models/ahead.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct firing { /* how often a dictionary's features fire on the rows that some edits name */
    struct edit_sae *sae;
    int layer;
    unsigned kinds;
    bool after_image;
    long *fired; /* (M) */
    struct codes codes;
    struct buffer rows;
    int *indices; /* host (CODES_ROWS, room) */
    float *values;
    size_t room;
};
struct pool { /* what a feature of an edit may become, in the order of the draws */
    int *features, n;
};
struct controls {
    struct model *m;
    const struct edit_list *list;
    enum control_kind kind;
    int draws;
    uint64_t seed;
    struct firing **firing; /* (n edits), shared or NULL */
    struct pool **pools;    /* (n edits), (n_features) each, or NULL */
};

static bool draws_features(const struct controls *c, const struct edit *e) {
    return e->op == EDIT_FEATURE || (e->sae && (e->op == EDIT_PROJECT_OUT || e->op == EDIT_ADD) && c->kind == CONTROL_MATCHED);
}

/* ---- how often features fire ---- */
static void count_codes(struct firing *f, int n) {
    const size_t slots = (size_t)n * (size_t)f->codes.K;
    struct device *dev = f->sae->device.dev;
    if (slots > f->room) {
        f->room = slots;
        f->indices = memory_grow(f->indices, slots, sizeof *f->indices);
        f->values = memory_grow(f->values, slots, sizeof *f->values);
    }
    device_download(dev, f->indices, f->codes.indices, slots * sizeof *f->indices);
    device_download(dev, f->values, f->codes.values, slots * sizeof *f->values);
    for (size_t i = 0; i < slots; i++)
        if (f->indices[i] >= 0 && f->values[i] > 0) f->fired[f->indices[i]]++;
}

static int observe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    struct firing *f = context;
    uint8_t *after = memory_take((size_t)rows, sizeof *after);
    int *list = memory_take((size_t)rows, sizeof *list), n = 0, status = 0;
    (void)layer, (void)width;
    batch_after_image(b, after);
    for (int t = 0; t < rows; t++)
        if ((f->kinds >> b->kinds[t] & 1) && (!f->after_image || after[t])) list[n++] = t;
    status = buffer_reserve(&f->rows, dev, (size_t)rows * sizeof *list, "rows to count on", err);
    if (status == 0) device_upload(dev, f->rows.data, list, (size_t)rows * sizeof *list);
    for (int first = 0; first < n && status == 0; first += CODES_ROWS) {
        const int count = n - first < CODES_ROWS ? n - first : CODES_ROWS;
        status = codes_encode(&f->codes, &f->sae->device, x, (const int *)f->rows.data + first, count, 0, err);
        if (status == 0) count_codes(f, count);
    }
    free(after);
    free(list);
    return status;
}

/* The counts that edit i needs, made anew or those of an edit before it. */
static int find_firing(struct controls *c, int i, struct error *err) {
    const struct edit *e = &c->list->at[i];
    int layer = e->sae->host.layer;
    for (int l = 0; l < c->m->n_layers && e->op == EDIT_FEATURE; l++)
        if (e->layers[l]) layer = l;
    if (layer < 0 || layer >= c->m->n_layers)
        return fail(
            err,
            "%s: edit %d: the dictionary %s does not say its layer, so its features' firing cannot be matched; take random directions "
            "as controls (--control directions)",
            c->list->path, i + 1, e->sae->path);
    for (int j = 0; j < i; j++) {
        struct firing *f = c->firing[j];
        if (f && f->sae == e->sae && f->layer == layer && f->kinds == e->kinds && f->after_image == e->after_image) {
            c->firing[i] = f;
            return 0;
        }
    }
    struct firing *f = c->firing[i] = memory_take(1, sizeof *f);
    *f = (struct firing){.sae = e->sae, .layer = layer, .kinds = e->kinds, .after_image = e->after_image};
    f->fired = memory_take((size_t)e->sae->host.M, sizeof *f->fired);
    return edit_sae_upload(e->sae, c->m->dev, err);
}

static bool first_with(const struct controls *c, int i) {
    for (int j = 0; j < i; j++)
        if (c->firing[j] == c->firing[i]) return false;
    return c->firing[i] != NULL;
}

static int count_firing(struct controls *c, const struct samples *s, size_t first, size_t count, int batch, struct error *err) {
    struct probe *probes = memory_take((size_t)c->list->n + 1, sizeof *probes);
    int n_probes = 0, status = 0;
    for (int i = 0; i < c->list->n; i++)
        if (first_with(c, i)) probes[n_probes++] = (struct probe){PROBE_RESID_POST, c->firing[i]->layer, observe, c->firing[i]};
    struct ahead ahead = {.m = c->m, .s = s};
    for (size_t at = 0; at < count && n_probes && status == 0; at += (size_t)batch) {
        struct batch b = {0};
        status = ahead_next(&ahead, &b, first + at, (size_t)batch, first + count, err);
        if (status == 0) status = model_forward(c->m, &b, probes, n_probes, NULL, err);
        batch_free(&b);
    }
    ahead_end(&ahead);
    free(probes);
    return status;
}

/* ---- what a feature may become ---- */
struct candidate {
    int feature;
    double distance;
};
static int nearer(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    return x->distance != y->distance ? (x->distance > y->distance) - (x->distance < y->distance) : x->feature - y->feature;
}

static void shuffle(int *list, int n, uint64_t *state) {
    for (int i = 0; i < n - 1; i++) {
        const int j = i + (int)random_below(state, (size_t)(n - i)), kept = list[i];
        list[i] = list[j];
        list[j] = kept;
    }
}

static uint64_t seed_of(const struct controls *c, int a, int b) {
    uint64_t state = c->seed + 0x632be59bd9b4e019u * (uint64_t)(a + 1);
    return random_next(&state) + 0xd1342543de82ef95u * (uint64_t)(b + 1);
}

static int make_pools(struct controls *c, int i, struct error *err) {
    const struct edit *e = &c->list->at[i];
    const struct firing *f = c->firing[i];
    const int M = e->sae->host.M;
    bool *edited = memory_take((size_t)M, sizeof *edited);
    struct candidate *all = memory_take((size_t)M, sizeof *all);
    int status = 0;
    if (e->sae->barred) memcpy(edited, e->sae->barred, (size_t)M * sizeof *edited);
    for (int j = 0; j < c->list->n; j++)
        for (int k = 0; k < c->list->at[j].n_features && c->list->at[j].sae == e->sae; k++) edited[c->list->at[j].features[k]] = true;
    c->pools[i] = memory_take((size_t)e->n_features, sizeof *c->pools[i]);
    for (int k = 0; k < e->n_features && status == 0; k++) {
        int n = 0, want = 2 * c->draws > 20 ? 2 * c->draws : 20;
        for (int j = 0; j < M; j++)
            if (!edited[j]) all[n++] = (struct candidate){j, fabs(log((double)(f->fired[j] + 1) / (double)(f->fired[e->features[k]] + 1)))};
        if (n < e->n_features)
            status = fail(err, "%s: edit %d: %d features are edited, only %d others are left to draw controls from", c->list->path, i + 1,
                          e->n_features, n);
        qsort(all, (size_t)n, sizeof *all, nearer);
        want = want < e->n_features ? e->n_features : want;
        struct pool *p = &c->pools[i][k];
        p->n = n < want ? n : want;
        p->features = memory_take((size_t)p->n + 1, sizeof *p->features);
        for (int j = 0; j < p->n; j++) p->features[j] = all[j].feature;
        uint64_t state = seed_of(c, i, k);
        shuffle(p->features, p->n, &state);
    }
    free(edited);
    free(all);
    return status;
}

/* ---- opening ---- */
static int check_edit(const struct controls *c, int i, bool *drawn, struct error *err) {
    const struct edit *e = &c->list->at[i];
    if (e->op == EDIT_HEAD && e->n_heads == c->m->n_heads)
        return fail(err,
                    "%s: edit %d names all %d heads of its layers, so there are no others to draw controls from; do without (--controls 0)",
                    c->list->path, i + 1, e->n_heads);
    *drawn = *drawn || e->op != EDIT_RECONSTRUCT;
    return 0;
}

int controls_open(struct controls **out, struct model *m, const struct edit_list *l, const struct samples *s, size_t first, size_t count,
                  enum control_kind kind, int draws, uint64_t seed, int batch, struct error *err) {
    struct controls *c = *out = memory_take(1, sizeof *c);
    bool drawn = false;
    int status = 0;
    *c = (struct controls){.m = m, .list = l, .kind = kind, .draws = draws, .seed = seed};
    c->firing = memory_take((size_t)l->n + 1, sizeof(struct firing *));
    c->pools = memory_take((size_t)l->n + 1, sizeof(struct pool *));
    for (int i = 0; i < l->n && status == 0; i++) {
        status = check_edit(c, i, &drawn, err);
        if (status == 0 && draws_features(c, &l->at[i])) status = find_firing(c, i, err);
    }
    if (status == 0 && !drawn)
        status = fail(err, "%s: no edit of it can be drawn otherwise, so there are no controls; do without (--controls 0)", l->path);
    if (status == 0) status = count_firing(c, s, first, count < CONTROL_SAMPLES ? count : CONTROL_SAMPLES, batch, err);
    for (int i = 0; i < l->n && status == 0; i++)
        if (c->firing[i]) status = make_pools(c, i, err);
    if (!status) return 0;
    controls_close(c);
    *out = NULL;
    return status;
}

void controls_close(struct controls *c) {
    if (!c) return;
    for (int i = c->list->n - 1; i >= 0; i--) {
        for (int k = 0; c->pools[i] && k < c->list->at[i].n_features; k++) free(c->pools[i][k].features);
        free(c->pools[i]);
        if (!first_with(c, i)) continue;
        codes_free(&c->firing[i]->codes, c->m->dev);
        buffer_free(&c->firing[i]->rows, c->m->dev);
        free(c->firing[i]->fired), free(c->firing[i]->indices), free(c->firing[i]->values), free(c->firing[i]);
    }
    free(c->firing);
    free(c->pools);
    free(c);
}

/* ---- a draw ---- */

/* Has an edit of the draw before i, or this one's features before k, taken it already? */
static bool taken(const struct edit_list *l, int i, int k, int feature) {
    for (int j = 0; j <= i; j++)
        for (int n = 0; n < (j < i ? l->at[j].n_features : k) && l->at[j].sae == l->at[i].sae; n++)
            if (l->at[j].features[n] == feature) return true;
    return false;
}

static void draw_features(const struct controls *c, int draw, struct edit_list *l, int i) {
    struct edit *e = &l->at[i];
    for (int k = 0; k < e->n_features; k++) {
        const struct pool *p = &c->pools[i][k];
        int at = 0;
        while (at < p->n - 1 && taken(l, i, k, p->features[(draw + at) % p->n])) at++;
        e->features[k] = p->features[(draw + at) % p->n];
    }
    if (e->op == EDIT_FEATURE) return;
    const float *row = e->sae->host.D + (size_t)e->features[0] * (size_t)c->m->d_model;
    double square = 0;
    for (int d = 0; d < c->m->d_model; d++) square += (double)row[d] * (double)row[d];
    for (int d = 0; d < c->m->d_model; d++) e->vector[d] = e->unit && square > 0 ? (float)((double)row[d] / sqrt(square)) : row[d];
}

static void draw_direction(const struct controls *c, struct edit *e, uint64_t *state) {
    const int C = c->m->d_model;
    double norm = 0, length = 0;
    double *v = memory_take((size_t)C, sizeof *v);
    for (int d = 0; d < C; d++) {
        v[d] = random_normal(state);
        norm += v[d] * v[d];
        length += (double)e->vector[d] * (double)e->vector[d];
    }
    for (int d = 0; d < C; d++) e->vector[d] = (float)(v[d] * sqrt(length / norm));
    free(v);
}

/* Heads that no edit of the draw before this one has taken in one of its layers, while there are enough. */
static void draw_heads(const struct controls *c, const struct edit_list *l, int i, uint64_t *state) {
    struct edit *e = &l->at[i];
    const int H = c->m->n_heads, n = e->n_heads;
    int *free_heads = memory_take((size_t)H, sizeof *free_heads), count = 0;
    for (int pass = 0; count < n + (pass == 0) && pass < 2; pass++) { /* the second pass takes them all */
        count = 0;
        for (int h = 0; h < H; h++) {
            bool used = false;
            for (int j = 0; j < i && pass == 0; j++)
                for (int k = 0; k < l->at[j].n_heads; k++)
                    for (int layer = 0; layer < c->m->n_layers; layer++)
                        used = used || (l->at[j].heads[k] == h && l->at[j].layers[layer] && e->layers[layer]);
            if (!used) free_heads[count++] = h;
        }
    }
    const int *own = c->list->at[i].heads;
    bool same = true;
    for (int turn = 0; turn < 64 && same; turn++) { /* not the list's own heads once more */
        shuffle(free_heads, count, state);
        for (int k = 0; k < n && same; k++) {
            bool found = false;
            for (int j = 0; j < n; j++) found = found || own[j] == free_heads[k];
            same = found;
        }
    }
    memcpy(e->heads, free_heads, (size_t)n * sizeof *e->heads);
    free(free_heads);
}

void controls_draw(const struct controls *c, int draw, struct edit_list *out) {
    edit_list_copy(out, c->list, c->m);
    for (int i = 0; i < out->n; i++) {
        uint64_t state = seed_of(c, i, -2 - draw);
        struct edit *e = &out->at[i];
        if (c->firing[i])
            draw_features(c, draw, out, i);
        else if (e->op == EDIT_PROJECT_OUT || e->op == EDIT_ADD)
            draw_direction(c, e, &state);
        else if (e->op == EDIT_HEAD)
            draw_heads(c, out, i, &state);
    }
}
