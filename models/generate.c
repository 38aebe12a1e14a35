/* generate.c - greedy generation with a KV cache for all samples of a batch: one prefill over the packed prompts, then one row a
 * sample and step; finished samples leave the step. */
#include "host/file.h"
#include "kernels/argmax.h"
#include "models/state.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct generation {
    struct model *m;
    int S, max_new;
    int *ids;      /* (S, max_new) */
    int *lengths;  /* (S) */
    bool *stopped; /* (S) */
    struct kv_cache cache;
    int *cache_row; /* (S): where each sample's keys begin */
    int *known;     /* (S): keys in the cache */
};

static bool is_eos(const struct model *m, int id) {
    for (int i = 0; i < m->n_eos; i++)
        if (m->eos[i] == id) return true;
    return false;
}

static int open_cache(struct generation *g, const struct batch *b, struct error *err) {
    const struct llama *llm = g->m->llm;
    size_t rows = 0;
    for (int i = 0; i < g->S; i++) {
        g->cache_row[i] = (int)rows;
        rows += (size_t)(b->cu_seqlens[i + 1] - b->cu_seqlens[i]) + (size_t)g->max_new;
    }
    if (rows > INT_MAX) return fail(err, "a key-value cache of %zu tokens is too long; use a smaller --batch or fewer new tokens", rows);
    const size_t count = (size_t)llm->layers * rows * (size_t)llm->config.G * (size_t)llm->config.D;
    if (buffer_reserve(&g->m->state->cache, g->m->dev, 2 * count * sizeof(act_t), "the key-value cache", err)) return -1;
    g->cache.k = g->m->state->cache.data;
    g->cache.v = g->cache.k + count;
    g->cache.rows = rows;
    return 0;
}

/* One pass over b (the prompts, or one new token a sample), keys appended to the cache; next [out] (b->n_samples) the argmax
 * after each sample's last row. member[i]: which sample of the generation b's i-th is. */
static int step(struct generation *g, const struct batch *b, const int *member, const struct probe *probes, int n_probes, int *next,
                struct error *err) {
    struct model *m = g->m;
    const struct probes set = {probes, n_probes, b};
    const int S = b->n_samples;
    struct llama_rows rows = {0};
    real_t *logits;
    int *argmax, status = -1;
    int *k_start = memory_take(3 * (size_t)S, sizeof *k_start), *k_length = k_start + S, *store_row = k_length + S;
    for (int i = 0; i < S; i++) {
        const int s = member[i];
        k_start[i] = g->cache_row[s];
        store_row[i] = g->cache_row[s] + g->known[s];
        g->known[s] += b->cu_seqlens[i + 1] - b->cu_seqlens[i];
        k_length[i] = g->known[s];
    }
    g->cache.q_start = b->cu_seqlens;
    g->cache.store_row = store_row;
    rows.cache = &g->cache;
    if (model_image_rows(m, b, &set, true, &rows.image_rows, err) || model_upload_rows(m, &rows, b, k_start, k_length, err) ||
        model_logits(m, S, &logits, &argmax, err) || llama_forward(m->llm, m->dev, &rows, &set, logits, err))
        goto cleanup;
    argmax_rows(m->dev, argmax, logits, S, m->vocab);
    device_download(m->dev, next, argmax, (size_t)S * sizeof *next);
    status = 0;
cleanup:
    free(k_start);
    return status;
}

/* The new tokens of the samples still going, one row each, as a batch of kind answer. Its arrays have room for S samples. */
static void step_batch(struct batch *b, int *member, const struct generation *g, const struct batch *prompts) {
    b->n_samples = b->n_tokens = 0;
    b->longest = 1;
    for (int s = 0; s < g->S; s++) {
        if (g->stopped[s]) continue;
        const int i = b->n_samples++;
        member[i] = s;
        b->cu_seqlens[i] = i;
        b->cu_seqlens[i + 1] = i + 1;
        b->ids[i] = b->source[i] = g->ids[(size_t)s * (size_t)g->max_new + (size_t)g->lengths[s] - 1];
        b->position[i] = g->known[s];
        b->kinds[i] = KIND_ANSWER;
        b->sample[i] = prompts->sample[s];
        b->picture[i] = -1;
    }
    b->n_tokens = b->n_samples;
}

static void step_batch_open(struct batch *b, size_t S) {
    memset(b, 0, sizeof *b);
    b->cu_seqlens = memory_take(S + 1, sizeof *b->cu_seqlens);
    b->ids = memory_take(S, sizeof *b->ids);
    b->source = memory_take(S, sizeof *b->source);
    b->position = memory_take(S, sizeof *b->position);
    b->kinds = memory_take(S, sizeof *b->kinds);
    b->sample = memory_take(S, sizeof *b->sample);
    b->picture = memory_take(S, sizeof *b->picture);
}

static int run(struct generation *g, const struct batch *prompts, const struct probe *probes, int n_probes, struct error *err) {
    struct batch b = {0};
    int status = -1;
    int *member = memory_take((size_t)g->S, sizeof *member), *next = memory_take((size_t)g->S, sizeof *next);
    step_batch_open(&b, (size_t)g->S);
    for (int s = 0; s < g->S; s++) member[s] = s;
    const struct batch *now = prompts;
    for (int t = 0; t < g->max_new; t++) {
        if (t > 0) {
            step_batch(&b, member, g, prompts);
            now = &b;
        }
        if (now->n_samples == 0) break;
        if (step(g, now, member, probes, n_probes, next, err)) goto cleanup;
        for (int i = 0; i < now->n_samples; i++) {
            const int s = member[i];
            g->ids[(size_t)s * (size_t)g->max_new + (size_t)g->lengths[s]++] = next[i];
            g->stopped[s] = is_eos(g->m, next[i]);
        }
    }
    status = 0;
cleanup:
    batch_free(&b);
    free(member);
    free(next);
    return status;
}

int model_generate(struct model *m, const struct batch *b, int max_new, const struct probe *probes, int n_probes, int **ids, int **lengths,
                   bool **stopped, struct error *err) {
    const size_t S = (size_t)b->n_samples;
    struct generation g = {.m = m, .S = b->n_samples, .max_new = max_new};
    int status = -1;
    g.ids = memory_take(S * (size_t)max_new, sizeof *g.ids);
    g.lengths = memory_take(S, sizeof *g.lengths);
    g.stopped = memory_take(S, sizeof *g.stopped);
    g.cache_row = memory_take(S, sizeof *g.cache_row);
    g.known = memory_take(S, sizeof *g.known);
    if (!m->llm || !m->llm->head) {
        fail(err, "%s: generating needs a language model with all its layers", m->dir);
        goto cleanup;
    }
    if (b->longest + max_new > m->max_positions)
        log_note("%s: %d prompt tokens and %d new ones pass max_position_embeddings %d", m->dir, b->longest, max_new, m->max_positions);
    if (llama_reserve_positions(m->llm, m->dev, b->longest + max_new, err) || open_cache(&g, b, err) || run(&g, b, probes, n_probes, err))
        goto cleanup;
    status = 0;
cleanup:
    free(g.cache_row);
    free(g.known);
    if (status) {
        free(g.ids);
        free(g.lengths);
        free(g.stopped);
        return -1;
    }
    *ids = g.ids;
    *lengths = g.lengths;
    *stopped = g.stopped;
    return 0;
}
