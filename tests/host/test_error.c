/* test_error.c - the sentence of a fault, whatever bytes the world puts into it. */
#include "host/error.h"
#include "host/utf8.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#undef fail /* host/error.h has a function of that name */

static void test_clean(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"plain größe 名", "plain größe 名"}, {"two\nlines\tand\r\x7f", "two?lines?and??"},
        {"\x1b[31mred", "?[31mred"},          {"\xff\xfe", "??"},
        {"cut \xe5\x90", "cut ??"},           {"c1 \xc2\x9b[2J nbsp \xc2\xa0", "c1 ??[2J nbsp \xc2\xa0"},
        {"overlong \xc0\xaf", "overlong ??"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err;
        assert_int_equal(fail(&err, "%s", cases[i][0]), -1);
        assert_string_equal(err.text, cases[i][1]);
        assert_int_equal(error_context(&err, "%s", "a\nb"), -1);
        assert_memory_equal(err.text, "a?b: ", 5);
        assert_string_equal(err.text + 5, cases[i][1]);
    }
}

/* Too long for the buffer: cut, and still UTF-8. */
static void test_long(void **state) {
    (void)state;
    char text[3001] = "";
    for (int i = 0; i < 1000; i++) strcat(text, "名");
    for (int shift = 0; shift < 3; shift++) {
        struct error err;
        fail(&err, "%.*s%s", shift, "ab", text);
        assert_int_equal(strlen(err.text), sizeof err.text - 1);
        assert_int_equal(utf8_valid(err.text, strlen(err.text)), strlen(err.text));
        error_context(&err, "%s", text);
        assert_int_equal(utf8_valid(err.text, strlen(err.text)), strlen(err.text));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_clean), cmocka_unit_test(test_long)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
