/* train_rows.c - `train --rows`: batch s is rows [sB, (s+1)B) modulo N, of the file's order or of one shuffled anew each epoch.
 *
 * Stopped by a signal it leaves OUT/state.safetensors and OUT/state.json (which job, how far) beside the metrics so far. */
#include "analysis/train_rows.h"
#include "analysis/rows.h"
#include "host/file.h"
#include "host/progress.h"
#include "host/tensors.h"
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct loop { /* the parts of a running job */
    const struct train_rows *job;
    struct rows rows;
    struct row_feed feed;
    struct sae_trainer *trainer;
    struct file_writer metrics;
    int *index, *order; /* rows of a batch; an epoch's order */
    long epoch;         /* that `order` is of, -1: none */
    char *state, *progress, *metrics_path;
};

static json_t *identity(const struct loop *l) {
    const struct train_rows *j = l->job;
    return json_pack("{s:s, s:s, s:i, s:i, s:s, s:i, s:i, s:i, s:b, s:I, s:f, s:b, s:b, s:b}", "rows", j->rows, "tensor", j->tensor, "n",
                     l->rows.n, "d", l->rows.d, "sae", j->sae ? j->sae : "random", "features", j->features, "k", j->k, "batch", j->batch,
                     "shuffle", j->shuffle, "seed", (json_int_t)j->seed, "lr", j->settings.lr, "unit_norm_decoder",
                     j->settings.unit_norm_decoder, "remove_parallel", j->settings.remove_parallel, "bf16_products",
                     j->settings.bf16_products);
}

static int open_start(struct loop *l, struct device *dev, struct error *err) {
    const struct train_rows *j = l->job;
    struct sae_host start = {0};
    int status = -1;
    if (j->sae ? sae_load(&start, j->sae, err) : sae_random(&start, l->rows.d, j->features, j->k > 0 ? j->k : 50, j->seed, err)) return -1;
    if (start.d != l->rows.d) {
        fail(err, "%s: tensor %s: expected rows of %d as %s has, found %d", j->rows, j->tensor, start.d, j->sae, l->rows.d);
        goto done;
    }
    if (sae_make_topk(&start, j->k, err)) {
        if (j->sae) error_context(err, "%s", j->sae);
        goto done;
    }
    if (sae_trainer_open(&l->trainer, dev, &start, &j->settings, NULL, err)) goto done;
    status = 0;
done:
    sae_host_free(&start);
    return status;
}

/* The lines of an interrupted run's metrics that its state has already seen are written again. */
static int copy_lines(struct loop *l, long lines, struct error *err) {
    char *text = NULL;
    size_t size = 0;
    if (lines == 0) return 0;
    if (file_read(l->metrics_path, (size_t)1 << 32, &text, &size, err)) return -1;
    const char *end = text;
    for (long i = 0; i < lines && end; i++) {
        end = strchr(end, '\n');
        end = end ? end + 1 : NULL;
    }
    if (!end)
        fail(err, "%s: expected %ld lines as %s says, found fewer; delete both to start again", l->metrics_path, lines, l->progress);
    else if (fwrite(text, 1, (size_t)(end - text), l->metrics.stream) != (size_t)(end - text))
        end = NULL, fail(err, "%s: cannot write: %s", l->metrics_path, strerror(errno));
    free(text);
    return end ? 0 : -1;
}

static int resume(struct loop *l, struct error *err) {
    if (!file_exists(l->progress)) return 0;
    json_error_t where;
    json_t *saved = json_load_file(l->progress, 0, &where), *mine = identity(l);
    int status = -1;
    if (!json_equal(json_object_get(saved, "job"), mine))
        fail(err, "%s: holds the state of another training; finish that one, delete the file or choose another --out", l->progress);
    else if (sae_trainer_load(l->trainer, l->state, err) == 0)
        status = copy_lines(l, sae_trainer_steps(l->trainer), err);
    if (status == 0) log_note("%s: going on at step %ld", l->job->out, sae_trainer_steps(l->trainer));
    json_decref(saved), json_decref(mine);
    return status;
}

static int save_state(struct loop *l, struct error *err) {
    struct file_writer w = {0};
    if (sae_trainer_save(l->trainer, l->state, err) || file_writer_commit(&l->metrics, err) || file_writer_open(&w, l->progress, err))
        return -1;
    json_t *o = json_pack("{s:o, s:I}", "job", identity(l), "step", (json_int_t)sae_trainer_steps(l->trainer));
    int bad = json_dumpf(o, w.stream, JSON_INDENT(2));
    json_decref(o);
    if (bad) {
        file_writer_abort(&w);
        return fail(err, "%s: cannot write: %s", l->progress, strerror(errno));
    }
    return file_writer_commit(&w, err);
}

static void put_batch(struct loop *l, long step) {
    const struct train_rows *j = l->job;
    int64_t position = (int64_t)step * j->batch, N = l->rows.n;
    for (int i = 0; i < j->batch; i++, position++) {
        int within = (int)(position % N);
        if (j->shuffle && l->epoch != position / N) {
            l->epoch = (long)(position / N);
            for (int r = 0; r < l->rows.n; r++) l->order[r] = r;
            shuffle(l->order, l->rows.n, seed_mix(j->seed, 1, (uint64_t)l->epoch));
        }
        l->index[i] = j->shuffle ? l->order[within] : within;
    }
    row_feed_put(&l->feed, l->index, 0, j->batch);
}

static int steps(struct loop *l, struct error *err) {
    const struct train_rows *j = l->job;
    struct progress p;
    progress_start(&p, "train", "steps", j->steps);
    for (long s = sae_trainer_steps(l->trainer); s < j->steps && !stop_signal; s++) {
        struct train_metrics m;
        char note[64];
        put_batch(l, s);
        sae_trainer_step(l->trainer, l->feed.x, j->batch, &m);
        if (!isfinite(m.loss))
            return fail(err, "%s: the loss of step %ld is %g; training diverged, try a smaller --lr than %g", j->out, s, m.loss,
                        j->settings.lr);
        if (fprintf(l->metrics.stream, "{\"step\": %ld, \"loss\": %.9g, \"fvu\": %.9g, \"l0\": %.9g}\n", m.step, m.loss, m.fvu, m.l0) < 0)
            return fail(err, "%s: cannot write: %s", l->metrics_path, strerror(errno));
        snprintf(note, sizeof note, "fvu %.4f", m.fvu);
        progress_update(&p, s + 1, note);
    }
    progress_end(&p);
    return 0;
}

static int finish(struct loop *l, struct error *err) {
    struct sae_host trained;
    if (sae_trainer_download(l->trainer, &trained, err)) return -1;
    int status = sae_save_saelens(&trained, l->job->out, err);
    sae_host_free(&trained);
    if (status || file_writer_commit(&l->metrics, err)) return -1;
    unlink(l->progress);
    unlink(l->state);
    return 0;
}

int train_rows(const struct train_rows *j, struct device *dev, struct error *err) {
    struct loop l = {.job = j, .epoch = -1};
    bool existed = dir_exists(j->out);
    int status = -1;
    if (dir_create(j->out, err)) return -1;
    l.state = path_join(j->out, "state.safetensors"), l.progress = path_join(j->out, "state.json"),
    l.metrics_path = path_join(j->out, "metrics.jsonl");
    if (rows_open(&l.rows, j->rows, j->tensor, 0, NULL, err)) goto done;
    if (l.rows.n == 0) {
        fail(err, "%s: tensor %s: no rows to train on", j->rows, j->tensor);
        goto done;
    }
    if (open_start(&l, dev, err) || row_feed_open(&l.feed, dev, &l.rows, j->batch, err) ||
        file_writer_open(&l.metrics, l.metrics_path, err))
        goto done;
    l.index = memory_take((size_t)j->batch, sizeof *l.index);
    l.order = memory_take((size_t)l.rows.n, sizeof *l.order);
    stop_install();
    if (resume(&l, err) || steps(&l, err)) goto done;
    if (sae_trainer_steps(l.trainer) < j->steps)
        status = save_state(&l, err) ? -1 : 128 + stop_signal;
    else
        status = finish(&l, err);
done:
    file_writer_abort(&l.metrics);
    sae_trainer_close(l.trainer);
    row_feed_close(&l.feed);
    rows_close(&l.rows);
    free(l.index), free(l.order), free(l.state), free(l.progress), free(l.metrics_path);
    if (status < 0 && !existed) rmdir(j->out);
    return status;
}
