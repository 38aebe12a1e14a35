/* tokenizer_text.c - text to ids. Added tokens are cut out of the raw text (leftmost, then longest); what lies between is
 * rewritten by the normalizer, goes through the split patterns one after the other or is cut at its blanks, and every piece is
 * merged by bpe.c. */
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

/* ---- what one encoding needs, kept by the tokenizer for the next ---- */
struct copy { /* a rewritten text; origin: byte of the text it was made from */
    char *text;
    int *origin;
    size_t bytes, capacity;
};
struct scratch {
    struct bpe bpe;
    pcre2_match_data *match[MAX_STAGES];
    struct copy normal[2], prefixed[2];
};

/* Several threads may encode at once: whoever finds the spare taken makes one for itself. */
static struct scratch *scratch_take(const struct tokenizer *tok) {
    struct scratch *s = atomic_exchange(&((struct tokenizer *)(uintptr_t)tok)->spare, NULL);
    if (s) return s;
    s = memory_take(1, sizeof *s);
    for (int i = 0; i < tok->n_stages; i++) s->match[i] = pcre2_match_data_create_from_pattern(tok->stages[i], NULL);
    return s;
}

void scratch_free(struct scratch *s) {
    if (!s) return;
    for (int i = 0; i < MAX_STAGES; i++) pcre2_match_data_free(s->match[i]);
    for (int i = 0; i < 2; i++) {
        free(s->normal[i].text);
        free(s->normal[i].origin);
        free(s->prefixed[i].text);
        free(s->prefixed[i].origin);
    }
    bpe_free(&s->bpe);
    free(s);
}

static void scratch_give(const struct tokenizer *tok, struct scratch *s) {
    scratch_free(atomic_exchange(&((struct tokenizer *)(uintptr_t)tok)->spare, s));
}

struct encoder {
    const struct tokenizer *tok;
    struct scratch *scratch;
    struct token_list *out, *starts; /* starts: NULL when nobody asks */
    const char *text;                /* what starts count from */
    enum text_place place;           /* of `text` */
    struct error *err;
};

/* ---- rewriting ---- */
static void copy_put(struct copy *c, const char *text, size_t n, const int *origin, int first, int step) {
    if (c->bytes + n > c->capacity) {
        c->capacity = 2 * (c->bytes + n) + 64;
        c->text = memory_grow(c->text, c->capacity, 1);
        c->origin = memory_grow(c->origin, c->capacity, sizeof *c->origin);
    }
    if (n) memcpy(c->text + c->bytes, text, n);
    for (size_t i = 0; i < n; i++, first += step) c->origin[c->bytes + i] = origin ? origin[first] : first;
    c->bytes += n;
}

/* origin: of the bytes of text, NULL for a text that is no copy. */
static void rewrite(struct copy *out, const struct rewrite *r, const char *text, const int *origin, size_t bytes) {
    const size_t n_from = r->from ? strlen(r->from) : 0, n_to = strlen(r->to);
    size_t at = 0;
    out->bytes = 0;
    if (!r->from && bytes) copy_put(out, r->to, n_to, origin, 0, 0);
    for (const char *hit; r->from && (hit = memmem(text + at, bytes - at, r->from, n_from)); at = (size_t)(hit - text) + n_from) {
        copy_put(out, text + at, (size_t)(hit - text) - at, origin, (int)at, 1);
        copy_put(out, r->to, n_to, origin, (int)(hit - text), 0);
    }
    copy_put(out, text + at, bytes - at, origin, (int)at, 1);
}

/* The text after all rewrites of the normalizer, without what it would put before the text unless prepend; NULL when there is none. */
static const struct copy *normalize(const struct tokenizer *tok, struct copy copies[2], const char *text, size_t bytes, bool prepend) {
    const struct copy *last = NULL;
    for (int i = 0, n = 0; i < tok->n_rewrites; i++) {
        if (!tok->rewrites[i].from && !prepend) continue;
        struct copy *next = &copies[n++ % 2];
        rewrite(next, &tok->rewrites[i], last ? last->text : text, last ? last->origin : NULL, last ? last->bytes : bytes);
        last = next;
    }
    return last;
}

char *tokenizer_rewrite(const struct tokenizer *tok, const char *text) {
    struct copy copies[2] = {{0}};
    const struct copy *done = normalize(tok, copies, text, strlen(text), true);
    char *out = memory_take((done ? done->bytes : strlen(text)) + 1, 1);
    memcpy(out, done ? done->text : text, done ? done->bytes : strlen(text));
    for (int i = 0; i < 2; i++) {
        free(copies[i].text);
        free(copies[i].origin);
    }
    return out;
}

typedef int stage_fn(struct encoder *e, const char *text, size_t bytes);

/* Whether a prefix goes before a text at this place. */
static bool prefixed(enum prefix_rule rule, enum text_place place) {
    return place == TEXT_BEGINS ? rule != PREFIX_NEVER : place == TEXT_AFTER_TOKEN && rule == PREFIX_ALWAYS;
}

static enum text_place place_of(const struct encoder *e, const char *text) { return text == e->text ? e->place : TEXT_AFTER_TOKEN; }

/* Runs the next stage on a copy of `text`; the starts it gives are led back to the bytes of the text. */
static int on_copy(struct encoder *e, const char *text, const struct copy *c, stage_fn *next) {
    struct encoder inner = *e;
    size_t first = e->starts ? e->starts->count : 0;
    inner.text = c->text;
    inner.place = place_of(e, text);
    int rc = next(&inner, c->text, c->bytes);
    for (size_t i = first; e->starts && i < e->starts->count; i++) e->starts->ids[i] = (int)(text - e->text) + c->origin[e->starts->ids[i]];
    return rc;
}

/* ---- splitting ---- */
static int merge_piece(struct encoder *e, const char *text, size_t bytes) {
    bpe_piece(e->tok, &e->scratch->bpe, text, bytes, text - e->text, e->out, e->starts);
    return 0;
}

static int split_patterns(struct encoder *e, int stage, const char *text, size_t bytes) {
    if (!bytes) return 0;
    if (stage == e->tok->n_stages) return merge_piece(e, text, bytes);
    pcre2_code *re = e->tok->stages[stage];
    PCRE2_SIZE *found = pcre2_get_ovector_pointer(e->scratch->match[stage]);
    size_t gap = 0, at = 0; /* text from `gap` to the next match is a piece of its own */
    while (at < bytes) {
        int rc = pcre2_match(re, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, e->scratch->match[stage], NULL);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
            rc = pcre2_match(re, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, e->scratch->match[stage], NULL);
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
        if (split_patterns(e, stage + 1, text + gap, from - gap) || split_patterns(e, stage + 1, text + from, to - from)) return -1;
        gap = at = to;
    }
    return split_patterns(e, stage + 1, text + gap, bytes - gap);
}

/* Cuts at every U+2581 where Metaspace does, and wherever no merge could reach across: merging the parts one by one gives what
 * merging the whole would. */
static int split_words(struct encoder *e, const char *text, size_t bytes) {
    const struct tokenizer *tok = e->tok;
    size_t start = 0;
    int last = 0;
    for (size_t i = 0, size; i < bytes; i += size) {
        unsigned c;
        size = utf8_get(text + i, bytes - i, &c);
        const int class = character_class(c);
        if (i > start && ((tok->split_blanks && class == CLASS_BLANK) || (tok->words && !tok->together[last][class]))) {
            merge_piece(e, text + start, i - start);
            start = i;
        }
        last = class;
    }
    return merge_piece(e, text + start, bytes - start);
}

static int split(struct encoder *e, const char *text, size_t bytes) {
    const struct tokenizer *tok = e->tok;
    if (!bytes) return 0;
    if (tok->n_stages) return split_patterns(e, 0, text, bytes);
    return split_words(e, text, bytes);
}

/* Metaspace's blanks, and the prefix of Metaspace or ByteLevel. */
static int plain_text(struct encoder *e, const char *text, size_t bytes) {
    const struct tokenizer *tok = e->tok;
    static const struct rewrite blanks = {(char *)(uintptr_t) " ", (char *)(uintptr_t)BLANK_PIECE};
    const struct rewrite prefix = {NULL, tok->prefix_text};
    const size_t n = tok->prefix_text ? strlen(tok->prefix_text) : 0;
    struct copy *c = e->scratch->prefixed;
    bool copied = tok->metaspace && bytes;
    if (copied) rewrite(&c[0], &blanks, text, NULL, bytes);
    const char *now = copied ? c[0].text : text;
    size_t size = copied ? c[0].bytes : bytes;
    if (n && prefixed(tok->prefix_rule, place_of(e, text)) && size && (size < n || memcmp(now, tok->prefix_text, n) != 0)) {
        rewrite(&c[1], &prefix, now, copied ? c[0].origin : NULL, size);
        return on_copy(e, text, &c[1], split);
    }
    return copied ? on_copy(e, text, &c[0], split) : split(e, text, bytes);
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
    const unsigned char first_byte = (unsigned char)text[0], second = left > 1 ? (unsigned char)text[1] : 0;
    if (tok->added_start[first_byte * 32u + second / 8] >> second % 8 & 1)
        for (int i = first; i < last; i++)
            if (tok->added[i].bytes && tok->added[i].bytes <= left && !memcmp(tok->added[i].match, text, tok->added[i].bytes))
                return &tok->added[i];
    return NULL;
}

/* Cuts out the added tokens first .. last - 1; what lies between goes to the next stage. */
static int cut(struct encoder *e, int first, int last, const char *text, size_t bytes, stage_fn *next) {
    const struct tokenizer *tok = e->tok;
    size_t done = 0;
    for (size_t i = 0; i < bytes && first < last;) {
        const struct added_token *a = added_at(tok, first, last, text + i, bytes - i);
        if (!a) {
            i++;
            continue;
        }
        size_t from = a->lstrip ? white_before(text, i, done) : i;
        i += a->bytes;
        if (from > done && next(e, text + done, from - done)) return -1;
        token_list_push(e->out, a->id);
        if (e->starts) token_list_push(e->starts, (int)(text + from - e->text));
        done = i = a->rstrip ? white_after(text, i, bytes) : i;
    }
    return bytes > done ? next(e, text + done, bytes - done) : 0;
}

static int cut_normalized(struct encoder *e, const char *text, size_t bytes) {
    return cut(e, e->tok->n_raw, e->tok->n_added, text, bytes, plain_text);
}

/* One text between added tokens: the normalizer, then the tokens marked `normalized`, which it may have changed or uncovered. */
static int raw_text(struct encoder *e, const char *text, size_t bytes) {
    const struct copy *c = normalize(e->tok, e->scratch->normal, text, bytes, prefixed(e->tok->prepend_rule, place_of(e, text)));
    return c ? on_copy(e, text, c, cut_normalized) : cut_normalized(e, text, bytes);
}

int tokenizer_encode_starts(const struct tokenizer *tok, const char *text, size_t bytes, enum text_place place, struct token_list *out,
                            struct token_list *starts, struct error *err) {
    size_t valid = utf8_valid(text, bytes);
    if (valid != bytes) return fail(err, "the text is not UTF-8: byte %zu (0x%02x) begins no character", valid, (unsigned char)text[valid]);
    if (bytes > INT_MAX / 8) return fail(err, "the text has %zu bytes, more than the %d that can be tokenised at once", bytes, INT_MAX / 8);
    struct encoder e = {tok, scratch_take(tok), out, starts, text, place, err};
    int rc = cut(&e, 0, tok->n_raw, text, bytes, raw_text);
    scratch_give(tok, e.scratch);
    return rc;
}

int tokenizer_encode(const struct tokenizer *tok, const char *text, size_t bytes, bool add_special, struct token_list *out,
                     struct error *err) {
    for (int i = 0; add_special && i < tok->n_prefix; i++) token_list_push(out, tok->prefix[i]);
    int rc = tokenizer_encode_starts(tok, text, bytes, TEXT_BEGINS, out, NULL, err);
    for (int i = 0; add_special && i < tok->n_suffix; i++) token_list_push(out, tok->suffix[i]);
    return rc;
}
