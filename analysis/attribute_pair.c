/* attribute_pair.c - batches for attribution: hook_embed of the clean run, and the corrupt run's in its place (attribute_pass.h). */
#include "analysis/attribute_pass.h"
#include "host/file.h"
#include "kernels/activation.h"
#include "models/ahead.h"
#include <stdlib.h>
#include <string.h>

int attribute_put(struct attribute_work *w, act_t *dst, const float *src, size_t n, struct error *err) {
    if (sizeof(act_t) == sizeof(float)) {
        device_upload(w->dev, dst, src, n * sizeof *src);
        return 0;
    }
    if (buffer_reserve(&w->staging, w->dev, n * sizeof(real_t), "rows on their way to the device", err)) return -1;
    device_upload(w->dev, w->staging.data, src, n * sizeof *src);
    act_from_real(w->dev, dst, w->staging.data, n);
    return 0;
}

struct capture {
    struct attribute_work *w;
    float *rows;
};
static int capture(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    const struct capture *c = context;
    const size_t n = (size_t)rows * (size_t)width;
    const real_t *from = x;
    (void)layer, (void)b;
    if (sizeof(act_t) != sizeof(float)) {
        if (buffer_reserve(&c->w->staging, dev, n * sizeof(real_t), "rows on their way from the device", err)) return -1;
        real_from_act(dev, c->w->staging.data, x, n);
        from = c->w->staging.data;
    }
    device_download(dev, c->rows, from, n * sizeof *from);
    return 0;
}

/* hook_embed of a batch as f32 on the host; malloced. */
static int embed_of(struct attribute_work *w, const struct batch *b, float **rows, struct error *err) {
    struct capture c = {w, memory_take((size_t)b->n_tokens * (size_t)w->C, sizeof(float))};
    const struct probe probe = {PROBE_EMBED, -1, capture, &c};
    *rows = c.rows;
    return model_forward(w->m, b, &probe, 1, NULL, err);
}

static bool is_image(const struct batch *b, int t) { return b->ids[t] == IMAGE_TOKEN; }

int attribute_mean_row(struct attribute_work *w, struct error *err) {
    const struct samples *s = w->job->samples;
    const size_t C = (size_t)w->C, size = (size_t)w->job->batch;
    double *sum = memory_take(C, sizeof *sum);
    struct ahead ahead = {.m = w->m, .s = s};
    long count = 0;
    int status = 0;
    for (size_t first = 0; first < s->count && status == 0; first += size) {
        struct batch b;
        float *rows = NULL;
        status = ahead_next(&ahead, &b, first, size, s->count, err);
        if (status == 0 && b.n_images) status = embed_of(w, &b, &rows, err);
        for (int t = 0; status == 0 && b.n_images && t < b.n_tokens; t++) {
            if (!is_image(&b, t)) continue;
            for (size_t c = 0; c < C; c++) sum[c] += (double)rows[(size_t)t * C + c];
            count++;
        }
        free(rows);
        batch_free(&b);
    }
    ahead_end(&ahead);
    w->mean_row = memory_take(C, sizeof *w->mean_row);
    for (size_t c = 0; c < C && count; c++) w->mean_row[c] = (float)(sum[c] / (double)count);
    free(sum);
    return status;
}

/* The samples that stand for first .. first+n in the corrupt run: shallow copies. */
static int partner_of(const struct samples *s, size_t i, size_t *partner, struct error *err) {
    for (size_t step = 1; step < s->count; step++) {
        *partner = (i + step) % s->count;
        if (s->at[*partner].image) return 0; /* every picture of a model becomes as many rows */
    }
    return fail(err, "%s, line %ld: no other sample has a picture to swap with; add one or use --corrupt mean", s->path, s->at[i].line);
}

static int other_prompt(const struct samples *s, struct sample *line, struct error *err) {
    const char *prompt = json_string_value(json_object_get(line->json, "corrupt_prompt")),
               *question = json_string_value(json_object_get(line->json, "corrupt_question"));
    if (!prompt && !question)
        return fail(err, "%s, line %ld: --corrupt prompt needs \"corrupt_prompt\" or \"corrupt_question\" on every line", s->path,
                    line->line);
    line->prompt = (char *)(uintptr_t)prompt; /* only read */
    line->question = prompt ? NULL : (char *)(uintptr_t)question;
    return 0;
}

static int stand_ins(const struct attribute_work *w, struct samples *to, size_t first, size_t n, struct error *err) {
    const struct samples *s = w->job->samples;
    *to = (struct samples){.at = memory_take(n, sizeof *to->at), .count = n, .path = s->path};
    for (size_t i = 0; i < n; i++) {
        size_t from = first + i;
        if (w->job->corruption == CORRUPT_SWAP && s->at[from].image && partner_of(s, first + i, &from, err)) return -1;
        to->at[i] = s->at[from];
        if (w->job->corruption == CORRUPT_PROMPT && other_prompt(s, &to->at[i], err)) return -1;
    }
    return 0;
}

static int same_length(const struct samples *s, const struct batch *a, const struct batch *b, struct error *err) {
    for (int i = 0; i < a->n_samples; i++) {
        const int n = a->cu_seqlens[i + 1] - a->cu_seqlens[i], other = b->cu_seqlens[i + 1] - b->cu_seqlens[i];
        if (n != other)
            return fail(err, "%s, line %ld: the corrupt prompt has %d tokens, the prompt %d; they must be equally many", s->path,
                        s->at[a->sample[i]].line, other, n);
    }
    return 0;
}

/* Image rows of `from` into the places of b's, sample by sample. */
static int swap_rows(const struct attribute_work *w, float *to, const struct batch *b, const float *from, const struct batch *other,
                     struct error *err) {
    const struct samples *s = w->job->samples;
    const size_t C = (size_t)w->C;
    for (int i = 0; i < b->n_samples; i++) {
        int u = other->cu_seqlens[i];
        for (int t = b->cu_seqlens[i]; t < b->cu_seqlens[i + 1]; t++) {
            if (!is_image(b, t)) continue;
            while (u < other->cu_seqlens[i + 1] && !is_image(other, u)) u++;
            if (u == other->cu_seqlens[i + 1])
                return fail(err, "%s, line %ld: the next sample's picture has fewer rows", s->path, s->at[b->sample[i]].line);
            memcpy(to + (size_t)t * C, from + (size_t)u++ * C, C * sizeof *to);
        }
    }
    return 0;
}

static int corrupt_by_others(struct attribute_work *w, struct attribute_pair *p, size_t first, size_t n, struct error *err) {
    struct samples others = {0};
    struct batch *b = &p->batch[CORRUPT];
    float *rows = NULL;
    int status = -1;
    if (stand_ins(w, &others, first, n, err) || model_batch(w->m, b, &others, 0, n, false, err)) goto cleanup;
    if (w->job->corruption == CORRUPT_PROMPT && same_length(w->job->samples, &p->batch[CLEAN], b, err)) goto cleanup;
    if (embed_of(w, b, &rows, err)) goto cleanup;
    if (w->job->corruption == CORRUPT_PROMPT) {
        free(p->embed[CORRUPT]);
        p->embed[CORRUPT] = rows;
        p->b[CORRUPT] = b;
        rows = NULL;
        status = 0;
    } else {
        status = swap_rows(w, p->embed[CORRUPT], &p->batch[CLEAN], rows, b, err);
    }
cleanup:
    free(rows);
    free(others.at);
    return status;
}

int attribute_pair_make(struct attribute_work *w, struct attribute_pair *p, size_t first, size_t n, struct error *err) {
    const size_t C = (size_t)w->C;
    struct batch *b = &p->batch[CLEAN];
    memset(p, 0, sizeof *p);
    if (model_batch(w->m, b, w->job->samples, first, n, false, err)) return -1;
    p->b[CLEAN] = p->b[CORRUPT] = b;
    if (embed_of(w, b, &p->embed[CLEAN], err)) return -1;
    p->embed[CORRUPT] = memory_take((size_t)b->n_tokens * C, sizeof(float));
    memcpy(p->embed[CORRUPT], p->embed[CLEAN], (size_t)b->n_tokens * C * sizeof(float));
    if (w->job->corruption == CORRUPT_PROMPT || (w->job->corruption == CORRUPT_SWAP && b->n_images)) {
        if (corrupt_by_others(w, p, first, n, err)) return -1;
    } else {
        for (int t = 0; t < b->n_tokens; t++) {
            float *row = p->embed[CORRUPT] + (size_t)t * C;
            if (!is_image(b, t)) continue;
            if (w->job->corruption == CORRUPT_MEAN)
                memcpy(row, w->mean_row, C * sizeof *row);
            else
                memset(row, 0, C * sizeof *row);
        }
    }
    for (int run = CLEAN; run <= CORRUPT; run++) {
        p->after[run] = memory_take((size_t)b->n_tokens, 1);
        batch_after_image(p->b[run], p->after[run]);
    }
    return 0;
}

void attribute_pair_free(struct attribute_pair *p) {
    for (int run = CLEAN; run <= CORRUPT; run++) {
        batch_free(&p->batch[run]);
        free(p->embed[run]);
        free(p->after[run]);
    }
    memset(p, 0, sizeof *p);
}
