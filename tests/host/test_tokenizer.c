/* test_tokenizer.c - ids, pieces and text against `tokenizers` (tests/golden/host, tools/golden/make_host.py); what is refused, and how. */
#include "host/file.h"
#include "host/jsonl.h"
#include "host/tokenizer.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define GOLDEN "tests/golden/host/"

static struct tokenizer *open_golden(const char *kind) {
    struct error err;
    struct tokenizer *tok;
    char dir[64];
    snprintf(dir, sizeof dir, GOLDEN "%s", kind);
    if (tokenizer_open(&tok, dir, &err)) fail_msg("%s", err.text);
    return tok;
}

/* Every golden text under both tokenizers: same ids, and the ids give the text back where the vocabulary has all its bytes. */
static void test_texts(void **state) {
    (void)state;
    const char *const kinds[] = {"llama3", "gpt2"};
    for (int k = 0; k < 2; k++) {
        struct error err;
        struct tokenizer *tok = open_golden(kinds[k]);
        struct jsonl lines;
        json_t *line;
        int n = 0, wrong = 0;
        assert_int_equal(jsonl_open(&lines, GOLDEN "texts.jsonl", &err), 0);
        while (jsonl_next(&lines, &line, JSON_ALLOW_NUL, &err) == 1) {
            const json_t *text = json_object_get(line, "text"), *ids = json_object_get(line, kinds[k]);
            struct token_list list = {0};
            if (tokenizer_encode(tok, json_string_value(text), json_string_length(text), true, &list, &err))
                fail_msg("%s line %ld: %s", kinds[k], lines.line, err.text);
            bool same = list.count == json_array_size(ids);
            for (size_t i = 0; same && i < list.count; i++) same = list.ids[i] == json_integer_value(json_array_get(ids, i));
            if (!same && wrong++ < 5) print_error("%s: line %ld of texts.jsonl differs\n", kinds[k], lines.line);
            if (k == 0 && list.count) { /* this vocabulary has every byte: BOS, then the text again */
                size_t bytes;
                char *back = tokenizer_decode_sized(tok, list.ids + 1, list.count - 1, false, &bytes);
                assert_int_equal(bytes, json_string_length(text));
                assert_memory_equal(back, json_string_value(text), bytes);
                free(back);
            }
            token_list_free(&list);
            json_decref(line);
            n++;
        }
        assert_true(n >= 300);
        assert_int_equal(wrong, 0);
        jsonl_close(&lines);
        tokenizer_close(tok);
    }
}

static void test_special(void **state) {
    (void)state;
    struct error err;
    struct tokenizer *tok = open_golden("llama3");
    struct token_list list = {0};
    int eot = tokenizer_id(tok, "<|eot_id|>");
    assert_true(eot > 0);
    assert_true(tokenizer_is_special(tok, eot));
    assert_false(tokenizer_is_special(tok, 5));
    assert_int_equal(tokenizer_bos(tok), tokenizer_id(tok, "<|begin_of_text|>"));
    assert_int_equal(tokenizer_encode(tok, "the<|eot_id|>the", 16, false, &list, &err), 0);
    assert_true(list.count >= 3);
    int found = 0;
    for (size_t i = 0; i < list.count; i++) found += list.ids[i] == eot;
    assert_int_equal(found, 1);
    char *kept = tokenizer_decode(tok, list.ids, list.count, false), *skipped = tokenizer_decode(tok, list.ids, list.count, true);
    assert_string_equal(kept, "the<|eot_id|>the");
    assert_string_equal(skipped, "thethe");
    free(kept);
    free(skipped);
    assert_null(tokenizer_piece(tok, -1));
    assert_null(tokenizer_piece(tok, tokenizer_vocab(tok)));
    assert_int_equal(tokenizer_id(tok, "no such piece"), -1);
    token_list_free(&list);
    tokenizer_close(tok);
}

/* Bytes that form no character become one U+FFFD per maximal part, as in Rust's from_utf8_lossy. */
static void test_ill_formed(void **state) {
    (void)state;
    static const struct {
        unsigned char bytes[8];
        const char *text;
    } cases[] = {{"\xff", "\xef\xbf\xbd"},
                 {"a\xc3", "a\xef\xbf\xbd"},
                 {"\xe6\x97", "\xef\xbf\xbd"},
                 {"\xe6\x97"
                  "b",
                  "\xef\xbf\xbd"
                  "b"},
                 {"\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xf0\x9f\x98", "\xef\xbf\xbd"},
                 {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"}};
    struct tokenizer *tok = open_golden("llama3");
    int of_byte[256];
    for (int b = 0; b < 256; b++) { /* GPT-2's table again, written independently: printable bytes stand for themselves */
        bool itself = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        int shifted = 256, c = b;
        for (int lower = 0; lower < b; lower++)
            shifted += !((lower >= '!' && lower <= '~') || (lower >= 0xa1 && lower <= 0xac) || lower >= 0xae);
        c = itself ? b : shifted;
        char piece[3] = {(char)c, 0, 0};
        if (c >= 128) {
            piece[0] = (char)(0xc0 | c >> 6);
            piece[1] = (char)(0x80 | (c & 63));
        }
        of_byte[b] = tokenizer_id(tok, piece);
        assert_true(of_byte[b] >= 0);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int ids[8];
        size_t n = 0;
        for (; cases[i].bytes[n]; n++) ids[n] = of_byte[cases[i].bytes[n]];
        char *text = tokenizer_decode(tok, ids, n, false);
        assert_string_equal(text, cases[i].text);
        free(text);
    }
    struct token_list list = {0};
    struct error err;
    assert_int_equal(tokenizer_encode(tok, "ok\xffno", 5, true, &list, &err), -1);
    assert_non_null(strstr(err.text, "byte 2"));
    token_list_free(&list);
    tokenizer_close(tok);
}

/* A million blanks, a million letters, a million special tokens' beginnings: linear enough, and no stack or JIT limit is met. */
static void test_long(void **state) {
    (void)state;
    struct tokenizer *tok = open_golden("llama3");
    const char *const fills[] = {" ", "a", "<|", "\n", "1", "\xe6\x97\xa5"};
    for (size_t f = 0; f < sizeof fills / sizeof *fills; f++) {
        size_t unit = strlen(fills[f]), n = 300000 * unit;
        char *text = memory_take(n + 1, 1);
        for (size_t i = 0; i < n; i += unit) memcpy(text + i, fills[f], unit);
        struct token_list list = {0};
        struct error err;
        if (tokenizer_encode(tok, text, n, false, &list, &err)) fail_msg("%s", err.text);
        char *back = tokenizer_decode(tok, list.ids, list.count, false);
        assert_string_equal(back, text);
        free(back);
        free(text);
        token_list_free(&list);
    }
    tokenizer_close(tok);
}

/* Changes one thing in the golden tokenizer.json, writes it to a folder of its own and tries to open that. */
static void refused(const char *change, const char *expected) {
    struct error err = {""};
    char *text, dir[] = "build/tokenizer.XXXXXX";
    size_t size;
    assert_int_equal(file_read(GOLDEN "llama3/tokenizer.json", 1 << 20, &text, &size, &err), 0);
    json_t *root = json_loadb(text, size, 0, NULL), *patch = json_loads(change, 0, NULL);
    assert_non_null(patch);
    json_object_update_recursive(root, patch);
    assert_non_null(mkdtemp(dir));
    char *path = path_join(dir, "tokenizer.json");
    json_dump_file(root, path, 0);
    struct tokenizer *tok;
    if (!tokenizer_open(&tok, dir, &err)) fail_msg("%s was not refused", change);
    if (!strstr(err.text, expected) || !strstr(err.text, path))
        fail_msg("%s: the message should name %s and the file: %s", change, expected, err.text);
    unlink(path);
    rmdir(dir);
    free(path);
    free(text);
    json_decref(root);
    json_decref(patch);
}

static void test_refused(void **state) {
    (void)state;
    refused("{\"model\": {\"type\": \"Unigram\"}}", "Unigram");
    refused("{\"model\": {\"type\": \"WordPiece\"}}", "WordPiece");
    refused("{\"model\": {\"byte_fallback\": true}}", "byte_fallback");
    refused("{\"model\": {\"dropout\": 0.1}}", "dropout");
    refused("{\"model\": {\"end_of_word_suffix\": \"</w>\"}}", "end_of_word_suffix");
    refused("{\"model\": {\"vocab\": 3}}", "vocab");
    refused("{\"model\": {\"vocab\": {\"x\": 4000000000}}}", "4000000000");
    refused("{\"model\": {\"vocab\": {\"x\": -1}}}", "-1");
    refused("{\"model\": {\"vocab\": {\"x\": 7}}}", "belongs to both");
    refused("{\"model\": {\"merges\": [[\"q\", \"\\u0416\"]]}}", "merges[0]");
    refused("{\"model\": {\"merges\": [5]}}", "merges[0]");
    refused("{\"normalizer\": {\"type\": \"NFC\"}}", "NFC");
    refused("{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}]}}", "NFC");
    refused("{\"pre_tokenizer\": {\"type\": \"Metaspace\"}}", "Metaspace");
    refused("{\"pre_tokenizer\": null}", "pre-tokenizer");
    refused("{\"normalizer\": {\"type\": \"Prepend\", \"prepend\": \"x\"}}", "normalizer");
    refused("{\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"Regex\": \"x\"}, \"content\": \"\"}}", "Replace");
    refused(
        "{\"pre_tokenizer\": {\"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, \"behavior\": \"Isolated\"}]}}",
        "pattern");
    refused("{\"pre_tokenizer\": {\"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\C\"}, \"behavior\": "
            "\"Isolated\"}]}}",
            "pattern is not understood");
    refused("{\"pre_tokenizer\": {\"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Removed\"}]}}",
            "Removed");
    refused("{\"pre_tokenizer\": {\"pretokenizers\": [{\"type\": \"Digits\"}]}}", "ByteLevel");
    refused("{\"decoder\": {\"type\": \"WordPiece\"}}", "WordPiece");
    refused("{\"post_processor\": {\"type\": \"RobertaProcessing\"}}", "RobertaProcessing");
    refused("{\"added_tokens\": [{\"id\": 1}]}", "added_tokens[0]");
    refused("{\"added_tokens\": [{\"id\": 9000, \"content\": \"x y\", \"single_word\": true}]}", "single_word");
    struct error err;
    struct tokenizer *tok;
    assert_int_equal(tokenizer_open(&tok, "tests/no such folder", &err), -1);
    assert_non_null(strstr(err.text, "no such folder"));
}

/* lstrip and rstrip swallow the blanks around a token; a `normalized` one is found only between the others. */
static void test_strip(void **state) {
    (void)state;
    struct error err;
    char *text, dir[] = "build/tokenizer.XXXXXX";
    size_t size;
    assert_int_equal(file_read(GOLDEN "llama3/tokenizer.json", 1 << 20, &text, &size, &err), 0);
    json_t *root = json_loadb(text, size, 0, NULL);
    int next = (int)(json_object_size(json_object_get(json_object_get(root, "model"), "vocab")) +
                     json_array_size(json_object_get(root, "added_tokens")));
    json_array_append_new(json_object_get(root, "added_tokens"), json_pack("{s:i,s:s,s:b,s:b,s:b,s:b}", "id", next, "content", "[L]",
                                                                           "lstrip", 1, "rstrip", 0, "special", 1, "normalized", 0));
    json_array_append_new(json_object_get(root, "added_tokens"), json_pack("{s:i,s:s,s:b,s:b,s:b,s:b}", "id", next + 1, "content", "[R]",
                                                                           "lstrip", 0, "rstrip", 1, "special", 0, "normalized", 0));
    json_array_append_new(json_object_get(root, "added_tokens"), json_pack("{s:i,s:s,s:b,s:b,s:b,s:b}", "id", next + 2, "content", "a[L",
                                                                           "lstrip", 0, "rstrip", 0, "special", 0, "normalized", 1));
    assert_non_null(mkdtemp(dir));
    char *path = path_join(dir, "tokenizer.json");
    json_dump_file(root, path, 0);
    struct tokenizer *tok;
    if (tokenizer_open(&tok, dir, &err)) fail_msg("%s", err.text);
    struct token_list list = {0};
    static const char sample[] = "a \xe2\x80\xa9 [L] b[R] \n c a[L]a[L";
    assert_int_equal(tokenizer_encode(tok, sample, sizeof sample - 1, false, &list, &err), 0);
    int a = tokenizer_id(tok, "a"), b = tokenizer_id(tok, "b"), c = tokenizer_id(tok, "c"),
        gap = tokenizer_id(tok, "\xc4\xa0"); /* a blank in GPT-2's table */
    const int blank_b = tokenizer_id(tok, "\xc4\xa0"
                                          "b"),
              blank_a = tokenizer_id(tok, "\xc4\xa0"
                                          "a");
    int expected[16], n = 0;
    expected[n++] = a;
    expected[n++] = next;
    if (blank_b >= 0)
        expected[n++] = blank_b;
    else
        expected[n++] = gap, expected[n++] = b;
    expected[n++] = next + 1;
    expected[n++] = c;
    if (blank_a >= 0)
        expected[n++] = blank_a;
    else
        expected[n++] = gap, expected[n++] = a;
    expected[n++] = next;
    expected[n++] = next + 2;
    assert_int_equal(list.count, n);
    for (int i = 0; i < n; i++) assert_int_equal(list.ids[i], expected[i]);
    token_list_free(&list);
    tokenizer_close(tok);
    unlink(path);
    rmdir(dir);
    free(path);
    free(text);
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_texts), cmocka_unit_test(test_special), cmocka_unit_test(test_ill_formed),
                                       cmocka_unit_test(test_long),  cmocka_unit_test(test_refused), cmocka_unit_test(test_strip)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
