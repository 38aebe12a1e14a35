/* tokenizer_text.c - text to ids and back. Encoding: added tokens are cut out of the raw text (leftmost, then longest); what
 * lies between goes through the split patterns one after the other; every piece is merged by bpe.c. */
#include "host/file.h"
#include "host/tokenizer_internal.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

void token_list_push(struct token_list *list, int id) {
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->ids = memory_grow(list->ids, list->capacity, sizeof *list->ids);
    }
    list->ids[list->count++] = id;
}

void token_list_free(struct token_list *list) {
    free(list->ids);
    *list = (struct token_list){0};
}

struct encoder {
    const struct tokenizer *tok;
    struct bpe bpe;
    struct token_list *out, *starts; /* starts: NULL when nobody asks */
    const char *text;                /* what starts count from */
    struct error *err;
    pcre2_match_data *match[MAX_STAGES];
};

static int split(struct encoder *e, int stage, const char *text, size_t bytes) {
    if (!bytes) return 0;
    if (stage == e->tok->n_stages) {
        bpe_piece(e->tok, &e->bpe, text, bytes, text - e->text, e->out, e->starts);
        return 0;
    }
    pcre2_code *re = e->tok->stages[stage];
    PCRE2_SIZE *found = pcre2_get_ovector_pointer(e->match[stage]);
    size_t gap = 0, at = 0; /* text from `gap` to the next match is a piece of its own */
    while (at < bytes) {
        int rc = pcre2_match(re, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, e->match[stage], NULL);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
            rc = pcre2_match(re, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, e->match[stage], NULL);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc < 0)
            return fail(e->err, "%s: its split pattern gave up on a text of %zu bytes (PCRE2 error %d); shorten the text", e->tok->path,
                        bytes, rc);
        size_t from = found[0], to = found[1];
        if (to <= from) { /* an empty match splits nothing: look on from the next character */
            unsigned c;
            at = from + (from < bytes ? utf8_get(text + from, bytes - from, &c) : 1);
            continue;
        }
        if (split(e, stage + 1, text + gap, from - gap) || split(e, stage + 1, text + from, to - from)) return -1;
        gap = at = to;
    }
    return split(e, stage + 1, text + gap, bytes - gap);
}

static int plain_text(struct encoder *e, const char *text, size_t bytes) {
    if (!bytes || !e->tok->add_prefix_space || *text == ' ') return split(e, 0, text, bytes);
    char *spaced = memory_take(bytes + 1, 1);
    *spaced = ' ';
    memcpy(spaced + 1, text, bytes);
    struct encoder inner = *e; /* its starts count from one byte before `text`: the blank, given to the first character */
    size_t first = e->starts ? e->starts->count : 0;
    inner.text = spaced;
    int rc = split(&inner, 0, spaced, bytes + 1);
    e->bpe = inner.bpe;
    for (size_t i = first; e->starts && i < e->starts->count; i++) e->starts->ids[i] += (int)(text - e->text) - (e->starts->ids[i] > 0);
    free(spaced);
    return rc;
}

/* ---- added tokens ---- */
static bool is_white(unsigned c) {
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static size_t white_before(const char *text, size_t end, size_t limit) {
    while (end > limit) {
        size_t start = end - 1;
        unsigned c;
        while (start > limit && ((unsigned char)text[start] & 0xc0) == 0x80) start--;
        utf8_get(text + start, end - start, &c);
        if (!is_white(c)) break;
        end = start;
    }
    return end;
}

static size_t white_after(const char *text, size_t start, size_t bytes) {
    while (start < bytes) {
        unsigned c;
        size_t n = utf8_get(text + start, bytes - start, &c);
        if (!is_white(c)) break;
        start += n;
    }
    return start;
}

static const struct added_token *added_at(const struct tokenizer *tok, int first, int last, const char *text, size_t left) {
    if (tok->added_start[(unsigned char)*text])
        for (int i = first; i < last; i++)
            if (tok->added[i].bytes <= left && !memcmp(tok->added[i].content, text, tok->added[i].bytes)) return &tok->added[i];
    return NULL;
}

/* pass 0 cuts out the tokens matched on raw text, pass 1 (between them) those marked `normalized`; without a normalizer both
 * see the same text, but the first kind wins wherever it matches. */
static int cut_added(struct encoder *e, int pass, const char *text, size_t bytes) {
    const struct tokenizer *tok = e->tok;
    if (pass == 2) return plain_text(e, text, bytes);
    int first = pass ? tok->n_raw : 0, last = pass ? tok->n_added : tok->n_raw;
    size_t done = 0;
    for (size_t i = 0; i < bytes && first < last;) {
        const struct added_token *a = added_at(tok, first, last, text + i, bytes - i);
        if (!a) {
            i++;
            continue;
        }
        size_t from = a->lstrip ? white_before(text, i, done) : i;
        i += a->bytes;
        if (from > done && cut_added(e, pass + 1, text + done, from - done)) return -1;
        token_list_push(e->out, a->id);
        if (e->starts) token_list_push(e->starts, (int)(text + from - e->text));
        done = i = a->rstrip ? white_after(text, i, bytes) : i;
    }
    return bytes > done ? cut_added(e, pass + 1, text + done, bytes - done) : 0;
}

int tokenizer_encode_starts(const struct tokenizer *tok, const char *text, size_t bytes, struct token_list *out, struct token_list *starts,
                            struct error *err) {
    size_t valid = utf8_valid(text, bytes);
    if (valid != bytes) return fail(err, "the text is not UTF-8: byte %zu (0x%02x) begins no character", valid, (unsigned char)text[valid]);
    if (bytes > INT_MAX / 4) return fail(err, "the text has %zu bytes, more than the %d that can be tokenised at once", bytes, INT_MAX / 4);
    struct encoder e = {.tok = tok, .out = out, .starts = starts, .text = text, .err = err};
    for (int i = 0; i < tok->n_stages; i++) e.match[i] = pcre2_match_data_create_from_pattern(tok->stages[i], NULL);
    int rc = cut_added(&e, 0, text, bytes);
    for (int i = 0; i < tok->n_stages; i++) pcre2_match_data_free(e.match[i]);
    bpe_free(&e.bpe);
    return rc;
}

int tokenizer_encode(const struct tokenizer *tok, const char *text, size_t bytes, bool add_special, struct token_list *out,
                     struct error *err) {
    for (int i = 0; add_special && i < tok->n_prefix; i++) token_list_push(out, tok->prefix[i]);
    int rc = tokenizer_encode_starts(tok, text, bytes, out, NULL, err);
    for (int i = 0; add_special && i < tok->n_suffix; i++) token_list_push(out, tok->suffix[i]);
    return rc;
}

/* ---- back to text ---- */

/* Bytes that a vocabulary string stands for; one with a character outside GPT-2's table stands for itself. */
static size_t piece_bytes(const struct tokenizer *tok, const char *piece, char *out) {
    size_t n = strlen(piece), used = 0;
    for (size_t i = 0; i < n;) {
        unsigned c;
        i += utf8_get(piece + i, n - i, &c);
        if (c >= 512 || tok->char_byte[c] < 0) {
            memcpy(out, piece, n);
            return n;
        }
        out[used++] = (char)tok->char_byte[c];
    }
    return used;
}

char *tokenizer_decode(const struct tokenizer *tok, const int *ids, size_t count, bool skip_special) {
    size_t bytes;
    return tokenizer_decode_sized(tok, ids, count, skip_special, &bytes);
}

char *tokenizer_decode_sized(const struct tokenizer *tok, const int *ids, size_t count, bool skip_special, size_t *length) {
    size_t most = 0, used = 0;
    for (size_t i = 0; i < count; i++)
        if (tokenizer_piece(tok, ids[i])) most += strlen(tok->pieces[ids[i]]);
    char *bytes = memory_take(most + 1, 1);
    for (size_t i = 0; i < count; i++) {
        const char *piece = tokenizer_piece(tok, ids[i]);
        if (piece && !(skip_special && tok->special[ids[i]])) used += piece_bytes(tok, piece, bytes + used);
    }
    char *text = utf8_repair(bytes, &used);
    free(bytes);
    *length = used;
    return text;
}
