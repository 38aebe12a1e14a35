/* report_tasks.c - what `select` found: a volcano plot and a table a task; and what `evaluate` counted: accuracy by relation. */
#include "analysis/report.h"
#include "analysis/select.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_OTHERS 12000 /* features drawn that are not selected */
#define TABLE_ROWS  16

enum { OTHERS, SELECTED, KEPT, POINT_KINDS };
static const char *const kind_blocks[POINT_KINDS] = {"others", "selected", "kept"};

struct task {
    char *name;
    long counts[POINT_KINDS], adapted, silent, tested; /* counts[SELECTED]: those that are not kept */
    double least_odds, least_difference, floor, top;   /* of -log10 p: where it is drawn from and to */
};

/* log10 of the odds ratio, and -log10 p, as drawn: the infinite and the zero odds stand on the edges. */
static void place(const struct task *t, double odds, double log10_p, double *x, double *y) {
    *x = fmin(fmax(log10(fmax(odds, 1e-30)), -3), 5);
    *y = fmin(fmax(-log10_p, t->floor), t->top);
}

static int write_points(FILE *script, struct report *r, struct task *t, int kind, struct error *err) {
    static const char *const filters[POINT_KINDS] = {"NOT selected", "selected AND NOT (adapted AND coalesce(prompt_invariant, 1))",
                                                     "selected AND adapted AND coalesce(prompt_invariant, 1)"};
    sqlite3_stmt *q = NULL;
    char sql[256];
    const long step = kind == OTHERS ? (t->counts[OTHERS] + MOST_OTHERS - 1) / MOST_OTHERS : 1;
    long row = 0;
    snprintf(sql, sizeof sql, "SELECT odds_ratio, log10_p FROM task_features WHERE task = ? AND odds_ratio IS NOT NULL AND %s",
             filters[kind]);
    if (run_db_prepare(r->db, &q, err, sql, "t", t->name)) return -1;
    fprintf(script, "$%s << EOD\nNaN NaN\n", kind_blocks[kind]);
    for (; sqlite3_step(q) == SQLITE_ROW; row++) {
        double x, y;
        if (step > 1 && row % step) continue;
        place(t, sqlite3_column_double(q, 0), sqlite3_column_double(q, 1), &x, &y);
        fprintf(script, "%.4g %.4g\n", x, y);
    }
    fputs("EOD\n", script);
    sqlite3_finalize(q);
    return 0;
}

static int figure_volcano(struct report *r, struct task *t, struct error *err) {
    struct figure f;
    if (figure_open(&f, r, 900, 480, err)) return -1;
    for (int kind = 0; kind < POINT_KINDS; kind++)
        if (write_points(f.script, r, t, kind, err)) {
            figure_abort(&f);
            return -1;
        }
    fprintf(
        f.script,
        "set key maxrows 1\nset logscale y\nset yrange [%g:%g]\nset xrange [-3.1:5.1]\nset format y '%%g'\n"
        "set xtics ('0' -3, '0.01' -2, '0.1' -1, '1' 0, '10' 1, '100' 2, '1000' 3, '10^4' 4, '\xe2\x88\x9e' 5)\n"
        "set xlabel 'odds ratio of firing, target set against general set' textcolor rgb '#3d434b'\n"
        "set ylabel '-log_{10} p' textcolor rgb '#3d434b'\n"
        "set arrow 1 from %g, graph 0 to %g, graph 1 nohead lc rgb '#1d2126' lw 1.2 dt 2\n"
        "plot $others using 1:2 with points pt 7 ps 0.26 lc rgb '#78708090' notitle, $selected using 1:2 with points pt 7 ps 0.45 lc rgb "
        "'#300072b2' notitle, $kept using 1:2 with points pt 7 ps 0.5 lc rgb '#30d55e00' notitle, NaN with points pt 7 ps 0.9 lc rgb "
        "'#d55e00' title 'features of the task', NaN with points pt 7 ps 0.9 lc rgb '#0072b2' title 'selected only', NaN with points pt 7 "
        "ps 0.9 lc rgb '#98a2ad' title 'others'\n",
        t->floor, t->top * 1.3, log10(t->least_odds), log10(t->least_odds));
    html_figure_open(r);
    if (figure_close(&f, r, "Volcano plot: odds ratio against significance of every feature, the task's features coloured", err)) return -1;
    fputs("\n<figcaption>", r->out); /* the name of the task is the user's text */
    fprintf(r->out, "<b>Figure %d. Features that fire for the task &ldquo;", ++r->figures);
    html_text(r->out, t->name);
    fprintf(
        r->out,
        "&rdquo;.</b> Each point is one feature of one layer; to the right: it fires more often on the target's tokens; up: less likely by "
        "chance (Fisher's exact test). Selected is what has an odds ratio of at least %g (dashed) and fires on at least %g&thinsp;%% of "
        "the "
        "target's tokens more than of the general set's.%s",
        t->least_odds, 100 * t->least_difference, t->silent ? " " : "");
    if (t->silent) {
        html_count(r->out, t->silent);
        fputs(" features never fired on either set.", r->out);
    }
    if (t->counts[OTHERS] > MOST_OTHERS)
        fprintf(r->out, " Of the others every %ld-th is drawn.", (t->counts[OTHERS] + MOST_OTHERS - 1) / MOST_OTHERS);
    fputs("</figcaption></figure>\n", r->out);
    return 0;
}

static void cell_share(FILE *out, double share) {
    fputs("<td>", out);
    html_number(out, 100 * share);
    fputs("&thinsp;%</td>", out);
}

static int table_features(struct report *r, const struct task *t, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT layer, feature, 1.0 * fired_target / tokens_target AS a, 1.0 * fired_general / tokens_general AS b, odds_ratio, "
            "log10_p, q_value FROM task_features WHERE task = ?1 AND selected AND adapted AND coalesce(prompt_invariant, 1)"
            " ORDER BY a - b DESC LIMIT ?2",
            "ti", t->name, (long)TABLE_ROWS))
        return -1;
    html_table_open(
        r, "Features of the task that gain most firing. <i>log<sub>10</sub> p</i>: Fisher's exact test, one-sided; <i>q</i>: false "
           "discovery rate over all layers (Benjamini-Hochberg).");
    fputs("<thead><tr><th>layer</th><th>feature</th><th>fires on target</th><th>on general</th><th>odds ratio</th><th>log<sub>10</sub> "
          "p</th><th>q</th></tr></thead><tbody>\n",
          r->out);
    while (sqlite3_step(q) == SQLITE_ROW) {
        fprintf(r->out, "<tr><td>%d</td><td>%d</td>", sqlite3_column_int(q, 0), sqlite3_column_int(q, 1));
        cell_share(r->out, sqlite3_column_double(q, 2));
        cell_share(r->out, sqlite3_column_double(q, 3));
        fputs("<td>", r->out);
        if (sqlite3_column_double(q, 4) >= 1e9)
            fputs("&infin;", r->out);
        else
            html_number(r->out, sqlite3_column_double(q, 4));
        fprintf(r->out, "</td><td>&minus;%.1f</td><td>", -sqlite3_column_double(q, 5));
        if (sqlite3_column_double(q, 6) > 0)
            html_number(r->out, sqlite3_column_double(q, 6));
        else
            fputs("&lt; 10<sup>&minus;307</sup>", r->out);
        fputs("</td></tr>\n", r->out);
    }
    sqlite3_finalize(q);
    fputs("</tbody></table></div>\n", r->out);
    return 0;
}

/* Cards of those that gain most. */
static int cards(struct report *r, const struct task *t, struct error *err) {
    sqlite3_stmt *q = NULL;
    int status = task_strongest(&q, r->db, t->name, r->summary.diff_regime, task_cards(r->c), err);
    while (status == 0 && sqlite3_step(q) == SQLITE_ROW) status = report_card(r, sqlite3_column_int(q, 0), sqlite3_column_int(q, 1), err);
    sqlite3_finalize(q);
    return status;
}

int report_feature_tasks(struct report *r, int layer, int feature, struct error *err) {
    static const char *const kinds[] = {"patches", "template", "question"};
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT task, odds_ratio, adapted AND coalesce(prompt_invariant, 1), f.target_image, t.target_image, f.target_template,"
            " t.target_template, f.target_question, t.target_question, f.general_image, t.general_image, f.general_template,"
            " t.general_template, f.general_question, t.general_question FROM task_rows f JOIN tasks t USING(task)"
            " WHERE layer = ? AND feature = ? AND selected ORDER BY t.rowid",
            "ii", (long)layer, (long)feature))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        fputs("<div class=\"stats\"><span>", r->out);
        fputs(sqlite3_column_int(q, 2) ? "task <b>" : "selected for the task <b>", r->out);
        html_text(r->out, (const char *)sqlite3_column_text(q, 0));
        fputs("</b>, odds ratio <b>", r->out);
        if (sqlite3_column_double(q, 1) >= 1e9)
            fputs("&infin;", r->out);
        else
            html_number(r->out, sqlite3_column_double(q, 1));
        fputs("</b></span><span>fires on target and general:", r->out);
        for (int k = 0; k < 3; k++) {
            const double a = sqlite3_column_double(q, 3 + 2 * k) / fmax(sqlite3_column_double(q, 4 + 2 * k), 1),
                         b = sqlite3_column_double(q, 9 + 2 * k) / fmax(sqlite3_column_double(q, 10 + 2 * k), 1);
            fprintf(r->out, "%s %s <b>%.1f&thinsp;%%</b>, <b>%.1f&thinsp;%%</b>", k ? ";" : "", kinds[k], 100 * a, 100 * b);
        }
        fputs("</span></div>\n", r->out);
    }
    sqlite3_finalize(q);
    return 0;
}

static int read_task(struct report *r, struct task *t, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(
            r->db, &q, err,
            "SELECT sum(NOT selected AND odds_ratio IS NOT NULL), sum(selected AND NOT (adapted AND coalesce(prompt_invariant, 1))),"
            " sum(selected AND adapted AND coalesce(prompt_invariant, 1)), sum(selected AND adapted), sum(odds_ratio IS NULL),"
            " count(prompt_invariant), min(log10_p) FROM task_features WHERE task = ?",
            "t", t->name))
        return -1;
    if (sqlite3_step(q) == SQLITE_ROW) {
        for (int i = 0; i < POINT_KINDS; i++) t->counts[i] = sqlite3_column_int64(q, i);
        t->adapted = sqlite3_column_int64(q, 3), t->silent = sqlite3_column_int64(q, 4), t->tested = sqlite3_column_int64(q, 5);
        t->floor = 0.1;
        t->top = fmax(10, -sqlite3_column_double(q, 6));
    }
    sqlite3_finalize(q);
    return 0;
}

static int one_task(struct report *r, struct task *t, struct error *err) {
    if (read_task(r, t, err)) return -1;
    fputs("<h3 class=\"part\">", r->out);
    html_text(r->out, t->name);
    fputs("</h3>\n<p>", r->out);
    html_count(r->out, t->counts[SELECTED] + t->counts[KEPT]);
    fputs(" features are selected, ", r->out);
    html_count(r->out, t->adapted);
    fputs(" of them are adapted", r->out);
    if (t->tested) {
        fputs(", and ", r->out);
        html_count(r->out, t->counts[KEPT]);
        fputs(" of those fire for their pictures under neutral prompts too", r->out);
    }
    fputs(": these are the features of the task.</p>\n", r->out);
    if (figure_volcano(r, t, err)) return -1;
    return t->counts[KEPT] && (table_features(r, t, err) || cards(r, t, err)) ? -1 : 0;
}

int report_tasks(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    int status = 0;
    if (run_db_count(r->db, "SELECT count(*) FROM tasks") == 0) return 0;
    fputs("<h2 id=\"tasks\">Which features a task makes fire</h2>\n"
          "<p>The dictionaries listened to a set of questions that the task is about and to a general set. A feature is selected when it "
          "fires "
          "on so much larger a share of the target's tokens; it is kept when it is also adapted, and when its strongest pictures make it "
          "fire "
          "without the task's words, under neutral prompts.</p>\n",
          r->out);
    if (run_db_prepare(r->db, &q, err, "SELECT task, min_odds_ratio, min_difference FROM tasks ORDER BY rowid", "")) return -1;
    while (status == 0 && sqlite3_step(q) == SQLITE_ROW) {
        struct task t = {.name = memory_string((const char *)sqlite3_column_text(q, 0)),
                         .least_odds = fmax(sqlite3_column_double(q, 1), 1e-3),
                         .least_difference = sqlite3_column_double(q, 2)};
        status = one_task(r, &t, err);
        free(t.name);
    }
    sqlite3_finalize(q);
    return status;
}

/* ---- evaluations ---- */

static int table_scores(struct report *r, const char *name, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(r->db, &q, err,
                       "SELECT split, relation, n, accuracy FROM evaluations WHERE name = ? ORDER BY split <> 'all', split, relation <> "
                       "'all', relation",
                       "t", name))
        return -1;
    fprintf(r->out, "<div class=\"scroll\"><table><caption><b>Table %d.</b> ", ++r->tables);
    html_text(r->out, name);
    fputs(
        ".</caption>\n<thead><tr><th>lines</th><th style=\"text-align:left\">relation or type</th><th>n</th><th>accuracy</th><th></th></tr>"
        "</thead><tbody>\n",
        r->out);
    while (sqlite3_step(q) == SQLITE_ROW) {
        const char *relation = (const char *)sqlite3_column_text(q, 1);
        const double accuracy = sqlite3_column_double(q, 3);
        const bool all = strcmp(relation, "all") == 0;
        fputs(all ? "<tr><td><b>" : "<tr><td>", r->out);
        html_text(r->out, (const char *)sqlite3_column_text(q, 0));
        fputs(all ? "</b></td><td style=\"text-align:left\"><b>" : "</td><td style=\"text-align:left\">", r->out);
        html_text(r->out, relation);
        fputs(all ? "</b></td><td>" : "</td><td>", r->out);
        html_count(r->out, sqlite3_column_int64(q, 2));
        fprintf(r->out,
                "</td><td>%.1f&thinsp;%%</td><td style=\"text-align:left;width:9rem\"><span class=\"bar\" "
                "style=\"width:%.1f%%\"></span></td></tr>\n",
                100 * accuracy, 100 * accuracy);
    }
    sqlite3_finalize(q);
    fputs("</tbody></table></div>\n", r->out);
    return 0;
}

int report_evaluations(struct report *r, struct error *err) {
    sqlite3_stmt *q = NULL;
    int status = 0;
    if (run_db_count(r->db, "SELECT count(*) FROM evaluations") == 0) return 0;
    fputs("<h2 id=\"evaluations\">What the model answers</h2>\n"
          "<p>Questions by soft accuracy against the references, as the VQA challenge scores them; statements by whether the next token "
          "says yes "
          "or no. The answers themselves are in <code>run.db</code>, table <code>answers</code>.</p>\n",
          r->out);
    if (run_db_prepare(r->db, &q, err, "SELECT name FROM evaluations GROUP BY name ORDER BY name", "")) return -1;
    while (status == 0 && sqlite3_step(q) == SQLITE_ROW) status = table_scores(r, (const char *)sqlite3_column_text(q, 0), err);
    sqlite3_finalize(q);
    return status;
}
