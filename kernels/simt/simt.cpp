/* simt.cpp: fibers, their order, launches and error reports. Contract: simt.h.
 *
 * A fiber that finishes a thread takes the next unstarted thread itself, so a kernel that never waits runs as a plain loop without a
 * switch. At a wait the fiber jumps straight to the next one that can run. Orders: fwd and rev start threads upwards and downwards
 * and resume them in the order in which they became ready; rand draws warp priorities and lets the first warp run as far as it
 * goes, which is what exposes a buffer that is overwritten too early (uniformly random order does not).
 * Compiled without -fsanitize=thread always, and with -fsanitize=address when the kernels are. */
#include "runtime.h"
#include <atomic>
#include <cstdarg>
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#ifndef __x86_64__
#error "the fiber switch is written for x86-64 System V only"
#endif

__thread uint3 threadIdx, blockIdx, blockDim, gridDim;

/* void simt_switch(void **save_sp, void *load_sp): the callee-saved registers stay on the old stack. pop and jmp instead of ret: the
 * processor predicts a return to its last call, which is always wrong here. */
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  popq %rcx
  jmp *%rcx
.size simt_switch,.-simt_switch
)");
extern "C" void simt_switch(void **save_sp, void *load_sp);

namespace simt {
__thread worker *self;
static __thread worker *thread_worker;
statistics stats;

static options read_options() {
    options o = {ORDER_FWD, 1, 0};
    const char *order = getenv("SIMT_ORDER"), *seed = getenv("SIMT_SEED"), *workers = getenv("SIMT_WORKERS");
    if (order && !strcmp(order, "rev"))
        o.order = ORDER_REV;
    else if (order && !strncmp(order, "rand", 4))
        o.order = ORDER_RAND;
    else if (order && strcmp(order, "fwd"))
        fprintf(stderr, "SIMT: SIMT_ORDER=%s is not fwd, rev or rand; fwd taken\n", order);
    if (seed) o.seed = strtoull(seed, nullptr, 0);
    if (workers) o.workers = atoi(workers);
    return o;
}
options opt = read_options();

/* ---- reports */
static pthread_mutex_t report_lock = PTHREAD_MUTEX_INITIALIZER; /* never released: the first error ends the process */

static void print_where() {
    worker *w = self;
    if (!w) return;
    fprintf(stderr, "  in kernel %s, block (%u,%u,%u), thread (%u,%u,%u)\n", w->l->name, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
            threadIdx.y, threadIdx.z);
}

void fail(const char *fmt, ...) {
    char buf[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&report_lock);
    fflush(stdout);
    fprintf(stderr, "SIMT ERROR: %s\n", buf);
    print_where();
    abort();
}

static void wait_place(worker *w, int tid, char *buf, size_t size) {
    fiber *f = w->by_tid[tid];
    if (w->exited[tid])
        snprintf(buf, size, "exited");
    else if (!f)
        snprintf(buf, size, "not started");
    else if (!f->what)
        snprintf(buf, size, "running");
    else
        snprintf(buf, size, "at %s %s:%d", f->what, f->file ? f->file : "?", f->line);
}

void report_waiters(worker *w, char *buf, size_t size) {
    bool seen[MAX_THREADS] = {};
    size_t len = 0;
    buf[0] = 0;
    for (int t = 0; t < w->nthreads && len + 400 < size; t++) {
        char place[300], other[300], list[80] = "";
        int count = 0;
        if (seen[t]) continue;
        wait_place(w, t, place, sizeof place);
        for (int u = t; u < w->nthreads; u++) {
            wait_place(w, u, other, sizeof other);
            if (seen[u] || strcmp(place, other)) continue;
            seen[u] = true;
            size_t n = strlen(list);
            if (count++ < 6) snprintf(list + n, sizeof list - n, " %d", u);
        }
        len +=
            static_cast<size_t>(snprintf(buf + len, size - len, "\n    %d thread(s) %s:%s%s", count, place, list, count > 6 ? " ..." : ""));
    }
}

[[noreturn]] static void fail_deadlock(worker *w) {
    char buf[3000];
    report_waiters(w, buf, sizeof buf);
    fail("deadlock: no thread of the block can go on%s", buf);
}

#if SIMT_ASAN
extern "C" void __asan_on_error() { print_where(); }
#else
static void on_fault(int sig, siginfo_t *info, void *) {
    worker *w = self;
    if (w) {
        const char *a = static_cast<const char *>(info->si_addr), *kind = "invalid memory access";
        for (int i = 0; i < w->nall; i++)
            if (a >= w->all[i]->stack - PAGE && a < w->all[i]->stack) kind = "fiber stack overflow";
        fprintf(stderr, "SIMT ERROR: %s at %p\n", kind, info->si_addr);
        print_where();
    }
    signal(sig, SIG_DFL);
    raise(sig);
}
static void catch_faults() { /* per OS thread: the handler needs a stack of its own */
    stack_t ss = {};
    ss.ss_size = 65536;
    ss.ss_sp = malloc(ss.ss_size);
    sigaltstack(&ss, nullptr);
    struct sigaction sa = {};
    sa.sa_sigaction = on_fault;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &sa, nullptr);
    sigaction(SIGBUS, &sa, nullptr);
}
#endif

/* ---- fibers */
static void fiber_main();

static fiber *new_fiber(worker *w) {
    char *m =
        static_cast<char *>(mmap(nullptr, STACK_BYTES + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (m == MAP_FAILED || mprotect(m, PAGE, PROT_NONE)) fail("no memory for the stack of fiber %d", w->nall);
    fiber *f = new fiber();
    f->stack = m + PAGE;
    f->stack_bytes = STACK_BYTES;
    /* Staggered tops: equal page offsets would put every fiber's hot frame into the same L1 sets. */
    char *top = f->stack + STACK_BYTES - (w->nall * 7 % 32) * 128;
    void **sp = reinterpret_cast<void **>(top) - 1; /* at entry rsp % 16 must be 8 */
    *sp = nullptr;
    *--sp = reinterpret_cast<void *>(fiber_main);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    f->sp = sp;
    w->all[w->nall++] = f;
    return f;
}

static inline void switch_to(worker *w, fiber *from, fiber *to) {
    w->st.switches++;
    w->cur = to;
#if SIMT_ASAN
    __sanitizer_start_switch_fiber(&from->asan_stack, to->stack, to->stack_bytes);
#endif
    simt_switch(&from->sp, to->sp);
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(from->asan_stack, nullptr, nullptr);
#endif
    threadIdx = from->thread_idx;
}

/* ---- order */
static uint64_t random_u64(worker *w) { /* splitmix64 */
    uint64_t z = (w->rng += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static int random_below(worker *w, int n) { return static_cast<int>(random_u64(w) % static_cast<uint64_t>(n)); }
static int warps_of(const worker *w) { return (w->nthreads + 31) / 32; }

void draw_priorities(worker *w) {
    if (opt.order != ORDER_RAND) return;
    for (int i = 0; i < warps_of(w); i++) w->priority[i] = static_cast<unsigned char>(i);
    for (int i = warps_of(w) - 1; i > 0; i--) {
        int j = random_below(w, i + 1);
        unsigned char t = w->priority[i];
        w->priority[i] = w->priority[j];
        w->priority[j] = t;
    }
}

/* A thread of the first warp in priority order that has one to run, or -1. New priorities after every barrier and now and then. */
static int choose_random(worker *w) {
    if ((random_u64(w) & 255) == 0) draw_priorities(w);
    for (int i = 0; i < warps_of(w); i++) {
        int warp = w->priority[i];
        uint32_t lanes = w->ready_lanes[warp] | w->fresh_lanes[warp];
        if (!lanes) continue;
        for (int skip = random_below(w, __builtin_popcount(lanes)); skip; skip--) lanes &= lanes - 1;
        return warp * 32 + __builtin_ctz(lanes);
    }
    return -1;
}

static fiber *next_fiber(worker *w) { /* the fiber to run now, or null */
    if (opt.order == ORDER_RAND) {
        int t = choose_random(w);
        if (t < 0) return nullptr;
        uint32_t bit = 1u << (t & 31);
        if (w->ready_lanes[t >> 5] & bit) {
            w->ready_lanes[t >> 5] &= ~bit;
            return w->by_tid[t];
        }
        w->forced = t;
    } else {
        if (w->tail != w->head) return w->ready[w->head++ % MAX_THREADS];
        if (w->started == w->nthreads) return nullptr;
    }
    return w->nidle ? w->idle[--w->nidle] : new_fiber(w);
}

void make_ready(worker *w, fiber *f) {
    if (opt.order == ORDER_RAND)
        w->ready_lanes[f->tid >> 5] |= 1u << (f->tid & 31);
    else
        w->ready[w->tail++ % MAX_THREADS] = f;
}

void block_here(worker *w, fiber *f, const char *what, const char *file, int line) {
    f->what = what;
    f->file = file;
    f->line = line;
    fiber *n = next_fiber(w);
    if (!n) fail_deadlock(w);
    if (n != f) switch_to(w, f, n);
    f->what = nullptr;
}

void last_arriver_goes_on(worker *w, fiber *f) { /* at once, except in random order */
    if (opt.order != ORDER_RAND) return;
    make_ready(w, f);
    block_here(w, f, "(ready)", f->file, f->line);
}

/* ---- threads */
bool next_thread() {
    worker *w = self;
    if (w->started == w->nthreads) return false;
    int t = opt.order == ORDER_REV ? w->nthreads - 1 - w->started : w->started;
    if (opt.order == ORDER_RAND) {
        t = w->forced >= 0 ? w->forced : choose_random(w);
        w->forced = -1;
        if (w->ready_lanes[t >> 5] >> (t & 31) & 1) return false; /* a waiting thread comes first */
        w->fresh_lanes[t >> 5] &= ~(1u << (t & 31));
    }
    w->started++;
    fiber *f = w->cur;
    unsigned u = static_cast<unsigned>(t), x = u, y = 0, z = 0, bx = blockDim.x, by = blockDim.y;
    if (by != 1 || blockDim.z != 1) x = u % bx, y = u / bx % by, z = u / (bx * by);
    f->thread_idx.x = threadIdx.x = x; /* member by member: a wider copy right behind would stall on store forwarding */
    f->thread_idx.y = threadIdx.y = y;
    f->thread_idx.z = threadIdx.z = z;
    f->tid = t;
    f->group = 0;
    w->by_tid[t] = f;
    return true;
}

void thread_exit() {
    worker *w = self;
    fiber *f = w->cur;
    int t = f->tid;
    copies_thread_exits(f);
    waits_thread_exits(w, f);
    w->exited[t] = true;
    w->by_tid[t] = nullptr;
    w->done++;
    w->warp[t >> 5].exited |= 1u << (t & 31);
}

static void fiber_main() {
    worker *w = self;
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    fiber *f = w->cur;
    for (;;) {
        w->l->loop(w->l->closure);
        f->what = nullptr;
        w->idle[w->nidle++] = f;
        fiber *n = w->done == w->nthreads ? &w->main : next_fiber(w);
        if (!n) fail_deadlock(w);
        if (n != f) switch_to(w, f, n);
    }
}

/* ---- launches */
static worker *this_worker() {
    if (thread_worker) return thread_worker;
    worker *w = thread_worker = new worker();
    w->arena = static_cast<char *>(mmap(nullptr, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (w->arena == MAP_FAILED) fail("no memory for shared memory");
    check_begin_worker(w);
#if !SIMT_ASAN
    catch_faults();
#endif
    pthread_attr_t attr;
    void *stack;
    pthread_getattr_np(pthread_self(), &attr);
    pthread_attr_getstack(&attr, &stack, &w->main.stack_bytes);
    pthread_attr_destroy(&attr);
    w->main.stack = static_cast<char *>(stack);
    return w;
}

static void begin_block(worker *w, uint64_t index) {
    const dim3 &g = w->l->grid;
    uint64_t rest = index / g.x;
    blockIdx = {static_cast<unsigned>(index % g.x), static_cast<unsigned>(rest % g.y), static_cast<unsigned>(rest / g.y)};
    w->block = index;
    w->rng = (opt.seed * 0x9e3779b97f4a7c15ull + w->launch) * 0xbf58476d1ce4e5b9ull ^ index;
    w->started = w->done = 0;
    w->head = w->tail = 0;
    w->forced = -1;
    memset(w->exited, 0, sizeof w->exited);
    memset(w->by_tid, 0, sizeof w->by_tid);
    for (int i = 0; i < warps_of(w); i++) {
        int lanes = w->nthreads - i * 32;
        w->warp[i].present = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        w->warp[i].arrived = w->warp[i].exited = 0;
        w->ready_lanes[i] = 0;
        w->fresh_lanes[i] = w->warp[i].present;
    }
    draw_priorities(w);
    barriers_begin_block(w);
    check_begin_block(w);
    smem_begin_block(w);
}

/* Which block runs as number i: a permutation of 0..total-1. */
static uint64_t block_at(uint64_t i, uint64_t total, uint64_t stride) {
    if (opt.order == ORDER_REV) return total - 1 - i;
    return opt.order == ORDER_RAND ? i * stride % total : i;
}
static uint64_t coprime_stride(uint64_t total) {
    uint64_t s = opt.seed * 2654435761u % total | 1;
    for (;; s++) {
        uint64_t a = s, b = total;
        while (b) {
            uint64_t r = a % b;
            a = b;
            b = r;
        }
        if (a == 1) return s;
    }
}

static void check_launch(const launch_desc &l) {
    uint64_t threads = static_cast<uint64_t>(l.block.x) * l.block.y * l.block.z;
    if (self) fail("launch of %s: from inside a kernel", l.name);
    if (!l.grid.x || !l.grid.y || !l.grid.z || l.grid.x > 0x7fffffffu || l.grid.y > 65535 || l.grid.z > 65535)
        fail("launch of %s: bad grid size (%u,%u,%u)", l.name, l.grid.x, l.grid.y, l.grid.z);
    if (threads < 1 || threads > MAX_THREADS || l.block.x > 1024 || l.block.y > 1024 || l.block.z > 64)
        fail("launch of %s: bad block size (%u,%u,%u)", l.name, l.block.x, l.block.y, l.block.z);
    if (l.smem > smem_limit(l.key, 0))
        fail("launch of %s: %zu B of dynamic shared memory, allowed are %zu (cudaFuncSetAttribute raises it to at most %zu)", l.name,
             l.smem, smem_limit(l.key, 0), SMEM_OPTIN);
}

void run(const launch_desc &l) {
    static std::atomic<uint64_t> launches{0};
    check_launch(l);
    uint64_t total = static_cast<uint64_t>(l.grid.x) * l.grid.y * l.grid.z, launch = ++launches, stride = coprime_stride(total);
    int nworkers = opt.workers > 0 ? opt.workers : omp_get_max_threads();
    if (static_cast<uint64_t>(nworkers) > total) nworkers = static_cast<int>(total);
    std::atomic<uint64_t> next{0};
#pragma omp parallel num_threads(nworkers) if (nworkers > 1)
    {
        worker *w = this_worker();
        w->l = &l;
        w->launch = launch;
        w->nthreads = static_cast<int>(l.block.x * l.block.y * l.block.z);
        w->st = statistics{};
        blockDim = {l.block.x, l.block.y, l.block.z};
        gridDim = {l.grid.x, l.grid.y, l.grid.z};
        self = w;
        for (uint64_t i; (i = next++) < total;) {
            begin_block(w, block_at(i, total, stride));
            switch_to(w, &w->main, next_fiber(w));
            w->st.blocks++;
            w->st.threads += static_cast<uint64_t>(w->nthreads);
        }
        self = nullptr;
        ASAN_UNPOISON_MEMORY_REGION(w->arena, ARENA_BYTES);
        uint64_t *sum = &stats.switches;
        const uint64_t *mine = &w->st.switches;
        for (size_t k = 0; k < sizeof(statistics) / sizeof *sum; k++) __atomic_fetch_add(sum + k, mine[k], __ATOMIC_RELAXED);
    }
}
} /* namespace simt */
