/* report.c - report.html: one file that holds everything, written from run.db alone (and never writing to it). */
#include "analysis/report.h"
#include "host/file.h"
#include "host/version.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *last_part(const char *path) {
    const char *slash = path ? strrchr(path, '/') : NULL;
    return slash && slash[1] ? slash + 1 : path ? path : "";
}

static void tile(struct report *r, const char *number, const char *text) {
    fprintf(r->out, "<div class=\"tile\"><b>%s</b>%s</div>\n", number, text);
}

static void tiles(struct report *r) {
    char number[64], text[128];
    const struct run_summary *s = &r->summary;
    const struct regime_summary *d = &s->regime[r->c->diff_regime];
    fputs("<div class=\"tiles\">\n", r->out);
    if (d->layers) {
        snprintf(number, sizeof number, "%.3f", d->fvu.mean);
        snprintf(text, sizeof text, "mean FVU of the %s dictionaries on held-out samples", summary_row_title((int)r->c->diff_regime));
        tile(r, number, text);
    }
    const struct regime_summary *before = &s->regime[summary_base_of(r->c->diff_regime)];
    if (before->layers) {
        snprintf(number, sizeof number, "%.3f", before->fvu.mean);
        tile(r, number, "mean FVU of the base dictionaries on the same tokens, before tuning");
    }
    if (d->features) {
        snprintf(number, sizeof number, "%.1f&thinsp;%%", 100.0 * (double)d->adapted / (double)d->features);
        tile(r, number, "of all features adapted: turned and visual");
        snprintf(number, sizeof number, "%.3f", d->median_cosine);
        tile(r, number, "median decoder cosine to the base dictionaries");
    }
    fputs("</div>\n", r->out);
}

/* Sections of stages that a run may leave out: are there rows, id, name. */
static const char *const optional[][3] = {
    {"SELECT count(*) FROM tasks", "tasks", "Task features"},  {"SELECT count(*) FROM evaluations", "evaluations", "Answers"},
    {"SELECT count(*) FROM head_scores", "heads", "Heads"},    {"SELECT count(*) FROM interventions", "interventions", "Interventions"},
    {"SELECT count(*) FROM steering", "steering", "Steering"},
};

static void head(struct report *r) {
    char when[64], sentences[SUMMARY_SENTENCES][512];
    time_t now = time(NULL);
    struct tm utc;
    strftime(when, sizeof when, "%e %B %Y, %H:%M UTC", gmtime_r(&now, &utc));
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
          "content=\"width=device-width,initial-scale=1\">\n"
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src "
          "data:\">\n<title>stagediff: ",
          r->out);
    html_text(r->out, last_part(r->c->out));
    fputs("</title>\n<style>\n", r->out);
    for (const char *const *css = report_css; *css; css++) fputs(*css, r->out);
    fputs("</style>\n</head>\n<body>\n<main>\n<header>\n<p class=\"eyebrow\">stagediff &middot; run ", r->out);
    html_text(r->out, last_part(r->c->out));
    fprintf(r->out,
            " &middot; %s</p>\n<h1>What multimodal training changed inside the language model</h1>\n<p class=\"lede\">Stage-wise diff of "
            "the vision-language model <code>",
            when);
    html_text(r->out, last_part(r->c->model));
    fputs("</code> against its base language model <code>", r->out);
    html_text(r->out, last_part(r->c->base));
    fputs("</code>, through sparse dictionaries of every layer&rsquo;s residual stream.</p>\n"
          "<nav><a href=\"#reconstruction\">Reconstruction</a><a href=\"#adapted\">Adapted features</a><a href=\"#features\">Feature by "
          "feature</a>",
          r->out);
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++)
        if (run_db_count(r->db, optional[i][0])) fprintf(r->out, "<a href=\"#%s\">%s</a>", optional[i][1], optional[i][2]);
    fputs("<a href=\"#run\">This run</a><a href=\"#glossary\">Glossary</a></nav>\n</header>\n", r->out);
    tiles(r);
    int n = run_summary_sentences(&r->summary, sentences);
    fputs("<ul class=\"findings\">\n", r->out);
    for (int i = 0; i < n; i++) {
        fputs("<li>", r->out);
        for (char *at = sentences[i]; *at;) {
            char *energy = strstr(at, "E_v");
            html_bytes(r->out, at, energy ? (size_t)(energy - at) : strlen(at));
            if (!energy) break;
            fputs("E<sub>v</sub>", r->out);
            at = energy + 3;
        }
        fputs("</li>\n", r->out);
    }
    n = run_summary_causes(r->db, sentences);
    for (int i = 0; i < n; i++) {
        fputs("<li>", r->out);
        html_text(r->out, sentences[i]);
        fputs("</li>\n", r->out);
    }
    fputs("</ul>\n", r->out);
}

static int facts_table(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(r->db, &q, err, "SELECT stage, name, value FROM facts ORDER BY stage = 'train' DESC, stage, name", "")) return -1;
    html_table_open(r, "Facts that the stages recorded.");
    fputs("<thead><tr><th>stage</th><th style=\"text-align:left\">fact</th><th>value</th></tr></thead><tbody>\n", r->out);
    while (sqlite3_step(q) == SQLITE_ROW) {
        fputs("<tr><td>", r->out);
        html_text(r->out, (const char *)sqlite3_column_text(q, 0));
        fputs("</td><td style=\"text-align:left\">", r->out);
        for (const char *at = (const char *)sqlite3_column_text(q, 1); *at; at++) html_bytes(r->out, *at == '_' ? " " : at, 1);
        fputs("</td><td>", r->out);
        if (sqlite3_column_type(q, 2) == SQLITE_TEXT)
            html_text(r->out, (const char *)sqlite3_column_text(q, 2));
        else if (sqlite3_column_type(q, 2) == SQLITE_NULL)
            fputs("&ndash;", r->out);
        else if (sqlite3_column_double(q, 2) == floor(sqlite3_column_double(q, 2)) && fabs(sqlite3_column_double(q, 2)) < 1e15)
            html_count(r->out, sqlite3_column_int64(q, 2));
        else
            html_number(r->out, sqlite3_column_double(q, 2));
        fputs("</td></tr>\n", r->out);
    }
    sqlite3_finalize(q);
    fputs("</tbody></table></div>\n", r->out);
    return 0;
}

static int stages_table(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(r->db, &q, err, "SELECT stage, seconds, finished FROM stages WHERE stage <> 'report' ORDER BY finished", ""))
        return -1;
    html_table_open(r, "Stages and what they took.");
    fputs("<thead><tr><th>stage</th><th>seconds</th><th>finished (UTC)</th></tr></thead><tbody>\n", r->out);
    while (sqlite3_step(q) == SQLITE_ROW) {
        fputs("<tr><td>", r->out);
        html_text(r->out, (const char *)sqlite3_column_text(q, 0));
        fprintf(r->out, "</td><td>%.1f</td><td>", sqlite3_column_double(q, 1));
        html_text(r->out, (const char *)sqlite3_column_text(q, 2));
        fputs("</td></tr>\n", r->out);
    }
    sqlite3_finalize(q);
    fputs("</tbody></table></div>\n", r->out);
    return 0;
}

static const char *const glossary[][2] = {
    {"Feature", "One direction of a dictionary (sparse autoencoder): an encoder row that decides when it fires and a decoder row that says "
                "what it adds. Its index is the same "
                "before and after fine-tuning."},
    {"z<sub>f</sub>", "Code of feature f at a token, times the length of its decoder row, so that values compare across features, layers "
                      "and formats (unit-decoder convention)."},
    {"E<sub>v</sub>, visual energy", "Mean of z<sub>f</sub>&sup2; over the tokens of the vision-language model's run: image rows and text, "
                                     "without the begin-of-sequence token."},
    {"E<sub>t</sub>, text energy", "Mean of z<sub>f</sub>&sup2; over the tokens of the base language model's run on the same questions, "
                                   "without pictures, in its own chat template."},
    {"Decoder cosine", "Cosine between a feature's decoder row in the tuned and in the base dictionary: 1 is untouched, 0 is unrelated. "
                       "Encoder cosine likewise."},
    {"Adapted", "E<sub>v</sub> above a threshold and decoder cosine at most the p-th percentile of all layers' cosines pooled (linear "
                "interpolation)."},
    {"FVU", "Fraction of variance unexplained: sum of squared reconstruction errors over sum of squared distances to the mean, over all "
            "kept tokens together."},
    {"FVU as coded", "The variant in the published code: masked positions enter the variance as zero vectors, which makes the denominator "
                     "larger and the figure smaller."},
    {"L0", "Mean number of features with a positive code at a token."},
    {"Dead", "Features that never fired on the tokens evaluated."},
    {"Full, image-only, text-only", "Which tokens a dictionary was tuned on: all, the image rows, or everything but the image rows. The "
                                    "begin-of-sequence token is never used."},
    {"Random start",
     "The same training on all tokens from random unit directions instead of the base dictionary: what training alone gives."},
    {"Odds ratio",
     "Of firing on a token of the target set to firing on one of the general set. Infinite when a feature never fires on the latter."},
    {"Neutral prompts", "Prompts without the task's words, put to a feature's strongest pictures in place of the question."},
    {"Patch", "The square of the picture that one image row of the language model's input came from."},
};

int report_provenance(struct report *r, struct error *err) {
    fputs("<h2 id=\"run\">This run</h2>\n", r->out);
    if (stages_table(r, err) || facts_table(r, err)) return -1;
    fprintf(r->out, "<p>stagediff %s, SQLite %s, gnuplot %s.</p>\n", STAGEDIFF_VERSION, sqlite3_libversion(),
            *r->gnuplot ? r->gnuplot : "not needed");
    fputs("<details><summary>Configuration (config.json)</summary><pre>", r->out);
    char *config = r->c->resolved ? json_dumps(r->c->resolved, JSON_INDENT(2)) : NULL;
    html_text(r->out, config);
    free(config);
    fputs("</pre></details>\n<h2 id=\"glossary\">Glossary</h2>\n<dl>\n", r->out);
    for (size_t i = 0; i < sizeof glossary / sizeof *glossary; i++)
        fprintf(r->out, "<dt>%s</dt><dd>%s</dd>\n", glossary[i][0], glossary[i][1]);
    fputs("</dl>\n<footer>Written by stagediff from <code>run.db</code>, which holds every number of this page and more; the views "
          "<code>layer_metrics</code> and "
          "<code>feature_metrics</code> are made for your own queries. The page needs no network.</footer>\n</main>\n</body>\n</html>\n",
          r->out);
    return 0;
}

int stage_report(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err) {
    (void)dev;
    struct report r = {.c = c, .db = db};
    struct file_writer w;
    int status = -1;
    char *path = path_join(c->out, "report.html"), *scratch = path_join(c->out, ".figures-XXXXXX");
    if (run_summary_read(&r.summary, db, c, err)) goto no_summary;
    if (!mkdtemp(scratch)) {
        fail(err, "%s: cannot make a temporary folder for the figures: %s", c->out, strerror(errno));
        goto no_scratch;
    }
    r.scratch = scratch;
    if (file_writer_open(&w, path, err)) goto no_file;
    r.out = w.stream;
    head(&r);
    int (*const sections[])(struct report *, struct error *) = {report_reconstruction, report_adapted,     report_features,
                                                                report_tasks,          report_evaluations, report_heads,
                                                                report_effects,        report_steering,    report_provenance};
    int written = 0;
    for (size_t i = 0; i < sizeof sections / sizeof *sections && written == 0; i++) written = sections[i](&r, err);
    if (written)
        file_writer_abort(&w);
    else
        status = file_writer_commit(&w, err);
no_file:
    rmdir(scratch);
no_scratch:
    run_summary_free(&r.summary);
no_summary:
    free(path);
    free(scratch);
    return status;
}
