/* diff_stream.c - activations streamed through dictionaries: forward pass -> resid_post of a layer -> codes -> feature-major
 * sums by token group, in double. Nothing is kept of an activation once its layer's dictionaries have seen it. */
#include "analysis/diff.h"
#include "host/file.h"
#include "models/ahead.h"
#include "host/progress.h"
#include "host/check.h"
#include "kernels/sae_ops.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t largest(size_t a, size_t b) { return a > b ? a : b; }

int diff_buffers_open(struct diff_buffers *b, struct device *dev, int d, int M, int K, struct error *err) {
    size_t slots = (size_t)DIFF_CHUNK * (size_t)K;
    const struct sae shape = {.activation = SAE_TOPK, .d = d, .M = M};
    *b = (struct diff_buffers){.dev = dev, .encode_scratch_bytes = sae_scratch_bytes(&shape, DIFF_CHUNK, K)};
    b->indices = device_alloc(dev, slots * sizeof *b->indices);
    b->entries = device_alloc(dev, slots * sizeof *b->entries);
    b->values = device_alloc(dev, slots * sizeof *b->values);
    b->offsets = device_alloc(dev, ((size_t)M + 1) * sizeof *b->offsets);
    b->groups = device_alloc(dev, DIFF_CHUNK);
    b->encode_scratch = device_alloc(dev, largest(b->encode_scratch_bytes, 1));
    b->csc_scratch = device_alloc(dev, largest(OP(sae_csc_scratch)(DIFF_CHUNK, M, K), 1));
    b->host_indices = memory_take(slots, sizeof *b->host_indices);
    b->host_values = memory_take(slots, sizeof *b->host_values);
    if (b->indices && b->entries && b->values && b->offsets && b->groups && b->encode_scratch && b->csc_scratch) return 0;
    diff_buffers_close(b);
    return fail(err, "%s: the buffers of `diff` need %zu bytes, %zu are free", device_name(dev),
                3 * slots * sizeof(int) + b->encode_scratch_bytes, device_memory_free(dev));
}

void diff_buffers_close(struct diff_buffers *b) {
    void *const arrays[] = {b->indices, b->entries, b->values, b->offsets, b->groups, b->encode_scratch, b->csc_scratch};
    for (size_t i = 0; b->dev && i < sizeof arrays / sizeof *arrays; i++) device_free(b->dev, arrays[i]);
    free(b->host_indices);
    free(b->host_values);
    *b = (struct diff_buffers){.encode_scratch_bytes = b->encode_scratch_bytes};
}

int diff_load(struct sae_host *tuned, const struct run_config *c, enum regime regime, int layer, int d_model, struct error *err) {
    char *path = run_sae_path(c, regime, layer);
    int status = sae_load(tuned, path, err);
    if (status)
        error_context(err, "the %s dictionary of layer %d (run `stagediff train` first)", regime_names[regime], layer);
    else if (tuned->d != d_model || tuned->activation != SAE_TOPK || tuned->K < 1) {
        status = fail(err, "%s: expected a TopK dictionary of d_model %d, found d_model %d, k %d; train this run again", path, d_model,
                      tuned->d, tuned->K);
        sae_host_free(tuned);
    }
    free(path);
    return status;
}

int diff_load_base(struct sae_host *base, const struct run_config *c, int layer, const struct sae_host *tuned, struct error *err) {
    char *path = run_base_sae_path(c, layer, err);
    if (!path) return -1;
    int status = sae_load(base, path, err);
    if (status == 0 && (base->d != tuned->d || base->M != tuned->M)) {
        status = fail(
            err, "%s: %d features of %d numbers, the tuned dictionary of layer %d has %d of %d; they cannot be compared feature by feature",
            path, base->M, base->d, layer, tuned->M, tuned->d);
        sae_host_free(base);
    }
    free(path);
    return status;
}

/* cosine of the rows of a and b, both (M, d) on the host. */
static int cosines(float *out, struct device *dev, const float *a, const float *b, int M, int d, struct error *err) {
    size_t bytes = (size_t)M * (size_t)d * sizeof(real_t);
    real_t *x = device_alloc(dev, bytes), *y = device_alloc(dev, bytes), *cosine = device_alloc(dev, (size_t)M * sizeof *cosine);
    int status = x && y && cosine ? 0
                                  : fail(err, "%s: comparing two dictionaries needs %zu bytes, %zu are free", device_name(dev), 2 * bytes,
                                         device_memory_free(dev));
    if (status == 0) {
        device_upload(dev, x, a, bytes);
        device_upload(dev, y, b, bytes);
        OP(row_cosine)(dev, cosine, x, y, M, d);
        device_download(dev, out, cosine, (size_t)M * sizeof *cosine);
    }
    device_free(dev, x);
    device_free(dev, y);
    device_free(dev, cosine);
    return status;
}

/* (M) |row|; NaN without rows. */
static float *row_norms(const float *rows, size_t M, size_t d) {
    float *norm = memory_take(M, sizeof *norm);
    for (size_t f = 0; f < M; f++) {
        double square = rows ? 0 : (double)NAN;
        for (size_t i = 0; rows && i < d; i++) square += (double)rows[f * d + i] * (double)rows[f * d + i];
        norm[f] = (float)sqrt(square);
    }
    return norm;
}

int diff_job_open(struct diff_job *job, struct device *dev, enum regime regime, int layer, const struct sae_host *tuned,
                  const struct sae_host *base, bool keep_top, struct error *err) {
    size_t M = (size_t)tuned->M, d = (size_t)tuned->d;
    *job = (struct diff_job){.regime = regime, .layer = layer, .d = tuned->d, .M = tuned->M, .K = tuned->K};
    job->energy = memory_take(DIFF_GROUPS * M, sizeof *job->energy);
    job->fired = memory_take(DIFF_GROUPS * M, sizeof *job->fired);
    job->decoder_cosine = memory_take(M, sizeof *job->decoder_cosine);
    job->encoder_cosine = memory_take(M, sizeof *job->encoder_cosine);
    job->adapted = memory_take(M, 1);
    job->top_of[DIFF_PATCHES] = job->top_of[DIFF_WORDS] = true;
    if (keep_top) {
        job->top = memory_take(M * DIFF_TOP, sizeof *job->top);
        for (size_t i = 0; i < M * DIFF_TOP; i++) job->top[i].sample = -1;
    }
    job->norm = row_norms(tuned->D, M, d), job->encoder_norm = row_norms(tuned->E, M, d);
    job->base_norm = row_norms(base ? base->D : NULL, M, d), job->base_encoder_norm = row_norms(base ? base->E : NULL, M, d);
    for (size_t f = 0; f < M && !base; f++) job->decoder_cosine[f] = job->encoder_cosine[f] = NAN;
    if (!base) return 0;
    if (cosines(job->decoder_cosine, dev, tuned->D, base->D, tuned->M, tuned->d, err) ||
        cosines(job->encoder_cosine, dev, tuned->E, base->E, tuned->M, tuned->d, err)) {
        diff_job_close(job);
        return -1;
    }
    return 0;
}

size_t diff_job_bytes(const struct diff_job *job) {
    return sae_device_bytes(job->d, job->M, false) + (size_t)DIFF_GROUPS * (size_t)job->M * 16;
}

int diff_job_attach(struct diff_job *job, struct diff_buffers *b, const struct sae_host *tuned, struct error *err) {
    size_t n = (size_t)DIFF_GROUPS * (size_t)job->M;
    if (sae_upload(&job->sae, b->dev, tuned, 0, false, err)) return -1;
    job->sae.scratch = b->encode_scratch;
    job->sae.scratch_bytes = b->encode_scratch_bytes;
    job->sae.scratch_borrowed = true;
    job->sae.max_rows = DIFF_CHUNK;
    job->device_energy = device_alloc(b->dev, n * sizeof *job->device_energy);
    job->device_fired = device_alloc(b->dev, n * sizeof *job->device_fired);
    if (!job->device_energy || !job->device_fired) {
        diff_job_collect(job, b);
        return fail(err, "%s: the sums of %d features need %zu bytes, %zu are free", device_name(b->dev), job->M, n * 16,
                    device_memory_free(b->dev));
    }
    device_zero(b->dev, job->device_energy, n * sizeof *job->device_energy);
    device_zero(b->dev, job->device_fired, n * sizeof *job->device_fired);
    return 0;
}

/* Keeps the DIFF_TOP strongest pictures of a feature, each by its strongest row. */
static void keep_top(struct diff_top *top, float value, const struct diff_origin *from) {
    int weakest = 0;
    for (int i = 0; i < DIFF_TOP; i++) {
        if (top[i].sample >= 0 && top[i].picture == from->picture) {
            if (value > top[i].value) top[i] = (struct diff_top){value, from->position, from->sample, from->picture};
            return;
        }
        if (top[i].value < top[weakest].value || (top[i].sample < 0 && top[weakest].sample >= 0)) weakest = i;
    }
    if (value > top[weakest].value || top[weakest].sample < 0)
        top[weakest] = (struct diff_top){value, from->position, from->sample, from->picture};
}

void diff_job_rows(struct diff_job *job, struct diff_buffers *b, const void *x, int n, const uint8_t *group,
                   const struct diff_origin *origin) {
    for (int first = 0; first < n; first += DIFF_CHUNK) {
        int rows = n - first < DIFF_CHUNK ? n - first : DIFF_CHUNK;
        size_t slots = (size_t)rows * (size_t)job->K;
        device_upload(b->dev, b->groups, group + first, (size_t)rows);
        sae_encode(&job->sae, b->indices, b->values, NULL, (const act_t *)x + (size_t)first * (size_t)job->d, rows, job->K);
        OP(sae_csc)(b->dev, b->offsets, b->entries, b->indices, rows, job->M, job->K, b->csc_scratch);
        OP(sae_feature_stats)
        (b->dev, job->device_energy, job->device_fired, b->offsets, b->entries, b->values, b->groups, DIFF_GROUPS, rows, job->M, job->K);
        if (!job->top || !origin) continue;
        device_download(b->dev, b->host_indices, b->indices, slots * sizeof *b->host_indices);
        device_download(b->dev, b->host_values, b->values, slots * sizeof *b->host_values);
        for (size_t s = 0; s < slots; s++) {
            size_t row = (size_t)first + s / (size_t)job->K;
            int f = b->host_indices[s];
            if (f >= 0 && b->host_values[s] > 0 && group[row] < DIFF_GROUPS && job->top_of[group[row]])
                keep_top(job->top + (size_t)f * DIFF_TOP, b->host_values[s] * job->norm[f], &origin[row]);
        }
    }
}

void diff_job_collect(struct diff_job *job, struct diff_buffers *b) {
    size_t M = (size_t)job->M, n = DIFF_GROUPS * M;
    if (job->device_energy && job->device_fired) {
        double *energy = memory_take(n, sizeof *energy);
        int64_t *fired = memory_take(n, sizeof *fired);
        device_download(b->dev, energy, job->device_energy, n * sizeof *energy);
        device_download(b->dev, fired, job->device_fired, n * sizeof *fired);
        for (size_t i = 0; i < n; i++) {
            double norm = (double)job->norm[i % M];
            job->energy[i] += energy[i] * norm * norm;
            job->fired[i] += fired[i];
        }
        free(energy);
        free(fired);
    }
    device_free(b->dev, job->device_energy);
    device_free(b->dev, job->device_fired);
    job->device_energy = NULL;
    job->device_fired = NULL;
    if (job->sae.dev) sae_free(&job->sae);
}

void diff_job_close(struct diff_job *job) {
    void *const arrays[] = {
        job->energy,         job->fired,          job->norm,    job->encoder_norm, job->base_norm, job->base_encoder_norm,
        job->decoder_cosine, job->encoder_cosine, job->adapted, job->top};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    if (job->sae.dev) {
        device_free(job->sae.dev, job->device_energy);
        device_free(job->sae.dev, job->device_fired);
        sae_free(&job->sae);
    }
    *job = (struct diff_job){0};
}

/* ---- the forward pass ---- */

static const struct samples *sorted_samples; /* of by_image: qsort has no context */

static int by_image(const void *a, const void *b) {
    long i = *(const long *)a, j = *(const long *)b;
    int order = strcmp(sorted_samples->at[i].image, sorted_samples->at[j].image);
    return order ? order : (i > j) - (i < j);
}

long *diff_pictures(const struct samples *s) {
    long *picture = memory_take(s->count + 1, sizeof *picture), *order = memory_take(s->count + 1, sizeof *order);
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++) {
        picture[i] = (long)i;
        if (s->at[i].image) order[n++] = (long)i;
    }
    sorted_samples = s;
    qsort(order, n, sizeof *order, by_image);
    for (size_t i = 1; i < n; i++)
        if (strcmp(s->at[order[i]].image, s->at[order[i - 1]].image) == 0) picture[order[i]] = picture[order[i - 1]];
    free(order);
    return picture;
}

struct stream {
    struct diff_job *jobs;
    int n_jobs;
    struct diff_buffers *buffers;
    uint8_t *group;
    struct diff_origin *origin;
    const long *picture;
    bool base; /* the base LLM's tokens */
};

static int observe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *batch,
                   struct error *err) {
    struct stream *s = context;
    (void)dev, (void)batch, (void)err;
    for (int j = 0; j < s->n_jobs; j++)
        if (s->jobs[j].layer == layer && s->jobs[j].device_energy) {
            CHECK(width == s->jobs[j].d, "width=%d d=%d", width, s->jobs[j].d);
            diff_job_rows(&s->jobs[j], s->buffers, x, rows, s->group, s->base ? NULL : s->origin);
        }
    return 0;
}

/* Groups and origins of a batch's rows; counts them. */
static void describe_rows(struct stream *s, const struct batch *b, long *tokens) {
    static const uint8_t groups[KIND_COUNT] = {DIFF_IGNORED, DIFF_PATCHES, DIFF_TEMPLATE, DIFF_WORDS, DIFF_WORDS}; /* by enum token_kind */
    s->group = memory_take((size_t)b->n_tokens + 1, 1);
    s->origin = memory_take((size_t)b->n_tokens + 1, sizeof *s->origin);
    for (int i = 0; i < b->n_samples; i++)
        for (int t = b->cu_seqlens[i]; t < b->cu_seqlens[i + 1]; t++) {
            s->origin[t] = (struct diff_origin){b->sample[i], s->picture[b->sample[i]], b->position[t]};
            s->group[t] = s->base && b->kinds[t] != KIND_BOS ? DIFF_BASE : groups[b->kinds[t]];
            if (s->group[t] != DIFF_IGNORED) tokens[s->group[t]]++;
        }
}

int diff_stream(struct diff_job *jobs, int n_jobs, struct diff_buffers *b, struct model *m, const struct samples *samples, size_t n_samples,
                const long *picture, int batch, const struct diff_pass *pass, long *tokens, struct error *err) {
    struct ahead ahead = {.m = m, .s = samples, .with_answer = pass->answers};
    struct stream s = {.jobs = jobs, .n_jobs = n_jobs, .buffers = b, .picture = picture, .base = pass->base};
    struct probe *probes = memory_take((size_t)m->n_layers, sizeof *probes);
    struct progress progress;
    int n_probes = 0, status = 0;
    for (int layer = 0; layer < m->n_layers; layer++)
        for (int j = 0; j < n_jobs; j++)
            if (jobs[j].layer == layer && jobs[j].device_energy) {
                probes[n_probes++] = (struct probe){PROBE_RESID_POST, layer, observe, &s};
                break;
            }
    progress_start(&progress, pass->title, "samples", (long)n_samples);
    for (size_t first = 0; first < n_samples && status == 0; first += (size_t)batch) {
        size_t n = n_samples - first < (size_t)batch ? n_samples - first : (size_t)batch;
        struct batch packed;
        if (stop_signal) {
            status = 128 + stop_signal;
            break;
        }
        status = ahead_next(&ahead, &packed, first, (size_t)batch, n_samples, err);
        if (status) break;
        describe_rows(&s, &packed, tokens);
        status = model_forward(m, &packed, probes, n_probes, NULL, err);
        free(s.group);
        free(s.origin);
        batch_free(&packed);
        progress_update(&progress, (long)(first + n), NULL);
    }
    ahead_end(&ahead);
    progress_end(&progress);
    free(probes);
    return status;
}
