/* test_containers.c - files of torch.save and numpy.savez against what those libraries read from them (tools/golden/make_containers.py);
 * strides; hostile pickles, archives and headers, each refused with file, place and reason; which file of a folder is opened. */
#include "host/file.h"
#include "host/tensors.h"
#include <inttypes.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h> /* last: its macro `fail` hides host/error.h's function */

#define GOLDEN "tests/golden/containers/"
#define FOLDER "build/test-containers"
#define ONE    FOLDER "/one"

static int setup(void **state) {
    (void)state;
    struct error err;
    if (system("rm -rf " FOLDER)) /* of an earlier run */
        return -1;
    return dir_create(FOLDER, &err);
}

static void refused(const char *path, const char *expected) {
    struct error err = {""};
    struct tensors *st;
    if (!tensors_open(&st, path, &err)) fail_msg("%s accepted, expected: %s", path, expected);
    assert_null(st);
    if (!strstr(err.text, expected)) fail_msg("the message should say '%s': %s", expected, err.text);
}

/* ---- values ---- */
static void fnv(char text[17], const float *x, size_t n) {
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    const unsigned char *b = (const unsigned char *)x;
    for (size_t i = 0; i < n * sizeof *x; i++) h = (h ^ b[i]) * UINT64_C(0x100000001b3);
    snprintf(text, 17, "%016" PRIx64, h);
}

/* Every tensor of the file against [shape, hash], read as a whole and in pieces that end in the middle of rows. */
static void compare_file(const char *name, const json_t *tensors) {
    char path[128], hash[17];
    struct error err = {""};
    struct tensors *st;
    const char *key;
    json_t *want;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    if (tensors_open(&st, path, &err)) fail_msg("%s", err.text);
    json_object_foreach((json_t *)(uintptr_t)tensors, key, want) {
        const json_t *shape = json_array_get(want, 0);
        int64_t dims[8];
        for (size_t i = 0; i < json_array_size(shape); i++) dims[i] = json_integer_value(json_array_get(shape, i));
        const struct tensor *t = tensors_require(st, key, (int)json_array_size(shape), dims, &err);
        if (!t) fail_msg("%s", err.text);
        float *x = memory_take(t->count + 1, sizeof *x);
        for (size_t piece = t->count + 1; piece > 0; piece = piece > 200 ? 200 : piece > 7 ? 7 : piece > 1 ? 1 : 0) {
            memset(x, 0xff, t->count * sizeof *x);
            x[t->count] = -77;
            for (size_t i = 0; i < t->count; i += piece) tensor_to_f32(t, i, t->count - i < piece ? t->count - i : piece, x + i);
            fnv(hash, x, t->count);
            if (strcmp(hash, json_string_value(json_array_get(want, 1))) != 0)
                fail_msg("%s: %s: %zu at once: other values", path, key, piece);
            assert_true(x[t->count] == -77);
        }
        free(x);
    }
    tensors_close(st);
}

static void test_golden(void **state) {
    (void)state;
    json_error_t bad;
    json_t *about = json_load_file(GOLDEN "about.json", 0, &bad);
    const char *name;
    json_t *tensors;
    assert_non_null(about);
    json_object_foreach(json_object_get(about, "files"), name, tensors) {
        compare_file(name, tensors);
    }
    assert_int_equal(json_object_size(json_object_get(about, "files")), 6);
    json_decref(about);
}

static void test_strides(void **state) {
    (void)state;
    struct error err = {""};
    struct tensors *st;
    if (tensors_open(&st, GOLDEN "strided.pt", &err)) fail_msg("%s", err.text);
    const struct tensor *t = tensors_find(st, "transposed"), *shared = tensors_find(st, "shared");
    assert_true(t->strided && t->stride[0] == 1 && t->stride[1] == 131 && t->bytes == 66 * 131 * 2);
    assert_true(!shared->strided && shared->stride[0] == 131 && shared->data == t->data); /* mapped once, not copied */
    assert_false(tensors_find(st, "rows")->strided);
    assert_true(tensors_find(st, "columns")->strided);
    int32_t i32[24];
    int64_t i64[24];
    assert_int_equal(tensor_to_i32(tensors_find(st, "i64"), i32, &err), 0);
    for (int i = 0; i < 24; i++) assert_int_equal(i32[i], i % 4 * 6 + i / 4);
    assert_int_equal(tensor_to_i32(tensors_find(st, "u8"), i32, &err), 0);
    for (int i = 0; i < 24; i++) assert_int_equal(i32[i], i % 4 * 6 + i / 4);
    assert_int_equal(tensor_to_i32(tensors_find(st, "i32"), i32, &err), 0);
    for (int i = 0; i < 12; i++) assert_int_equal(i32[i], 2 * i);
    tensor_copy(tensors_find(st, "i64"), i64);
    for (int i = 0; i < 24; i++) assert_int_equal(i64[i], i % 4 * 6 + i / 4);
    tensors_close(st);
}

static void test_nested(void **state) {
    (void)state;
    struct error err = {""};
    struct tensors *st;
    if (tensors_open(&st, GOLDEN "nested.pt", &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(st), 4);
    assert_string_equal(tensors_metadata(st, "step"), "12");
    assert_string_equal(tensors_metadata(st, "norm_factor"), "1.5");
    assert_string_equal(tensors_metadata(st, "version"), "1.2");
    assert_string_equal(tensors_metadata(st, "huge"), "1099511627776");
    assert_null(tensors_metadata(st, "none"));
    tensors_close(st);
    if (tensors_open(&st, GOLDEN "stored.npz", &err)) fail_msg("%s", err.text);
    static const char *const other[][2] = {{"text", "<U2"}, {"big", ">f4"}, {"u4", "<u4"}, {"c8", "<c8"}};
    for (size_t i = 0; i < 4; i++) { /* there, and refused where it is used */
        assert_null(tensors_require(st, other[i][0], 1, (const int64_t[]){-1}, &err));
        if (!strstr(err.text, other[i][1])) fail_msg("%s", err.text);
    }
    tensors_close(st);
}

/* ---- hostile torch files ---- */
struct part {
    const char *name, *data;
    size_t n;
};

static void put(FILE *f, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) fputc(i < 8 ? (int)(value >> (8 * i) & 255) : 0, f);
}

/* A zip of stored entries; checksums 0, which nobody looks at for stored data. */
static void write_zip(const char *path, const struct part *parts, int n) {
    FILE *f = fopen(path, "wb");
    long at[8], directory;
    assert_non_null(f);
    assert_true(n <= 8);
    for (int i = 0; i < n; i++) {
        at[i] = ftell(f);
        fputs("PK\3\4", f);
        put(f, 20, 2), put(f, 0, 4), put(f, 0, 8), put(f, parts[i].n, 4), put(f, parts[i].n, 4), put(f, strlen(parts[i].name), 2),
            put(f, 0, 2);
        fputs(parts[i].name, f);
        fwrite(parts[i].data, 1, parts[i].n, f);
    }
    directory = ftell(f);
    for (int i = 0; i < n; i++) {
        fputs("PK\1\2", f);
        put(f, 20, 2), put(f, 20, 2), put(f, 0, 4), put(f, 0, 8), put(f, parts[i].n, 4), put(f, parts[i].n, 4);
        put(f, strlen(parts[i].name), 2), put(f, 0, 12), put(f, (uint64_t)at[i], 4);
        fputs(parts[i].name, f);
    }
    const uint64_t size = (uint64_t)(ftell(f) - directory);
    fputs("PK\5\6", f);
    put(f, 0, 4), put(f, (uint64_t)n, 2), put(f, (uint64_t)n, 2), put(f, size, 4), put(f, (uint64_t)directory, 4), put(f, 0, 2);
    fclose(f);
}

/* A torch file with this pickle and one storage "0" of 16 bytes. */
static void write_torch(const char *pickle, size_t n) {
    const struct part parts[] = {{"x/data.pkl", pickle, n}, {"x/byteorder", "little", 6}, {"x/data/0", "0123456789abcdef", 16}};
    write_zip(ONE, parts, 3);
}

#define S(text) text, sizeof(text) - 1
#define STORAGE(numel)                                                                                                                     \
    "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"                                                                                     \
    "0X\3\0\0\0cpuK" numel "tQ"
#define TENSOR(numel, offset, size, stride)                                                                                                \
    "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE(numel) offset size stride "\x89"                                                        \
                                                                             "ccollections\nOrderedDict\n)RtR"
#define IN_DICT(name, value) "\x80\2}X\1\0\0\0" name value "s."

static void test_hostile_pickles(void **state) {
    (void)state;
    static const struct {
        const char *pickle;
        size_t n;
        const char *expected;
    } cases[] = {
        {S(IN_DICT("w", TENSOR("\4", "K\0", "K\4\x85", "K\1\x85"))), NULL}, /* a good one: what the others are broken from */
        {S("\x80\2cos\nsystem\n(X\4\0\0\0trueR."), "one: x/data.pkl: byte 2: the global os.system is refused"},
        {S("\x80\2cbuiltins\neval\n."), "byte 2: the global builtins.eval is refused"},
        {S("\x80\2cposix\nsystem."), "byte 2: the pickle ends inside an opcode"},
        {S("\x80\2}q\1."), "byte 3: memo 1 is set, but only 0 came before it"},
        {S("\x80\2}r\xff\xff\xff\xff."), "byte 3: memo 4294967295 is set, but only 0 came before it"},
        {S("\x80\2}h\0."), "byte 3: a memo is read that was never set"},
        {S("\x80\2}j\xff\xff\xff\x7f."), "byte 3: a memo is read that was never set"},
        {S("\x80\4}."), "byte 0: a pickle of another protocol than torch.save's 2"},
        {S("\x80\2i__main__\nX\n."), "byte 2: the pickle opcode 0x69 is refused"},
        {S("\x80\2\x93."), "byte 2: the pickle opcode 0x93 is refused"},
        {S("\x80\2X\xff\xff\xff\xffxyz."), "byte 2: the pickle ends inside an opcode"},
        {S("\x80\2}"), "byte 3: the pickle ends inside an opcode"},
        {S(""), "byte 0: the pickle ends inside an opcode"},
        {S("\x80\2."), "byte 2: an opcode finds no value on the stack"},
        {S("\x80\2t."), "byte 2: an opcode finds no mark"},
        {S("\x80\2(."), "byte 3: an opcode finds no value"},
        {S("\x80\2]K\1K\2s."), "byte 7: items are set in what is no list or dictionary"},
        {S("\x80\2}(K\1u."), "byte 6: a dictionary gets a key without a value"},
        {S("\x80\2K\1}b."), "byte 5: a state is set on what is no dictionary"},
        {S("\x80\2K\1)R."), "byte 5: a call of what is no global"},
        {S("\x80\2ccollections\nOrderedDict\nK\1\x85R."), "OrderedDict with arguments"},
        {S("\x80\2\x8a\11\0\0\0\0\0\0\0\0\1."), "byte 2: a whole number of more than 64 bits"},
        {S("\x80\2]."), "x/data.pkl: holds a list, not a dictionary of tensors"},
        {S("\x80\2}q\0X\1\0\0\0ah\0s."), "nested deeper than 32 dictionaries"}, /* contains itself */
        {S("\x80\2}X\2\0\0\0\xff\xfeK\1s."), "is not UTF-8"},
        {S("\x80\2}X\2\0\0\0a\0K\1s."), "holds a zero byte"},
        {S(IN_DICT("w", "ctorch._utils\n_rebuild_tensor_v2\n)R")), "w: expected the call of a tensor"},
        {S(IN_DICT("w", "ctorch._utils\n_rebuild_parameter\nK\1\x85R")), "w: expected the call of a tensor"},
        {S(IN_DICT("w", "ctorch\nFloatStorage\n)R")), "w: expected the call of a tensor"},
        {S(IN_DICT("w", "ctorch._utils\n_rebuild_tensor_v2\n(K\1K\0)))tR")), "w: its storage is not given as"},
        {S(IN_DICT("w", TENSOR("\5", "K\0", "K\4\x85", "K\1\x85"))), "x/data/0 should have 5 elements of F32 but has 16 bytes"},
        {S(IN_DICT("w", TENSOR("\4", "K\1", "K\4\x85", "K\1\x85"))), "lead outside its storage of 4 elements"},
        {S(IN_DICT("w", TENSOR("\4", "K\5", "K\0\x85", "K\1\x85"))), "lead outside its storage of 4 elements"},
        {S(IN_DICT("w", TENSOR("\4", "K\0", "K\2K\2\x86", "K\3K\1\x86"))), "lead outside its storage of 4 elements"},
        {S(IN_DICT("w", TENSOR("\4", "K\0", "K\2\x85", "J\xff\xff\xff\xff\x85"))), "dimension 0: size and stride must be whole numbers"},
        {S(IN_DICT("w", TENSOR("\4", "K\0", "J\xff\xff\xff\xff\x85", "K\1\x85"))), "dimension 0: size and stride must be whole numbers"},
        {S(IN_DICT("w", TENSOR("\4", "J\xff\xff\xff\xff", "K\1\x85", "K\1\x85"))), "its offset, size and stride do not fit together"},
        {S(IN_DICT("w", TENSOR("\4", "K\0", "K\1\x85", "K\1K\1\x86"))), "its offset, size and stride do not fit together"},
        {S(IN_DICT("w", TENSOR("\4", "K\0", "K\5\x85", "K\0\x85"))), "an expanded view: 5 elements out of 4 stored"},
        {S(IN_DICT("w", TENSOR("\4", "K\0", "K\3K\2\x86", "K\1K\1\x86"))), "an expanded view: 6 elements out of 4 stored"},
        {S(IN_DICT("w", TENSOR("\4", "K\0", "J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87", "K\0K\0K\0\x87"))),
         "more elements than any"},
        {S(IN_DICT("w", TENSOR("\4", "K\0", "K\2\x85", "\x8a\10\xff\xff\xff\xff\xff\xff\xff\x7f\x85"))), "lead outside its storage"},
        /* 2 + 2 (2^63 - 1) wraps to 0 */
        {S(IN_DICT("w", TENSOR("\4", "K\2", "K\3\x85", "\x8a\10\xff\xff\xff\xff\xff\xff\xff\x7f\x85"))), "lead outside its storage"},
        {S(IN_DICT("w", TENSOR("\4", "\x8a\1\xff", "K\1\x85", "K\1\x85"))), "its offset, size and stride do not fit together"}, /* -1 */
        {S(IN_DICT("w", "ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storageccollections\nOrderedDict\nX\1\0\0\0"
                        "0X\3\0\0\0cpuK\4tQK\0K\4\x85K\1\x85\x89NtR")),
         "its storage is not given as"},
        {S(IN_DICT("w", TENSOR("\4", "K\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"))), "9 dimensions, at most 8"},
        {S("\x80\2}(X\1\0\0\0w" TENSOR("\4", "K\0", "K\4\x85", "K\1\x85") "X\1\0\0\0w" TENSOR("\4", "K\0", "K\4\x85", "K\1\x85") "u."),
         "two tensors are named w"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_torch(cases[i].pickle, cases[i].n);
        if (cases[i].expected) {
            refused(ONE, cases[i].expected);
            refused(ONE, ONE);
            continue;
        }
        struct error err = {""};
        struct tensors *st;
        if (tensors_open(&st, ONE, &err)) fail_msg("%s", err.text);
        float x[4];
        tensor_to_f32(tensors_find(st, "w"), 0, 4, x);
        assert_memory_equal(x, "0123456789abcdef", 16);
        tensors_close(st);
    }
}

/* Pickles that multiply: a few bytes that stand for thousands of dictionaries or megabytes of names. */
static void test_bombs(void **state) {
    (void)state;
    char pickle[8192];
    size_t n = 0;
    n += (size_t)sprintf(pickle, "%s", "\x80\2}q");
    pickle[n++] = 0; /* memo 0: {} ; then 20 dictionaries, each holding the one before it twice */
    for (int i = 0; i < 20; i++) {
        const char one[] = {'}', '(', 'X', 1, 0, 0, 0, 'a', 'h', (char)i, 'X', 1, 0, 0, 0, 'b', 'h', (char)i, 'u', 'q', (char)(i + 1)};
        memcpy(pickle + n, one, sizeof one);
        n += sizeof one;
    }
    pickle[n++] = '.';
    write_torch(pickle, n);
    refused(ONE, "shared dictionaries or names repeat beyond 16 times the pickle's size");
    n = 0;
    n += (size_t)sprintf(pickle, "%s", "\x80\2}(X");
    const char length[] = {(char)(900 & 255), (char)(900 >> 8), 0, 0};
    memcpy(pickle + n, length, 4);
    memset(pickle + n + 4, 'k', 900);
    n += 904;
    memcpy(pickle + n, "q\0K\1", 4); /* the name once, then again and again */
    n += 4;
    for (int i = 0; i < 1000; i++, n += 4) memcpy(pickle + n, "h\0K\1", 4);
    memcpy(pickle + n, "u.", 2);
    write_torch(pickle, n + 2);
    refused(ONE, "repeat beyond 16 times");
    pickle[5] = (char)(1100 & 255), pickle[6] = (char)(1100 >> 8);
    memset(pickle + 9, 'k', 1100);
    memcpy(pickle + 1109, "K\1u.", 4);
    write_torch(pickle, 1113);
    refused(ONE, "makes a name of more than 1023 bytes");
    for (n = 2; n < 2 + 40 * 7; n += 7) memcpy(pickle + n, "}X\1\0\0\0a", 7);
    pickle[n++] = 'N';
    memset(pickle + n, 's', 40);
    pickle[n + 40] = '.';
    write_torch(pickle, n + 41);
    refused(ONE, "nested deeper than 32 dictionaries");
}

static void test_hostile_archives(void **state) {
    (void)state;
    static const char good[] = IN_DICT("w", TENSOR("\4", "K\0", "K\4\x85", "K\1\x85"));
    const struct part pickle = {"x/data.pkl", good, sizeof good - 1}, data = {"x/data/0", "0123456789abcdef", 16};
    const struct part big = {"x/byteorder", "big", 3}, other = {"y/data.pkl", good, sizeof good - 1}, text = {"readme", "x", 1};
    write_zip(ONE, (const struct part[]){pickle, data, big}, 3);
    refused(ONE, "its byteorder is not little");
    write_zip(ONE, (const struct part[]){pickle}, 1);
    refused(ONE, "its storage x/data/0 is not in the file");
    write_zip(ONE, (const struct part[]){pickle, other, data}, 3);
    refused(ONE, "neither a torch file (one NAME/data.pkl) nor an npz");
    write_zip(ONE, (const struct part[]){text}, 1);
    refused(ONE, "neither a torch file");
    write_zip(ONE, (const struct part[]){pickle, data, data}, 3);
    refused(ONE, "two zip entries are named x/data/0");
    refused(GOLDEN "legacy.pt", "as torch.save wrote before PyTorch 1.6");
    refused(GOLDEN "code.pt", "the global __main__.square is refused");
    refused(GOLDEN "expanded.pt", "an expanded view: 3000 elements out of 3 stored ones");
    FILE *f = fopen(ONE ".bin", "wb");
    fputs("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", f);
    fclose(f);
    refused(ONE ".bin", "git lfs pull");
    f = fopen(ONE ".bin", "wb");
    fputs("<html><body>404</body></html>", f);
    fclose(f);
    refused(ONE ".bin", "not the zip archive that a .bin file is");
}

/* Every prefix of a file, and every byte of a small one changed: opened or refused, never more (the sanitizers watch). */
static void test_damage(void **state) {
    (void)state;
    static const char *const files[] = {GOLDEN "plain.pt", GOLDEN "wide.pt", GOLDEN "deflated.npz", GOLDEN "nested.pt"};
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        char *data;
        size_t size;
        struct error err;
        assert_int_equal(file_read(files[k], 1 << 20, &data, &size, &err), 0);
        for (size_t i = 0; i < size; i += 3) {
            for (int cut = 0; cut < 2; cut++) {
                struct tensors *st;
                FILE *f = fopen(ONE, "wb");
                data[i] = (char)(data[i] ^ 0x41);
                fwrite(data, 1, cut ? i : size, f);
                data[i] = (char)(data[i] ^ 0x41);
                fclose(f);
                if (tensors_open(&st, ONE, &err)) {
                    assert_non_null(strstr(err.text, ONE));
                    continue;
                }
                assert_false(cut);
                for (int j = 0; j < tensors_count(st); j++) {
                    const struct tensor *t = tensors_at(st, j);
                    float *x = memory_take(t->count, sizeof *x);
                    if (t->dtype != DTYPE_OTHER) tensor_to_f32(t, 0, t->count, x);
                    free(x);
                }
                tensors_close(st);
            }
        }
        free(data);
    }
}

static void test_hostile_arrays(void **state) {
    (void)state;
    static const struct {
        const char *header;
        const char *expected;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }   \n", NULL},
        {"{\"shape\":(2L,),\"fortran_order\":True,\"descr\":\"<f4\"}", NULL},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", "a.npy: its shape needs 12 bytes of F32, the member has 8"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (), }", "needs 4 bytes"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", "no tuple of whole numbers"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", "no tuple of whole numbers"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807), }", "more elements"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,2), }", "more than 8 dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': [2], }", "its shape is no tuple"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2 }", "no tuple of whole numbers"},
        {"{'descr': '<f4', 'fortran_order': 0, 'shape': (2,), }", "neither True nor False"},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", "structured arrays are not read"},
        {"{'descr': '<f4', 'shape': (2,), }", "each once"},
        {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "each once"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", "each once"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), } x", "each once"},
        {"{'descr': '<f4' 'fortran_order': False, 'shape': (2,), }", "no comma"},
        {"{'descr': '<f4", "no text"},
        {"", "no Python dictionary"},
    };
    char member[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t n = strlen(cases[i].header);
        memcpy(member, "\x93NUMPY\1\0", 8);
        member[8] = (char)n, member[9] = 0;
        memcpy(member + 10, cases[i].header, n);
        memcpy(member + 10 + n, "01234567", 8);
        write_zip(ONE, (const struct part[]){{"a.npy", member, n + 18}}, 1);
        if (cases[i].expected) {
            refused(ONE, cases[i].expected);
            refused(ONE, ONE);
            continue;
        }
        struct error err = {""};
        struct tensors *st;
        if (tensors_open(&st, ONE, &err)) fail_msg("%s", err.text);
        assert_non_null(tensors_require(st, "a", 1, (const int64_t[]){2}, &err));
        tensors_close(st);
    }
    member[6] = 4;
    write_zip(ONE, (const struct part[]){{"a.npy", member, 40}}, 1);
    refused(ONE, "a.npy: .npy version 4.0; 1 to 3 are read");
    member[6] = 2, member[10] = member[11] = 1;
    write_zip(ONE, (const struct part[]){{"a.npy", member, 40}}, 1);
    refused(ONE, "its header is longer than the member");
    write_zip(ONE, (const struct part[]){{"a.npy", member, 9}}, 1);
    refused(ONE, "is no .npy array");
}

/* Bytes of an archive changed where its directory says sizes, methods and places. */
static void test_hostile_directory(void **state) {
    (void)state;
    static const char good[] = IN_DICT("w", TENSOR("\4", "K\0", "K\4\x85", "K\1\x85"));
    static const struct {
        int at; /* byte counted from the start of the only directory record (46 + 10 bytes) */
        unsigned value;
        const char *expected;
        int and_at; /* 0: none */
        unsigned and_value;
    } cases[] = {
        {8, 1, "zip entry x/data.pkl is encrypted", 0, 0},
        {10, 9, "is packed by method 9; stored (0) and deflated (8) are read", 0, 0},
        {20, 0xff, "its 255 bytes from byte", 0, 0},
        {24, 0, "bytes cannot come out of", 0, 0},
        {10, 8, "bytes cannot come out of", 26, 0x7f}, /* deflated 1032 times at most: 8 MB are too many */
        {10, 8, "x/data.pkl: is compressed; torch stores it as it is", 0, 0},
        {42, 7, "no local header at byte 7", 0, 0},
        {45, 0x7f, "no local header at byte", 0, 0},
        {0, 0, "a zip archive without a whole directory", 0, 0},
        {28, 0xf0, "a zip archive without a whole directory", 0, 0},
        {46 + 10 + 10, 9, "a zip archive without a whole directory", 0, 0},
        {46 + 10 + 16, 0xff, "a zip archive without", 0, 0},
        {46 + 10 + 4, 3, "in several parts", 0, 0},
        {46 + 10 + 20, 1, "a zip archive without its end record", 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_zip(ONE, (const struct part[]){{"x/data.pkl", good, sizeof good - 1}}, 1);
        FILE *f = fopen(ONE, "r+b");
        fseek(f, -(46 + 10 + 22) + cases[i].at, SEEK_END);
        fputc((int)cases[i].value, f);
        if (cases[i].and_at) {
            fseek(f, -(46 + 10 + 22) + cases[i].and_at, SEEK_END);
            fputc((int)cases[i].and_value, f);
        }
        fclose(f);
        refused(ONE, cases[i].expected);
    }
}

/* Directories that lie: many entries with the same bytes, a local header in the archive's comment, a wrong checksum. */
static void test_hostile_entries(void **state) {
    (void)state;
    enum { N = 5, BYTES = 200, LOCAL = 30 + 5 + BYTES, RECORDS = N * 51 };
    FILE *f = fopen(ONE, "wb");
    fputs("PK\3\4", f), put(f, 20, 2), put(f, 0, 12), put(f, BYTES, 4), put(f, BYTES, 4), put(f, 5, 4), fputs("a.npy", f), put(f, 0, BYTES);
    for (int i = 0; i < N; i++) {
        fputs("PK\1\2", f), put(f, 20, 4), put(f, 0, 12), put(f, BYTES, 4), put(f, BYTES, 4), put(f, 5, 4), put(f, 0, 14);
        fprintf(f, "%c.npy", 'a' + i);
    }
    fputs("PK\5\6", f), put(f, 0, 4), put(f, N, 2), put(f, N, 2), put(f, RECORDS, 4), put(f, LOCAL, 4), put(f, 0, 2);
    fclose(f);
    refused(ONE, "its zip entries are longer than the file; they overlap");

    write_zip(ONE, (const struct part[]){{"a.npy", "xyz", 3}}, 1);
    f = fopen(ONE, "r+b");
    fseek(f, -2, SEEK_END);
    put(f, 4, 2), fputs("PK\3\4", f); /* the comment */
    const long end = ftell(f);
    fseek(f, end - 4 - 22 - 51 + 42, SEEK_SET);
    put(f, (uint64_t)end - 4, 4);
    fclose(f);
    refused(ONE, "zip entry a.npy: no local header at byte");

    char *data, *record = NULL;
    size_t size;
    struct error err;
    assert_int_equal(file_read(GOLDEN "deflated.npz", 1 << 20, &data, &size, &err), 0);
    for (size_t i = 0; i + 4 < size && !record; i++)
        if (!memcmp(data + i, "PK\1\2", 4)) record = data + i;
    assert_non_null(record);
    record[16] ^= 1;
    f = fopen(ONE, "wb");
    fwrite(data, 1, size, f);
    fclose(f);
    free(data);
    refused(ONE, "does not have the checksum of the directory");
}

/* Which file of a folder is opened. */
static void test_folders(void **state) {
    (void)state;
    struct error err = {""};
    struct tensors *st;
#define IN(folder, ...) assert_int_equal(system("rm -rf " FOLDER "/f && mkdir " FOLDER "/f && cd " FOLDER "/f && " __VA_ARGS__), 0)
#define PT              "../../../" GOLDEN "plain.pt "
#define NPZ             "../../../" GOLDEN "stored.npz "
    IN("f", "cp " PT "pytorch_model.bin && cp " NPZ "params.npz && touch training_args.bin");
    if (tensors_open(&st, FOLDER "/f", &err)) fail_msg("%s", err.text);
    assert_string_equal(tensors_file(st, 0, NULL), FOLDER "/f/pytorch_model.bin");
    tensors_close(st);
    IN("f", "cp " PT "a-1.bin && cp " NPZ
            "b-2.bin && echo '{\"weight_map\": {\"weight\": \"a-1.bin\", \"f4\": \"b-2.bin\"}}' >pytorch_model.bin.index.json");
    if (tensors_open(&st, FOLDER "/f", &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(st), 2);
    tensors_close(st);
    IN("f", "cp " PT "ae.pt && touch optimizer.pt scheduler.pt rng_state_0.pth .hidden.npz notes.txt");
    if (tensors_open(&st, FOLDER "/f", &err)) fail_msg("%s", err.text);
    assert_string_equal(tensors_file(st, 0, NULL), FOLDER "/f/ae.pt");
    tensors_close(st);
    IN("f", "touch z.pt b.npz a.safetensors");
    refused(FOLDER "/f", "f: holds 3 candidates and no model file: a.safetensors, b.npz, z.pt; name the file that is meant");
    IN("f", "touch notes.txt");
    refused(FOLDER "/f", "f: holds no file of tensors (.safetensors, .bin, .pt, .pth or .npz)");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),          cmocka_unit_test(test_strides),        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_hostile_pickles), cmocka_unit_test(test_bombs),          cmocka_unit_test(test_hostile_archives),
        cmocka_unit_test(test_damage),          cmocka_unit_test(test_hostile_arrays), cmocka_unit_test(test_hostile_directory),
        cmocka_unit_test(test_hostile_entries), cmocka_unit_test(test_folders)};
    return cmocka_run_group_tests(tests, setup, NULL);
}
