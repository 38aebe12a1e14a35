/* check.cpp: races, uninitialised reads and out-of-bounds accesses of kernels, found while they run.
 *
 * Kernels compiled with -fsanitize=thread call __tsan_read4(p) and the like before every access; this file supplies these functions
 * in place of libtsan, which must not be linked. Two kinds of memory:
 *   shared   per 2 bytes a shadow cell with the last writer and two readers, as (clock << 10 | thread), and vector clocks per warp. Warp a
 *            has seen an access of warp b stamped t when clock[a][b] > t; clocks advance at __syncwarp and are joined at barriers.
 *   global   every access must lie in one device allocation, the thread's own stack, the kernel's arguments, or the program's image and
 *            its thread-local variables. Per 2 bytes of an allocation: the last writing and reading block of the running launch;
 *            two blocks of a launch must not touch the same bytes unless both only read or both use atomics.
 * Single-byte neighbours in a cell are told apart by a byte mask. Known misses (no false alarms): more than two concurrent readers of a
 * cell, threads of one block racing on global memory, __syncwarp with a part of the warp (counts as the whole).
 * Source: the vector clock method of Mattern (1989) and FastTrack (Flanagan and Freund, 2009), per warp instead of per thread. */
#include "runtime.h"
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

namespace simt {
bool check_on = false;

constexpr size_t GRANULE = 2;
constexpr uint32_t CLOSED = ~0u; /* writer of a cell outside of all allocations */
struct shadow_cell {
    uint32_t writer, reader[2], writer_pc, reader_pc[2]; /* 0: none */
    uint32_t in_flight;                                  /* thread + 1 whose cp.async will write here */
    uint8_t writer_bytes, reader_bytes[2], atomic;
};

/* ---- places: an instruction's offset in the executable, or, with SITE set, an entry of the table of sites */
constexpr uint32_t SITE = 0x80000000u;
static struct {
    const char *file;
    int line;
} sites[1024];
static uint32_t nsites;
static pthread_mutex_t sites_lock = PTHREAD_MUTEX_INITIALIZER;

static uint32_t site_of(const char *file, int line) {
    uint32_t i = 0;
    pthread_mutex_lock(&sites_lock);
    while (i < nsites && (sites[i].file != file || sites[i].line != line)) i++;
    if (i == nsites && nsites < 1023) sites[nsites++] = {file, line};
    pthread_mutex_unlock(&sites_lock);
    return SITE | i;
}

static int first_image(dl_phdr_info *info, size_t, void *base) { /* the executable comes first */
    *static_cast<uintptr_t *>(base) = info->dlpi_addr;
    return 1;
}
static uint32_t place_of(const void *pc) {
    static const uintptr_t base = [] {
        uintptr_t b = 0;
        dl_iterate_phdr(first_image, &b);
        return b;
    }();
    return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pc) - base) & ~SITE;
}

/* file:line of a place; code inlined from elsewhere is named with its caller. */
static const char *place_name(uint32_t place, char *buf, size_t size) {
    char exe[512], cmd[700], line[512];
    snprintf(buf, size, "?");
    if (place & SITE) {
        place &= ~SITE;
        snprintf(buf, size, "%s:%d", place < nsites ? sites[place].file : "?", place < nsites ? sites[place].line : 0);
        return buf;
    }
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    snprintf(cmd, sizeof cmd, "addr2line -s -i -e '%s' 0x%x 2>/dev/null", exe, place - 1);
    FILE *p = popen(cmd, "r");
    bool first = true;
    char last[512] = "";
    while (p && fgets(line, sizeof line, p)) {
        line[strcspn(line, " \n")] = 0;
        if (first)
            snprintf(buf, size, "%s", line);
        else
            snprintf(last, sizeof last, "%s", line);
        first = false;
    }
    if (p) pclose(p);
    size_t len = strlen(buf);
    if (last[0]) snprintf(buf + len, size - len, " (inlined into %s)", last);
    return buf;
}

/* ---- vector clocks */
static void join(uint32_t *into, const uint32_t *from) {
    for (int i = 0; i < MAX_WARPS; i++) into[i] = into[i] > from[i] ? into[i] : from[i];
}
void check_syncwarp(worker *w, int warp) { w->clock[warp][warp]++; }
void check_barrier_arrive(worker *w, barrier *b) { /* without waiting: releases, acquires nothing */
    if (!check_on) return;
    int warp = w->cur->tid >> 5;
    w->clock[warp][warp]++;
    join(b->clock, w->clock[warp]);
}
void check_barrier_complete(worker *w, barrier *b) {
    if (!check_on) return;
    uint32_t warps = 1u << (w->cur->tid >> 5);
    for (int i = 0; i < b->nwaiters; i++) warps |= 1u << (b->waiters[i]->tid >> 5);
    for (uint32_t m = warps; m; m &= m - 1) {
        int i = __builtin_ctz(m);
        w->clock[i][i]++; /* before the join: what happens after the barrier is not released by it */
        join(b->clock, w->clock[i]);
    }
    for (uint32_t m = warps; m; m &= m - 1) join(w->clock[__builtin_ctz(m)], b->clock);
}
static bool ordered(const worker *w, uint32_t stamp, int tid) { /* does stamp happen before what tid does now? */
    int t = static_cast<int>(stamp & 1023);
    return t == tid || w->clock[tid >> 5][t >> 5] > stamp >> 10;
}

/* ---- shared memory */
void check_begin_worker(worker *w) {
    if (!check_on) return;
    size_t bytes = ARENA_BYTES / GRANULE * sizeof(shadow_cell);
    void *m = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) fail("no memory for the shadow of shared memory");
    w->cells = static_cast<shadow_cell *>(m);
    check_smem_closed(w, 0, ARENA_BYTES);
}
void check_begin_block(worker *w) {
    if (!check_on) return;
    memset(w->clock, 0, sizeof w->clock);
    for (int i = 0; i < MAX_WARPS; i++) w->clock[i][i] = 1;
    for (barrier &b : w->bar) memset(b.clock, 0, sizeof b.clock);
}
void check_smem_allocated(worker *w, size_t off, size_t bytes) {
    if (check_on) memset(w->cells + off / GRANULE, 0, (bytes + GRANULE - 1) / GRANULE * sizeof(shadow_cell));
}
void check_smem_closed(worker *w, size_t off, size_t bytes) {
    if (!check_on) return;
    for (size_t i = off / GRANULE; i < (off + bytes + GRANULE - 1) / GRANULE; i++) w->cells[i].writer = CLOSED;
}
void check_in_flight(worker *w, size_t off, size_t bytes, int tid) {
    if (!check_on) return;
    for (size_t i = off / GRANULE; i < (off + bytes) / GRANULE; i++) w->cells[i].in_flight = static_cast<uint32_t>(tid + 1);
}

static const char *const kind_name[] = {"read", "write", "atomic"};

[[noreturn]] static void fail_shared(worker *w, size_t off, access_kind kind, size_t bytes, uint32_t place, const char *problem) {
    char what[200], where[600];
    describe_smem(w, off, what, sizeof what);
    fail("%s: %s of %zu B: %s, at %s", problem, kind_name[kind], bytes, what, place_name(place, where, sizeof where));
}

static void check_cell_valid(worker *w, const shadow_cell &c, size_t off, access_kind kind, size_t bytes, uint32_t place) {
    char buf[100];
    if (c.writer == CLOSED) fail_shared(w, off, kind, bytes, place, "shared memory access out of bounds");
    if (c.in_flight) {
        snprintf(buf, sizeof buf, "access to the target of a cp.async of thread %u that is still in flight", c.in_flight - 1);
        fail_shared(w, off, kind, bytes, place, buf);
    }
    if (!c.writer && kind != ACCESS_WRITE) fail_shared(w, off, kind, bytes, place, "use of uninitialised shared memory");
}

[[noreturn]] static void fail_race(worker *w, size_t off, access_kind kind, bool after_write, int tid, uint32_t place, uint32_t other,
                                   uint32_t other_place) {
    char what[200], here[600], there[600];
    describe_smem(w, off, what, sizeof what);
    fail("race (%s after %s) on %s: thread %d at %s, thread %u at %s, no barrier between", kind_name[kind], after_write ? "write" : "read",
         what, tid, place_name(place, here, sizeof here), other & 1023, place_name(other_place, there, sizeof there));
}

static void shared_access(worker *w, size_t off, size_t bytes, access_kind kind, int tid, uint32_t place) {
    uint32_t me = w->clock[tid >> 5][tid >> 5] << 10 | static_cast<uint32_t>(tid);
    for (size_t g = off / GRANULE; g <= (off + bytes - 1) / GRANULE; g++) {
        if (g >= ARENA_BYTES / GRANULE) fail_shared(w, g * GRANULE, kind, bytes, place, "shared memory access out of bounds");
        shadow_cell &c = w->cells[g];
        uint8_t touched = (g * GRANULE >= off ? 1 : 0) | (g * GRANULE + 1 < off + bytes ? 2 : 0);
        check_cell_valid(w, c, g * GRANULE, kind, bytes, place);
        if (c.writer && c.writer_bytes & touched && !(kind == ACCESS_ATOMIC && c.atomic) && !ordered(w, c.writer, tid))
            fail_race(w, g * GRANULE, kind, true, tid, place, c.writer, c.writer_pc);
        for (int i = 0; i < 2 && kind != ACCESS_READ; i++)
            if (c.reader[i] && c.reader_bytes[i] & touched && !ordered(w, c.reader[i], tid))
                fail_race(w, g * GRANULE, kind, false, tid, place, c.reader[i], c.reader_pc[i]);
        if (kind != ACCESS_READ) {
            c.writer = me;
            c.writer_pc = place;
            c.writer_bytes = touched;
            c.atomic = kind == ACCESS_ATOMIC;
            c.reader[0] = c.reader[1] = 0;
            continue;
        }
        int slot = !c.reader[0] || ordered(w, c.reader[0], tid)                                                             ? 0
                   : !c.reader[1] || ordered(w, c.reader[1], tid) || (c.reader[0] & 1023) >> 5 == (c.reader[1] & 1023) >> 5 ? 1
                                                                                                                            : -1;
        if (slot < 0) continue;
        c.reader[slot] = me;
        c.reader_pc[slot] = place;
        c.reader_bytes[slot] = touched;
    }
}

/* ---- global memory. A mark: launch << 40 | bytes << 38 | atomic << 37 | block + 1, block MANY for more than one */
constexpr uint64_t MARK_BLOCK = (1ull << 37) - 1, MARK_ATOMIC = 1ull << 37, MARK_MANY = MARK_BLOCK;

[[noreturn]] static void fail_blocks(const allocation &a, size_t off, access_kind kind, uint64_t other, bool wrote, uint32_t place) {
    char where[600], who[40] = "other blocks";
    if ((other & MARK_BLOCK) != MARK_MANY)
        snprintf(who, sizeof who, "block %llu", static_cast<unsigned long long>((other & MARK_BLOCK) - 1));
    fail("race between blocks: global %s, %zu B into an allocation of %zu B, which %s %s in the same launch, at %s", kind_name[kind], off,
         a.bytes, who, wrote ? "wrote" : "read", place_name(place, where, sizeof where));
}

static void global_access(worker *w, const allocation &a, size_t off, size_t bytes, access_kind kind, uint32_t place) {
    const uint64_t launch = w->launch & 0xffffff, me = w->block + 1;
    for (size_t g = off / GRANULE; g <= (off + bytes - 1) / GRANULE; g++) {
        global_cell &c = a.cells[g];
        uint64_t touched = (g * GRANULE >= off ? 1u : 0u) | (g * GRANULE + 1 < off + bytes ? 2u : 0u);
        uint64_t wr = __atomic_load_n(&c.writer, __ATOMIC_RELAXED), rd = __atomic_load_n(&c.reader, __ATOMIC_RELAXED);
        if (wr >> 40 != launch) wr = 0;
        if (rd >> 40 != launch) rd = 0;
        bool foreign_wr = wr && (wr & MARK_BLOCK) != me, foreign_rd = rd && (rd & MARK_BLOCK) != me;
        if (foreign_wr && wr >> 38 & touched && !(kind == ACCESS_ATOMIC && wr & MARK_ATOMIC))
            fail_blocks(a, g * GRANULE, kind, wr, true, place);
        if (kind != ACCESS_READ && foreign_rd && rd >> 38 & touched) fail_blocks(a, g * GRANULE, kind, rd, false, place);
        uint64_t mark = launch << 40 | touched << 38 | me;
        if (kind == ACCESS_READ) {
            if (rd) mark = (foreign_rd ? mark | MARK_MANY : mark) | (rd & 3ull << 38);
            __atomic_store_n(&c.reader, mark, __ATOMIC_RELAXED);
            continue;
        }
        if (kind == ACCESS_ATOMIC && (!wr || wr & MARK_ATOMIC)) mark |= MARK_ATOMIC | (foreign_wr ? MARK_MANY : 0);
        __atomic_store_n(&c.writer, mark, __ATOMIC_RELAXED);
    }
}

static struct { uintptr_t lo, hi; } image[16]; /* loaded segments of the executable; filled by the first thread that needs them */
static int nimage;
static __thread uintptr_t tls_lo, tls_hi;

static int read_image(dl_phdr_info *info, size_t, void *) {
    int n = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &h = info->dlpi_phdr[i];
        uintptr_t lo = info->dlpi_addr + h.p_vaddr;
        if (h.p_type == PT_LOAD && n < 16) image[n++] = {lo, lo + h.p_memsz};
        if (h.p_type != PT_TLS || !info->dlpi_tls_data) continue;
        tls_lo = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
        tls_hi = tls_lo + h.p_memsz;
    }
    __atomic_store_n(&nimage, n, __ATOMIC_RELEASE);
    return 1;
}
/* The kernel's arguments, thread-local variables (threadIdx), the program's image; the stack was asked for before. */
static bool in_program(const worker *w, uintptr_t a, size_t n) {
    uintptr_t args = reinterpret_cast<uintptr_t>(w->l->closure);
    if (a >= args && a + n <= args + w->l->closure_bytes) return true;
    if (!tls_hi) dl_iterate_phdr(read_image, nullptr);
    if (a >= tls_lo && a + n <= tls_hi) return true;
    for (int i = 0; i < nimage; i++)
        if (a >= image[i].lo && a + n <= image[i].hi) return true;
    return false;
}

static void other_access(worker *w, const void *p, size_t bytes, access_kind kind, uint32_t place) {
    static __thread allocation last; /* most accesses go to the same allocation as the one before */
    static __thread unsigned last_epoch;
    const char *a = static_cast<const char *>(p);
    if (last_epoch != allocation_epoch) last = {nullptr, 0, nullptr};
    if (!(last.p && a >= last.p && a + bytes <= last.p + last.bytes)) {
        if (in_program(w, reinterpret_cast<uintptr_t>(p), bytes)) return;
        allocation found = {nullptr, 0, nullptr};
        bool any = find_allocation(p, &found);
        if (!any || a + bytes > found.p + found.bytes) {
            char where[600], near_[120] = "no device allocation (host pointer?)";
            if (any && a < found.p + found.bytes + PAGE)
                snprintf(near_, sizeof near_, "%zd B past the end of an allocation of %zu B",
                         a - found.p - static_cast<ssize_t>(found.bytes), found.bytes);
            fail("global %s of %zu B at %p: %s, at %s", kind_name[kind], bytes, p, near_, place_name(place, where, sizeof where));
        }
        last = found;
        last_epoch = allocation_epoch;
    }
    global_access(w, last, static_cast<size_t>(a - last.p), bytes, kind, place);
}

/* ---- entries */
void check_access_pc(const void *p, size_t bytes, access_kind kind, const void *pc) {
    worker *w = self;
    if (!check_on || !w || !bytes) return;
    size_t in_stack = static_cast<size_t>(static_cast<const char *>(p) - w->cur->stack);
    if (in_stack < w->cur->stack_bytes && in_stack + bytes <= w->cur->stack_bytes) return; /* most accesses are to own variables */
    size_t off = static_cast<size_t>(static_cast<const char *>(p) - w->arena);
    if (off < ARENA_BYTES)
        shared_access(w, off, bytes, kind, w->cur->tid, place_of(pc));
    else
        other_access(w, p, bytes, kind, place_of(pc));
}
void check_access(const void *p, size_t bytes, access_kind kind, int lane) {
    worker *w = self;
    if (!check_on) return;
    size_t off = static_cast<size_t>(static_cast<const char *>(p) - w->arena);
    uint32_t place = site_of(w->cur->file, w->cur->line);
    if (off < ARENA_BYTES)
        shared_access(w, off, bytes, kind, (w->cur->tid & ~31) | lane, place);
    else
        other_access(w, p, bytes, kind, place);
}
} /* namespace simt */

/* ---- what -fsanitize=thread calls. The aligned forms are emitted for types whose alignment promises it: a misaligned vector access. */
#define HERE __builtin_return_address(0)
static void aligned_access(const void *p, size_t bytes, simt::access_kind kind, const void *pc) {
    size_t need = bytes < 8 ? bytes : 8;
    char where[600];
    if (simt::self && reinterpret_cast<uintptr_t>(p) % need)
        simt::fail("misaligned %s of %zu B at %p, at %s", simt::kind_name[kind], bytes, p,
                   simt::place_name(simt::place_of(pc), where, sizeof where));
    simt::check_access_pc(p, bytes, kind, pc);
}
extern "C" {
#define TSAN_ACCESS(n)                                                                                                                     \
    void __tsan_read##n(void *p) { aligned_access(p, n, simt::ACCESS_READ, HERE); }                                                        \
    void __tsan_write##n(void *p) { aligned_access(p, n, simt::ACCESS_WRITE, HERE); }                                                      \
    void __tsan_unaligned_read##n(void *p) { simt::check_access_pc(p, n, simt::ACCESS_READ, HERE); }                                       \
    void __tsan_unaligned_write##n(void *p) { simt::check_access_pc(p, n, simt::ACCESS_WRITE, HERE); }
TSAN_ACCESS(1)
TSAN_ACCESS(2)
TSAN_ACCESS(4)
TSAN_ACCESS(8)
TSAN_ACCESS(16)
void __tsan_read_range(void *p, size_t n) { simt::check_access_pc(p, n, simt::ACCESS_READ, HERE); }
void __tsan_write_range(void *p, size_t n) { simt::check_access_pc(p, n, simt::ACCESS_WRITE, HERE); }
void *__tsan_memcpy(void *d, const void *s, size_t n) {
    simt::check_access_pc(s, n, simt::ACCESS_READ, HERE);
    simt::check_access_pc(d, n, simt::ACCESS_WRITE, HERE);
    return memcpy(d, s, n);
}
void *__tsan_memmove(void *d, const void *s, size_t n) {
    simt::check_access_pc(s, n, simt::ACCESS_READ, HERE);
    simt::check_access_pc(d, n, simt::ACCESS_WRITE, HERE);
    return memmove(d, s, n);
}
void *__tsan_memset(void *d, int v, size_t n) {
    simt::check_access_pc(d, n, simt::ACCESS_WRITE, HERE);
    return memset(d, v, n);
}
void __tsan_init() { simt::check_on = true; } /* called by every instrumented object file before main */
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
/* Atomics of host code in an instrumented file: guards of static variables, std::atomic. */
#define TSAN_ATOMIC(bits, T)                                                                                                               \
    T __tsan_atomic##bits##_load(const volatile T *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }                                \
    void __tsan_atomic##bits##_store(volatile T *p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }                                \
    T __tsan_atomic##bits##_exchange(volatile T *p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }                      \
    T __tsan_atomic##bits##_fetch_add(volatile T *p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }                      \
    T __tsan_atomic##bits##_fetch_sub(volatile T *p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }                      \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile T *p, T *c, T v, int, int) {                                                \
        return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                                            \
    }
TSAN_ATOMIC(8, uint8_t)
TSAN_ATOMIC(32, uint32_t)
TSAN_ATOMIC(64, uint64_t)
}
