/* summary.h - the run in a few numbers and sentences, read from run.db; shared by the report's head and the end of `stagediff run`. */
#ifndef ANALYSIS_SUMMARY_H
#define ANALYSIS_SUMMARY_H
#include "analysis/run.h"
#include <stdio.h>
/* The base dictionaries as training starts from them (TopK), over all tokens, the image rows alone, everything but the image rows;
 * and with the activation function they came with, over all tokens. */
enum { SUMMARY_BASE = REGIME_COUNT, SUMMARY_BASE_IMAGE, SUMMARY_BASE_TEXT, SUMMARY_BASE_NATIVE, SUMMARY_ROWS, SUMMARY_SENTENCES = 6 };

struct spread { /* over layers; sd with n - 1, 0 for one layer */
    double mean, sd, low, high;
};
struct regime_summary {
    int layers;  /* with metrics; 0: none */
    long tokens; /* of the layer with most */
    struct spread fvu, fvu_as_coded, l0, dead_share;
    long features, visual, adapted; /* all layers together, 0 before `diff`; visual: E_v > eps */
    double median_cosine;           /* decoder, to the base SAE */
};
struct layer_share {
    int layer;
    long features, visual, adapted;
    double median_cosine;
};
struct run_summary {
    struct regime_summary regime[SUMMARY_ROWS];
    const char *diff_regime;                  /* the one that `layer` is about */
    double eps, percentile, cosine_threshold; /* as the stage used them; NaN before `diff` */
    int n_layers;                             /* rows of `layer`, 0 before `diff` */
    struct layer_share *layer;                /* rising */
};
const char *summary_row_name(int row);   /* "full", ..., "base": the database's word */
int summary_base_of(enum regime regime); /* the base row over the same tokens */
const char *summary_row_title(int row);  /* "full sequence", ..., "base SAE, text": for people */
int run_summary_read(struct run_summary *s, sqlite3 *db, const struct run_config *c, struct error *err);
void run_summary_free(struct run_summary *s);
/* The findings in plain sentences; how many were written. */
int run_summary_sentences(const struct run_summary *s, char sentences[SUMMARY_SENTENCES][512]);
/* What select, evaluate and intervene found, likewise; strongest interventions first. */
int run_summary_causes(sqlite3 *db, char sentences[SUMMARY_SENTENCES][512]);
void run_summary_print(FILE *out, const struct run_summary *s, sqlite3 *db, const struct run_config *c);

double run_db_number(sqlite3 *db, const char *stage, const char *name, double fallback); /* a fact; fallback when absent */
char *run_db_text(sqlite3 *db, const char *stage, const char *name);                     /* malloced; NULL when absent */
long run_db_count(sqlite3 *db, const char *sql);                                         /* first column of the first row, 0 without */
#endif
