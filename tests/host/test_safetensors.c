/* test_safetensors.c - what is written is read back; every rule of the format broken once, each refused with file and reason;
 * sharded folders; numbers of every dtype. */
#include "host/file.h"
#include "host/tensors.h"
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define FOLDER "build/test-safetensors"
#define ONE    FOLDER "/one.safetensors"

static int setup(void **state) {
    (void)state;
    struct error err;
    if (system("rm -rf " FOLDER)) /* of an earlier run */
        return -1;
    return dir_create(FOLDER, &err);
}

/* header with its length before it, then n bytes of data (0, 1, 2, ...) */
static void write_raw(const char *path, const char *header, uint64_t length, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    for (int i = 0; i < 8; i++) fputc((int)(length >> (8 * i) & 255), f);
    fputs(header, f);
    for (size_t i = 0; i < n; i++) fputc((int)i & 255, f);
    fclose(f);
}

static void refused(const char *path, const char *expected) {
    struct error err = {""};
    struct tensors *st;
    if (!tensors_open(&st, path, &err)) fail_msg("accepted, expected: %s", expected);
    assert_null(st);
    if (!strstr(err.text, expected)) fail_msg("the message should say '%s': %s", expected, err.text);
}

static void test_round_trip(void **state) {
    (void)state;
    struct error err = {""};
    struct safetensors_writer *w;
    const float f[6] = {1, -2, 3.5f, 0, INFINITY, 1e-40f};
    const double d[1] = {2.5};
    const int32_t i[2] = {-7, 7};
    const int64_t l[2] = {-5, INT64_C(1) << 40};
    const uint16_t h[3] = {0x3c00, 0x0001, 0xfc00}, b[3] = {0x3f80, 0xc000, 0x7f80};
    const uint8_t u[3] = {0, 1, 255};
    assert_int_equal(safetensors_writer_open(&w, ONE, &err), 0);
    safetensors_writer_metadata(w, "format", "pt");
    safetensors_writer_add(w, "u8", DTYPE_U8, 1, (const int64_t[]){3}, u);
    safetensors_writer_add(w, "f32", DTYPE_F32, 2, (const int64_t[]){2, 3}, f);
    safetensors_writer_add(w, "f64 scalar", DTYPE_F64, 0, NULL, d);
    safetensors_writer_add(w, "empty", DTYPE_F32, 2, (const int64_t[]){0, 5}, f);
    safetensors_writer_add(w, "i32", DTYPE_I32, 1, (const int64_t[]){2}, i);
    safetensors_writer_add(w, "i64", DTYPE_I64, 1, (const int64_t[]){2}, l);
    safetensors_writer_add(w, "f16", DTYPE_F16, 1, (const int64_t[]){3}, h);
    safetensors_writer_add(w, "bf16", DTYPE_BF16, 1, (const int64_t[]){3}, b);
    int32_t *owned = memory_take(1, sizeof *owned);
    *owned = 42;
    safetensors_writer_give(w, "given \"name\" \xc3\xa9", DTYPE_I32, 1, (const int64_t[]){1}, owned);
    assert_false(file_exists(ONE)); /* nothing there before the commit */
    assert_int_equal(safetensors_writer_commit(w, &err), 0);

    struct tensors *st;
    if (tensors_open(&st, ONE, &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(st), 9);
    assert_string_equal(tensors_metadata(st, "format"), "pt");
    assert_null(tensors_metadata(st, "none"));
    const struct tensor *t = tensors_require(st, "f32", 2, (const int64_t[]){-1, 3}, &err);
    assert_non_null(t);
    float back[6];
    tensor_to_f32(t, 0, 6, back);
    assert_memory_equal(back, f, sizeof f);
    tensor_to_f32(tensors_find(st, "f16"), 0, 3, back);
    assert_true(back[0] == 1 && back[1] == 0x1p-24f && back[2] == -INFINITY);
    tensor_to_f32(tensors_find(st, "bf16"), 1, 2, back);
    assert_true(back[0] == -2 && back[1] == INFINITY);
    tensor_to_f32(tensors_find(st, "f64 scalar"), 0, 1, back);
    assert_true(back[0] == 2.5f);
    assert_int_equal(tensors_find(st, "f64 scalar")->rank, 0);
    assert_int_equal(tensors_find(st, "empty")->count, 0);
    int32_t whole[2];
    assert_int_equal(tensor_to_i32(tensors_find(st, "i32"), whole, &err), 0);
    assert_int_equal(whole[0], -7);
    assert_int_equal(tensor_to_i32(tensors_find(st, "i64"), whole, &err), -1); /* 2^40 does not fit */
    assert_int_equal(tensor_to_i32(tensors_find(st, "f32"), whole, &err), -1);
    assert_int_equal(tensor_to_i32(tensors_find(st, "given \"name\" \xc3\xa9"), whole, &err), 0);
    assert_int_equal(whole[0], 42);
    assert_null(tensors_require(st, "f32", 2, (const int64_t[]){3, -1}, &err));
    assert_non_null(strstr(err.text, "(3, *)"));
    assert_non_null(strstr(err.text, "(2, 3)"));
    assert_null(tensors_require(st, "gone", 1, (const int64_t[]){3}, &err));
    assert_non_null(strstr(err.text, "gone"));
    tensors_close(st);
}

/* The data begins at a multiple of 8 whatever the names' lengths. */
static void test_alignment(void **state) {
    (void)state;
    struct error err;
    const float one = 1;
    for (int n = 1; n <= 9; n++) {
        char name[16];
        struct safetensors_writer *w;
        unsigned char length[8];
        snprintf(name, sizeof name, "%.*s", n, "abcdefghi");
        assert_int_equal(safetensors_writer_open(&w, ONE, &err), 0);
        safetensors_writer_add(w, name, DTYPE_F32, 0, NULL, &one);
        assert_int_equal(safetensors_writer_commit(w, &err), 0);
        FILE *f = fopen(ONE, "rb");
        assert_int_equal(fread(length, 1, 8, f), 8);
        fclose(f);
        assert_int_equal(length[0] % 8, 0);
    }
}

/* Every half float, against the definition. */
static void test_half(void **state) {
    (void)state;
    for (unsigned v = 0; v < 65536; v++) {
        uint16_t h = (uint16_t)v;
        struct tensor t = {.dtype = DTYPE_F16, .rank = 1, .shape = {1}, .count = 1, .bytes = 2, .data = &h};
        float got;
        tensor_to_f32(&t, 0, 1, &got);
        int e = (int)(v >> 10 & 31), m = (int)(v & 1023);
        float sign = v & 0x8000 ? -1.0f : 1.0f;
        if (e == 31 && m)
            assert_true(isnan(got));
        else
            assert_true(got == sign * (e == 31 ? INFINITY : e ? ldexpf((float)(1024 + m), e - 25) : ldexpf((float)m, -24)));
    }
}

static void test_hostile(void **state) {
    (void)state;
#define F32(shape, from, to) "{\"dtype\":\"F32\",\"shape\":[" shape "],\"data_offsets\":[" from "," to "]}"
    static const struct {
        const char *header;
        long length_off, data;
        const char *expected;
    } cases[] = {
        {"{\"a\":" F32("2", "0", "8") "}", 0, 7, "outside"},
        {"{\"a\":" F32("2", "0", "8") "}", 0, 9, "has 9 bytes"},
        {"{\"a\":" F32("2", "0", "8") ",\"b\":" F32("2", "4", "12") "}", 0, 12, "overlapping"},
        {"{\"a\":" F32("2", "0", "8") ",\"b\":" F32("2", "0", "8") "}", 0, 8, "overlapping"},
        {"{\"a\":" F32("2", "0", "8") ",\"b\":" F32("1", "12", "16") "}", 0, 16, "hole"},
        {"{\"a\":" F32("2", "4", "12") "}", 0, 12, "hole"},
        {"{\"a\":" F32("3", "0", "8") "}", 0, 8, "need 12 bytes"},
        {"{\"a\":" F32("2", "8", "0") "}", 0, 8, "outside"},
        {"{\"a\":" F32("2", "-8", "0") "}", 0, 8, "outside"},
        {"{\"a\":" F32("-2", "0", "8") "}", 0, 8, "dimension 0"},
        {"{\"a\":" F32("2.0", "0", "8") "}", 0, 8, "dimension 0"},
        {"{\"a\":" F32("4294967296,4294967296", "0", "8") "}", 0, 8, "more elements"},
        {"{\"a\":" F32("2305843009213693954,2", "0", "16") "}", 0, 16, "more elements"},
        {"{\"a\":" F32("1,1,1,1,1,1,1,1,1", "0", "4") "}", 0, 4, "9 dimensions"},
        {"{\"a\":" F32("2", "0", "99999999999999999999") "}", 0, 8, "JSON"},
        {"{\"a\":" F32("2", "0", "8") ",\"a\":" F32("2", "0", "8") "}", 0, 8, "duplicate"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 0, 8, "duplicate"},
        {"{\"a\":{\"dtype\":\"F99\",\"shape\":[2],\"data_offsets\":[0,8]}}", 0, 8, "F99"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 0, 8, "dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 0, 8, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 0, 8, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4,8]}}", 0, 8, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 0, 1, "3 elements"},
        {"{\"a\":5}", 0, 0, "no JSON object"},
        {"{\"__metadata__\":{\"a\":5}}", 0, 0, "__metadata__"},
        {"{\"__metadata__\":[]}", 0, 0, "__metadata__"},
        {"[1, 2]", 0, 0, "'{'"},
        {" {}", 0, 0, "'{'"},
        {"{\"a\":" F32("2", "0", "8") "}", 1000, 8, "cut short"},
        {"{\"a\":" F32("2", "0", "8") "}", -3, 8, "JSON"},
        {"{}", 200000000, 8, "100000000"},
        {"{}", -3, 8, "100000000"}, /* 2 - 3: 2^64 - 1 */
        {"{}", 0, 8, "has 8 bytes"},
        {"{\"\xff\":" F32("2", "0", "8") "}", 0, 8, "JSON"},
        {"{\"a\\u0000b\":" F32("2", "0", "8") "}", 0, 8, "JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_raw(ONE, cases[i].header, (uint64_t)((long)strlen(cases[i].header) + cases[i].length_off), (size_t)cases[i].data);
        refused(ONE, cases[i].expected);
        refused(ONE, ONE);
    }
    for (size_t n = 0; n < 10; n++) {
        FILE *f = fopen(ONE, "wb");
        fwrite("\2\0\0\0\0\0\0\0{}", 1, n, f);
        fclose(f);
        refused(ONE, "few");
    }
    refused(FOLDER "/none.safetensors", "cannot be opened");
    unlink(FOLDER "/pipe.safetensors");
    assert_int_equal(mkfifo(FOLDER "/pipe.safetensors", 0600), 0);
    refused(FOLDER "/pipe.safetensors", "not a regular file"); /* and does not wait for a writer */
    unlink(FOLDER "/pipe.safetensors");
}

/* Legal but unusual: padding, any order, zero-size tensors at a border, unaligned data, a dtype that is only counted. */
static void test_unusual(void **state) {
    (void)state;
    struct error err = {""};
    struct tensors *st;
    const char *header = "{\"b\":" F32("1", "3", "7") ",\"z\":" F32(
        "0", "3", "3") ",\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[3],\"data_offsets\":[0,3],\"more\":1}}    ";
    write_raw(ONE, header, strlen(header), 7);
    if (tensors_open(&st, ONE, &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(st), 3);
    assert_string_equal(tensors_find(st, "a")->dtype_text, "F8_E4M3");
    assert_null(tensors_require(st, "a", 1, (const int64_t[]){3}, &err));
    assert_non_null(strstr(err.text, "F8_E4M3"));
    float v;
    const unsigned char bytes[4] = {3, 4, 5, 6};
    tensor_to_f32(tensors_find(st, "b"), 0, 1, &v);
    assert_memory_equal(&v, bytes, 4);
    tensors_close(st);
    write_raw(ONE, "{}", 2, 0);
    assert_int_equal(tensors_open(&st, ONE, &err), 0);
    assert_int_equal(tensors_count(st), 0);
    assert_null(tensors_find(st, "a"));
    tensors_close(st);
}

/* Every dtype at an odd address in one file, as files without padding have them (LLaVA-MORE mixes F16 and F32, old CLIP has I64). */
static void test_unaligned(void **state) {
    (void)state;
    struct error err = {""};
    struct tensors *st;
    struct safetensors_writer *w;
    const double d = -2.5;
    const float f = 1.25f;
    const int64_t l[2] = {-3, 576};
    const int32_t i = -70000;
    const int16_t s = -300;
    const uint16_t h = 0x3e00, b = 0x3fc0;
    const uint8_t u = 200;
    assert_int_equal(safetensors_writer_open(&w, ONE, &err), 0);
    safetensors_writer_add(w, "u8", DTYPE_U8, 1, (const int64_t[]){1}, &u);
    safetensors_writer_add(w, "f64", DTYPE_F64, 0, NULL, &d);
    safetensors_writer_add(w, "none", DTYPE_F64, 3, (const int64_t[]){4, 0, 2}, NULL);
    safetensors_writer_add(w, "f32", DTYPE_F32, 1, (const int64_t[]){1}, &f);
    safetensors_writer_add(w, "i64", DTYPE_I64, 2, (const int64_t[]){1, 2}, l);
    safetensors_writer_add(w, "i32", DTYPE_I32, 0, NULL, &i);
    safetensors_writer_add(w, "i16", DTYPE_I16, 1, (const int64_t[]){1}, &s);
    safetensors_writer_add(w, "f16", DTYPE_F16, 1, (const int64_t[]){1}, &h);
    safetensors_writer_add(w, "bf16", DTYPE_BF16, 1, (const int64_t[]){1}, &b);
    assert_int_equal(safetensors_writer_commit(w, &err), 0);
    if (tensors_open(&st, ONE, &err)) fail_msg("%s", err.text);
    static const struct {
        const char *name;
        float value;
    } want[] = {{"u8", 200}, {"f64", -2.5f}, {"f32", 1.25f}, {"i64", -3}, {"i32", -70000}, {"i16", -300}, {"f16", 1.5f}, {"bf16", 1.5f}};
    for (size_t k = 0; k < sizeof want / sizeof *want; k++) {
        const struct tensor *t = tensors_find(st, want[k].name);
        float x;
        char copy[16];
        tensor_to_f32(t, 0, 1, &x);
        assert_true(x == want[k].value);
        assert_true(k == 0 || (uintptr_t)t->data % 2 == 1);
        tensor_copy(t, copy);
        assert_memory_equal(copy, t->data, t->bytes);
    }
    int32_t whole[2];
    assert_int_equal(tensor_to_i32(tensors_find(st, "i64"), whole, &err), 0);
    assert_true(whole[0] == -3 && whole[1] == 576);
    assert_int_equal(tensor_to_i32(tensors_find(st, "i16"), whole, &err), 0);
    assert_int_equal(whole[0], -300);
    tensors_close(st);
}

static void write_index(const char *text) {
    FILE *f = fopen(FOLDER "/s/model.safetensors.index.json", "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_shards(void **state) {
    (void)state;
    struct error err = {""};
    struct tensors *st;
    dir_create(FOLDER "/s", &err);
    dir_create(FOLDER "/s/sub", &err);
    unlink(FOLDER "/s/model.safetensors");
    write_raw(FOLDER "/s/x.safetensors", "{\"a\":" F32("2", "0", "8") ",\"old\":" F32("1", "8", "12") "}",
              strlen("{\"a\":" F32("2", "0", "8") ",\"old\":" F32("1", "8", "12") "}"), 12);
    write_raw(FOLDER "/s/sub/y.safetensors", "{\"b\":" F32("1", "0", "4") ",\"a\":" F32("0", "4", "4") "}",
              strlen("{\"b\":" F32("1", "0", "4") ",\"a\":" F32("0", "4", "4") "}"), 4);
    unlink(FOLDER "/s/link.safetensors");
    assert_int_equal(symlink("sub/y.safetensors", FOLDER "/s/link.safetensors"), 0);
    write_index("{\"metadata\":{\"total_size\":12},\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"sub/y.safetensors\"}}");
    if (tensors_open(&st, FOLDER "/s", &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(st), 2); /* what the index does not name is not there */
    assert_int_equal(tensors_find(st, "a")->count, 2);
    assert_int_equal(tensors_files(st), 2);
    tensors_close(st);
    write_index("{\"weight_map\":{\"b\":\"link.safetensors\"}}");
    assert_int_equal(tensors_open(&st, FOLDER "/s", &err), 0); /* symbolic links are followed */
    tensors_close(st);
    static const char *const bad[][2] = {
        {"{\"weight_map\":{\"b\":\"../one.safetensors\"}}", "same folder"},
        {"{\"weight_map\":{\"b\":\"sub/../../one.safetensors\"}}", "same folder"},
        {"{\"weight_map\":{\"b\":\"/etc/passwd\"}}", "same folder"},
        {"{\"weight_map\":{\"b\":\"..\"}}", "same folder"},
        {"{\"weight_map\":{\"b\":\"\"}}", "same folder"},
        {"{\"weight_map\":{\"b\":7}}", "same folder"},
        {"{\"weight_map\":{\"b\":\"gone.safetensors\"}}", "incomplete"},
        {"{\"weight_map\":{\"c\":\"x.safetensors\"}}", "tensor c is not in the file x.safetensors"},
        {"{\"weight_map\":[]}", "weight_map"},
        {"{}", "weight_map"},
        {"{\"weight_map\":", "JSON"},
        {"{\"weight_map\":{\"b\":\"sub\"}}", "not a regular file"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_index(bad[i][0]);
        refused(FOLDER "/s", bad[i][1]);
        refused(FOLDER "/s/model.safetensors.index.json", bad[i][1]);
    }
    unlink(FOLDER "/s/model.safetensors.index.json");
    refused(FOLDER "/s", "holds 2 candidates and no model file: link.safetensors, x.safetensors");
    unlink(FOLDER "/s/link.safetensors");
    assert_int_equal(tensors_open(&st, FOLDER "/s", &err), 0); /* the only one */
    tensors_close(st);
    unlink(FOLDER "/s/x.safetensors");
    refused(FOLDER "/s", "holds no file of tensors");
}

/* A writer that cannot finish leaves nothing behind. */
static void test_writer_faults(void **state) {
    (void)state;
    struct error err = {""};
    struct safetensors_writer *w;
    assert_int_equal(safetensors_writer_open(&w, FOLDER "/no folder/x", &err), -1);
    assert_non_null(strstr(err.text, "does not exist"));
    assert_int_equal(safetensors_writer_open(&w, FOLDER, &err), -1);
    assert_non_null(strstr(err.text, "folder"));
    assert_int_equal(safetensors_writer_open(&w, FOLDER "/aborted", &err), 0);
    safetensors_writer_abort(w);
    assert_false(file_exists(FOLDER "/aborted"));
    safetensors_writer_abort(NULL);
    struct file_writer f;
    assert_int_equal(file_writer_open(&f, FOLDER "/full", &err), 0);
    f.stream = freopen("/dev/full", "wb", f.stream); /* a full disk */
    fputs("x", f.stream);
    assert_int_equal(file_writer_commit(&f, &err), -1);
    assert_non_null(strstr(err.text, "No space left"));
    assert_false(file_exists(FOLDER "/full"));
    int left = system("ls " FOLDER "/*.tmp.* >/dev/null 2>&1");
    assert_int_not_equal(left, 0); /* no temporary file is left */
    assert_int_equal(dir_create(FOLDER "/a/b", &err), -1);
    assert_non_null(strstr(err.text, "parent"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_alignment),
                                       cmocka_unit_test(test_half),       cmocka_unit_test(test_hostile),
                                       cmocka_unit_test(test_unusual),    cmocka_unit_test(test_unaligned),
                                       cmocka_unit_test(test_shards),     cmocka_unit_test(test_writer_faults)};
    return cmocka_run_group_tests(tests, setup, NULL);
}
