/* generate.c - greedy generation with a KV cache for all samples of a batch: one prefill over the packed prompts, then one row a
 * sample and step; finished samples leave the step. And prompts whose beginning is run once (prefix.h). */
#include "host/file.h"
#include "kernels/argmax.h"
#include "models/prefix.h"
#include "models/state.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct prefix {
    struct model *m;
    int S, max_new;
    struct batch rest;       /* what is run every time; whole: the caller's arrays, else owned */
    bool whole;              /* nothing is left out */
    const act_t *image_rows; /* of the batch, NULL without pictures */
    struct kv_cache cache;
    int *cache_row; /* (S): where each sample's keys begin */
    int *shared;    /* (S): keys that are there already */
};
struct generation {
    struct prefix *p;
    int *ids;      /* (S, max_new) */
    int *lengths;  /* (S) */
    bool *stopped; /* (S) */
    int *known;    /* (S): keys in the cache */
};

static bool is_eos(const struct model *m, int id) {
    for (int i = 0; i < m->n_eos; i++)
        if (m->eos[i] == id) return true;
    return false;
}

static int open_cache(struct prefix *p, const struct batch *b, struct error *err) {
    const struct llama *llm = p->m->llm;
    size_t rows = 0;
    for (int i = 0; i < p->S; i++) {
        p->cache_row[i] = (int)rows;
        rows += (size_t)(b->cu_seqlens[i + 1] - b->cu_seqlens[i]) + (size_t)p->max_new;
    }
    if (rows > INT_MAX) return fail(err, "a key-value cache of %zu tokens is too long; use a smaller --batch or fewer new tokens", rows);
    const size_t count = (size_t)llm->layers * rows * (size_t)llm->config.G * (size_t)llm->config.D;
    if (buffer_reserve(&p->m->state->cache, p->m->dev, 2 * count * sizeof(act_t), "the key-value cache", err)) return -1;
    p->cache.k = p->m->state->cache.data;
    p->cache.v = p->cache.k + count;
    p->cache.rows = rows;
    return 0;
}

/* One pass over b (prompts or parts of them, or one new token a sample), keys appended to the cache; *logits: (b->n_samples, V) on the
 * device, after each sample's last row. member[i]: which sample of the prefix b's i-th is; known (S) grows by what was run. */
static int step(struct prefix *p, const struct batch *b, const int *member, int *known, const struct probe *probes, int n_probes,
                real_t **logits, int **argmax, struct error *err) {
    struct model *m = p->m;
    const struct probes set = {probes, n_probes, b};
    const int S = b->n_samples;
    struct llama_rows rows = {.image_rows = p->image_rows, .cache = &p->cache};
    int *k_start = memory_take(3 * (size_t)S, sizeof *k_start), *k_length = k_start + S, *store_row = k_length + S;
    for (int i = 0; i < S; i++) {
        const int s = member[i];
        k_start[i] = p->cache_row[s];
        store_row[i] = p->cache_row[s] + known[s];
        known[s] += b->cu_seqlens[i + 1] - b->cu_seqlens[i];
        k_length[i] = known[s];
    }
    p->cache.q_start = b->cu_seqlens;
    p->cache.store_row = store_row;
    const int status = model_upload_rows(m, &rows, b, k_start, k_length, err) || model_logits(m, S, logits, argmax, err) ||
                       llama_forward(m->llm, m->dev, &rows, &set, *logits, err);
    free(k_start);
    return status ? -1 : 0;
}

/* ---- prompts in two parts ---- */
static void batch_room(struct batch *b, size_t samples, size_t tokens) {
    memset(b, 0, sizeof *b);
    b->cu_seqlens = memory_take(samples + 1, sizeof *b->cu_seqlens);
    b->ids = memory_take(tokens, sizeof *b->ids);
    b->source = memory_take(tokens, sizeof *b->source);
    b->position = memory_take(tokens, sizeof *b->position);
    b->kinds = memory_take(tokens, sizeof *b->kinds);
    b->sample = memory_take(samples, sizeof *b->sample);
    b->picture = memory_take(samples, sizeof *b->picture);
}

/* The rows of b with part[t] == which, of the samples that have any; member [out] says whose they are. */
static void cut(struct batch *out, int *member, const struct batch *b, const uint8_t *part, int which) {
    batch_room(out, (size_t)b->n_samples, (size_t)b->n_tokens);
    for (int s = 0; s < b->n_samples; s++) {
        const int begin = out->n_tokens;
        for (int t = b->cu_seqlens[s]; t < b->cu_seqlens[s + 1]; t++) {
            if (part[t] != which) continue;
            const int at = out->n_tokens++;
            out->ids[at] = b->ids[t];
            out->source[at] = b->source[t];
            out->position[at] = b->position[t];
            out->kinds[at] = b->kinds[t];
        }
        const int length = out->n_tokens - begin, i = out->n_samples;
        if (!length) continue;
        out->n_samples++;
        out->cu_seqlens[i + 1] = out->n_tokens;
        out->longest = length > out->longest ? length : out->longest;
        out->sample[i] = b->sample[s];
        out->picture[i] = -1;
        member[i] = s;
    }
}

/* Everything up to the last image rows, once; what lies behind stays for later. */
static int run_shared(struct prefix *p, const struct batch *b, struct error *err) {
    struct batch head = {0};
    uint8_t *after = memory_take((size_t)b->n_tokens, sizeof *after);
    int *member = memory_take((size_t)p->S, sizeof *member), *argmax, status = 0;
    real_t *logits;
    batch_after_image(b, after);
    for (int s = 0; s < p->S; s++) p->whole = p->whole || !after[b->cu_seqlens[s + 1] - 1];
    if (!p->whole) {
        cut(&p->rest, member, b, after, 1);
        cut(&head, member, b, after, 0);
        if (head.n_samples) status = step(p, &head, member, p->shared, NULL, 0, &logits, &argmax, err);
        batch_free(&head);
    }
    free(after);
    free(member);
    return status;
}

static int open_prefix(struct prefix **out, struct model *m, const struct batch *b, bool keys, int max_new, const struct probe *probes,
                       int n_probes, struct error *err) {
    const struct probes set = {probes, n_probes, b};
    struct prefix *p = *out = memory_take(1, sizeof *p);
    p->m = m, p->S = b->n_samples, p->max_new = max_new;
    p->whole = !keys;
    p->cache_row = memory_take((size_t)p->S, sizeof *p->cache_row);
    p->shared = memory_take((size_t)p->S, sizeof *p->shared);
    int status = 0;
    if (!m->llm || !m->llm->head) status = fail(err, "%s: generating needs a language model with all its layers", m->dir);
    if (status == 0 && b->longest + max_new > m->max_positions)
        log_note("%s: %d prompt tokens and %d new ones pass max_position_embeddings %d", m->dir, b->longest, max_new, m->max_positions);
    if (status == 0)
        status = model_image_rows(m, b, &set, true, &p->image_rows, err) ||
                 llama_reserve_positions(m->llm, m->dev, b->longest + max_new, err) || open_cache(p, b, err) ||
                 (keys && run_shared(p, b, err));
    if (p->whole) p->rest = *b;
    if (!status) return 0;
    prefix_close(p);
    *out = NULL;
    return -1;
}

int prefix_open(struct prefix **p, struct model *m, const struct batch *b, bool keys, int max_new, struct error *err) {
    return open_prefix(p, m, b, keys, max_new, NULL, 0, err);
}

void prefix_close(struct prefix *p) {
    if (!p) return;
    if (!p->whole) batch_free(&p->rest);
    free(p->cache_row);
    free(p->shared);
    free(p);
}

static int *everyone(const struct prefix *p) {
    int *member = memory_take((size_t)p->S, sizeof *member);
    for (int s = 0; s < p->S; s++) member[s] = s;
    return member;
}

int prefix_forward(struct prefix *p, const struct probe *probes, int n_probes, float *last_logits, struct error *err) {
    int *member = everyone(p), *known = memory_take((size_t)p->S, sizeof *known), *argmax;
    real_t *logits;
    memcpy(known, p->shared, (size_t)p->S * sizeof *known);
    const int status = step(p, &p->rest, member, known, probes, n_probes, &logits, &argmax, err);
    if (!status) device_download(p->m->dev, last_logits, logits, (size_t)p->S * (size_t)p->m->vocab * sizeof *last_logits);
    free(member);
    free(known);
    return status;
}

/* ---- generation ---- */

/* The new tokens of the samples still going, one row each, as a batch of kind answer. Its arrays have room for S samples. */
static void step_batch(struct batch *b, int *member, const struct generation *g) {
    b->n_samples = b->n_tokens = 0;
    b->longest = 1;
    for (int s = 0; s < g->p->S; s++) {
        if (g->stopped[s]) continue;
        const int i = b->n_samples++;
        member[i] = s;
        b->cu_seqlens[i] = i;
        b->cu_seqlens[i + 1] = i + 1;
        b->ids[i] = b->source[i] = g->ids[(size_t)s * (size_t)g->p->max_new + (size_t)g->lengths[s] - 1];
        b->position[i] = g->known[s];
        b->kinds[i] = KIND_ANSWER;
        b->sample[i] = g->p->rest.sample[s];
        b->picture[i] = -1;
    }
    b->n_tokens = b->n_samples;
}

static int run(struct generation *g, const struct probe *probes, int n_probes, struct error *err) {
    struct prefix *p = g->p;
    struct batch b;
    int status = 0, *argmax;
    real_t *logits;
    int *member = everyone(p), *next = memory_take((size_t)p->S, sizeof *next);
    batch_room(&b, (size_t)p->S, (size_t)p->S);
    const struct batch *now = &p->rest;
    for (int t = 0; t < p->max_new && status == 0; t++) {
        if (t > 0) {
            step_batch(&b, member, g);
            now = &b;
        }
        if (now->n_samples == 0) break;
        status = step(p, now, member, g->known, probes, n_probes, &logits, &argmax, err);
        if (status) break;
        argmax_rows(p->m->dev, argmax, logits, now->n_samples, p->m->vocab);
        device_download(p->m->dev, next, argmax, (size_t)now->n_samples * sizeof *next);
        for (int i = 0; i < now->n_samples; i++) {
            const int s = member[i];
            g->ids[(size_t)s * (size_t)p->max_new + (size_t)g->lengths[s]++] = next[i];
            g->stopped[s] = is_eos(p->m, next[i]);
        }
    }
    batch_free(&b);
    free(member);
    free(next);
    return status;
}

int prefix_generate(struct prefix *p, const struct probe *probes, int n_probes, int **ids, int **lengths, bool **stopped,
                    struct error *err) {
    const size_t S = (size_t)p->S;
    struct generation g = {.p = p};
    g.ids = memory_take(S * (size_t)p->max_new, sizeof *g.ids);
    g.lengths = memory_take(S, sizeof *g.lengths);
    g.stopped = memory_take(S, sizeof *g.stopped);
    g.known = memory_take(S, sizeof *g.known);
    memcpy(g.known, p->shared, S * sizeof *g.known);
    const int status = run(&g, probes, n_probes, err);
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

int model_generate(struct model *m, const struct batch *b, int max_new, const struct probe *probes, int n_probes, int **ids, int **lengths,
                   bool **stopped, struct error *err) {
    struct prefix *p;
    if (open_prefix(&p, m, b, false, max_new, probes, n_probes, err)) return -1;
    const int status = prefix_generate(p, probes, n_probes, ids, lengths, stopped, err);
    prefix_close(p);
    return status;
}
