/* intrinsics.h: CUDA's math, bit and load intrinsics for CPU builds; included by simt.h. Only names that CUDA has.
 *
 * Functions of <math.h> (expf, tanhf, erff, fmaf, ...) come from the C library. The fast ones (__expf, rsqrtf, ...) are computed the way
 * the hardware does it where that decides the error (__expf goes through base 2), else exactly; a GPU differs in the last bits.
 * Source: CUDA Math API reference manual. */
#ifndef SIMT_INTRINSICS_H
#define SIMT_INTRINSICS_H
#include "cuda_types.h"
#include <climits>
#include <cmath>

/* ---- single precision; the C library declares some of the names as its internals, hence the macros */
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
namespace simt {
inline float fast_exp(float x) { return exp2f(x * 1.44269504f); }
inline float fast_log(float x) { return log2f(x) * 0.693147181f; }
inline float fast_pow(float x, float y) { return exp2f(y * log2f(x)); }
} /* namespace simt */
#define __expf(x)    simt::fast_exp(x)
#define __logf(x)    simt::fast_log(x)
#define __log2f(x)   log2f(x)
#define __powf(x, y) simt::fast_pow(x, y)
#define __sinf(x)    sinf(x)
#define __cosf(x)    cosf(x)
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

/* ---- conversions; float to int saturates and maps NaN to 0, as cvt does */
namespace simt {
inline int to_int(double x) { return x != x ? 0 : x >= 2147483647.0 ? INT_MAX : x <= -2147483648.0 ? INT_MIN : static_cast<int>(x); }
} /* namespace simt */
inline int __float2int_rn(float x) { return simt::to_int(nearbyint(static_cast<double>(x))); }
inline int __float2int_rz(float x) { return simt::to_int(static_cast<double>(x)); }
inline int __float2int_rd(float x) { return simt::to_int(floor(static_cast<double>(x))); }
inline int __float2int_ru(float x) { return simt::to_int(ceil(static_cast<double>(x))); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

/* ---- bit casts */
namespace simt {
template <class To, class From> To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit cast");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
} /* namespace simt */
inline int __float_as_int(float x) { return simt::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return simt::bits<unsigned>(x); }
inline float __int_as_float(int x) { return simt::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return simt::bits<float>(x); }
inline long long __double_as_longlong(double x) { return simt::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return simt::bits<double>(x); }

/* ---- integers */
#define SIMT_MIN_MAX(T)                                                                                                                    \
    inline T min(T a, T b) { return a < b ? a : b; }                                                                                       \
    inline T max(T a, T b) { return a > b ? a : b; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1u) << (31 - i);
    return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    __extension__ typedef unsigned __int128 wide;
    return static_cast<unsigned long long>(static_cast<wide>(a) * b >> 64);
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
    return static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) >> (n & 31));
}

/* ---- loads and stores with cache hints */
template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldca(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> void __stcg(T *p, T v) { *p = v; }
template <class T> void __stcs(T *p, T v) { *p = v; }
#endif
