/* unit.cu: what the intrinsics, instructions and runtime calls of the SIMT layer do, one by one, against values worked out here.
 *
 * Fragment layouts are tested one element at a time from tables, so a kernel that misreads them cannot agree with an emulation that
 * does so too. Host code uses only the runtime API: the same file built by nvcc tests the same claims on a GPU (lines under
 * !__CUDACC__ are about the emulation: poison, guards, counters).
 * Prints failed checks and "unit: N checks, M failed"; exit status 0 when M is 0. */
#include "kernels/simt/ptx.cuh"
#include "kernels/simt/simt.h"
#include <cmath>

static int checks, failures;
static void expect(bool ok, const char *what, long long i, double got, double want) {
    checks++;
    if (ok) return;
    if (failures++ < 20) printf("FAIL %s [%lld]: %.9g instead of %.9g\n", what, i, got, want);
}
template <class A, class B> static void equal(const char *what, long long i, A got, B want) {
    expect(static_cast<double>(got) == static_cast<double>(want), what, i, static_cast<double>(got), static_cast<double>(want));
}
static void ok(cudaError_t e, const char *what) { expect(e == cudaSuccess, what, 0, e, cudaSuccess); }

/* A device array that is read back whole. */
template <class T> struct array {
    T *p = nullptr, *host;
    size_t n;
    explicit array(size_t n_, T fill = T()) : host(new T[n_]), n(n_) {
        for (size_t i = 0; i < n; i++) host[i] = fill;
        ok(cudaMalloc(&p, n * sizeof(T)), "cudaMalloc");
        put();
    }
    ~array() {
        ok(cudaFree(p), "cudaFree");
        delete[] host;
    }
    array(const array &) = delete;
    void put() { ok(cudaMemcpy(p, host, n * sizeof(T), cudaMemcpyHostToDevice), "to device"); }
    const T *get() {
        ok(cudaDeviceSynchronize(), "synchronize");
        ok(cudaMemcpy(host, p, n * sizeof(T), cudaMemcpyDeviceToHost), "to host");
        return host;
    }
};

/* ---- fragment layouts */
/* Register and half of a fragment -> offset from the lane's base element; base element of lane l: row l/4, column 2*(l%4) for A and C;
 * k 2*(l%4), column l/4 for B. From the figures of the PTX ISA; equal to CuTe's
 *   A ((4,8),(2,2,2)):((32,1),(16,8,128))   B ((4,8),(2,2)):((16,1),(8,64))   C ((4,8),(2,2)):((32,1),(16,8)). */
static const struct {
    int reg, half, row, col;
} a_table[] = {{0, 0, 0, 0}, {0, 1, 0, 1}, {1, 0, 8, 0}, {1, 1, 8, 1}, {2, 0, 0, 8}, {2, 1, 0, 9}, {3, 0, 8, 8}, {3, 1, 8, 9}};
static const struct { int reg, half, k; } b_table[] = {{0, 0, 0}, {0, 1, 1}, {1, 0, 8}, {1, 1, 9}};
static const struct { int reg, row, col; } c_table[] = {{0, 0, 0}, {1, 0, 1}, {2, 8, 0}, {3, 8, 1}};

/* One warp: fragments from a (32 lanes x 4), b (x 2), c (x 4), result to d (x 4). */
__global__ void mma_kernel(float *d, const uint32_t *a, const uint32_t *b, const float *c) {
    const int l = static_cast<int>(threadIdx.x);
    uint32_t fa[4];
    float fd[4];
    for (int i = 0; i < 4; i++) {
        fa[i] = a[l * 4 + i];
        fd[i] = c[l * 4 + i];
    }
    ptx::mma_16816(fd, fa, b[l * 2], b[l * 2 + 1]);
    for (int i = 0; i < 4; i++) d[l * 4 + i] = fd[i];
}
static uint32_t bf16_bits(float x) {
    __nv_bfloat16 h = __float2bfloat16(x);
    uint16_t u;
    memcpy(&u, &h, 2);
    return u;
}
static void run_mma(array<float> &d, array<uint32_t> &a, array<uint32_t> &b, array<float> &c) {
    a.put();
    b.put();
    c.put();
    LAUNCH(mma_kernel, 1, 32, 0, nullptr, d.p, a.p, b.p, c.p);
    d.get();
}
static void test_mma() {
    array<uint32_t> a(128), b(64);
    array<float> c(128), d(128);
    float C[16][8];
    auto unpack = [&]() {
        for (int l = 0; l < 32; l++)
            for (auto &t : c_table) C[l / 4 + t.row][l % 4 * 2 + t.col] = d.host[l * 4 + t.reg];
    };
    /* A: a single 1 at (lane, reg, half) against B[k][n] = k + 1 gives k + 1 in its row. */
    for (int l = 0; l < 32; l++)
        for (auto &t : b_table) b.host[l * 2 + t.reg] |= bf16_bits(static_cast<float>(l % 4 * 2 + t.k + 1)) << (16 * t.half);
    for (int l = 0; l < 32; l++)
        for (auto &t : a_table) {
            memset(a.host, 0, 128 * sizeof *a.host);
            a.host[l * 4 + t.reg] = bf16_bits(1.0f) << (16 * t.half);
            run_mma(d, a, b, c);
            unpack();
            int row = l / 4 + t.row, k = l % 4 * 2 + t.col, wrong = 0;
            for (int r = 0; r < 16; r++)
                for (int n = 0; n < 8; n++) wrong += C[r][n] != (r == row ? static_cast<float>(k + 1) : 0.0f);
            equal("A fragment: lane * 8 + register * 2 + half", l * 8 + t.reg * 2 + t.half, wrong, 0);
        }
    /* B: a single 1 against A[m][k] = k + 1 gives k + 1 in its column. */
    memset(a.host, 0, 128 * sizeof *a.host);
    for (int l = 0; l < 32; l++)
        for (auto &t : a_table) a.host[l * 4 + t.reg] |= bf16_bits(static_cast<float>(l % 4 * 2 + t.col + 1)) << (16 * t.half);
    for (int l = 0; l < 32; l++)
        for (auto &t : b_table) {
            memset(b.host, 0, 64 * sizeof *b.host);
            b.host[l * 2 + t.reg] = bf16_bits(1.0f) << (16 * t.half);
            run_mma(d, a, b, c);
            unpack();
            int col = l / 4, k = l % 4 * 2 + t.k, wrong = 0;
            for (int r = 0; r < 16; r++)
                for (int n = 0; n < 8; n++) wrong += C[r][n] != (n == col ? static_cast<float>(k + 1) : 0.0f);
            equal("B fragment: lane * 4 + register * 2 + half", l * 4 + t.reg * 2 + t.half, wrong, 0);
        }
    /* C: row and column numbers through A and B (both known by now), and C itself added. */
    memset(a.host, 0, 128 * sizeof *a.host);
    memset(b.host, 0, 64 * sizeof *b.host);
    for (int l = 0; l < 32; l++) {
        for (auto &t : a_table) {
            int k = l % 4 * 2 + t.col, row = l / 4 + t.row;
            a.host[l * 4 + t.reg] |= bf16_bits(k == 0 ? static_cast<float>(row) : k == 1 ? 1.0f : 0.0f) << (16 * t.half);
        }
        for (auto &t : b_table) {
            int k = l % 4 * 2 + t.k, n = l / 4;
            b.host[l * 2 + t.reg] |= bf16_bits(k == 0 ? 8.0f : k == 1 ? static_cast<float>(n) : 0.0f) << (16 * t.half);
        }
        for (int i = 0; i < 4; i++) c.host[l * 4 + i] = static_cast<float>(1000 * (l * 4 + i));
    }
    run_mma(d, a, b, c);
    for (int l = 0; l < 32; l++)
        for (auto &t : c_table) {
            int row = l / 4 + t.row, n = l % 4 * 2 + t.col;
            equal("C fragment: lane * 4 + register", l * 4 + t.reg, d.host[l * 4 + t.reg], 1000 * (l * 4 + t.reg) + 8 * row + n);
        }
}

/* Matrix i, row j, column k holds 64i + 8j + k; lane l gets row l/4, columns 2*(l%4) and the next, low half first. */
template <int COUNT, bool TRANS> __global__ void ldmatrix_kernel(uint32_t *out) {
    SHARED(uint16_t, m, [4 * 64]);
    const int l = static_cast<int>(threadIdx.x);
    for (int i = l; i < 256; i += 32) m[i] = static_cast<uint16_t>(i);
    __syncwarp();
    uint32_t r[COUNT];
    const void *row = m + (COUNT == 4 ? l : l % 16) * 8;
    if constexpr (COUNT == 4 && TRANS) ptx::ldmatrix_x4_trans(r, row);
    if constexpr (COUNT == 4 && !TRANS) ptx::ldmatrix_x4(r, row);
    if constexpr (COUNT == 2 && TRANS) ptx::ldmatrix_x2_trans(r, row);
    if constexpr (COUNT == 2 && !TRANS) ptx::ldmatrix_x2(r, row);
    for (int i = 0; i < COUNT; i++) out[l * COUNT + i] = r[i];
}
template <int COUNT, bool TRANS> static void test_ldmatrix() {
    array<uint32_t> out(32 * COUNT);
    LAUNCH((ldmatrix_kernel<COUNT, TRANS>), 1, 32, 0, nullptr, out.p);
    const uint32_t *r = out.get();
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < COUNT; i++)
            for (int h = 0; h < 2; h++) {
                int row = l / 4, col = l % 4 * 2 + h;
                equal(TRANS ? "ldmatrix.trans" : "ldmatrix", (l * COUNT + i) * 2 + h, r[l * COUNT + i] >> (16 * h) & 0xffff,
                      64 * i + (TRANS ? 8 * col + row : 8 * row + col));
            }
}
#ifndef __CUDACC__
template <int STRIDE> __global__ void conflict_kernel(uint32_t *out) {
    DYN_SMEM(uint16_t, m);
    for (int i = static_cast<int>(threadIdx.x); i < 32 * STRIDE; i += 32) m[i] = 0;
    __syncwarp();
    uint32_t r[4];
    ptx::ldmatrix_x4(r, m + threadIdx.x * STRIDE);
    out[threadIdx.x] = r[0];
}
static void test_conflicts() { /* rows of 128 bytes lie in the same banks: 7 extra wavefronts per matrix; 16 more bytes: none */
    array<uint32_t> out(32);
    uint64_t before = simt::stats.ldsm_conflicts;
    LAUNCH(conflict_kernel<64>, 1, 32, 32 * 128, nullptr, out.p);
    equal("bank conflicts, rows of 128 B", 0, simt::stats.ldsm_conflicts - before, 28);
    LAUNCH(conflict_kernel<72>, 1, 32, 32 * 144, nullptr, out.p);
    equal("bank conflicts, rows of 144 B", 0, simt::stats.ldsm_conflicts - before, 28);
}
#endif

/* ---- cp.async */
__global__ void cp_async_kernel(float *out, const float *x) {
    DYN_SMEM(float, s); /* 3 stages of 32 lanes x 4 */
    const int l = static_cast<int>(threadIdx.x);
    for (int stage = 0; stage < 3; stage++) {
        ptx::cp_async16(s + stage * 128 + l * 4, x + stage * 128 + l * 4, l % 5 != 4);
        ptx::cp_async_commit();
    }
    ptx::cp_async_wait<1>();
    __syncwarp();
    for (int i = 0; i < 8; i++) out[l * 12 + i] = s[i / 4 * 128 + (l ^ 1) * 4 + i % 4]; /* of the neighbour, stages 0 and 1 */
    ptx::cp_async_wait<0>();
    __syncwarp();
    for (int i = 0; i < 4; i++) out[l * 12 + 8 + i] = s[256 + (l ^ 1) * 4 + i];
}
static void test_cp_async() {
    array<float> x(384), out(384);
    for (int i = 0; i < 384; i++) x.host[i] = static_cast<float>(i + 1);
    x.put();
    LAUNCH(cp_async_kernel, 1, 32, 384 * sizeof(float), nullptr, out.p, x.p);
    out.get();
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 12; i++)
            equal("cp.async", l * 12 + i, out.host[l * 12 + i], (l ^ 1) % 5 == 4 ? 0 : i / 4 * 128 + (l ^ 1) * 4 + i % 4 + 1);
}

/* ---- warp functions */
template <class T> __global__ void shfl_kernel(T *out, int arg, int width) {
    T v = static_cast<T>(100 + threadIdx.x);
    T *o = out + threadIdx.x * 4;
    o[0] = __shfl_sync(0xffffffffu, v, arg, width);
    o[1] = __shfl_up_sync(0xffffffffu, v, static_cast<unsigned>(arg), width);
    o[2] = __shfl_down_sync(0xffffffffu, v, static_cast<unsigned>(arg), width);
    o[3] = __shfl_xor_sync(0xffffffffu, v, arg, width);
}
template <class T> static void test_shfl() {
    array<T> out(64 * 4);
    for (int width = 32; width >= 4; width /= 2)
        for (int arg = 0; arg < width; arg += 3) {
            LAUNCH(shfl_kernel<T>, 1, 64, 0, nullptr, out.p, arg, width);
            out.get();
            for (int t = 0; t < 64; t++) {
                int seg = t / width * width, k = t % width;
                int want[4] = {seg + arg, k >= arg ? t - arg : t, k + arg < width ? t + arg : t, seg + (k ^ arg)};
                for (int m = 0; m < 4; m++) equal("shuffle (idx, up, down, xor)", m, out.host[t * 4 + m], 100 + want[m]);
            }
        }
}
__global__ void vote_kernel(unsigned *out) {
    const unsigned t = threadIdx.x, l = t & 31;
    unsigned *o = out + t * 11;
    o[0] = __ballot_sync(0xffffffffu, l % 3 == 0);
    o[1] = static_cast<unsigned>(__any_sync(0xffffffffu, t == 40));
    o[2] = static_cast<unsigned>(__all_sync(0xffffffffu, t < 32));
    o[3] = __match_any_sync(0xffffffffu, l % 5);
    o[4] = o[5] = 0;
    if (l < 8)
        o[4] = __ballot_sync(0x000000ffu, l & 1);
    else
        o[5] = __ballot_sync(0xffffff00u, 1);
    o[6] = static_cast<unsigned>(__syncthreads_count(l < 5));
    o[7] = static_cast<unsigned>(__syncthreads_and(t < 63) != 0);
    o[8] = static_cast<unsigned>(__syncthreads_or(t == 63) != 0);
    o[9] = static_cast<unsigned>(__syncthreads_and(t < 64) != 0);
    o[10] = static_cast<unsigned>(__syncthreads_or(t > 64) != 0);
}
static void test_votes() {
    array<unsigned> out(64 * 11);
    LAUNCH(vote_kernel, 1, 64, 0, nullptr, out.p);
    out.get();
    for (unsigned t = 0; t < 64; t++) {
        unsigned l = t % 32, third = 0, match = 0;
        for (unsigned i = 0; i < 32; i++) {
            if (i % 3 == 0) third |= 1u << i;
            if (i % 5 == l % 5) match |= 1u << i;
        }
        const unsigned want[11] = {third, t >= 32, t < 32, match, l < 8 ? 0xaau : 0, l < 8 ? 0 : 0xffffff00u, 10, 0, 1, 1, 0};
        for (int i = 0; i < 11; i++) equal("vote", i, out.host[t * 11 + static_cast<unsigned>(i)], want[i]);
    }
}

/* ---- atomics: every thread of every block on the same words; the old values of the counter are all different */
struct words {
    int add, sub, max, min, any, all;
    unsigned uadd, umax, exch;
    unsigned long long wide, widemax;
    float f;
    double d;
};
__global__ void atomic_kernel(words *w, int *seen, unsigned *cas) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    seen[atomicAdd(&w->add, 1)] = 1;
    atomicSub(&w->sub, 2);
    atomicMax(&w->max, i - 7);
    atomicMin(&w->min, -i);
    atomicOr(&w->any, 1 << (i & 15));
    atomicAnd(&w->all, ~(1 << (i & 15)));
    atomicAdd(&w->uadd, 3u);
    atomicMax(&w->umax, 0x80000000u + static_cast<unsigned>(i));
    atomicAdd(&w->wide, 0x100000001ull);
    atomicMax(&w->widemax, static_cast<unsigned long long>(i) << 33);
    atomicAdd(&w->f, 0.5f);
    atomicAdd(&w->d, 0.25);
    atomicExch(&w->exch, 77u);
    unsigned old = 0, assumed; /* adds i by compare and swap */
    do {
        assumed = old;
        old = atomicCAS(cas, assumed, assumed + static_cast<unsigned>(i));
    } while (old != assumed);
}
static void test_atomics() {
    const int n = 5 * 96;
    array<int> seen(n);
    array<words> w(1);
    array<unsigned> cas(1);
    memset(w.host, 0, sizeof *w.host);
    w.host->all = 0xffff;
    w.put();
    LAUNCH(atomic_kernel, 5, 96, 0, nullptr, w.p, seen.p, cas.p);
    const words *r = w.get();
    seen.get();
    cas.get();
    for (int i = 0; i < n; i++) equal("atomicAdd returns each old value once", i, seen.host[i], 1);
    equal("atomicAdd int", 0, r->add, n);
    equal("atomicSub", 0, r->sub, -2 * n);
    equal("atomicMax int", 0, r->max, n - 8);
    equal("atomicMin int", 0, r->min, 1 - n);
    equal("atomicOr", 0, r->any, 0xffff);
    equal("atomicAnd", 0, r->all, 0);
    equal("atomicAdd unsigned", 0, r->uadd, 3 * n);
    equal("atomicMax unsigned", 0, r->umax, 0x80000000u + n - 1);
    equal("atomicAdd 64 bit", 0, r->wide, 0x100000001ull * n);
    equal("atomicMax 64 bit", 0, r->widemax, static_cast<unsigned long long>(n - 1) << 33);
    equal("atomicAdd float", 0, r->f, 0.5 * n);
    equal("atomicAdd double", 0, r->d, 0.25 * n);
    equal("atomicExch", 0, r->exch, 77);
    equal("atomicCAS", 0, cas.host[0], n * (n - 1) / 2);
}

/* ---- bf16 */
__global__ void bf16_kernel(uint32_t *out, const float *x, int n) {
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    __nv_bfloat16 h = __float2bfloat16(x[i]);
    __nv_bfloat162 p = __floats2bfloat162_rn(x[i], -x[i]);
    float2 f = __bfloat1622float2(p);
    out[i * 3] = __bfloat16_as_ushort(h);
    out[i * 3 + 1] = __float_as_uint(__bfloat162float(h));
    out[i * 3 + 2] = static_cast<uint32_t>(__float_as_uint(f.x) == out[i * 3 + 1] && (f.y == -f.x || f.x != f.x));
}
static void test_bf16() {
    /* every bf16 value, then f32 values around the ties */
    static const struct {
        uint32_t f32;
        uint16_t want;
    } odd[] = {{0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80}, {0x7f7fffff, 0x7f80},
               {0xff7fffff, 0xff80}, {0x7f7f7fff, 0x7f7f}, {0x00008000, 0x0000}, {0x00008001, 0x0001}, {0x80018000, 0x8002},
               {0x7f800001, 0x7fff}, {0xffc12345, 0x7fff}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x80000000, 0x8000}};
    const int nodd = static_cast<int>(sizeof odd / sizeof odd[0]), n = 65536 + nodd;
    array<float> x(static_cast<size_t>(n));
    array<uint32_t> out(static_cast<size_t>(n) * 3);
    for (int i = 0; i < n; i++) {
        uint32_t u = i < 65536 ? static_cast<uint32_t>(i) << 16 : odd[i - 65536].f32;
        memcpy(&x.host[i], &u, 4);
    }
    x.put();
    LAUNCH(bf16_kernel, (n + 255) / 256, 256, 0, nullptr, out.p, x.p, n);
    out.get();
    for (int i = 0; i < n; i++) {
        uint32_t want = static_cast<uint32_t>(i);
        if ((want & 0x7fff) > 0x7f80) want = 0x7fff; /* every NaN becomes this one */
        if (i >= 65536) want = odd[i - 65536].want;
        equal("float -> bf16", i, out.host[i * 3], want);
        equal("bf16 -> float", i, out.host[i * 3 + 1], want << 16);
        equal("bf16 pair", i, out.host[i * 3 + 2], 1);
        if (i >= 65536) equal("float -> bf16 on the host", i, bf16_bits(x.host[i]), want);
    }
}

/* ---- scalar intrinsics */
__global__ void bits_kernel(long long *o) {
    o[0] = __popc(0xf0f0u);
    o[1] = __popcll(0xf0f0f0f0f0ull);
    o[2] = __ffs(0);
    o[3] = __ffs(0x50);
    o[4] = __clz(0);
    o[5] = __clz(1);
    o[6] = __clzll(1);
    o[7] = __brev(0x80000001u << 1);
    o[8] = __umulhi(0xffffffffu, 0xffffffffu);
    o[9] = __mulhi(-1, 5);
    o[10] = static_cast<long long>(__umul64hi(1ull << 63, 6));
    o[11] = __funnelshift_l(0x80000000u, 1, 1);
    o[12] = __funnelshift_r(2, 1, 1);
    o[13] = __float2int_rn(2.5f);
    o[14] = __float2int_rz(-2.9f);
    o[15] = __float2int_rd(-2.1f);
    o[16] = __float2int_ru(2.1f);
    o[17] = __float2int_rz(1e20f);
    o[18] = __float2int_rz(nanf(""));
    o[19] = min(-3, 2) + max(7u, 9u);
    o[20] = static_cast<long long>(fmaxf(nanf(""), 2.0f) + min(1.0f, nanf("")));
    o[21] = __float_as_int(__int_as_float(0x12345678));
    o[22] = __double_as_longlong(__longlong_as_double(0x123456789abcdefll));
    o[23] = static_cast<long long>(10 * __saturatef(1.5f) + __saturatef(-1.0f));
    o[24] = __ldg(o) + warpSize;
}
static const long long bits_want[] = {8,  20, 0, 5,          32, 31, 63, 0x40000000, 0xfffffffe,          -1, 3, 3, 0x80000001, 2,
                                      -2, -3, 3, 2147483647, 0,  6,  3,  0x12345678, 0x123456789abcdefll, 10, 40};
__global__ void math_kernel(float *o, const float *x, int n) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
        float v = x[i];
        const float r[10] = {expf(v),        __expf(v), tanhf(v),     erff(v),         rsqrtf(fabsf(v)), __fdividef(1.0f, v),
                             logf(fabsf(v)), exp2f(v),  __frcp_rn(v), fmaf(v, v, 1.0f)};
        for (int k = 0; k < 10; k++) o[i * 10 + k] = r[k];
    }
}
static void test_scalar() {
    const size_t nbits = sizeof bits_want / sizeof bits_want[0], n = 160;
    array<long long> b(nbits);
    LAUNCH(bits_kernel, 1, 1, 0, nullptr, b.p);
    b.get();
    for (size_t i = 0; i < nbits; i++) equal("bit intrinsic", static_cast<long long>(i), b.host[i], bits_want[i]);
    array<float> x(n), o(n * 10);
    for (size_t i = 0; i < n; i++) x.host[i] = (static_cast<float>(i) - 79.7f) * 0.21f;
    x.put();
    LAUNCH(math_kernel, 1, 64, 0, nullptr, o.p, x.p, static_cast<int>(n));
    o.get();
    for (size_t i = 0; i < n; i++) {
        double v = static_cast<double>(x.host[i]), a = std::fabs(v);
        const double want[10] = {std::exp(v), std::exp(v), std::tanh(v), std::erf(v), 1 / std::sqrt(a),
                                 1 / v,       std::log(a), std::exp2(v), 1 / v,       v * v + 1};
        for (size_t k = 0; k < 10; k++) {
            double got = static_cast<double>(o.host[i * 10 + k]), error = std::fabs(got - want[k]);
            double ulps = k == 1 ? 4 + 2 * a : 4; /* __expf loses bits with the size of its argument */
            expect(error <= ulps * 1.2e-7 * std::fabs(want[k]) + 1e-7 * (k == 6), "math", static_cast<long long>(k), got, want[k]);
        }
    }
}

/* ---- indices, shared memory, barriers, arguments */
struct by_value {
    int a;
    double b;
};
template <class T, int N> __global__ void index_kernel(T *out, by_value v) {
    unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[b * blockDim.x * blockDim.y * blockDim.z + t] = static_cast<T>(b * 1000 + t + static_cast<unsigned>(v.a) + N) + static_cast<T>(v.b);
}
__global__ void shared_kernel(float *out) { /* two arrays, a scalar and the dynamic part do not overlap; rotate by one through them */
    SHARED(float, a, [128]);
    SHARED(double, b, [4][32]);
    SHARED(int, n, );
    DYN_SMEM(float4, d);
    const unsigned t = threadIdx.x, o = (t + 1) % 128;
    a[t] = static_cast<float>(t);
    b[t / 32][t % 32] = t * 2;
    d[t] = make_float4(3.0f * static_cast<float>(t), 1, 2, 3);
    if (t == 0) n = 1000;
    __syncthreads();
    out[blockIdx.x * 128 + t] = a[o] + static_cast<float>(b[o / 32][o % 32]) + d[o].x + static_cast<float>(n);
    if (reinterpret_cast<uintptr_t>(d) % 128) out[0] = -1;
}
/* Warps 0, 1 fill a slot, warps 2, 3 empty it, four times; named barriers 1 (full) and 2 (empty). */
__global__ void named_kernel(float *out) {
    SHARED(float, slot, [64]);
    const int t = static_cast<int>(threadIdx.x), l = t & 63;
    for (int turn = 0; turn < 4; turn++) {
        if (t < 64) {
            if (turn) ptx::bar_sync(2, 128);
            slot[l] = static_cast<float>(turn * 100 + l);
            ptx::bar_arrive(1, 128);
        } else {
            ptx::bar_sync(1, 128);
            out[turn * 64 + l] = slot[l ^ 33];
            if (turn < 3) ptx::bar_arrive(2, 128);
        }
    }
}
__device__ int device_counter;
__constant__ int constant_table[4] = {1, 2, 3, 4};
__global__ void globals_kernel(int *out) { out[0] = atomicAdd(&device_counter, constant_table[2]); }
static void test_blocks() {
    array<int> idx(6 * 60);
    LAUNCH((index_kernel<int, 5>), dim3(3, 2), dim3(5, 4, 3), 0, nullptr, idx.p, by_value{7, 2.0});
    idx.get();
    for (int i = 0; i < 360; i++) equal("index", i, idx.host[i], i / 60 * 1000 + i % 60 + 14);
    const size_t smem = 128 * 1024;
    array<float> out(256);
    ok(cudaFuncSetAttribute(shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem)), "shared memory opt-in");
    LAUNCH(shared_kernel, 2, 128, smem, nullptr, out.p);
    out.get();
    for (int i = 0; i < 256; i++) equal("shared memory", i, out.host[i], 6 * ((i + 1) % 128) + 1000);
    array<float> named(256);
    LAUNCH(named_kernel, 1, 128, 0, nullptr, named.p);
    named.get();
    for (int i = 0; i < 256; i++) equal("named barrier", i, named.host[i], i / 64 * 100 + (i % 64 ^ 33));
    array<int> g(1);
    LAUNCH(globals_kernel, 1, 1, 0, nullptr, g.p);
    LAUNCH(globals_kernel, 1, 1, 0, nullptr, g.p);
    equal("device variables", 0, g.get()[0], 3);
}

/* ---- runtime calls */
static void test_runtime() {
    char pattern[16], back[16] = {0};
    void *p = nullptr;
    float ms = -1;
    int count = 0;
    cudaStream_t stream;
    cudaEvent_t begin, end;
    cudaDeviceProp prop;
    ok(cudaGetDeviceCount(&count), "device count");
    ok(cudaGetDeviceProperties(&prop, 0), "properties");
    expect(count >= 1 && prop.warpSize == 32 && prop.major >= 8 && prop.multiProcessorCount > 0, "properties", 0, prop.major, 8);
    ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    ok(cudaEventCreate(&begin), "event");
    ok(cudaEventCreate(&end), "event");
    ok(cudaEventRecord(begin, stream), "record");
    ok(cudaMalloc(&p, 64), "malloc");
    equal("alignment", 0, reinterpret_cast<uintptr_t>(p) % 256, 0);
    for (int i = 0; i < 16; i++) pattern[i] = static_cast<char>(i);
    ok(cudaMemsetAsync(p, 7, 64, stream), "memset");
    ok(cudaMemcpy2DAsync(p, 16, pattern, 4, 4, 4, cudaMemcpyHostToDevice, stream), "2D copy");
    ok(cudaEventRecord(end, stream), "record");
    ok(cudaStreamSynchronize(stream), "synchronize");
    ok(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    expect(ms >= 0, "elapsed", 0, static_cast<double>(ms), 0);
    ok(cudaMemcpy(back, static_cast<char *>(p) + 16, 16, cudaMemcpyDeviceToHost), "copy back");
    for (int i = 0; i < 16; i++) equal("2D copy", i, back[i], i < 4 ? 4 + i : 7);
    ok(cudaFree(p), "free");
    ok(cudaFree(nullptr), "free null");
    ok(cudaEventDestroy(begin), "destroy");
    ok(cudaEventDestroy(end), "destroy");
    ok(cudaStreamDestroy(stream), "destroy");
    equal("bad device", 0, cudaSetDevice(99), cudaErrorInvalidDevice);
    equal("last error", 0, cudaGetLastError(), cudaErrorInvalidDevice);
    equal("last error is cleared", 0, cudaGetLastError(), cudaSuccess);
#ifndef __CUDACC__
    ok(cudaMalloc(&p, 100), "malloc");
    equal("copy past the end", 0, cudaMemcpy(p, back, 101, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    equal("copy to a host pointer", 0, cudaMemcpy(back, pattern, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    equal("memset past the end", 0, cudaMemset(p, 0, 101), cudaErrorInvalidValue);
    float f;
    memcpy(&f, p, 4);
    expect(f != f, "new memory is NaN", 0, static_cast<double>(f), NAN);
    ok(cudaFree(p), "free");
    equal("second free", 0, cudaFree(p), cudaErrorInvalidValue);
    equal("too much shared memory", 0, cudaFuncSetAttribute(shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024),
          cudaErrorInvalidValue);
    cudaGetLastError();
#endif
}

int main() {
    test_mma();
    test_ldmatrix<4, false>();
    test_ldmatrix<4, true>();
    test_ldmatrix<2, false>();
    test_ldmatrix<2, true>();
    test_cp_async();
    test_shfl<int>();
    test_shfl<float>();
    test_shfl<double>();
    test_shfl<unsigned long long>();
    test_votes();
    test_atomics();
    test_bf16();
    test_scalar();
    test_blocks();
    test_runtime();
#ifndef __CUDACC__
    test_conflicts();
#endif
    printf("unit: %d checks, %d failed\n", checks, failures);
    return failures != 0;
}
