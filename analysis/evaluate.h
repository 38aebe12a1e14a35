/* evaluate.h - answers of a model to data lines, scored as the benchmarks score them (docs/cli.md "Scoring").
 *   VQA   greedy answer, soft accuracy of the VQA challenge against the line's `answers` (or its `answer`)
 *   VSR   yes or no by next-token probability, right when it is the line's `label` */
#ifndef ANALYSIS_EVALUATE_H
#define ANALYSIS_EVALUATE_H
#include "models/model.h"
#include <stdbool.h>

enum evaluation_task { EVALUATE_VQA, EVALUATE_VSR };
enum { EVALUATE_NEW_TOKENS = 16 };
struct evaluated {
    double score; /* VQA: soft accuracy, 0 to 1; VSR: 1 right, 0 wrong; NaN: the line has nothing to score against */
    double p_yes; /* VSR: mass of yes / (mass of yes + mass of no); NaN for VQA */
    char *text;   /* VQA: what was generated, special tokens skipped; VSR: "yes" or "no" */
    bool stopped; /* VQA: ended by itself, before max_new_tokens */
};
struct evaluation {
    enum evaluation_task task; /* set by the caller, as the next two */
    int max_new_tokens;        /* VQA; 0: 16 */
    const char *progress;      /* what the progress line says; NULL: no line */
    struct evaluated *at;      /* owned */
    size_t count;              /* samples */
    size_t scored;             /* samples with a score */
    double correct;            /* sum of the scores */
};
/* Asks the model samples [first, first + count) of s, `batch` at a time, with the caller's probes on every pass (new tokens too), and
 * scores them. 0; -1 with err; 128+signal when stopped. `out` then holds nothing. */
int evaluate_samples(struct model *m, const struct samples *s, size_t first, size_t count, const struct probe *probes, int n_probes,
                     int batch, struct evaluation *out, struct error *err);
/* The same samples under several sets of probes, each scored by itself: what comes out the same is done once a batch (models/prefix.h).
 * task and max_new_tokens as in the first; after_image: every set touches rows behind the image alone. */
struct variant {
    const struct probe *probes;
    int n_probes;
    struct evaluation *out;
};
int evaluate_variants(struct model *m, const struct samples *s, size_t first, size_t count, const struct variant *variants, int n,
                      bool after_image, int batch, struct error *err);
void evaluation_free(struct evaluation *e);
/* What the lines ask for: VSR where the first has a label, else VQA. */
enum evaluation_task evaluation_task_of(const struct samples *s);

/* Scores counted by split (the lines' value of the key split_by; NULL: none) and relation (VSR's relation, VQA's answer_type); "all" and
 * "all" is the first row. */
struct tally {
    char *split, *relation; /* owned */
    long n;                 /* scored samples */
    double correct;         /* sum of their scores */
};
struct tallies {
    struct tally *at;
    int count;
};
void tally_all(struct tallies *t, const struct evaluation *e, const struct samples *s, size_t first, const char *split_by);
void tallies_free(struct tallies *t);
/* One answer as a JSON object, new: id, text, score (null: not scored), and p_yes (VSR) or stopped ("eos", "length"; VQA). */
json_t *evaluated_json(const struct evaluation *e, size_t i, const struct sample *s);

/* Tokens whose next-token mass says yes and no: the first tokens of " Yes", "Yes", " yes", "YES" and of " No", "No", " no", "NO", each
 * once, without those that both lists hold (papers.md 1.6). Error when one of the lists is empty then. */
struct yes_no {
    int yes[4], no[4], n_yes, n_no;
};
int yes_no_tokens(struct yes_no *w, const struct tokenizer *tok, struct error *err);
/* Mass of yes / (mass of yes + mass of no) in softmax(logits (V)), in double. Yes is said when it is above 1/2: a tie counts as no. */
double yes_no_probability(const struct yes_no *w, const float *logits, int V);

/* The references of a line: `answers` (strings or {"answer": ..}), else `answer`; *out malloced, its strings borrowed. Returns how many, -1
 * with err. */
int references_of(const struct sample *s, const char ***out, struct error *err);

/* The official soft accuracy of one answer (evaluate_vqa.c), n >= 1 references. vqa_normalise: malloced. Texts are valid UTF-8. */
double vqa_accuracy(const char *answer, const char *const *references, int n);
char *vqa_normalise(const char *text);
#endif
