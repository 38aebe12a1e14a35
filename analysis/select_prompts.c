/* select_prompts.c - the prompt filter: does a feature fire for its pictures when the question has none of the task's words? The
 * strongest target samples of every selected feature keep their picture and are asked each neutral prompt; a sample passes when the
 * best of the prompts gives max over tokens z > fires_above, the feature when all its samples pass (papers.md 1.4). */
#include "analysis/ring.h"
#include "analysis/select.h"
#include "host/file.h"
#include "host/progress.h"
#include "models/ahead.h"
#include "kernels/activation.h"
#include <stdlib.h>
#include <string.h>

struct candidate {
    int feature;
    long sample[DIFF_TOP]; /* its strongest, -1: none */
    float best[DIFF_TOP];  /* over prompts and tokens */
};
struct listener { /* one layer */
    struct select_layer *l;
    struct filter *filter;
    struct candidate *at;
    int count;
    int *of; /* (M): which candidate a feature is, -1: none */
};
struct filter {
    const struct run_config *c;
    struct diff_buffers *buffers;
    struct listener *layers;
    int n_layers;
    double above;
    long *sample;         /* the samples that have still to pass, rising */
    struct samples lines; /* those, with the prompt of the round; everything but the question is borrowed */
    void *rows;           /* device: (DIFF_CHUNK, d) act_t, the counted rows of a chunk */
    int *index;           /* device: (DIFF_CHUNK) */
};

static int strongest_first(const void *a, const void *b) {
    const struct diff_top *x = a, *y = b;
    if ((x->sample < 0) != (y->sample < 0)) return x->sample < 0 ? 1 : -1;
    if (x->value != y->value) return x->value < y->value ? 1 : -1;
    return (x->sample > y->sample) - (x->sample < y->sample);
}

static void plan_layer(struct listener *n, int top_samples) {
    struct select_layer *l = n->l;
    const int M = l->job.M;
    n->at = memory_take((size_t)M + 1, sizeof *n->at);
    n->of = memory_take((size_t)M, sizeof *n->of);
    for (int f = 0; f < M; f++) {
        n->of[f] = -1;
        if (!l->selected[f]) continue;
        struct candidate *one = &n->at[n->count];
        struct diff_top *top = l->job.top + (size_t)f * DIFF_TOP;
        qsort(top, DIFF_TOP, sizeof *top, strongest_first);
        one->feature = f;
        for (int r = 0; r < DIFF_TOP; r++) one->sample[r] = r < top_samples ? top[r].sample : -1;
        n->of[f] = n->count++;
    }
}

static int rising(const void *a, const void *b) {
    const long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

/* The distinct samples that some candidate of layers [first, end) has still to pass on, each with the prompt. */
static void plan_lines(struct filter *p, const struct samples *s, int first, int end, char *prompt) {
    size_t n = 0, kept = 0;
    for (int l = first; l < end; l++) n += (size_t)p->layers[l].count * DIFF_TOP;
    p->sample = memory_grow(p->sample, n + 1, sizeof *p->sample);
    n = 0;
    for (int l = first; l < end; l++)
        for (int i = 0; i < p->layers[l].count; i++) {
            const struct candidate *one = &p->layers[l].at[i];
            for (int r = 0; r < DIFF_TOP; r++)
                if (one->sample[r] >= 0 && !((double)one->best[r] > p->above)) p->sample[n++] = one->sample[r];
        }
    qsort(p->sample, n, sizeof *p->sample, rising);
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || p->sample[kept - 1] != p->sample[i]) p->sample[kept++] = p->sample[i];
    p->lines.at = memory_grow(p->lines.at, kept + 1, sizeof *p->lines.at);
    p->lines.count = kept, p->lines.path = s->path;
    for (size_t i = 0; i < kept; i++) {
        struct sample *one = &p->lines.at[i];
        *one = s->at[p->sample[i]];
        one->question = prompt;
        one->prompt = one->caption = one->answer = NULL;
    }
}

/* Codes of the rows whose samples (in the batch) are given. */
static void take_codes(struct listener *n, int rows, const struct batch *b, const int *sample_of_row) {
    const struct diff_job *job = &n->l->job;
    const struct diff_buffers *buffers = n->filter->buffers;
    for (int i = 0; i < rows * job->K; i++) {
        const int f = buffers->host_indices[i];
        if (f < 0 || n->of[f] < 0) continue;
        struct candidate *one = &n->at[n->of[f]];
        const long sample = n->filter->sample[b->sample[sample_of_row[i / job->K]]];
        const float z = buffers->host_values[i] * job->norm[f];
        for (int r = 0; r < DIFF_TOP; r++)
            if (one->sample[r] == sample && z > one->best[r]) one->best[r] = z;
    }
}

static int observe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *batch,
                   struct error *err) {
    struct listener *n = context;
    struct diff_job *job = &n->l->job;
    struct diff_buffers *b = n->filter->buffers;
    int index[DIFF_CHUNK], sample[DIFF_CHUNK], some = 0;
    (void)layer, (void)err;
    for (int s = 0; s < batch->n_samples; s++)
        for (int t = batch->cu_seqlens[s]; t < batch->cu_seqlens[s + 1]; t++) {
            if (regime_takes(job->regime, batch->kinds[t])) index[some] = t, sample[some++] = s;
            if (some == 0 || (some < DIFF_CHUNK && t + 1 < rows)) continue;
            const size_t slots = (size_t)some * (size_t)job->K;
            device_upload(dev, n->filter->index, index, (size_t)some * sizeof *index);
            OP(gather_rows)(dev, n->filter->rows, x, n->filter->index, some, width);
            sae_encode(&job->sae, b->indices, b->values, NULL, n->filter->rows, some, job->K);
            device_download(dev, b->host_indices, b->indices, slots * sizeof *b->host_indices);
            device_download(dev, b->host_values, b->values, slots * sizeof *b->host_values);
            take_codes(n, some, batch, sample);
            some = 0;
        }
    return 0;
}

/* The lines of a round through the model, the dictionaries of layers [first, end) listening. */
static int run_lines(struct filter *p, struct model *m, int first, int end, struct progress *progress, struct error *err) {
    struct probe *probes = memory_take((size_t)(end - first) + 1, sizeof *probes);
    const size_t batch = (size_t)p->c->forward_samples;
    struct ahead ahead = {.m = m, .s = &p->lines};
    int n = 0, status = 0;
    for (int l = first; l < end; l++)
        if (p->layers[l].count) probes[n++] = (struct probe){PROBE_RESID_POST, p->layers[l].l->job.layer, observe, &p->layers[l]};
    for (size_t at = 0; at < p->lines.count && status == 0; at += batch) {
        const size_t some = p->lines.count - at < batch ? p->lines.count - at : batch;
        struct batch b;
        status = stop_signal ? 128 + stop_signal : ahead_next(&ahead, &b, at, batch, p->lines.count, err);
        if (status) break;
        status = model_forward(m, &b, probes, n, NULL, err);
        batch_free(&b);
        progress_update(progress, (long)(at + some), NULL);
    }
    ahead_end(&ahead);
    free(probes);
    return status;
}

/* As many layers a pass as fit in half of what is free; prompt after prompt, for the samples that have not passed yet. */
static int listen(struct filter *p, struct model *m, const struct samples *s, char **prompts, int n_prompts, struct error *err) {
    struct progress progress;
    int status = 0;
    for (int first = 0, end; first < p->n_layers && status == 0; first = end) {
        size_t need = 0, room = device_memory_free(p->buffers->dev) / 2;
        for (end = first; end < p->n_layers && status == 0; end++) {
            struct diff_job *job = &p->layers[end].l->job;
            struct sae_host tuned;
            if (!p->layers[end].count) continue;
            need += diff_job_bytes(job);
            if (end > first && need > room) break;
            status = diff_load(&tuned, p->c, job->regime, job->layer, job->d, err);
            if (status) break;
            status = diff_job_attach(job, p->buffers, &tuned, err);
            sae_host_free(&tuned);
        }
        for (int i = 0; i < n_prompts && status == 0; i++) {
            plan_lines(p, s, first, end, prompts[i]);
            progress_start(&progress, "select: neutral prompts", "samples", (long)p->lines.count);
            status = run_lines(p, m, first, end, &progress, err);
            progress_end(&progress);
        }
        for (int l = first; l < p->n_layers && l <= end; l++)
            if (p->layers[l].l->job.sae.dev)
                diff_job_collect(&p->layers[l].l->job, p->buffers); /* its sums are zero: the detaching counts */
    }
    return status;
}

static int open_rows(struct filter *p, int d, struct error *err) {
    struct device *dev = p->buffers->dev;
    p->rows = device_alloc(dev, (size_t)DIFF_CHUNK * (size_t)d * sizeof(act_t));
    p->index = device_alloc(dev, DIFF_CHUNK * sizeof *p->index);
    return p->rows && p->index ? 0
                               : fail(err, "%s: no memory for the rows of the prompt filter, %zu bytes are free", device_name(dev),
                                      device_memory_free(dev));
}

int select_prompts(const struct select_task *t, struct select_layer *layers, int n_layers, struct diff_buffers *b, struct model *m,
                   const struct run_config *c, const struct samples *s, struct error *err) {
    struct filter p = {.c = c, .buffers = b, .n_layers = n_layers, .above = t->c->fires_above};
    char **prompts;
    int n_prompts, status = phrases_open(&prompts, &n_prompts, t->c->prompts, err);
    if (status) return -1;
    p.layers = memory_take((size_t)n_layers + 1, sizeof *p.layers);
    for (int l = 0; l < n_layers; l++) {
        p.layers[l].l = &layers[l], p.layers[l].filter = &p;
        plan_layer(&p.layers[l], t->c->top_samples);
    }
    status = open_rows(&p, m->d_model, err);
    if (status == 0) status = listen(&p, m, s, prompts, n_prompts, err);
    for (int l = 0; l < n_layers; l++) {
        for (int i = 0; i < p.layers[l].count && status == 0; i++) {
            const struct candidate *one = &p.layers[l].at[i];
            bool passes = one->sample[0] >= 0;
            for (int r = 0; r < DIFF_TOP; r++)
                if (one->sample[r] >= 0 && !((double)one->best[r] > p.above)) passes = false;
            layers[l].invariant[one->feature] = passes;
        }
        free(p.layers[l].at), free(p.layers[l].of);
    }
    device_free(b->dev, p.rows), device_free(b->dev, p.index);
    free(p.layers), free(p.sample), free(p.lines.at);
    phrases_free(prompts, n_prompts);
    return status;
}
