/* test_torch_write.c - files of torch_write are read back element for element, and begin as torch's own do: stored entries at multiples
 * of 64. That torch.load takes them is checked by tools/golden/make_dictionaries.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/file.h"
#include "host/tensors.h"
#include "host/torch_write.h"

#include <cmocka.h>

static char path[] = "/tmp/stagediff-test-XXXXXX";

static void test_round_trip(void **state) {
    (void)state;
    float matrix[6] = {1, -2, 3.5f, 0, 1e-30f, -1e30f};
    int64_t whole = 5;
    uint16_t halves[3] = {0x3f80, 0xbf80, 0x4000};
    int32_t ints[2] = {-7, INT32_MAX};
    const struct torch_tensor t[] = {{"W_enc", DTYPE_F32, 2, {2, 3}, matrix},
                                     {"k", DTYPE_I64, 0, {0}, &whole},
                                     {"low", DTYPE_BF16, 1, {3}, halves},
                                     {"ints", DTYPE_I32, 1, {2}, ints},
                                     {"none", DTYPE_F32, 2, {0, 4}, NULL}};
    struct error err = {{0}};
    struct tensors *st = NULL;
    if (torch_write(path, t, 5, &err) || tensors_open(&st, path, &err)) fail_msg("%s", err.text);
    assert_int_equal(tensors_count(st), 5);
    for (int i = 0; i < 5; i++) {
        const struct tensor *own = tensors_find(st, t[i].name);
        assert_non_null(own);
        assert_int_equal(own->dtype, t[i].dtype);
        assert_int_equal(own->rank, t[i].rank);
        for (int j = 0; j < t[i].rank; j++) assert_int_equal(own->shape[j], t[i].shape[j]);
        assert_false(own->strided);
        if (own->bytes) assert_memory_equal(own->data, t[i].data, own->bytes);
    }
    tensors_close(st);
    char *data = NULL;
    size_t size;
    assert_int_equal(file_read(path, 1 << 20, &data, &size, &err), 0);
    const char *found = NULL; /* the matrix lies at a multiple of 64 */
    for (size_t at = 0; at + sizeof matrix <= size && !found; at += 64)
        if (!memcmp(data + at, matrix, sizeof matrix)) found = data + at;
    assert_non_null(found);
    free(data);
}

static void test_faults(void **state) {
    (void)state;
    struct error err = {{0}};
    float one = 1;
    const struct torch_tensor t = {"x", DTYPE_F32, 1, {1}, &one};
    assert_int_equal(torch_write("/nowhere/at/all.pt", &t, 1, &err), -1);
    assert_non_null(strstr(err.text, "/nowhere"));
    if (access("/dev/full", W_OK)) return;
    assert_int_equal(torch_write("/dev/full", &t, 1, &err), -1);
    assert_non_null(strstr(err.text, "/dev/full"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_faults)};
    int fd = mkstemp(path);
    if (fd < 0) return 1;
    close(fd);
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return status;
}
