/* evaluate_stage.c - scores counted by split and relation, and the stage `evaluate`: the data sets of the configuration, each asked,
 * scored and written to run.db (tables scores and answers, view evaluations). */
#include "analysis/evaluate.h"
#include "analysis/run.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

void tallies_free(struct tallies *t) {
    for (int i = 0; i < t->count; i++) free(t->at[i].split), free(t->at[i].relation);
    free(t->at);
    *t = (struct tallies){0};
}

static void add(struct tallies *t, const char *split, const char *relation, double score) {
    int i = 0;
    while (i < t->count && (strcmp(t->at[i].split, split) || strcmp(t->at[i].relation, relation))) i++;
    if (i == t->count) {
        t->at = memory_grow(t->at, (size_t)t->count + 1, sizeof *t->at);
        t->at[t->count++] = (struct tally){.split = memory_string(split), .relation = memory_string(relation)};
    }
    t->at[i].n++;
    t->at[i].correct += score;
}

static int by_name(const void *a, const void *b) {
    const struct tally *x = a, *y = b;
    int split = strcmp(x->split, y->split), relation = strcmp(x->relation, y->relation);
    if (split) return !strcmp(x->split, "all") ? -1 : !strcmp(y->split, "all") ? 1 : split;
    return !relation ? 0 : !strcmp(x->relation, "all") ? -1 : !strcmp(y->relation, "all") ? 1 : relation;
}

void tally_all(struct tallies *t, const struct evaluation *e, const struct samples *s, size_t first, const char *split_by) {
    *t = (struct tallies){0};
    for (size_t i = 0; i < e->count; i++) {
        const struct sample *one = &s->at[first + i];
        const json_t *value = split_by ? json_object_get(one->json, split_by) : NULL;
        char *written = value && !json_is_string(value) ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
        const char *split = json_is_string(value) ? json_string_value(value) : written;
        const char *relation = e->task == EVALUATE_VSR ? one->relation : json_string_value(json_object_get(one->json, "answer_type"));
        if (!isnan(e->at[i].score)) {
            add(t, "all", "all", e->at[i].score);
            if (relation) add(t, "all", relation, e->at[i].score);
            if (split) add(t, split, "all", e->at[i].score);
            if (split && relation) add(t, split, relation, e->at[i].score);
        }
        free(written);
    }
    if (t->count) qsort(t->at, (size_t)t->count, sizeof *t->at, by_name);
}

json_t *evaluated_json(const struct evaluation *e, size_t i, const struct sample *s) {
    const struct evaluated *a = &e->at[i];
    json_t *id = json_loads(s->id, JSON_DECODE_ANY, NULL);
    json_t *line = json_pack("{s:o, s:s}", "id", id ? id : json_null(), "text", a->text);
    json_object_set_new(line, "score", isnan(a->score) ? json_null() : json_real(a->score));
    if (e->task == EVALUATE_VSR)
        json_object_set_new(line, "p_yes", json_real(a->p_yes));
    else
        json_object_set_new(line, "stopped", json_string(a->stopped ? "eos" : "length"));
    return line;
}

/* ---- the stage ---- */

/* "vsr_test" of ".../vsr_test.jsonl" */
static char *stem_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *name = memory_string(slash ? slash + 1 : path), *dot = strrchr(name, '.');
    if (dot && dot > name) *dot = 0;
    return name;
}

static int write_rows(sqlite3 *db, const struct run_evaluate *x, const struct samples *s, const struct evaluation *e, struct error *err) {
    struct tallies t;
    char *dataset = stem_of(x->set.data), name[160];
    int status = 0;
    tally_all(&t, e, s, 0, x->split_by);
    for (int i = 0; i < t.count && status == 0; i++)
        status = run_db_run(db, err, "INSERT INTO scores(name, dataset, split, relation, n, correct) VALUES(?,?,?,?,?,?)", "ttttid",
                            x->name, dataset, t.at[i].split, t.at[i].relation, t.at[i].n, t.at[i].correct);
    for (size_t i = 0; i < e->count && status == 0; i++)
        status = run_db_run(db, err, "INSERT INTO answers(name, sample, id, text, score, p_yes) VALUES(?,?,?,?,?,?)", "tittdd", x->name,
                            (long)i, s->at[i].id, e->at[i].text, e->at[i].score, e->at[i].p_yes);
    snprintf(name, sizeof name, "samples.%.100s", x->name);
    if (status == 0) status = run_db_fact_real(db, "evaluate", name, (double)e->count, err);
    free(dataset);
    tallies_free(&t);
    return status;
}

int stage_evaluate(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err) {
    struct model m = {0};
    struct samples *sets = memory_take((size_t)c->n_evaluate + 1, sizeof *sets);
    struct evaluation *results = memory_take((size_t)c->n_evaluate + 1, sizeof *results);
    int opened = 0,
        status = c->n_evaluate ? 0 : fail(err, "the configuration has no \"evaluate\"; give it a list of data sets (docs/config.md)");
    for (; opened < c->n_evaluate && status == 0; opened += status == 0)
        status = dataset_open(&c->evaluate[opened].set, &sets[opened], err);
    if (status == 0) status = model_open(&m, dev, c->model, NULL, err);
    for (int i = 0; i < c->n_evaluate && status == 0; i++) {
        const struct run_evaluate *x = &c->evaluate[i];
        results[i].task = x->task == TASK_AUTO ? evaluation_task_of(&sets[i]) : x->task == TASK_VSR ? EVALUATE_VSR : EVALUATE_VQA;
        results[i].max_new_tokens = x->max_new_tokens;
        results[i].progress = x->name;
        status = evaluate_samples(&m, &sets[i], 0, sets[i].count, NULL, 0, c->forward_samples, &results[i], err);
        if (status == 0)
            log_note("%s: %.1f %% of %zu", x->name, 100 * results[i].correct / (double)(results[i].scored ? results[i].scored : 1),
                     results[i].scored);
    }
    if (status == 0) status = run_db_exec(db, err, "BEGIN IMMEDIATE");
    const bool begun = status == 0;
    if (status == 0) status = run_db_exec(db, err, "DELETE FROM scores; DELETE FROM answers; DELETE FROM facts WHERE stage = 'evaluate';");
    for (int i = 0; i < c->n_evaluate && status == 0; i++) status = write_rows(db, &c->evaluate[i], &sets[i], &results[i], err);
    if (status == 0) status = run_db_exec(db, err, "COMMIT");
    if (status && begun) sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    for (int i = 0; i < c->n_evaluate; i++) evaluation_free(&results[i]);
    for (int i = 0; i < opened; i++) samples_free(&sets[i]);
    free(sets), free(results);
    if (m.dir) model_close(&m);
    return status;
}
