/* summary.c - the run in a few numbers and sentences. Spread is over layers: mean, standard deviation (n - 1), range. */
#include "analysis/summary.h"
#include "host/file.h"
#include "host/check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *summary_row_name(int row) {
    static const char *const base[] = {"base", "base_image", "base_text", "base_native"};
    return row < REGIME_COUNT ? regime_names[row] : base[row - REGIME_COUNT];
}

const char *summary_row_title(int row) {
    static const char *const titles[SUMMARY_ROWS] = {"full sequence", "image-only",           "text-only",      "random start",
                                                     "base SAE",      "base SAE, image rows", "base SAE, text", "base SAE, own activation"};
    return titles[row];
}

int summary_base_of(enum regime regime) {
    return regime == REGIME_IMAGE ? SUMMARY_BASE_IMAGE : regime == REGIME_TEXT ? SUMMARY_BASE_TEXT : SUMMARY_BASE;
}

static int summary_row(const char *name) {
    for (int row = 0; row < SUMMARY_ROWS; row++)
        if (strcmp(name, summary_row_name(row)) == 0) return row;
    return -1;
}

double run_db_number(sqlite3 *db, const char *stage, const char *name, double fallback) {
    struct error err;
    sqlite3_stmt *s = NULL;
    double value = fallback;
    if (run_db_prepare(db, &s, &err, "SELECT value FROM facts WHERE stage = ? AND name = ?", "tt", stage, name)) return fallback;
    if (sqlite3_step(s) == SQLITE_ROW && sqlite3_column_type(s, 0) != SQLITE_NULL) value = sqlite3_column_double(s, 0);
    sqlite3_finalize(s);
    return value;
}

char *run_db_text(sqlite3 *db, const char *stage, const char *name) {
    struct error err;
    sqlite3_stmt *s = NULL;
    char *text = NULL;
    if (run_db_prepare(db, &s, &err, "SELECT value FROM facts WHERE stage = ? AND name = ?", "tt", stage, name)) return NULL;
    if (sqlite3_step(s) == SQLITE_ROW && sqlite3_column_type(s, 0) != SQLITE_NULL) text = strdup((const char *)sqlite3_column_text(s, 0));
    sqlite3_finalize(s);
    return text;
}

long run_db_count(sqlite3 *db, const char *sql) {
    struct error err;
    sqlite3_stmt *s = NULL;
    long n = 0;
    if (run_db_prepare(db, &s, &err, sql, "")) return 0;
    if (sqlite3_step(s) == SQLITE_ROW) n = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return n;
}

/* Adds one value; `sd` holds the running sum of squared deviations (Welford) until spread_end. */
static void spread_add(struct spread *s, int n_before, double x) {
    double delta = x - s->mean;
    s->mean += delta / (n_before + 1);
    s->sd += delta * (x - s->mean);
    s->low = n_before == 0 || x < s->low ? x : s->low;
    s->high = n_before == 0 || x > s->high ? x : s->high;
}

static void spread_end(struct spread *s, int n) { s->sd = n > 1 ? sqrt(s->sd / (n - 1)) : 0; }

static int read_metrics(struct run_summary *s, sqlite3 *db, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(db, &q, err, "SELECT regime, tokens, fvu, fvu_as_coded, l0, dead_features, features FROM layers ORDER BY layer", ""))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        int row = summary_row((const char *)sqlite3_column_text(q, 0));
        if (row < 0) continue;
        struct regime_summary *r = &s->regime[row];
        double features = sqlite3_column_double(q, 6);
        r->tokens = sqlite3_column_int64(q, 1) > r->tokens ? sqlite3_column_int64(q, 1) : r->tokens;
        spread_add(&r->fvu, r->layers, sqlite3_column_double(q, 2));
        spread_add(&r->fvu_as_coded, r->layers, sqlite3_column_double(q, 3));
        spread_add(&r->l0, r->layers, sqlite3_column_double(q, 4));
        spread_add(&r->dead_share, r->layers, features > 0 ? sqlite3_column_double(q, 5) / features : 0);
        r->layers++;
    }
    sqlite3_finalize(q);
    for (int row = 0; row < SUMMARY_ROWS; row++) {
        struct regime_summary *r = &s->regime[row];
        spread_end(&r->fvu, r->layers);
        spread_end(&r->fvu_as_coded, r->layers);
        spread_end(&r->l0, r->layers);
        spread_end(&r->dead_share, r->layers);
    }
    return 0;
}

/* Median of decoder cosines, one layer's or (layer < 0) a regime's. */
static double median_cosine(sqlite3 *db, const char *regime, long layer, long n) {
    struct error err;
    sqlite3_stmt *q = NULL;
    double median = NAN;
    if (run_db_prepare(db, &q, &err,
                       "SELECT avg(decoder_cosine) FROM (SELECT decoder_cosine FROM features WHERE regime = ?1 AND (?2 < 0 OR layer = ?2)"
                       " ORDER BY decoder_cosine LIMIT 2 - (?3 % 2) OFFSET (?3 - 1) / 2)",
                       "tii", regime, layer, n))
        return NAN;
    if (sqlite3_step(q) == SQLITE_ROW) median = sqlite3_column_double(q, 0);
    sqlite3_finalize(q);
    return median;
}

static int read_features(struct run_summary *s, sqlite3 *db, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(db, &q, err,
                       "SELECT regime, layer, count(*), sum(energy_image > ?), sum(adapted) FROM features GROUP BY regime, layer ORDER BY "
                       "regime, layer",
                       "d", s->eps))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        int row = summary_row((const char *)sqlite3_column_text(q, 0));
        if (row < 0) continue;
        struct layer_share share = {sqlite3_column_int(q, 1), sqlite3_column_int64(q, 2), sqlite3_column_int64(q, 3),
                                    sqlite3_column_int64(q, 4), NAN};
        s->regime[row].features += share.features;
        s->regime[row].visual += share.visual;
        s->regime[row].adapted += share.adapted;
        if (strcmp(summary_row_name(row), s->diff_regime) != 0) continue;
        share.median_cosine = median_cosine(db, s->diff_regime, share.layer, share.features);
        struct layer_share *grown = realloc(s->layer, (size_t)(s->n_layers + 1) * sizeof *grown);
        CHECK(grown, "%d layers", s->n_layers);
        s->layer = grown;
        s->layer[s->n_layers++] = share;
    }
    sqlite3_finalize(q);
    for (int row = 0; row < SUMMARY_ROWS; row++)
        s->regime[row].median_cosine =
            s->regime[row].features ? median_cosine(db, summary_row_name(row), -1, s->regime[row].features) : NAN;
    return 0;
}

int run_summary_read(struct run_summary *s, sqlite3 *db, const struct run_config *c, struct error *err) {
    char name[64];
    *s = (struct run_summary){.diff_regime = regime_names[c->diff_regime]};
    s->eps = run_db_number(db, "diff", "eps", c->diff_eps);
    s->percentile = run_db_number(db, "diff", "percentile", c->diff_percentile);
    snprintf(name, sizeof name, "cosine_threshold.%s", s->diff_regime);
    s->cosine_threshold = run_db_number(db, "diff", name, NAN);
    if (read_metrics(s, db, err) || read_features(s, db, err)) {
        run_summary_free(s);
        return -1;
    }
    return 0;
}

void run_summary_free(struct run_summary *s) {
    free(s->layer);
    s->layer = NULL;
    s->n_layers = 0;
}

/* Sentence on reconstruction: each regime's tokens before and after tuning. */
static int sentence_fvu(const struct run_summary *s, char *out, size_t bytes) {
    static const char *const tokens[] = {"all tokens", "image rows", "text tokens"};
    static const enum regime order[] = {REGIME_TEXT, REGIME_IMAGE, REGIME_FULL};
    const char *sep = "Averaged over layers, fine-tuning takes the unexplained variance (FVU)";
    int n = 0;
    for (size_t i = 0; i < 3; i++) {
        const struct regime_summary *after = &s->regime[order[i]], *before = &s->regime[summary_base_of(order[i])];
        if (after->layers && before->layers) {
            n += snprintf(out + n, bytes - (size_t)n, "%s of %s from %.3f to %.3f", sep, tokens[order[i]], before->fvu.mean,
                          after->fvu.mean);
            sep = ",";
        }
    }
    if (n && s->regime[REGIME_RANDOM].layers)
        n += snprintf(out + n, bytes - (size_t)n, "; a random start, trained on all tokens, reaches %.3f",
                      s->regime[REGIME_RANDOM].fvu.mean);
    if (n) snprintf(out + n, bytes - (size_t)n, ".");
    return n > 0;
}

static int sentence_layers(const struct run_summary *s, char *out, size_t bytes) {
    int top = 0;
    long total = 0, late = 0;
    for (int i = 0; i < s->n_layers; i++) {
        const struct layer_share *a = &s->layer[i], *b = &s->layer[top];
        total += a->adapted;
        late += i >= s->n_layers / 2 ? a->adapted : 0;
        if ((double)a->adapted * (double)b->features > (double)b->adapted * (double)a->features) top = i;
    }
    if (total == 0 || s->n_layers < 2) return 0;
    snprintf(
        out, bytes, "Layer %d has the largest adapted share (%.1f %%); the upper half of the layers holds %.0f %% of all adapted features.",
        s->layer[top].layer, 100.0 * (double)s->layer[top].adapted / (double)s->layer[top].features, 100.0 * (double)late / (double)total);
    return 1;
}

int run_summary_sentences(const struct run_summary *s, char sentences[SUMMARY_SENTENCES][512]) {
    int n = sentence_fvu(s, sentences[0], sizeof sentences[0]);
    int row = summary_row(s->diff_regime);
    const struct regime_summary *r = &s->regime[row];
    if (r->features == 0) return n;
    snprintf(sentences[n++], sizeof sentences[0],
             "%ld of %ld features (%.1f %%) were adapted: their decoder direction turned (cosine to the base SAE at most %.3f) and they "
             "carry visual energy (E_v above %g). By its percentile the rule admits at most %g %%.",
             r->adapted, r->features, 100.0 * (double)r->adapted / (double)r->features, s->cosine_threshold, s->eps, s->percentile);
    n += sentence_layers(s, sentences[n], sizeof sentences[0]);
    snprintf(sentences[n++], sizeof sentences[0],
             "The typical feature kept its direction to a decoder cosine of %.3f (median, %s dictionaries)%s.", r->median_cosine,
             summary_row_title(row), r->median_cosine > 0.95 ? ": tuning moved few features far" : "");
    return n;
}

/* Rows of a query that makes sentences, up to `most`. */
static int sentences_of(sqlite3 *db, const char *sql, char (*sentences)[512], int most) {
    struct error err;
    sqlite3_stmt *q = NULL;
    int n = 0;
    if (run_db_prepare(db, &q, &err, sql, "")) return 0;
    for (; n < most && sqlite3_step(q) == SQLITE_ROW; n++)
        snprintf(sentences[n], sizeof sentences[n], "%s", (const char *)sqlite3_column_text(q, 0));
    sqlite3_finalize(q);
    return n;
}

int run_summary_causes(sqlite3 *db, char sentences[SUMMARY_SENTENCES][512]) {
    int n = sentences_of(
        db,
        "SELECT printf('%d features fire for the task \"%.80s\"; %d of them are adapted%s.', sum(selected), task, sum(selected AND "
        "adapted), CASE WHEN count(prompt_invariant) THEN printf(', and %d of those fire for their pictures under neutral "
        "prompts too', sum(selected AND adapted AND prompt_invariant)) ELSE '' END) FROM task_features GROUP BY task ORDER BY task",
        sentences, 2);
    n += sentences_of(
        db,
        "SELECT printf('The model answers %.1f %% of %.80s right (%d lines).', 100.0 * accuracy, name, n) FROM evaluations WHERE split = "
        "'all' AND relation = 'all' ORDER BY name",
        sentences + n, 2);
    n += sentences_of(
        db,
        "SELECT printf('With \"%.80s\" accuracy on %.80s changes by %+.1f points (95 %% interval %+.1f to %+.1f)%s.', name, dataset, 100.0 "
        "* "
        "delta, 100.0 * ci_low, 100.0 * ci_high, CASE WHEN controls THEN printf('; matched controls: %+.1f', 100.0 * control_mean) ELSE "
        "'' END) FROM interventions WHERE ci_low > 0 OR ci_high < 0 ORDER BY abs(delta) DESC, name, dataset",
        sentences + n, SUMMARY_SENTENCES - n);
    return n;
}

static void print_top_features(FILE *out, const struct run_summary *s, sqlite3 *db) {
    struct error err;
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(db, &q, &err,
                       "SELECT e.layer, e.feature, f.energy_image, f.energy_text, f.decoder_cosine, e.kind, f.fire_patches, f.fire_words "
                       "FROM examples e"
                       " JOIN features f ON f.layer = e.layer AND f.feature = e.feature AND f.regime = e.regime"
                       " WHERE e.regime = ?1 AND e.rank = 0 AND e.sample >= 0 AND f.adapted ORDER BY f.energy_image DESC LIMIT 6",
                       "t", s->diff_regime))
        return;
    bool first = true;
    while (sqlite3_step(q) == SQLITE_ROW) {
        if (first) fprintf(out, "\n  adapted features         E_v       E_t   cosine   strongest on\n");
        bool image = strcmp((const char *)sqlite3_column_text(q, 5), "image") == 0;
        first = false;
        fprintf(out, "  layer %2d  feature %-5d %7.3f   %7.3f   %6.3f   %s (fires on %.1f%% of them)\n", sqlite3_column_int(q, 0),
                sqlite3_column_int(q, 1), sqlite3_column_double(q, 2), sqlite3_column_double(q, 3), sqlite3_column_double(q, 4),
                image ? "patches" : "words", 100 * sqlite3_column_double(q, image ? 6 : 7));
    }
    sqlite3_finalize(q);
}

void run_summary_print(FILE *out, const struct run_summary *s, sqlite3 *db, const struct run_config *c) {
    fprintf(out, "\nFindings\n\n  dictionaries           FVU mean     sd  before tuning     L0    dead  adapted\n");
    for (int row = 0; row < REGIME_COUNT; row++) {
        const struct regime_summary *r = &s->regime[row], *before = &s->regime[summary_base_of((enum regime)row)];
        if (r->layers == 0) continue;
        fprintf(out, "  %-22s %8.3f  %5.3f", summary_row_title(row), r->fvu.mean, r->fvu.sd);
        if (row != REGIME_RANDOM && before->layers)
            fprintf(out, "  %13.3f", before->fvu.mean);
        else
            fprintf(out, "  %13s", "");
        fprintf(out, "  %5.1f  %5.1f%%", r->l0.mean, 100 * r->dead_share.mean);
        if (r->features) fprintf(out, "   %5.1f%%", 100.0 * (double)r->adapted / (double)r->features);
        fprintf(out, "\n");
    }
    print_top_features(out, s, db);
    char sentences[SUMMARY_SENTENCES][512];
    int n = run_summary_sentences(s, sentences);
    fprintf(out, "\n");
    for (int i = 0; i < n; i++) fprintf(out, "  - %s\n", sentences[i]);
    n = run_summary_causes(db, sentences);
    for (int i = 0; i < n; i++) fprintf(out, "  - %s\n", sentences[i]);
    fprintf(out, "\n  report    %s/report.html\n  database  %s/run.db\n", c->out, c->out);
}
