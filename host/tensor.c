/* tensor.c - elements of a mapped tensor as floats or integers. The data may lie at any address, so every element is copied out. */
#include "host/tensors.h"
#include "host/check.h"
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

static void convert(enum dtype dtype, const char *source, size_t count, float *dst) {
    switch (dtype) {
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

/* ---- strides ---- */
enum { TILE = 64 };

/* tile[r * n + c] = element c of the row that begins at byte row[r] of data; step in bytes. Columns outside, so that a transposed
 * tensor's neighbours, which are rows, are read together. */
#define GATHER(type)                                                                                                                       \
    for (size_t c = 0; c < n; c++)                                                                                                         \
        for (size_t r = 0; r < rows; r++) memcpy(tile + (r * n + c) * sizeof(type), data + row[r] + c * step, sizeof(type));               \
    return
static void gather(char *tile, const char *data, const size_t *row, size_t rows, size_t step, size_t n, size_t element) {
    switch (element) {
    case 1:
        GATHER(uint8_t);
    case 2:
        GATHER(uint16_t);
    case 4:
        GATHER(uint32_t);
    case 8:
        GATHER(uint64_t);
    }
}

/* Byte of element i of the first `rank` dimensions, counted row-major: of a row where the last dimension is left out. */
static size_t place_of(const struct tensor *t, int rank, size_t i) {
    size_t at = 0;
    while (rank-- > 0) {
        at += i % (size_t)t->shape[rank] * (size_t)t->stride[rank];
        i /= (size_t)t->shape[rank];
    }
    return at * dtype_bytes(t->dtype);
}

/* Columns first to last of `rows` rows from row r, as floats at dst, its rows `pitch` apart. */
static void tile_to_f32(const struct tensor *t, size_t r, size_t rows, size_t first, size_t last, float *dst, size_t pitch) {
    const size_t element = dtype_bytes(t->dtype), step = (size_t)t->stride[t->rank - 1] * element;
    char tile[TILE * TILE * 8];
    size_t begin[TILE];
    for (size_t i = 0; i < rows; i++) begin[i] = place_of(t, t->rank - 1, r + i) + first * step;
    while (first < last) {
        const size_t n = last - first < TILE ? last - first : TILE;
        gather(tile, t->data, begin, rows, step, n, element);
        for (size_t i = 0; i < rows; i++) {
            convert(t->dtype, tile + i * n * element, n, dst + i * pitch);
            begin[i] += n * step;
        }
        first += n;
        dst += n;
    }
}

static void strided_to_f32(const struct tensor *t, size_t first, size_t count, float *dst) {
    const size_t width = (size_t)t->shape[t->rank - 1];
    while (count) {
        const size_t r = first / width, column = first % width;
        size_t rows = 1, n = width - column < count ? width - column : count;
        if (!column && count >= width) { /* whole rows, up to TILE together */
            rows = count / width < TILE ? count / width : TILE;
            n = rows * width;
        }
        tile_to_f32(t, r, rows, column, rows > 1 ? width : column + n, dst, width);
        first += n;
        count -= n;
        dst += n;
    }
}

void tensor_to_f32(const struct tensor *t, size_t first, size_t count, float *dst) {
    CHECK(t->dtype != DTYPE_OTHER && first <= t->count && count <= t->count - first, "%s %s: dtype %s, elements %zu + %zu of %zu", t->file,
          t->name, t->dtype_text, first, count, t->count);
    if (t->strided)
        strided_to_f32(t, first, count, dst);
    else
        convert(t->dtype, (const char *)t->data + first * dtype_bytes(t->dtype), count, dst);
}

void tensor_copy(const struct tensor *t, void *dst) {
    const size_t element = dtype_bytes(t->dtype);
    CHECK(t->dtype != DTYPE_OTHER, "%s %s: dtype %s", t->file, t->name, t->dtype_text);
    if (t->strided)
        for (size_t i = 0; i < t->count; i++) memcpy((char *)dst + i * element, (const char *)t->data + place_of(t, t->rank, i), element);
    else if (t->bytes)
        memcpy(dst, t->data, t->bytes);
}

int tensor_to_i32(const struct tensor *t, int32_t *dst, struct error *err) {
    const char *data = t->data;
    size_t count = t->count;
#define SOURCE(i) (data + (t->strided ? place_of(t, t->rank, i) : (i)*dtype_bytes(t->dtype)))
    switch (t->dtype) {
    case DTYPE_I64:
        for (size_t i = 0; i < count; i++) {
            int64_t v;
            memcpy(&v, SOURCE(i), 8);
            if (v < INT32_MIN || v > INT32_MAX)
                return fail(err, "%s: tensor %s: element %zu is %" PRId64 ", too large for 32 bits", t->file, t->name, i, v);
            dst[i] = (int32_t)v;
        }
        return 0;
    case DTYPE_I32:
        tensor_copy(t, dst);
        return 0;
    case DTYPE_I16:
        for (size_t i = 0; i < count; i++) {
            int16_t v;
            memcpy(&v, SOURCE(i), 2);
            dst[i] = v;
        }
        return 0;
    case DTYPE_I8:
        for (size_t i = 0; i < count; i++) {
            int8_t v;
            memcpy(&v, SOURCE(i), 1);
            dst[i] = v;
        }
        return 0;
    case DTYPE_U8:
    case DTYPE_BOOL:
        for (size_t i = 0; i < count; i++) {
            uint8_t v;
            memcpy(&v, SOURCE(i), 1);
            dst[i] = v;
        }
        return 0;
    default:
        return fail(err, "%s: tensor %s: whole numbers are needed (I32 or I64), found %s", t->file, t->name, t->dtype_text);
    }
}
