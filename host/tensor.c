/* tensor.c - elements of a mapped tensor as floats or integers. The data may lie at any address, so every element is copied out. */
#include "host/tensors.h"
#include "kernels/check.h"
#include <inttypes.h>
#include <string.h>

/* IEEE half to float by moving the exponent: 2^112 rescales it in float arithmetic, which also makes subnormals right. */
static inline float from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7fffu) << 13, bits;
    float value;
    memcpy(&value, &rest, 4);
    value *= 0x1p112f;
    memcpy(&bits, &value, 4);
    if (rest >= 0x0f800000u) /* infinity and NaN keep their payload */
        bits = rest | 0x7f800000u;
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

static inline float from_bf16(uint16_t b) {
    uint32_t bits = (uint32_t)b << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

#define CONVERT(type, expression)                                                                                                          \
    for (size_t i = 0; i < count; i++) {                                                                                                   \
        type v;                                                                                                                            \
        memcpy(&v, source + i * sizeof v, sizeof v);                                                                                       \
        dst[i] = (expression);                                                                                                             \
    }                                                                                                                                      \
    return

void tensor_to_f32(const struct tensor *t, size_t first, size_t count, float *dst) {
    CHECK(t->dtype != DTYPE_OTHER && first <= t->count && count <= t->count - first, "%s %s: dtype %s, elements %zu + %zu of %zu", t->file,
          t->name, t->dtype_text, first, count, t->count);
    const char *source = (const char *)t->data + first * dtype_bytes(t->dtype);
    switch (t->dtype) {
    case DTYPE_F32:
        if (count) memcpy(dst, source, count * 4);
        return;
    case DTYPE_F16:
        CONVERT(uint16_t, from_f16(v));
    case DTYPE_BF16:
        CONVERT(uint16_t, from_bf16(v));
    case DTYPE_F64:
        CONVERT(double, (float)v);
    case DTYPE_I64:
        CONVERT(int64_t, (float)v);
    case DTYPE_I32:
        CONVERT(int32_t, (float)v);
    case DTYPE_I16:
        CONVERT(int16_t, (float)v);
    case DTYPE_I8:
        CONVERT(int8_t, (float)v);
    case DTYPE_U8:
        CONVERT(uint8_t, (float)v);
    case DTYPE_BOOL:
        CONVERT(uint8_t, v ? 1.0f : 0.0f);
    case DTYPE_OTHER:
        return;
    }
}

int tensor_to_i32(const struct tensor *t, int32_t *dst, struct error *err) {
    const char *source = t->data;
    size_t count = t->count;
    switch (t->dtype) {
    case DTYPE_I64:
        for (size_t i = 0; i < count; i++) {
            int64_t v;
            memcpy(&v, source + i * 8, 8);
            if (v < INT32_MIN || v > INT32_MAX)
                return fail(err, "%s: tensor %s: element %zu is %" PRId64 ", too large for 32 bits", t->file, t->name, i, v);
            dst[i] = (int32_t)v;
        }
        return 0;
    case DTYPE_I32:
        if (count) memcpy(dst, source, count * 4);
        return 0;
    case DTYPE_I16:
        for (size_t i = 0; i < count; i++) {
            int16_t v;
            memcpy(&v, source + i * 2, 2);
            dst[i] = v;
        }
        return 0;
    case DTYPE_I8:
        for (size_t i = 0; i < count; i++) {
            int8_t v;
            memcpy(&v, source + i, 1);
            dst[i] = v;
        }
        return 0;
    case DTYPE_U8:
    case DTYPE_BOOL:
        for (size_t i = 0; i < count; i++) {
            uint8_t v;
            memcpy(&v, source + i, 1);
            dst[i] = v;
        }
        return 0;
    default:
        return fail(err, "%s: tensor %s: whole numbers are needed (I32 or I64), found %s", t->file, t->name, t->dtype_text);
    }
}
