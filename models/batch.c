/* batch.c - samples to a packed batch: prompts end to end, pictures decoded and preprocessed in parallel. */
#include "models/batch.h"
#include "host/file.h"
#include "models/model.h"
#include <stdlib.h>
#include <string.h>

void batch_free(struct batch *b) {
    if (!b) return;
    free(b->cu_seqlens);
    free(b->ids);
    free(b->source);
    free(b->position);
    free(b->kinds);
    free(b->sample);
    free(b->picture);
    free(b->pixels);
    memset(b, 0, sizeof *b);
}

void batch_after_image(const struct batch *b, uint8_t *after) {
    for (int i = 0; i < b->n_samples; i++) {
        int last = b->cu_seqlens[i] - 1;
        for (int t = b->cu_seqlens[i]; t < b->cu_seqlens[i + 1]; t++)
            if (b->ids[t] == IMAGE_TOKEN) last = t;
        for (int t = b->cu_seqlens[i]; t < b->cu_seqlens[i + 1]; t++) after[t] = t > last;
    }
}

static int read_picture(const struct model *m, const char *path, float *pixels, struct error *err) {
    struct image image = {0};
    int status = image_open(&image, path, err);
    if (!status) status = preprocess_image(&m->preprocess, &image, pixels, err);
    image_free(&image);
    return status;
}

/* All pictures of the batch; the error is that of the first sample that has one. */
static int read_pictures(const struct model *m, struct batch *b, const struct samples *s, size_t first, struct error *err) {
    const size_t side = (size_t)m->image_size, size = 3 * side * side;
    int bad = b->n_samples;
    if (!b->n_images) return 0;
    b->pixels = memory_take((size_t)b->n_images * size, sizeof *b->pixels);
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < b->n_samples; i++) {
        struct error why;
        if (b->picture[i] < 0 || !read_picture(m, s->at[first + (size_t)i].image, b->pixels + (size_t)b->picture[i] * size, &why)) continue;
#pragma omp critical(read_pictures)
        if (i < bad) {
            bad = i;
            *err = why;
        }
    }
    if (bad < b->n_samples) return error_context(err, "%s, line %ld", s->path, s->at[first + (size_t)bad].line);
    return 0;
}

static int check_prompt(const struct model *m, const struct prompt *p, struct error *err) {
    if (p->count > m->max_positions)
        return fail(err, "the sample has %d tokens, the model's max_position_embeddings is %d; shorten it", p->count, m->max_positions);
    for (int i = 0; i < p->count; i++)
        if (p->ids[i] != IMAGE_TOKEN && (p->ids[i] < 0 || p->ids[i] >= m->vocab))
            return fail(err, "the tokenizer gives token id %d, but the model has embeddings for %d", p->ids[i], m->vocab);
    return 0;
}

/* Appends the prompt of sample i; a bare tower has none. */
static int append(const struct model *m, struct batch *b, const struct sample *s, int i, size_t *capacity, bool with_answer,
                  struct error *err) {
    struct prompt p = {0};
    int status = -1;
    b->picture[i] = s->image ? b->n_images++ : -1;
    if (s->image && !m->tower) return fail(err, "the sample has a picture, but the model at %s has no vision tower", m->dir);
    if (!m->llm) return s->image ? 0 : fail(err, "the sample has no picture, and %s is a vision tower alone", m->dir);
    if (prompt_build(&p, m->tokenizer, m->template, s, m->n_image_rows, with_answer, err) || check_prompt(m, &p, err)) goto cleanup;
    const size_t old = (size_t)b->n_tokens, total = old + (size_t)p.count;
    if (total > *capacity) {
        *capacity = total * 2;
        b->ids = memory_grow(b->ids, *capacity, sizeof *b->ids);
        b->source = memory_grow(b->source, *capacity, sizeof *b->source);
        b->position = memory_grow(b->position, *capacity, sizeof *b->position);
        b->kinds = memory_grow(b->kinds, *capacity, sizeof *b->kinds);
    }
    int row = b->picture[i] * m->n_image_rows;
    for (int t = 0; t < p.count; t++) {
        const size_t at = old + (size_t)t;
        b->ids[at] = p.ids[t];
        b->kinds[at] = p.kinds[t];
        b->position[at] = t;
        b->source[at] = p.ids[t] == IMAGE_TOKEN ? -1 - row++ : p.ids[t];
    }
    b->n_tokens = (int)total;
    b->longest = p.count > b->longest ? p.count : b->longest;
    status = 0;
cleanup:
    prompt_free(&p);
    return status;
}

int model_batch(const struct model *m, struct batch *b, const struct samples *s, size_t first, size_t n, bool with_answer,
                struct error *err) {
    size_t capacity = 0;
    memset(b, 0, sizeof *b);
    b->n_samples = (int)n;
    b->cu_seqlens = memory_take(n + 1, sizeof *b->cu_seqlens);
    b->sample = memory_take(n, sizeof *b->sample);
    b->picture = memory_take(n, sizeof *b->picture);
    for (size_t i = 0; i < n; i++) {
        const struct sample *line = &s->at[first + i];
        b->sample[i] = (long)(first + i);
        if (append(m, b, line, (int)i, &capacity, with_answer, err)) {
            if (line->line > 0) /* 0: from the command line */
                error_context(err, "%s, line %ld", s->path, line->line);
            goto failed;
        }
        b->cu_seqlens[i + 1] = b->n_tokens;
    }
    if (read_pictures(m, b, s, first, err)) goto failed;
    return 0;
failed:
    batch_free(b);
    return -1;
}
