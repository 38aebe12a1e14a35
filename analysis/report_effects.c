/* report_effects.c - what interventions change, beside matched controls; and steering: accuracy by strength, chosen on dev. */
#include "analysis/report.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BARS 40

/* A name for gnuplot's double quotes: what it would read as its own is left out. */
static void label(FILE *script, const char *text) {
    for (; *text; text++)
        if ((unsigned char)*text >= 0x20 && !strchr("\"'\\`$", *text)) fputc(*text, script);
}

static int figure_bars(struct report *r, struct error *err) {
    struct figure f;
    sqlite3_stmt *q = NULL;
    const int n = (int)run_db_count(r->db, "SELECT min(count(*), 40) FROM interventions WHERE delta IS NOT NULL");
    if (n == 0) return 0;
    if (figure_open(&f, r, 900, 120 + 34 * n, err)) return -1;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT name || ', ' || dataset, delta, ci_low, ci_high, control_mean, control_low, control_high FROM interventions WHERE delta"
            " IS NOT NULL ORDER BY name, dataset LIMIT ?",
            "i", (long)MOST_BARS)) {
        figure_abort(&f);
        return -1;
    }
    fputs("$effects << EOD\n", f.script);
    for (int row = 0; sqlite3_step(q) == SQLITE_ROW; row++) {
        fputc('"', f.script);
        label(f.script, (const char *)sqlite3_column_text(q, 0));
        fprintf(f.script, "\" %d", -row);
        for (int i = 1; i <= 6; i++)
            if (sqlite3_column_type(q, i) == SQLITE_NULL)
                fputs(" NaN", f.script);
            else
                fprintf(f.script, " %.6g", 100 * sqlite3_column_double(q, i));
        fputc('\n', f.script);
    }
    sqlite3_finalize(q);
    fprintf(f.script,
            "EOD\nunset grid\nset grid xtics lc rgb '#e6e8eb' lw 1 lt 1\nset lmargin 30\nset yrange [%g:0.6]\nset ytics noenhanced\n"
            "set key maxrows 1\nset xlabel 'change in accuracy, points' textcolor rgb '#3d434b'\nset arrow 1 from 0, graph 0 to 0, graph 1 "
            "nohead lc rgb "
            "'#1d2126' lw 1\n"
            "plot $effects using 3:2:ytic(1) with points pt 7 ps 0.01 lc rgb 'white' notitle, "
            "$effects using 6:($2-0.17):7:8 with xerrorbars lc rgb '#98a2ad' lw 6 pt 7 ps 0.7 title 'matched controls, 95 %% of draws', "
            "$effects using 3:($2+0.1):4:5 with xerrorbars lc rgb '#d55e00' lw 2.4 pt 7 ps 0.9 title 'intervention, 95 %% interval'\n",
            0.4 - n);
    html_figure_open(r);
    if (figure_close(&f, r, "Change in accuracy of every intervention with its interval, beside matched controls", err)) return -1;
    html_figure_close(
        r, "What removing them does",
        "Change in accuracy on the same samples, with the 95&thinsp;%% interval of a paired bootstrap (orange); grey: the same edits with "
        "matched random features, heads or directions in their place, mean and 95&thinsp;%% of the draws.");
    return 0;
}

static void points_cell(struct report *r, sqlite3_stmt *q, int column) {
    if (sqlite3_column_type(q, column) == SQLITE_NULL)
        fputs("<td>&ndash;</td>", r->out);
    else
        fprintf(r->out, "<td>%+.1f</td>", 100 * sqlite3_column_double(q, column));
}

static int table_effects(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT name, dataset, n, baseline, intervened, delta, ci_low, ci_high, lost, gained, mcnemar_p, control_mean, control_low,"
            " control_high, controls FROM interventions ORDER BY name, dataset",
            ""))
        return -1;
    html_table_open(
        r,
        "Interventions: accuracy in per cent, changes in points. <i>Lost, gained</i>: samples whose score fell, rose; p: McNemar&rsquo;s "
        "exact test. Controls: mean change and 95&thinsp;% of the draws.");
    fputs("<thead><tr><th>intervention</th><th style=\"text-align:left\">on</th><th>n</th><th>accuracy</th><th>change</th><th>95&thinsp;% "
          "interval</th><th>lost, gained</th><th>p</th><th>controls</th></tr></thead><tbody>\n",
          r->out);
    while (sqlite3_step(q) == SQLITE_ROW) {
        fputs("<tr><td>", r->out);
        html_text(r->out, (const char *)sqlite3_column_text(q, 0));
        fputs("</td><td style=\"text-align:left\">", r->out);
        html_text(r->out, (const char *)sqlite3_column_text(q, 1));
        fputs("</td><td>", r->out);
        html_count(r->out, (long)sqlite3_column_int64(q, 2));
        fprintf(r->out, "</td><td>%.1f &rarr; %.1f</td>", 100 * sqlite3_column_double(q, 3), 100 * sqlite3_column_double(q, 4));
        points_cell(r, q, 5);
        fprintf(r->out, "<td>%+.1f to %+.1f</td><td>%d, %d</td><td>", 100 * sqlite3_column_double(q, 6), 100 * sqlite3_column_double(q, 7),
                sqlite3_column_int(q, 8), sqlite3_column_int(q, 9));
        html_number(r->out, sqlite3_column_double(q, 10));
        if (sqlite3_column_type(q, 11) == SQLITE_NULL)
            fputs("</td><td>&ndash;</td></tr>\n", r->out);
        else
            fprintf(r->out, "</td><td>%+.1f (%+.1f to %+.1f), %d</td></tr>\n", 100 * sqlite3_column_double(q, 11),
                    100 * sqlite3_column_double(q, 12), 100 * sqlite3_column_double(q, 13), sqlite3_column_int(q, 14));
    }
    sqlite3_finalize(q);
    fputs("</tbody></table></div>\n", r->out);
    return 0;
}

static int table_relations(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_count(r->db, "SELECT count(*) FROM effect_relations WHERE relation <> 'all'") == 0) return 0;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT name, dataset, relation, n, baseline, intervened, delta, ci_low, ci_high FROM effect_relations WHERE relation <> 'all'"
            " ORDER BY name, dataset, relation",
            ""))
        return -1;
    fputs("<details><summary>By relation or answer type</summary>\n", r->out);
    html_table_open(r, "The same by relation (VSR) or answer type (VQA); small groups are noisy.");
    fputs(
        "<thead><tr><th>intervention</th><th style=\"text-align:left\">on</th><th style=\"text-align:left\">relation or type</th><th>n</th>"
        "<th>accuracy</th><th>change</th><th>95&thinsp;% interval</th></tr></thead><tbody>\n",
        r->out);
    while (sqlite3_step(q) == SQLITE_ROW) {
        fputs("<tr>", r->out);
        for (int i = 0; i < 3; i++) {
            fputs(i ? "<td style=\"text-align:left\">" : "<td>", r->out);
            html_text(r->out, (const char *)sqlite3_column_text(q, i));
            fputs("</td>", r->out);
        }
        fprintf(r->out, "<td>%d</td><td>%.1f &rarr; %.1f</td>", sqlite3_column_int(q, 3), 100 * sqlite3_column_double(q, 4),
                100 * sqlite3_column_double(q, 5));
        points_cell(r, q, 6);
        fprintf(r->out, "<td>%+.1f to %+.1f</td></tr>\n", 100 * sqlite3_column_double(q, 7), 100 * sqlite3_column_double(q, 8));
    }
    sqlite3_finalize(q);
    fputs("</tbody></table></div></details>\n", r->out);
    return 0;
}

/* Does an edit list name the feature of the layer's dictionary? *others: how many more it names. */
static bool edits_feature(const char *text, int layer, int feature, int *others) {
    json_t *list = json_loads(text, 0, NULL), *edit;
    char folder[32];
    size_t i;
    bool found = false;
    *others = 0;
    snprintf(folder, sizeof folder, "/layer_%d", layer);
    json_array_foreach(list, i, edit) {
        const json_t *vector = json_object_get(edit, "vector");
        const char *sae = json_string_value(json_object_get(vector, "sae"));
        if (!sae) continue;
        const size_t n = strlen(sae), m = strlen(folder);
        if (n >= m && !strcmp(sae + n - m, folder) && json_integer_value(json_object_get(vector, "feature")) == feature)
            found = true;
        else
            ++*others;
    }
    json_decref(list);
    return found;
}

int report_feature_effects(struct report *r, int layer, int feature, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(r->db, &q, err, "SELECT edits, name, dataset, delta FROM effects WHERE delta IS NOT NULL ORDER BY name, dataset",
                       ""))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        int others;
        if (!edits_feature((const char *)sqlite3_column_text(q, 0), layer, feature, &others)) continue;
        fputs("<div class=\"stats\"><span>", r->out);
        html_text(r->out, (const char *)sqlite3_column_text(q, 1));
        if (others) fprintf(r->out, " (with %d others)", others);
        fputs(": ", r->out);
        html_text(r->out, (const char *)sqlite3_column_text(q, 2));
        fprintf(r->out, " <b>%+.1f</b> points</span></div>\n", 100 * sqlite3_column_double(q, 3));
    }
    sqlite3_finalize(q);
    return 0;
}

int report_effects(struct report *r, struct error *err) {
    if (run_db_count(r->db, "SELECT count(*) FROM interventions") == 0) return 0;
    fputs(
        "<h2 id=\"interventions\">What breaks without them</h2>\n"
        "<p>The model answers the same samples with and without the edits. A change means something where it lies outside of what matched "
        "random features, heads or directions do.</p>\n",
        r->out);
    return figure_bars(r, err) || table_effects(r, err) ? -1 : table_relations(r, err);
}

/* ---- steering ---- */

static const char *const line_colors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b636e", "#000000"};
enum { LINES = sizeof line_colors / sizeof *line_colors };

/* One line a layer, on the split that was searched. */
static int figure_sweep(struct report *r, const char *name, const char *split, const char *dataset, struct error *err) {
    struct figure f;
    sqlite3_stmt *q = NULL;
    int layers[LINES], n = 0, last = -1;
    if (run_db_prepare(r->db, &q, err,
                       "SELECT layer, strength, accuracy FROM steering WHERE name = ?1 AND split = ?2 AND layer IN (SELECT layer FROM "
                       "steering WHERE name = ?1"
                       " AND split = ?2 GROUP BY layer ORDER BY max(accuracy) DESC, layer LIMIT ?3) ORDER BY layer, strength",
                       "tti", name, split, (long)LINES))
        return -1;
    if (figure_open(&f, r, 900, 400, err)) {
        sqlite3_finalize(q);
        return -1;
    }
    while (sqlite3_step(q) == SQLITE_ROW) {
        const int layer = sqlite3_column_int(q, 0);
        if (layer != last) {
            fprintf(f.script, "%s$l%d << EOD\n", n ? "EOD\n" : "", layer);
            layers[n++] = last = layer;
        }
        fprintf(f.script, "%.6g %.6g\n", sqlite3_column_double(q, 1), 100 * sqlite3_column_double(q, 2));
    }
    sqlite3_finalize(q);
    fprintf(
        f.script,
        "EOD\nset key maxrows 1\nset xlabel 'strength' textcolor rgb '#3d434b'\nset ylabel 'accuracy, %%' textcolor rgb '#3d434b'\nplot ");
    for (int i = 0; i < n; i++)
        fprintf(f.script, "%s$l%d using 1:2 with linespoints lc rgb '%s' lw 2.4 pt 7 ps 0.6 title 'layer %d'", i ? ", " : "", layers[i],
                line_colors[i], layers[i]);
    fputc('\n', f.script);
    html_figure_open(r);
    if (figure_close(&f, r, "Line chart: accuracy by steering strength for each layer", err)) return -1;
    fprintf(r->out, "\n<figcaption><b>Figure %d. ", ++r->figures);
    html_text(r->out, name);
    fputs(".</b> Accuracy on ", r->out);
    html_text(r->out, dataset);
    fputs(" (", r->out);
    html_text(r->out, split);
    fprintf(r->out, "), by strength and layer%s; strength 0 is the model as it is.", n == LINES ? " (the eight best)" : "");
    return 0;
}

/* What was chosen there and what it gives elsewhere, beside the model as it is. */
static int chosen(struct report *r, const char *name, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT split, layer, strength, n, accuracy, (SELECT accuracy FROM steering z WHERE z.name = s.name AND z.split = s.split AND"
            " z.layer = s.layer AND z.strength = 0) FROM steering s WHERE name = ? AND chosen ORDER BY split",
            "t", name))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        fputs(" ", r->out);
        html_text(r->out, (const char *)sqlite3_column_text(q, 0));
        fprintf(r->out, ", layer %d, strength %g: ", sqlite3_column_int(q, 1), sqlite3_column_double(q, 2));
        if (sqlite3_column_type(q, 5) != SQLITE_NULL) fprintf(r->out, "%.1f&thinsp;%% to ", 100 * sqlite3_column_double(q, 5));
        fprintf(r->out, "<b>%.1f&thinsp;%%</b> of %d.", 100 * sqlite3_column_double(q, 4), sqlite3_column_int(q, 3));
    }
    sqlite3_finalize(q);
    fputs("</figcaption></figure>\n", r->out);
    return 0;
}

int report_steering(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    int status = 0;
    if (run_db_count(r->db, "SELECT count(*) FROM steering") == 0) return 0;
    fputs("<h2 id=\"steering\">Steering</h2>\n"
          "<p>A direction added to the residual stream. Layer and strength are chosen on one split and reported on another.</p>\n",
          r->out);
    /* the split with most rows of a sweep is the one that was searched */
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT name, split, dataset, max(n) FROM (SELECT name, split, dataset, count(*) AS n FROM steering GROUP BY name, split)"
            " GROUP BY name ORDER BY name",
            ""))
        return -1;
    while (status == 0 && sqlite3_step(q) == SQLITE_ROW) {
        const char *name = (const char *)sqlite3_column_text(q, 0);
        status = figure_sweep(r, name, (const char *)sqlite3_column_text(q, 1), (const char *)sqlite3_column_text(q, 2), err) ||
                         chosen(r, name, err)
                     ? -1
                     : 0;
    }
    sqlite3_finalize(q);
    return status;
}
