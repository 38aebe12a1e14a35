/* report_heads.c - which attention heads write a set of features: a map of layers and heads for every target, the patched ones marked,
 * the estimate beside the truth, and where the strongest heads look. */
#include "analysis/report.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CELL            22 /* user units of the map */
#define ATTENTION_SHOWN 5  /* pictures a head */
#define HEADS_SHOWN     4

struct head {
    int layer, head;
    double score, exact; /* exact: NaN when not patched */
};
struct heads { /* of one target, method and corruption */
    struct head *at;
    int n, layers, width, patched;
    double largest;
};

static int read_heads(struct heads *h, struct report *r, const char *target, const char *method, const char *corruption,
                      struct error *err) {
    sqlite3_stmt *q = NULL;
    *h = (struct heads){0};
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT layer, head, score, exact FROM head_scores WHERE target = ? AND method = ? AND corruption = ? AND layer BETWEEN 0 AND "
            "9999 AND head BETWEEN 0 AND 9999 ORDER BY layer, head",
            "ttt", target, method, corruption))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        h->at = memory_grow(h->at, (size_t)h->n + 1, sizeof *h->at);
        struct head *one = &h->at[h->n++];
        *one = (struct head){sqlite3_column_int(q, 0), sqlite3_column_int(q, 1), sqlite3_column_double(q, 2),
                             sqlite3_column_type(q, 3) == SQLITE_NULL ? NAN : sqlite3_column_double(q, 3)};
        h->layers = one->layer >= h->layers ? one->layer + 1 : h->layers;
        h->width = one->head >= h->width ? one->head + 1 : h->width;
        h->largest = fmax(h->largest, fabs(one->score));
        h->patched += !isnan(one->exact);
    }
    sqlite3_finalize(q);
    return 0;
}

/* ---- rank correlation (Spearman), ties by their mean rank ---- */

static int by_value(const void *a, const void *b) {
    const double *const *x = a, *const *y = b;
    return (**x > **y) - (**x < **y);
}

static void ranks(double *rank, const double *value, int n) {
    const double **order = memory_take((size_t)n + 1, sizeof *order);
    for (int i = 0; i < n; i++) order[i] = &value[i];
    qsort(order, (size_t)n, sizeof *order, by_value);
    for (int i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && *order[end] == *order[i];) end++;
        for (int k = i; k < end; k++) rank[order[k] - value] = (i + end - 1) / 2.0;
    }
    free(order);
}

double report_rank_correlation(const double *x, const double *y, int n) {
    double *a = memory_take(2 * (size_t)n + 1, sizeof *a), *b = a + n, mean = (n - 1) / 2.0, xy = 0, xx = 0, yy = 0;
    ranks(a, x, n);
    ranks(b, y, n);
    for (int i = 0; i < n; i++) {
        xy += (a[i] - mean) * (b[i] - mean);
        xx += (a[i] - mean) * (a[i] - mean);
        yy += (b[i] - mean) * (b[i] - mean);
    }
    free(a);
    return n > 1 && xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
}

static double correlation(const struct heads *h) {
    double *x = memory_take(2 * (size_t)h->n + 1, sizeof *x), *y = x + h->n;
    int n = 0;
    for (int i = 0; i < h->n; i++)
        if (!isnan(h->at[i].exact)) x[n] = h->at[i].score, y[n++] = h->at[i].exact;
    double rho = report_rank_correlation(x, y, n);
    free(x);
    return rho;
}

/* ---- the map ---- */

static void map(struct report *r, const struct heads *h) {
    const int left = 46, top = 26;
    fprintf(r->out,
            "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"map of layers and heads\" style=\"max-width:%dpx\" font-size=\"11\" "
            "fill=\"#3d434b\" text-anchor=\"middle\"><text x=\"%d\" y=\"10\">head</text><text x=\"14\" y=\"20\">layer</text>\n",
            left + h->width * CELL + 6, top + h->layers * CELL + 6, 3 * (left + h->width * CELL + 6) / 2, left + h->width * CELL / 2);
    const int step = h->width > 16 ? 4 : 1;
    for (int k = 0; k < h->width; k += step) fprintf(r->out, "<text x=\"%d\" y=\"23\">%d</text>", left + k * CELL + CELL / 2, k);
    for (int l = 0; l < h->layers; l++)
        fprintf(r->out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%d</text>", left - 8, top + l * CELL + 15, l);
    for (int i = 0; i < h->n; i++) {
        const struct head *one = &h->at[i];
        const int x = left + one->head * CELL, y = top + one->layer * CELL;
        const double share = h->largest > 0 ? pow(fabs(one->score) / h->largest, 0.7) : 0;
        fprintf(r->out,
                "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"#f1f2f4\"/><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" "
                "fill=\"%s\" opacity=\"%.3f\"><title>layer %d, head %d: %.3g",
                x, y, CELL - 2, CELL - 2, x, y, CELL - 2, CELL - 2, one->score < 0 ? "#0072b2" : "#d55e00", share, one->layer, one->head,
                one->score);
        if (!isnan(one->exact)) fprintf(r->out, "; patched: %.3g", one->exact);
        fputs("</title></rect>", r->out);
        if (!isnan(one->exact))
            fprintf(r->out, "<circle cx=\"%d\" cy=\"%d\" r=\"4\" fill=\"none\" stroke=\"#1d2126\" stroke-width=\"1.4\"/>", x + CELL / 2 - 1,
                    y + CELL / 2 - 1);
    }
    fputs("</svg>\n", r->out);
}

static int figure_map(struct report *r, const struct heads *h, const char *target, const char *method, const char *corruption) {
    html_figure_open(r);
    map(r, h);
    fprintf(r->out, "\n<figcaption><b>Figure %d. Heads that write &ldquo;", ++r->figures);
    html_text(r->out, target);
    fputs("&rdquo;.</b> Attribution score of every head up to the features&rsquo; layer: orange raises the features, blue lowers them; "
          "full colour "
          "is ",
          r->out);
    html_number(r->out, h->largest);
    fputs(". Method ", r->out);
    html_text(r->out, method);
    fputs(", corruption ", r->out);
    html_text(r->out, corruption);
    fputs(".", r->out);
    if (h->patched) fprintf(r->out, " Rings: the %d heads that were patched for true, Figure %d.", h->patched, r->figures + 1);
    fputs("</figcaption></figure>\n", r->out);
    return 0;
}

static int figure_exact(struct report *r, const struct heads *h, struct error *err) {
    struct figure f;
    if (h->patched < 3) return 0;
    if (figure_open(&f, r, 900, 420, err)) return -1;
    fputs("$heads << EOD\n", f.script);
    for (int i = 0; i < h->n; i++)
        if (!isnan(h->at[i].exact)) fprintf(f.script, "%.6g %.6g\n", h->at[i].score, h->at[i].exact);
    fputs("EOD\nset xlabel 'estimate (attribution score)' textcolor rgb '#3d434b'\nset ylabel 'effect of patching the head' textcolor rgb "
          "'#3d434b'\n"
          "plot x with lines lc rgb '#1d2126' lw 1.2 dt 2 title 'equal', $heads using 1:2 with points pt 7 ps 0.7 lc rgb '#d55e00' title "
          "'heads'\n",
          f.script);
    html_figure_open(r);
    if (figure_close(&f, r, "Scatter plot: estimated against exact effect of patched heads", err)) return -1;
    html_figure_close(
        r, "How far to trust the estimate",
        "The heads of largest score and as many drawn at random, patched for true: each with its clean output in the corrupted run. "
        "Rank correlation (Spearman) over %d heads: <b>%.2f</b>.",
        h->patched, correlation(h));
    return 0;
}

/* ---- where heads look ---- */

static void overlay(struct report *r, sqlite3_stmt *q) {
    const long sample = (long)sqlite3_column_int64(q, 2);
    const char *weights = sqlite3_column_blob(q, 3);
    const int n = sqlite3_column_bytes(q, 3) / (int)sizeof(float);
    int side = 0;
    float top = 0;
    while ((side + 1) * (side + 1) <= n) side++;
    if (n == 0 || side * side != n) return;
    for (int p = 0; p < n; p++) {
        float w;
        memcpy(&w, weights + (size_t)p * sizeof w, sizeof w);
        top = w > top ? w : top;
    }
    fprintf(r->out,
            "<div class=\"example\"><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"picture of sample %ld, bright where the head "
            "looks\"><use "
            "href=\"#p%ld\" transform=\"scale(%d)\"/><g fill=\"#0d1b2e\" shape-rendering=\"crispEdges\">",
            side, side, sample, sample, side);
    for (int p = 0; p < n; p++) {
        float w;
        memcpy(&w, weights + (size_t)p * sizeof w, sizeof w);
        const double share = top > 0 ? fmin(fmax((double)(w / top), 0), 1) : 0;
        fprintf(r->out, "<rect x=\"%d\" y=\"%d\" width=\"1\" height=\"1\" opacity=\"%.2f\"><title>%.3g</title></rect>", p % side, p / side,
                0.72 * pow(1 - share, 0.8), (double)w);
    }
    fputs("</g></svg><div class=\"tokens\">", r->out);
    html_text(r->out, (const char *)sqlite3_column_text(q, 4));
    fputs("</div></div>\n", r->out);
}

static int attention(struct report *r, const char *target, struct error *err) {
    sqlite3_stmt *q = NULL;
    int layer = -1, head = -1, heads = 0, shown = 0;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT a.layer, a.head, a.sample, a.weights, s.question FROM attention a JOIN samples s USING(sample) WHERE a.target = ?1 AND"
            " s.picture IS NOT NULL ORDER BY (SELECT max(abs(score)) FROM head_scores h WHERE h.target = ?1 AND h.layer = a.layer AND"
            " h.head = a.head) DESC, a.layer, a.head, a.sample",
            "t", target))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        if (sqlite3_column_int(q, 0) != layer || sqlite3_column_int(q, 1) != head) {
            if (heads++) fputs("</div></section>\n", r->out);
            layer = sqlite3_column_int(q, 0), head = sqlite3_column_int(q, 1), shown = 0;
            if (heads > HEADS_SHOWN) break;
            fprintf(r->out,
                    "<section class=\"feature\"><h3>Layer %d &middot; head %d</h3><div class=\"stats\"><span>bright: image rows that the "
                    "tokens after the picture attend to</span></div><div class=\"examples\">\n",
                    layer, head);
        }
        if (shown++ < ATTENTION_SHOWN) overlay(r, q);
    }
    if (heads && heads <= HEADS_SHOWN) fputs("</div></section>\n", r->out);
    sqlite3_finalize(q);
    return 0;
}

/* The strongest heads of a target, in a line; nothing when it has none. */
int report_feature_heads(struct report *r, int layer, int feature, struct error *err) {
    sqlite3_stmt *q = NULL;
    char target[48];
    int n = 0;
    snprintf(target, sizeof target, "L%dF%d", layer, feature);
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT layer, head, score FROM head_scores WHERE target = ?1 AND (method, corruption) = (SELECT method, corruption FROM "
            "head_scores WHERE target = ?1 LIMIT 1) ORDER BY abs(score) DESC, layer, head LIMIT 4",
            "t", target))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        fputs(n++ ? ", " : "<div class=\"stats\"><span>written by ", r->out);
        fprintf(r->out, "L%dH%d <b>%+.3g</b>", sqlite3_column_int(q, 0), sqlite3_column_int(q, 1), sqlite3_column_double(q, 2));
    }
    if (n) fputs("</span></div>\n", r->out);
    sqlite3_finalize(q);
    return 0;
}

int report_heads(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    char *last = NULL;
    int status = 0;
    if (run_db_count(r->db, "SELECT count(*) FROM head_scores") == 0) return 0;
    fputs("<h2 id=\"heads\">Which heads write them</h2>\n"
          "<p>A clean run and a run with corrupted input, one backward pass: the change of each head&rsquo;s output, times the gradient of "
          "the "
          "features, estimates what restoring that head alone would do.</p>\n",
          r->out);
    /* single features have their line on their cards */
    if (run_db_prepare(r->db, &q, err,
                       "SELECT target, method, corruption FROM head_scores WHERE target NOT GLOB 'L[0-9]*F[0-9]*' OR (SELECT "
                       "count(DISTINCT target) FROM"
                       " head_scores) = 1 GROUP BY target, method, corruption ORDER BY target, method, corruption",
                       ""))
        return -1;
    while (status == 0 && sqlite3_step(q) == SQLITE_ROW) {
        const char *target = (const char *)sqlite3_column_text(q, 0), *method = (const char *)sqlite3_column_text(q, 1),
                   *corruption = (const char *)sqlite3_column_text(q, 2);
        struct heads h;
        status = read_heads(&h, r, target, method, corruption, err);
        if (status == 0 && h.n) status = figure_map(r, &h, target, method, corruption) || figure_exact(r, &h, err) ? -1 : 0;
        if (status == 0 && (!last || strcmp(last, target))) status = attention(r, target, err);
        free(last);
        last = memory_string(target);
        free(h.at);
    }
    free(last);
    sqlite3_finalize(q);
    return status;
}
