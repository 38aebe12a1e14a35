/* diff.c - the stage `diff`: the same questions through the base LLM (text alone) and through the vision-language model, every
 * dictionary of the run listening; then energies, cosines, the adapted set, and examples of the features shown. See diff.h. */
#include "analysis/diff.h"
#include "host/file.h"
#include <stdlib.h>
#include <string.h>

struct diff {
    const struct run_config *c;
    struct device *dev;
    struct diff_job *jobs;
    int n_jobs;
    struct diff_buffers buffers;
    struct samples file, samples, questions; /* the data file (owned); its validation lines; those without pictures, for the base LLM */
    char **rewritten;                        /* prompts of `questions` that lost their marker */
    long *picture;
    size_t n_samples;
    struct diff_counts counts;
};

/* Lines without picture: the base LLM sees the same text. Everything but rewritten prompts is borrowed from `samples`. */
static void make_questions(struct diff *d) {
    d->questions = (struct samples){memory_take(d->samples.count + 1, sizeof *d->questions.at), d->samples.count, d->samples.path};
    d->rewritten = memory_take(d->samples.count + 1, sizeof *d->rewritten);
    for (size_t i = 0; i < d->samples.count; i++) {
        struct sample *q = &d->questions.at[i];
        *q = d->samples.at[i];
        q->image = NULL;
        char *marker = q->prompt ? strstr(q->prompt, "<image>") : NULL;
        if (!marker) continue;
        size_t before = (size_t)(marker - q->prompt);
        const char *after = marker + strlen("<image>");
        d->rewritten[i] = memory_string(q->prompt);
        strcpy(d->rewritten[i] + before, after + (*after == '\n'));
        q->prompt = d->rewritten[i];
    }
}

static int open_jobs(struct diff *d, int n_layers, int d_model, struct error *err) {
    int listed = d->c->n_layers ? d->c->n_layers : n_layers;
    d->jobs = memory_take((size_t)(listed * REGIME_COUNT), sizeof *d->jobs);
    for (int r = 0; r < REGIME_COUNT; r++)
        for (int i = 0; i < listed && d->c->regimes[r]; i++) {
            int layer = d->c->n_layers ? d->c->layers[i] : i;
            struct sae_host tuned, base;
            if (diff_load(&tuned, d->c, (enum regime)r, layer, d_model, err)) return -1;
            /* a random start of its own size has no counterpart to be compared with */
            bool alone = r == REGIME_RANDOM && d->c->features > 0;
            memset(&base, 0, sizeof base);
            int status = alone ? 0 : diff_load_base(&base, d->c, layer, &tuned, err);
            if (status == 0) {
                status = diff_job_open(&d->jobs[d->n_jobs], d->dev, (enum regime)r, layer, &tuned, alone ? NULL : &base,
                                       (enum regime)r == d->c->diff_regime, err);
                d->n_jobs += status == 0;
                sae_host_free(&base);
            }
            sae_host_free(&tuned);
            if (status) return -1;
        }
    return 0;
}

/* All dictionaries listen at once when they fit in half of what is free; otherwise only the regime that the report is about,
 * as many layers a pass as fit. */
static void drop_regimes_too_many(struct diff *d) {
    size_t need = 0, room = device_memory_free(d->dev) / 2;
    for (int j = 0; j < d->n_jobs; j++) need += diff_job_bytes(&d->jobs[j]);
    if (need <= room) return;
    int kept = 0;
    for (int j = 0; j < d->n_jobs; j++)
        if (d->jobs[j].regime == d->c->diff_regime)
            d->jobs[kept++] = d->jobs[j];
        else
            diff_job_close(&d->jobs[j]);
    if (kept < d->n_jobs)
        log_note("diff: %d dictionaries do not fit in device memory together; energies are computed for the %s regime alone", d->n_jobs,
                 regime_names[d->c->diff_regime]);
    d->n_jobs = kept;
}

static int stream_all(struct diff *d, struct model *m, bool base, struct error *err) {
    const struct diff_pass pass = {base ? "diff: base LLM" : "diff: vision-language model", base, true};
    for (int first = 0, end; first < d->n_jobs; first = end) {
        size_t need = 0, room = device_memory_free(d->dev) / 2;
        long tokens[DIFF_GROUPS] = {0};
        int status = 0;
        for (end = first; end < d->n_jobs && status == 0; end++) {
            struct sae_host tuned;
            need += diff_job_bytes(&d->jobs[end]);
            if (end > first && need > room) break;
            status = diff_load(&tuned, d->c, d->jobs[end].regime, d->jobs[end].layer, d->jobs[end].d, err);
            if (status) break;
            status = diff_job_attach(&d->jobs[end], &d->buffers, &tuned, err);
            sae_host_free(&tuned);
        }
        if (status == 0)
            status = diff_stream(d->jobs, d->n_jobs, &d->buffers, m, base ? &d->questions : &d->samples, d->n_samples, d->picture,
                                 d->c->forward_samples, &pass, tokens, err);
        for (int j = first; j < d->n_jobs; j++)
            if (d->jobs[j].sae.dev) diff_job_collect(&d->jobs[j], &d->buffers);
        if (status) return status;
        for (int g = 0; g < DIFF_GROUPS && first == 0; g++) d->counts.tokens[g] += tokens[g];
    }
    return 0;
}

static int open_model(struct diff *d, struct model *m, const char *dir, struct error *err) {
    int deepest = -1;
    for (int i = 0; i < d->c->n_layers; i++) deepest = d->c->layers[i] > deepest ? d->c->layers[i] : deepest;
    return model_open(m, d->dev, dir, &(struct model_options){.layers = deepest + 1, .base = d->c->base}, err);
}

/* Base LLM: opens the jobs (the model says how many layers there are), then E_t. */
static int base_pass(struct diff *d, struct error *err) {
    struct model m = {0};
    if (open_model(d, &m, d->c->base, err)) return -1;
    int status = open_jobs(d, m.n_layers, m.d_model, err), widest = 0, K = 0;
    for (int j = 0; j < d->n_jobs; j++) {
        widest = d->jobs[j].M > widest ? d->jobs[j].M : widest;
        K = d->jobs[j].K > K ? d->jobs[j].K : K;
    }
    if (status == 0 && d->n_jobs == 0)
        status = fail(err, "the configuration trains no regime, so there is nothing to compare; set train.regimes");
    if (status == 0) status = diff_buffers_open(&d->buffers, d->dev, m.d_model, widest, K, err);
    if (status == 0) {
        drop_regimes_too_many(d);
        make_questions(d);
        status = stream_all(d, &m, true, err);
    }
    model_close(&m);
    return status;
}

static int vlm_pass(struct diff *d, struct diff_examples *examples, double *thresholds, struct error *err) {
    struct model m = {0};
    int n_chosen = 0;
    if (open_model(d, &m, d->c->model, err)) return -1;
    int status = m.d_model == d->jobs[0].d
                     ? 0
                     : fail(err, "%s: d_model %d, the base LLM and its dictionaries have %d", d->c->model, m.d_model, d->jobs[0].d);
    if (status == 0) status = stream_all(d, &m, false, err);
    if (status == 0) {
        for (int r = 0; r < REGIME_COUNT; r++)
            thresholds[r] = diff_select(d->jobs, d->n_jobs, (enum regime)r, &d->counts, d->c->diff_eps, d->c->diff_percentile);
        struct diff_chosen *chosen = diff_choose(d->jobs, d->n_jobs, d->c->diff_regime, &d->counts, d->c->report_features, &n_chosen);
        status = diff_examples_run(examples, d->c, d->jobs, chosen, n_chosen, &d->buffers, &m, &d->samples, true, err);
        free(chosen);
    }
    model_close(&m);
    return status;
}

/* What the stage needs of the configuration, and the validation lines. */
static int open_samples(struct diff *d, size_t *first, struct error *err) {
    const struct run_config *c = d->c;
    size_t count = 0;
    if (!c->regimes[c->diff_regime])
        return fail(err, "\"diff.regime\" is %s, but \"regimes\" does not list it; add it or choose another", regime_names[c->diff_regime]);
    if (!c->base || !c->saes)
        return fail(err, "`diff` compares with the base model: give \"%s\" in the configuration", c->base ? "saes" : "base");
    if (run_samples(c, true, &d->file, first, &count, err)) return -1;
    d->samples = (struct samples){d->file.at + *first, count, d->file.path};
    d->picture = diff_pictures(&d->samples);
    d->n_samples = c->diff_samples > 0 && (size_t)c->diff_samples < count ? (size_t)c->diff_samples : count;
    return 0;
}

int stage_diff(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err) {
    struct diff d = {.c = c, .dev = dev, .counts.text_only = c->diff_text_tokens};
    struct diff_examples examples = {0};
    double thresholds[REGIME_COUNT] = {0};
    size_t first = 0;
    int status = open_samples(&d, &first, err);
    if (status) return status;
    status = base_pass(&d, err);
    if (status == 0) status = vlm_pass(&d, &examples, thresholds, err);
    if (status == 0) status = diff_write(db, c, d.jobs, d.n_jobs, &d.counts, thresholds, &d.file, (long)first, &examples, err);
    diff_examples_free(&examples);
    for (int j = 0; j < d.n_jobs; j++) diff_job_close(&d.jobs[j]);
    free(d.jobs);
    diff_buffers_close(&d.buffers);
    for (size_t i = 0; d.rewritten && i < d.samples.count; i++) free(d.rewritten[i]);
    free(d.rewritten);
    free(d.questions.at);
    free(d.picture);
    samples_free(&d.file);
    return status;
}
