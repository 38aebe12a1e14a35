/* select.c - the stage `select`: for every task of the configuration the run's dictionaries listen to its target set and to its
 * general set (prompts alone, no answers); then the statistics, the prompt filter, rows in run.db. See select.h. */
#include "analysis/select.h"
#include "analysis/ring.h"
#include "analysis/summary.h"
#include "host/file.h"
#include "host/progress.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct selection {
    const struct run_config *c;
    struct device *dev;
    struct model m;
    struct diff_buffers buffers;
    struct select_layer *layers;
    struct diff_job *jobs; /* those of the layers while they stream: diff_stream wants them in a row */
    int n_layers;
};

static int open_layer(struct selection *s, struct select_layer *l, int layer, struct error *err) {
    struct sae_host tuned, base = {0};
    if (diff_load(&tuned, s->c, s->c->diff_regime, layer, s->m.d_model, err)) return -1;
    /* a random start of its own size has no counterpart */
    const bool alone = !s->c->saes || (s->c->diff_regime == REGIME_RANDOM && s->c->features > 0);
    int status = alone ? 0 : diff_load_base(&base, s->c, layer, &tuned, err);
    if (status == 0) {
        status = diff_job_open(&l->job, s->dev, s->c->diff_regime, layer, &tuned, alone ? NULL : &base, true, err);
        sae_host_free(&base);
    }
    sae_host_free(&tuned);
    if (status) return -1;
    const size_t M = (size_t)l->job.M;
    for (int set = 0; set < SELECT_SETS; set++) l->fired[set] = memory_take(DIFF_BASE * M, sizeof *l->fired[set]);
    l->odds = memory_take(M, sizeof *l->odds), l->log10_p = memory_take(M, sizeof *l->log10_p), l->q = memory_take(M, sizeof *l->q);
    l->selected = memory_take(M, 1), l->adapted = memory_take(M, 1), l->invariant = memory_take(M, 1);
    return 0;
}

static void close_layer(struct select_layer *l) {
    diff_job_close(&l->job);
    for (int set = 0; set < SELECT_SETS; set++) free(l->fired[set]);
    free(l->odds), free(l->log10_p), free(l->q), free(l->selected), free(l->adapted), free(l->invariant);
}

/* The adapted set that `diff` left. */
static int read_adapted(struct selection *s, struct select_layer *l, sqlite3 *db, struct error *err) {
    sqlite3_stmt *q = NULL;
    int rows = 0;
    if (run_db_prepare(db, &q, err, "SELECT feature, adapted FROM features WHERE layer = ? AND regime = ?", "it", (long)l->job.layer,
                       regime_names[s->c->diff_regime]))
        return -1;
    for (; sqlite3_step(q) == SQLITE_ROW; rows++) {
        int f = sqlite3_column_int(q, 0);
        if (f >= 0 && f < l->job.M) l->adapted[f] = sqlite3_column_int(q, 1) == 1;
    }
    sqlite3_finalize(q);
    if (rows == l->job.M) return 0;
    return fail(err, "run.db has %d features of layer %d, %s, the dictionary has %d; run `stagediff diff` first", rows, l->job.layer,
                regime_names[s->c->diff_regime], l->job.M);
}

static int open_all(struct selection *s, sqlite3 *db, struct error *err) {
    const struct run_config *c = s->c;
    int deepest = -1, widest = 0, K = 0;
    for (int i = 0; i < c->n_layers; i++) deepest = c->layers[i] > deepest ? c->layers[i] : deepest;
    if (model_open(&s->m, s->dev, c->model, &(struct model_options){.layers = deepest + 1}, err)) return -1;
    const int n = c->n_layers ? c->n_layers : s->m.n_layers;
    s->layers = memory_take((size_t)n + 1, sizeof *s->layers);
    s->jobs = memory_take((size_t)n + 1, sizeof *s->jobs);
    for (int i = 0; i < n; i++, s->n_layers++) {
        struct select_layer *l = &s->layers[i];
        if (open_layer(s, l, c->n_layers ? c->layers[i] : i, err) || read_adapted(s, l, db, err)) {
            s->n_layers++; /* what it holds is freed with the others */
            return -1;
        }
        widest = l->job.M > widest ? l->job.M : widest, K = l->job.K > K ? l->job.K : K;
    }
    return diff_buffers_open(&s->buffers, s->dev, s->m.d_model, widest, K, err);
}

/* One set through every dictionary, as many layers a pass as fit in half of what is free. Only the target set leaves top samples. */
static int count(struct selection *s, struct select_task *t, int set, const struct samples *samples, struct error *err) {
    const struct diff_pass pass = {set == SELECT_TARGET ? "select: target" : "select: general", false, false};
    long *picture = diff_pictures(samples);
    int status = 0;
    memset(t->tokens[set], 0, sizeof t->tokens[set]);
    for (int first = 0, end; first < s->n_layers && status == 0; first = end) {
        size_t need = 0, room = device_memory_free(s->dev) / 2;
        long tokens[DIFF_GROUPS] = {0};
        for (end = first; end < s->n_layers && status == 0; end++) {
            struct select_layer *l = &s->layers[end];
            struct sae_host tuned;
            need += diff_job_bytes(&l->job);
            if (end > first && need > room) break;
            status = diff_load(&tuned, s->c, s->c->diff_regime, l->job.layer, l->job.d, err);
            if (status) break;
            s->jobs[end] = l->job;
            if (set != SELECT_TARGET) s->jobs[end].top = NULL;
            s->jobs[end].fired = memory_take((size_t)DIFF_GROUPS * (size_t)l->job.M, sizeof(int64_t));
            for (int g = 0; g < DIFF_GROUPS; g++) s->jobs[end].top_of[g] = t->counts[g];
            status = diff_job_attach(&s->jobs[end], &s->buffers, &tuned, err);
            sae_host_free(&tuned);
        }
        if (status == 0)
            status = diff_stream(s->jobs + first, end - first, &s->buffers, &s->m, samples, samples->count, picture, s->c->forward_samples,
                                 &pass, tokens, err);
        for (int i = first; i < s->n_layers && i <= end; i++) {
            if (!s->jobs[i].fired) continue;
            diff_job_collect(&s->jobs[i], &s->buffers);
            memcpy(s->layers[i].fired[set], s->jobs[i].fired, DIFF_BASE * (size_t)s->jobs[i].M * sizeof(int64_t));
            free(s->jobs[i].fired);
            s->jobs[i] = (struct diff_job){0};
        }
        for (int g = 0; g < DIFF_GROUPS && first == 0; g++) t->tokens[set][g] = tokens[g];
    }
    free(picture);
    return status;
}

/* Examples of the task's features that gain most firing, for the report; those that have some from `diff` or another task keep them. Lines
 * of a target set are numbered downwards from -1 in `samples`. */
static int keep_examples(struct selection *s, const struct select_task *t, const struct samples *target, sqlite3 *db, struct error *err) {
    const int wanted = task_cards(s->c);
    struct diff_chosen *chosen = memory_take((size_t)wanted + 1, sizeof *chosen);
    struct diff_examples examples = {0};
    sqlite3_stmt *q = NULL;
    int n = 0;
    int status = task_strongest(&q, db, t->c->task, regime_names[s->c->diff_regime], wanted, err);
    while (status == 0 && sqlite3_step(q) == SQLITE_ROW) {
        if (sqlite3_column_int(q, 2)) continue; /* has examples */
        chosen[n].feature = sqlite3_column_int(q, 1);
        while (s->layers[chosen[n].job].job.layer != sqlite3_column_int(q, 0)) chosen[n].job++;
        n++;
    }
    sqlite3_finalize(q);
    for (int i = 0; i < s->n_layers; i++) s->jobs[i] = s->layers[i].job;
    if (status == 0 && n) status = diff_examples_run(&examples, s->c, s->jobs, chosen, n, &s->buffers, &s->m, target, false, err);
    const long first = run_db_count(db, "SELECT min(coalesce(min(sample), 0), 0) - 1 FROM samples");
    if (status == 0 && n) status = diff_write_examples(db, s->c, s->jobs, target, 0, first, -1, &examples, err);
    diff_examples_free(&examples);
    memset(s->jobs, 0, (size_t)s->n_layers * sizeof *s->jobs);
    free(chosen);
    return status;
}

/* What an earlier task left in the arrays is forgotten. */
static void reset(struct selection *s) {
    for (int i = 0; i < s->n_layers; i++) {
        struct select_layer *l = &s->layers[i];
        for (size_t k = 0; k < (size_t)l->job.M * DIFF_TOP; k++) l->job.top[k] = (struct diff_top){.sample = -1};
        memset(l->invariant, -1, (size_t)l->job.M);
    }
}

static int run_task(struct selection *s, struct select_task *t, bool same_general, sqlite3 *db, struct error *err) {
    struct samples target, general;
    int kept = 0, selected = 0;
    if (dataset_open(&t->c->target, &target, err)) return -1;
    reset(s);
    int status = count(s, t, SELECT_TARGET, &target, err);
    if (status == 0 && !same_general) {
        status = dataset_open(&t->c->general, &general, err);
        if (status == 0) {
            status = count(s, t, SELECT_GENERAL, &general, err);
            samples_free(&general);
        }
    }
    for (int set = 0; set < SELECT_SETS && status == 0; set++)
        if (select_tokens(t, set) == 0)
            status = fail(err, "the %s set of the task \"%s\" has no token of those that the regime %s looks at",
                          set ? "general" : "target", t->c->task, regime_names[s->c->diff_regime]);
    if (status == 0) {
        select_decide(t, s->layers, s->n_layers);
        if (t->c->prompts) status = select_prompts(t, s->layers, s->n_layers, &s->buffers, &s->m, s->c, &target, err);
    }
    if (status == 0) status = select_write(db, t, s->layers, s->n_layers, err);
    if (status == 0) status = keep_examples(s, t, &target, db, err);
    for (int i = 0; i < s->n_layers && status == 0; i++)
        for (int f = 0; f < s->layers[i].job.M; f++) {
            const struct select_layer *l = &s->layers[i];
            selected += l->selected[f];
            kept += l->selected[f] && l->adapted[f] && l->invariant[f] != 0;
        }
    if (status == 0)
        log_note("%s: %d features fire for the task, %d of them are adapted%s", t->c->task, selected, kept,
                 t->c->prompts ? " and pass the prompt filter" : "");
    samples_free(&target);
    return status;
}

/* Rows are gathered in temporary tables, which hide those of the same name, so that the file is locked no longer than copying takes. */
static const char gather[] =
    "CREATE TEMP TABLE tasks AS SELECT * FROM main.tasks WHERE 0; CREATE TEMP TABLE task_rows AS SELECT * FROM main.task_rows WHERE 0;"
    "CREATE TEMP TABLE samples AS SELECT * FROM main.samples WHERE 0; CREATE TEMP TABLE norms AS SELECT * FROM main.norms WHERE 0;"
    "CREATE TEMP TABLE examples AS SELECT * FROM main.examples WHERE sample >= 0;"
    "CREATE TEMP VIEW task_features AS SELECT * FROM temp.task_rows JOIN temp.tasks USING(task);";
static const char copy[] =
    "DELETE FROM main.examples WHERE sample < 0; DELETE FROM main.samples WHERE sample < 0; DELETE FROM main.task_rows; DELETE FROM "
    "main.tasks;"
    "DELETE FROM main.facts WHERE stage = 'select'; INSERT INTO main.tasks SELECT * FROM temp.tasks ORDER BY rowid;"
    "INSERT INTO main.task_rows SELECT * FROM temp.task_rows; INSERT INTO main.samples SELECT * FROM temp.samples;"
    "INSERT INTO main.examples SELECT * FROM temp.examples WHERE sample < 0; INSERT OR REPLACE INTO main.norms SELECT * FROM temp.norms;";
static const char forget[] = "DROP VIEW IF EXISTS temp.task_features; DROP TABLE IF EXISTS temp.tasks; DROP TABLE IF EXISTS temp.task_rows;"
                             "DROP TABLE IF EXISTS temp.samples; DROP TABLE IF EXISTS temp.norms; DROP TABLE IF EXISTS temp.examples;";

static int write_all(const struct run_config *c, sqlite3 *db, struct error *err) {
    if (run_db_exec(db, err, "BEGIN IMMEDIATE")) return -1;
    int status = run_db_exec(db, err, copy);
    if (status == 0) status = run_db_fact(db, "select", "regime", regime_names[c->diff_regime], err);
    if (status == 0) status = run_db_exec(db, err, "COMMIT");
    if (status) sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    return status;
}

int stage_select(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err) {
    struct selection s = {.c = c, .dev = dev};
    struct select_task t = {0};
    int status = c->n_select ? 0 : fail(err, "the configuration has no \"select\"; give it a list of tasks (docs/config.md)");
    if (status == 0 && !c->regimes[c->diff_regime])
        status =
            fail(err, "\"diff.regime\" is %s, but \"regimes\" does not list it; add it or choose another", regime_names[c->diff_regime]);
    t.counts[DIFF_PATCHES] = regime_takes(c->diff_regime, KIND_IMAGE);
    t.counts[DIFF_WORDS] = t.counts[DIFF_TEMPLATE] = regime_takes(c->diff_regime, KIND_QUESTION);
    if (status == 0) status = open_all(&s, db, err);
    if (status == 0) status = run_db_exec(db, err, gather);
    for (int i = 0; i < c->n_select && status == 0; i++) {
        const json_t *all = json_object_get(c->resolved, "select");
        const json_t *own = json_object_get(json_array_get(all, (size_t)i), "general");
        t.c = &c->select[i];
        status = run_task(&s, &t, i > 0 && json_equal(own, json_object_get(json_array_get(all, (size_t)i - 1), "general")), db, err);
    }
    if (status == 0) status = write_all(c, db, err);
    sqlite3_exec(db, forget, NULL, NULL, NULL);
    for (int i = 0; i < s.n_layers; i++) close_layer(&s.layers[i]);
    free(s.layers);
    free(s.jobs);
    diff_buffers_close(&s.buffers);
    if (s.m.dir) model_close(&s.m);
    return status;
}
