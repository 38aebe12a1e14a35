/* test_samples.c - data lines and the prompts made of them: golden ids and kinds (tests/golden/host/prompts.jsonl), the rules about
 * pictures and marks, and every bad line named by file, line and reason. */
#include "host/file.h"
#include "host/jsonl.h"
#include "host/samples.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define GOLDEN    "tests/golden/host/"
#define FILE_NAME "build/test-samples.jsonl"

static struct tokenizer *tok, *pieces, *llava_hf;

static int setup(void **state) {
    (void)state;
    struct error err;
    return tokenizer_open(&tok, GOLDEN "llama3", &err) || tokenizer_open(&pieces, GOLDEN "pieces", &err) ||
           tokenizer_open(&llava_hf, GOLDEN "llava_hf", &err);
}

static int teardown(void **state) {
    (void)state;
    tokenizer_close(tok);
    tokenizer_close(pieces);
    tokenizer_close(llava_hf);
    unlink(FILE_NAME);
    return 0;
}

static void write_text(const char *text) {
    FILE *f = fopen(FILE_NAME, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* The golden lines, each written to a file and read back as a sample. */
static void test_golden(void **state) {
    (void)state;
    struct error err = {""};
    struct jsonl lines;
    json_t *line;
    int n = 0, wrong = 0;
    assert_int_equal(jsonl_open(&lines, GOLDEN "prompts.jsonl", &err), 0);
    for (; jsonl_next(&lines, &line, 0, &err) == 1; n++) {
        char *text = json_dumps(json_object_get(line, "line"), JSON_COMPACT);
        struct samples s;
        struct prompt p;
        write_text(text);
        free(text);
        if (samples_open(&s, FILE_NAME, &err)) fail_msg("%s", err.text);
        const json_t *ids = json_object_get(line, "ids"), *kinds = json_object_get(line, "kinds");
        const char *folder = json_string_value(json_object_get(line, "tokenizer"));
        enum prompt_template t;
        assert_int_equal(prompt_template_named(&t, json_string_value(json_object_get(line, "template")), &err), 0);
        if (prompt_build(&p,
                         !folder                     ? tok
                         : !strcmp(folder, "pieces") ? pieces
                                                     : llava_hf,
                         t, &s.at[0], (int)json_integer_value(json_object_get(line, "rows")), true, &err))
            fail_msg("line %ld: %s", lines.line, err.text);
        bool same = (size_t)p.count == json_array_size(ids);
        for (int i = 0; same && i < p.count; i++)
            same = p.ids[i] == json_integer_value(json_array_get(ids, (size_t)i)) &&
                   p.kinds[i] == json_integer_value(json_array_get(kinds, (size_t)i));
        if (!same && wrong++ < 5)
            print_error("line %ld of prompts.jsonl differs (%d tokens, expected %zu)\n", lines.line, p.count, json_array_size(ids));
        int first = -1;
        for (int i = p.count - 1; i >= 0; i--) first = p.ids[i] == IMAGE_TOKEN ? i : first;
        assert_int_equal(p.image_start, first);
        prompt_free(&p);
        samples_free(&s);
        json_decref(line);
    }
    jsonl_close(&lines);
    assert_true(n >= 70);
    assert_int_equal(wrong, 0);
}

static void test_keys(void **state) {
    (void)state;
    struct error err = {""};
    struct samples s;
    write_text("\xef\xbb\xbf{\"prompt\": \"a\", \"extra\": [1]}\n\n   \r\n{\"id\": \"x\\\"y\", \"image\": \"p/q.png\", \"caption\": \"c\", "
               "\"label\": 1, \"relation\": \"left\"}\r\n"
               "{\"id\": 7, \"image\": \"/abs.png\", \"question\": \" q \", \"answer\": null, \"answers\": [\"u\", {\"answer\": \"v\"}]}");
    if (samples_open(&s, FILE_NAME, &err)) fail_msg("%s", err.text);
    assert_int_equal(s.count, 3);
    assert_string_equal(s.at[0].id, "0");
    assert_int_equal(s.at[0].label, -1);
    assert_non_null(json_object_get(s.at[0].json, "extra"));
    assert_string_equal(s.at[1].id, "\"x\\\"y\"");
    assert_string_equal(s.at[1].image, "build/p/q.png");
    assert_int_equal(s.at[1].label, 1);
    assert_int_equal(s.at[1].line, 4);
    assert_string_equal(s.at[1].relation, "left");
    assert_string_equal(s.at[2].id, "7");
    assert_string_equal(s.at[2].image, "/abs.png");
    assert_string_equal(s.at[2].question, " q ");
    assert_null(s.at[2].answer);
    samples_free(&s);
    write_text("{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\"}\n");
    assert_int_equal(samples_open(&s, FILE_NAME, &err), 0);
    assert_string_equal(s.at[1].id, "1");
    assert_int_equal(s.at[1].line, 3);
    samples_free(&s);
}

static void test_bad_lines(void **state) {
    (void)state;
    static const char *const bad[][2] = {
        {"{\"prompt\": 5}", "'prompt'"},
        {"{\"question\": [\"a\"]}", "'question'"},
        {"{\"image\": 3}", "'image'"},
        {"{\"image\": \"\"}", "'image'"},
        {"{\"label\": 2}", "'label'"},
        {"{\"label\": \"yes\"}", "'label'"},
        {"{\"id\": [1]}", "'id'"},
        {"{\"answers\": \"a\"}", "'answers'"},
        {"{\"prompt\": \"a\"", "JSON"},
        {"[1, 2]", "object"},
        {"5", "JSON"},
        {"{\"prompt\": \"a\", \"prompt\": \"b\"}", "duplicate"},
        {"{\"prompt\": \"a\"} x", "JSON"},
        {"{\"prompt\": \"\\u0000\"}", "JSON"},
        {"{\"prompt\": \"\xff\"}", "0xff"},
        {"{\"prompt\": \"\\ud800\"}", "JSON"},
        {"{'prompt': 1}", "JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error err = {""};
        struct samples s;
        char text[256];
        snprintf(text, sizeof text, "{\"prompt\": \"fine\"}\n\n%s\n{\"prompt\": \"fine\"}\n", bad[i][0]);
        write_text(text);
        if (!samples_open(&s, FILE_NAME, &err)) fail_msg("accepted: %s", bad[i][0]);
        if (!strstr(err.text, FILE_NAME ":3") || !strstr(err.text, bad[i][1]))
            fail_msg("%s: the message should name line 3 and %s: %s", bad[i][0], bad[i][1], err.text);
        assert_int_equal(s.count, 0);
    }
    struct error err;
    struct samples s;
    write_text("{\"prompt\": \"fine\"}\n{"); /* the last line, without an end */
    assert_int_equal(samples_open(&s, FILE_NAME, &err), -1);
    assert_non_null(strstr(err.text, FILE_NAME ":2"));
    write_text("\n \n");
    assert_int_equal(samples_open(&s, FILE_NAME, &err), -1);
    assert_int_equal(samples_open(&s, "build/no such file", &err), -1);
    assert_int_equal(samples_open(&s, "build", &err), -1);
}

static int build(struct prompt *p, enum prompt_template t, struct sample s, int rows, struct error *err) {
    return prompt_build(p, tok, t, &s, rows, false, err);
}

static void test_marks(void **state) {
    (void)state;
    struct error err;
    struct prompt p;
    assert_int_equal(build(&p, TEMPLATE_LLAMA_3_1, (struct sample){.prompt = "a <image> b"}, 4, &err), -1);
    assert_non_null(strstr(err.text, "no picture"));
    assert_int_equal(build(&p, TEMPLATE_LLAMA_3_1, (struct sample){.prompt = "<image><image>", .image = "x"}, 4, &err), -1);
    assert_non_null(strstr(err.text, "one picture"));
    assert_int_equal(build(&p, TEMPLATE_LLAMA_3_1, (struct sample){.question = "<image> what?", .image = "x"}, 4, &err), -1);
    assert_int_equal(build(&p, TEMPLATE_LLAMA_3_1, (struct sample){.prompt = "a", .image = "x"}, 0, &err), -1);
    assert_int_equal(build(&p, TEMPLATE_LLAMA_3_1, (struct sample){.image = "x"}, 4, &err), -1);
    assert_non_null(strstr(err.text, "question"));
    assert_int_equal(build(&p, TEMPLATE_NONE, (struct sample){.question = "a"}, 4, &err), -1);
    assert_non_null(strstr(err.text, "--template"));
    assert_int_equal(build(&p, TEMPLATE_NONE, (struct sample){.prompt = "a"}, 4, &err), 0); /* a prompt needs no template */
    prompt_free(&p);
    /* right after BOS, nothing between */
    assert_int_equal(build(&p, TEMPLATE_NONE, (struct sample){.prompt = "a", .image = "x"}, 4, &err), 0);
    assert_int_equal(p.count, 6);
    assert_int_equal(p.ids[0], tokenizer_bos(tok));
    assert_int_equal(p.image_start, 1);
    assert_int_equal(p.kinds[0], KIND_BOS);
    assert_int_equal(p.kinds[4], KIND_IMAGE);
    assert_int_equal(p.kinds[5], KIND_QUESTION);
    prompt_free(&p);
    /* a spelled BOS at the front is the one BOS; one further on is text of the prompt */
    assert_int_equal(build(&p, TEMPLATE_NONE, (struct sample){.prompt = "<|begin_of_text|>a<|begin_of_text|>"}, 4, &err), 0);
    assert_int_equal(p.count, 3);
    assert_int_equal(p.kinds[0], KIND_BOS);
    assert_int_equal(p.kinds[2], KIND_QUESTION);
    prompt_free(&p);
    /* an empty prompt is BOS alone */
    assert_int_equal(build(&p, TEMPLATE_NONE, (struct sample){.prompt = ""}, 4, &err), 0);
    assert_int_equal(p.count, 1);
    prompt_free(&p);
}

/* A tokenizer without LLaMA-3's tokens cannot write its template; without BOS an empty prompt has nothing. */
static void test_other_tokenizer(void **state) {
    (void)state;
    struct error err;
    struct tokenizer *gpt2;
    struct prompt p;
    assert_int_equal(tokenizer_open(&gpt2, GOLDEN "gpt2", &err), 0);
    struct sample s = {.question = "a"};
    assert_int_equal(prompt_build(&p, gpt2, TEMPLATE_LLAMA_3_1, &s, 0, false, &err), -1);
    assert_non_null(strstr(err.text, "<|begin_of_text|>"));
    assert_int_equal(prompt_build(&p, gpt2, TEMPLATE_VICUNA_V1, &s, 0, false, &err), 0);
    assert_int_equal(p.kinds[0], KIND_TEMPLATE);
    prompt_free(&p);
    s = (struct sample){.prompt = ""};
    assert_int_equal(prompt_build(&p, gpt2, TEMPLATE_NONE, &s, 0, false, &err), -1);
    enum prompt_template t;
    assert_int_equal(prompt_template_of(&t, gpt2, true, &err), -1);
    assert_int_equal(prompt_template_of(&t, gpt2, false, &err), -1);
    assert_non_null(strstr(err.text, "--template"));
    assert_int_equal(prompt_template_of(&t, tok, true, &err), 0);
    assert_int_equal(t, TEMPLATE_LLAMA_3_1);
    assert_int_equal(prompt_template_of(&t, pieces, true, &err), 0);
    assert_int_equal(t, TEMPLATE_VICUNA_V1);
    tokenizer_close(gpt2);
}

#define CHATML_REST                                                                                                                        \
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"   \
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
#define CHATML "{% for message in messages %}" CHATML_REST
#define LLAVA_CHAT(last)                                                                                                                   \
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}{# Render all images " \
    "first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}{# Render all " \
    "text next #}{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') "     \
    "%}{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') "      \
    "%}{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ "  \
    "'" last "' }}{% endif %}"

/* Chat templates are compared as text, blanks outside of quotes apart; anything else is not guessed. */
static void test_chat_templates(void **state) {
    (void)state;
    static const struct {
        const char *chat;
        enum prompt_template t;
    } cases[] = {
        {"{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
         "'<|end_header_id|>\\n\\n'+ message['content'] | trim + "
         "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if "
         "add_generation_prompt %}{{ "
         "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
         TEMPLATE_CHAT_LLAMA3},
        {"{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
         "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
         "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{{ "
         "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
         TEMPLATE_CHAT_LLAMA3},
        {"{% for message in messages %}{{ message['content'] }}{% endfor %}", TEMPLATE_NONE},
        {"", TEMPLATE_NONE},
        {CHATML, TEMPLATE_CHATML},
        {"{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
         "assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}" CHATML_REST,
         TEMPLATE_SMOLLM2},
        {"{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful "
         "assistant<|im_end|>\n' }}{% endif %}" CHATML_REST,
         TEMPLATE_NONE},
        {LLAVA_CHAT("ASSISTANT:"), TEMPLATE_CHAT_LLAVA},
        {LLAVA_CHAT("ASSISTANT: "), TEMPLATE_NONE},
    };
    char *text;
    size_t size;
    struct error err;
    assert_int_equal(file_read(GOLDEN "llama3/tokenizer.json", 1 << 20, &text, &size, &err), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[] = "build/chat.XXXXXX";
        assert_non_null(mkdtemp(dir));
        char *a = path_join(dir, "tokenizer.json"), *b = path_join(dir, "tokenizer_config.json");
        FILE *f = fopen(a, "wb");
        fwrite(text, 1, size, f);
        fclose(f);
        json_t *config = json_pack("{s:s}", "chat_template", cases[i].chat);
        json_dump_file(config, b, 0);
        json_decref(config);
        struct tokenizer *one;
        enum prompt_template t;
        assert_int_equal(tokenizer_open(&one, dir, &err), 0);
        assert_int_equal(prompt_template_of(&t, one, false, &err), cases[i].t != TEMPLATE_NONE ? 0 : -1);
        assert_int_equal(t, cases[i].t);
        tokenizer_close(one);
        unlink(a);
        unlink(b);
        rmdir(dir);
        free(a);
        free(b);
    }
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden),          cmocka_unit_test(test_keys),
                                       cmocka_unit_test(test_bad_lines),       cmocka_unit_test(test_marks),
                                       cmocka_unit_test(test_other_tokenizer), cmocka_unit_test(test_chat_templates)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
