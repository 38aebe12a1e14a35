/* bpe.c - byte pair encoding of one piece of text: the pair with the lowest rank is merged first, the leftmost of equals;
 * a linked list of symbols and a heap of pairs, O(n log n). Short pieces are remembered with their tokens: text repeats its words. */
#include "host/file.h"
#include "host/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>

/* ---- the table of merges ---- */
void bpe_table_build(struct tokenizer *tok, size_t n_merges) {
    tok->n_merge_slots = 16;
    while (tok->n_merge_slots < 2 * n_merges) tok->n_merge_slots *= 2;
    tok->merges = memory_take(tok->n_merge_slots, sizeof *tok->merges);
    for (size_t i = 0; i < tok->n_merge_slots; i++) tok->merges[i].rank = -1;
}

static struct merge *slot(const struct tokenizer *tok, int left, int right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    /* the product's upper bits: its lower ones would know nothing of left */
    size_t i = (size_t)((key * tok->pair_key >> 32) * tok->n_merge_slots >> 32);
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

/* One symbol for every byte; spelled in GPT-2's table, bytes are characters of the vocabulary. */
static int symbols_of_bytes(const struct tokenizer *tok, struct bpe *b, const char *piece, size_t bytes) {
    int n = 0;
    bool after_unknown = false;
    for (size_t i = 0; i < bytes; i++) {
        int id = tok->byte_id[(unsigned char)piece[i]];
        bool unknown = id < 0;
        if (unknown && (tok->unknown < 0 || (after_unknown && tok->fuse_unknown))) continue;
        b->symbols[n] = (struct bpe_symbol){unknown ? tok->unknown : id, n - 1, n + 1, (int)i};
        after_unknown = unknown;
        n++;
    }
    return n;
}

static bool has_bytes(const struct tokenizer *tok, const char *c, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (tok->byte_id[(unsigned char)c[i]] < 0) return false;
    return tok->byte_fallback;
}

/* One symbol for every character, or for every byte of one that the vocabulary lacks. As in the library, an unknown character is
 * written when the next known one comes, after bytes that stand between. */
static int symbols_of_characters(const struct tokenizer *tok, struct bpe *b, const char *piece, size_t bytes) {
    int n = 0, waiting = -1; /* start of the unknown one not written yet */
    for (size_t i = 0, size; i < bytes; i += size) {
        unsigned c;
        size = utf8_get(piece + i, bytes - i, &c);
        int id = c < 128 ? tok->ascii_id[c] : tokenizer_find(tok, piece + i, size);
        if (id < 0 && has_bytes(tok, piece + i, size)) {
            for (size_t k = 0; k < size; k++, n++)
                b->symbols[n] = (struct bpe_symbol){tok->byte_id[(unsigned char)piece[i + k]], n - 1, n + 1, (int)i};
            continue;
        }
        if (waiting >= 0 && (id >= 0 || !tok->fuse_unknown)) {
            b->symbols[n] = (struct bpe_symbol){tok->unknown, n - 1, n + 1, waiting};
            n++;
            waiting = -1;
        }
        if (id >= 0) {
            b->symbols[n] = (struct bpe_symbol){id, n - 1, n + 1, (int)i};
            n++;
        } else if (waiting < 0 && tok->unknown >= 0) {
            waiting = (int)i;
        }
    }
    if (waiting >= 0) {
        b->symbols[n] = (struct bpe_symbol){tok->unknown, n - 1, n + 1, waiting};
        n++;
    }
    return n;
}

/* The piece as one token of the vocabulary, -1: it is none. */
static int whole(const struct tokenizer *tok, struct bpe *b, const char *piece, size_t bytes) {
    if (!tok->byte_level) return tokenizer_find(tok, piece, bytes);
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) n += (size_t)utf8_put(b->spelled + n, tok->byte_char[(unsigned char)piece[i]]);
    return tokenizer_find(tok, b->spelled, n);
}

/* Leaves the tokens in the list that begins at symbols[0]; false: there are none. */
static bool merge_piece(const struct tokenizer *tok, struct bpe *b, const char *piece, size_t bytes) {
    reserve(b, bytes);
    int id = tok->ignore_merges ? whole(tok, b, piece, bytes) : -1;
    if (id >= 0) {
        b->symbols[0] = (struct bpe_symbol){id, -1, -1, 0};
        return true;
    }
    int n = tok->byte_level ? symbols_of_bytes(tok, b, piece, bytes) : symbols_of_characters(tok, b, piece, bytes);
    if (!n) return false;
    b->symbols[n - 1].next = -1;
    merge_all(tok, b, n);
    return true;
}

/* ---- words that were merged before ---- */
enum { WORD_SLOTS = 1 << 15, WORD_BYTES = 32, MAX_WORDS = WORD_SLOTS / 2 }; /* 3 MB at most; emptied when full */

struct token_start {
    int id, start;
};
struct word { /* its text in keys, its tokens in tokens; count 0: empty slot */
    uint32_t hash, key, bytes, first, count;
};

static uint32_t hash_word(const char *text, size_t bytes) {
    uint64_t h = bytes;
    for (; bytes >= 8; text += 8, bytes -= 8) {
        uint64_t v;
        memcpy(&v, text, 8);
        h = (h ^ v) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    uint64_t v = 0;
    memcpy(&v, text, bytes);
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32);
}

static struct word *word_slot(struct bpe *b, const char *piece, size_t bytes) {
    if (!b->words) {
        b->words = memory_take(WORD_SLOTS, sizeof *b->words);
        b->keys = memory_take(MAX_WORDS, WORD_BYTES);
        b->tokens = memory_take((size_t)MAX_WORDS * WORD_BYTES, sizeof *b->tokens);
    }
    uint32_t hash = hash_word(piece, bytes);
    for (size_t i = hash % WORD_SLOTS;; i = (i + 1) % WORD_SLOTS) {
        struct word *w = &b->words[i];
        if (!w->count) {
            w->hash = hash;
            return w;
        }
        if (w->hash == hash && w->bytes == bytes && !memcmp(b->keys + w->key, piece, bytes)) return w;
    }
}

static void remember(struct bpe *b, struct word *w, const char *piece, size_t bytes) {
    *w = (struct word){w->hash, (uint32_t)b->n_keys, (uint32_t)bytes, (uint32_t)b->n_tokens, 0};
    memcpy(b->keys + b->n_keys, piece, bytes);
    b->n_keys += bytes;
    for (int i = 0; i >= 0; i = b->symbols[i].next, w->count++)
        b->tokens[b->n_tokens++] = (struct token_start){b->symbols[i].id, b->symbols[i].start};
    b->n_words++;
}

void bpe_free(struct bpe *b) {
    free(b->symbols);
    free(b->heap);
    free(b->spelled);
    free(b->words);
    free(b->keys);
    free(b->tokens);
    *b = (struct bpe){0};
}

void bpe_piece(const struct tokenizer *tok, struct bpe *b, const char *piece, size_t bytes, long base, struct token_list *out,
               struct token_list *starts) {
    struct word *w = NULL;
    if (!bytes) return;
    if (bytes <= WORD_BYTES) {
        if (b->n_words == MAX_WORDS) {
            memset(b->words, 0, WORD_SLOTS * sizeof *b->words);
            b->n_words = b->n_keys = b->n_tokens = 0;
        }
        w = word_slot(b, piece, bytes);
    }
    if (!w || !w->count) {
        if (!merge_piece(tok, b, piece, bytes)) return;
        if (w) remember(b, w, piece, bytes);
    }
    if (w) {
        for (uint32_t i = w->first; i < w->first + w->count; i++) {
            token_list_push(out, b->tokens[i].id);
            if (starts) token_list_push(starts, (int)base + b->tokens[i].start);
        }
        return;
    }
    for (int i = 0; i >= 0; i = b->symbols[i].next) {
        token_list_push(out, b->symbols[i].id);
        if (starts) token_list_push(starts, (int)base + b->symbols[i].start);
    }
}
