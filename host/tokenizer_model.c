/* tokenizer_model.c - reads tokenizer.model, SentencePiece's protobuf, of BPE tokenizers as LLaMA-2's, for folders without a
 * tokenizer.json (formats.md 7.3). Fields: ModelProto 1 pieces {1 piece, 2 score, 3 type}, 2 trainer {3 model_type, 24
 * treat_whitespace_as_suffix, 35 byte_fallback}, 3 normalizer {2 precompiled_charsmap, 3 add_dummy_prefix, 4
 * remove_extra_whitespaces, 5 escape_whitespaces}. Added and special tokens come from the files beside it. Two neighbouring symbols
 * merge where their join is a piece, the highest score first. Texts between special tokens each get their own U+2581, as in
 * transformers' LlamaTokenizer; with "legacy": false in tokenizer_config.json only one that begins the whole does. */
#include "host/file.h"
#include "host/tokenizer_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_MODEL ((size_t)256 << 20)
enum { MAX_PIECE = 1024 }; /* bytes; every cut of a piece is looked up. LLaMA-2's longest has 48 */

/* ---- protobuf: a message is a row of (key, value); key: field number << 3 | wire type ---- */
struct field {
    uint64_t number, value;    /* value: of a varint or fixed number, else the length */
    const unsigned char *data; /* of a field with a length, else NULL */
    bool fixed;                /* a number of 4 or 8 bytes */
};
struct message {
    const unsigned char *at, *end;
};

static bool read_varint(struct message *m, uint64_t *value) {
    *value = 0;
    for (int shift = 0; shift < 64 && m->at < m->end; shift += 7) {
        unsigned char byte = *m->at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

/* 1: a field, 0: the end, -1: no protobuf. */
static int next_field(struct message *m, struct field *f) {
    uint64_t key;
    if (m->at == m->end) return 0;
    if (!read_varint(m, &key)) return -1;
    f->number = key >> 3;
    f->data = NULL;
    f->fixed = false;
    if ((key & 7) == 0) return read_varint(m, &f->value) ? 1 : -1;
    uint64_t size = (key & 7) == 1 ? 8 : 4;
    if ((key & 7) == 2 ? !read_varint(m, &size) : (key & 7) != 1 && (key & 7) != 5) return -1;
    if (size > (uint64_t)(m->end - m->at)) return -1;
    f->value = (key & 7) == 2 ? size : 0;
    f->fixed = (key & 7) != 2;
    if (f->fixed)
        memcpy(&f->value, m->at, size);
    else
        f->data = m->at;
    m->at += size;
    return 1;
}

/* ---- pieces ---- */
enum { PIECE_NORMAL = 1, PIECE_UNKNOWN = 2, PIECE_CONTROL = 3, PIECE_USER = 4, PIECE_UNUSED = 5, PIECE_BYTE = 6 };
struct scored {
    float score;
    int id, type, rank;
};
struct reader {
    struct tokenizer *tok;
    struct scored *pieces; /* by id */
    int n_pieces;
    size_t file_bytes;
    json_t *added; /* content -> entry as in tokenizer.json's added_tokens, without id where the vocabulary decides */
};

static int read_piece(struct reader *r, struct message m, struct error *err) {
    struct tokenizer *tok = r->tok;
    struct scored *s = &r->pieces[r->n_pieces];
    struct field f;
    char *text = NULL;
    int status, rc = -1;
    *s = (struct scored){.id = r->n_pieces, .type = PIECE_NORMAL};
    while ((status = next_field(&m, &f)) == 1) {
        if (f.number == 1 && f.data) {
            if (f.value > MAX_PIECE) {
                fail(err, "%s: piece %d has %llu bytes; at most %d are read", tok->path, r->n_pieces, (unsigned long long)f.value,
                     MAX_PIECE);
                goto cleanup;
            }
            free(text);
            text = memory_take(f.value + 1, 1);
            memcpy(text, f.data, f.value);
            if (strlen(text) != f.value || utf8_valid(text, f.value) != f.value) {
                fail(err, "%s: piece %d is not UTF-8", tok->path, r->n_pieces);
                goto cleanup;
            }
        } else if (f.number == 2 && f.fixed) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&s->score, &bits, sizeof bits);
        } else if (f.number == 3) {
            s->type = f.value <= PIECE_BYTE ? (int)f.value : 0;
        }
    }
    if (status < 0 || !text || !*text)
        fail(err, "%s: piece %d is damaged", tok->path, r->n_pieces);
    else if (!isfinite(s->score) || s->type < PIECE_NORMAL || s->type == PIECE_UNUSED)
        fail(err, "%s: piece %d ('%.60s') has the score %g and the type %s; unused pieces are not supported", tok->path, r->n_pieces, text,
             (double)s->score, s->type == PIECE_UNUSED ? "unused" : "of its number");
    else
        rc = vocabulary_put(tok, text, r->n_pieces++, (long long)r->file_bytes, err);
cleanup:
    free(text);
    return rc;
}

static int by_score(const void *a, const void *b) {
    const struct scored *x = a, *y = b;
    return x->score > y->score ? -1 : x->score < y->score;
}

/* The two parts before and after the byte `at` of a piece, when both are pieces. */
static bool find_parts(const struct tokenizer *tok, const char *piece, size_t at, int *left, int *right) {
    *left = tokenizer_find(tok, piece, at);
    *right = *left >= 0 ? tokenizer_find(tok, piece + at, strlen(piece + at)) : -1;
    return *right >= 0;
}

/* Every way to make a piece of two; without put only counted. */
static int each_merge(struct reader *r, bool put, size_t *count, struct error *err) {
    struct tokenizer *tok = r->tok;
    int left, right;
    *count = 0;
    for (int i = 0; i < r->n_pieces; i++) {
        if (r->pieces[i].type != PIECE_NORMAL) continue;
        const char *piece = tok->pieces[r->pieces[i].id];
        const size_t n = strlen(piece);
        for (size_t at = 0, size; at < n; at += size) {
            unsigned c;
            size = utf8_get(piece + at, n - at, &c);
            if (tokenizer_find(tok, piece + at, size) < 0)
                return fail(err, "%s: the character '%.*s' of the piece '%.60s' is no piece itself, which is not supported", tok->path,
                            (int)size, piece + at, piece);
            if (!at || !find_parts(tok, piece, at, &left, &right)) continue;
            ++*count;
            if (put) bpe_table_put(tok, left, right, r->pieces[i].rank, r->pieces[i].id);
        }
    }
    return 0;
}

/* Ranks are those of scores: equal scores, equal ranks, so that the leftmost pair goes first. */
static int build_merges(struct reader *r, struct error *err) {
    size_t count;
    qsort(r->pieces, (size_t)r->n_pieces, sizeof *r->pieces, by_score);
    for (int i = 0; i < r->n_pieces; i++) r->pieces[i].rank = i && r->pieces[i].score == r->pieces[i - 1].score ? r->pieces[i - 1].rank : i;
    if (each_merge(r, false, &count, err)) return -1;
    bpe_table_build(r->tok, count);
    return each_merge(r, true, &count, err);
}

/* ---- what the model is ---- */
static int check_trainer(struct tokenizer *tok, struct message m, struct error *err) {
    static const char *const types[] = {"(0)", "Unigram", "BPE", "word", "character"};
    struct field f;
    uint64_t type = 1;
    int status;
    bool suffix = false;
    while ((status = next_field(&m, &f)) == 1) {
        if (f.number == 3) type = f.value;
        if (f.number == 24) suffix = f.value != 0;
        if (f.number == 35) tok->byte_fallback = f.value != 0;
    }
    if (status < 0) return fail(err, "%s: the trainer's settings are damaged", tok->path);
    if (type != 2)
        return fail(err, "%s: a SentencePiece model of type %s is not supported; BPE is", tok->path, type < 5 ? types[type] : "(unknown)");
    if (suffix) return fail(err, "%s: treat_whitespace_as_suffix is not supported", tok->path);
    return 0;
}

static int read_normalizer(struct tokenizer *tok, struct message m, struct error *err) {
    struct field f;
    bool dummy_prefix = true, remove_extra = true, escape = true, charsmap = false;
    int status;
    while ((status = next_field(&m, &f)) == 1) {
        if (f.number == 2) charsmap = f.value != 0;
        if (f.number == 3) dummy_prefix = f.value != 0;
        if (f.number == 4) remove_extra = f.value != 0;
        if (f.number == 5) escape = f.value != 0;
    }
    if (status < 0) return fail(err, "%s: the normalizer's settings are damaged", tok->path);
    if (charsmap || remove_extra || !escape)
        return fail(err, "%s: %s is not supported; LLaMA's kind changes nothing but blanks", tok->path,
                    charsmap       ? "a normalizer with a character map (NFKC)"
                    : remove_extra ? "remove_extra_whitespaces"
                                   : "a model without escape_whitespaces");
    if (tok->prepend_rule == PREFIX_ALWAYS && !dummy_prefix) tok->prepend_rule = PREFIX_NEVER;
    if (tok->prepend_rule != PREFIX_NEVER) tok->rewrites[tok->n_rewrites++] = (struct rewrite){NULL, memory_string(BLANK_PIECE)};
    tok->rewrites[tok->n_rewrites++] = (struct rewrite){memory_string(" "), memory_string(BLANK_PIECE)};
    tok->strip_start = tok->prepend_rule != PREFIX_NEVER;
    return 0;
}

static int read_model(struct reader *r, const char *data, size_t size, struct error *err) {
    struct tokenizer *tok = r->tok;
    const unsigned char *begin = (const unsigned char *)data;
    struct message m = {begin, begin + size}, trainer = {NULL, NULL}, normalizer = {NULL, NULL};
    struct field f;
    size_t n = 0;
    int status;
    if (size >= 7 && !memcmp(data, "IQ== 0\n", 7))
        return fail(err, "%s: a file of tiktoken's, as Meta ships LLaMA-3; the tokenizer.json of the Hugging Face folder is needed",
                    tok->path);
    while ((status = next_field(&m, &f)) == 1) {
        n += f.number == 1 && f.data;
        if (f.number == 2 && f.data) trainer = (struct message){f.data, f.data + f.value};
        if (f.number == 3 && f.data) normalizer = (struct message){f.data, f.data + f.value};
    }
    if (status < 0 || !n || n > INT32_MAX)
        return fail(err, "%s: no SentencePiece model (%s)", tok->path,
                    status < 0 ? "its protobuf is damaged or cut off" : "it holds no pieces");
    if (check_trainer(tok, trainer, err) || read_normalizer(tok, normalizer, err)) return -1;
    vocabulary_begin(tok, n + json_object_size(r->added), r->file_bytes);
    r->pieces = memory_take(n, sizeof *r->pieces);
    for (m.at = begin; next_field(&m, &f) == 1;)
        if (f.number == 1 && f.data && read_piece(r, (struct message){f.data, f.data + f.value}, err)) return -1;
    return 0;
}

/* ---- the files beside it ---- */
struct beside { /* NULL where the file is not there */
    json_t *config, *map, *added;
};

/* 0 with *root NULL when the file is not there. */
static int read_object(json_t **root, const char *dir, const char *name, struct error *err) {
    char *path = path_join(dir, name), *text = NULL;
    size_t size;
    json_error_t bad;
    int rc = 0;
    if (file_exists(path) && !(rc = file_read(path, MAX_MODEL, &text, &size, err))) {
        *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &bad);
        if (!*root)
            rc = fail(err, "%s:%d: no valid JSON: %s", path, bad.line, bad.text);
        else if (!json_is_object(*root))
            rc = fail(err, "%s: no JSON object", path);
    }
    free(text);
    free(path);
    return rc;
}

/* A token by its content, made when it is not there yet; properties: NULL or the object that holds lstrip, rstrip, ... */
static json_t *entry_of(struct reader *r, const char *content, const json_t *properties) {
    json_t *entry = json_object_get(r->added, content);
    if (entry) return entry;
    entry = json_is_object(properties) ? json_copy((json_t *)(uintptr_t)properties) : json_object();
    json_object_set_new(entry, "content", json_string(content));
    json_object_set_new(entry, "normalized", json_false());
    json_object_del(entry, "id");
    json_object_set_new(r->added, content, entry);
    return entry;
}

static void add_special(struct reader *r, const json_t *value) {
    const char *content = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    if (content && *content) json_object_set_new(entry_of(r, content, value), "special", json_true());
}

static void collect_added(struct reader *r, const struct beside *b) {
    static const char *const roles[] = {"unk_token", "bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token"};
    const char *key;
    json_t *value;
    json_object_foreach(json_object_get(b->config, "added_tokens_decoder"), key, value) {
        const char *content = json_string_value(json_object_get(value, "content"));
        if (content && *content) json_object_set_new(entry_of(r, content, value), "id", json_integer(strtoll(key, NULL, 10)));
    }
    json_object_foreach(b->added, key, value) {
        json_t *entry = entry_of(r, key, NULL);
        if (!json_object_get(entry, "id")) json_object_set(entry, "id", value);
    }
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        static const char *const usual[] = {"<unk>", "<s>", "</s>"};
        const json_t *role = json_object_get(b->map, roles[i]);
        if (!role) role = json_object_get(b->config, roles[i]);
        if (!role && i < 3)
            json_object_set_new(entry_of(r, usual[i], NULL), "special", json_true());
        else
            add_special(r, role);
    }
    const json_t *more = json_object_get(b->map, "additional_special_tokens");
    if (!more) more = json_object_get(b->config, "additional_special_tokens");
    for (size_t i = 0; i < json_array_size(more); i++) add_special(r, json_array_get(more, i));
}

/* ---- the whole ---- */
static int by_id(const void *a, const void *b) {
    json_int_t x = json_integer_value(json_object_get(*(json_t *const *)a, "id")),
               y = json_integer_value(json_object_get(*(json_t *const *)b, "id"));
    return x < y ? -1 : x > y;
}

/* Tokens without an id get that of the vocabulary, else the next free one; pieces that the user defined are cut out of the
 * normalized text. */
static int add_tokens(struct reader *r, struct error *err) {
    struct tokenizer *tok = r->tok;
    const char *content;
    json_t *entry, *list = json_array();
    long long next = r->n_pieces;
    json_object_foreach(r->added, content, entry) {
        long long id = json_integer_value(json_object_get(entry, "id"));
        if (id >= next && id < INT32_MAX) next = id + 1;
    }
    json_object_foreach(r->added, content, entry) {
        int known = tokenizer_find(tok, content, strlen(content));
        if (!json_object_get(entry, "id")) json_object_set_new(entry, "id", json_integer(known >= 0 ? known : next++));
    }
    for (int i = 0; i < r->n_pieces; i++) {
        const char *piece = tok->pieces[r->pieces[i].id];
        if (r->pieces[i].type != PIECE_USER || json_object_get(r->added, piece)) continue;
        json_object_set_new(r->added, piece,
                            json_pack("{s:s,s:i,s:b,s:b}", "content", piece, "id", r->pieces[i].id, "normalized", 1, "as_is", 1));
    }
    size_t n = json_object_size(r->added), count = 0;
    json_t **sorted = memory_take(n + 1, sizeof *sorted);
    json_object_foreach(r->added, content, entry) sorted[count++] = entry;
    qsort(sorted, n, sizeof *sorted, by_id);
    for (size_t i = 0; i < n; i++) json_array_append(list, sorted[i]);
    free(sorted);
    int rc = added_read(tok, list, -1, r->file_bytes, err);
    json_decref(list);
    return rc;
}

static int find_unknown(struct reader *r, struct error *err) {
    struct tokenizer *tok = r->tok;
    for (int i = 0; i < r->n_pieces; i++)
        if (r->pieces[i].type == PIECE_UNKNOWN) tok->unknown = r->pieces[i].id;
    if (tok->unknown < 0) return fail(err, "%s: it holds no unknown piece", tok->path);
    fallback_table_build(tok);
    for (int b = 0; tok->byte_fallback && b < 256; b++)
        if (tok->byte_id[b] < 0) return fail(err, "%s: byte_fallback is on, but the piece <0x%02X> is missing", tok->path, (unsigned)b);
    return 0;
}

/* The token of a role as transformers' LlamaTokenizer adds it. */
static int add_role(struct tokenizer *tok, const struct beside *b, const char *role, const char *usual, int list[], int *n,
                    struct error *err) {
    const json_t *value = json_object_get(b->map, role);
    if (!value) value = json_object_get(b->config, role);
    const char *content = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    if (!content) content = usual;
    list[*n] = tokenizer_find(tok, content, strlen(content));
    if (list[*n] < 0) return fail(err, "%s: %s '%.60s' is not in the vocabulary", tok->path, role, content);
    ++*n;
    return 0;
}

int tokenizer_model_read(struct tokenizer *tok, const char *dir, struct error *err) {
    struct beside b = {0};
    struct reader r = {.tok = tok, .added = json_object()};
    char *data = NULL;
    int rc = -1;
    if (file_read(tok->path, MAX_MODEL, &data, &r.file_bytes, err)) goto cleanup;
    if (read_object(&b.config, dir, "tokenizer_config.json", err) || read_object(&b.map, dir, "special_tokens_map.json", err) ||
        read_object(&b.added, dir, "added_tokens.json", err))
        goto cleanup;
    tok->fuse_unknown = tok->decode_bytes = true;
    tok->spelled_blank = (struct rewrite){memory_string(BLANK_PIECE), memory_string(" ")};
    collect_added(&r, &b);
    if (json_is_false(json_object_get(b.config, "legacy"))) /* the prefix is transformers', not the model's, and goes before the whole */
        tok->prepend_rule = json_is_false(json_object_get(b.config, "add_prefix_space")) ? PREFIX_NEVER : PREFIX_FIRST;
    if (read_model(&r, data, r.file_bytes, err) || build_merges(&r, err) || find_unknown(&r, err) || add_tokens(&r, err)) goto cleanup;
    words_find(tok);
    if (!json_is_false(json_object_get(b.config, "add_bos_token")) &&
        add_role(tok, &b, "bos_token", "<s>", tok->prefix, &tok->n_prefix, err))
        goto cleanup;
    if (json_is_true(json_object_get(b.config, "add_eos_token")) &&
        add_role(tok, &b, "eos_token", "</s>", tok->suffix, &tok->n_suffix, err))
        goto cleanup;
    rc = 0;
cleanup:
    json_decref(b.config);
    json_decref(b.map);
    json_decref(b.added);
    json_decref(r.added);
    free(r.pieces);
    free(data);
    return rc;
}
