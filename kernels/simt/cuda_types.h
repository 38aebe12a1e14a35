/* cuda_types.h: the part of the CUDA headers that stagediff uses, for builds that run kernels on a CPU.
 *
 * Vector types, dim3, bf16 and the prototypes of the runtime calls, with the names, layouts and enum values that the CUDA documentation
 * gives. Every simulated build uses this file and never the toolkit's headers, so it needs no toolkit and behaves the same everywhere.
 * The files of include/ (cuda_runtime.h, ...) lead here, so host code keeps its usual #include lines. C11 and C++17; bf16 is C++ only.
 * Source: CUDA Runtime API and CUDA Math API reference manuals. The calls are implemented in cudart_emu.cpp. */
#ifndef SIMT_CUDA_TYPES_H
#define SIMT_CUDA_TYPES_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- vector types: x, y, z, w in memory order; 2 and 4 element types are aligned to their size, at most to 16 bytes */
#define SIMT_VEC2(T, V, ALIGN)                                                                                                             \
    typedef struct __attribute__((aligned(ALIGN))) V {                                                                                     \
        T x, y;                                                                                                                            \
    } V;                                                                                                                                   \
    static inline V make_##V(T x, T y) {                                                                                                   \
        V v = {x, y};                                                                                                                      \
        return v;                                                                                                                          \
    }
#define SIMT_VEC3(T, V)                                                                                                                    \
    typedef struct V {                                                                                                                     \
        T x, y, z;                                                                                                                         \
    } V;                                                                                                                                   \
    static inline V make_##V(T x, T y, T z) {                                                                                              \
        V v = {x, y, z};                                                                                                                   \
        return v;                                                                                                                          \
    }
#define SIMT_VEC4(T, V, ALIGN)                                                                                                             \
    typedef struct __attribute__((aligned(ALIGN))) V {                                                                                     \
        T x, y, z, w;                                                                                                                      \
    } V;                                                                                                                                   \
    static inline V make_##V(T x, T y, T z, T w) {                                                                                         \
        V v = {x, y, z, w};                                                                                                                \
        return v;                                                                                                                          \
    }
SIMT_VEC2(signed char, char2, 2)
SIMT_VEC4(signed char, char4, 4)
SIMT_VEC2(unsigned char, uchar2, 2)
SIMT_VEC4(unsigned char, uchar4, 4)
SIMT_VEC2(short, short2, 4)
SIMT_VEC4(short, short4, 8)
SIMT_VEC2(unsigned short, ushort2, 4)
SIMT_VEC4(unsigned short, ushort4, 8)
SIMT_VEC2(int, int2, 8)
SIMT_VEC3(int, int3)
SIMT_VEC4(int, int4, 16)
SIMT_VEC2(unsigned, uint2, 8)
SIMT_VEC3(unsigned, uint3)
SIMT_VEC4(unsigned, uint4, 16)
SIMT_VEC2(long long, longlong2, 16)
SIMT_VEC2(unsigned long long, ulonglong2, 16)
SIMT_VEC2(float, float2, 8)
SIMT_VEC3(float, float3)
SIMT_VEC4(float, float4, 16)
SIMT_VEC2(double, double2, 16)

#ifdef __cplusplus
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
#else
typedef struct dim3 {
    unsigned x, y, z;
} dim3;
#endif

/* ---- runtime: types */
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorNotSupported = 801,
    cudaErrorUnknown = 999
} cudaError_t;
enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
#define cudaStreamDefault       0x0u
#define cudaStreamNonBlocking   0x1u
#define cudaEventDefault        0x0u
#define cudaEventBlockingSync   0x1u
#define cudaEventDisableTiming  0x2u
#define cudaHostAllocDefault    0x0u
#define cudaHostRegisterDefault 0x0u
struct cudaDeviceProp { /* the members that stagediff reads */
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int regsPerBlock, warpSize, maxThreadsPerBlock, major, minor, multiProcessorCount, l2CacheSize;
};
#ifndef __cplusplus
typedef struct cudaDeviceProp cudaDeviceProp;
#endif

/* ---- runtime: calls. Everything has happened when a call returns; streams and events only exist. */
#ifdef __cplusplus
extern "C" {
#endif
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaFree(void *p);
cudaError_t cudaFreeAsync(void *p, cudaStream_t stream);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *p);
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2D(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height,
                              enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemset(void *p, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaDeviceReset(void);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device);
cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attr, int value);
#ifdef __cplusplus
}
/* The typed overloads that the CUDA headers give to C++. */
template <class T> cudaError_t cudaMalloc(T **p, size_t n) { return cudaMalloc(reinterpret_cast<void **>(p), n); }
template <class T> cudaError_t cudaMallocHost(T **p, size_t n) { return cudaMallocHost(reinterpret_cast<void **>(p), n); }
template <class T> cudaError_t cudaMallocAsync(T **p, size_t n, cudaStream_t s) {
    return cudaMallocAsync(reinterpret_cast<void **>(p), n, s);
}
template <class T> cudaError_t cudaFuncSetAttribute(T *kernel, enum cudaFuncAttribute a, int v) {
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), a, v);
}

/* ---- bf16: the upper half of an f32. Conversion rounds to nearest even; every NaN becomes 0x7fff, as cvt.rn.bf16.f32 does.
 * Arithmetic operators are deleted: nvcc would round each result to bf16, and the source should say so (__hadd, or go through float). */
static inline uint16_t simt_bf16_from_float(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
static inline float simt_bf16_to_float(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) : bits(simt_bf16_from_float(f)) {}
    operator float() const { return simt_bf16_to_float(bits); }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
__nv_bfloat16 operator+(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator-(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator*(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator/(__nv_bfloat16, __nv_bfloat16) = delete;

static inline float __bfloat162float(__nv_bfloat16 a) { return simt_bf16_to_float(a.bits); }
static inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) {
    __nv_bfloat16 a;
    a.bits = u;
    return a;
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.bits; }
static inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
static inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __floats2bfloat162_rn(x, x); }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return make_float2(v.x, v.y); }
static inline float __low2float(__nv_bfloat162 v) { return v.x; }
static inline float __high2float(__nv_bfloat162 v) { return v.y; }
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
static inline __nv_bfloat16 __hadd(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a + (float)b; }
static inline __nv_bfloat16 __hsub(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a - (float)b; }
static inline __nv_bfloat16 __hmul(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a * (float)b; }
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) { return __builtin_fmaf(a, b, c); }
static inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
static inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
#endif /* __cplusplus */
#endif
