/* select.h - which features fire for a task (papers.md 1.4): firing on a target set against a general one.
 *   table      [[a, A - a], [b, B - b]]: tokens of the target (general) set on which the feature fires, of A (B) tokens; z > 0
 *   selected   odds ratio >= 3 and a/A - b/B >= 0.05 (both free); Fisher's test and its q-value are reported, not used
 *   invariant  on each of the feature's strongest target samples, its picture with the best of the neutral prompts makes z > 0.01
 *   the task's features = selected, adapted and not refused by the prompt filter */
#ifndef ANALYSIS_SELECT_H
#define ANALYSIS_SELECT_H
#include "analysis/diff.h"

/* a (B - b) / (b (A - a)); 1e9 where that is infinite, NaN where the feature fires on no token of both sets or on all. */
double odds_ratio(int64_t a, int64_t A, int64_t b, int64_t B);
/* log10 of P(X >= a), X hypergeometric: Fisher's exact test, alternative "greater"; any counts, relative error of p below 1e-10. */
double fisher_greater_log10(int64_t a, int64_t A, int64_t b, int64_t B);
/* q [out] (n): Benjamini & Hochberg's adjusted p: q_(i) = min over j >= i of min(1, p_(j) n / j). */
void benjamini_hochberg(double *q, const double *p, size_t n);

enum { SELECT_TARGET, SELECT_GENERAL, SELECT_SETS };
struct select_layer {            /* one layer's features, M of each array */
    struct diff_job job;         /* the regime's dictionary; its top samples are those of the target set */
    int64_t *fired[SELECT_SETS]; /* (DIFF_BASE, M): by token group of diff.h, image rows, words, template */
    double *odds, *log10_p, *q;
    uint8_t *selected, *adapted;
    int8_t *invariant; /* 1, 0, -1: not looked at */
};
struct select_task {
    const struct run_select *c;
    long tokens[SELECT_SETS][DIFF_GROUPS];
    bool counts[DIFF_GROUPS]; /* token groups that are counted: those that the regime trains on */
};
/* Sums over the counted groups. */
int64_t select_fired(const struct select_task *t, const struct select_layer *l, int set, int feature);
long select_tokens(const struct select_task *t, int set);
/* Statistics and `selected` of all layers of a task from the counts. */
void select_decide(const struct select_task *t, struct select_layer *layers, int n_layers);

/* select_prompts.c: the prompt filter, for every selected feature; fills `invariant`. s: the target set, whose samples job.top names. */
int select_prompts(const struct select_task *t, struct select_layer *layers, int n_layers, struct diff_buffers *b, struct model *m,
                   const struct run_config *c, const struct samples *s, struct error *err);

/* select_write.c: rows of tasks and task_rows (view task_features). */
int select_write(sqlite3 *db, const struct select_task *t, const struct select_layer *layers, int n_layers, struct error *err);
struct task_feature {
    int layer, feature;
};
/* The features of a task in run.db: selected, adapted and not refused by the prompt filter; of them the `top` whose firing rate gains most
 * from the general to the target set (0: all), by layer and index. *at malloced. No such task is an error that names those there are. */
int task_features(struct task_feature **at, int *n, sqlite3 *db, const char *task, int top, struct error *err);
/* The same, strongest first: rows of layer, feature, whether the regime has examples of it. The caller finalizes q. */
int task_strongest(sqlite3_stmt **q, sqlite3 *db, const char *task, const char *regime, int top, struct error *err);
int task_cards(const struct run_config *c); /* how many a task shows: a third of report.features */
#endif
