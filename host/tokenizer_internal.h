/* tokenizer_internal.h - the parts of a BPE tokenizer, byte-level or SentencePiece's; see tokenizer.h for what they do together. */
#ifndef HOST_TOKENIZER_INTERNAL_H
#define HOST_TOKENIZER_INTERNAL_H
#define PCRE2_CODE_UNIT_WIDTH 8
#include "host/tokenizer.h"
#include "host/utf8.h"
#include <jansson.h>
#include <pcre2.h>
#include <stdatomic.h>
#include <stdint.h>

enum { MAX_STAGES = 8, MAX_SPECIAL = 64, MAX_REWRITES = 8 };
#define BLANK_PIECE "\xe2\x96\x81" /* U+2581, SentencePiece's spelling of a blank */

struct added_token {
    char *content, *match; /* match: what is looked for, the content as the normalizer writes it for normalized ones */
    size_t bytes;          /* of match */
    int id;
    bool special, lstrip, rstrip, normalized;
};
struct merge { /* slot of the merge table; key: left id << 32 | right id; rank -1: empty */
    uint64_t key;
    int rank, id;
};
struct rewrite { /* every `from` becomes `to`; from NULL: `to` is put before a text that is not empty */
    char *from, *to;
};
enum prefix_rule { PREFIX_ALWAYS, PREFIX_FIRST, PREFIX_NEVER }; /* FIRST: only where the text itself begins */
enum { CLASS_BLANK = 128, CLASS_OTHER, N_CLASSES };             /* of characters: ASCII one by one, U+2581, the rest */
static inline int character_class(unsigned c) { return c < 128 ? (int)c : c == 0x2581 ? CLASS_BLANK : CLASS_OTHER; }
struct scratch;

struct tokenizer {
    char *path;    /* of tokenizer.json or tokenizer.model, for messages */
    char **pieces; /* by id, NULL where the vocabulary has a gap */
    bool *special; /* by id */
    int vocab;     /* highest id + 1 */
    int *slots;    /* piece -> id, open addressing, -1 empty */
    size_t n_slots;
    uint64_t text_key, pair_key; /* of the two hashes; random, so that no file can choose pieces that share a slot */
    struct added_token *added;   /* normalized == false first; among those the longer first */
    int n_added, n_raw;          /* all; those with normalized == false */
    uint8_t added_start[8192];   /* a bit for every two bytes that some added token may begin with */

    /* text to pieces: rewrites (the normalizer), then the prefix, then the patterns or the blanks */
    struct rewrite rewrites[MAX_REWRITES];
    int n_rewrites;
    enum prefix_rule prepend_rule; /* of a rewrite without `from` */
    char *prefix_text;             /* " " (byte-level) or U+2581 (Metaspace), put before a text that does not begin with it; NULL: none */
    enum prefix_rule prefix_rule;
    bool metaspace, split_blanks;        /* blanks become prefix_text; a piece begins at every one */
    bool words;                          /* `together` holds */
    bool together[N_CLASSES][N_CLASSES]; /* whether some merge joins a character of one class with a following one of another */
    pcre2_code *stages[MAX_STAGES];
    int n_stages;

    /* pieces to ids */
    bool byte_level; /* bytes are spelled in GPT-2's table; else characters, with byte_fallback for unknown ones */
    bool ignore_merges, byte_fallback, fuse_unknown;
    struct merge *merges;
    size_t n_merge_slots;    /* a power of two */
    int unknown;             /* id for what is outside the vocabulary, -1: it is dropped */
    int ascii_id[128];       /* id of a character of its own, -1: none */
    int byte_id[256];        /* id of the symbol of one byte: in GPT-2's table, or <0x..>; -1: none */
    uint16_t byte_char[256]; /* GPT-2's table: the code point that stands for a byte */
    int16_t char_byte[512];  /* and back, -1: none */
    _Atomic(struct scratch *) spare;

    /* ids to text, unless byte_level */
    struct rewrite spelled_blank; /* in every piece; from NULL: nothing */
    bool decode_bytes, drop_first_blanks;
    int strip_start, strip_stop;

    int prefix[MAX_SPECIAL], suffix[MAX_SPECIAL], n_prefix, n_suffix; /* what add_special puts before and after */
    char *chat_template;
};

/* tokenizer.c: the vocabulary, filled by the two readers. */
void vocabulary_begin(struct tokenizer *tok, size_t n_pieces, size_t limit); /* ids will be below limit */
int vocabulary_put(struct tokenizer *tok, const char *piece, long long id, long long limit, struct error *err);
int tokenizer_find(const struct tokenizer *tok, const char *piece, size_t bytes);
/* added: the list of tokenizer.json. The library numbers tokens that the vocabulary does not hold on from `next`; next < 0: as written.
 * "as_is": a normalized token that is spelled as the normalizer leaves it. */
int added_read(struct tokenizer *tok, const json_t *list, int next, size_t limit, struct error *err);
void byte_table_build(struct tokenizer *tok);     /* GPT-2's */
void fallback_table_build(struct tokenizer *tok); /* <0x00> ..., and the ASCII characters */
void words_find(struct tokenizer *tok);           /* after the merges: words and together */
/* tokenizer_json.c, tokenizer_model.c */
int tokenizer_json_read(struct tokenizer *tok, struct error *err);
int tokenizer_model_read(struct tokenizer *tok, const char *dir, struct error *err);

/* bpe.c: the merging of one piece of text, and words that were merged before. */
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
    struct word *words; /* NULL until the first one */
    char *keys;
    struct token_start *tokens;
    size_t n_words, n_keys, n_tokens;
};
void bpe_free(struct bpe *b);
/* Appends the ids of one piece; starts, unless NULL, gets base + the byte that each begins at. */
void bpe_piece(const struct tokenizer *tok, struct bpe *b, const char *piece, size_t bytes, long base, struct token_list *out,
               struct token_list *starts);
void bpe_table_build(struct tokenizer *tok, size_t n_merges); /* empty table with room for n_merges */
void bpe_table_put(struct tokenizer *tok, int left, int right, int rank, int id);

/* tokenizer_text.c: tokenizer_encode without what add_special adds; starts, unless NULL, gets the byte each token begins at. */
enum text_place {
    TEXT_BEGINS,      /* all prefixes go before it */
    TEXT_AFTER_TOKEN, /* follows a special token: no prefix where the rule is FIRST */
    TEXT_GOES_ON      /* follows text: no prefix */
};
int tokenizer_encode_starts(const struct tokenizer *tok, const char *text, size_t bytes, enum text_place place, struct token_list *out,
                            struct token_list *starts, struct error *err);
char *tokenizer_rewrite(const struct tokenizer *tok, const char *text); /* what the normalizer makes of it; malloced */
void scratch_free(struct scratch *s);
#endif
