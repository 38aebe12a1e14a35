/* diff_examples.c - the second pass: the strongest samples of the features shown go through the model once more, and the codes
 * of those features at every token are kept, with the words and the picture, so that the report can draw them. */
#include "analysis/diff.h"
#include "host/file.h"
#include "host/progress.h"
#include "kernels/sae_ops.h"
#include "models/ahead.h"
#include <stdlib.h>
#include <string.h>

struct pass {
    struct diff_examples *e;
    struct diff_job *jobs;
    struct diff_buffers *buffers;
    long first; /* e->sample[first + i] is the batch's sample i */
};

void diff_examples_free(struct diff_examples *e) {
    for (int i = 0; i < e->count; i++) free(e->at[i].values);
    for (int i = 0; i < e->n_samples; i++) {
        free(e->sample[i].tokens);
        free(e->sample[i].kinds);
        free(e->sample[i].picture);
    }
    free(e->at);
    free(e->sample);
    *e = (struct diff_examples){0};
}

static int strongest_first(const void *a, const void *b) {
    const struct diff_top *x = a, *y = b;
    if ((x->sample < 0) != (y->sample < 0)) return x->sample < 0 ? 1 : -1;
    if (x->value != y->value) return x->value < y->value ? 1 : -1;
    return (x->sample > y->sample) - (x->sample < y->sample);
}

static int rising_index(const void *a, const void *b) {
    const struct diff_sample *x = a, *y = b;
    return (x->index > y->index) - (x->index < y->index);
}

/* Lists examples and the distinct samples among them, rising. */
static void plan(struct diff_examples *e, struct diff_job *jobs, const struct diff_chosen *chosen, int n_chosen) {
    e->at = memory_take((size_t)n_chosen * DIFF_TOP + 1, sizeof *e->at);
    e->sample = memory_take((size_t)n_chosen * DIFF_TOP + 1, sizeof *e->sample);
    for (int i = 0; i < n_chosen; i++) {
        struct diff_top *top = jobs[chosen[i].job].top + (size_t)chosen[i].feature * DIFF_TOP;
        qsort(top, DIFF_TOP, sizeof *top, strongest_first);
        for (int rank = 0; rank < DIFF_TOP && top[rank].sample >= 0; rank++) {
            e->at[e->count] = (struct diff_example){.job = chosen[i].job, .feature = chosen[i].feature, .rank = rank, .top = top[rank]};
            e->sample[e->count++].index = top[rank].sample;
        }
    }
    qsort(e->sample, (size_t)e->count, sizeof *e->sample, rising_index);
    for (int i = 0; i < e->count; i++)
        if (e->n_samples == 0 || e->sample[i].index != e->sample[e->n_samples - 1].index) e->sample[e->n_samples++] = e->sample[i];
}

/* Codes of one chunk of rows into the examples that want them. */
static void scatter(struct pass *p, int job, int first, int rows, const struct batch *b) {
    struct diff_job *j = &p->jobs[job];
    struct diff_buffers *buffers = p->buffers;
    for (int i = 0; i < p->e->count; i++) {
        struct diff_example *example = &p->e->at[i];
        if (example->job != job) continue;
        for (int s = 0; s < b->n_samples; s++) {
            if (p->e->sample[p->first + s].index != example->top.sample) continue;
            int start = b->cu_seqlens[s], end = b->cu_seqlens[s + 1];
            if (!example->values) {
                example->tokens = end - start;
                example->values = memory_take((size_t)example->tokens, sizeof *example->values);
                example->kind = b->kinds[start + example->top.position];
            }
            for (int t = start > first ? start : first; t < end && t < first + rows; t++)
                for (int k = 0; k < j->K; k++) {
                    size_t slot = (size_t)(t - first) * (size_t)j->K + (size_t)k;
                    if (buffers->host_indices[slot] == example->feature && b->kinds[t] != KIND_BOS)
                        example->values[t - start] = buffers->host_values[slot] * j->norm[example->feature];
                }
        }
    }
}

struct layer_probe {
    struct pass *pass;
    int job;
};

static int observe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *batch,
                   struct error *err) {
    struct layer_probe *probe = context;
    struct diff_buffers *b = probe->pass->buffers;
    struct diff_job *job = &probe->pass->jobs[probe->job];
    (void)layer, (void)err;
    for (int first = 0; first < rows; first += DIFF_CHUNK) {
        int n = rows - first < DIFF_CHUNK ? rows - first : DIFF_CHUNK;
        size_t slots = (size_t)n * (size_t)job->K;
        sae_encode(&job->sae, b->indices, b->values, NULL, (const act_t *)x + (size_t)first * (size_t)width, n, job->K);
        device_download(dev, b->host_indices, b->indices, slots * sizeof *b->host_indices);
        device_download(dev, b->host_values, b->values, slots * sizeof *b->host_values);
        scatter(probe->pass, probe->job, first, n, batch);
    }
    return 0;
}

int diff_describe(struct diff_sample *row, const struct model *m, const struct sample *sample, const struct batch *b, int s,
                  struct error *err) {
    int start = b->cu_seqlens[s], n = b->cu_seqlens[s + 1] - start;
    struct image image = {0}, seen = {0};
    json_t *tokens = json_array();
    int status = 0;
    row->n_tokens = n;
    row->kinds = memory_take((size_t)n + 1, 1);
    memcpy(row->kinds, b->kinds + start, (size_t)n);
    for (int t = 0; t < n; t++) {
        char *text = b->ids[start + t] == IMAGE_TOKEN ? NULL : tokenizer_decode(m->tokenizer, b->ids + start + t, 1, false);
        json_array_append_new(tokens, json_string(text ? text : ""));
        free(text);
    }
    row->tokens = json_dumps(tokens, JSON_COMPACT);
    json_decref(tokens);
    if (!row->tokens) row->tokens = memory_string("[]");
    if (sample->image)
        status = image_open(&image, sample->image, err) || preprocess_picture(&m->preprocess, &image, &seen, err) ||
                         image_write_png(&seen, &row->picture, &row->picture_bytes, err)
                     ? -1
                     : 0;
    image_free(&image);
    image_free(&seen);
    return status;
}

static int run_batches(struct pass *p, struct model *m, const struct probe *probes, int n_probes, const struct samples *s, int batch,
                       bool answers, struct error *err) {
    struct progress progress;
    int status = 0, total = p->e->n_samples;
    /* borrowed lines, in the order of e->sample */
    struct samples some = {.at = memory_take((size_t)total + 1, sizeof *some.at), .count = (size_t)total, .path = s->path};
    for (int i = 0; i < total; i++) some.at[i] = s->at[p->e->sample[i].index];
    struct ahead ahead = {.m = m, .s = &some, .with_answer = answers};
    progress_start(&progress, "examples", "samples", total);
    for (int first = 0; first < total && status == 0; first += batch) {
        int n = total - first < batch ? total - first : batch;
        struct batch b;
        if (stop_signal) {
            status = 128 + stop_signal;
            break;
        }
        status = ahead_next(&ahead, &b, (size_t)first, (size_t)batch, (size_t)total, err);
        if (status) break;
        p->first = first;
        status = model_forward(m, &b, probes, n_probes, NULL, err);
        for (int i = 0; i < n && status == 0; i++) status = diff_describe(&p->e->sample[first + i], m, &some.at[first + i], &b, i, err);
        batch_free(&b);
        progress_update(&progress, first + n, NULL);
    }
    progress_end(&progress);
    ahead_end(&ahead);
    free(some.at);
    return status;
}

int diff_examples_run(struct diff_examples *e, const struct run_config *c, struct diff_job *jobs, const struct diff_chosen *chosen,
                      int n_chosen, struct diff_buffers *b, struct model *m, const struct samples *s, bool answers, struct error *err) {
    struct pass p = {.e = e, .jobs = jobs, .buffers = b};
    struct probe *probes = memory_take((size_t)m->n_layers + 1, sizeof *probes);
    struct layer_probe *contexts = memory_take((size_t)m->n_layers + 1, sizeof *contexts);
    int n_probes = 0, status = 0;
    *e = (struct diff_examples){0};
    plan(e, jobs, chosen, n_chosen);
    for (int i = 0; i < n_chosen && status == 0; i++) {
        struct diff_job *job = &jobs[chosen[i].job];
        struct sae_host tuned;
        if (job->sae.dev) /* attached for an earlier feature */
            continue;
        status = diff_load(&tuned, c, job->regime, job->layer, job->d, err);
        if (status) break;
        status = diff_job_attach(job, b, &tuned, err);
        sae_host_free(&tuned);
        contexts[n_probes] = (struct layer_probe){&p, chosen[i].job};
        probes[n_probes] = (struct probe){PROBE_RESID_POST, job->layer, observe, &contexts[n_probes]};
        n_probes++;
    }
    if (status == 0 && e->count) status = run_batches(&p, m, probes, n_probes, s, c->forward_samples, answers, err);
    for (int i = 0; i < n_chosen; i++)
        if (jobs[chosen[i].job].sae.dev) diff_job_collect(&jobs[chosen[i].job], b); /* its sums are zero: only the detaching counts */
    free(probes);
    free(contexts);
    if (status) diff_examples_free(e);
    return status;
}
