/* simt.h: one kernel source, two compilers. nvcc builds it for the GPU; g++ or clang++ (-x c++) builds it to run on the CPU.
 *
 * Every kernel file includes this header first and keeps to three macros:
 *   LAUNCH(kernel, grid, block, smem_bytes, stream, args...)   start a kernel; template kernels in parentheses: LAUNCH((k<4>), ...)
 *   SHARED(type, name, [dims]);                                static shared memory; a scalar has empty dims: SHARED(int, n, );
 *   DYN_SMEM(type, name);                                      the dynamic shared memory as type *name, aligned to 128 bytes
 * Under nvcc these are the CUDA constructs and nothing else is added. On the CPU every CUDA thread is a fiber, a block runs on one OS
 * thread, and the intrinsics below have CUDA's names and meaning. PTX instructions are in ptx.cuh. Contract and limits: README.md.
 * Source: CUDA C++ Programming Guide, sections on execution configuration, synchronization, warp functions and atomics. */
#ifndef SIMT_SIMT_H
#define SIMT_SIMT_H
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef __CUDACC__ /* ------------------------------------------------------------------------------------------ GPU build */
#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* A launch that the driver refuses (grid, shared memory, registers) would otherwise leave old values in the outputs. */
static inline void simt_launch_check(const char *kernel, const char *file, int line) {
    cudaError_t err = cudaGetLastError();
    if (err == cudaSuccess) return;
    fprintf(stderr, "%s:%d: launch of %s failed: %s\n", file, line, kernel, cudaGetErrorString(err));
    abort();
}
#define LAUNCH(kernel, grid, block, smem, stream, ...)                                                                                     \
    do {                                                                                                                                   \
        (kernel)<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__);                                                                      \
        simt_launch_check(#kernel, __FILE__, __LINE__);                                                                                    \
    } while (0)
#define SHARED(T, name, dims) __shared__ T name dims
#define DYN_SMEM(T, name)                                                                                                                  \
    extern __shared__ __align__(128) unsigned char simt_dyn_smem[];                                                                        \
    T *name = reinterpret_cast<T *>(simt_dyn_smem)

#else /* ------------------------------------------------------------------------------------------------------ CPU build */
#include "cuda_types.h"
#include "intrinsics.h"
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#ifndef __noinline__
#define __noinline__ __attribute__((noinline))
#endif
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
/* __shared__ stays undefined: plain shared variables would escape the checks, so they are a compile error here. Use SHARED. */

extern __thread uint3 threadIdx, blockIdx, blockDim, gridDim; /* __thread, not thread_local: no wrapper call per access */
constexpr int warpSize = 32;

/* Every primitive takes its caller's file and line as hidden arguments; reports and divergence checks use them. */
#define SIMT_SITE0 const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define SIMT_SITE  , SIMT_SITE0
#define SIMT_HERE  , file_, line_

namespace simt {
enum order_kind { ORDER_FWD, ORDER_REV, ORDER_RAND };
struct options {      /* read from the environment before main */
    order_kind order; /* SIMT_ORDER=fwd|rev|rand: who runs next among the threads that can */
    uint64_t seed;    /* SIMT_SEED: of the random order */
    int workers;      /* SIMT_WORKERS: OS threads that run blocks; 0: as many as OpenMP gives */
};
struct statistics {
    uint64_t switches, blocks, threads, collectives, barriers, ldsm_matrices, ldsm_conflicts;
};
extern options opt;
extern statistics stats; /* summed up at the end of each launch */

[[noreturn]] void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Runs exec once for all lanes of mask, when the last of them arrives; arg[i] is what lane i gave, valid where lanes has bit i. */
using collective = void (*)(void **arg, uint32_t lanes);
void warp_collective(uint32_t mask, const char *op, void *arg, collective exec, const char *file, int line);
/* Barrier id with n threads (0: the whole block). Returns the sum of add over the threads; wait false only arrives. */
int block_barrier(int id, int n, bool wait, int add, const char *file, int line);
void *shared_var(void *tag, const char *name, size_t bytes, size_t align);
void *dynamic_smem();

struct shfl_arg {
    uint64_t in, out;
    int mode, src, width;
};
enum { SHFL_IDX, SHFL_UP, SHFL_DOWN, SHFL_XOR };
void shfl_exec(void **arg, uint32_t lanes);
struct vote_arg {
    uint64_t in;
    uint32_t out;
};
void ballot_exec(void **arg, uint32_t lanes);
void match_any_exec(void **arg, uint32_t lanes);
void syncwarp_exec(void **arg, uint32_t lanes);

template <class T> T shfl(const char *op, uint32_t mask, T v, int mode, int src, int width, const char *file, int line) {
    static_assert(std::is_arithmetic<T>::value || std::is_same<T, __nv_bfloat16>::value || std::is_same<T, __nv_bfloat162>::value,
                  "CUDA has no shuffle for this type");
    shfl_arg a = {0, 0, mode, src, width};
    memcpy(&a.in, &v, sizeof v);
    warp_collective(mask, op, &a, shfl_exec, file, line);
    memcpy(static_cast<void *>(&v), &a.out, sizeof v);
    return v;
}
inline uint32_t vote(const char *op, uint32_t mask, uint64_t in, collective exec, const char *file, int line) {
    vote_arg a = {in, 0};
    warp_collective(mask, op, &a, exec, file, line);
    return a.out;
}

struct launch_desc {
    const char *name; /* of the kernel, as written */
    const void *key;  /* its address: what cudaFuncSetAttribute was told about */
    dim3 grid, block;
    size_t smem;          /* dynamic shared memory, bytes */
    void (*loop)(void *); /* runs threads until none is left to start */
    void *closure;        /* the kernel with its arguments */
    size_t closure_bytes;
};
void run(const launch_desc &l); /* returns when every block has finished */
bool next_thread();             /* makes the calling fiber the next thread of the block */
void thread_exit();
template <class F> void thread_loop(void *closure) {
    F &fn = *static_cast<F *>(closure);
    while (next_thread()) {
        fn();
        thread_exit();
    }
}
/* Parameter types come from the kernel, so arguments are converted once, by value, as a real launch does. */
template <class... P> struct launcher {
    const char *name;
    void (*kernel)(P...);
    dim3 grid, block;
    size_t smem;
    template <class... A> void operator()(A &&...a) const {
        auto body = [k = kernel, t = std::tuple<P...>(std::forward<A>(a)...)]() { std::apply(k, t); };
        run({name, reinterpret_cast<const void *>(kernel), grid, block, smem, thread_loop<decltype(body)>, &body, sizeof body});
    }
};
template <class... P> launcher<P...> prepare(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t) {
    return {name, kernel, grid, block, smem};
}
} /* namespace simt */

#define LAUNCH(kernel, grid, block, smem, stream, ...) simt::prepare(#kernel, kernel, grid, block, smem, stream)(__VA_ARGS__)
#define DYN_SMEM(T, name)                              T *name = static_cast<T *>(simt::dynamic_smem())
#define SHARED(T, name, dims)                                                                                                              \
    using simt_type_##name = T dims;                                                                                                       \
    static char simt_tag_##name;                                                                                                           \
    simt_type_##name &name =                                                                                                               \
        *static_cast<simt_type_##name *>(simt::shared_var(&simt_tag_##name, #name, sizeof(simt_type_##name), alignof(simt_type_##name)))

/* ---- block barriers and fences */
inline void __syncthreads(SIMT_SITE0) { simt::block_barrier(0, 0, true, 0 SIMT_HERE); }
inline int __syncthreads_count(int p SIMT_SITE) { return simt::block_barrier(0, 0, true, p != 0 SIMT_HERE); }
inline int __syncthreads_and(int p SIMT_SITE) { return simt::block_barrier(0, 0, true, p == 0 SIMT_HERE) == 0; }
inline int __syncthreads_or(int p SIMT_SITE) { return simt::block_barrier(0, 0, true, p != 0 SIMT_HERE) != 0; }
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

/* ---- warp functions */
inline void __syncwarp(uint32_t mask = 0xffffffffu SIMT_SITE) {
    simt::warp_collective(mask, "__syncwarp", nullptr, simt::syncwarp_exec SIMT_HERE);
}
template <class T> T __shfl_sync(uint32_t mask, T v, int lane, int width = 32 SIMT_SITE) {
    return simt::shfl("__shfl_sync", mask, v, simt::SHFL_IDX, lane, width SIMT_HERE);
}
template <class T> T __shfl_up_sync(uint32_t mask, T v, unsigned delta, int width = 32 SIMT_SITE) {
    return simt::shfl("__shfl_up_sync", mask, v, simt::SHFL_UP, static_cast<int>(delta), width SIMT_HERE);
}
template <class T> T __shfl_down_sync(uint32_t mask, T v, unsigned delta, int width = 32 SIMT_SITE) {
    return simt::shfl("__shfl_down_sync", mask, v, simt::SHFL_DOWN, static_cast<int>(delta), width SIMT_HERE);
}
template <class T> T __shfl_xor_sync(uint32_t mask, T v, int bits, int width = 32 SIMT_SITE) {
    return simt::shfl("__shfl_xor_sync", mask, v, simt::SHFL_XOR, bits, width SIMT_HERE);
}
inline unsigned __ballot_sync(uint32_t mask, int p SIMT_SITE) {
    return simt::vote("__ballot_sync", mask, p != 0, simt::ballot_exec SIMT_HERE);
}
inline int __any_sync(uint32_t mask, int p SIMT_SITE) { return simt::vote("__any_sync", mask, p != 0, simt::ballot_exec SIMT_HERE) != 0; }
inline int __all_sync(uint32_t mask, int p SIMT_SITE) { return simt::vote("__all_sync", mask, p == 0, simt::ballot_exec SIMT_HERE) == 0; }
template <class T> unsigned __match_any_sync(uint32_t mask, T v SIMT_SITE) {
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    return simt::vote("__match_any_sync", mask, bits, simt::match_any_exec SIMT_HERE);
}

/* ---- atomics: return the old value. Real ones, as blocks run on several OS threads; out of line so that no sanitizer splits them. */
int atomicAdd(int *p, int v);
unsigned atomicAdd(unsigned *p, unsigned v);
unsigned long long atomicAdd(unsigned long long *p, unsigned long long v);
float atomicAdd(float *p, float v);
double atomicAdd(double *p, double v);
__nv_bfloat162 atomicAdd(__nv_bfloat162 *p, __nv_bfloat162 v);
int atomicSub(int *p, int v);
unsigned atomicSub(unsigned *p, unsigned v);
int atomicMax(int *p, int v);
unsigned atomicMax(unsigned *p, unsigned v);
unsigned long long atomicMax(unsigned long long *p, unsigned long long v);
int atomicMin(int *p, int v);
unsigned atomicMin(unsigned *p, unsigned v);
unsigned long long atomicMin(unsigned long long *p, unsigned long long v);
int atomicExch(int *p, int v);
unsigned atomicExch(unsigned *p, unsigned v);
unsigned long long atomicExch(unsigned long long *p, unsigned long long v);
float atomicExch(float *p, float v);
int atomicCAS(int *p, int expected, int v);
unsigned atomicCAS(unsigned *p, unsigned expected, unsigned v);
unsigned long long atomicCAS(unsigned long long *p, unsigned long long expected, unsigned long long v);
int atomicOr(int *p, int v);
unsigned atomicOr(unsigned *p, unsigned v);
int atomicAnd(int *p, int v);
unsigned atomicAnd(unsigned *p, unsigned v);
#endif /* __CUDACC__ */
#endif
