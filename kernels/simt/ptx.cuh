/* ptx.cuh: the PTX instructions that kernels use; the only file with inline assembly. On the CPU each wrapper leads to an emulation
 * with the PTX ISA's exact fragment layouts (ptx_emu.cpp). All need sm_80.
 *
 *   mma_16816          D(16x8 f32) += A(16x16 bf16, row) * B(16x8 bf16, col); one warp, fragments as drawn in the PTX ISA
 *   ldmatrix_x4, _x2   load four (two) 8x8 matrices of 16-bit elements from shared memory, row addresses from lanes 0..31 (0..15)
 *   ldmatrix_*_trans   the same, each matrix transposed
 *   cp_async16         copy 16 bytes from global to shared memory behind the thread's back; !pred writes zeros and reads nothing
 *   cp_async_commit    close the group of copies issued so far by this thread
 *   cp_async_wait<N>   wait until at most the N newest groups of this thread are in flight; barrier before others read
 *   bar_sync/arrive    named barrier id 1..15 of n threads (a multiple of 32)
 * Source: PTX ISA 8.x, "Matrix fragments for mma.m16n8k16", "ldmatrix", "cp.async", "bar". */
#ifndef SIMT_PTX_CUH
#define SIMT_PTX_CUH
#include "simt.h"

namespace ptx {
#ifdef __CUDACC__
#define PTX_FN __device__ __forceinline__

PTX_FN uint32_t smem_u32(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

PTX_FN void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
PTX_FN void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(row))
                 : "memory");
}
PTX_FN void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(row))
                 : "memory");
}
PTX_FN void ldmatrix_x2(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(smem_u32(row)) : "memory");
}
PTX_FN void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(smem_u32(row)) : "memory");
}
PTX_FN void cp_async16(void *dst, const void *src, bool pred = true) {
    int bytes = pred ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_u32(dst)), "l"(src), "r"(bytes) : "memory");
}
PTX_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> PTX_FN void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
PTX_FN void bar_sync(int id, int n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }
PTX_FN void bar_arrive(int id, int n) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory"); }

#else
struct mma_arg {
    float *d;
    const uint32_t *a;
    uint32_t b[2];
};
void mma_16816_exec(void **arg, uint32_t lanes);
struct ldmatrix_arg {
    uint32_t *r;
    const void *row;
    int count;
    bool trans;
};
void ldmatrix_exec(void **arg, uint32_t lanes);
void cp_async(void *dst, const void *src, bool pred, const char *file, int line);
void cp_async_close();
void cp_async_finish(int pending, const char *file, int line);

inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 SIMT_SITE) {
    mma_arg m = {d, a, {b0, b1}};
    simt::warp_collective(0xffffffffu, "mma.m16n8k16", &m, mma_16816_exec SIMT_HERE);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void *row SIMT_SITE) {
    ldmatrix_arg m = {r, row, 4, false};
    simt::warp_collective(0xffffffffu, "ldmatrix.x4", &m, ldmatrix_exec SIMT_HERE);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row SIMT_SITE) {
    ldmatrix_arg m = {r, row, 4, true};
    simt::warp_collective(0xffffffffu, "ldmatrix.x4.trans", &m, ldmatrix_exec SIMT_HERE);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void *row SIMT_SITE) {
    ldmatrix_arg m = {r, row, 2, false};
    simt::warp_collective(0xffffffffu, "ldmatrix.x2", &m, ldmatrix_exec SIMT_HERE);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row SIMT_SITE) {
    ldmatrix_arg m = {r, row, 2, true};
    simt::warp_collective(0xffffffffu, "ldmatrix.x2.trans", &m, ldmatrix_exec SIMT_HERE);
}
inline void cp_async16(void *dst, const void *src, bool pred = true SIMT_SITE) { cp_async(dst, src, pred SIMT_HERE); }
inline void cp_async_commit() { cp_async_close(); }
template <int N> inline void cp_async_wait(SIMT_SITE0) { cp_async_finish(N SIMT_HERE); }
inline void bar_sync(int id, int n SIMT_SITE) { simt::block_barrier(id, n, true, 0 SIMT_HERE); }
inline void bar_arrive(int id, int n SIMT_SITE) { simt::block_barrier(id, n, false, 0 SIMT_HERE); }
#endif
} /* namespace ptx */
#endif
