/* gemm.cu - see gemm.h. cuBLASLt on a GPU; under the SIMT layer a host product with the same roundings: bf16 in, sums in
 * f32, bias added in f32, one rounding at the end.
 *
 * cuBLASLt is column-major: our row-major (N, O) is its O x N matrix. So, of a and b as they lie there:
 *   FORWARD  y^T  (O x N) = w (I x O) transposed  x (I x N)
 *   INPUT    dx^T (I x N) = w (I x O)             dy (O x N)
 *   WEIGHT   dw^T (I x O) += x (I x N)            dy (O x N) transposed */
#include "kernels/vec.cuh"
#include "kernels/gemm.h"

enum product_kind { FORWARD, INPUT, WEIGHT };

#ifdef __CUDACC__
#include <cublasLt.h>

#define BLAS_CHECK(call)                                                                                                                   \
    do {                                                                                                                                   \
        cublasStatus_t status_ = (call);                                                                                                   \
        CHECK(status_ == CUBLAS_STATUS_SUCCESS, "%s: %s", #call, cublasLtGetStatusString(status_));                                        \
    } while (0)

/* What one shape needs; asking cuBLASLt for it costs tens of microseconds, so it is kept. */
struct plan {
    int kind, N, I, O, real, bias, alignment; /* the key; N 0: empty */
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, y;
    cublasLtMatmulAlgo_t algorithm;
};

constexpr int PLANS = 256; /* direct-mapped; a collision replaces */
struct blas {
    cublasLtHandle_t handle;
    struct plan plan[PLANS];
};

static void plan_free(struct plan *p) {
    if (!p->N) return;
    cublasLtMatrixLayoutDestroy(p->a);
    cublasLtMatrixLayoutDestroy(p->b);
    cublasLtMatrixLayoutDestroy(p->y);
    cublasLtMatmulDescDestroy(p->operation);
    p->N = 0;
}

static void blas_free(struct device *dev) {
    struct blas *blas = static_cast<struct blas *>(dev->blas);
    for (int i = 0; i < PLANS; i++) plan_free(&blas->plan[i]);
    cublasLtDestroy(blas->handle);
    free(blas);
    dev->blas = nullptr;
}

static struct blas *blas_of(struct device *dev) {
    if (!dev->blas) {
        struct blas *blas = static_cast<struct blas *>(calloc(1, sizeof *blas));
        CHECK(blas, "%zu bytes", sizeof *blas);
        BLAS_CHECK(cublasLtCreate(&blas->handle));
        CUDA_CHECK(cudaMalloc(&dev->blas_workspace, DEVICE_WORKSPACE_BYTES));
        dev->blas = blas;
        dev->blas_free = blas_free;
    }
    return static_cast<struct blas *>(dev->blas);
}

static void plan_make(struct blas *blas, struct plan *p) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const size_t workspace = DEVICE_WORKSPACE_BYTES;
    const uint32_t alignment = static_cast<uint32_t>(p->alignment);
    const uint64_t N = static_cast<uint64_t>(p->N), I = static_cast<uint64_t>(p->I), O = static_cast<uint64_t>(p->O);
    BLAS_CHECK(cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    if (p->kind == FORWARD)
        BLAS_CHECK(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    if (p->kind == WEIGHT)
        BLAS_CHECK(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &transposed, sizeof transposed));
    if (p->bias) BLAS_CHECK(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    const uint64_t a_columns = p->kind == WEIGHT ? N : O, b_rows = p->kind == FORWARD ? I : O;
    const uint64_t y_rows = p->kind == FORWARD ? O : I, y_columns = p->kind == WEIGHT ? O : N;
    BLAS_CHECK(cublasLtMatrixLayoutCreate(&p->a, CUDA_R_16BF, I, a_columns, static_cast<int64_t>(I)));
    BLAS_CHECK(cublasLtMatrixLayoutCreate(&p->b, CUDA_R_16BF, b_rows, N, static_cast<int64_t>(b_rows)));
    BLAS_CHECK(cublasLtMatrixLayoutCreate(&p->y, p->real ? CUDA_R_32F : CUDA_R_16BF, y_rows, y_columns, static_cast<int64_t>(y_rows)));
    cublasLtMatmulPreference_t preference;
    BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
    const cublasLtMatmulPreferenceAttributes_t operands[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4; i++) BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, operands[i], &alignment, sizeof alignment));
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    BLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(blas->handle, p->operation, p->a, p->b, p->y, p->y, preference, 1, &result, &found));
    CHECK(found == 1, "cuBLASLt knows no algorithm for N=%d I=%d O=%d", p->N, p->I, p->O);
    p->algorithm = result.algo;
    cublasLtMatmulPreferenceDestroy(preference);
}

static struct plan *plan_for(struct blas *blas, const struct plan *key) {
    const int values[] = {key->N, key->I, key->O, key->kind * 4 + key->real * 2 + key->bias, key->alignment};
    unsigned hash = 2166136261u; /* FNV-1a */
    for (int i = 0; i < 5; i++) hash = (hash ^ static_cast<unsigned>(values[i])) * 16777619u;
    struct plan *p = &blas->plan[(hash ^ hash >> 16) % PLANS];
    if (p->kind == key->kind && p->N == key->N && p->I == key->I && p->O == key->O && p->real == key->real && p->bias == key->bias &&
        p->alignment == key->alignment)
        return p;
    plan_free(p);
    *p = *key;
    plan_make(blas, p);
    return p;
}

/* The largest power of two up to 256 that divides all addresses. */
static int common_alignment(const void *a, const void *b, const void *c, const void *d) {
    const uintptr_t all = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c) |
                          reinterpret_cast<uintptr_t>(d) | 256;
    return static_cast<int>(all & (~all + 1));
}

/* a, b: what FORWARD, INPUT and WEIGHT name first and second; real: the result is f32 */
static void product(struct device *dev, enum product_kind kind, void *y, bool real, const bf16 *a, const bf16 *b, const bf16 *bias, int N,
                    int I, int O) {
    struct blas *blas = blas_of(dev);
    const float one = 1, beta = kind == WEIGHT ? 1.0f : 0.0f;
    struct plan key = {};
    key.kind = kind, key.N = N, key.I = I, key.O = O, key.real = real, key.bias = bias != nullptr,
    key.alignment = common_alignment(y, a, b, bias);
    struct plan *p = plan_for(blas, &key);
    if (bias) BLAS_CHECK(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    BLAS_CHECK(cublasLtMatmul(blas->handle, p->operation, &one, a, p->a, b, p->b, &beta, y, p->y, y, p->y, &p->algorithm,
                              dev->blas_workspace, DEVICE_WORKSPACE_BYTES, dev->stream));
}

#else /* ---- under the SIMT layer: device memory is host memory ---- */
#include <dnnl.h>

constexpr int COLUMNS = 256; /* of one task; fixed, so that no bit depends on the number of threads */

static float *widened(const bf16 *from, size_t n) {
    float *to = static_cast<float *>(malloc(n * sizeof(float)));
    CHECK(to, "%zu floats", n);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) to[i] = __bfloat162float(from[i]);
    return to;
}

/* y (rows, columns) row-major, y^T as above; a is the operand of y's columns, b that of its rows. */
static void product(struct device *, enum product_kind kind, void *y, bool real, const bf16 *a, const bf16 *b, const bf16 *bias, int N,
                    int I, int O) {
    const int rows = kind == WEIGHT ? O : N, columns = kind == FORWARD ? O : I, depth = kind == FORWARD ? I : kind == INPUT ? O : N;
    const int b_width = kind == FORWARD ? I : O;
    const size_t n = static_cast<size_t>(rows), out = static_cast<size_t>(columns);
    float *bf = widened(b, static_cast<size_t>(N) * b_width), *sum = static_cast<float *>(malloc(n * out * sizeof(float)));
    float *af = widened(a, static_cast<size_t>(kind == WEIGHT ? N : O) * I);
    CHECK(sum, "N=%d O=%d", N, O);
#pragma omp parallel for schedule(dynamic)
    for (int o = 0; o < columns; o += COLUMNS) {
        const int wide = columns - o < COLUMNS ? columns - o : COLUMNS;
        const float *from = af + (kind == FORWARD ? static_cast<size_t>(o) * I : static_cast<size_t>(o));
        const dnnl_status_t status = dnnl_sgemm(kind == WEIGHT ? 'T' : 'N', kind == FORWARD ? 'T' : 'N', rows, wide, depth, 1.0f, bf,
                                                b_width, from, I, 0.0f, sum + o, columns);
        CHECK(status == dnnl_success, "dnnl_sgemm %dx%dx%d: status %d", rows, wide, depth, static_cast<int>(status));
    }
    for (size_t i = 0; i < n * out; i++) {
        if (real)
            static_cast<float *>(y)[i] = sum[i] + (kind == WEIGHT ? static_cast<float *>(y)[i] : 0.0f);
        else
            static_cast<bf16 *>(y)[i] = __float2bfloat16(sum[i] + (bias ? __bfloat162float(bias[i % out]) : 0.0f));
    }
    free(sum);
    free(af);
    free(bf);
}
#endif

void linear_forward(struct device *dev, bf16 *y, const bf16 *x, const bf16 *w, const bf16 *bias, int N, int I, int O) {
    OP_RANGE();
    if (N > 0 && O > 0) product(dev, FORWARD, y, false, w, x, bias, N, I, O);
}

void linear_forward_real(struct device *dev, float *y, const bf16 *x, const bf16 *w, int N, int I, int O) {
    OP_RANGE();
    if (N > 0 && O > 0) product(dev, FORWARD, y, true, w, x, nullptr, N, I, O);
}

void linear_backward_input(struct device *dev, bf16 *dx, const bf16 *dy, const bf16 *w, int N, int I, int O) {
    OP_RANGE();
    if (N > 0 && I > 0) product(dev, INPUT, dx, false, w, dy, nullptr, N, I, O);
}

void linear_backward_weight(struct device *dev, float *dw, const bf16 *dy, const bf16 *x, int N, int I, int O) {
    OP_RANGE();
    if (N > 0 && O > 0) product(dev, WEIGHT, dw, true, x, dy, nullptr, N, I, O);
}
