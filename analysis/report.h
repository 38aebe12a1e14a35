/* report.h - the parts of report.html: each reads run.db and writes HTML to `out`. Internal to analysis/report*.c, figures.c.
 * Nothing in the page leads outside it: no script, no link, no font; pictures are data URIs, figures inline SVG. */
#ifndef ANALYSIS_REPORT_H
#define ANALYSIS_REPORT_H
#include "analysis/summary.h"
struct report {
    const struct run_config *c;
    sqlite3 *db;
    FILE *out;
    struct run_summary summary;
    const char *scratch; /* folder for gnuplot's files, removed afterwards */
    int figures, tables; /* numbered so far */
    char gnuplot[64];    /* its version, as its figures tell it */
};

/* report_html.c */
extern const char *const report_css[];       /* in pieces, NULL at the end */
void html_text(FILE *out, const char *text); /* escaped: & < > " ' */
void html_bytes(FILE *out, const char *text, size_t bytes);
void html_base64(FILE *out, const void *data, size_t bytes);
void html_count(FILE *out, long n); /* 12,345 with thin spaces: 12 345 */
/* A number as a person would write it: 3 significant digits, powers of ten for the very small; NaN is a dash. */
void html_number(FILE *out, double x);
void html_table_open(struct report *r, const char *caption); /* <table> and "Table n. caption"; caption is HTML */
void html_figure_open(struct report *r);                     /* <figure>; the SVG follows */
void html_figure_close(struct report *r, const char *title, const char *caption_format, ...) __attribute__((format(printf, 3, 4)));

/* figures.c: gnuplot script in, SVG out */
struct figure {
    FILE *script;
    char *script_path, *svg_path, *error_path, id[16];
};
int figure_open(struct figure *f, struct report *r, int width, int height, struct error *err);
int figure_close(struct figure *f, struct report *r, const char *description, struct error *err); /* draws; frees f in any case */
void figure_abort(struct figure *f);

/* report_figures.c, report_features.c, report_tasks.c, ..: sections; those of stages that did not run write nothing */
int report_reconstruction(struct report *r, struct error *err);
int report_adapted(struct report *r, struct error *err);
int report_features(struct report *r, struct error *err);
/* One feature with its examples; the tasks that it fires for, by token kind (report_tasks.c). */
int report_card(struct report *r, int layer, int feature, struct error *err);
int report_feature_tasks(struct report *r, int layer, int feature, struct error *err);
int report_tasks(struct report *r, struct error *err);
int report_evaluations(struct report *r, struct error *err);
/* report_heads.c: head maps of the targets, where heads look; report_effects.c: interventions, steering. On a card: the heads of the target
 * "L<layer>F<feature>", and the interventions that take the feature away. */
int report_heads(struct report *r, struct error *err);
int report_effects(struct report *r, struct error *err);
int report_steering(struct report *r, struct error *err);
int report_feature_heads(struct report *r, int layer, int feature, struct error *err);
int report_feature_effects(struct report *r, int layer, int feature, struct error *err);
double report_rank_correlation(const double *x, const double *y, int n); /* Spearman's; NaN where one of them does not vary */
int report_provenance(struct report *r, struct error *err);
#endif
