/* op_test.c - see op_test.h. */
#include "tests/kernels/op_test.h"

#include <omp.h>

#include "host/check.h"

enum { GUARD = 256 }; /* bytes before and after every tensor; 256 keeps the alignment of device_alloc */
static const uint8_t GUARD_BYTE = 0xA5;

static struct device *shared_device;

static void close_device(void) { device_close(shared_device); }

static struct device *open_device(void) {
    if (!shared_device) {
        char why[200] = "";
        shared_device = device_open(0, 0, why, sizeof why);
        CHECK(shared_device, "%s", why);
        atexit(close_device);
        printf("device: %s\n", device_name(shared_device));
    }
    return shared_device;
}

/* ---- random numbers: SplitMix64 (Steele, Lea & Flood 2014), seeded by an FNV-1a hash of the case's name ---- */

static uint64_t next_random(struct op_test *t) {
    uint64_t z = (t->random += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

double op_uniform(struct op_test *t) { return (double)(next_random(t) >> 11) * 0x1p-53; }

double op_normal(struct op_test *t) {
    double a = 1.0 - op_uniform(t), b = op_uniform(t);
    return sqrt(-2.0 * log(a)) * cos(6.283185307179586 * b);
}

int op_below(struct op_test *t, int n) { return (int)(next_random(t) % (uint64_t)n); }

/* ---- types ---- */

static bf16 to_bf16(float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    if (v != v) return (bf16){(uint16_t)(u >> 16 | 0x40)};
    return (bf16){(uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16)};
}

static float from_bf16(bf16 h) {
    uint32_t u = (uint32_t)h.bits << 16;
    float v;
    memcpy(&v, &u, 4);
    return v;
}

static bool is_low(enum op_type type) { return type == OP_BF16 || (type == OP_ACT && sizeof(act_t) == 2); }

float op_round(enum op_type type, float v) { return is_low(type) ? from_bf16(to_bf16(v)) : v; }

static size_t type_bytes(enum op_type type) {
    switch (type) {
    case OP_ACT:
        return sizeof(act_t);
    case OP_REAL:
        return sizeof(float);
    case OP_BF16:
        return 2;
    case OP_F64:
    case OP_I64:
        return 8;
    case OP_INT:
        return sizeof(int);
    case OP_U8:
    case OP_BYTES:
        return 1;
    }
    return 0;
}

static void *host_bytes(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    CHECK(p, "%zu bytes", bytes);
    return p;
}

/* Allocates the field that holds the values as the oracle wants them. */
static void make_fields(struct op_buffer *b) {
    switch (b->type) {
    case OP_BF16:
        b->low = host_bytes(b->n * sizeof(bf16));
        b->real = host_bytes(b->n * sizeof(double));
        break;
    case OP_ACT:
    case OP_REAL:
    case OP_F64:
        b->real = host_bytes(b->n * sizeof(double));
        break;
    case OP_INT:
        b->ints = host_bytes(b->n * sizeof(int));
        break;
    case OP_I64:
        b->longs = host_bytes(b->n * sizeof(int64_t));
        break;
    case OP_U8:
    case OP_BYTES:
        b->bytes = host_bytes(b->n);
        break;
    }
}

float op_cut_product(const double *x, const double *w, int n) {
    float sum = 0;
    for (int i = 0; i < n; i += 16) {
        double exact = (double)sum;
        for (int k = i; k < n && k < i + 16; k++) exact += (double)op_round(OP_BF16, (float)x[k]) * w[k];
        sum = (float)exact;
        if (fabs((double)sum) > fabs(exact)) sum = nextafterf(sum, 0);
    }
    return sum;
}

/* stored bytes -> fields */
static void unpack(struct op_buffer *b, const uint8_t *stored) {
    if (b->ints) memcpy(b->ints, stored, b->n * sizeof(int));
    if (b->longs) memcpy(b->longs, stored, b->n * sizeof(int64_t));
    if (b->bytes) memcpy(b->bytes, stored, b->n);
    if (b->low) memcpy(b->low, stored, b->n * sizeof(bf16));
    if (!b->real) return;
    if (b->type == OP_F64) {
        memcpy(b->real, stored, b->n * sizeof(double));
    } else if (is_low(b->type)) {
        for (size_t i = 0; i < b->n; i++) {
            bf16 h;
            memcpy(&h, stored + 2 * i, 2);
            b->real[i] = (double)from_bf16(h);
        }
    } else {
        for (size_t i = 0; i < b->n; i++) {
            float v;
            memcpy(&v, stored + 4 * i, 4);
            b->real[i] = (double)v;
        }
    }
}

/* doubles -> stored bytes */
static void pack(struct op_buffer *b, const double *values) {
    for (size_t i = 0; i < b->n; i++) {
        if (b->type == OP_F64) {
            memcpy(b->stored + 8 * i, &values[i], 8);
        } else if (b->type == OP_I64) {
            int64_t v = (int64_t)values[i];
            memcpy(b->stored + 8 * i, &v, 8);
        } else if (is_low(b->type)) {
            bf16 h = to_bf16((float)values[i]);
            memcpy(b->stored + 2 * i, &h, 2);
        } else {
            float v = (float)values[i];
            memcpy(b->stored + 4 * i, &v, 4);
        }
    }
}

/* ---- cases ---- */

void op_begin(struct op_test *t, const char *format, ...) {
    memset(t, 0, sizeof *t);
    t->dev = open_device();
    va_list args;
    va_start(args, format);
    vsnprintf(t->name, sizeof t->name, format, args);
    va_end(args);
    t->random = 0xCBF29CE484222325u;
    for (const char *s = t->name; *s; s++) t->random = (t->random ^ (uint8_t)*s) * 0x100000001B3u;
}

void op_fail(struct op_test *t, const char *format, ...) {
    t->failures++;
    va_list args;
    va_start(args, format);
    printf("  FAIL %s: ", t->name);
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

void op_end(struct op_test *t) {
    for (int i = 0; i < t->buffers; i++) {
        struct op_buffer *b = &t->buffer[i];
        device_free(t->dev, b->base);
        free(b->real), free(b->low), free(b->ints), free(b->longs), free(b->bytes), free(b->stored), free(b->first);
    }
    for (int i = 0; i < t->hosts; i++) free(t->host[i]);
    fflush(stdout);
    assert_int_equal(t->failures, 0);
}

static struct op_buffer *new_buffer(struct op_test *t, enum op_type type, size_t n) {
    CHECK(t->buffers < OP_TEST_BUFFERS, "%d", t->buffers);
    struct op_buffer *b = &t->buffer[t->buffers++];
    size_t bytes = n * type_bytes(type);
    *b = (struct op_buffer){.type = type, .n = n};
    b->base = device_alloc(t->dev, bytes + 2 * GUARD);
    CHECK(b->base, "%zu bytes", bytes);
    b->p = (char *)b->base + GUARD;
    b->stored = host_bytes(bytes);
    make_fields(b);
    return b;
}

/* Guards and contents onto the device. */
static void upload(struct op_test *t, struct op_buffer *b) {
    size_t bytes = b->n * type_bytes(b->type);
    uint8_t *image = host_bytes(bytes + 2 * GUARD);
    memset(image, GUARD_BYTE, bytes + 2 * GUARD);
    if (b->initialised)
        memcpy(image + GUARD, b->stored, bytes);
    else
        memset(image + GUARD, 0xFF, bytes); /* NaN in f32, f64 and bf16, -1 in integers */
    device_upload(t->dev, b->base, image, bytes + 2 * GUARD);
    free(image);
}

static struct op_buffer *filled(struct op_test *t, struct op_buffer *b) {
    b->initialised = true;
    unpack(b, b->stored);
    upload(t, b);
    return b;
}

struct op_buffer *op_given(struct op_test *t, enum op_type type, size_t n, const double *values) {
    struct op_buffer *b = new_buffer(t, type, n);
    pack(b, values);
    return filled(t, b);
}

struct op_buffer *op_input(struct op_test *t, enum op_type type, size_t n, double scale) {
    double *values = host_bytes(n * sizeof(double));
    for (size_t i = 0; i < n; i++) values[i] = scale * op_normal(t);
    struct op_buffer *b = op_given(t, type, n, values);
    free(values);
    return b;
}

struct op_buffer *op_given_int(struct op_test *t, size_t n, const int *values) {
    struct op_buffer *b = new_buffer(t, OP_INT, n);
    memcpy(b->stored, values, n * sizeof(int));
    return filled(t, b);
}

struct op_buffer *op_given_u8(struct op_test *t, size_t n, const uint8_t *values) {
    struct op_buffer *b = new_buffer(t, OP_U8, n);
    memcpy(b->stored, values, n);
    return filled(t, b);
}

struct op_buffer *op_output(struct op_test *t, enum op_type type, size_t n) {
    struct op_buffer *b = new_buffer(t, type, n);
    b->output = true;
    return b;
}

struct op_buffer *op_inout(struct op_test *t, enum op_type type, size_t n, const double *initial) {
    struct op_buffer *b = op_given(t, type, n, initial);
    b->output = true;
    return b;
}

static void *keep(struct op_test *t, size_t bytes) {
    CHECK(t->hosts < OP_TEST_HOST, "%d", t->hosts);
    void *p = host_bytes(bytes);
    memset(p, 0xFF, bytes);
    return t->host[t->hosts++] = p;
}

double *op_ref(struct op_test *t, size_t n) { return keep(t, n * sizeof(double)); }
float *op_plain(struct op_test *t, size_t n) { return keep(t, n * sizeof(float)); }
int *op_ints(struct op_test *t, size_t n) { return keep(t, n * sizeof(int)); }

double *op_copy(struct op_test *t, const double *values, size_t n) { return memcpy(op_ref(t, n), values, n * sizeof(double)); }

/* ---- running ---- */

void op_before(struct op_test *t, int turn) {
    for (int i = 0; i < t->buffers; i++)
        if (t->buffer[i].output) upload(t, &t->buffer[i]);
    if (sizeof(act_t) == 4) omp_set_num_threads(turn == 0 ? 3 : 1); /* the SIMT layer keeps a worker per OpenMP thread: leave it */
}

static void check_guards(struct op_test *t, int index, const uint8_t *image, size_t bytes) {
    for (size_t k = 0; k < GUARD; k++)
        if (image[k] != GUARD_BYTE || image[GUARD + bytes + k] != GUARD_BYTE) {
            op_fail(t, "buffer %d: written outside its %zu bytes", index, bytes);
            return;
        }
}

void op_after(struct op_test *t, int turn) {
    device_sync(t->dev);
    for (int i = 0; i < t->buffers; i++) {
        struct op_buffer *b = &t->buffer[i];
        size_t bytes = b->n * type_bytes(b->type);
        uint8_t *image = host_bytes(bytes + 2 * GUARD);
        device_download(t->dev, image, b->base, bytes + 2 * GUARD);
        check_guards(t, i, image, bytes);
        if (!b->output) {
            if (memcmp(image + GUARD, b->stored, bytes) != 0) op_fail(t, "buffer %d: an input was changed", i);
        } else if (turn == 0) {
            if (!b->first) b->first = host_bytes(bytes);
            memcpy(b->first, image + GUARD, bytes);
            unpack(b, b->first);
        } else if (b->type != OP_BYTES && memcmp(image + GUARD, b->first, bytes) != 0) {
            op_fail(t, "buffer %d: two runs differ", i);
        }
        free(image);
    }
    if (sizeof(act_t) == 4) omp_set_num_threads(omp_get_num_procs());
}

/* ---- judging ---- */

struct errors {
    double max, rms;
    size_t worst;
    bool broken; /* a NaN or infinity where the oracle has another value */
};

static struct errors measure(const double *ref, const double *a, const float *b, size_t n) {
    struct errors e = {0};
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double v = a ? a[i] : (double)b[i], d = fabs(v - ref[i]);
        if (isnan(v) && isnan(ref[i])) continue;
        if (isinf(v) && v == ref[i]) continue;
        if (!(d < INFINITY)) {
            if (!e.broken) e.worst = i;
            e.broken = true;
            continue;
        }
        if (d > e.max && !e.broken) e.worst = i;
        if (d > e.max) e.max = d;
        sum += d * d;
    }
    e.rms = n ? sqrt(sum / (double)n) : 0;
    return e;
}

static bool judge(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, const float *plain, double limit,
                  double magnitude) {
    CHECK(out->real, "%s is no real tensor", what);
    double top = 0, square = 0;
    size_t finite = 0;
    for (size_t i = 0; i < out->n; i++)
        if (isfinite(ref[i])) {
            top = fmax(top, fabs(ref[i]));
            square += ref[i] * ref[i];
            finite++;
        }
    bool low = is_low(out->type);
    double u = low ? 0x1p-8 : 4 * 0x1p-24, u_rms = low ? 0.4 * u : 0.5 * u, rms = finite ? sqrt(square / (double)finite) : 0;
    struct errors got = measure(ref, out->real, NULL, out->n), naive = measure(ref, NULL, plain, out->n);
    double floor_max = fmax(fmax(naive.max, u * top), 0x1p-24 * magnitude),
           floor_rms = fmax(fmax(naive.rms, u_rms * rms), 0.4 * 0x1p-24 * magnitude);
    bool ok = !got.broken && got.max <= limit * floor_max && (out->n < 32 || got.rms <= 1.25 * floor_rms);
    printf("  %-4s %s: %s max %.3g (floor %.3g) rms %.3g (floor %.3g)\n", ok ? "ok" : "FAIL", t->name, what, got.max, floor_max, got.rms,
           floor_rms);
    if (!ok) {
        t->failures++;
        printf("       element %zu of %zu: got %.9g, want %.9g, plain %.9g\n", got.worst, out->n, out->real[got.worst], ref[got.worst],
               (double)plain[got.worst]);
    }
    return ok;
}

bool op_check(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, const float *plain) {
    return judge(t, out, what, ref, plain, 2, 0);
}

bool op_check_gradient(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, const float *plain) {
    return judge(t, out, what, ref, plain, 3, 0);
}

bool op_check_sum(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, const float *plain,
                  double magnitude) {
    return judge(t, out, what, ref, plain, 2, magnitude);
}

bool op_check_gradient_sum(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, const float *plain,
                           double magnitude) {
    return judge(t, out, what, ref, plain, 3, magnitude);
}

bool op_check_each(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref, double units) {
    if (!is_low(out->type)) return true;
    double worst = 0;
    for (size_t i = 0; i < out->n; i++) {
        if (!isfinite(ref[i])) continue; /* op_check compares those */
        double off = (fabs(out->real[i] - ref[i]) - 1e-30) / (0x1p-8 * fabs(ref[i]) + 1e-300);
        if (!(off <= units)) {
            op_fail(t, "%s element %zu of %zu: got %.9g, want %.9g, %.3g roundings off", what, i, out->n, out->real[i], ref[i], off);
            return false;
        }
        worst = fmax(worst, off);
    }
    printf("  ok   %s: %s each within %.3g roundings\n", t->name, what, worst);
    return true;
}

bool op_check_exact(struct op_test *t, const struct op_buffer *out, const char *what, const double *ref) {
    CHECK(out->real, "%s is no real tensor", what);
    for (size_t i = 0; i < out->n; i++)
        if (out->real[i] != ref[i] && !(isnan(out->real[i]) && isnan(ref[i]))) {
            op_fail(t, "%s element %zu of %zu: got %.9g, want %.9g", what, i, out->n, out->real[i], ref[i]);
            return false;
        }
    printf("  ok   %s: %s exact\n", t->name, what);
    return true;
}

bool op_check_ints(struct op_test *t, const struct op_buffer *out, const char *what, const int *ref) {
    CHECK(out->ints, "%s is no integer tensor", what);
    for (size_t i = 0; i < out->n; i++)
        if (out->ints[i] != ref[i]) {
            op_fail(t, "%s element %zu of %zu: got %d, want %d", what, i, out->n, out->ints[i], ref[i]);
            return false;
        }
    printf("  ok   %s: %s equal\n", t->name, what);
    return true;
}
