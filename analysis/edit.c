/* edit.c - a checked list of edits at work (edit.h): probes at the places that edits may change. A first probe, at hook_embed, picks
 * the rows of the batch that each edit names; the others go through the list. Dictionaries are run on the chosen rows alone. */
#include "analysis/edit.h"
#include "analysis/codes.h"
#include "host/file.h"
#include "host/check.h"
#include "kernels/edit.h"
#include <stdlib.h>
#include <string.h>

#include "kernels/sae_ops.h"

enum { PROBES = 5 };

struct selection { /* rows that some edits name */
    unsigned kinds;
    bool after_image;
    int n_rows, n_last;
    const int *rows; /* (n_rows) device: of the batch */
    const int *last; /* (n_last) device: samples whose last row is one of them, for a narrowed pass */
};
struct applied { /* one edit on the device */
    const struct edit *e;
    int selection;
    float *vector;        /* project_out: (C) unit; add: (C) times scale; head: (L, H*D) means or NULL */
    int *list;            /* heads, or features by their place in the code */
    float *D;             /* (n_features, C) decoder rows */
    struct sae *sae, own; /* sae: own, or the list's */
};
struct edits {
    struct device *dev;
    int C, H, D, n, n_selections;
    struct applied *at;           /* (n) */
    struct selection *selections; /* (n_selections) */
    struct buffer index;
    struct codes codes;
};

/* ---- which rows ---- */
static int selection_of(struct edits *s, const struct edit *e) {
    for (int i = 0; i < s->n_selections; i++)
        if (s->selections[i].kinds == e->kinds && s->selections[i].after_image == e->after_image) return i;
    s->selections[s->n_selections] = (struct selection){.kinds = e->kinds, .after_image = e->after_image};
    return s->n_selections++;
}

static int begin(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    struct edits *s = context;
    const size_t N = (size_t)b->n_tokens, each = N + (size_t)b->n_samples, bytes = (size_t)s->n_selections * each * sizeof(int);
    (void)layer, (void)x, (void)rows, (void)width;
    if (buffer_reserve(&s->index, dev, bytes, "the rows that edits name", err)) return -1;
    uint8_t *after = memory_take(N, sizeof *after);
    int *host = memory_take((size_t)s->n_selections * each, sizeof *host);
    batch_after_image(b, after);
    for (int i = 0; i < s->n_selections; i++) {
        struct selection *q = &s->selections[i];
        int *list = host + (size_t)i * each, *last = list + N;
        q->rows = (const int *)s->index.data + (size_t)i * each;
        q->last = q->rows + N;
        q->n_rows = q->n_last = 0;
        for (int j = 0; j < b->n_samples; j++)
            for (int t = b->cu_seqlens[j]; t < b->cu_seqlens[j + 1]; t++) {
                if (!(q->kinds >> b->kinds[t] & 1) || (q->after_image && !after[t])) continue;
                list[q->n_rows++] = t;
                if (t == b->cu_seqlens[j + 1] - 1) last[q->n_last++] = j;
            }
    }
    device_upload(dev, s->index.data, host, bytes);
    free(after);
    free(host);
    return 0;
}

/* ---- dictionaries ---- */
static int run_dictionary(struct edits *s, const struct applied *a, act_t *y, const int *rows, int n, struct error *err) {
    const struct edit *e = a->e;
    struct codes *w = &s->codes;
    for (int first = 0; first < n; first += CODES_ROWS) {
        const int count = n - first < CODES_ROWS ? n - first : CODES_ROWS, F = e->n_features;
        if (codes_encode(w, a->sae, y, rows + first, count, F, err)) return -1;
        if (e->op == EDIT_FEATURE) {
            edit_features(s->dev, y, rows + first, w->c, w->indices, w->values, a->list, a->D, count, s->C, w->K, F, (real_t)e->value,
                          e->clamp);
        } else {
            sae_decode(s->dev, w->x_hat, w->indices, w->values, a->sae->D, a->sae->b_d, count, s->C, w->K);
            edit_replace(s->dev, y, rows + first, w->x_hat, count, s->C);
        }
    }
    return 0;
}

/* ---- the probes ---- */
static int apply(struct edits *s, enum probe_point point, int layer, act_t *y, bool narrowed, struct error *err) {
    for (int i = 0; i < s->n; i++) {
        const struct applied *a = &s->at[i];
        const struct edit *e = a->e;
        const struct selection *q = &s->selections[a->selection];
        const int *rows = narrowed ? q->last : q->rows, n = narrowed ? q->n_last : q->n_rows;
        const bool here = e->op == EDIT_HEAD          ? point == PROBE_ATTN_Z
                          : point == PROBE_ATTN_OUT   ? e->points[EDIT_ATTN_OUT]
                          : point == PROBE_MLP_OUT    ? e->points[EDIT_MLP_OUT]
                          : point == PROBE_RESID_POST ? e->points[EDIT_RESID_POST]
                                                      : false;
        if (!here || !e->layers[layer] || n == 0) continue;
        if (e->op == EDIT_PROJECT_OUT)
            edit_project_out(s->dev, y, rows, a->vector, n, s->C, (real_t)e->scale);
        else if (e->op == EDIT_ADD)
            edit_add(s->dev, y, rows, a->vector, n, s->C);
        else if (e->op == EDIT_HEAD)
            edit_heads(s->dev, y, rows, a->list, a->vector ? a->vector + (size_t)layer * (size_t)s->H * (size_t)s->D : NULL, n, e->n_heads,
                       s->H, s->D);
        else if (run_dictionary(s, a, y, rows, n, err))
            return -1;
    }
    return 0;
}

#define AT(point)                                                                                                                          \
    static int at_##point(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b,               \
                          struct error *err) {                                                                                             \
        (void)dev, (void)width;                                                                                                            \
        return apply(context, point, layer, x, rows != b->n_tokens, err);                                                                  \
    }
AT(PROBE_ATTN_Z)
AT(PROBE_ATTN_OUT)
AT(PROBE_MLP_OUT)
AT(PROBE_RESID_POST)

struct probe *edits_before(struct edits *e, const struct probe *own, int n_own, int *n) {
    struct probe *all = memory_take((size_t)n_own + PROBES, sizeof *all);
    *n = 0;
    if (e && e->n) {
        all[(*n)++] = (struct probe){PROBE_EMBED, PROBE_EDIT, begin, e};
        all[(*n)++] = (struct probe){PROBE_ATTN_Z, PROBE_EDIT, at_PROBE_ATTN_Z, e};
        all[(*n)++] = (struct probe){PROBE_ATTN_OUT, PROBE_EDIT, at_PROBE_ATTN_OUT, e};
        all[(*n)++] = (struct probe){PROBE_MLP_OUT, PROBE_EDIT, at_PROBE_MLP_OUT, e};
        all[(*n)++] = (struct probe){PROBE_RESID_POST, PROBE_EDIT, at_PROBE_RESID_POST, e};
    }
    for (int i = 0; i < n_own; i++) all[(*n)++] = own[i];
    return all;
}

/* ---- to the device ---- */
static int put(struct edits *s, void *dst, const void *src, size_t bytes, struct error *err) {
    void *p = device_alloc(s->dev, bytes);
    if (!p) return fail(err, "%s: the edits need %zu more bytes, %zu are free", device_name(s->dev), bytes, device_memory_free(s->dev));
    device_upload(s->dev, p, src, bytes);
    memcpy(dst, &p, sizeof p);
    return 0;
}

/* Without top-k a feature's code is its own row's alone: a dictionary of the features that the edit names. */
static int put_part(struct edits *s, struct applied *a, struct error *err) {
    const struct sae_host *from = &a->e->sae->host;
    const size_t d = (size_t)from->d, F = (size_t)a->e->n_features;
    struct sae_host part = *from;
    part.M = a->e->n_features;
    part.E = memory_take(F * d, sizeof *part.E);
    part.D = memory_take(F * d, sizeof *part.D);
    part.b_e = memory_take(F, sizeof *part.b_e);
    part.threshold = from->threshold ? memory_take(F, sizeof *part.threshold) : NULL;
    for (size_t j = 0; j < F; j++) {
        const size_t f = (size_t)a->e->features[j];
        memcpy(part.E + j * d, from->E + f * d, d * sizeof *part.E);
        memcpy(part.D + j * d, from->D + f * d, d * sizeof *part.D);
        part.b_e[j] = from->b_e[f];
        if (from->threshold) part.threshold[j] = from->threshold[f];
    }
    const int status = sae_upload(&a->own, s->dev, &part, CODES_ROWS, false, err);
    if (!status) a->sae = &a->own;
    free(part.E), free(part.D), free(part.b_e), free(part.threshold);
    return status;
}

int edit_sae_upload(struct edit_sae *s, struct device *dev, struct error *err) {
    return s->device.dev ? 0 : sae_upload(&s->device, dev, &s->host, CODES_ROWS, false, err);
}

static int put_features(struct edits *s, struct applied *a, struct error *err) {
    const struct edit *e = a->e;
    const size_t C = (size_t)s->C, F = (size_t)e->n_features;
    int *list = memory_take(F, sizeof *list);
    float *D = memory_take(F * C, sizeof *D);
    for (size_t j = 0; j < F; j++) {
        list[j] = a->sae == &a->own ? (int)j : e->features[j];
        memcpy(D + j * C, e->sae->host.D + (size_t)e->features[j] * C, C * sizeof *D);
    }
    const int status = put(s, &a->list, list, F * sizeof *list, err) || put(s, &a->D, D, F * C * sizeof *D, err) ? -1 : 0;
    free(list);
    free(D);
    return status;
}

static int put_edit(struct edits *s, struct applied *a, int layers, struct error *err) {
    const struct edit *e = a->e;
    const size_t C = (size_t)s->C, width = (size_t)s->H * (size_t)s->D;
    if (e->op == EDIT_PROJECT_OUT) return put(s, &a->vector, e->vector, C * sizeof *a->vector, err);
    if (e->op == EDIT_ADD) {
        float *v = memory_take(C, sizeof *v);
        for (size_t c = 0; c < C; c++) v[c] = (float)(e->scale * (double)e->vector[c]);
        const int status = put(s, &a->vector, v, C * sizeof *v, err);
        free(v);
        return status;
    }
    if (e->op == EDIT_HEAD)
        return put(s, &a->list, e->heads, (size_t)e->n_heads * sizeof *a->list, err) ||
                       (e->mean && put(s, &a->vector, e->mean, (size_t)layers * width * sizeof *a->vector, err))
                   ? -1
                   : 0;
    if (e->op == EDIT_FEATURE && !sae_fixed_k(e->sae->host.activation)) return put_part(s, a, err) || put_features(s, a, err) ? -1 : 0;
    if (edit_sae_upload(e->sae, s->dev, err)) return -1;
    a->sae = &e->sae->device;
    return e->op == EDIT_FEATURE ? put_features(s, a, err) : 0;
}

int edits_open(struct edits **edits, const struct model *m, const struct edit_list *l, struct error *err) {
    struct edits *s = *edits = memory_take(1, sizeof *s);
    s->dev = m->dev;
    s->C = m->d_model, s->H = m->n_heads, s->D = m->head_dim;
    s->at = memory_take((size_t)l->n + 1, sizeof *s->at);
    s->selections = memory_take((size_t)l->n + 1, sizeof *s->selections);
    for (int i = 0; i < l->n; i++) {
        if (l->at[i].op == EDIT_RECONSTRUCT && l->at[i].keep_error) continue; /* reconstruction plus its error: the row itself */
        struct applied *a = &s->at[s->n++];
        a->e = &l->at[i];
        a->selection = selection_of(s, a->e);
        if (put_edit(s, a, m->n_layers, err)) {
            edits_close(s);
            *edits = NULL;
            return -1;
        }
    }
    return 0;
}

void edits_close(struct edits *s) {
    if (!s) return;
    for (int i = 0; i < s->n; i++) {
        struct applied *a = &s->at[i];
        device_free(s->dev, a->vector), device_free(s->dev, a->list), device_free(s->dev, a->D);
        if (a->own.dev) sae_free(&a->own);
    }
    buffer_free(&s->index, s->dev);
    codes_free(&s->codes, s->dev);
    free(s->at), free(s->selections), free(s);
}

int edit_session_open(struct edit_session *s, const struct model *m, const char *path, struct error *err) {
    memset(s, 0, sizeof *s);
    return path && (edit_list_open(&s->list, m, path, err) || edits_open(&s->edits, m, &s->list, err)) ? -1 : 0;
}

void edit_session_close(struct edit_session *s) {
    edits_close(s->edits);
    edit_list_free(&s->list);
    memset(s, 0, sizeof *s);
}
