/* runtime.h: what the files of the SIMT runtime share; kernels and host code never include it.
 *
 *   simt.cpp        fibers, order of execution, launches, error reports
 *   collective.cpp  barriers, warp collectives, shared memory, atomics
 *   ptx_emu.cpp     bodies of the PTX instructions
 *   check.cpp       races, uninitialised and out-of-bounds accesses (only with kernels compiled for it)
 *   cudart_emu.cpp  the CUDA runtime calls that host code needs
 *
 * A worker is an OS thread that runs one block at a time; it owns the block's shared memory and one fiber per started thread. */
#ifndef SIMT_RUNTIME_H
#define SIMT_RUNTIME_H
#include "simt.h"
#include <vector>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define SIMT_ASAN                         0
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace simt {
constexpr int MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32, MAX_BARRIERS = 16;
constexpr size_t PAGE = 4096;
constexpr size_t STACK_BYTES = SIMT_ASAN ? 256 * 1024 : 64 * 1024;
/* The shared memory of a block is an arena; an address in it is an offset. Dynamic shared memory starts at DYN_OFFSET, which is
 * aligned to 128 bytes and to no more, so that code which needs more than DYN_SMEM promises fails here too. */
constexpr size_t ARENA_BYTES = 256 * 1024, DYN_OFFSET = 1024 + 128, RED_ZONE = 32;
constexpr size_t SMEM_DEFAULT = 48 * 1024, SMEM_OPTIN = 163 * 1024; /* dynamic bytes per block of sm_80: without and with opt-in */
constexpr unsigned char POISON = 0xff;                              /* NaN in f32, bf16 and f64; -1 in integers */

struct async_copy { /* cp.async in flight: the target holds NaN until the issuing thread waits for the group */
    char *dst;
    int group;
    unsigned char data[16];
};
struct fiber {
    void *sp;    /* saved stack pointer while not running */
    char *stack; /* lowest address, above a guard page */
    size_t stack_bytes;
    void *asan_stack;
    int tid; /* thread of the block that it runs now */
    uint3 thread_idx;
    const char *what, *file; /* what it waits for, where; what is null while it runs */
    int line;
    std::vector<async_copy> copies;
    int group; /* number of the cp.async group being filled */
};
struct warp_state {
    uint32_t present, exited, arrived; /* lanes; arrived: at a collective that is not complete */
    uint32_t mask[32];
    void *arg[32];
};
struct barrier {
    int expected, arrived; /* expected 0: the whole block */
    int sum, result;
    const char *file; /* of the first to arrive */
    int line, nwaiters;
    fiber *waiters[MAX_THREADS];
    uint32_t clock[MAX_WARPS]; /* checker: what a thread that passes has seen of each warp */
};
struct shared_range {
    void *tag;
    const char *name;
    size_t off, bytes;
};
struct shadow_cell; /* of check.cpp */

struct worker {
    const launch_desc *l;
    uint64_t launch, block; /* number of the launch; linear index of the block */
    int nthreads, started, done;
    fiber main, *cur;
    fiber *all[MAX_THREADS + 1], *idle[MAX_THREADS + 1], *by_tid[MAX_THREADS];
    int nall, nidle;
    bool exited[MAX_THREADS];
    fiber *ready[MAX_THREADS]; /* fwd, rev: ring of fibers that can run */
    unsigned head, tail;
    uint32_t ready_lanes[MAX_WARPS], fresh_lanes[MAX_WARPS]; /* rand: lanes that can run, lanes not started yet */
    unsigned char priority[MAX_WARPS];                       /* rand: warps in running order */
    int forced;                                              /* rand: the thread to start next, or -1 */
    uint64_t rng;
    warp_state warp[MAX_WARPS];
    barrier bar[MAX_BARRIERS];
    char *arena;
    size_t arena_top, dyn_bytes;
    shared_range var[64];
    int nvars;
    shadow_cell *cells;
    uint32_t clock[MAX_WARPS][MAX_WARPS]; /* checker: clock[a][b]: what warp a has seen of warp b */
    statistics st;
};
extern __thread worker *self; /* non-null only while a kernel runs on this OS thread */

/* simt.cpp */
void block_here(worker *w, fiber *f, const char *what, const char *file, int line); /* wait until made ready */
void make_ready(worker *w, fiber *f);
void last_arriver_goes_on(worker *w, fiber *f);
void draw_priorities(worker *w);
void report_waiters(worker *w, char *buf, size_t size); /* threads grouped by the place where they wait */

/* collective.cpp */
void barriers_begin_block(worker *w);
void waits_thread_exits(worker *w, fiber *f); /* fails when others wait for it */
void smem_begin_block(worker *w);
uint32_t smem_offset(const void *p); /* fails when p is not in the block's shared memory */
void describe_smem(worker *w, size_t off, char *buf, size_t size);

/* ptx_emu.cpp */
void copies_thread_exits(fiber *f);

/* check.cpp: does nothing unless check_on, that is when some object file was compiled with -fsanitize=thread */
extern bool check_on;
enum access_kind { ACCESS_READ, ACCESS_WRITE, ACCESS_ATOMIC };
void check_begin_worker(worker *w);
void check_begin_block(worker *w);
void check_smem_allocated(worker *w, size_t off, size_t bytes);
void check_smem_closed(worker *w, size_t off, size_t bytes);
void check_syncwarp(worker *w, int warp);
void check_barrier_arrive(worker *w, barrier *b);
void check_barrier_complete(worker *w, barrier *b);
void check_in_flight(worker *w, size_t off, size_t bytes, int tid); /* tid -1: landed */
/* An access that the runtime makes for a lane of the running warp at the place the running fiber is at. */
void check_access(const void *p, size_t bytes, access_kind kind, int lane);
/* An access whose instruction address is known; atomics use it. */
void check_access_pc(const void *p, size_t bytes, access_kind kind, const void *pc);

/* cudart_emu.cpp */
struct global_cell {
    uint64_t writer, reader;
};
struct allocation {
    char *p;
    size_t bytes;
    global_cell *cells;
};
extern unsigned allocation_epoch; /* changes with every cudaMalloc and cudaFree */
/* The device allocation at or below address a; false: none. */
bool find_allocation(const void *a, allocation *out);
size_t smem_limit(const void *kernel,
                  size_t fixed); /* dynamic bytes allowed beside static ones: as cudaFuncSetAttribute says, else what is left */
} /* namespace simt */
#endif
