/* intervene.h - what an edit list does to a model's scores: the same samples without and with it, and with matched controls in its place.
 */
#ifndef ANALYSIS_INTERVENE_H
#define ANALYSIS_INTERVENE_H
#include "analysis/control.h"
#include "analysis/evaluate.h"
#include "analysis/paired.h"

struct effect {                                     /* on one set of samples */
    struct paired pair;                             /* scores without and with the edits */
    int controls;                                   /* draws; 0: none, and what follows is NaN, NULL, 0 */
    double *control_delta;                          /* (controls), owned: the draws' deltas, in their order */
    double control_mean, control_low, control_high; /* their mean, 2.5 and 97.5 percentile */
    int beyond;                                     /* draws whose delta is at least as far in the effect's direction */
};
struct intervention {
    enum evaluation_task task; /* set by the caller, down to reference_count */
    int max_new_tokens, batch, controls;
    enum control_kind kind;
    uint64_t seed;
    const char *progress;
    const struct samples *reference; /* where features' firing is counted for matched controls; NULL: the samples that are asked */
    size_t reference_first, reference_count;
    struct evaluation baseline, intervened; /* owned */
    struct effect effect;
};
/* 0; -1 with err; 128+signal when stopped. Free it in any case. */
int intervene(struct intervention *x, struct model *m, const struct edit_list *l, const struct samples *s, size_t first, size_t count,
              struct error *err);
void intervention_free(struct intervention *x);
/* Do all edits leave the rows up to the image alone? */
bool edit_list_after_image(const struct edit_list *l);
/* Scores of an evaluation as paired_compare takes them; malloced. relation: only samples of it (others NaN); NULL: all. */
double *scores_of(const struct evaluation *e, const struct samples *s, size_t first, const char *relation);
#endif
