/* bpe.c - byte pair encoding of one piece of text: the pair with the lowest rank is merged first, the leftmost of equals;
 * a linked list of symbols and a heap of pairs, O(n log n). */
#include "host/file.h"
#include "host/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>

/* ---- the table of merges ---- */
static size_t hash_pair(uint64_t key) { return (size_t)((key ^ key >> 31) * 0x9e3779b97f4a7c15u >> 20); }

void bpe_table_build(struct tokenizer *tok, size_t n_merges) {
    tok->n_merge_slots = 16;
    while (tok->n_merge_slots < 2 * n_merges) tok->n_merge_slots *= 2;
    tok->merges = memory_take(tok->n_merge_slots, sizeof *tok->merges);
    for (size_t i = 0; i < tok->n_merge_slots; i++) tok->merges[i].rank = -1;
}

static struct merge *slot(const struct tokenizer *tok, int left, int right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t i = hash_pair(key) & (tok->n_merge_slots - 1);
    while (tok->merges[i].rank >= 0 && tok->merges[i].key != key) i = (i + 1) & (tok->n_merge_slots - 1);
    return &tok->merges[i];
}

void bpe_table_put(struct tokenizer *tok, int left, int right, int rank, int id) {
    *slot(tok, left, right) = (struct merge){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank, id};
}

/* ---- the heap: lowest rank, then leftmost, on top ---- */
static bool before(const struct bpe_candidate *a, const struct bpe_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(struct bpe *b, struct bpe_candidate c) {
    size_t i = b->n_heap++;
    while (i && before(&c, &b->heap[(i - 1) / 2])) {
        b->heap[i] = b->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    b->heap[i] = c;
}

static struct bpe_candidate heap_pop(struct bpe *b) {
    struct bpe_candidate top = b->heap[0], last = b->heap[--b->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= b->n_heap) break;
        if (child + 1 < b->n_heap && before(&b->heap[child + 1], &b->heap[child])) child++;
        if (!before(&b->heap[child], &last)) break;
        b->heap[i] = b->heap[child];
        i = child;
    }
    b->heap[i] = last;
    return top;
}

static void propose(const struct tokenizer *tok, struct bpe *b, int at) {
    if (at < 0 || b->symbols[at].next < 0) return;
    int left = b->symbols[at].id, right = b->symbols[b->symbols[at].next].id;
    const struct merge *m = slot(tok, left, right);
    if (m->rank >= 0) heap_push(b, (struct bpe_candidate){m->rank, at, left, right, m->id});
}

static void merge_all(const struct tokenizer *tok, struct bpe *b, int n) {
    b->n_heap = 0;
    for (int i = 0; i + 1 < n; i++) propose(tok, b, i);
    while (b->n_heap) {
        struct bpe_candidate c = heap_pop(b);
        struct bpe_symbol *left = &b->symbols[c.at];
        if (left->id != c.left || left->next < 0 || b->symbols[left->next].id != c.right)
            continue; /* one of the two was merged away meanwhile */
        struct bpe_symbol *right = &b->symbols[left->next];
        left->id = c.id;
        right->id = -1;
        left->next = right->next;
        if (left->next >= 0) b->symbols[left->next].prev = c.at;
        propose(tok, b, left->prev);
        propose(tok, b, c.at);
    }
}

/* ---- one piece ---- */
static void reserve(struct bpe *b, size_t bytes) {
    if (bytes <= b->capacity) return;
    b->capacity = bytes + bytes / 2 + 64;
    b->symbols = memory_grow(b->symbols, b->capacity, sizeof *b->symbols);
    b->heap = memory_grow(b->heap, 3 * b->capacity, sizeof *b->heap); /* n - 1 at first, at most 2 more for each of n - 1 merges */
    b->spelled = memory_grow(b->spelled, 2 * b->capacity, 1);
}

void bpe_free(struct bpe *b) {
    free(b->symbols);
    free(b->heap);
    free(b->spelled);
    *b = (struct bpe){0};
}

void bpe_piece(const struct tokenizer *tok, struct bpe *b, const char *piece, size_t bytes, long base, struct token_list *out,
               struct token_list *starts) {
    reserve(b, bytes);
    if (tok->ignore_merges) {
        size_t n = 0;
        for (size_t i = 0; i < bytes; i++) n += (size_t)utf8_put(b->spelled + n, tok->byte_char[(unsigned char)piece[i]]);
        int id = tokenizer_find(tok, b->spelled, n);
        if (id >= 0) {
            token_list_push(out, id);
            if (starts) token_list_push(starts, (int)base);
            return;
        }
    }
    int n = 0;
    for (size_t i = 0; i < bytes; i++) {
        int id = tok->byte_id[(unsigned char)piece[i]];
        if (id < 0) id = tok->unknown;
        if (id < 0) continue;
        b->symbols[n] = (struct bpe_symbol){id, n - 1, n + 1, (int)i};
        n++;
    }
    if (!n) return;
    b->symbols[n - 1].next = -1;
    merge_all(tok, b, n);
    for (int i = 0; i >= 0; i = b->symbols[i].next) {
        token_list_push(out, b->symbols[i].id);
        if (starts) token_list_push(starts, (int)base + b->symbols[i].start);
    }
}
