/* tokenizer.c - reads tokenizer.json (Hugging Face `tokenizers`) of the byte-level BPE kind: model BPE, no normalizer,
 * pre-tokenizers Split (Regex or String, Isolated), Digits, ByteLevel and sequences of them, post-processors ByteLevel and
 * TemplateProcessing, decoder ByteLevel. Everything else is refused by its name. (formats.md 7.2) */
#include "host/file.h"
#include "host/tokenizer_internal.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define MAX_JSON ((size_t)256 << 20)
/* The split of GPT-2's tokenizer, which ByteLevel with use_regex brings along. */
#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static const char *text_of(const json_t *object, const char *key) { return json_string_value(json_object_get(object, key)); }
static const char *type_of(const json_t *object) {
    const char *type = text_of(object, "type");
    return type ? type : "(no type)";
}

/* ---- vocabulary ---- */
static size_t hash_text(const char *text, size_t bytes) {
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < bytes; i++) h = (h ^ (unsigned char)text[i]) * 1099511628211u;
    return (size_t)(h ^ h >> 29);
}

static size_t find_slot(const struct tokenizer *tok, const char *piece, size_t bytes) {
    size_t i = hash_text(piece, bytes) & (tok->n_slots - 1);
    for (; tok->slots[i] >= 0; i = (i + 1) & (tok->n_slots - 1)) {
        const char *other = tok->pieces[tok->slots[i]];
        if (!strncmp(other, piece, bytes) && !other[bytes]) break;
    }
    return i;
}

int tokenizer_find(const struct tokenizer *tok, const char *piece, size_t bytes) { return tok->slots[find_slot(tok, piece, bytes)]; }

static int put_piece(struct tokenizer *tok, const char *piece, long long id, long long limit, struct error *err) {
    if (id < 0 || id >= limit) return fail(err, "%s: the id %lld of '%.60s' is out of range", tok->path, id, piece);
    if (tok->pieces[id]) return fail(err, "%s: the id %lld belongs to both '%.60s' and '%.60s'", tok->path, id, tok->pieces[id], piece);
    tok->pieces[id] = memory_string(piece);
    tok->slots[find_slot(tok, piece, strlen(piece))] = (int)id;
    if (id >= tok->vocab) tok->vocab = (int)id + 1;
    return 0;
}

/* limit: ids must be below it, so that tables stay in proportion to the file. */
static int read_vocabulary(struct tokenizer *tok, const json_t *model, const json_t *added, size_t limit, struct error *err) {
    const json_t *vocab = json_object_get(model, "vocab");
    if (!json_is_object(vocab)) return fail(err, "%s: model.vocab is missing or no JSON object", tok->path);
    size_t n = json_object_size(vocab) + json_array_size(added);
    tok->n_slots = 16;
    while (tok->n_slots < 2 * n) tok->n_slots *= 2;
    tok->slots = memory_take(tok->n_slots, sizeof *tok->slots);
    for (size_t i = 0; i < tok->n_slots; i++) tok->slots[i] = -1;
    tok->pieces = memory_take(limit, sizeof *tok->pieces);
    const char *piece;
    json_t *id;
    json_object_foreach((json_t *)(uintptr_t)vocab, piece, id) {
        if (!json_is_integer(id)) return fail(err, "%s: model.vocab: the id of '%.60s' is no whole number", tok->path, piece);
        if (put_piece(tok, piece, json_integer_value(id), (long long)limit, err)) return -1;
    }
    return 0;
}

/* Raw ones first; among those the longer first, so that the first match at a place is the longest. */
static int added_order(const void *a, const void *b) {
    const struct added_token *x = a, *y = b;
    if (x->normalized != y->normalized) return x->normalized ? 1 : -1;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return strcmp(x->content, y->content);
}

/* next: the id for a token that the vocabulary does not hold. The library numbers them on from the vocabulary's size. */
static int read_added(struct tokenizer *tok, const json_t *list, int next, size_t limit, struct error *err) {
    size_t n = json_array_size(list);
    tok->added = memory_take(n, sizeof *tok->added);
    for (size_t i = 0; i < n; i++) {
        const json_t *entry = json_array_get(list, i), *id = json_object_get(entry, "id");
        const char *content = text_of(entry, "content");
        if (!content || !json_is_integer(id)) return fail(err, "%s: added_tokens[%zu] has no content or no id", tok->path, i);
        if (json_is_true(json_object_get(entry, "single_word")))
            return fail(err, "%s: added token '%.60s': single_word is not supported", tok->path, content);
        if (!*content) continue;
        int known = tokenizer_find(tok, content, strlen(content)), file_id = (int)json_integer_value(id);
        if (known < 0 && json_integer_value(id) != next && json_integer_value(id) >= 0)
            log_note("%s: added token '%.60s' has the id %d in the file; it gets %d, as in the tokenizers library", tok->path, content,
                     file_id, next);
        if (known < 0 && put_piece(tok, content, json_integer_value(id) < 0 ? -1 : next, (long long)limit, err)) return -1;
        struct added_token *a = &tok->added[tok->n_added++];
        *a = (struct added_token){.content = memory_string(content), .bytes = strlen(content), .id = known < 0 ? next : known};
        if (a->id >= next) next = a->id + 1;
        a->special = json_is_true(json_object_get(entry, "special"));
        a->lstrip = json_is_true(json_object_get(entry, "lstrip"));
        a->rstrip = json_is_true(json_object_get(entry, "rstrip"));
        a->normalized = json_is_true(json_object_get(entry, "normalized"));
    }
    tok->pieces = memory_grow(tok->pieces, (size_t)tok->vocab, sizeof *tok->pieces);
    tok->special = memory_take((size_t)tok->vocab, sizeof *tok->special);
    for (int i = 0; i < tok->n_added; i++) {
        tok->added_start[(unsigned char)tok->added[i].content[0]] = true;
        tok->special[tok->added[i].id] |= tok->added[i].special;
        tok->n_raw += !tok->added[i].normalized;
    }
    qsort(tok->added, (size_t)tok->n_added, sizeof *tok->added, added_order);
    return 0;
}

/* ---- GPT-2's table of bytes and characters ---- */
static void build_byte_table(struct tokenizer *tok) {
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

/* ---- merges ---- */
static int read_merge(struct tokenizer *tok, const json_t *entry, size_t rank, char *joined, struct error *err) {
    const char *left = json_string_value(json_array_get(entry, 0)), *right = json_string_value(json_array_get(entry, 1));
    size_t a = 0, b = 0;
    if (json_is_array(entry) && json_array_size(entry) == 2 && left && right) {
        a = strlen(left);
        b = strlen(right);
    } else if (json_is_string(entry) && strchr(json_string_value(entry), ' ')) {
        left = json_string_value(entry);
        a = (size_t)(strchr(left, ' ') - left);
        right = left + a + 1;
        b = strlen(right);
    } else {
        return fail(err, "%s: model.merges[%zu] is neither \"a b\" nor [\"a\", \"b\"]", tok->path, rank);
    }
    memcpy(joined, left, a);
    memcpy(joined + a, right, b);
    int x = tokenizer_find(tok, left, a), y = tokenizer_find(tok, right, b), id = tokenizer_find(tok, joined, a + b);
    if (x < 0 || y < 0 || id < 0)
        return fail(err, "%s: model.merges[%zu] ('%.40s'): its parts or their join are not in the vocabulary", tok->path, rank, left);
    bpe_table_put(tok, x, y, (int)rank, id);
    return 0;
}

static int read_model(struct tokenizer *tok, const json_t *model, const json_t *added, size_t file_bytes, struct error *err) {
    const char *type = text_of(model, "type");
    if (!json_is_object(model)) return fail(err, "%s: 'model' is missing", tok->path);
    if (type ? strcmp(type, "BPE") != 0 : !json_object_get(model, "merges"))
        return fail(err, "%s: a tokenizer of type %s is not supported; byte-level BPE is", tok->path, type_of(model));
    if (json_is_true(json_object_get(model, "byte_fallback")))
        return fail(err, "%s: SentencePiece-style BPE (byte_fallback) is not supported yet; byte-level BPE is", tok->path);
    if (json_is_number(json_object_get(model, "dropout")) && json_number_value(json_object_get(model, "dropout")) > 0)
        return fail(err, "%s: BPE with dropout is not supported", tok->path);
    const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++)
        if (text_of(model, affixes[i]) && *text_of(model, affixes[i]))
            return fail(err, "%s: BPE with %s is not supported", tok->path, affixes[i]);
    if (read_vocabulary(tok, model, added, file_bytes, err) ||
        read_added(tok, added, (int)json_object_size(json_object_get(model, "vocab")), file_bytes, err))
        return -1;
    build_byte_table(tok);
    tok->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    const char *unknown = text_of(model, "unk_token");
    tok->unknown = unknown && *unknown ? tokenizer_find(tok, unknown, strlen(unknown)) : -1;
    const json_t *merges = json_object_get(model, "merges");
    if (!json_is_array(merges)) return fail(err, "%s: model.merges is missing or no list", tok->path);
    size_t n = json_array_size(merges);
    bpe_table_build(tok, n);
    char *joined = memory_take(file_bytes, 1);
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++) rc = read_merge(tok, json_array_get(merges, i), i, joined, err);
    free(joined);
    return rc;
}

/* ---- pre-tokenizers: every one is a pattern whose matches, and the gaps between them, become pieces ---- */

/* Oniguruma's \s is Unicode's White_Space; PCRE2's has U+180E besides. Written out it is the same for both. */
#define SPACES "\\t-\\r\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
static char *spell_out_spaces(const char *pattern) {
    char *out = memory_take(strlen(pattern) * (sizeof SPACES + 4) + 1, 1), *o = out;
    bool in_class = false;
    for (const char *p = pattern; *p; p++) {
        if (p[0] == '\\' && p[1]) {
            bool is_s = p[1] == 's', is_not_s = p[1] == 'S' && !in_class;
            if (is_s || is_not_s)
                o += sprintf(o, in_class ? "%s%s" : is_s ? "%s[%s]" : "%s[^%s]", "", SPACES);
            else
                o += sprintf(o, "%.2s", p);
            p++;
            continue;
        }
        if (*p == '[')
            in_class = true;
        else if (*p == ']')
            in_class = false;
        *o++ = *p;
    }
    *o = 0;
    return out;
}

static int add_stage(struct tokenizer *tok, const char *pattern, bool literal, struct error *err) {
    if (tok->n_stages == MAX_STAGES) return fail(err, "%s: more than %d pre-tokenizers in a row are not supported", tok->path, MAX_STAGES);
    int code = 0;
    PCRE2_SIZE at = 0;
    char *spelled = literal ? memory_string(pattern) : spell_out_spaces(pattern);
    uint32_t flags = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP);
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)spelled, PCRE2_ZERO_TERMINATED, flags, &code, &at, NULL);
    free(spelled);
    if (!re) {
        char why[120];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return fail(err, "%s: the pre-tokenizer's pattern is not understood: %s: %.200s", tok->path, why, pattern);
    }
    pcre2_jit_compile(re, PCRE2_JIT_COMPLETE); /* without JIT the interpreter does the same, slower */
    tok->stages[tok->n_stages++] = re;
    return 0;
}

static int read_split(struct tokenizer *tok, const json_t *node, struct error *err) {
    const json_t *pattern = json_object_get(node, "pattern");
    const char *regex = text_of(pattern, "Regex"), *literal = text_of(pattern, "String"), *behavior = text_of(node, "behavior");
    if (!behavior || strcmp(behavior, "Isolated") != 0)
        return fail(err, "%s: pre-tokenizer Split with behavior %s is not supported; Isolated is", tok->path,
                    behavior ? behavior : "(none)");
    if (!regex && !literal) return fail(err, "%s: pre-tokenizer Split has no pattern", tok->path);
    return add_stage(tok, regex ? regex : literal, !regex, err);
}

static int read_pre_tokenizer(struct tokenizer *tok, const json_t *node, bool *byte_level, int depth, struct error *err) {
    const char *type = type_of(node);
    if (*byte_level) return fail(err, "%s: a pre-tokenizer (%s) after ByteLevel is not supported", tok->path, type);
    if (!strcmp(type, "Sequence") && depth < 4) {
        const json_t *list = json_object_get(node, "pretokenizers");
        for (size_t i = 0; i < json_array_size(list); i++)
            if (read_pre_tokenizer(tok, json_array_get(list, i), byte_level, depth + 1, err)) return -1;
        return 0;
    }
    if (!strcmp(type, "Split")) return read_split(tok, node, err);
    if (!strcmp(type, "Digits"))
        return add_stage(tok, json_is_true(json_object_get(node, "individual_digits")) ? "\\p{N}" : "\\p{N}+", false, err);
    if (!strcmp(type, "ByteLevel")) {
        *byte_level = true;
        tok->add_prefix_space = json_is_true(json_object_get(node, "add_prefix_space"));
        if (tok->add_prefix_space && tok->n_stages)
            return fail(err, "%s: ByteLevel with add_prefix_space after another pre-tokenizer is not supported", tok->path);
        return json_is_false(json_object_get(node, "use_regex")) ? 0 : add_stage(tok, GPT2_PATTERN, false, err);
    }
    return fail(err, "%s: the pre-tokenizer %s is not supported; Split, Digits and ByteLevel are", tok->path, type);
}

/* ---- post-processors and decoder ---- */
static int read_template(struct tokenizer *tok, const json_t *node, struct error *err) {
    const json_t *single = json_object_get(node, "single"), *specials = json_object_get(node, "special_tokens");
    bool after = false;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i), *special = json_object_get(item, "SpecialToken");
        if (json_object_get(item, "Sequence")) after = true;
        if (!special) continue;
        const char *name = text_of(special, "id");
        const json_t *ids = name ? json_object_get(json_object_get(specials, name), "ids") : NULL;
        if (!json_array_size(ids))
            return fail(err, "%s: post_processor: the special token %s has no ids", tok->path, name ? name : "(none)");
        for (size_t k = 0; k < json_array_size(ids); k++) {
            long long id = json_integer_value(json_array_get(ids, k));
            int *n = after ? &tok->n_suffix : &tok->n_prefix;
            if (id < 0 || id >= tok->vocab || *n == MAX_SPECIAL)
                return fail(err, "%s: post_processor: the special token %s has the id %lld outside the vocabulary", tok->path, name, id);
            (after ? tok->suffix : tok->prefix)[(*n)++] = (int)id;
        }
    }
    return 0;
}

static int read_post_processor(struct tokenizer *tok, const json_t *node, int depth, struct error *err) {
    if (!node || json_is_null(node)) return 0;
    const char *type = type_of(node);
    if (!strcmp(type, "ByteLevel")) /* changes offsets only */
        return 0;
    if (!strcmp(type, "TemplateProcessing")) return read_template(tok, node, err);
    if (strcmp(type, "Sequence") != 0 || depth > 3)
        return fail(err, "%s: the post-processor %s is not supported; ByteLevel and TemplateProcessing are", tok->path, type);
    const json_t *list = json_object_get(node, "processors");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (read_post_processor(tok, json_array_get(list, i), depth + 1, err)) return -1;
    return 0;
}

static int read_all(struct tokenizer *tok, const json_t *root, size_t file_bytes, struct error *err) {
    const json_t *normalizer = json_object_get(root, "normalizer"), *decoder = json_object_get(root, "decoder");
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    bool byte_level = false;
    if (!json_is_object(root)) return fail(err, "%s: no JSON object", tok->path);
    if (read_model(tok, json_object_get(root, "model"), json_object_get(root, "added_tokens"), file_bytes, err)) return -1;
    const json_t *inner = json_object_get(normalizer, "normalizers");
    bool nothing = json_is_array(inner) && !json_array_size(inner); /* an empty Sequence */
    if (normalizer && !json_is_null(normalizer) && !nothing)
        return fail(err, "%s: the normalizer %s is not supported; byte-level tokenizers without one are", tok->path, type_of(normalizer));
    if (!json_is_object(pre)) return fail(err, "%s: no pre-tokenizer; byte-level BPE has ByteLevel", tok->path);
    if (read_pre_tokenizer(tok, pre, &byte_level, 0, err)) return -1;
    if (!byte_level) return fail(err, "%s: its pre-tokenizers hold no ByteLevel; only byte-level BPE is supported", tok->path);
    if (decoder && !json_is_null(decoder) && strcmp(type_of(decoder), "ByteLevel") != 0)
        return fail(err, "%s: the decoder %s is not supported; ByteLevel is", tok->path, type_of(decoder));
    return read_post_processor(tok, json_object_get(root, "post_processor"), 0, err);
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
        const char *name = text_of(json_array_get(t, i), "name"), *body = text_of(json_array_get(t, i), "template");
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
    char *path = path_join(dir, "tokenizer.json"), *text = NULL;
    size_t size = 0;
    if (!file_exists(path)) {
        char *piece_model = path_join(dir, "tokenizer.model");
        int rc =
            file_exists(piece_model)
                ? fail(err, "%s: SentencePiece files (tokenizer.model) are not supported yet; a tokenizer.json of byte-level BPE is needed",
                       dir)
            : dir_exists(dir) ? fail(err, "%s: is not there; the folder holds no tokenizer", path)
                              : fail(err, "%s: no such folder", dir);
        free(piece_model);
        free(path);
        return rc;
    }
    struct tokenizer *tok = memory_take(1, sizeof *tok);
    tok->path = path;
    int rc = file_read(path, MAX_JSON, &text, &size, err);
    if (!rc) {
        json_error_t bad;
        json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &bad);
        rc = root ? read_all(tok, root, size, err) : fail(err, "%s:%d: no valid JSON: %s", path, bad.line, bad.text);
        json_decref(root);
    }
    free(text);
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
    for (int i = 0; i < tok->n_added; i++) free(tok->added[i].content);
    for (int i = 0; i < tok->n_stages; i++) pcre2_code_free(tok->stages[i]);
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
