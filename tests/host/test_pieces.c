/* test_pieces.c - SentencePiece's BPE from tokenizer.model and tokenizer.json: ids and text against sentencepiece and `tokenizers`
 * (tests/golden/host, tools/golden/make_host.py); the tokens in the files beside a tokenizer.model; damaged models; what is refused. */
#include "host/file.h"
#include "host/jsonl.h"
#include "host/samples.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define GOLDEN "tests/golden/host/"
#define METASPACE                                                                                                                          \
    "{\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\\u2581\", \"prepend_scheme\": \"first\", "    \
    "\"split\": false}, \"decoder\": {\"type\": \"Metaspace\", \"replacement\": \"\\u2581\", \"prepend_scheme\": \"first\"}}"

static void write_file(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

/* Opens a folder that holds this one file. */
static int open_alone(struct tokenizer **tok, const char *name, const void *data, size_t n, struct error *err) {
    char dir[] = "build/pieces.XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *path = path_join(dir, name);
    write_file(path, data, n);
    *err = (struct error){""};
    int rc = tokenizer_open(tok, dir, err);
    if (rc && !strstr(err->text, path)) fail_msg("the message should name %s: %s", path, err->text);
    unlink(path);
    rmdir(dir);
    free(path);
    return rc;
}

/* llava_hf's tokenizer.json with some of its parts replaced. */
static int open_changed(struct tokenizer **tok, const char *change, struct error *err) {
    json_t *root = json_load_file(GOLDEN "llava_hf/tokenizer.json", 0, NULL), *patch = json_loads(change, 0, NULL);
    const char *key;
    json_t *part;
    assert_non_null(root);
    assert_non_null(patch);
    json_object_foreach(patch, key, part) {
        if (json_is_object(part) && !json_object_get(part, "type")) /* no new part, keys of the old one */
            json_object_update(json_object_get(root, key), part);
        else
            json_object_set(root, key, part);
    }
    char *text = json_dumps(root, 0);
    int rc = open_alone(tok, "tokenizer.json", text, strlen(text), err);
    free(text);
    json_decref(root);
    json_decref(patch);
    return rc;
}

/* pieces/ with another tokenizer_config.json. */
static int open_with(struct tokenizer **tok, const char *config, struct error *err) {
    char dir[] = "build/pieces.XXXXXX", *data;
    size_t n;
    assert_int_equal(file_read(GOLDEN "pieces/tokenizer.model", 1 << 20, &data, &n, err), 0);
    assert_non_null(mkdtemp(dir));
    char *model = path_join(dir, "tokenizer.model"), *beside = path_join(dir, "tokenizer_config.json");
    write_file(model, data, n);
    write_file(beside, config, strlen(config));
    int rc = tokenizer_open(tok, dir, err);
    unlink(model);
    unlink(beside);
    rmdir(dir);
    free(model);
    free(beside);
    free(data);
    return rc;
}

static void open_all(struct tokenizer *toks[4]) {
    struct error err;
    if (tokenizer_open(&toks[0], GOLDEN "pieces", &err) || tokenizer_open(&toks[1], GOLDEN "llava_hf", &err) ||
        open_changed(&toks[2], METASPACE, &err) || open_with(&toks[3], "{\"legacy\": false}", &err))
        fail_msg("%s", err.text);
}

static const char *const names[4] = {"pieces", "llava_hf", "metaspace", "not_legacy"};

static void test_texts(void **state) {
    (void)state;
    struct tokenizer *toks[4];
    struct error err;
    struct jsonl lines;
    json_t *line;
    int n = 0, wrong = 0;
    open_all(toks);
    assert_int_equal(jsonl_open(&lines, GOLDEN "texts_pieces.jsonl", &err), 0);
    for (; jsonl_next(&lines, &line, JSON_ALLOW_NUL, &err) == 1; n++) {
        const json_t *text = json_object_get(line, "text");
        for (int k = 0; k < 4; k++) {
            const json_t *ids = json_object_get(line, names[k]);
            struct token_list list = {0};
            if (tokenizer_encode(toks[k], json_string_value(text), json_string_length(text), true, &list, &err))
                fail_msg("%s line %ld: %s", names[k], lines.line, err.text);
            bool same = list.count == json_array_size(ids);
            for (size_t i = 0; same && i < list.count; i++) same = list.ids[i] == json_integer_value(json_array_get(ids, i));
            if (!same && wrong++ < 5) print_error("%s: line %ld of texts_pieces.jsonl differs\n", names[k], lines.line);
            token_list_free(&list);
        }
        json_decref(line);
    }
    jsonl_close(&lines);
    assert_true(n >= 200);
    assert_int_equal(wrong, 0);
    for (int k = 0; k < 4; k++) tokenizer_close(toks[k]);
}

static void test_decoded(void **state) {
    (void)state;
    struct tokenizer *toks[4];
    struct error err;
    struct jsonl lines;
    json_t *line;
    int n = 0;
    static const struct {
        const char *key;
        int tok;
        bool skip;
    } columns[] = {{"llava_hf", 1, false}, {"skipped", 1, true}, {"metaspace", 2, false}};
    open_all(toks);
    assert_int_equal(jsonl_open(&lines, GOLDEN "decoded.jsonl", &err), 0);
    for (; jsonl_next(&lines, &line, JSON_ALLOW_NUL, &err) == 1; n++) {
        int ids[64];
        const json_t *list = json_object_get(line, "ids");
        size_t count = json_array_size(list), bytes;
        assert_true(count <= 64);
        for (size_t i = 0; i < count; i++) ids[i] = (int)json_integer_value(json_array_get(list, i));
        for (size_t c = 0; c < sizeof columns / sizeof *columns; c++) {
            const json_t *text = json_object_get(line, columns[c].key);
            char *got = tokenizer_decode_sized(toks[columns[c].tok], ids, count, columns[c].skip, &bytes);
            if (bytes != json_string_length(text) || memcmp(got, json_string_value(text), bytes) != 0)
                fail_msg("line %ld of decoded.jsonl, %s: '%s', expected '%s'", lines.line, columns[c].key, got, json_string_value(text));
            free(got);
        }
        json_decref(line);
    }
    jsonl_close(&lines);
    assert_true(n >= 50);
    for (int k = 0; k < 4; k++) tokenizer_close(toks[k]);
}

/* Without files beside it a tokenizer.model has LLaMA's three special tokens; with them their tokens, ids and switches. */
static void test_beside(void **state) {
    (void)state;
    struct error err;
    struct tokenizer *tok;
    char *data;
    size_t n;
    assert_int_equal(file_read(GOLDEN "pieces/tokenizer.model", 1 << 20, &data, &n, &err), 0);
    if (open_alone(&tok, "tokenizer.model", data, n, &err)) fail_msg("%s", err.text);
    assert_int_equal(tokenizer_bos(tok), 1);
    assert_true(tokenizer_is_special(tok, 2) && !tokenizer_is_special(tok, 300));
    assert_int_equal(tokenizer_id(tok, "<pad>"), -1);
    int n_pieces = tokenizer_vocab(tok);
    tokenizer_close(tok);
    if (tokenizer_open(&tok, GOLDEN "pieces", &err)) fail_msg("%s", err.text);
    assert_int_equal(tokenizer_id(tok, "<pad>"), n_pieces);
    assert_true(tokenizer_is_special(tok, n_pieces));
    tokenizer_close(tok);

    static const struct {
        const char *file, *text, *expected; /* expected: NULL where the folder opens */
    } cases[] = {{"tokenizer_config.json", "{\"add_bos_token\": false, \"add_eos_token\": true}", NULL},
                 {"tokenizer_config.json", "{\"add_eos_token\": true, \"eos_token\": \"<end>\"}", NULL},
                 {"added_tokens.json", "{\"<x>\": 900, \"<y>\": 5}", "<y>"},
                 {"added_tokens.json", "{\"<x>\": 2000000000}", "out of range"},
                 {"added_tokens.json", "{\"<x>\": \"a\"}", "no id"},
                 {"added_tokens.json", "[]", "object"},
                 {"special_tokens_map.json", "{", "JSON"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[] = "build/pieces.XXXXXX";
        assert_non_null(mkdtemp(dir));
        char *model = path_join(dir, "tokenizer.model"), *beside = path_join(dir, cases[i].file);
        write_file(model, data, n);
        write_file(beside, cases[i].text, strlen(cases[i].text));
        int rc = tokenizer_open(&tok, dir, &err);
        if (rc ? !cases[i].expected || !strstr(err.text, cases[i].expected) : cases[i].expected != NULL)
            fail_msg("%s: %s", cases[i].text, rc ? err.text : "was accepted");
        if (!rc) {
            struct token_list list = {0};
            assert_int_equal(tokenizer_encode(tok, "the cube", 8, true, &list, &err), 0);
            assert_int_equal(list.ids[0] == 1, i == 1);
            assert_int_equal(list.ids[list.count - 1], i ? n_pieces : 2);
            token_list_free(&list);
            tokenizer_close(tok);
        }
        unlink(model);
        unlink(beside);
        rmdir(dir);
        free(model);
        free(beside);
    }
    free(data);
}

/* Cut anywhere or with a byte changed: an error that names the file, or a tokenizer that still works; never more. */
static void test_damaged(void **state) {
    (void)state;
    struct error err;
    struct tokenizer *tok;
    char *data;
    size_t n;
    int refused = 0, opened = 0;
    assert_int_equal(file_read(GOLDEN "pieces/tokenizer.model", 1 << 20, &data, &n, &err), 0);
    for (size_t cut = 0; cut < n; cut += cut < 100 || n - cut < 100 ? 1 : 131)
        if (!open_alone(&tok, "tokenizer.model", data, cut, &err)) fail_msg("cut to %zu of %zu bytes it was accepted", cut, n);
    for (size_t at = 0; at < n; at += at < 200 || n - at < 400 ? 1 : 29) {
        const char old = data[at];
        data[at] = (char)(old ^ 0x15);
        if (open_alone(&tok, "tokenizer.model", data, n, &err)) {
            refused++;
        } else {
            struct token_list list = {0};
            assert_int_equal(tokenizer_encode(tok, "The red cube <s> \xf0\x9f\x98\x80", 21, true, &list, &err), 0);
            char *text = tokenizer_decode(tok, list.ids, list.count, false);
            free(text);
            token_list_free(&list);
            tokenizer_close(tok);
            opened++;
        }
        data[at] = old;
    }
    assert_true(refused > 50 && opened > 50);
    free(data);
    assert_int_equal(open_alone(&tok, "tokenizer.model", "IQ== 0\nIg== 1\n", 14, &err), -1);
    assert_non_null(strstr(err.text, "tiktoken"));
}

/* A field of the trainer's or the normalizer's settings appended to the model: the last one counts. */
static void model_refused(int message, const char *field, size_t size, const char *expected) {
    struct error err;
    struct tokenizer *tok;
    char *data;
    size_t n;
    assert_int_equal(file_read(GOLDEN "pieces/tokenizer.model", 1 << 20, &data, &n, &err), 0);
    data = memory_grow(data, n + size + 2, 1);
    data[n] = (char)(message << 3 | 2);
    data[n + 1] = (char)size;
    memcpy(data + n + 2, field, size);
    if (!open_alone(&tok, "tokenizer.model", data, n + size + 2, &err)) fail_msg("a model that needs '%s' was accepted", expected);
    if (!strstr(err.text, expected)) fail_msg("the message should name %s: %s", expected, err.text);
    free(data);
}

static void json_refused(const char *change, const char *expected) {
    struct error err;
    struct tokenizer *tok;
    if (!open_changed(&tok, change, &err)) fail_msg("%s was not refused", change);
    if (!strstr(err.text, expected)) fail_msg("the message should name %s: %s", expected, err.text);
}

static void test_refused(void **state) {
    (void)state;
    model_refused(2, "\x18\x01", 2, "Unigram");
    model_refused(2, "\x18\x03", 2, "word");
    model_refused(2, "\x18\x02\xc0\x01\x01", 5, "suffix");
    model_refused(3, "\x12\x01x", 3, "NFKC");
    model_refused(3, "\x20\x01", 2, "remove_extra_whitespaces");
    model_refused(3, "\x20\x00\x28\x00", 4, "escape_whitespaces");
    model_refused(1, "\x0a\x02zz\x18\x05", 6, "unused");
    model_refused(1, "\x0a\x02\xc3(\x18\x01", 6, "UTF-8");
    model_refused(1, "\x0a\x02zz\x15\x00\x00\xc0\x7f", 9, "score");
    json_refused("{\"model\": {\"byte_fallback\": false}}", "byte_fallback");
    json_refused("{\"normalizer\": {\"type\": \"NFKC\"}}", "NFKC");
    json_refused("{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Strip\"}]}}", "Strip");
    json_refused("{\"normalizer\": {\"type\": \"Prepend\"}}", "Prepend");
    json_refused("{\"pre_tokenizer\": {\"type\": \"Whitespace\"}}", "Whitespace");
    json_refused("{\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"_\"}}", "Metaspace");
    json_refused("{\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\\u2581\", \"prepend_scheme\": \"last\"}}", "last");
    json_refused("{\"decoder\": null}", "decoder");
    json_refused("{\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": \"ByteFallback\"}]}}",
                 "ByteFallback");
    json_refused(
        "{\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]}}",
        "Strip");
}

/* ---- a model written here: its scores do not follow its ids ---- */
static size_t put_piece(char *out, const char *piece, float score, int type) {
    size_t n = strlen(piece);
    char *o = out;
    *o++ = 0x0a;
    *o++ = (char)(n + 9);
    *o++ = 0x0a;
    *o++ = (char)n;
    memcpy(o, piece, n);
    o += n;
    *o++ = 0x15;
    memcpy(o, &score, 4);
    o += 4;
    *o++ = 0x18;
    *o++ = (char)type;
    return (size_t)(o - out);
}

static void check_ids(const struct tokenizer *tok, const char *text, const int *expected, size_t n) {
    struct token_list list = {0};
    struct error err;
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), false, &list, &err), 0);
    assert_int_equal(list.count, n);
    for (size_t i = 0; i < n; i++) assert_int_equal(list.ids[i], expected[i]);
    token_list_free(&list);
}

/* The highest score merges first; of equal ones the leftmost; unknown characters in a row are one unknown token. */
static void test_scores(void **state) {
    (void)state;
    struct tokenizer *tok;
    struct error err;
    char data[512];
    for (int equal = 0; equal < 2; equal++) {
        size_t n = put_piece(data, "<unk>", 0, 2);
        n += put_piece(data + n, "<s>", 0, 3);
        n += put_piece(data + n, "</s>", 0, 3);
        n += put_piece(data + n, "bc", -1.0f, 1); /* 3 */
        n += put_piece(data + n, "ab", equal ? -1.0f : -5.0f, 1);
        n += put_piece(data + n, "a", -7, 1); /* 5 */
        n += put_piece(data + n, "b", -7, 1);
        n += put_piece(data + n, "c", -7, 1);
        n += put_piece(data + n, "\xe2\x96\x81", -7, 1); /* 8 */
        memcpy(data + n, "\x12\x02\x18\x02\x1a\x02\x20\x00", 8);
        if (open_alone(&tok, "tokenizer.model", data, n + 8, &err)) fail_msg("%s", err.text);
        check_ids(tok, "abc", equal ? (int[]){8, 4, 7} : (int[]){8, 5, 3}, 3);
        check_ids(tok, "xyaz", (int[]){8, 0, 5, 0}, 4);
        check_ids(tok, "<s>c</s>", (int[]){1, 8, 7, 2}, 4);
        tokenizer_close(tok);
    }
}

/* The text after a picture: llava-hf's tokenizers know its mark and go on after it, to the original LLaVA it is a new text. */
static void test_after_picture(void **state) {
    (void)state;
    struct tokenizer *toks[2];
    struct error err;
    struct sample line = {.prompt = (char *)(uintptr_t) "See<image>the", .image = (char *)(uintptr_t) "x.png"};
    if (open_changed(&toks[0], METASPACE, &err)) fail_msg("%s", err.text);
    json_t *patch = json_loads(METASPACE, 0, NULL);
    json_object_set_new(patch, "added_tokens", json_array());
    char *change = json_dumps(patch, 0);
    if (open_changed(&toks[1], change, &err)) fail_msg("%s", err.text);
    for (int k = 0; k < 2; k++) {
        struct prompt p;
        struct token_list the = {0};
        if (prompt_build(&p, toks[k], TEMPLATE_NONE, &line, 2, false, &err)) fail_msg("%s", err.text);
        assert_int_equal(tokenizer_encode(toks[k], "the", 3, false, &the, &err), 0);
        assert_int_equal(p.ids[p.image_start], IMAGE_TOKEN);
        assert_int_equal(p.ids[p.image_start + 1], IMAGE_TOKEN);
        bool prefixed = p.ids[p.image_start + 2] == the.ids[0] && (size_t)(p.count - p.image_start - 2) == the.count;
        assert_int_equal(prefixed, k == 1);
        token_list_free(&the);
        prompt_free(&p);
        tokenizer_close(toks[k]);
    }
    free(change);
    json_decref(patch);
}

/* More different words than are remembered. */
static void test_many_words(void **state) {
    (void)state;
    struct tokenizer *toks[4];
    struct error err;
    struct token_list first = {0}, second = {0};
    open_all(toks);
    const size_t words = 50000;
    char *text = memory_take(words * 8 + 1, 1), *o = text;
    for (size_t i = 0; i < words; i++) o += sprintf(o, "%sq%zx", i ? " " : "", i * 7919 % 65536);
    assert_int_equal(tokenizer_encode(toks[1], text, strlen(text), false, &first, &err), 0);
    assert_int_equal(tokenizer_encode(toks[1], text, strlen(text), false, &second, &err), 0);
    assert_int_equal(first.count, second.count);
    assert_memory_equal(first.ids, second.ids, first.count * sizeof *first.ids);
    char *back = tokenizer_decode(toks[1], first.ids, first.count, false);
    assert_string_equal(back, text);
    free(back);
    free(text);
    token_list_free(&first);
    token_list_free(&second);
    for (int k = 0; k < 4; k++) tokenizer_close(toks[k]);
}

/* Long texts in one piece and in words: linear enough. */
static void test_long(void **state) {
    (void)state;
    struct tokenizer *toks[4];
    open_all(toks);
    const char *const fills[] = {" ", "a", "a ", "<", "\n", "\xe6\x97\xa5", "\xe2\x96\x81"};
    for (size_t f = 0; f < sizeof fills / sizeof *fills; f++) {
        size_t unit = strlen(fills[f]), n = 200000 * unit;
        char *text = memory_take(n + 1, 1);
        for (size_t i = 0; i < n; i += unit) memcpy(text + i, fills[f], unit);
        for (int k = 0; k < 4; k++) {
            struct token_list list = {0};
            struct error err;
            if (tokenizer_encode(toks[k], text, n, false, &list, &err)) fail_msg("%s", err.text);
            size_t bytes;
            char *back = tokenizer_decode_sized(toks[k], list.ids, list.count, false, &bytes);
            if (f != 6 && k < 2) assert_string_equal(back, text); /* U+2581 comes back as a blank */
            free(back);
            token_list_free(&list);
        }
        free(text);
    }
    for (int k = 0; k < 4; k++) tokenizer_close(toks[k]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts),   cmocka_unit_test(test_decoded),       cmocka_unit_test(test_beside),
        cmocka_unit_test(test_damaged), cmocka_unit_test(test_refused),       cmocka_unit_test(test_long),
        cmocka_unit_test(test_scores),  cmocka_unit_test(test_after_picture), cmocka_unit_test(test_many_words)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
