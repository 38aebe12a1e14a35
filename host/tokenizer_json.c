/* tokenizer_json.c - reads tokenizer.json (Hugging Face `tokenizers`), model BPE, of two kinds (formats.md 7.2, 7.3):
 *   byte-level      pre-tokenizers Split (Regex or String, Isolated), Digits, ByteLevel and sequences of them; decoder ByteLevel
 *   SentencePiece's byte_fallback; normalizers Prepend and Replace; no pre-tokenizer or Metaspace; decoder Metaspace or
 *                   Replace, ByteFallback, Fuse, Strip
 * Post-processors ByteLevel and TemplateProcessing. Everything else is refused by its name. */
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

/* limit: ids must be below it, so that tables stay in proportion to the file. */
static int read_vocabulary(struct tokenizer *tok, const json_t *model, size_t n_added, size_t limit, struct error *err) {
    const json_t *vocab = json_object_get(model, "vocab");
    if (!json_is_object(vocab)) return fail(err, "%s: model.vocab is missing or no JSON object", tok->path);
    vocabulary_begin(tok, json_object_size(vocab) + n_added, limit);
    const char *piece;
    json_t *id;
    json_object_foreach((json_t *)(uintptr_t)vocab, piece, id) {
        if (!json_is_integer(id)) return fail(err, "%s: model.vocab: the id of '%.60s' is no whole number", tok->path, piece);
        if (vocabulary_put(tok, piece, json_integer_value(id), (long long)limit, err)) return -1;
    }
    return 0;
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

static int read_merges(struct tokenizer *tok, const json_t *model, size_t file_bytes, struct error *err) {
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

static int check_model(const struct tokenizer *tok, const json_t *model, struct error *err) {
    const char *type = text_of(model, "type");
    if (!json_is_object(model)) return fail(err, "%s: 'model' is missing", tok->path);
    if (type ? strcmp(type, "BPE") != 0 : !json_object_get(model, "merges"))
        return fail(err, "%s: a tokenizer of type %s is not supported; BPE is, byte-level and SentencePiece's", tok->path, type_of(model));
    if (json_is_number(json_object_get(model, "dropout")) && json_number_value(json_object_get(model, "dropout")) > 0)
        return fail(err, "%s: BPE with dropout is not supported", tok->path);
    const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++)
        if (text_of(model, affixes[i]) && *text_of(model, affixes[i]))
            return fail(err, "%s: BPE with %s is not supported", tok->path, affixes[i]);
    return 0;
}

static int read_model(struct tokenizer *tok, const json_t *model, const json_t *added, size_t file_bytes, struct error *err) {
    if (read_vocabulary(tok, model, json_array_size(added), file_bytes, err) ||
        added_read(tok, added, (int)json_object_size(json_object_get(model, "vocab")), file_bytes, err))
        return -1;
    tok->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    tok->fuse_unknown = json_is_true(json_object_get(model, "fuse_unk"));
    tok->byte_fallback = json_is_true(json_object_get(model, "byte_fallback"));
    const char *unknown = text_of(model, "unk_token");
    tok->unknown = unknown && *unknown ? tokenizer_find(tok, unknown, strlen(unknown)) : -1;
    if (read_merges(tok, model, file_bytes, err)) return -1;
    if (tok->byte_level) {
        byte_table_build(tok);
    } else {
        fallback_table_build(tok);
        words_find(tok);
    }
    return 0;
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
    uint32_t flags = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C); /* \C would cut characters */
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

static int read_metaspace(struct tokenizer *tok, const json_t *node, struct error *err) {
    const char *replacement = text_of(node, "replacement"), *scheme = text_of(node, "prepend_scheme");
    if (!replacement || strcmp(replacement, BLANK_PIECE) != 0)
        return fail(err, "%s: pre-tokenizer Metaspace with the replacement '%.20s' is not supported; U+2581 is", tok->path,
                    replacement ? replacement : "");
    if (scheme && strcmp(scheme, "first") != 0 && strcmp(scheme, "always") != 0 && strcmp(scheme, "never") != 0)
        return fail(err, "%s: pre-tokenizer Metaspace: the prepend_scheme '%.20s' is not supported; first, always and never are", tok->path,
                    scheme);
    bool never = scheme ? !strcmp(scheme, "never") : json_is_false(json_object_get(node, "add_prefix_space"));
    tok->metaspace = true;
    tok->prefix_text = memory_string(BLANK_PIECE);
    tok->prefix_rule = never ? PREFIX_NEVER : scheme && !strcmp(scheme, "first") ? PREFIX_FIRST : PREFIX_ALWAYS;
    tok->split_blanks = !json_is_false(json_object_get(node, "split"));
    return 0;
}

static int read_pre_tokenizer(struct tokenizer *tok, const json_t *node, int depth, struct error *err) {
    if (!node || json_is_null(node)) return 0;
    const char *type = type_of(node);
    if (tok->byte_level || tok->metaspace)
        return fail(err, "%s: a pre-tokenizer (%s) after %s is not supported", tok->path, type,
                    tok->byte_level ? "ByteLevel" : "Metaspace");
    if (!strcmp(type, "Sequence") && depth < 4) {
        const json_t *list = json_object_get(node, "pretokenizers");
        for (size_t i = 0; i < json_array_size(list); i++)
            if (read_pre_tokenizer(tok, json_array_get(list, i), depth + 1, err)) return -1;
        return 0;
    }
    if (!strcmp(type, "Split")) return read_split(tok, node, err);
    if (!strcmp(type, "Digits"))
        return add_stage(tok, json_is_true(json_object_get(node, "individual_digits")) ? "\\p{N}" : "\\p{N}+", false, err);
    if (!strcmp(type, "Metaspace") && !tok->n_stages) return read_metaspace(tok, node, err);
    if (!strcmp(type, "ByteLevel")) {
        tok->byte_level = true;
        if (json_is_true(json_object_get(node, "add_prefix_space"))) {
            if (tok->n_stages)
                return fail(err, "%s: ByteLevel with add_prefix_space after another pre-tokenizer is not supported", tok->path);
            tok->prefix_text = memory_string(" ");
            tok->prefix_rule = PREFIX_ALWAYS;
        }
        return json_is_false(json_object_get(node, "use_regex")) ? 0 : add_stage(tok, GPT2_PATTERN, false, err);
    }
    return fail(err, "%s: the pre-tokenizer %s is not supported%s; Split, Digits, ByteLevel and Metaspace are", tok->path, type,
                tok->n_stages ? " here" : "");
}

/* ---- normalizer ---- */
static int read_normalizer(struct tokenizer *tok, const json_t *node, int depth, struct error *err) {
    if (!node || json_is_null(node)) return 0;
    const char *type = type_of(node);
    const json_t *list = json_object_get(node, "normalizers");
    if (!strcmp(type, "Sequence") && depth < 4) {
        for (size_t i = 0; i < json_array_size(list); i++)
            if (read_normalizer(tok, json_array_get(list, i), depth + 1, err)) return -1;
        return 0;
    }
    bool prepend = !strcmp(type, "Prepend"), replace = !strcmp(type, "Replace");
    const char *from = text_of(json_object_get(node, "pattern"), "String"), *to = text_of(node, prepend ? "prepend" : "content");
    if (!prepend && !replace) return fail(err, "%s: the normalizer %s is not supported; Prepend and Replace are", tok->path, type);
    if (!to || (replace && (!from || !*from)))
        return fail(err, "%s: the normalizer %s is not supported without %s", tok->path, type,
                    prepend ? "a text to prepend" : "a String as its pattern and a content");
    if (tok->n_rewrites == MAX_REWRITES)
        return fail(err, "%s: more than %d normalizers in a row are not supported", tok->path, MAX_REWRITES);
    tok->rewrites[tok->n_rewrites++] = (struct rewrite){prepend ? NULL : memory_string(from), memory_string(to)};
    return 0;
}

/* ---- post-processors ---- */
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
            if (id < 0 || id >= tok->vocab || !tok->pieces[id] || *n == MAX_SPECIAL)
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

/* ---- decoder ---- */

/* Replace, ByteFallback, Fuse, Strip, in this order. */
static int read_decoder_steps(struct tokenizer *tok, const json_t *steps, struct error *err) {
    static const char *const known[] = {"Replace", "ByteFallback", "Fuse", "Strip"};
    size_t at = 0;
    bool fused = false;
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const json_t *step = json_array_get(steps, i), *start = json_object_get(step, "start"), *stop = json_object_get(step, "stop");
        const char *type = type_of(step), *from = text_of(json_object_get(step, "pattern"), "String"), *content = text_of(step, "content");
        while (at < 4 && strcmp(type, known[at]) != 0) at++;
        if (at == 4)
            return fail(err, "%s: the decoder %s is not supported here; Replace, ByteFallback, Fuse, Strip are, in this order", tok->path,
                        type);
        if (at == 0) {
            if (!from || !*from || !content)
                return fail(err, "%s: the decoder Replace is not supported without a String as its pattern and a content", tok->path);
            tok->spelled_blank = (struct rewrite){memory_string(from), memory_string(content)};
        }
        tok->decode_bytes |= at == 1;
        fused |= at == 2;
        if (at == 3) {
            if (!fused || !content || strcmp(content, " ") != 0 || !json_is_integer(start) || !json_is_integer(stop))
                return fail(err, "%s: the decoder Strip is supported for blanks and after Fuse", tok->path);
            tok->strip_start = (int)json_integer_value(start);
            tok->strip_stop = (int)json_integer_value(stop);
        }
        at++;
    }
    return 0;
}

static int read_decoder(struct tokenizer *tok, const json_t *node, struct error *err) {
    const char *type = json_is_object(node) ? type_of(node) : NULL, *replacement = text_of(node, "replacement"),
               *scheme = text_of(node, "prepend_scheme");
    if (tok->byte_level)
        return !type || !strcmp(type, "ByteLevel") ? 0 : fail(err, "%s: the decoder %s is not supported; ByteLevel is", tok->path, type);
    if (type && !strcmp(type, "Sequence")) return read_decoder_steps(tok, json_object_get(node, "decoders"), err);
    if (!type || strcmp(type, "Metaspace") != 0 || !replacement || !*replacement)
        return fail(err, "%s: the decoder %s is not supported; Metaspace and a Sequence of Replace, ByteFallback, Fuse and Strip are",
                    tok->path, type ? type : "(none)");
    tok->spelled_blank = (struct rewrite){memory_string(replacement), memory_string(" ")};
    tok->drop_first_blanks = scheme ? strcmp(scheme, "never") != 0 : !json_is_false(json_object_get(node, "add_prefix_space"));
    return 0;
}

/* ---- the whole ---- */
static int read_all(struct tokenizer *tok, const json_t *root, size_t file_bytes, struct error *err) {
    const json_t *model = json_object_get(root, "model");
    if (!json_is_object(root)) return fail(err, "%s: no JSON object", tok->path);
    if (check_model(tok, model, err) || read_normalizer(tok, json_object_get(root, "normalizer"), 0, err) ||
        read_pre_tokenizer(tok, json_object_get(root, "pre_tokenizer"), 0, err))
        return -1;
    if (!tok->byte_level && (tok->n_stages || !json_is_true(json_object_get(model, "byte_fallback"))))
        return fail(err,
                    "%s: it is neither byte-level BPE (a pre-tokenizer ByteLevel) nor SentencePiece's (byte_fallback, no pre-tokenizer or "
                    "Metaspace)",
                    tok->path);
    if (tok->byte_level && (tok->n_rewrites || json_is_true(json_object_get(model, "byte_fallback"))))
        return fail(err, "%s: %s together with ByteLevel is not supported", tok->path, tok->n_rewrites ? "a normalizer" : "byte_fallback");
    if (read_model(tok, model, json_object_get(root, "added_tokens"), file_bytes, err)) return -1;
    return read_decoder(tok, json_object_get(root, "decoder"), err) ||
                   read_post_processor(tok, json_object_get(root, "post_processor"), 0, err)
               ? -1
               : 0;
}

int tokenizer_json_read(struct tokenizer *tok, struct error *err) {
    char *text = NULL;
    size_t size = 0;
    json_error_t bad;
    if (file_read(tok->path, MAX_JSON, &text, &size, err)) return -1;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &bad);
    int rc = root ? read_all(tok, root, size, err) : fail(err, "%s:%d: no valid JSON: %s", tok->path, bad.line, bad.text);
    json_decref(root);
    free(text);
    return rc;
}
