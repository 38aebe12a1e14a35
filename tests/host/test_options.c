/* test_options.c - parsing, defaults, bounds, suggestions: one table drives them all. */
#include "host/options.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

static struct option table[] = {
    {.name = "SOURCE", .type = OPTION_TEXT, .required = true, .help = "where from"},
    {.name = "REST", .type = OPTION_LIST, .help = "more"},
    {.name = "--batch", .type = OPTION_INT, .low = 1, .high = 64, .fallback = "8", .help = "samples at once"},
    {.name = "--lr", .type = OPTION_REAL, .low = 0, .high = 1, .fallback = "2e-4", .help = "step size"},
    {.name = "--out", .type = OPTION_TEXT, .fallback = NULL, .help = "result"},
    {.name = "--image", .type = OPTION_LIST, .help = "picture"},
    {.name = "--json", .type = OPTION_FLAG, .help = "as JSON"},
    {.name = NULL},
};
static struct command cmd = {.name = "try", .summary = "tries", .description = "Example:\n  stagediff try x", .options = table};

static int parse(struct error *err, const char *words) {
    static char copy[8][256];
    static char *argv[16];
    static int turn;
    char *text = copy[turn++ % 8], *save = NULL;
    int argc = 0;
    snprintf(text, 256, "%s", words);
    for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save)) argv[argc++] = strcmp(w, "''") ? w : (char[]){""};
    return options_parse(&cmd, argc, argv, err);
}

static void test_values(void **state) {
    (void)state;
    struct error err = {""};
    assert_int_equal(parse(&err, "src"), 0);
    assert_string_equal(option(&cmd, "SOURCE")->text, "src");
    assert_true(option(&cmd, "--batch")->number == 8 && !option(&cmd, "--batch")->given);
    assert_true(option(&cmd, "--lr")->number == 2e-4);
    assert_null(option(&cmd, "--out")->text);
    assert_int_equal(option(&cmd, "--json")->number, 0);
    assert_int_equal(cmd.threads, 0);
    assert_int_equal(parse(&err, "--batch=64 src --lr 1 --image a --image b --json --out -- --quiet a b --threads 3"), 0);
    assert_string_equal(option(&cmd, "--out")->text, "--"); /* the word after an option that takes a value is its value */
    assert_int_equal(option(&cmd, "REST")->n_list, 2);
    assert_int_equal(option(&cmd, "--image")->n_list, 2);
    assert_string_equal(option(&cmd, "--image")->list[1], "b");
    assert_true(option(&cmd, "--batch")->number == 64 && option(&cmd, "--batch")->given && option(&cmd, "--json")->given);
    assert_true(cmd.quiet && cmd.threads == 3);
    assert_int_equal(parse(&err, "src -- --batch -x"), 0); /* after --, arguments only */
    assert_int_equal(option(&cmd, "REST")->n_list, 2);
    assert_int_equal(option(&cmd, "--batch")->number, 8); /* nothing stays from the last call */
    assert_int_equal(option(&cmd, "--image")->n_list, 0);
    assert_false(cmd.quiet);
    assert_int_equal(parse(&err, "-"), 0);
    assert_string_equal(option(&cmd, "SOURCE")->text, "-");
}

static void test_faults(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"src --bach 3", "did you mean --batch?"},
        {"src --imgae x", "did you mean --image?"},
        {"src --thread 2", "did you mean --threads?"},
        {"src --zzzzzz", "--help lists all"},
        {"src --batch 0", "nearest valid value is 1"},
        {"src --batch 65", "nearest valid value is 64"},
        {"src --batch 3.5", "whole number"},
        {"src --batch x", "whole number"},
        {"src --batch 99999999999999999999", "nearest valid value is 64"},
        {"src --lr -0.1", "nearest valid value is 0"},
        {"src --lr nan", "a number"},
        {"src --lr inf", "a number"},
        {"src --lr 1e", "a number"},
        {"src --batch", "needs a value"},
        {"src --batch=", "whole number"},
        {"src --json=1", "takes no value"},
        {"src --batch 2 --batch 3", "twice"},
        {"--json", "SOURCE is missing"},
        {"src -x", "unknown option -x"},
        {"src --threads -1", "--threads"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = {""};
        assert_int_equal(parse(&err, cases[i][0]), -1);
        if (!strstr(err.text, cases[i][1]) || strncmp(err.text, "try: ", 5) != 0)
            fail_msg("%s: expected '%s', found: %s", cases[i][0], cases[i][1], err.text);
    }
    struct error err = {""};
    table[1].name = "--rest"; /* without a list of arguments a second one has no place */
    assert_int_equal(parse(&err, "src more"), -1);
    assert_non_null(strstr(err.text, "unexpected argument 'more'"));
    table[1].name = "REST";
}

static void test_nearest(void **state) {
    (void)state;
    static const char *const names[] = {"generate", "harvest", "encode", "train", "run", NULL};
    assert_string_equal(nearest_name("genrate", names), "generate");
    assert_string_equal(nearest_name("harv", names), "harvest");
    assert_string_equal(nearest_name("trian", names), "train");
    assert_null(nearest_name("xylophone", names));
    char longest[500];
    memset(longest, 'a', sizeof longest);
    longest[499] = 0;
    assert_null(nearest_name(longest, names));
}

/* --help teaches: every option, its default, the examples. */
static void test_help(void **state) {
    (void)state;
    struct error err = {""};
    char page[4096];
    const char *path = "build/test-help";
    fflush(stdout);
    int saved = dup(1);
    assert_non_null(freopen(path, "w", stdout));
    int rc = parse(&err, "--json --help --nonsense");
    fflush(stdout);
    dup2(saved, 1);
    close(saved);
    assert_int_equal(rc, 1);
    FILE *f = fopen(path, "r");
    page[fread(page, 1, sizeof page - 1, f)] = 0;
    fclose(f);
    unlink(path);
    static const char *const parts[] = {"Usage: stagediff try SOURCE [REST...] [options]",
                                        "--batch N",
                                        "[default 8]",
                                        "samples at once",
                                        "(may be repeated)",
                                        "--threads",
                                        "stagediff try x"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!strstr(page, parts[i])) fail_msg("--help lacks '%s':\n%s", parts[i], page);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values), cmocka_unit_test(test_faults), cmocka_unit_test(test_nearest),
                                       cmocka_unit_test(test_help)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
