/* tokenizer_internal.h - the parts of a byte-level BPE tokenizer; see tokenizer.h for what they do together. */
#ifndef HOST_TOKENIZER_INTERNAL_H
#define HOST_TOKENIZER_INTERNAL_H
#define PCRE2_CODE_UNIT_WIDTH 8
#include "host/tokenizer.h"
#include "host/utf8.h"
#include <pcre2.h>
#include <stdint.h>

enum { MAX_STAGES = 8, MAX_SPECIAL = 64 };

struct added_token {
    char *content;
    size_t bytes;
    int id;
    bool special, lstrip, rstrip, normalized;
};
struct merge { /* slot of the merge table; key: left id << 32 | right id; rank -1: empty */
    uint64_t key;
    int rank, id;
};
struct tokenizer {
    char *path;    /* of tokenizer.json, for messages */
    char **pieces; /* by id, NULL where the vocabulary has a gap */
    bool *special; /* by id */
    int vocab;     /* highest id + 1 */
    int *slots;    /* piece -> id, open addressing, -1 empty */
    size_t n_slots;
    struct merge *merges;
    size_t n_merge_slots; /* a power of two */
    bool ignore_merges, add_prefix_space;
    int unknown;               /* id for bytes outside the vocabulary, -1: they are dropped */
    int byte_id[256];          /* id of the symbol of one byte, -1: none */
    uint16_t byte_char[256];   /* GPT-2's table: the code point that stands for a byte */
    int16_t char_byte[512];    /* and back, -1: none */
    struct added_token *added; /* normalized == false first; among those the longer first */
    int n_added, n_raw;        /* all; those with normalized == false */
    bool added_start[256];     /* bytes that some added token begins with */
    pcre2_code *stages[MAX_STAGES];
    int n_stages;
    int prefix[MAX_SPECIAL], suffix[MAX_SPECIAL], n_prefix, n_suffix; /* what add_special puts before and after */
    char *chat_template;
};
/* tokenizer.c */
int tokenizer_find(const struct tokenizer *tok, const char *piece, size_t bytes);
/* bpe.c: scratch memory of one encode call, and the merging of one piece of text. */
struct bpe_symbol {
    int id, prev, next, start; /* start: byte of the piece */
};
struct bpe_candidate {
    int rank, at, left, right, id;
};
struct bpe {
    struct bpe_symbol *symbols;
    struct bpe_candidate *heap;
    char *spelled; /* the piece in byte-level characters */
    size_t capacity, n_heap;
};
void bpe_free(struct bpe *b);
/* Appends the ids of one piece; starts, unless NULL, gets base + the byte that each begins at. */
void bpe_piece(const struct tokenizer *tok, struct bpe *b, const char *piece, size_t bytes, long base, struct token_list *out,
               struct token_list *starts);
void bpe_table_build(struct tokenizer *tok, size_t n_merges); /* empty table with room for n_merges */
void bpe_table_put(struct tokenizer *tok, int left, int right, int rank, int id);
/* tokenizer_text.c: tokenizer_encode without what add_special adds; starts, unless NULL, gets the byte each token begins at. */
int tokenizer_encode_starts(const struct tokenizer *tok, const char *text, size_t bytes, struct token_list *out, struct token_list *starts,
                            struct error *err);
#endif
