/* steer.c - see steer.h. All points go over the dev samples together, a batch at a time. */
#include "analysis/steer.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const steer_methods[STEER_METHODS + 1] = {"caa", "mmdiff-scale", "mmdiff-sum", "decoder", NULL};

/* v [out] (C): what is added at `layer` for a strength; the edit's scale is returned. */
static double vector_at(const struct steering *x, const struct caa *c, int C, int layer, double strength, float *v) {
    const float *own = c->vectors ? c->vectors + (size_t)layer * (size_t)C : NULL;
    const float *row = x->sae ? x->sae->D + (size_t)x->feature * (size_t)C : NULL;
    memcpy(v, x->method == STEER_DECODER ? row : own, (size_t)C * sizeof *v);
    if (x->method == STEER_MMDIFF_SCALE) {
        mmdiff_scale(v, row, C, x->factor);
    } else if (x->method == STEER_MMDIFF_SUM) {
        mmdiff_sum(v, row, C, strength, layer == x->feature_layer ? x->factor : 0);
        return 1;
    } else {
        const double norm = vector_norm(v, C);
        for (int d = 0; d < C; d++) v[d] = (float)((double)v[d] / norm);
    }
    return strength;
}

/* The edits of one point. */
static void make_list(const struct steering *x, const struct model *m, const struct caa *c, const struct steer_point *p,
                      struct edit_list *l) {
    float *v = memory_take((size_t)m->d_model, sizeof *v);
    memset(l, 0, sizeof *l);
    l->path = memory_string("steering");
    if (x->method != STEER_MMDIFF_SUM) {
        const double scale = vector_at(x, c, m->d_model, p->layer, p->strength, v);
        edit_list_add_vector(l, m, p->layer, v, scale);
    }
    bool there = false; /* mmdiff-sum: every layer of the list, and the feature's */
    for (int i = 0; i < x->n_layers + 1 && x->method == STEER_MMDIFF_SUM; i++) {
        const int layer = i < x->n_layers ? x->layers[i] : x->feature_layer;
        if (i == x->n_layers && there) break;
        there = there || layer == x->feature_layer;
        const double scale = vector_at(x, c, m->d_model, layer, i < x->n_layers ? p->strength : 0, v);
        edit_list_add_vector(l, m, layer, v, scale);
    }
    free(v);
}

static void make_points(struct steering *x) {
    const bool fixed = x->method == STEER_MMDIFF_SCALE || x->method == STEER_MMDIFF_SUM;
    const int layers = fixed ? 1 : x->n_layers;
    x->n_points = layers * x->n_strengths;
    x->points = memory_take((size_t)x->n_points + 1, sizeof *x->points);
    for (int i = 0; i < x->n_points; i++)
        x->points[i] =
            (struct steer_point){fixed ? x->feature_layer : x->layers[i / x->n_strengths], x->strengths[i % x->n_strengths], NAN};
}

static void choose(struct steering *x) {
    x->chosen = 0;
    for (int i = 1; i < x->n_points; i++) {
        const struct steer_point *a = &x->points[i], *b = &x->points[x->chosen];
        if (a->accuracy > b->accuracy || (a->accuracy == b->accuracy && fabs(a->strength) < fabs(b->strength))) x->chosen = i;
    }
}

static int run_dev(struct steering *x, struct model *m, const struct caa *c, const struct steer_samples *dev, struct error *err) {
    const int n = x->n_points + 1;
    struct evaluation *results = memory_take((size_t)n, sizeof *results);
    struct edit_list *lists = memory_take((size_t)n, sizeof *lists);
    struct edits **edits = memory_take((size_t)n, sizeof(struct edits *));
    struct variant *variants = memory_take((size_t)n, sizeof *variants);
    int status = 0;
    for (int i = 0; i < n && status == 0; i++) {
        results[i] = (struct evaluation){.task = x->task, .max_new_tokens = x->max_new_tokens, .progress = i ? NULL : "steer: dev"};
        if (i) make_list(x, m, c, &x->points[i - 1], &lists[i]);
        if (i) status = edits_open(&edits[i], m, &lists[i], err);
        if (status == 0) variants[i].probes = edits_before(edits[i], NULL, 0, &variants[i].n_probes);
        variants[i].out = &results[i];
    }
    if (status == 0) status = evaluate_variants(m, dev->s, dev->first, dev->count, variants, n, true, x->batch, err);
    if (status == 0 && !results[0].scored) status = fail(err, "%s: no line has anything to score against", dev->s->path);
    for (int i = 0; i < n && status == 0; i++) {
        const double accuracy = results[i].correct / (double)results[i].scored;
        if (i)
            x->points[i - 1].accuracy = accuracy;
        else
            x->dev_baseline = accuracy, x->dev_n = (long)results[i].scored;
    }
    for (int i = 0; i < n; i++) {
        free((void *)(uintptr_t)variants[i].probes);
        edits_close(edits[i]);
        edit_list_free(&lists[i]);
        evaluation_free(&results[i]);
    }
    free(results), free(lists), free(edits), free(variants);
    return status;
}

int steer(struct steering *x, struct model *m, const struct steer_samples *train, const struct steer_samples *dev,
          const struct steer_samples *test, struct error *err) {
    struct caa c = {0};
    struct edit_list l = {0};
    int status = 0;
    x->points = NULL;
    x->test = (struct intervention){.task = x->task,
                                    .max_new_tokens = x->max_new_tokens,
                                    .batch = x->batch,
                                    .controls = x->controls,
                                    .kind = CONTROL_DIRECTIONS,
                                    .seed = x->seed,
                                    .progress = "steer: test"};
    make_points(x);
    if (x->method != STEER_DECODER)
        status = caa_make(&c, m, train->s, train->first, train->count, x->contrast, evaluation_task_of(train->s), x->batch, err);
    x->positive = c.positive, x->negative = c.negative;
    for (int layer = 0; layer < c.layers && status == 0; layer++)
        if (!(vector_norm(c.vectors + (size_t)layer * (size_t)c.width, c.width) > 0))
            status =
                fail(err, "%s: right and wrong have the same mean in layer %d; there is no direction to steer in", train->s->path, layer);
    if (status == 0) status = run_dev(x, m, &c, dev, err);
    if (status == 0) {
        choose(x);
        make_list(x, m, &c, &x->points[x->chosen], &l);
        status = intervene(&x->test, m, &l, test->s, test->first, test->count, err);
    }
    edit_list_free(&l);
    caa_free(&c);
    return status;
}

void steering_free(struct steering *x) {
    free(x->points);
    x->points = NULL;
    intervention_free(&x->test);
}
