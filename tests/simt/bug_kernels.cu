/* bug_kernels.cu: small kernels with planted bugs; run.sh checks that each is caught, and where.
 *
 *   bug_kernels NAME     exit status 0: the result was right (or no result was asked for); 1: wrong result; killed: reported
 * A bug is a template argument, so that one compilation has them all. NAMEs without an entry in the bug enum are correct
 * programs. The kernels take at least three turns of each loop that reuses a buffer: fewer hide a missing barrier. */
#include "kernels/simt/ptx.cuh"
#include "kernels/simt/simt.h"
#include <cmath>

enum bug { NONE, RAW, WAR, OOB, DIVERGE, RETURN, MASK, UNINIT, GLOBAL, NOWAIT, FRAG, TRANS, NO_SYNCWARP, MISALIGNED, TOO_SMALL, OUTSIDE };

template <class T> static T *device_array(size_t n, const T *from) {
    T *p = nullptr;
    if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess) abort();
    if (from && cudaMemcpy(p, from, n * sizeof(T), cudaMemcpyHostToDevice) != cudaSuccess) abort();
    return p;
}
static float value(size_t i) {
    return static_cast<float>(static_cast<int>(static_cast<unsigned>(i) * 2654435761u >> 28) - 8);
} /* -8..7, exact in bf16 */
static bool near(double got, double want, const char *name, size_t i) {
    if (std::fabs(got - want) <= 1e-5 * std::fabs(want) + 1e-5) return true;
    printf("%s: wrong result at %zu: %g instead of %g\n", name, i, got, want);
    return false;
}

/* ---- y[r] = sum of row r of x. Block of 4 warps, grid-stride over rows; part is reused for every row. */
template <int BUG> __global__ void row_sum_kernel(float *y, const float *x, int rows, int cols) {
    SHARED(float, part, [8]);
    const int t = static_cast<int>(threadIdx.x), lane = t & 31, warp = t >> 5, nwarps = static_cast<int>(blockDim.x) >> 5;
    if (BUG == RETURN && t >= 100) return;
    for (int r = static_cast<int>(blockIdx.x); r < rows; r += static_cast<int>(gridDim.x)) {
        float s = 0;
        for (int i = t; i < cols + (BUG == GLOBAL ? 1 : 0); i += static_cast<int>(blockDim.x)) s += x[static_cast<size_t>(r) * cols + i];
        if (BUG != MASK || lane < 16)
            for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(0xffffffffu, s, o);
        if (lane == 0) part[BUG == OOB ? warp + 8 : warp] = s;
        if (BUG == DIVERGE && warp == 0)
            __syncthreads();
        else if (BUG != RAW)
            __syncthreads();
        float total = 0;
        for (int i = 0; i < (BUG == UNINIT ? 8 : nwarps); i++) total += part[i];
        if (t == 77) y[r] = total;
        if (BUG != WAR) __syncthreads();
    }
}
template <int BUG> static bool row_sum() {
    const int rows = 20, cols = 320;
    static float x[rows * cols];
    for (size_t i = 0; i < rows * cols; i++) x[i] = value(i);
    float *dx = device_array(rows * cols, x), *dy = device_array<float>(rows, nullptr), y[rows];
    LAUNCH(row_sum_kernel<BUG>, 4, 128, 0, nullptr, dy, dx, rows, cols);
    cudaMemcpy(y, dy, sizeof y, cudaMemcpyDeviceToHost);
    for (size_t r = 0; r < rows; r++) {
        double want = 0;
        for (size_t i = 0; i < cols; i++) want += static_cast<double>(x[r * cols + i]);
        if (!near(static_cast<double>(y[r]), want, "row_sum", r)) return false;
    }
    cudaFree(dx);
    cudaFree(dy);
    return true;
}

/* ---- C(32x16) = A(32xK) B(KxN=16): 2 warps of 16 rows, K in tiles of 32 through two cp.async buffers, B read with .trans */
constexpr int GM = 32, GN = 16, GK = 32;
struct gemm_smem {
    __nv_bfloat16 a[2][GM][GK + 8], b[2][GK][GN + 8];
}; /* 8 elements of padding against bank conflicts */
template <int BUG> __global__ void gemm_kernel(float *C, const __nv_bfloat16 *A, const __nv_bfloat16 *B, int K) {
    DYN_SMEM(gemm_smem, sm);
    const int t = static_cast<int>(threadIdx.x), lane = t & 31, m0 = (t >> 5) * 16;
    auto load = [&](int stage, int k0) {
        for (int i = t; i < GM * GK / 8; i += 64) {
            int r = i / (GK / 8), c = i % (GK / 8) * 8;
            ptx::cp_async16(&sm->a[stage + (BUG == OOB && r == 31 ? 4 : 0)][r][c], A + r * K + k0 + c);
        }
        for (int i = t; i < GK * GN / 8; i += 64) {
            int r = i / (GN / 8), c = i % (GN / 8) * 8;
            ptx::cp_async16(&sm->b[stage][r][c], B + (k0 + r) * GN + c);
        }
        ptx::cp_async_commit();
    };
    float acc[2][4] = {};
    load(0, 0);
    for (int k0 = 0; k0 < K; k0 += GK) {
        const int stage = k0 / GK & 1;
        if (k0 + GK < K)
            load(stage ^ 1, k0 + GK);
        else
            ptx::cp_async_commit();
        if (BUG == NOWAIT)
            ptx::cp_async_wait<2>();
        else
            ptx::cp_async_wait<1>();
        if (BUG != RAW) __syncthreads();
        for (int kk = 0; kk < GK; kk += 16) {
            uint32_t a[4], b[4];
            ptx::ldmatrix_x4(a, &sm->a[stage][m0 + (lane & 15)][kk + (lane >> 4) * 8 + (BUG == MISALIGNED ? 1 : 0)]);
            if (BUG == TRANS)
                ptx::ldmatrix_x4(b, &sm->b[stage][kk + (lane & 15)][(lane >> 4) * 8]);
            else
                ptx::ldmatrix_x4_trans(b, &sm->b[stage][kk + (lane & 15)][(lane >> 4) * 8]);
            if (BUG == FRAG) {
                uint32_t swap = a[1];
                a[1] = a[2];
                a[2] = swap;
            }
            if (BUG == MASK && lane == 3) continue;
            ptx::mma_16816(acc[0], a, b[0], b[1]);
            ptx::mma_16816(acc[1], a, b[2], b[3]);
        }
        if (BUG != WAR) __syncthreads();
    }
    for (int j = 0; j < 2; j++)
        for (int e = 0; e < 4; e++) C[(m0 + lane / 4 + e / 2 * 8) * GN + j * 8 + lane % 4 * 2 + e % 2] = acc[j][e];
}
template <int BUG> static bool gemm() {
    const int K = 160;
    static __nv_bfloat16 a[GM * K], b[K * GN];
    static float c[GM * GN];
    for (size_t i = 0; i < GM * K; i++) a[i] = __float2bfloat16(value(i));
    for (size_t i = 0; i < K * GN; i++) b[i] = __float2bfloat16(value(i + 12345));
    __nv_bfloat16 *da = device_array(GM * K, a), *db = device_array(K * GN, b);
    float *dc = device_array<float>(GM * GN, nullptr);
    size_t smem = BUG == TOO_SMALL ? sizeof(gemm_smem) / 2 : sizeof(gemm_smem);
    LAUNCH(gemm_kernel<BUG>, 1, 64, smem, nullptr, dc, da, db, K);
    cudaMemcpy(c, dc, sizeof c, cudaMemcpyDeviceToHost);
    for (size_t i = 0; i < GM * GN; i++) {
        double want = 0;
        for (size_t k = 0; k < K; k++)
            want += static_cast<double>(__bfloat162float(a[i / GN * K + k])) * static_cast<double>(__bfloat162float(b[k * GN + i % GN]));
        if (!near(static_cast<double>(c[i]), want, "gemm", i)) return false;
    }
    return true;
}

/* ---- y[t] = x[t ^ 1], exchanged inside a warp */
template <int BUG> __global__ void exchange_kernel(float *y, const float *x) {
    SHARED(float, s, [64]);
    s[threadIdx.x] = x[threadIdx.x];
    if (BUG != NO_SYNCWARP) __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}
/* ---- y[t] = sum of 4 floats, one vector load */
template <int BUG> __global__ void vector_kernel(float *y, const float *x) {
    float4 v = *reinterpret_cast<const float4 *>(x + (BUG == MISALIGNED ? 1 : 0) + 4 * threadIdx.x);
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}
template <int BUG> static bool exchange() {
    float x[64], y[64];
    for (size_t i = 0; i < 64; i++) x[i] = value(i);
    float *dx = device_array(64, x), *dy = device_array<float>(64, nullptr);
    LAUNCH(exchange_kernel<BUG>, 1, 64, 0, nullptr, dy, dx);
    cudaMemcpy(y, dy, sizeof y, cudaMemcpyDeviceToHost);
    for (size_t i = 0; i < 64; i++)
        if (!near(static_cast<double>(y[i]), static_cast<double>(x[i ^ 1]), "exchange", i)) return false;
    return true;
}
template <int BUG> static bool vector() {
    float x[136], y[32];
    for (size_t i = 0; i < 136; i++) x[i] = value(i);
    float *dx = device_array(136, x), *dy = device_array<float>(32, nullptr);
    LAUNCH(vector_kernel<BUG>, 1, 32, 0, nullptr, dy, BUG == OUTSIDE ? x : dx);
    cudaMemcpy(y, dy, sizeof y, cudaMemcpyDeviceToHost);
    for (size_t i = 0; i < 32; i++)
        if (!near(static_cast<double>(y[i]), static_cast<double>(x[4 * i] + x[4 * i + 1] + x[4 * i + 2] + x[4 * i + 3]), "vector", i))
            return false;
    return true;
}

/* ---- counts of a value in shared memory by atomics; RAW: counts start before they are cleared */
template <int BUG> __global__ void histogram_kernel(int *out, const int *x, int n) {
    SHARED(int, h, [16]);
    const int t = static_cast<int>(threadIdx.x);
    if (BUG != UNINIT && t < 16) h[t] = 0;
    if (BUG != RAW) __syncthreads();
    for (int i = t; i < n; i += static_cast<int>(blockDim.x)) atomicAdd(&h[x[i]], 1);
    if (BUG != WAR) __syncthreads();
    if (t < 16) out[t] = h[t];
}
template <int BUG> static bool histogram() {
    int x[999], want[16] = {}, got[16];
    for (int i = 0; i < 999; i++) want[x[i] = i * 7 % 16 * (i % 3) % 16]++;
    int *dx = device_array(999, x), *dy = device_array<int>(16, nullptr);
    LAUNCH(histogram_kernel<BUG>, 1, 96, 0, nullptr, dy, dx, 999);
    cudaMemcpy(got, dy, sizeof got, cudaMemcpyDeviceToHost);
    for (size_t i = 0; i < 16; i++)
        if (!near(got[i], want[i], "histogram", i)) return false;
    return true;
}

/* ---- one kernel per misuse; no result is compared */
__global__ void overlap_kernel(float *y) { y[(blockIdx.x * blockDim.x + threadIdx.x) / 2] = 1; }
__global__ void neighbours_kernel(unsigned char *y) { /* correct: bytes of one 2-byte cell belong to two blocks and to two threads */
    SHARED(unsigned char, s, [33]);
    s[threadIdx.x] = 1;
    y[blockIdx.x * blockDim.x + threadIdx.x] = s[threadIdx.x];
}
__global__ void ticket_kernel(int *counter) { /* block 0 clears what all blocks add to */
    if (blockIdx.x == 0 && threadIdx.x == 0) *counter = 0;
    atomicAdd(counter, 1);
}
__global__ void read_write_kernel(float *x) { /* every block reads what the last one, having read it too, writes */
    float v = x[0];
    x[blockIdx.x + 1] = v;
    if (blockIdx.x == gridDim.x - 1) x[0] = v + 1;
}
__global__ void named_barrier_kernel(int) {
    if (threadIdx.x < 32) ptx::bar_sync(1, 64);
}
__global__ void exited_kernel(int) {
    if ((threadIdx.x & 31) > 20) return;
    __syncwarp();
}
__global__ void not_in_mask_kernel(int) { __syncwarp(0xfffffffeu); }
__global__ void two_lines_kernel(float *y) {
    float v = 1;
    if (threadIdx.x & 1)
        v += __shfl_xor_sync(0xffffffffu, v, 2);
    else
        v += __shfl_xor_sync(0xffffffffu, v, 4);
    y[threadIdx.x] = v;
}
__global__ void unwaited_kernel(const float4 *x) {
    DYN_SMEM(float4, s);
    ptx::cp_async16(s + threadIdx.x, x + threadIdx.x);
    ptx::cp_async_commit();
}
__global__ void misaligned_copy_kernel(const float *x) {
    DYN_SMEM(float, s);
    ptx::cp_async16(s + 4 * threadIdx.x, x + 4 * threadIdx.x + 1);
    ptx::cp_async_wait<0>();
}
__global__ void copy_past_end_kernel(float4 *y, const float4 *x) {
    DYN_SMEM(float4, s);
    ptx::cp_async16(s + threadIdx.x, x + threadIdx.x);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    y[threadIdx.x] = s[threadIdx.x];
}
__global__ void in_flight_kernel(float *y, const float4 *x) {
    DYN_SMEM(float, s);
    ptx::cp_async16(s + 4 * threadIdx.x, x + threadIdx.x);
    ptx::cp_async_commit();
    y[threadIdx.x] = s[4 * threadIdx.x];
    ptx::cp_async_wait<0>();
}
__global__ void inactive_source_kernel(float *y) {
    float v = static_cast<float>(threadIdx.x);
    if (threadIdx.x < 16) v = __shfl_sync(0x0000ffffu, v, 20);
    y[threadIdx.x] = v;
}
__global__ void fill_kernel(float *y, int n) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) y[i] = 1;
}
__global__ void dynamic_kernel(float *y) {
    DYN_SMEM(float, s);
    s[threadIdx.x] = 1;
    y[threadIdx.x] = s[threadIdx.x];
}
__global__ void static_dynamic_kernel(float *y) {
    DYN_SMEM(float, s);
    SHARED(float, t, [32]);
    s[threadIdx.x] = t[threadIdx.x] = 1;
    y[threadIdx.x] = s[threadIdx.x] + t[threadIdx.x];
}
__device__ __noinline__ float deep(volatile float *sum, int n) {
    volatile float pad[256];
    pad[n & 255] = *sum;
    return n ? deep(pad, n - 1) + pad[n & 255] : 1;
}
__global__ void stack_kernel(float *y) {
    volatile float zero = 0;
    y[threadIdx.x] = deep(&zero, 600);
}

static bool misuse(const char *name) {
    float *y = device_array<float>(1024, nullptr), got[32];
    const float4 *x = reinterpret_cast<const float4 *>(y);
    cudaMemset(y, 0, 4096);
    auto is = [name](const char *s) { return strcmp(name, s) == 0; };
    if (is("overlap")) LAUNCH(overlap_kernel, 2, 33, 0, nullptr, y);
    if (is("neighbours")) LAUNCH(neighbours_kernel, 4, 33, 0, nullptr, reinterpret_cast<unsigned char *>(y));
    if (is("ticket")) LAUNCH(ticket_kernel, 4, 32, 0, nullptr, reinterpret_cast<int *>(y));
    if (is("read_write")) LAUNCH(read_write_kernel, 4, 1, 0, nullptr, y);
    if (is("named_barrier")) LAUNCH(named_barrier_kernel, 1, 64, 0, nullptr, 0);
    if (is("exited")) LAUNCH(exited_kernel, 1, 64, 0, nullptr, 0);
    if (is("not_in_mask")) LAUNCH(not_in_mask_kernel, 1, 32, 0, nullptr, 0);
    if (is("two_lines")) LAUNCH(two_lines_kernel, 1, 32, 0, nullptr, y);
    if (is("unwaited")) LAUNCH(unwaited_kernel, 1, 32, 512, nullptr, x);
    if (is("misaligned_copy")) LAUNCH(misaligned_copy_kernel, 1, 32, 512, nullptr, y);
    if (is("copy_past_end")) LAUNCH(copy_past_end_kernel, 1, 32, 512, nullptr, reinterpret_cast<float4 *>(y), x + 240);
    if (is("opt_in")) LAUNCH(dynamic_kernel, 1, 32, 64 * 1024, nullptr, y);
    if (is("static_dynamic")) LAUNCH(static_dynamic_kernel, 1, 32, 48 * 1024, nullptr, y);
    if (is("threads")) LAUNCH(dynamic_kernel, 1, 2048, 8192, nullptr, y);
    if (is("grid")) LAUNCH(dynamic_kernel, dim3(1, 65536), 32, 128, nullptr, y);
    if (is("stack")) LAUNCH(stack_kernel, 1, 32, 0, nullptr, y);
    if (is("guard")) { /* 250 floats leave 24 bytes up to the 256-byte boundary: no page fault there */
        float *z = device_array<float>(250, nullptr);
        LAUNCH(fill_kernel, 1, 32, 0, nullptr, z, 251);
        cudaDeviceSynchronize();
    }
    if (is("freed")) {
        float *z = device_array<float>(250, nullptr);
        cudaFree(z);
        LAUNCH(fill_kernel, 1, 32, 0, nullptr, z, 250);
    }
    if (!is("inactive_source") && !is("in_flight")) return true;
    if (is("in_flight"))
        LAUNCH(in_flight_kernel, 1, 16, 256, nullptr, y + 512, x);
    else
        LAUNCH(inactive_source_kernel, 1, 32, 0, nullptr, y + 512);
    cudaMemcpy(got, y + 512, 64, cudaMemcpyDeviceToHost);
    return near(static_cast<double>(got[3]), 0, name, 3);
}

static const struct {
    const char *name;
    bool (*run)();
} cases[] = {
    {"row_sum", row_sum<NONE>},
    {"row_sum_raw", row_sum<RAW>},
    {"row_sum_war", row_sum<WAR>},
    {"row_sum_oob", row_sum<OOB>},
    {"row_sum_diverge", row_sum<DIVERGE>},
    {"row_sum_return", row_sum<RETURN>},
    {"row_sum_mask", row_sum<MASK>},
    {"row_sum_uninit", row_sum<UNINIT>},
    {"row_sum_global", row_sum<GLOBAL>},
    {"gemm", gemm<NONE>},
    {"gemm_raw", gemm<RAW>},
    {"gemm_war", gemm<WAR>},
    {"gemm_nowait", gemm<NOWAIT>},
    {"gemm_oob", gemm<OOB>},
    {"gemm_small", gemm<TOO_SMALL>},
    {"gemm_frag", gemm<FRAG>},
    {"gemm_trans", gemm<TRANS>},
    {"gemm_mask", gemm<MASK>},
    {"gemm_misaligned", gemm<MISALIGNED>},
    {"exchange", exchange<NONE>},
    {"exchange_nosync", exchange<NO_SYNCWARP>},
    {"vector", vector<NONE>},
    {"vector_misaligned", vector<MISALIGNED>},
    {"vector_hostptr", vector<OUTSIDE>},
    {"histogram", histogram<NONE>},
    {"histogram_raw", histogram<RAW>},
    {"histogram_war", histogram<WAR>},
    {"histogram_uninit", histogram<UNINIT>},
};

int main(int argc, char **argv) {
    for (const auto &c : cases)
        if (argc == 2 && !strcmp(argv[1], c.name)) return c.run() ? 0 : 1;
    return argc == 2 && misuse(argv[1]) ? 0 : 1;
}
