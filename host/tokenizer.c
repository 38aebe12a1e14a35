/* tokenizer.c - opens a folder's tokenizer (tokenizer.json, else tokenizer.model), holds its vocabulary and finds its chat template. */
#include "host/tokenizer.h"
#include "host/file.h"
#include "host/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#define MAX_JSON ((size_t)256 << 20)

/* ---- vocabulary ---- */
static const uint64_t prime = (UINT64_C(1) << 61) - 1;
__extension__ typedef unsigned __int128 wide;

/* A polynomial in the key, modulo the prime (Carter and Wegman 1979): two texts share a slot with a chance of about bytes / n_slots. */
static size_t hash_text(uint64_t key, const char *text, size_t bytes) {
    uint64_t h = 0;
    for (size_t i = 0; i < bytes; i++) {
        const wide v = (wide)h * key + (unsigned char)text[i];
        h = (uint64_t)(v & prime) + (uint64_t)(v >> 61);
        h = h >= prime ? h - prime : h;
    }
    return (size_t)h;
}

static size_t find_slot(const struct tokenizer *tok, const char *piece, size_t bytes) {
    size_t i = hash_text(tok->text_key, piece, bytes) & (tok->n_slots - 1);
    for (; tok->slots[i] >= 0; i = (i + 1) & (tok->n_slots - 1)) {
        const char *other = tok->pieces[tok->slots[i]];
        if (!strncmp(other, piece, bytes) && !other[bytes]) break;
    }
    return i;
}

int tokenizer_find(const struct tokenizer *tok, const char *piece, size_t bytes) { return tok->slots[find_slot(tok, piece, bytes)]; }

void vocabulary_begin(struct tokenizer *tok, size_t n_pieces, size_t limit) {
    uint64_t random[2];
    memcpy(random, (const void *)getauxval(AT_RANDOM), sizeof random); /* 16 bytes that the kernel gives each process */
    tok->text_key = random[0] % prime;
    tok->pair_key = random[1] | 1;
    tok->n_slots = 16;
    while (tok->n_slots < 2 * n_pieces) tok->n_slots *= 2;
    tok->slots = memory_take(tok->n_slots, sizeof *tok->slots);
    for (size_t i = 0; i < tok->n_slots; i++) tok->slots[i] = -1;
    tok->pieces = memory_take(limit, sizeof *tok->pieces);
}

int vocabulary_put(struct tokenizer *tok, const char *piece, long long id, long long limit, struct error *err) {
    if (id < 0 || id >= limit) return fail(err, "%s: the id %lld of '%.60s' is out of range", tok->path, id, piece);
    if (tok->pieces[id]) return fail(err, "%s: the id %lld belongs to both '%.60s' and '%.60s'", tok->path, id, tok->pieces[id], piece);
    size_t slot = find_slot(tok, piece, strlen(piece));
    if (tok->slots[slot] >= 0) return fail(err, "%s: '%.60s' has two ids, %d and %lld", tok->path, piece, tok->slots[slot], id);
    tok->pieces[id] = memory_string(piece);
    tok->slots[slot] = (int)id;
    if (id >= tok->vocab) tok->vocab = (int)id + 1;
    return 0;
}

/* ---- added tokens ---- */

/* Raw ones first; among those the longer first, so that the first match at a place is the longest. */
static int added_order(const void *a, const void *b) {
    const struct added_token *x = a, *y = b;
    if (x->normalized != y->normalized) return x->normalized ? 1 : -1;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return strcmp(x->match, y->match);
}

static bool flag(const json_t *entry, const char *key) { return json_is_true(json_object_get(entry, key)); }

static int added_one(struct tokenizer *tok, const json_t *entry, size_t index, int *next, size_t limit, struct error *err) {
    const json_t *id = json_object_get(entry, "id");
    const char *content = json_string_value(json_object_get(entry, "content"));
    if (!content || !json_is_integer(id)) return fail(err, "%s: added_tokens[%zu] has no content or no id", tok->path, index);
    if (flag(entry, "single_word")) return fail(err, "%s: added token '%.60s': single_word is not supported", tok->path, content);
    if (!*content) return 0;
    int known = tokenizer_find(tok, content, strlen(content));
    long long written = json_integer_value(id), given = *next < 0 || written < 0 ? written : *next;
    if (*next < 0 && known >= 0 && known != written)
        return fail(err, "%s: the added token '%.60s' has the id %lld, but %d in the vocabulary", tok->path, content, written, known);
    if (known < 0 && written >= 0 && written != given)
        log_note("%s: added token '%.60s' has the id %lld in the file; it gets %lld, as in the tokenizers library", tok->path, content,
                 written, given);
    if (known < 0 && vocabulary_put(tok, content, given, (long long)limit, err)) return -1;
    struct added_token *a = &tok->added[tok->n_added++];
    *a = (struct added_token){.content = memory_string(content), .id = known < 0 ? (int)given : known};
    if (*next >= 0 && a->id >= *next) *next = a->id + 1;
    a->special = flag(entry, "special");
    a->lstrip = flag(entry, "lstrip");
    a->rstrip = flag(entry, "rstrip");
    a->normalized = flag(entry, "normalized");
    a->match = a->normalized && !flag(entry, "as_is") ? tokenizer_rewrite(tok, content) : memory_string(content);
    a->bytes = strlen(a->match);
    return 0;
}

int added_read(struct tokenizer *tok, const json_t *list, int next, size_t limit, struct error *err) {
    size_t n = json_array_size(list);
    tok->added = memory_take(n, sizeof *tok->added);
    for (size_t i = 0; i < n; i++)
        if (added_one(tok, json_array_get(list, i), i, &next, limit, err)) return -1;
    tok->pieces = memory_grow(tok->pieces, (size_t)tok->vocab, sizeof *tok->pieces);
    tok->special = memory_take((size_t)tok->vocab, sizeof *tok->special);
    for (int i = 0; i < tok->n_added; i++) {
        const unsigned char *start = (const unsigned char *)tok->added[i].match;
        for (unsigned second = 0; second < 256; second++)
            if (tok->added[i].bytes < 2 || second == start[1]) tok->added_start[start[0] * 32u + second / 8] |= (uint8_t)(1 << second % 8);
        tok->special[tok->added[i].id] |= tok->added[i].special;
        tok->n_raw += !tok->added[i].normalized;
    }
    qsort(tok->added, (size_t)tok->n_added, sizeof *tok->added, added_order);
    return 0;
}

/* ---- single bytes ---- */
void byte_table_build(struct tokenizer *tok) {
    for (int c = 0; c < 512; c++) tok->char_byte[c] = -1;
    unsigned next = 256;
    for (unsigned b = 0; b < 256; b++) {
        bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        unsigned c = itself ? b : next++;
        tok->byte_char[b] = (uint16_t)c;
        tok->char_byte[c] = (int16_t)b;
        char spelled[4];
        tok->byte_id[b] = tokenizer_find(tok, spelled, (size_t)utf8_put(spelled, c));
    }
}

void fallback_table_build(struct tokenizer *tok) {
    for (unsigned b = 0; b < 256; b++) {
        char spelled[8];
        tok->byte_id[b] = tokenizer_find(tok, spelled, (size_t)sprintf(spelled, "<0x%02X>", b));
    }
    for (int c = 0; c < 128; c++) tok->ascii_id[c] = c ? tokenizer_find(tok, &(char){(char)c}, 1) : -1;
}

/* Which characters merges join. Nothing can be said where unknown characters would fuse, or bytes of characters merge. */
void words_find(struct tokenizer *tok) {
    tok->words = tok->byte_fallback;
    for (int b = 0; b < 256; b++) tok->words &= tok->byte_id[b] >= 0;
    for (size_t i = 0; tok->words && i < tok->n_merge_slots; i++) {
        const struct merge *m = &tok->merges[i];
        if (m->rank < 0) continue;
        const int parts[2] = {(int)(m->key >> 32), (int)(uint32_t)m->key};
        for (int b = 0; b < 256; b++) tok->words &= tok->byte_id[b] != parts[0] && tok->byte_id[b] != parts[1];
        const char *piece = tok->pieces[m->id];
        int last = -1;
        for (size_t n = strlen(piece), at = 0; at < n;) {
            unsigned c;
            at += utf8_get(piece + at, n - at, &c);
            if (last >= 0) tok->together[last][character_class(c)] = true;
            last = character_class(c);
        }
    }
}

/* ---- the chat template: chat_template.jinja, else tokenizer_config.json, else chat_template.json ---- */
static char *template_in(const char *dir, const char *file) {
    struct error ignored;
    char *path = path_join(dir, file), *text = NULL, *found = NULL;
    size_t size;
    json_t *root = !file_read(path, MAX_JSON, &text, &size, &ignored) ? json_loadb(text, size, 0, NULL) : NULL;
    const json_t *t = json_object_get(root, "chat_template");
    if (json_is_string(t)) found = memory_string(json_string_value(t));
    for (size_t i = 0; !found && i < json_array_size(t); i++) { /* several by name: the one called default */
        const json_t *entry = json_array_get(t, i);
        const char *name = json_string_value(json_object_get(entry, "name")), *body = json_string_value(json_object_get(entry, "template"));
        if (name && body && !strcmp(name, "default")) found = memory_string(body);
    }
    json_decref(root);
    free(text);
    free(path);
    return found;
}

static char *find_chat_template(const char *dir) {
    struct error ignored;
    char *path = path_join(dir, "chat_template.jinja"), *text = NULL;
    size_t size;
    bool there = !file_read(path, MAX_JSON, &text, &size, &ignored);
    free(path);
    if (there) return text;
    text = template_in(dir, "tokenizer_config.json");
    return text ? text : template_in(dir, "chat_template.json");
}

/* ---- the interface ---- */
int tokenizer_open(struct tokenizer **out, const char *dir, struct error *err) {
    *out = NULL;
    char *json = path_join(dir, "tokenizer.json"), *model = path_join(dir, "tokenizer.model");
    struct tokenizer *tok = memory_take(1, sizeof *tok);
    int rc = -1;
    bool is_json = file_exists(json);
    tok->unknown = -1;
    tok->path = memory_string(is_json ? json : model);
    if (is_json)
        rc = tokenizer_json_read(tok, err);
    else if (file_exists(model))
        rc = tokenizer_model_read(tok, dir, err);
    else if (dir_exists(dir))
        fail(err, "%s: the folder holds no tokenizer (tokenizer.json or tokenizer.model)", dir);
    else
        fail(err, "%s: no such folder", dir);
    free(json);
    free(model);
    if (rc) {
        tokenizer_close(tok);
        return -1;
    }
    tok->chat_template = find_chat_template(dir);
    *out = tok;
    return 0;
}

void tokenizer_close(struct tokenizer *tok) {
    if (!tok) return;
    for (int i = 0; tok->pieces && i < tok->vocab; i++) free(tok->pieces[i]);
    for (int i = 0; i < tok->n_added; i++) {
        free(tok->added[i].content);
        free(tok->added[i].match);
    }
    for (int i = 0; i < tok->n_stages; i++) pcre2_code_free(tok->stages[i]);
    for (int i = 0; i < tok->n_rewrites; i++) {
        free(tok->rewrites[i].from);
        free(tok->rewrites[i].to);
    }
    free(tok->spelled_blank.from);
    free(tok->spelled_blank.to);
    free(tok->prefix_text);
    scratch_free(tok->spare);
    free(tok->pieces);
    free(tok->special);
    free(tok->slots);
    free(tok->merges);
    free(tok->added);
    free(tok->chat_template);
    free(tok->path);
    free(tok);
}

const char *tokenizer_piece(const struct tokenizer *tok, int id) { return id >= 0 && id < tok->vocab ? tok->pieces[id] : NULL; }
bool tokenizer_is_special(const struct tokenizer *tok, int id) { return id >= 0 && id < tok->vocab && tok->special[id]; }
int tokenizer_id(const struct tokenizer *tok, const char *piece) { return tokenizer_find(tok, piece, strlen(piece)); }
int tokenizer_bos(const struct tokenizer *tok) { return tok->n_prefix ? tok->prefix[0] : -1; }
int tokenizer_vocab(const struct tokenizer *tok) { return tok->vocab; }
const char *tokenizer_chat_template(const struct tokenizer *tok) { return tok->chat_template; }
