/* attribute_stage.c - the stage `attribute`: for every target of the configuration the features of a task in all layers together, scores
 * of every head by the signed sum and by the mean absolute value, the patched ones' effects, and where the top heads look. Rows of heads
 * (view head_scores) and attention in run.db. */
#include "analysis/attribute.h"
#include "analysis/select.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Lines of attribute's data are numbered from here in `samples`: above every line of a data file that `diff` may show. */
enum { FIRST_SAMPLE = 1000000000, MAP_SAMPLES = 5, CARD_SAMPLES = 32 };

struct stage { /* one target */
    const struct run_config *c;
    const struct run_attribute *x;
    struct model *m;
    struct samples samples;
    struct attribute_set *sets;
    struct sae_host *saes;
    int **features, n_sets;
    struct attribution a;
    sqlite3 *db;
};

/* The rows of the listed features alone, which is all that `direction` reads; dictionaries of many layers would not fit in memory. */
static void keep_features(struct sae_host *s, const int *features, int n) {
    const size_t d = (size_t)s->d;
    float *D = memory_take((size_t)n * d, sizeof *D);
    struct sae_host few = {.format = s->format, .activation = SAE_RELU, .d = s->d, .M = n, .layer = s->layer};
    for (int i = 0; i < n; i++) memcpy(D + (size_t)i * d, s->D + (size_t)features[i] * d, d * sizeof *D);
    sae_host_free(s);
    few.D = D;
    *s = few;
}

static int open_set(struct stage *t, const struct task_feature *at, int n, struct error *err) {
    const int i = t->n_sets++;
    char *path = run_sae_path(t->c, t->c->diff_regime, at[0].layer);
    int *list = t->features[i] = memory_take((size_t)n, sizeof *list), status = attribute_sae(&t->saes[i], path, at[0].layer, err);
    for (int f = 0; f < n; f++) list[f] = at[f].feature;
    if (status == 0 && list[n - 1] >= t->saes[i].M)
        status = fail(err, "%s: feature %d of task \"%s\" is none of its %d; run select again", path, list[n - 1], t->x->features_of,
                      t->saes[i].M);
    if (status == 0 && t->x->metric == 0) {
        keep_features(&t->saes[i], list, n);
        for (int f = 0; f < n; f++) list[f] = f;
    }
    t->sets[i] = (struct attribute_set){at[0].layer, &t->saes[i], list, n};
    free(path);
    return status;
}

static int open_sets(struct stage *t, struct error *err) {
    struct task_feature *at = NULL;
    int n = 0, status = task_features(&at, &n, t->db, t->x->features_of, t->x->top, err);
    if (status == 0 && n == 0)
        status = fail(err, "attribute \"%s\": the task \"%s\" has no features in run.db; set other thresholds in \"select\"", t->x->target,
                      t->x->features_of);
    t->sets = memory_take((size_t)n + 1, sizeof *t->sets);
    t->saes = memory_take((size_t)n + 1, sizeof *t->saes);
    t->features = memory_take((size_t)n + 1, sizeof *t->features);
    for (int first = 0, end; first < n && status == 0; first = end) {
        for (end = first + 1; end < n && at[end].layer == at[first].layer;) end++;
        status = model_check_point(t->m, PROBE_RESID_POST, at[first].layer, err);
        if (status == 0) status = open_set(t, at + first, end - first, err);
    }
    free(at);
    return status;
}

/* ---- rows ---- */
static double exact_of(const struct attribution *a, int layer, int head) {
    for (int i = 0; i < a->n_exact; i++)
        if (a->exact[i].layer == layer && a->exact[i].head == head) return a->exact[i].effect;
    return (double)NAN; /* NULL */
}

static int write_heads(const struct stage *t, const char *gradient, struct error *err) {
    static const char sql[] = "INSERT INTO heads(target, layer, head, method, corruption, score, exact) VALUES(?,?,?,?,?,?,?)";
    const char *corruption = attribute_corruption_names[t->x->corrupt];
    char absolute[64];
    snprintf(absolute, sizeof absolute, "mean_abs %.32s", gradient);
    for (int l = 0; l < t->a.layers; l++)
        for (int h = 0; h < t->a.heads; h++) {
            const int i = l * t->a.heads + h;
            if (run_db_run(t->db, err, sql, "tiittdd", t->x->target, (long)l, (long)h, gradient, corruption, t->a.signed_score[i],
                           exact_of(&t->a, l, h)) ||
                run_db_run(t->db, err, sql, "tiittdd", t->x->target, (long)l, (long)h, absolute, corruption, t->a.mean_abs[i], (double)NAN))
                return -1;
        }
    char name[160];
    for (int run = 0; run < 2; run++) {
        snprintf(name, sizeof name, "metric_%s.%.100s", run ? "corrupt" : "clean", t->x->target);
        if (run_db_fact_real(t->db, "attribute", name, t->a.metric[run], err)) return -1;
    }
    snprintf(name, sizeof name, "samples.%.100s", t->x->target);
    return run_db_fact_real(t->db, "attribute", name, (double)t->samples.count, err);
}

/* The heads of largest |signed|, falling. */
static struct attribute_head *top_heads(const struct attribution *a, int n) {
    struct attribute_head *top = memory_take((size_t)n, sizeof *top);
    uint8_t *taken = memory_take((size_t)(a->layers * a->heads), 1);
    for (int k = 0; k < n; k++) {
        int best = -1;
        for (int i = 0; i < a->layers * a->heads; i++)
            if (!taken[i] && (best < 0 || fabs(a->signed_score[i]) > fabs(a->signed_score[best]))) best = i;
        taken[best] = 1;
        top[k] = (struct attribute_head){best / a->heads, best % a->heads};
    }
    free(taken);
    return top;
}

/* One sample's row in `samples`, and the heads' weights on its picture. */
static int write_map(const struct stage *t, size_t i, long number, const struct attribute_head *heads, int n, struct error *err) {
    struct batch b;
    struct diff_sample row = {.index = 0};
    const struct samples one = {.at = &t->samples.at[i], .count = 1, .path = t->samples.path};
    float *weights = NULL;
    int rows = 0, status = model_batch(t->m, &b, &one, 0, 1, false, err);
    if (status) return -1;
    status = attribute_attention(t->m, &b, heads, n, &weights, &rows, err);
    if (status == 0 && rows) status = diff_describe(&row, t->m, one.at, &b, 0, err);
    const struct diff_examples e = {.sample = &row, .n_samples = 1};
    if (status == 0 && rows) status = diff_write_examples(t->db, t->c, NULL, &one, 0, number, 1, &e, err);
    for (int k = 0; k < n && rows && status == 0; k++)
        status = run_db_run(t->db, err, "INSERT INTO attention(target, layer, head, sample, weights) VALUES(?,?,?,?,?)", "tiiib",
                            t->x->target, (long)heads[k].layer, (long)heads[k].head, number,
                            (const void *)(weights + (size_t)k * (size_t)rows), (size_t)rows * sizeof *weights);
    free(row.tokens), free(row.kinds), free(row.picture);
    free(weights);
    batch_free(&b);
    return status;
}

/* Of the first samples with a picture, each another one. */
static int write_maps(const struct stage *t, long *number, struct error *err) {
    const int all = t->a.layers * t->a.heads, n = t->x->maps < all ? t->x->maps : all;
    struct attribute_head *heads = top_heads(&t->a, n);
    long *picture = diff_pictures(&t->samples);
    int shown = 0, status = 0;
    for (size_t i = 0; n && i < t->samples.count && shown < MAP_SAMPLES && status == 0; i++) {
        if (!t->samples.at[i].image || picture[i] != (long)i) continue;
        status = write_map(t, i, (*number)++, heads, n, err);
        shown++;
    }
    free(picture);
    free(heads);
    return status;
}

/* Where a feature of the task lies among the sets; false: in none. */
static bool find_feature(const struct stage *t, const struct task_feature *all, int n, int layer, int feature, struct attribute_set *one,
                         int *local) {
    int set = -1, place = 0;
    for (int i = 0; i < n; i++) {
        if (i == 0 || all[i].layer != all[i - 1].layer) set++, place = 0;
        if (all[i].layer == layer && all[i].feature == feature) {
            *local = t->features[set][place];
            *one = (struct attribute_set){layer, &t->saes[set], local, 1};
            return true;
        }
        place++;
    }
    return false;
}

/* The features that the report shows of the task, each by itself: signed scores of the target "L<layer>F<feature>", on the first samples.
 */
static int run_cards(const struct stage *t, const struct attribute_job *of_target, const char *gradient, struct error *err) {
    const struct samples few = {t->samples.at, t->samples.count < CARD_SAMPLES ? t->samples.count : CARD_SAMPLES, t->samples.path};
    struct task_feature *all;
    sqlite3_stmt *q = NULL;
    int n, status = task_features(&all, &n, t->db, t->x->features_of, t->x->top, err);
    if (status == 0) status = task_strongest(&q, t->db, t->x->features_of, regime_names[t->c->diff_regime], task_cards(t->c), err);
    while (status == 0 && sqlite3_step(q) == SQLITE_ROW) {
        const int layer = sqlite3_column_int(q, 0), feature = sqlite3_column_int(q, 1);
        struct attribute_job j = *of_target;
        struct attribute_set one;
        struct attribution a = {0};
        char target[48];
        int local;
        if (!find_feature(t, all, n, layer, feature, &one, &local)) continue;
        j.samples = &few, j.sets = &one, j.n_sets = 1, j.exact = 0;
        snprintf(target, sizeof target, "L%dF%d", layer, feature);
        status = attribute(&j, &a, err);
        for (int i = 0; status == 0 && i < a.layers * a.heads; i++)
            status = run_db_run(
                t->db, err, "INSERT OR REPLACE INTO heads(target, layer, head, method, corruption, score, exact) VALUES(?,?,?,?,?,?,NULL)",
                "tiittd", target, (long)(i / a.heads), (long)(i % a.heads), gradient, attribute_corruption_names[t->x->corrupt],
                a.signed_score[i]);
        attribution_free(&a);
    }
    sqlite3_finalize(q);
    free(all);
    return status;
}

static int run_target(struct stage *t, long *number, struct error *err) {
    const char *gradient = t->x->gradient ? t->x->gradient : "corrupt";
    struct attribute_job j = {.m = t->m,
                              .samples = &t->samples,
                              .batch = t->c->forward_samples,
                              .code = t->x->metric == 1,
                              .corruption = (enum attribute_corruption)t->x->corrupt,
                              .exact = t->x->exact,
                              .seed = t->c->seed};
    int status = attribute_gradient_read(gradient, &j.gradient, &j.steps, err);
    if (status == 0) status = dataset_open(&t->x->set, &t->samples, err);
    if (status == 0) status = open_sets(t, err);
    j.sets = t->sets, j.n_sets = t->n_sets;
    if (status == 0) status = attribute(&j, &t->a, err);
    if (status == 0) status = write_heads(t, gradient, err);
    if (status == 0) status = write_maps(t, number, err);
    if (status == 0) status = run_cards(t, &j, gradient, err);
    if (status == 0)
        log_note("%s: %d heads scored over %zu samples, %d patched", t->x->target, t->a.layers * t->a.heads, t->samples.count,
                 t->a.n_exact);
    attribution_free(&t->a);
    for (int i = 0; i < t->n_sets; i++) sae_host_free(&t->saes[i]), free(t->features[i]);
    free(t->sets), free(t->saes), free(t->features);
    samples_free(&t->samples);
    return status;
}

int stage_attribute(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err) {
    struct model m = {0};
    long number = FIRST_SAMPLE;
    int status = c->n_attribute ? 0 : fail(err, "the configuration has no \"attribute\"; give it a list of targets (docs/config.md)");
    if (status == 0) status = model_open(&m, dev, c->model, NULL, err);
    if (status == 0) status = run_db_exec(db, err, "BEGIN IMMEDIATE");
    const bool begun = status == 0;
    if (status == 0)
        status = run_db_exec(db, err,
                             "DELETE FROM heads; DELETE FROM attention; DELETE FROM samples WHERE sample >= 1000000000;" /* FIRST_SAMPLE */
                             "DELETE FROM facts WHERE stage = 'attribute';");
    for (int i = 0; i < c->n_attribute && status == 0; i++) {
        struct stage t = {.c = c, .x = &c->attribute[i], .m = &m, .db = db};
        status = run_target(&t, &number, err);
    }
    if (status == 0) status = run_db_exec(db, err, "COMMIT");
    if (status && begun) sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    if (m.dir) model_close(&m);
    return status;
}
