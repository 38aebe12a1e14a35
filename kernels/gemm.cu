/* gemm.cu - see gemm.h. cuBLASLt on a GPU; under the SIMT layer a host product with the same roundings: bf16 in, sums in
 * f32, bias added in f32, one rounding at the end.
 *
 * cuBLASLt is column-major: our row-major y (N, O) is its O x N matrix y^T = w x^T, w (O, I) is an I x O matrix taken
 * transposed, x (N, I) an I x N matrix. */
#include "kernels/vec.cuh"
#include "kernels/gemm.h"

#ifdef __CUDACC__
#include <cublasLt.h>

#define BLAS_CHECK(call)                                                                                                                   \
    do {                                                                                                                                   \
        cublasStatus_t status_ = (call);                                                                                                   \
        CHECK(status_ == CUBLAS_STATUS_SUCCESS, "%s: %s", #call, cublasLtGetStatusString(status_));                                        \
    } while (0)

/* What one shape needs; asking cuBLASLt for it costs tens of microseconds, so it is kept. */
struct plan {
    int N, I, O, real, bias, alignment; /* the key; N 0: empty */
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algorithm;
};

constexpr int PLANS = 256; /* direct-mapped; a collision replaces */
struct blas {
    cublasLtHandle_t handle;
    struct plan plan[PLANS];
};

static void plan_free(struct plan *p) {
    if (!p->N) return;
    cublasLtMatrixLayoutDestroy(p->w);
    cublasLtMatrixLayoutDestroy(p->x);
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
    BLAS_CHECK(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    if (p->bias) BLAS_CHECK(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    BLAS_CHECK(cublasLtMatrixLayoutCreate(&p->w, CUDA_R_16BF, I, O, p->I));
    BLAS_CHECK(cublasLtMatrixLayoutCreate(&p->x, CUDA_R_16BF, I, N, p->I));
    BLAS_CHECK(cublasLtMatrixLayoutCreate(&p->y, p->real ? CUDA_R_32F : CUDA_R_16BF, O, N, p->O));
    cublasLtMatmulPreference_t preference;
    BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
    const cublasLtMatmulPreferenceAttributes_t operands[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4; i++) BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, operands[i], &alignment, sizeof alignment));
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    BLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(blas->handle, p->operation, p->w, p->x, p->y, p->y, preference, 1, &result, &found));
    CHECK(found == 1, "cuBLASLt knows no algorithm for N=%d I=%d O=%d", p->N, p->I, p->O);
    p->algorithm = result.algo;
    cublasLtMatmulPreferenceDestroy(preference);
}

static struct plan *plan_for(struct blas *blas, const struct plan *key) {
    const int values[] = {key->N, key->I, key->O, key->real * 2 + key->bias, key->alignment};
    unsigned hash = 2166136261u; /* FNV-1a */
    for (int i = 0; i < 5; i++) hash = (hash ^ static_cast<unsigned>(values[i])) * 16777619u;
    struct plan *p = &blas->plan[(hash ^ hash >> 16) % PLANS];
    if (p->N == key->N && p->I == key->I && p->O == key->O && p->real == key->real && p->bias == key->bias &&
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

static void linear(struct device *dev, void *y, bool real, const bf16 *x, const bf16 *w, const bf16 *bias, int N, int I, int O) {
    struct blas *blas = blas_of(dev);
    const float one = 1, zero = 0;
    struct plan key = {};
    key.N = N, key.I = I, key.O = O, key.real = real, key.bias = bias != nullptr, key.alignment = common_alignment(y, x, w, bias);
    struct plan *p = plan_for(blas, &key);
    if (bias) BLAS_CHECK(cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    BLAS_CHECK(cublasLtMatmul(blas->handle, p->operation, &one, w, p->w, x, p->x, &zero, y, p->y, y, p->y, &p->algorithm,
                              dev->blas_workspace, DEVICE_WORKSPACE_BYTES, dev->stream));
}

#else /* ---- under the SIMT layer: device memory is host memory ---- */
#include <dnnl.h>

constexpr int COLUMNS = 256; /* of one task; fixed, so that no bit depends on the number of threads */

static float *widened(const bf16 *from, size_t n) {
    float *to = static_cast<float *>(malloc(n * sizeof(float)));
    CHECK(to, "%zu floats", n);
    for (size_t i = 0; i < n; i++) to[i] = __bfloat162float(from[i]);
    return to;
}

static void linear(struct device *, void *y, bool real, const bf16 *x, const bf16 *w, const bf16 *bias, int N, int I, int O) {
    const size_t n = static_cast<size_t>(N), in = static_cast<size_t>(I), out = static_cast<size_t>(O);
    float *xf = widened(x, n * in), *sum = static_cast<float *>(malloc(n * out * sizeof(float)));
    CHECK(sum, "N=%d O=%d", N, O);
#pragma omp parallel for schedule(dynamic)
    for (int o = 0; o < O; o += COLUMNS) {
        const int wide = O - o < COLUMNS ? O - o : COLUMNS;
        float *wf = widened(w + static_cast<size_t>(o) * in, static_cast<size_t>(wide) * in);
        const dnnl_status_t status = dnnl_sgemm('N', 'T', N, wide, I, 1.0f, xf, I, wf, I, 0.0f, sum + o, O);
        CHECK(status == dnnl_success, "dnnl_sgemm %dx%dx%d: status %d", N, wide, I, static_cast<int>(status));
        free(wf);
    }
    for (size_t i = 0; i < n * out; i++) {
        if (real)
            static_cast<float *>(y)[i] = sum[i];
        else
            static_cast<bf16 *>(y)[i] = __float2bfloat16(sum[i] + (bias ? __bfloat162float(bias[i % out]) : 0.0f));
    }
    free(sum);
    free(xf);
}
#endif

void linear_forward(struct device *dev, bf16 *y, const bf16 *x, const bf16 *w, const bf16 *bias, int N, int I, int O) {
    OP_RANGE();
    if (N > 0 && O > 0) linear(dev, y, false, x, w, bias, N, I, O);
}

void linear_forward_real(struct device *dev, float *y, const bf16 *x, const bf16 *w, int N, int I, int O) {
    OP_RANGE();
    if (N > 0 && O > 0) linear(dev, y, true, x, w, nullptr, N, I, O);
}
