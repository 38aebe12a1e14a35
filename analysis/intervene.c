/* intervene.c - see intervene.h. Baseline, intervention and all controls go over the samples together, a batch at a time. */
#include "analysis/intervene.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool edit_list_after_image(const struct edit_list *l) {
    for (int i = 0; i < l->n; i++)
        if (!l->at[i].after_image && l->at[i].kinds != 1u << KIND_ANSWER) return false;
    return true;
}

double *scores_of(const struct evaluation *e, const struct samples *s, size_t first, const char *relation) {
    double *scores = memory_take(e->count + 1, sizeof *scores);
    for (size_t i = 0; i < e->count; i++) {
        const struct sample *one = &s->at[first + i];
        const char *own = e->task == EVALUATE_VSR ? one->relation : json_string_value(json_object_get(one->json, "answer_type"));
        scores[i] = relation && (!own || strcmp(own, relation)) ? NAN : e->at[i].score;
    }
    return scores;
}

struct draw { /* a control while it runs */
    struct edit_list list;
    struct edits *edits;
    struct evaluation result;
};

static int open_draws(struct draw *draws, const struct intervention *x, const struct controls *c, const struct model *m,
                      struct error *err) {
    int status = 0;
    for (int i = 0; i < x->controls && status == 0; i++) {
        controls_draw(c, i, &draws[i].list);
        draws[i].result = (struct evaluation){.task = x->task, .max_new_tokens = x->max_new_tokens};
        status = edits_open(&draws[i].edits, m, &draws[i].list, err);
    }
    return status;
}

static void judge(struct intervention *x, const struct draw *draws, const struct samples *s, size_t first) {
    struct effect *e = &x->effect;
    double *base = scores_of(&x->baseline, s, first, NULL), *after = scores_of(&x->intervened, s, first, NULL), sum = 0;
    paired_compare(&e->pair, base, after, x->baseline.count, x->seed);
    e->controls = x->controls;
    e->control_delta = memory_take((size_t)x->controls + 1, sizeof *e->control_delta);
    for (int i = 0; i < x->controls; i++) {
        e->control_delta[i] = (draws[i].result.correct - x->baseline.correct) / (double)(x->baseline.scored ? x->baseline.scored : 1);
        sum += e->control_delta[i];
        e->beyond += e->pair.delta < 0 ? e->control_delta[i] <= e->pair.delta : e->control_delta[i] >= e->pair.delta;
    }
    double *sorted = memory_take((size_t)x->controls + 1, sizeof *sorted);
    memcpy(sorted, e->control_delta, (size_t)x->controls * sizeof *sorted);
    e->control_mean = x->controls ? sum / x->controls : NAN;
    e->control_low = percentile(sorted, (size_t)x->controls, 2.5);
    e->control_high = percentile(sorted, (size_t)x->controls, 97.5);
    free(sorted), free(base), free(after);
}

int intervene(struct intervention *x, struct model *m, const struct edit_list *l, const struct samples *s, size_t first, size_t count,
              struct error *err) {
    const int n = x->controls + 2;
    struct controls *controls = NULL;
    struct edits *edits = NULL;
    struct draw *draws = memory_take((size_t)x->controls + 1, sizeof *draws);
    struct variant *variants = memory_take((size_t)n, sizeof *variants);
    x->effect = (struct effect){0};
    x->baseline = x->intervened = (struct evaluation){.task = x->task, .max_new_tokens = x->max_new_tokens};
    x->baseline.progress = x->progress;
    int status = edits_open(&edits, m, l, err);
    if (status == 0 && x->controls)
        status = controls_open(&controls, m, l, x->reference ? x->reference : s, x->reference ? x->reference_first : first,
                               x->reference ? x->reference_count : count, x->kind, x->controls, x->seed, x->batch, err);
    if (status == 0 && x->controls) status = open_draws(draws, x, controls, m, err);
    for (int i = 0; i < n && status == 0; i++) {
        struct edits *own = i == 0 ? NULL : i == 1 ? edits : draws[i - 2].edits;
        variants[i].probes = edits_before(own, NULL, 0, &variants[i].n_probes);
        variants[i].out = i == 0 ? &x->baseline : i == 1 ? &x->intervened : &draws[i - 2].result;
    }
    if (status == 0) status = evaluate_variants(m, s, first, count, variants, n, edit_list_after_image(l), x->batch, err);
    if (status == 0) judge(x, draws, s, first);
    for (int i = 0; i < n; i++) free((void *)(uintptr_t)variants[i].probes);
    for (int i = 0; i < x->controls; i++) {
        edits_close(draws[i].edits);
        evaluation_free(&draws[i].result);
        edit_list_free(&draws[i].list);
    }
    edits_close(edits);
    controls_close(controls);
    free(draws), free(variants);
    return status;
}

void intervention_free(struct intervention *x) {
    evaluation_free(&x->baseline);
    evaluation_free(&x->intervened);
    free(x->effect.control_delta);
    x->effect = (struct effect){0};
}
