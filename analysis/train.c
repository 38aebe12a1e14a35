/* train.c - stage_train: one dictionary per layer and regime, trained on activations that are never stored.
 *
 * Samples are streamed through the model once (once per group of layers where not all fit). A block of ring_rows rows a layer is filled
 * from consecutive samples; then every trainee (regime by regime, layer by layer) trains on the block's rows of its regime: shuffled by
 * (seed, regime, block), split evenly into ceil(rows / batch) batches, so nothing is left over or carried. Then the next block.
 *
 * A block is a function of its first sample, so a stopped run needs no activations to go on: the state holds the trainers, the
 * block's first sample and how far in the block training was; the block is harvested again and finished trainees and batches are
 * skipped. An interrupted run and one that was not give the same bits. */
#include "analysis/rows.h"
#include "analysis/train_job.h"
#include "host/file.h"
#include "models/ahead.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/activation.h"

struct trainee {
    int slot, layer; /* slot: in the group */
    enum regime regime;
    struct sae_trainer *t;
    long saved_steps; /* steps in the file that the state names, -1: none */
};

struct job {
    const struct run_config *c;
    struct device *dev;
    struct samples samples;
    struct train_plan plan;
    struct train_state state;
    struct model model;
    struct ahead ahead; /* of the model's batches */
    struct ring ring;
    struct sae_workspace *work;
    struct trainee *trainees; /* of the group, in training order */
    int n_trainees, group_layers;
    long next;              /* sample that the next block starts with */
    int *index;             /* host: rows of a regime, shuffled */
    void *device_index, *x; /* (ring_rows) i32; (batch, d) act_t */
    FILE *metrics;
    struct progress progress;
    double started, saved_at;
    long rows_here; /* SAE rows trained on by this process */
};

static double elapsed(const struct job *j) { return j->state.elapsed + seconds_now() - j->started; }

/* ---- the group of layers under way ---- */

static int open_trainee(struct job *j, struct trainee *t, int slot_in_plan, struct error *err) {
    const struct run_config *c = j->c;
    struct sae_host start = {0};
    int status = -1;
    if (t->regime == REGIME_RANDOM) {
        if (sae_random(&start, j->plan.d, j->plan.random_features[slot_in_plan], c->k, seed_mix(c->seed, 2, (uint64_t)t->layer), err))
            return -1;
    } else {
        char *path = run_base_sae_path(c, t->layer, err);
        status = path ? sae_load(&start, path, err) : -1;
        free(path);
        if (status) return -1;
    }
    snprintf(start.hook, sizeof start.hook, "blocks.%d.hook_resid_post", t->layer);
    status = sae_make_topk(&start, c->k, err) || sae_trainer_open(&t->t, j->dev, &start, &j->plan.settings, j->work, err) ? -1 : 0;
    sae_host_free(&start);
    return status;
}

static int load_trainees(struct job *j, struct error *err) {
    if (j->state.n_files == 0) return 0;
    if (j->state.n_files != j->n_trainees)
        return fail(err, "%s/state/state.json: expected %d files, found %d; delete the folder to start again", j->c->out, j->n_trainees,
                    j->state.n_files);
    for (int i = 0; i < j->n_trainees; i++) {
        char *path = train_state_path(j->c, j->state.files[i]);
        int status = sae_trainer_load(j->trainees[i].t, path, err);
        free(path);
        if (status) return -1;
        j->trainees[i].saved_steps = sae_trainer_steps(j->trainees[i].t);
    }
    return 0;
}

static int open_group(struct job *j, struct error *err) {
    const struct run_config *c = j->c;
    const struct train_plan *p = &j->plan;
    int first = j->state.group * p->layers_at_once;
    j->group_layers = p->n_layers - first < p->layers_at_once ? p->n_layers - first : p->layers_at_once;
    const int *layers = p->layers + first;
    const struct model_options options = {.layers = layers[j->group_layers - 1] + 1, .base = c->base};
    if (model_open(&j->model, j->dev, c->model, &options, err)) return -1;
    j->ahead = (struct ahead){.m = &j->model, .s = &j->samples, .with_answer = true};
    if (ring_open(&j->ring, j->dev, j->group_layers, layers, p->d, (int)c->ring_rows, c->regimes, err) ||
        sae_workspace_open(&j->work, j->dev, p->d, p->largest, p->k, c->batch, err))
        return -1;
    j->trainees = memory_take((size_t)j->group_layers * REGIME_COUNT, sizeof *j->trainees);
    for (int r = 0; r < REGIME_COUNT; r++)
        for (int l = 0; l < j->group_layers && c->regimes[r]; l++) {
            struct trainee *t = &j->trainees[j->n_trainees];
            *t = (struct trainee){.slot = l, .layer = layers[l], .regime = (enum regime)r, .saved_steps = -1};
            if (open_trainee(j, t, first + l, err)) return -1;
            j->n_trainees++;
        }
    return load_trainees(j, err);
}

static void close_group(struct job *j) {
    for (int i = 0; i < j->n_trainees; i++) sae_trainer_close(j->trainees[i].t);
    free(j->trainees);
    j->trainees = NULL;
    j->n_trainees = 0;
    ring_close(&j->ring);
    sae_workspace_close(j->work);
    j->work = NULL;
    ahead_end(&j->ahead);
    if (j->model.dir) model_close(&j->model);
}

/* ---- state ---- */

static int save_trainees(struct job *j, struct error *err) {
    struct train_state *s = &j->state;
    char **files = memory_take((size_t)j->n_trainees + 1, sizeof *files);
    int status = 0;
    for (int i = 0; i < j->n_trainees && status == 0; i++) {
        struct trainee *t = &j->trainees[i];
        if (t->saved_steps == sae_trainer_steps(t->t) && i < s->n_files) { /* unchanged: the old file stays */
            files[i] = memory_string(s->files[i]);
            continue;
        }
        char name[96];
        snprintf(name, sizeof name, "layer_%d.%s.%ld.safetensors", t->layer, regime_names[t->regime], s->generation);
        files[i] = memory_string(name);
        char *path = train_state_path(j->c, name);
        status = sae_trainer_save(t->t, path, err);
        free(path);
        t->saved_steps = sae_trainer_steps(t->t);
    }
    train_state_free(s);
    s->files = files, s->n_files = j->n_trainees;
    return status;
}

static int save(struct job *j, struct error *err) {
    struct train_state *s = &j->state;
    const double before = s->elapsed;
    s->generation++;
    if (save_trainees(j, err)) return -1;
    if (fflush(j->metrics)) return fail(err, "%s/metrics.jsonl: cannot write: %s", j->c->out, strerror(errno));
    s->metrics_bytes = ftell(j->metrics);
    s->elapsed = elapsed(j);
    int status = train_state_write(s, j->c, err);
    s->elapsed = before;
    j->saved_at = seconds_now();
    return status;
}

static bool checkpoint_due(const struct job *j) { return seconds_now() - j->saved_at >= (double)j->c->checkpoint_seconds; }

/* ---- a block ---- */

/* Samples of the forward pass that begins at sample `next` of the plan; 0 at its end. */
static size_t batch_at(const struct job *j, long next) {
    const struct train_plan *p = &j->plan;
    size_t left = p->count - (size_t)next % p->count, n = (size_t)j->c->forward_samples;
    if (n > left) n = left;
    return (long)n > p->total - next ? (size_t)(p->total - next) : n;
}

/* Fills the ring from the block's first sample on; j->next is then where the block after it starts. */
static int harvest(struct job *j, struct error *err) {
    const struct train_plan *p = &j->plan;
    j->ring.used = 0;
    j->next = j->state.cursor;
    while (j->next < p->total && !stop_signal) {
        struct batch b = {0};
        const size_t n = batch_at(j, j->next), first = p->first + (size_t)j->next % p->count;
        if (ahead_take(&j->ahead, &b, first, n, err)) return -1;
        int kept = ring_kept(&j->ring, &b), status = 0;
        bool fits = j->ring.used + kept <= j->ring.capacity;
        if (!fits && j->ring.used == 0)
            status = fail(
                err,
                "\"train.ring_rows\" is %d, but %zu samples of a forward pass give %d rows; raise it or lower \"train.forward_samples\"",
                j->ring.capacity, n, kept);
        else if (fits) {
            const long next = j->next + (long)n;
            ahead_start(&j->ahead, p->first + (size_t)next % p->count, batch_at(j, next));
            status = ring_add(&j->ring, &j->model, &b, err);
        } else {
            ahead_return(&j->ahead, &b, first); /* it begins the next block */
        }
        batch_free(&b);
        if (status) return -1;
        if (!fits) return 0;
        j->next += (long)n;
    }
    return 0;
}

static int write_metrics(struct job *j, const struct trainee *t, const struct train_metrics *m, struct error *err) {
    double spent = seconds_now() - j->started;
    if (!isfinite(m->loss))
        return fail(err, "layer %d, regime %s: the loss of step %ld is %g; training diverged, try a smaller \"train.lr\" than %g", t->layer,
                    regime_names[t->regime], m->step, m->loss, j->c->lr);
    if (fprintf(j->metrics,
                "{\"step\": %ld, \"layer\": %d, \"regime\": \"%s\", \"rows\": %d, \"loss\": %.9g, \"fvu\": %.9g, \"l0\": %.9g, "
                "\"tokens_per_second\": %.1f, \"elapsed\": %.3f}\n",
                m->step, t->layer, regime_names[t->regime], m->rows, m->loss, m->fvu, m->l0, spent > 0 ? (double)j->rows_here / spent : 0,
                elapsed(j)) < 0)
        return fail(err, "%s/metrics.jsonl: cannot write: %s", j->c->out, strerror(errno));
    return 0;
}

static void show_progress(struct job *j, const struct trainee *t, double share, const struct train_metrics *m) {
    char note[96];
    const struct train_state *s = &j->state;
    double block = share * (double)(j->next - s->cursor);
    snprintf(note, sizeof note, "layer %d %s, fvu %.4f", t->layer, regime_names[t->regime], m->fvu);
    progress_update(&j->progress, (long)s->group * j->plan.total + s->cursor + (long)block, note);
}

/* The batches of one trainee in this block, from the state's position on. 0 also when stopped in between. */
static int train_one(struct job *j, struct trainee *t, int rows, double share, struct error *err) {
    struct train_state *s = &j->state;
    int batches = (rows + j->c->batch - 1) / j->c->batch;
    for (; s->batch < batches; s->batch++) {
        struct train_metrics m;
        int begin = (int)((long)rows * s->batch / batches), end = (int)((long)rows * (s->batch + 1) / batches);
        if (stop_signal) return 0;
        if (checkpoint_due(j) && save(j, err)) return -1;
        OP(gather_rows)(j->dev, j->x, j->ring.rows[t->slot], (const int *)j->device_index + begin, end - begin, j->plan.d);
        bool log = sae_trainer_steps(t->t) % j->c->log_every == 0 || s->batch + 1 == batches;
        sae_trainer_step(t->t, j->x, end - begin, log ? &m : NULL);
        s->rows += end - begin;
        j->rows_here += end - begin;
        if (log && write_metrics(j, t, &m, err)) return -1;
        if (log) show_progress(j, t, share, &m);
    }
    return 0;
}

/* A batch of very few rows has a meaningless variance and would spoil Adam's second moments for a thousand steps. */
static int fewest_rows(const struct run_config *c) { return c->batch / 16 > 2 ? c->batch / 16 : 2; }

static int train_block(struct job *j, struct error *err) {
    struct train_state *s = &j->state;
    enum regime selected = REGIME_COUNT;
    int rows = 0;
    for (; s->trainee < j->n_trainees; s->trainee++, s->batch = 0) {
        struct trainee *t = &j->trainees[s->trainee];
        if (selected != t->regime) {
            selected = t->regime;
            rows = ring_select(&j->ring, selected, j->index);
            shuffle(j->index, rows, seed_mix(j->c->seed, 16 + (uint64_t)selected, (uint64_t)s->block));
            device_upload(j->dev, j->device_index, j->index, (size_t)rows * sizeof *j->index);
        }
        if (rows < fewest_rows(j->c)) {
            s->skipped += rows;
            continue;
        }
        if (train_one(j, t, rows, (double)(s->trainee + 1) / j->n_trainees, err)) return -1;
        if (stop_signal) /* trainee and batch say where */
            return 0;
    }
    return 0;
}

/* ---- a group, all groups ---- */

static int make_folders(const struct run_config *c, struct error *err) {
    static const char *const inside[] = {"state", "sae"};
    char name[64];
    if (dir_create(c->out, err)) return -1;
    for (int i = 0; i < 2 + REGIME_COUNT; i++) {
        snprintf(name, sizeof name, i < 2 ? "%s" : "sae/%s", i < 2 ? inside[i] : regime_names[i - 2]);
        if (i >= 2 && !c->regimes[i - 2]) continue;
        char *path = path_join(c->out, name);
        int status = dir_create(path, err);
        free(path);
        if (status) return -1;
    }
    return 0;
}

static int write_dictionaries(struct job *j, struct error *err) {
    for (int i = 0; i < j->n_trainees; i++) {
        struct trainee *t = &j->trainees[i];
        struct sae_host trained = {0};
        char *path = run_sae_path(j->c, t->regime, t->layer);
        int status = sae_trainer_steps(t->t) == 0 ? fail(err,
                                                         "layer %d, regime %s: no step was made, the data gave fewer than %d rows; use "
                                                         "more samples or a smaller \"train.batch\"",
                                                         t->layer, regime_names[t->regime], fewest_rows(j->c))
                                                  : sae_trainer_download(t->t, &trained, err);
        if (status == 0) status = sae_save_saelens(&trained, path, err) || firing_save(t->t, path, err) ? -1 : 0;
        sae_host_free(&trained);
        free(path);
        if (status) return -1;
    }
    return 0;
}

/* 0 with stop_signal set: stopped, state saved. */
static int train_group(struct job *j, struct error *err) {
    struct train_state *s = &j->state;
    if (open_group(j, err)) return -1;
    while (s->cursor < j->plan.total) {
        if (checkpoint_due(j) && save(j, err)) return -1;
        if (harvest(j, err)) return -1;
        if (!stop_signal && train_block(j, err)) return -1;
        if (stop_signal) return save(j, err); /* a whole block behind us is an empty rest of it on resume */
        s->cursor = j->next;
        s->block++;
        s->trainee = s->batch = 0;
    }
    if (write_dictionaries(j, err)) return -1;
    long steps = 0, rows = 0;
    for (int i = 0; i < j->n_trainees; i++) {
        steps += sae_trainer_steps(j->trainees[i].t);
        rows += sae_trainer_rows(j->trainees[i].t);
    }
    log_note("%d dictionaries trained: %ld steps, %ld rows in all", j->n_trainees, steps, rows);
    close_group(j);
    s->group++;
    s->cursor = s->block = 0;
    s->done = s->group == j->plan.n_groups;
    train_state_free(s);
    return save(j, err);
}

static int open_metrics(struct job *j, struct error *err) {
    char *path = path_join(j->c->out, "metrics.jsonl");
    int status = 0;
    j->metrics = fopen(path, j->state.found ? "r+" : "w");
    if (!j->metrics && j->state.found && errno == ENOENT) j->metrics = fopen(path, "w");
    if (!j->metrics || (j->state.found && (ftruncate(fileno(j->metrics), j->state.metrics_bytes) || fseek(j->metrics, 0, SEEK_END))))
        status = fail(err, "%s: cannot write: %s", path, strerror(errno));
    free(path);
    return status;
}

static int open_job(struct job *j, struct error *err) {
    const struct run_config *c = j->c;
    size_t first, count;
    if (train_state_load(&j->state, c, err) || run_samples(c, false, &j->samples, &first, &count, err)) return -1;
    if (train_plan_open(&j->plan, c, j->dev, &j->samples, first, count, j->state.found ? j->state.layers_at_once : 0, err)) return -1;
    train_plan_log(&j->plan, c, j->dev);
    if (make_folders(c, err) || run_config_write(c, err) || open_metrics(j, err)) return -1;
    j->state.layers_at_once = j->plan.layers_at_once;
    if (j->state.found)
        log_note(j->state.done ? "%s: all dictionaries are trained" : "%s: going on after %ld samples of group %d", c->out, j->state.cursor,
                 j->state.group + 1);
    j->index = memory_take((size_t)c->ring_rows, sizeof *j->index);
    j->device_index = device_alloc(j->dev, (size_t)c->ring_rows * sizeof(int));
    j->x = device_alloc(j->dev, (size_t)c->batch * (size_t)j->plan.d * sizeof(act_t));
    return j->device_index && j->x
               ? 0
               : fail(err, "%s: no memory for a batch of %d rows; use a smaller \"train.batch\"", device_name(j->dev), c->batch);
}

static void close_job(struct job *j) {
    close_group(j);
    train_plan_free(&j->plan);
    train_state_free(&j->state);
    if (j->samples.at) samples_free(&j->samples);
    free(j->index);
    device_free(j->dev, j->device_index);
    device_free(j->dev, j->x);
    if (j->metrics) fclose(j->metrics);
}

static int write_facts(const struct job *j, sqlite3 *db, struct error *err) {
    double seconds = elapsed(j);
    return run_db_fact(db, "train", "device", device_name(j->dev), err) ||
                   run_db_fact_real(db, "train", "samples", (double)j->plan.total, err) ||
                   run_db_fact_real(db, "train", "rows", (double)j->state.rows, err) ||
                   run_db_fact_real(db, "train", "rows_skipped", (double)j->state.skipped, err) ||
                   run_db_fact_real(db, "train", "seconds", seconds, err) ||
                   run_db_fact_real(db, "train", "tokens_per_second", seconds > 0 ? (double)j->state.rows / seconds : 0, err)
               ? -1
               : 0;
}

int stage_train(const struct run_config *c, struct device *dev, sqlite3 *db, struct error *err) {
    struct job j = {.c = c, .dev = dev, .started = seconds_now()};
    int status = -1;
    stop_install();
    j.saved_at = j.started;
    if (open_job(&j, err)) goto done;
    bool trained_here = !j.state.done;
    progress_start(&j.progress, "train", "samples", j.plan.total * j.plan.n_groups);
    while (!j.state.done && !stop_signal)
        if (train_group(&j, err)) goto done;
    progress_end(&j.progress);
    if (trained_here && j.state.done && write_facts(&j, db, err)) goto done;
    status = stop_signal ? 128 + stop_signal : evaluate_fvu(c, &j.plan, dev, db, err);
done:
    close_job(&j);
    return status;
}
