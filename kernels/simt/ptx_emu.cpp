/* ptx_emu.cpp: what the PTX instructions of ptx.cuh do, on the CPU.
 *
 * mma.m16n8k16, with g = lane / 4 and t = 2 * (lane % 4); a register holds two bf16, the lower column (A) or row (B) in its low half:
 *   A  a0 (g, t..t+1)   a1 (g+8, t..t+1)   a2 (g, t+8..t+9)   a3 (g+8, t+8..t+9)      as (row, column)
 *   B  b0 (t..t+1, g)   b1 (t+8..t+9, g)                                              as (k, column)
 *   C  c0 c1 (g, t..t+1)   c2 c3 (g+8, t..t+1)
 * Products are exact, sums are f32 in the order of k; tensor cores align and truncate, so the last bits differ.
 * ldmatrix: lane 8i+j gives the address of row j of matrix i; lane l receives row l/4, columns t..t+1 of every matrix.
 * cp.async: the source is read at once, the target turns NaN and gets its data when the issuing thread waits: a missing wait shows.
 * tests/simt/unit.cu tests the layouts one element at a time. Source: PTX ISA 8.x. */
#include "ptx.cuh"
#include "runtime.h"

namespace ptx {
static float low_half(uint32_t r) { return __uint_as_float(r << 16); }
static float high_half(uint32_t r) { return __uint_as_float(r & 0xffff0000u); }

void mma_16816_exec(void **arg, uint32_t lanes) {
    if (lanes != ~0u) simt::fail("mma.sync needs all 32 lanes of the warp, has 0x%08x", lanes);
    alignas(64) float A[16][16], B[16][8], C[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const mma_arg &m = *static_cast<mma_arg *>(arg[lane]);
        int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            float *a = &A[g + i % 2 * 8][t + i / 2 * 8];
            a[0] = low_half(m.a[i]);
            a[1] = high_half(m.a[i]);
            C[g + i / 2 * 8][t + i % 2] = m.d[i];
        }
        for (int i = 0; i < 2; i++) {
            B[t + i * 8][g] = low_half(m.b[i]);
            B[t + i * 8 + 1][g] = high_half(m.b[i]);
        }
    }
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            for (int c = 0; c < 8; c++) C[r][c] += A[r][k] * B[k][c];
    for (int lane = 0; lane < 32; lane++) {
        float *d = static_cast<mma_arg *>(arg[lane])->d;
        for (int i = 0; i < 4; i++) d[i] = C[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

void ldmatrix_exec(void **arg, uint32_t lanes) {
    if (lanes != ~0u) simt::fail("ldmatrix needs all 32 lanes of the warp, has 0x%08x", lanes);
    uint16_t M[4][8][8];
    int count = static_cast<ldmatrix_arg *>(arg[0])->count;
    simt::statistics *st = &simt::self->st;
    for (int i = 0; i < count; i++) {
        int used[8] = {0}, worst = 0; /* a conflict-free wavefront reads its 8 rows from 8 different groups of banks */
        for (int j = 0; j < 8; j++) {
            int lane = 8 * i + j;
            const void *row = static_cast<ldmatrix_arg *>(arg[lane])->row;
            uint32_t off = simt::smem_offset(row);
            if (off & 15) simt::fail("ldmatrix: row address of lane %d is not aligned to 16 bytes", lane);
            simt::check_access(row, 16, simt::ACCESS_READ, lane);
            memcpy(M[i][j], row, 16);
            worst = max(worst, ++used[off / 16 % 8]);
        }
        st->ldsm_matrices++;
        st->ldsm_conflicts += static_cast<uint64_t>(worst - 1);
    }
    for (int lane = 0; lane < 32; lane++) {
        const ldmatrix_arg &m = *static_cast<ldmatrix_arg *>(arg[lane]);
        int r = lane / 4, c = lane % 4 * 2;
        for (int i = 0; i < count; i++) {
            uint32_t lo = m.trans ? M[i][c][r] : M[i][r][c], hi = m.trans ? M[i][c + 1][r] : M[i][r][c + 1];
            m.r[i] = lo | hi << 16;
        }
    }
}

void cp_async(void *dst, const void *src, bool pred, const char *file, int line) {
    simt::worker *w = simt::self;
    simt::fiber *f = w->cur;
    int lane = f->tid & 31;
    f->file = file;
    f->line = line;
    uint32_t off = simt::smem_offset(dst);
    if (off & 15 || (pred && reinterpret_cast<uintptr_t>(src) & 15))
        simt::fail("cp.async of 16 B at %s:%d: misaligned address (shared offset %u, source %p)", file, line, off, src);
    simt::async_copy c = {static_cast<char *>(dst), f->group, {}};
    if (pred) {
        simt::check_access(src, 16, simt::ACCESS_READ, lane);
        memcpy(c.data, src, 16);
    }
    simt::check_access(dst, 16, simt::ACCESS_WRITE, lane);
    memset(dst, simt::POISON, 16);
    simt::check_in_flight(w, off, 16, f->tid);
    f->copies.push_back(c);
}

void cp_async_close() { simt::self->cur->group++; }

void cp_async_finish(int pending, const char *file, int line) {
    simt::worker *w = simt::self;
    simt::fiber *f = w->cur;
    size_t n = 0;
    f->file = file;
    f->line = line;
    for (; n < f->copies.size() && f->copies[n].group < f->group - pending; n++) {
        const simt::async_copy &c = f->copies[n];
        simt::check_in_flight(w, simt::smem_offset(c.dst), 16, -1);
        simt::check_access(c.dst, 16, simt::ACCESS_WRITE, f->tid & 31);
        memcpy(c.dst, c.data, 16);
    }
    f->copies.erase(f->copies.begin(), f->copies.begin() + static_cast<long>(n));
}
} /* namespace ptx */

void simt::copies_thread_exits(fiber *f) {
    if (!f->copies.empty()) fail("thread exits with %zu cp.async copies that it never waited for", f->copies.size());
}
