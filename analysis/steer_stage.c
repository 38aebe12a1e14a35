/* steer_stage.c - the stage `steer`: the sweeps of the configuration. Table steering: accuracy by layer and strength on dev and test; the
 * chosen one's effect on test as a row of the view interventions. */
#include "analysis/run.h"
#include "analysis/steer.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct sweep { /* one of the section, with what it found */
    const struct run_steer *c;
    struct samples train, dev, test;
    struct sae_host sae;
    int *layers;
    struct steering x;
};

static int open_sweep(struct sweep *s, const struct run_config *c, const struct run_steer *one, const struct model *m, struct error *err) {
    const bool feature = one->sae != NULL;
    s->c = one;
    if ((one->train.data && dataset_open(&one->train, &s->train, err)) || dataset_open(&one->dev, &s->dev, err) ||
        dataset_open(&one->test, &s->test, err) || (feature && sae_load(&s->sae, one->sae, err)))
        return -1;
    const int n_layers = one->n_layers ? one->n_layers : m->n_layers, at = one->layer >= 0 ? one->layer : feature ? s->sae.layer : 0;
    s->layers = memory_take((size_t)n_layers, sizeof *s->layers);
    for (int i = 0; i < n_layers; i++) s->layers[i] = one->n_layers ? one->layers[i] : i;
    if (s->layers[n_layers - 1] >= m->n_layers || at < 0 || at >= m->n_layers)
        return fail(err, "\"steer\", \"%s\": the model at %s has layers 0 to %d%s", one->name, m->dir, m->n_layers - 1,
                    at < 0 ? "; the dictionary does not say its layer: give \"layer\"" : "");
    if (feature && (s->sae.d != m->d_model || one->feature >= s->sae.M))
        return fail(err, "\"steer\", \"%s\": %s has features 0 to %d of width %d, the model's width is %d", one->name, one->sae,
                    s->sae.M - 1, s->sae.d, m->d_model);
    s->x = (struct steering){.method = (enum steer_method)one->method,
                             .contrast = one->outcomes ? CONTRAST_OUTCOMES : CONTRAST_ANSWERS,
                             .task = one->task == TASK_AUTO  ? evaluation_task_of(&s->dev)
                                     : one->task == TASK_VSR ? EVALUATE_VSR
                                                             : EVALUATE_VQA,
                             .max_new_tokens = one->max_new_tokens,
                             .batch = c->forward_samples,
                             .controls = one->controls,
                             .seed = c->seed,
                             .factor = one->factor,
                             .sae = feature ? &s->sae : NULL,
                             .feature = one->feature,
                             .feature_layer = at,
                             .layers = s->layers,
                             .n_layers = n_layers,
                             .strengths = one->strengths,
                             .n_strengths = one->n_strengths};
    return 0;
}

static void close_sweep(struct sweep *s) {
    steering_free(&s->x);
    samples_free(&s->train), samples_free(&s->dev), samples_free(&s->test);
    sae_host_free(&s->sae);
    free(s->layers);
}

/* "vsr_test.jsonl" of a path */
static const char *file_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int write_point(sqlite3 *db, const struct sweep *s, const char *split, int layer, double strength, long n, double accuracy,
                       bool chosen, struct error *err) {
    return run_db_run(db, err, "INSERT INTO steering(name, dataset, split, layer, strength, n, accuracy, chosen) VALUES(?,?,?,?,?,?,?,?)",
                      "tttididi", s->c->name, file_of(strcmp(split, "dev") ? s->c->test.data : s->c->dev.data), split, (long)layer,
                      strength, n, accuracy, (long)chosen);
}

/* The sweep on dev, with strength 0 for no steering, and of test the chosen point and strength 0; the effect among the interventions. */
static int write_rows(sqlite3 *db, const struct sweep *s, struct error *err) {
    const struct steering *x = &s->x;
    const struct steer_point *best = &x->points[x->chosen];
    const struct effect *e = &x->test.effect;
    const struct paired *p = &e->pair;
    char text[512];
    int status = 0;
    for (int i = 0; i < x->n_points && status == 0; i++)
        status = write_point(db, s, "dev", x->points[i].layer, x->points[i].strength, x->dev_n, x->points[i].accuracy, i == x->chosen, err);
    for (int i = 0; i < x->n_points && status == 0; i += x->n_strengths)
        status = write_point(db, s, "dev", x->points[i].layer, 0, x->dev_n, x->dev_baseline, false, err);
    if (status == 0) status = write_point(db, s, "test", best->layer, best->strength, p->n, p->intervened, true, err);
    if (status == 0) status = write_point(db, s, "test", best->layer, 0, p->n, p->baseline, false, err);
    snprintf(text, sizeof text, "{\"method\":\"%s\",\"layer\":%d,\"strength\":%.9g,\"factor\":%.9g}", steer_methods[x->method], best->layer,
             best->strength, x->factor);
    if (status == 0)
        status = run_db_run(
            db, err,
            "INSERT OR REPLACE INTO effects(name, dataset, n, baseline, intervened, delta, ci_low, ci_high, lost, gained, mcnemar_p,"
            " seed, control_mean, control_low, control_high, controls, beyond, edits) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            "ttidddddiididddiit", s->c->name, file_of(s->c->test.data), p->n, p->baseline, p->intervened, p->delta, p->ci_low, p->ci_high,
            p->lost, p->gained, p->mcnemar_p, (long)x->seed, e->control_mean, e->control_low, e->control_high, (long)e->controls,
            (long)e->beyond, text);
    for (int k = 0; k < e->controls && status == 0; k++)
        status = run_db_run(db, err, "INSERT OR REPLACE INTO effect_controls(name, dataset, draw, delta) VALUES(?,?,?,?)", "ttid",
                            s->c->name, file_of(s->c->test.data), (long)k, e->control_delta[k]);
    return status;
}

/* Rows of an earlier run of this stage: those whose names are in `steering`. */
static const char forget[] = "DELETE FROM effects WHERE name IN (SELECT name FROM steering);"
                             "DELETE FROM effect_controls WHERE name IN (SELECT name FROM steering); DELETE FROM steering;";

int stage_steer(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err) {
    struct model m = {0};
    struct sweep *sweeps = memory_take((size_t)c->n_steer + 1, sizeof *sweeps);
    int status = c->n_steer ? 0 : fail(err, "the configuration has no \"steer\"; give it a list of sweeps (docs/config.md)");
    if (status == 0) status = model_open(&m, dev, c->model, NULL, err);
    for (int i = 0; i < c->n_steer && status == 0; i++) status = open_sweep(&sweeps[i], c, &c->steer[i], &m, err);
    for (int i = 0; i < c->n_steer && status == 0; i++) {
        struct sweep *s = &sweeps[i];
        const struct steer_samples train = {&s->train, 0, s->train.count}, on_dev = {&s->dev, 0, s->dev.count},
                                   test = {&s->test, 0, s->test.count};
        status = steer(&s->x, &m, &train, &on_dev, &test, err);
        if (status) break;
        const struct steer_point *best = &s->x.points[s->x.chosen];
        log_note("%s: layer %d, strength %g; dev %.1f %% -> %.1f %%, test %.1f %% -> %.1f %%", s->c->name, best->layer, best->strength,
                 100 * s->x.dev_baseline, 100 * best->accuracy, 100 * s->x.test.effect.pair.baseline,
                 100 * s->x.test.effect.pair.intervened);
    }
    if (status == 0) status = run_db_exec(db, err, "BEGIN IMMEDIATE");
    const bool begun = status == 0;
    if (status == 0) status = run_db_exec(db, err, forget);
    for (int i = 0; i < c->n_steer && status == 0; i++) status = write_rows(db, &sweeps[i], err);
    if (status == 0) status = run_db_exec(db, err, "COMMIT");
    if (status && begun) sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    for (int i = 0; i < c->n_steer; i++) close_sweep(&sweeps[i]);
    free(sweeps);
    if (m.dir) model_close(&m);
    return status;
}
