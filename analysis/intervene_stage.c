/* intervene_stage.c - the stage `intervene`: the interventions of the configuration on its data sets, rows of run.db (view interventions).
 * An intervention is an edit list of a file, or made here from what earlier stages found: the features of a task, projected out of
 * attn_out, mlp_out and resid_post of every layer behind the image, or the strongest heads of a target, set to zero (papers.md 1.6). */
#include "analysis/intervene.h"
#include "analysis/run.h"
#include "analysis/select.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* {"op": "project_out", ..} for each feature of the task, strongest first. */
static int feature_edits(const struct run_config *c, const struct run_intervene *x, sqlite3 *db, json_t *list, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (task_strongest(&q, db, x->features_of, regime_names[c->diff_regime], x->top, err)) return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        char *sae = run_sae_path(c, c->diff_regime, sqlite3_column_int(q, 0));
        json_array_append_new(list, json_pack("{s:s, s:{s:s, s:i}, s:[sss], s:b}", "op", "project_out", "vector", "sae", sae, "feature",
                                              sqlite3_column_int(q, 1), "points", "attn_out", "mlp_out", "resid_post", "after_image", 1));
        free(sae);
    }
    sqlite3_finalize(q);
    if (json_array_size(list)) return 0;
    return fail(err, "intervention \"%s\": the task \"%s\" has no features in run.db; run select first, or set other thresholds there",
                x->name, x->features_of);
}

/* {"op": "head", ..} for each layer that has some of the strongest heads. */
static int head_edits(const struct run_intervene *x, sqlite3 *db, json_t *list, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(db, &q, err,
                       "SELECT layer, json_group_array(head) FROM (SELECT layer, head FROM head_scores WHERE target = ? AND method NOT "
                       "LIKE 'mean_abs%'"
                       " GROUP BY layer, head ORDER BY max(abs(score)) DESC, layer, head LIMIT ?) GROUP BY layer ORDER BY layer",
                       "ti", x->heads_of, x->top ? (long)x->top : -1L))
        return -1;
    while (sqlite3_step(q) == SQLITE_ROW)
        json_array_append_new(list, json_pack("{s:s, s:[i], s:o, s:s}", "op", "head", "layers", sqlite3_column_int(q, 0), "heads",
                                              json_loads((const char *)sqlite3_column_text(q, 1), 0, NULL), "mode", "zero"));
    sqlite3_finalize(q);
    if (json_array_size(list)) return 0;
    return fail(err, "intervention \"%s\": the target \"%s\" has no head scores in run.db; run attribute first", x->name, x->heads_of);
}

/* Controls of a task's features are none of the task's: those that select took, adapted or not, are barred. */
static int bar_task(const struct run_config *c, const struct run_intervene *x, sqlite3 *db, struct edit_list *l, struct error *err) {
    sqlite3_stmt *q = NULL;
    if (run_db_prepare(db, &q, err, "SELECT layer, feature FROM task_features WHERE task = ? AND selected", "t", x->features_of)) return -1;
    while (sqlite3_step(q) == SQLITE_ROW) {
        char *path = run_sae_path(c, c->diff_regime, sqlite3_column_int(q, 0));
        const int feature = sqlite3_column_int(q, 1);
        for (int i = 0; i < l->n_saes; i++) {
            struct edit_sae *s = l->saes[i];
            if (strcmp(s->path, path)) continue;
            if (!s->barred) s->barred = memory_take((size_t)s->host.M, sizeof *s->barred);
            if (feature >= 0 && feature < s->host.M) s->barred[feature] = true;
        }
        free(path);
    }
    sqlite3_finalize(q);
    return 0;
}

/* The list, and what run.db keeps of it as text (malloced). */
static int open_edits(const struct run_config *c, const struct run_intervene *x, sqlite3 *db, const struct model *m, struct edit_list *l,
                      char **text, struct error *err) {
    size_t size;
    *text = NULL;
    if (x->edit) return edit_list_open(l, m, x->edit, err) || file_read(x->edit, 16 << 20, text, &size, err) ? -1 : 0;
    json_t *list = json_array();
    int status = x->features_of ? feature_edits(c, x, db, list, err) : head_edits(x, db, list, err);
    if (status == 0) *text = json_dumps(list, JSON_COMPACT);
    if (status == 0) status = edit_list_read(l, m, list, x->name, NULL, err);
    if (status == 0 && x->features_of) status = bar_task(c, x, db, l, err);
    json_decref(list);
    return status;
}

struct reference { /* the run's validation samples */
    struct samples samples;
    size_t first, count;
};

struct result { /* one intervention on one data set */
    const struct run_intervene *x;
    const struct run_evaluate *set;
    const struct samples *samples;
    char *text;
    struct intervention i;
};

static int write_relations(sqlite3 *db, const struct result *r, struct error *err) {
    struct tallies t;
    int status = 0;
    tally_all(&t, &r->i.baseline, r->samples, 0, NULL);
    for (int k = 0; k < t.count && status == 0; k++) {
        const char *relation = k ? t.at[k].relation : NULL;
        double *base = scores_of(&r->i.baseline, r->samples, 0, relation), *after = scores_of(&r->i.intervened, r->samples, 0, relation);
        struct paired p;
        paired_compare(&p, base, after, r->i.baseline.count, r->i.seed);
        status =
            run_db_run(db, err, "INSERT INTO effect_relations VALUES(?,?,?,?,?,?,?,?,?,?,?,?)", "tttidddddiid", r->x->name, r->set->name,
                       t.at[k].relation, p.n, p.baseline, p.intervened, p.delta, p.ci_low, p.ci_high, p.lost, p.gained, p.mcnemar_p);
        free(base), free(after);
    }
    tallies_free(&t);
    return status;
}

static int write_rows(sqlite3 *db, const struct result *r, struct error *err) {
    const struct effect *e = &r->i.effect;
    const struct paired *p = &e->pair;
    int status =
        run_db_run(db, err,
                   "INSERT INTO effects(name, dataset, n, baseline, intervened, delta, ci_low, ci_high, lost, gained, mcnemar_p, seed,"
                   " control_mean, control_low, control_high, controls, beyond, edits) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                   "ttidddddiididddiit", r->x->name, r->set->name, p->n, p->baseline, p->intervened, p->delta, p->ci_low, p->ci_high,
                   p->lost, p->gained, p->mcnemar_p, (long)r->i.seed, e->control_mean, e->control_low, e->control_high, (long)e->controls,
                   (long)e->beyond, r->text);
    for (int k = 0; k < e->controls && status == 0; k++)
        status = run_db_run(db, err, "INSERT INTO effect_controls(name, dataset, draw, delta) VALUES(?,?,?,?)", "ttid", r->x->name,
                            r->set->name, (long)k, e->control_delta[k]);
    return status ? status : write_relations(db, r, err);
}

static bool wants(const struct run_intervene *x, const char *set) {
    bool named = !x->on;
    for (int i = 0; i < x->n_on; i++) named = named || !strcmp(x->on[i], set);
    return named;
}

/* All data sets of one intervention. */
static int run_one(const struct run_config *c, const struct run_intervene *x, sqlite3 *db, struct model *m, const struct samples *sets,
                   const struct reference *reference, struct result *results, int *n, struct error *err) {
    struct edit_list l = {0};
    char *text = NULL;
    int status = open_edits(c, x, db, m, &l, &text, err);
    for (int i = 0; i < c->n_evaluate && status == 0; i++) {
        const struct run_evaluate *set = &c->evaluate[i];
        if (!wants(x, set->name)) continue;
        struct result *r = &results[(*n)++];
        *r = (struct result){.x = x, .set = set, .samples = &sets[i], .text = memory_string(text)};
        r->i = (struct intervention){.task = set->task == TASK_AUTO  ? evaluation_task_of(&sets[i])
                                             : set->task == TASK_VSR ? EVALUATE_VSR
                                                                     : EVALUATE_VQA,
                                     .max_new_tokens = set->max_new_tokens,
                                     .batch = c->forward_samples,
                                     .controls = x->controls,
                                     .kind = x->directions ? CONTROL_DIRECTIONS : CONTROL_MATCHED,
                                     .seed = c->seed,
                                     .progress = x->name,
                                     .reference = &reference->samples,
                                     .reference_first = reference->first,
                                     .reference_count = reference->count};
        status = intervene(&r->i, m, &l, &sets[i], 0, sets[i].count, err);
        if (status == 0)
            log_note("%s on %s: %.1f %% -> %.1f %% (controls %+.1f)", x->name, set->name, 100 * r->i.effect.pair.baseline,
                     100 * r->i.effect.pair.intervened, 100 * (x->controls ? r->i.effect.control_mean : 0));
    }
    free(text);
    edit_list_free(&l);
    return status;
}

/* Rows of an earlier run of this stage; those of sweeps are the stage steer's. */
static const char forget[] = "DELETE FROM effects WHERE name NOT IN (SELECT name FROM steering);"
                             "DELETE FROM effect_controls WHERE name NOT IN (SELECT name FROM steering); DELETE FROM effect_relations;";

int stage_intervene(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err) {
    struct model m = {0};
    struct samples *sets = memory_take((size_t)c->n_evaluate + 1, sizeof *sets);
    struct result *results = memory_take((size_t)c->n_intervene * (size_t)c->n_evaluate + 1, sizeof *results);
    struct reference reference = {0};
    int opened = 0, n = 0, status = 0;
    if (!c->n_intervene) status = fail(err, "the configuration has no \"intervene\"; give it a list of interventions (docs/config.md)");
    for (; opened < c->n_evaluate && status == 0; opened += status == 0)
        status = dataset_open(&c->evaluate[opened].set, &sets[opened], err);
    if (status == 0) status = run_samples(c, true, &reference.samples, &reference.first, &reference.count, err);
    if (status == 0) status = model_open(&m, dev, c->model, NULL, err);
    for (int i = 0; i < c->n_intervene && status == 0; i++)
        status = run_one(c, &c->intervene[i], db, &m, sets, &reference, results, &n, err);
    if (status == 0) status = run_db_exec(db, err, "BEGIN IMMEDIATE");
    const bool begun = status == 0;
    if (status == 0) status = run_db_exec(db, err, forget);
    for (int i = 0; i < n && status == 0; i++) status = write_rows(db, &results[i], err);
    if (status == 0) status = run_db_exec(db, err, "COMMIT");
    if (status && begun) sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    for (int i = 0; i < n; i++) {
        intervention_free(&results[i].i);
        free(results[i].text);
    }
    for (int i = 0; i < opened; i++) samples_free(&sets[i]);
    if (reference.samples.at) samples_free(&reference.samples);
    free(sets), free(results);
    if (m.dir) model_close(&m);
    return status;
}
