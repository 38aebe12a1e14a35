/* report_figures.c - reconstruction by layer, visual energy against decoder cosine, adapted share, image against text energy.
 * Colours are those of Okabe and Ito (2008), told apart by readers with any colour vision. */
#include "analysis/report.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_POINTS 20000
static const char *const row_colors[SUMMARY_ROWS] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                     "#5b636e", "#d55e00", "#009e73", "#5b636e"};
static const int row_points[SUMMARY_ROWS] = {7, 5, 9, 11, 6, 4, 8, 6}; /* gnuplot's disc, square, triangles; hollow before tuning */

/* `$name << EOD` block of x, y for one regime. */
static int fvu_block(FILE *script, struct report *r, int row, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(r->db, &q, err, "SELECT layer, fvu FROM layers WHERE regime = ? AND fvu IS NOT NULL ORDER BY layer", "t",
                       summary_row_name(row)))
        return -1;
    fprintf(script, "$%s << EOD\n", summary_row_name(row));
    while (sqlite3_step(q) == SQLITE_ROW) fprintf(script, "%d %.9g\n", sqlite3_column_int(q, 0), sqlite3_column_double(q, 1));
    fprintf(script, "EOD\n");
    sqlite3_finalize(q);
    return 0;
}

/* Figure 1 shows the regimes, and the untouched base dictionaries unless they are so far off that the rest would be one line; the
 * base rows of fewer tokens stand in the table. */
static bool row_drawn(const struct run_summary *s, int row) {
    double high = 0;
    if (s->regime[row].layers == 0 || row > SUMMARY_BASE) return false;
    for (int r = 0; r < REGIME_COUNT; r++) high = s->regime[r].layers ? fmax(high, s->regime[r].fvu.high) : high;
    return row < SUMMARY_BASE || high == 0 || s->regime[row].fvu.low < 4 * high;
}

static bool fvu_range(const struct run_summary *s, double *lowest, double *highest) {
    double low = INFINITY, high = 0;
    for (int row = 0; row < SUMMARY_ROWS; row++)
        if (row_drawn(s, row)) {
            low = fmin(low, s->regime[row].fvu.low);
            high = fmax(high, s->regime[row].fvu.high);
        }
    *lowest = low;
    *highest = high;
    return low > 0 && high > 12 * low; /* then the axis is logarithmic */
}

static int figure_fvu(struct report *r, struct error *err) {
    struct figure f;
    double low, high;
    char away[160] = "";
    bool logarithmic = fvu_range(&r->summary, &low, &high);
    if (figure_open(&f, r, 900, 430, err)) return -1;
    for (int row = 0; row < SUMMARY_ROWS; row++)
        if (row_drawn(&r->summary, row) && fvu_block(f.script, r, row, err)) {
            figure_abort(&f);
            return -1;
        }
    fprintf(f.script,
            "set xlabel 'layer' textcolor rgb '#3d434b'\nset ylabel 'FVU%s' textcolor rgb '#3d434b'\n"
            "set offsets 0.15, 0.15, 0, 0\nset key maxrows 1 width -3\n",
            logarithmic ? " (log scale)" : "");
    if (logarithmic)
        fprintf(f.script,
                "set logscale y\nset yrange [%g:%g]\nset ytics (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, "
                "100)\nplot ",
                low * 0.8, high * 1.15);
    else
        fprintf(f.script, "set yrange [0:*]\nplot ");
    const char *sep = "";
    for (int row = 0; row < SUMMARY_ROWS; row++)
        if (row_drawn(&r->summary, row)) {
            fprintf(f.script, "%s$%s using 1:2:xtic(1) with linespoints lc rgb '%s' lw 2.4 pt %d ps 0.7 %s title '%s'", sep,
                    summary_row_name(row), row_colors[row], row_points[row], row == SUMMARY_BASE ? "dt 2" : "", summary_row_title(row));
            sep = ", ";
        }
    fprintf(f.script, "\n");
    const struct regime_summary *base = &r->summary.regime[SUMMARY_BASE];
    if (base->layers && !row_drawn(&r->summary, SUMMARY_BASE))
        snprintf(away, sizeof away, " The base dictionaries, untouched, lie far above the frame, from %.2f to %.2f.", base->fvu.low,
                 base->fvu.high);
    html_figure_open(r);
    if (figure_close(&f, r, "Line chart: fraction of variance unexplained by layer for each regime", err)) return -1;
    html_figure_close(
        r, "What the dictionaries leave unexplained",
        "Fraction of variance unexplained (FVU) on held-out samples, by layer; lower is better, 1 is no better than the mean vector.%s"
        " Each regime is measured on the tokens it was trained on: all of them, the image rows alone, or everything but the image rows.%s",
        logarithmic ? " The vertical axis is logarithmic." : "", away);
    return 0;
}

static void spread_cell(FILE *out, const struct spread *s, int digits, double factor) {
    fprintf(out, "<td>%.*f <span class=\"pm\">&plusmn; %.*f</span></td>", digits, factor * s->mean, digits, factor * s->sd);
}

static void table_regimes(struct report *r) {
    char caption[800], own[128] = "";
    const struct regime_summary *native = &r->summary.regime[SUMMARY_BASE_NATIVE];
    if (native->layers)
        snprintf(own, sizeof own, " (with the activation function they came with: FVU %.3f on all tokens at L0 %.0f)", native->fvu.mean,
                 native->l0.mean);
    snprintf(
        caption, sizeof caption,
        "Mean over layers &plusmn; standard deviation over layers, on held-out samples. <i>Before tuning</i>: the base dictionaries as "
        "training "
        "starts from them, TopK with the same k, on the same tokens%s. <i>FVU as coded</i> follows the paper's released code, whose "
        "variance also counts masked tokens as zero vectors; it flatters regimes that mask many tokens and is shown for comparison only.",
        own);
    html_table_open(r, caption);
    fputs("<thead><tr><th>dictionaries</th><th>FVU</th><th>range over layers</th><th>before tuning</th><th>FVU as "
          "coded</th><th>L0</th><th>dead</th><th>tokens</th></tr></thead><tbody>\n",
          r->out);
    for (int row = 0; row < SUMMARY_BASE; row++) {
        const struct regime_summary *s = &r->summary.regime[row], *before = &r->summary.regime[summary_base_of((enum regime)row)];
        if (s->layers == 0) continue;
        fprintf(r->out, "<tr><td><i class=\"swatch\" style=\"background:%s\"></i>%s</td>", row_colors[row], summary_row_title(row));
        spread_cell(r->out, &s->fvu, 3, 1);
        fprintf(r->out, "<td>%.3f &ndash; %.3f</td>", s->fvu.low, s->fvu.high);
        if (before->layers && row != REGIME_RANDOM)
            spread_cell(r->out, &before->fvu, 3, 1);
        else
            fputs("<td>&ndash;</td>", r->out);
        spread_cell(r->out, &s->fvu_as_coded, 3, 1);
        fprintf(r->out, "<td>%.1f</td><td>%.1f&thinsp;%%</td><td>", s->l0.mean, 100 * s->dead_share.mean);
        html_count(r->out, s->tokens);
        fputs("</td></tr>\n", r->out);
    }
    fputs("</tbody></table></div>\n", r->out);
}

static int table_layers(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT layer, max(fvu) FILTER (WHERE regime='full'), max(fvu) FILTER (WHERE regime='image'), max(fvu) FILTER (WHERE "
            "regime='text'),"
            " max(fvu) FILTER (WHERE regime='random'), max(fvu) FILTER (WHERE regime='base'), max(fvu) FILTER (WHERE regime='base_image'),"
            " max(fvu) FILTER (WHERE regime='base_text'), max(fvu) FILTER (WHERE regime='base_native') FROM layers GROUP BY layer ORDER BY "
            "layer",
            ""))
        return -1;
    fputs("<details><summary>FVU of every layer</summary>\n", r->out);
    html_table_open(r, "FVU by layer, the numbers behind Figure 1.");
    fputs("<thead><tr><th>layer</th>", r->out);
    for (int row = 0; row < SUMMARY_ROWS; row++) fprintf(r->out, "<th>%s</th>", summary_row_title(row));
    fputs("</tr></thead><tbody>\n", r->out);
    while (sqlite3_step(q) == SQLITE_ROW) {
        fprintf(r->out, "<tr><td>%d</td>", sqlite3_column_int(q, 0));
        for (int i = 1; i <= SUMMARY_ROWS; i++)
            if (sqlite3_column_type(q, i) == SQLITE_NULL)
                fputs("<td>&ndash;</td>", r->out);
            else
                fprintf(r->out, "<td>%.4f</td>", sqlite3_column_double(q, i));
        fputs("</tr>\n", r->out);
    }
    sqlite3_finalize(q);
    fputs("</tbody></table></div></details>\n", r->out);
    return 0;
}

int report_reconstruction(struct report *r, struct error *err) {
    fputs("<h2 id=\"reconstruction\">How well the dictionaries explain the multimodal model</h2>\n"
          "<p>A sparse autoencoder rewrites each activation as a sum of a few dictionary directions. What it cannot rewrite is the "
          "fraction of variance "
          "unexplained. The base dictionaries were made on the text-only model; each regime fine-tunes them (or starts from random "
          "directions) on the "
          "activations of the vision-language model, restricted to some of its tokens.</p>\n",
          r->out);
    if (run_db_count(r->db, "SELECT count(*) FROM layers") == 0) {
        fputs("<p>No reconstruction metrics in this run yet: run <code>stagediff train</code>.</p>\n", r->out);
        return 0;
    }
    if (figure_fvu(r, err)) return -1;
    table_regimes(r);
    return table_layers(r, err);
}

/* ---- energies and cosines ---- */

struct point {
    double image, text, cosine;
    bool adapted;
};
struct points {
    struct point *at;
    long count, total, silent; /* kept; all; E_v == 0 */
    double floor;              /* half a decade below the smallest energy: where zeros are drawn */
};

static int read_points(struct points *p, struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    long row = 0, kept = 0;
    char sql[256];
    *p = (struct points){.floor = 1};
    snprintf(sql, sizeof sql, "SELECT count(*) FROM features WHERE regime = '%s'", r->summary.diff_regime);
    p->total = run_db_count(r->db, sql);
    p->at = malloc((size_t)(p->total < MOST_POINTS ? p->total + 1 : MOST_POINTS + 1) * sizeof *p->at);
    if (!p->at) return fail(err, "not enough memory for the points of a figure");
    if (run_db_prepare(r->db, &q, err,
                       "SELECT energy_image, energy_text, decoder_cosine, adapted FROM features WHERE regime = ? ORDER BY layer, feature",
                       "t", r->summary.diff_regime)) {
        free(p->at);
        return -1;
    }
    double keep = p->total > MOST_POINTS ? (double)MOST_POINTS / (double)p->total : 1;
    for (; sqlite3_step(q) == SQLITE_ROW && kept < MOST_POINTS; row++) {
        struct point point = {sqlite3_column_double(q, 0), sqlite3_column_double(q, 1), sqlite3_column_double(q, 2),
                              sqlite3_column_int(q, 3) != 0};
        p->silent += point.image <= 0;
        p->floor = fmin(p->floor, fmin(point.image > 0 ? point.image : 1, point.text > 0 ? point.text : 1));
        /* every 1/keep-th feature, evenly through layers and indices: the density of the cloud is kept */
        if ((long)((double)(row + 1) * keep) > (long)((double)row * keep) || keep >= 1) p->at[kept++] = point;
    }
    p->count = kept;
    p->floor = pow(10, floor(2 * log10(p->floor) - 1) / 2);
    sqlite3_finalize(q);
    return 0;
}

static void write_points(FILE *script, const struct points *p, bool adapted, bool energies) {
    fprintf(script, "$%s << EOD\n", adapted ? "adapted" : "others");
    for (long i = 0; i < p->count; i++) {
        const struct point *a = &p->at[i];
        if (a->adapted != adapted || (!energies && a->image <= 0) || (a->image <= 0 && a->text <= 0)) continue;
        if (energies)
            fprintf(script, "%.4g %.4g\n", fmax(a->text, p->floor), fmax(a->image, p->floor));
        else
            fprintf(script, "%.4g %.5g\n", a->image, a->cosine);
    }
    if (adapted) fprintf(script, "NaN NaN\n"); /* a block of no points would be an error */
    fprintf(script, "NaN NaN\nEOD\n");
}

static const char *subset_note(const struct points *p, char *text, size_t bytes) {
    if (p->count < p->total)
        snprintf(text, bytes, " Drawn: %ld of %ld features, taken evenly through layers and indices, so the density is that of the whole.",
                 p->count, p->total);
    else
        snprintf(text, bytes, " All %ld features are drawn%s.", p->total, p->silent ? " that fired" : "");
    if (p->silent)
        snprintf(text + strlen(text), bytes - strlen(text),
                 " %ld features never fired on the vision-language model and have no place on a logarithmic axis.", p->silent);
    return text;
}

static int figure_scatter(struct report *r, const struct points *p, struct error *err) {
    struct figure f;
    const struct run_summary *s = &r->summary;
    char note[512];
    double lowest = 1;
    if (figure_open(&f, r, 900, 520, err)) return -1;
    for (long i = 0; i < p->count; i++) lowest = fmin(lowest, p->at[i].cosine);
    write_points(f.script, p, false, false);
    write_points(f.script, p, true, false);
    fprintf(f.script,
            "set logscale x\nset format x '10^{%%L}'\nset xlabel 'visual energy E_v (mean squared activation)' textcolor rgb '#3d434b'\n"
            "set ylabel 'decoder cosine to the base SAE' textcolor rgb '#3d434b'\nset yrange [*:%.6g]\n"
            "set arrow 1 from %g, graph 0 to %g, graph 1 nohead lc rgb '#1d2126' lw 1.2 dt 2\n"
            "set arrow 2 from graph 0, first %g to graph 1, first %g nohead lc rgb '#1d2126' lw 1.2 dt 2\n"
            "set label 1 'E_v = %g' at %g, graph 0.03 left offset 0.8, 0 textcolor rgb '#1d2126' font ',12'\n"
            "set label 2 'cosine = %.3f ' at graph 0.005, first %g left offset 0, -0.7 textcolor rgb '#1d2126' font ',12'\n"
            "plot $others using 1:2 with points pt 7 ps 0.26 lc rgb '#78708090' notitle, $adapted using 1:2 with points pt 7 ps 0.32 lc "
            "rgb '#30d55e00' notitle,"
            " NaN with points pt 7 ps 0.9 lc rgb '#d55e00' title 'adapted', NaN with points pt 7 ps 0.9 lc rgb '#98a2ad' title 'other "
            "features'\n",
            1 + 0.02 * (1 - lowest), s->eps, s->eps, s->cosine_threshold, s->cosine_threshold, s->eps, s->eps, s->cosine_threshold,
            s->cosine_threshold);
    html_figure_open(r);
    if (figure_close(&f, r, "Scatter plot: visual energy against decoder cosine of every feature, adapted features coloured", err))
        return -1;
    html_figure_close(r, "Turned and visual",
                      "Each point is one feature of one layer. To the right: stronger on the vision-language model's tokens. Further down: "
                      "its decoder direction turned further "
                      "away from where the base model had it. Adapted features (orange) lie right of E<sub>v</sub>&nbsp;=&nbsp;%g and "
                      "at or below percentile %g of all cosines, %.3f.%s",
                      s->eps, s->percentile, s->cosine_threshold, subset_note(p, note, sizeof note));
    return 0;
}

static int figure_energy(struct report *r, const struct points *p, struct error *err) {
    struct figure f;
    char note[512];
    if (figure_open(&f, r, 900, 520, err)) return -1;
    write_points(f.script, p, false, true);
    write_points(f.script, p, true, true);
    fprintf(f.script,
            "set logscale xy\nset format x '10^{%%L}'\nset format y '10^{%%L}'\nset xrange [%.4g:*]\nset yrange [%.4g:*]\n"
            "set xlabel 'text energy E_t (base LLM)' textcolor rgb '#3d434b'\nset ylabel 'visual energy E_v (vision-language model)' "
            "textcolor rgb '#3d434b'\n"
            "plot $others using 1:2 with points pt 7 ps 0.26 lc rgb '#78708090' notitle, $adapted using 1:2 with points pt 7 ps 0.32 lc "
            "rgb '#30d55e00' notitle,"
            " x with lines lc rgb '#1d2126' lw 1.2 dt 2 title 'equal energy',"
            " NaN with points pt 7 ps 0.9 lc rgb '#d55e00' title 'adapted', NaN with points pt 7 ps 0.9 lc rgb '#98a2ad' title 'other "
            "features'\n",
            p->floor, p->floor);
    html_figure_open(r);
    if (figure_close(&f, r, "Scatter plot: text energy against visual energy of every feature", err)) return -1;
    html_figure_close(r, "What each feature responds to",
                      "The same features by how strongly they fire on the base LLM's text tokens (across) and on the vision-language "
                      "model's tokens (up). On the dashed line a "
                      "feature is equally active in both; far above it, it has become a feature of the multimodal model. Features silent "
                      "in one of the two runs stand on the edge.%s",
                      p->count < p->total ? subset_note(p, note, sizeof note) : "");
    return 0;
}

static int figure_share(struct report *r, struct error *err) {
    struct figure f;
    const struct run_summary *s = &r->summary;
    if (figure_open(&f, r, 900, 340, err)) return -1;
    fprintf(f.script, "$share << EOD\n");
    for (int i = 0; i < s->n_layers; i++)
        fprintf(f.script, "%d %.6g\n", s->layer[i].layer, 100.0 * (double)s->layer[i].adapted / (double)s->layer[i].features);
    fprintf(
        f.script,
        "EOD\nset xlabel 'layer' textcolor rgb '#3d434b'\nset ylabel 'adapted features, %%' textcolor rgb '#3d434b'\nset yrange [0:*]\n"
        "set boxwidth 0.68 relative\nset style fill solid 1 noborder\nset offsets graph 0.02, graph 0.02, graph 0.08, 0\nset tmargin 1\n"
        "plot $share using 0:2:xtic(1) with boxes lc rgb '#d55e00' notitle%s\n",
        s->n_layers <= 16 ? ", $share using 0:2:(sprintf('%.1f', $2)) with labels offset 0, 0.7 font ',12' textcolor rgb '#3d434b' notitle"
                          : "");
    html_figure_open(r);
    if (figure_close(&f, r, "Bar chart: share of adapted features by layer", err)) return -1;
    html_figure_close(r, "Where they are",
                      "Adapted features as a share of the layer's dictionary. The cosine threshold is one for all layers, so layers are "
                      "compared on the same scale. By its percentile the rule admits at most %g&thinsp;%% of all features.",
                      s->percentile);
    return 0;
}

static void table_shares(struct report *r) {
    const struct run_summary *s = &r->summary;
    double most = 0;
    for (int i = 0; i < s->n_layers; i++) most = fmax(most, (double)s->layer[i].adapted / (double)s->layer[i].features);
    html_table_open(r, "Adapted features by layer. <i>Visual</i>: E<sub>v</sub> above the threshold, turned or not.");
    fputs("<thead><tr><th>layer</th><th>features</th><th>visual</th><th>adapted</th><th>share</th><th></th><th>median "
          "cosine</th></tr></thead><tbody>\n",
          r->out);
    for (int i = 0; i < s->n_layers; i++) {
        const struct layer_share *l = &s->layer[i];
        double share = (double)l->adapted / (double)l->features;
        fprintf(r->out, "<tr><td>%d</td><td>", l->layer);
        html_count(r->out, l->features);
        fprintf(r->out, "</td><td>%.1f&thinsp;%%</td><td>", 100.0 * (double)l->visual / (double)l->features);
        html_count(r->out, l->adapted);
        fprintf(r->out,
                "</td><td>%.1f&thinsp;%%</td><td style=\"text-align:left;width:9rem\"><span class=\"bar\" "
                "style=\"width:%.1f%%\"></span></td><td>%.3f</td></tr>\n",
                100 * share, most > 0 ? 100 * share / most : 0, l->median_cosine);
    }
    fputs("</tbody></table></div>\n", r->out);
}

/* The regimes beside each other: how far each turned the dictionary. */
static void table_turned(struct report *r) {
    int with_features = 0;
    for (int row = 0; row < REGIME_COUNT; row++) with_features += r->summary.regime[row].features > 0;
    if (with_features < 2) return;
    html_table_open(r, "How far each regime turned the dictionary. Each regime has its own cosine threshold (same percentile). A random "
                       "start shares no history with "
                       "the base dictionary: its cosines only say what chance gives.");
    fputs("<thead><tr><th>dictionaries</th><th>median cosine</th><th>cosine "
          "threshold</th><th>visual</th><th>adapted</th></tr></thead><tbody>\n",
          r->out);
    for (int row = 0; row < REGIME_COUNT; row++) {
        const struct regime_summary *s = &r->summary.regime[row];
        char name[64];
        if (s->features == 0) continue;
        snprintf(name, sizeof name, "cosine_threshold.%s", summary_row_name(row));
        double threshold = run_db_number(r->db, "diff", name, NAN);
        fprintf(r->out,
                "<tr><td><i class=\"swatch\" "
                "style=\"background:%s\"></i>%s</td><td>%.3f</td><td>%.3f</td><td>%.1f&thinsp;%%</td><td>%.1f&thinsp;%%</td></tr>\n",
                row_colors[row], summary_row_title(row), s->median_cosine, threshold, 100.0 * (double)s->visual / (double)s->features,
                100.0 * (double)s->adapted / (double)s->features);
    }
    fputs("</tbody></table></div>\n", r->out);
}

int report_adapted(struct report *r, struct error *err) {
    struct points points;
    fprintf(r->out,
            "<h2 id=\"adapted\">Which features turned, and which became visual</h2>\n"
            "<p>Fine-tuning keeps every feature's index, so the same feature can be compared before and after. A feature is called "
            "<i>adapted</i> when it is active on the "
            "vision-language model's tokens (visual energy above a threshold) <i>and</i> its decoder direction is among the %g&thinsp;%% "
            "that turned most, over all layers "
            "together. Shown here: the %s dictionaries.</p>\n",
            r->summary.percentile, summary_row_title((int)r->c->diff_regime));
    if (r->summary.n_layers == 0) {
        fputs("<p>No feature statistics in this run yet: run <code>stagediff diff</code>.</p>\n", r->out);
        return 0;
    }
    if (read_points(&points, r, err)) return -1;
    int status = figure_scatter(r, &points, err);
    if (status == 0) status = figure_share(r, err);
    if (status == 0) {
        table_shares(r);
        status = figure_energy(r, &points, err);
    }
    if (status == 0) table_turned(r);
    free(points.at);
    return status;
}
