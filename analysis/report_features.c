/* report_features.c - the cards of the top adapted features: numbers, and the samples they fire on most, with the picture dimmed
 * where the feature is silent and the words coloured by its value. Pictures are stored once and referred to. */
#include "analysis/report.h"
#include "host/samples.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EXAMPLES_SHOWN 5

struct example {
    long sample;
    int position, tokens;
    double value;
    const char *kind;
    const uint8_t *kinds;
    const float *values;
    json_t *pieces;
};

static float value_at(const struct example *e, int t) {
    float v;
    memcpy(&v, e->values + t, sizeof v); /* SQLite promises no alignment */
    return v;
}

static int pictures(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT DISTINCT s.sample, s.picture FROM examples e JOIN samples s ON s.sample = e.sample"
            " WHERE e.regime = ? AND e.rank < ? AND s.picture IS NOT NULL UNION SELECT s.sample, s.picture FROM attention a JOIN samples s"
            " USING(sample) WHERE s.picture IS NOT NULL ORDER BY 1",
            "ti", r->summary.diff_regime, (long)EXAMPLES_SHOWN))
        return -1;
    fputs("<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\"><defs>\n", r->out);
    while (sqlite3_step(q) == SQLITE_ROW) {
        fprintf(r->out, "<image id=\"p%lld\" width=\"1\" height=\"1\" preserveAspectRatio=\"none\" href=\"data:image/png;base64,",
                sqlite3_column_int64(q, 0));
        html_base64(r->out, sqlite3_column_blob(q, 1), (size_t)sqlite3_column_bytes(q, 1));
        fputs("\"/>\n", r->out);
    }
    sqlite3_finalize(q);
    fputs("</defs></svg>\n", r->out);
    return 0;
}

/* The picture under its grid of patches: one square a patch, dim where the feature is silent, clear at the feature's maximum. */
static void picture(struct report *r, const struct example *e, double top) {
    int patches = 0, side = 0, first = 0;
    for (int t = e->tokens - 1; t >= 0; t--)
        if (e->kinds[t] == KIND_IMAGE) {
            patches++;
            first = t;
        }
    while ((side + 1) * (side + 1) <= patches) side++;
    if (patches == 0) return;
    fprintf(r->out,
            "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"picture of sample %ld with active patches bright\"><use href=\"#p%ld\" "
            "transform=\"scale(%d)\"/><g fill=\"#0d1b2e\" shape-rendering=\"crispEdges\">",
            side, side, e->sample, e->sample, side);
    for (int p = 0; p < side * side && side * side == patches; p++) {
        double share = fmin(fmax(value_at(e, first + p) / top, 0), 1);
        int x = p % side, y = p / side;
        fprintf(r->out, "<rect x=\"%d\" y=\"%d\" width=\"1\" height=\"1\" opacity=\"%.2f\">", x, y, 0.62 * pow(1 - share, 0.8));
        if (share > 0) fprintf(r->out, "<title>row %d, column %d: %.3g</title>", y, x, (double)value_at(e, first + p));
        fputs("</rect>", r->out);
    }
    fputs("</g>", r->out);
    if (e->position >= first && e->position < first + patches && side * side == patches)
        fprintf(r->out,
                "<rect x=\"%.2f\" y=\"%.2f\" width=\"0.92\" height=\"0.92\" fill=\"none\" stroke=\"#ff9d3c\" stroke-width=\"%.2f\"/>",
                (e->position - first) % side + 0.04, (e->position - first) / side + 0.04, side / 90.0);
    fputs("</svg>\n", r->out);
}

/* Opens a span shaded by a value. */
static void shade(FILE *out, double value, double top, const char *classes) {
    double share = fmin(fmax(value / top, 0), 1);
    fprintf(out, "<span class=\"%s\"", classes);
    if (share > 0)
        fprintf(out, " style=\"background:rgba(213,94,0,%.2f)%s\" title=\"%.3g\"", 0.1 + 0.75 * share, share > 0.6 ? ";color:#fff" : "",
                value);
    fputc('>', out);
}

static void word(struct report *r, const struct example *e, int t, double top) {
    const char *text = json_string_value(json_array_get(e->pieces, (size_t)t));
    if (text && *text == ' ') { /* outside: a shaded blank would hang at the end of a line */
        fputc(' ', r->out);
        text++;
    }
    shade(r->out, value_at(e, t), top, t == e->position ? "peak" : "w");
    for (const char *at = text ? text : ""; *at; at++)
        if (*at == '\n')
            fputs("\xe2\x8f\x8e", r->out);
        else
            html_bytes(r->out, at, 1);
    fputs("</span>", r->out);
}

/* Question and answer in order; image rows become a word, stretches of template an ellipsis with their largest value. */
static void words(struct report *r, const struct example *e, double top) {
    fputs("<div class=\"tokens\">", r->out);
    for (int t = 0; t < e->tokens;) {
        int end = t + 1;
        double largest = 0;
        while (end < e->tokens && e->kinds[end] == e->kinds[t]) end++;
        for (int i = t; i < end; i++) largest = fmax(largest, value_at(e, i));
        if (e->kinds[t] == KIND_IMAGE) {
            fputs("<span class=\"t\">[picture]</span> ", r->out);
        } else if (e->kinds[t] == KIND_TEMPLATE) {
            shade(r->out, largest, top, "t");
            fputs("&hellip;</span> ", r->out);
        } else if (e->kinds[t] != KIND_BOS) {
            for (int i = t; i < end; i++) word(r, e, i, top);
            fputc(' ', r->out);
        }
        t = end;
    }
    fputs("</div>\n", r->out);
}

static int examples(struct report *r, int layer, int feature, struct error *err) {
    sqlite3_stmt *q = NULL;
    double top = 0;
    if (run_db_prepare(r->db, &q, err,
                       "SELECT e.sample, e.position, e.kind, e.value, e.token_values, s.tokens, s.kinds FROM examples e JOIN samples s ON "
                       "s.sample = e.sample"
                       " WHERE e.regime = ? AND e.layer = ? AND e.feature = ? AND e.rank < ? ORDER BY e.rank",
                       "tiii", r->summary.diff_regime, (long)layer, (long)feature, (long)EXAMPLES_SHOWN))
        return -1;
    fputs("<div class=\"examples\">\n", r->out);
    while (sqlite3_step(q) == SQLITE_ROW) {
        struct example e = {sqlite3_column_int64(q, 0),
                            sqlite3_column_int(q, 1),
                            sqlite3_column_bytes(q, 6),
                            sqlite3_column_double(q, 3),
                            (const char *)sqlite3_column_text(q, 2),
                            sqlite3_column_blob(q, 6),
                            sqlite3_column_blob(q, 4),
                            NULL};
        if (sqlite3_column_bytes(q, 4) != e.tokens * (int)sizeof(float) || e.value <= 0) continue;
        top = top > 0 ? top : e.value;
        e.pieces = json_loads((const char *)sqlite3_column_text(q, 5), JSON_DECODE_ANY, NULL);
        fputs("<div class=\"example\">", r->out);
        picture(r, &e, top);
        words(r, &e, top);
        fputs("</div>\n", r->out);
        json_decref(e.pieces);
    }
    sqlite3_finalize(q);
    fputs("</div>\n", r->out);
    return 0;
}

static void stat_cell(FILE *out, const char *name, double value) {
    fprintf(out, "<span>%s <b>", name);
    html_number(out, value);
    fputs("</b></span>", out);
}

/* Norms of its rows, base to tuned. */
static int norms(struct report *r, int layer, int feature, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(r->db, &q, err,
                       "SELECT base_decoder, decoder, base_encoder, encoder FROM norms WHERE regime = ? AND layer = ? AND feature = ?",
                       "tii", r->summary.diff_regime, (long)layer, (long)feature))
        return -1;
    if (sqlite3_step(q) == SQLITE_ROW && sqlite3_column_type(q, 0) != SQLITE_NULL)
        fprintf(r->out, "<span>norms, base to tuned: decoder <b>%.3f &rarr; %.3f</b>, encoder <b>%.3f &rarr; %.3f</b></span>",
                sqlite3_column_double(q, 0), sqlite3_column_double(q, 1), sqlite3_column_double(q, 2), sqlite3_column_double(q, 3));
    sqlite3_finalize(q);
    return 0;
}

int report_card(struct report *r, int layer, int feature, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(r->db, &q, err,
                       "SELECT energy_image, energy_text, decoder_cosine, encoder_cosine, fire_patches, fire_words, fire_text FROM features"
                       " WHERE regime = ? AND layer = ? AND feature = ?",
                       "tii", r->summary.diff_regime, (long)layer, (long)feature))
        return -1;
    fprintf(r->out, "<section class=\"feature\"><h3>Layer %d &middot; feature %d</h3><div class=\"stats\">", layer, feature);
    if (sqlite3_step(q) == SQLITE_ROW) {
        double energy_image = sqlite3_column_double(q, 0), energy_text = sqlite3_column_double(q, 1);
        stat_cell(r->out, "E<sub>v</sub>", energy_image);
        stat_cell(r->out, "E<sub>t</sub>", energy_text);
        if (energy_text > 0)
            fprintf(r->out, "<span>log<sub>10</sub> E<sub>v</sub>/E<sub>t</sub> <b>%+.2f</b></span>", log10(energy_image / energy_text));
        else
            fputs("<span>silent on the base LLM</span>", r->out);
        stat_cell(r->out, "decoder cosine", sqlite3_column_double(q, 2));
        stat_cell(r->out, "encoder cosine", sqlite3_column_double(q, 3));
        fprintf(r->out,
                "<span>fires on <b>%.1f&thinsp;%%</b> of patches, <b>%.1f&thinsp;%%</b> of words, <b>%.1f&thinsp;%%</b> of the base "
                "LLM&rsquo;s tokens</span>",
                100 * sqlite3_column_double(q, 4), 100 * sqlite3_column_double(q, 5), 100 * sqlite3_column_double(q, 6));
    }
    sqlite3_finalize(q);
    int status = norms(r, layer, feature, err);
    fputs("</div>\n", r->out);
    if (status == 0) status = report_feature_tasks(r, layer, feature, err);
    if (status == 0) status = report_feature_heads(r, layer, feature, err);
    if (status == 0) status = report_feature_effects(r, layer, feature, err);
    if (status == 0) status = examples(r, layer, feature, err);
    fputs("</section>\n", r->out);
    return status;
}

/* Cards of the features whose strongest token is a patch, or a word. */
static int cards(struct report *r, bool patches, int *shown, struct error *err) {
    sqlite3_stmt *q = NULL;
    char sql[512];
    int status = 0;
    snprintf(
        sql, sizeof sql,
        "SELECT f.layer, f.feature FROM examples e JOIN features f ON f.layer = e.layer AND f.feature = e.feature AND f.regime = e.regime"
        " WHERE e.regime = ? AND e.rank = 0 AND e.sample >= 0 AND (e.kind = 'image') = ? ORDER BY f.%s DESC, f.layer, f.feature",
        patches ? "energy_patches" : "energy_words");
    if (run_db_prepare(r->db, &q, err, sql, "ti", r->summary.diff_regime, (long)patches)) return -1;
    for (; status == 0 && sqlite3_step(q) == SQLITE_ROW; ++*shown) {
        if (*shown == 0) fprintf(r->out, "<h3 class=\"part\">%s</h3>\n", patches ? "Strongest in the picture" : "Strongest on words");
        status = report_card(r, sqlite3_column_int(q, 0), sqlite3_column_int(q, 1), err);
    }
    sqlite3_finalize(q);
    return status;
}

int report_features(struct report *r, struct error *err) {
    int in_pictures = 0, on_words = 0;
    if (r->summary.n_layers == 0) return 0;
    fputs("<h2 id=\"features\">What adapted features fire on</h2>\n"
          "<p>Adapted features with the largest energy in the picture, and with the largest energy on words, each on the held-out samples "
          "where it is strongest. "
          "Features that fire on more than a tenth of the patches (or words) say little about any of them and come last. Pictures are "
          "shown as the model&rsquo;s vision "
          "tower sees them, one square per patch: <b>bright where the feature fires, dark where it is silent</b>; an orange frame marks "
          "the strongest patch of all. Words "
          "are shaded by the feature&rsquo;s value"
          "<span class=\"legend\" style=\"background:linear-gradient(90deg,rgba(213,94,0,.1),rgba(213,94,0,.85))\"></span>up to its "
          "maximum over the samples shown. "
          "&hellip; stands for template text.</p>\n",
          r->out);
    if (pictures(r, err) || cards(r, true, &in_pictures, err) || cards(r, false, &on_words, err)) return -1;
    if (in_pictures + on_words == 0) fputs("<p>No examples were kept in this run.</p>\n", r->out);
    return 0;
}
