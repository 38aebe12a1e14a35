/* collective.cpp: barriers, warp collectives, shared memory and atomics of the SIMT runtime. Contract: simt.h.
 *
 * A lane that reaches a collective leaves a pointer to its arguments (on its own stack) and waits; the last one to arrive checks that
 * all stand at the same instruction, runs the operation for the whole warp and wakes the others.
 * Source: CUDA C++ Programming Guide, sections on synchronization, warp vote, match and shuffle functions, atomics. */
#include "runtime.h"

namespace simt {
/* Equal literals of one file are mostly one object, so the comparison of characters is rarely needed. */
static bool differ(const char *a, const char *b) { return a != b && strcmp(a, b); }

/* ---- barriers */
void barriers_begin_block(worker *w) {
    for (barrier &b : w->bar) b.arrived = b.nwaiters = 0;
}

static void complete(worker *w, barrier *b) {
    w->st.barriers++;
    check_barrier_complete(w, b);
    draw_priorities(w);
    for (int i = 0; i < b->nwaiters; i++) make_ready(w, b->waiters[i]);
    b->arrived = b->nwaiters = 0;
    b->result = b->sum;
}

[[noreturn]] static void fail_divergent(worker *w, const barrier *b, const char *file, int line) {
    char who[3000];
    report_waiters(w, who, sizeof who);
    fail("divergent __syncthreads: this thread is at %s:%d, %d thread(s) wait at %s:%d%s", file, line, b->arrived, b->file, b->line, who);
}

static void check_arrival(worker *w, const barrier *b, int id, int n, const char *file, int line) {
    if (id < 0 || id >= MAX_BARRIERS) fail("barrier id %d is not in 0..15, at %s:%d", id, file, line);
    if (n % 32 || n > (w->nthreads + 31) / 32 * 32)
        fail("barrier %d of %d threads at %s:%d: not a multiple of 32 or more than the block has", id, n, file, line);
    if (b->arrived && b->expected != n)
        fail("barrier %d: %d threads expected at %s:%d, %d at %s:%d", id, b->expected, b->file, b->line, n, file, line);
    if (n == 0 && b->arrived && (b->line != line || differ(b->file, file))) fail_divergent(w, b, file, line);
    if (n == 0 && w->done) fail("__syncthreads %s:%d after %d thread(s) of the block exited", file, line, w->done);
}

int block_barrier(int id, int n, bool wait, int add, const char *file, int line) {
    worker *w = self;
    fiber *f = w->cur;
    barrier *b = &w->bar[id & (MAX_BARRIERS - 1)];
    check_arrival(w, b, id, n, file, line);
    if (b->arrived == 0) {
        b->expected = n;
        b->sum = 0;
        b->file = file;
        b->line = line;
    }
    b->arrived++;
    b->sum += add;
    f->file = file;
    f->line = line;
    if (!wait) check_barrier_arrive(w, b);
    if (b->arrived == (n ? n : w->nthreads)) {
        complete(w, b);
        if (wait) last_arriver_goes_on(w, f);
    } else if (wait) {
        b->waiters[b->nwaiters++] = f;
        block_here(w, f, id ? "bar.sync" : "__syncthreads", file, line);
    }
    return b->result;
}

/* ---- warp collectives */
static void check_same_place(worker *w, const warp_state *wp, uint32_t lanes, const fiber *f, uint32_t mask) {
    for (uint32_t m = lanes; m; m &= m - 1) {
        int i = __builtin_ctz(m);
        const fiber *o = w->by_tid[(f->tid & ~31) + i];
        if (wp->mask[i] != mask || o->line != f->line || differ(o->what, f->what) || differ(o->file, f->file))
            fail("divergent warp collective: lane %d is at %s mask 0x%08x %s:%d, lane %d at %s mask 0x%08x %s:%d", f->tid & 31, f->what,
                 mask, f->file, f->line, i, o->what, wp->mask[i], o->file, o->line);
    }
}

void warp_collective(uint32_t mask, const char *op, void *arg, collective exec, const char *file, int line) {
    worker *w = self;
    fiber *f = w->cur;
    int lane = f->tid & 31;
    warp_state *wp = &w->warp[f->tid >> 5];
    uint32_t need = mask & wp->present, others = need & ~(1u << lane);
    if (!(mask >> lane & 1)) fail("%s %s:%d: calling lane %d is not in its mask 0x%08x", op, file, line, lane, mask);
    if (need & wp->exited) fail("%s %s:%d: mask 0x%08x names exited lanes 0x%08x", op, file, line, mask, need & wp->exited);
    wp->arrived |= 1u << lane;
    wp->mask[lane] = mask;
    wp->arg[lane] = arg;
    if ((wp->arrived & need) != need) {
        block_here(w, f, op, file, line);
        return;
    }
    w->st.collectives++;
    f->what = op;
    f->file = file;
    f->line = line;
    check_same_place(w, wp, others, f, mask);
    wp->arrived &= ~need;
    exec(wp->arg, need);
    for (uint32_t m = others; m; m &= m - 1) make_ready(w, w->by_tid[(f->tid & ~31) + __builtin_ctz(m)]);
    f->what = nullptr;
    last_arriver_goes_on(w, f);
}

void waits_thread_exits(worker *w, fiber *f) {
    const barrier *b = &w->bar[0];
    const warp_state *wp = &w->warp[f->tid >> 5];
    if (b->arrived && b->expected == 0) fail("thread exits while %d thread(s) wait at __syncthreads %s:%d", b->arrived, b->file, b->line);
    for (uint32_t m = wp->arrived; m; m &= m - 1) {
        int i = __builtin_ctz(m);
        const fiber *o = w->by_tid[(f->tid & ~31) + i];
        if (wp->mask[i] >> (f->tid & 31) & 1)
            fail("lane %d exits while lane %d waits for it at %s %s:%d", f->tid & 31, i, o->what, o->file, o->line);
    }
}

void syncwarp_exec(void **, uint32_t) { check_syncwarp(self, self->cur->tid >> 5); }

/* A lane whose source lane does not take part, or is out of its segment for the idx form's modulo, is defined by CUDA as: own value
 * (up, down, xor beyond the segment), undefined (inactive source); undefined is made a NaN here. */
void shfl_exec(void **arg, uint32_t lanes) {
    for (uint32_t m = lanes; m; m &= m - 1) {
        int i = __builtin_ctz(m), j = i;
        shfl_arg *s = static_cast<shfl_arg *>(arg[i]);
        int width = s->width, segment = i & ~(width - 1), k = i & (width - 1);
        if (width < 1 || width > 32 || width & (width - 1)) fail("shuffle width %d is not a power of two up to 32", width);
        if (s->mode == SHFL_IDX) j = segment | (s->src & (width - 1));
        if (s->mode == SHFL_UP && k >= s->src) j = i - s->src;
        if (s->mode == SHFL_DOWN && k + s->src < width) j = i + s->src;
        if (s->mode == SHFL_XOR && (i ^ s->src) < segment + width) j = i ^ s->src;
        s->out = lanes >> j & 1 ? static_cast<shfl_arg *>(arg[j])->in : 0x7fffdeadffffdeadull;
    }
}
void ballot_exec(void **arg, uint32_t lanes) {
    uint32_t r = 0;
    for (uint32_t m = lanes; m; m &= m - 1)
        if (static_cast<vote_arg *>(arg[__builtin_ctz(m)])->in) r |= m & -m;
    for (uint32_t m = lanes; m; m &= m - 1) static_cast<vote_arg *>(arg[__builtin_ctz(m)])->out = r;
}
void match_any_exec(void **arg, uint32_t lanes) {
    for (uint32_t m = lanes; m; m &= m - 1) {
        vote_arg *a = static_cast<vote_arg *>(arg[__builtin_ctz(m)]);
        a->out = 0;
        for (uint32_t o = lanes; o; o &= o - 1)
            if (static_cast<vote_arg *>(arg[__builtin_ctz(o)])->in == a->in) a->out |= o & -o;
    }
}

/* ---- shared memory */
static void open_range(worker *w, size_t off, size_t bytes) {
    ASAN_UNPOISON_MEMORY_REGION(w->arena + off, bytes);
    memset(w->arena + off, POISON, bytes);
    check_smem_allocated(w, off, bytes);
}

void smem_begin_block(worker *w) {
    check_smem_closed(w, 0, w->arena_top); /* what the block before had */
    w->nvars = 0;
    w->dyn_bytes = w->l->smem;
    w->arena_top = DYN_OFFSET + w->dyn_bytes;
    ASAN_POISON_MEMORY_REGION(w->arena, ARENA_BYTES);
    if (w->dyn_bytes) open_range(w, DYN_OFFSET, w->dyn_bytes);
}

void *shared_var(void *tag, const char *name, size_t bytes, size_t align) {
    worker *w = self;
    for (int i = 0; i < w->nvars; i++)
        if (w->var[i].tag == tag) return w->arena + w->var[i].off;
    if (align < 16) align = 16;
    size_t off = (w->arena_top + RED_ZONE + align - 1) & ~(align - 1), total = bytes;
    for (int i = 0; i < w->nvars; i++) total += w->var[i].bytes;
    if (total > SMEM_DEFAULT)
        fail("static shared memory of %zu B, with %s, is over the %zu B that a kernel can have", total, name, SMEM_DEFAULT);
    if (total + w->dyn_bytes > SMEM_DEFAULT && (total + w->dyn_bytes > SMEM_OPTIN || w->dyn_bytes > smem_limit(w->l->key, total)))
        fail("static and dynamic shared memory of %zu B, with %s: together they are at most %zu B, %zu with cudaFuncSetAttribute",
             total + w->dyn_bytes, name, SMEM_DEFAULT, SMEM_OPTIN);
    if (w->nvars == static_cast<int>(sizeof w->var / sizeof w->var[0])) fail("too many shared variables: %s", name);
    w->var[w->nvars++] = {tag, name, off, bytes};
    w->arena_top = off + bytes;
    open_range(w, off, bytes);
    return w->arena + off;
}

void *dynamic_smem() { return self->arena + DYN_OFFSET; }

uint32_t smem_offset(const void *p) {
    size_t off = static_cast<size_t>(static_cast<const char *>(p) - self->arena);
    if (off >= ARENA_BYTES) fail("address %p is not in this block's shared memory", p);
    return static_cast<uint32_t>(off);
}

void describe_smem(worker *w, size_t off, char *buf, size_t size) {
    for (int i = 0; i < w->nvars; i++)
        if (off >= w->var[i].off && off < w->var[i].off + w->var[i].bytes) {
            snprintf(buf, size, "shared %s + %zu B", w->var[i].name, off - w->var[i].off);
            return;
        }
    if (off >= DYN_OFFSET && off < DYN_OFFSET + w->dyn_bytes)
        snprintf(buf, size, "dynamic shared + %zu B", off - DYN_OFFSET);
    else
        snprintf(buf, size, "unallocated shared memory, %zd B from the start of the dynamic part of %zu B",
                 static_cast<ssize_t>(off - DYN_OFFSET), w->dyn_bytes);
}
} /* namespace simt */

/* ---- atomics: read, modify with f, write */
template <class T, class F> static T update(T *p, const void *pc, F f) {
    T old, now;
    simt::check_access_pc(p, sizeof(T), simt::ACCESS_ATOMIC, pc);
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do now = f(old);
    while (!__atomic_compare_exchange(p, &old, &now, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
#define ATOMIC(name, T, result)                                                                                                            \
    T name(T *p, T v) {                                                                                                                    \
        return update(p, __builtin_return_address(0), [v](T old) {                                                                         \
            (void)old;                                                                                                                     \
            return static_cast<T>(result);                                                                                                 \
        });                                                                                                                                \
    }
ATOMIC(atomicAdd, int, static_cast<unsigned>(old) + static_cast<unsigned>(v))
ATOMIC(atomicAdd, unsigned, old + v)
ATOMIC(atomicAdd, unsigned long long, old + v)
ATOMIC(atomicAdd, float, old + v)
ATOMIC(atomicAdd, double, old + v)
ATOMIC(atomicAdd, __nv_bfloat162, __hadd2(old, v))
ATOMIC(atomicSub, int, static_cast<unsigned>(old) - static_cast<unsigned>(v))
ATOMIC(atomicSub, unsigned, old - v)
ATOMIC(atomicMax, int, old > v ? old : v)
ATOMIC(atomicMax, unsigned, old > v ? old : v)
ATOMIC(atomicMax, unsigned long long, old > v ? old : v)
ATOMIC(atomicMin, int, old < v ? old : v)
ATOMIC(atomicMin, unsigned, old < v ? old : v)
ATOMIC(atomicMin, unsigned long long, old < v ? old : v)
ATOMIC(atomicExch, int, v)
ATOMIC(atomicExch, unsigned, v)
ATOMIC(atomicExch, unsigned long long, v)
ATOMIC(atomicExch, float, v)
ATOMIC(atomicOr, int, (old | v))
ATOMIC(atomicOr, unsigned, (old | v))
ATOMIC(atomicAnd, int, (old & v))
ATOMIC(atomicAnd, unsigned, (old & v))
#define ATOMIC_CAS(T)                                                                                                                      \
    T atomicCAS(T *p, T expected, T v) {                                                                                                   \
        return update(p, __builtin_return_address(0), [expected, v](T old) { return old == expected ? v : old; });                         \
    }
ATOMIC_CAS(int)
ATOMIC_CAS(unsigned)
ATOMIC_CAS(unsigned long long)
