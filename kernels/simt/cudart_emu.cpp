/* cudart_emu.cpp: the CUDA runtime calls of cuda_types.h, so that host code written for libcudart links here unchanged.
 *
 * Device memory is host memory, filled with NaN, between guards: an inaccessible page on both sides, and up to the allocation's
 * 256-byte (end) or page (start) boundary a byte pattern that cudaFree and cudaDeviceSynchronize compare. Freed memory becomes
 * inaccessible and its addresses are never used again. Under AddressSanitizer its allocator does all this.
 * Copies check that the device side lies within one allocation. Streams and events are empty: every call has finished on return.
 * The device is an sm_80 with 4 multiprocessors, few enough that grid-stride loops turn more than once. */
#include "runtime.h"
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <time.h>

struct CUstream_st {
    int unused;
};
struct CUevent_st {
    double seconds;
    bool recorded;
};

namespace simt {
constexpr unsigned char GUARD = 0xa5;
constexpr int NDEVICES = 1;
struct region {
    size_t bytes;
    char *map;
    size_t map_bytes;
    global_cell *cells;
};
static std::map<uintptr_t, region> regions;   /* by address */
static std::map<const void *, size_t> limits; /* kernels with a raised limit of dynamic shared memory */
static std::mutex lock;
unsigned allocation_epoch = 1;
static __thread cudaError_t last_error;

static cudaError_t result(cudaError_t e) {
    if (e != cudaSuccess) last_error = e;
    return e;
}

bool find_allocation(const void *a, allocation *out) {
    std::lock_guard<std::mutex> hold(lock);
    auto it = regions.upper_bound(reinterpret_cast<uintptr_t>(a));
    if (it == regions.begin()) return false;
    --it;
    *out = {reinterpret_cast<char *>(it->first), it->second.bytes, it->second.cells};
    return true;
}

size_t smem_limit(const void *kernel, size_t fixed) {
    std::lock_guard<std::mutex> hold(lock);
    auto it = limits.find(kernel);
    return it == limits.end() ? SMEM_DEFAULT - fixed : it->second;
}

static void check_guards(uintptr_t address, const region &r) {
    const char *p = reinterpret_cast<const char *>(address), *end = r.map + r.map_bytes - PAGE;
    if (SIMT_ASAN) return;
    for (const char *g = r.map + PAGE; g < p; g++)
        if (static_cast<unsigned char>(*g) != GUARD) fail("guard %zd B before an allocation of %zu B was overwritten", p - g, r.bytes);
    for (const char *g = p + r.bytes; g < end; g++)
        if (static_cast<unsigned char>(*g) != GUARD)
            fail("guard %zd B past the end of an allocation of %zu B was overwritten", g - p - static_cast<ssize_t>(r.bytes), r.bytes);
}

static bool map_region(size_t bytes, region *r, char **p) {
    r->bytes = bytes;
#if SIMT_ASAN
    void *m = nullptr;
    if (posix_memalign(&m, 256, bytes ? bytes : 1)) return false;
    *p = r->map = static_cast<char *>(m);
#else
    size_t body = (bytes + 255) / 256 * 256, usable = (body + PAGE - 1) / PAGE * PAGE;
    if (body < bytes || usable < body) return false;
    r->map_bytes = usable + 2 * PAGE;
    void *m = mmap(nullptr, r->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) return false;
    r->map = static_cast<char *>(m);
    if (mprotect(r->map + PAGE, usable, PROT_READ | PROT_WRITE)) return false;
    *p = r->map + PAGE + usable - body;
    memset(r->map + PAGE, GUARD, static_cast<size_t>(*p - r->map) - PAGE);
    memset(*p + bytes, GUARD, body - bytes);
#endif
    memset(*p, POISON, bytes);
    return true;
}

static cudaError_t allocate(void **out, size_t bytes) {
    region r = {};
    char *p = nullptr;
    if (!out) return cudaErrorInvalidValue;
    *out = nullptr;
    if (!bytes) return cudaSuccess;
    if (!map_region(bytes, &r, &p)) return cudaErrorMemoryAllocation;
    if (check_on) {
        void *m = mmap(nullptr, (bytes / 2 + 1) * sizeof(global_cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
        if (m == MAP_FAILED) return cudaErrorMemoryAllocation;
        r.cells = static_cast<global_cell *>(m);
    }
    std::lock_guard<std::mutex> hold(lock);
    regions[reinterpret_cast<uintptr_t>(p)] = r;
    allocation_epoch++;
    *out = p;
    return cudaSuccess;
}

static cudaError_t release(void *p) {
    if (!p) return cudaSuccess;
    std::lock_guard<std::mutex> hold(lock);
    auto it = regions.find(reinterpret_cast<uintptr_t>(p));
    if (it == regions.end()) return cudaErrorInvalidValue; /* not from cudaMalloc, or freed twice */
    region r = it->second;
    check_guards(it->first, r);
    regions.erase(it);
    allocation_epoch++;
    if (r.cells) munmap(r.cells, (r.bytes / 2 + 1) * sizeof(global_cell));
#if SIMT_ASAN
    free(p);
#else
    mmap(r.map, r.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
#endif
    return cudaSuccess;
}

static bool on_device(const void *p, size_t bytes) {
    allocation a;
    const char *c = static_cast<const char *>(p);
    return find_allocation(p, &a) && c + bytes <= a.p + a.bytes;
}

static cudaError_t copy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) {
    bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!bytes) return cudaSuccess;
    if ((to && !on_device(dst, bytes)) || (from && !on_device(src, bytes))) return cudaErrorInvalidValue;
    memmove(dst, src, bytes);
    return cudaSuccess;
}

static double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

static const struct {
    cudaError_t code;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
};
} /* namespace simt */

using simt::result;
extern "C" {
/* ---- memory */
cudaError_t cudaMalloc(void **p, size_t bytes) { return result(simt::allocate(p, bytes)); }
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t) { return cudaMalloc(p, bytes); }
cudaError_t cudaFree(void *p) { return result(simt::release(p)); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaMallocHost(void **p, size_t bytes) {
    return result(posix_memalign(p, 4096, bytes ? bytes : 1) ? cudaErrorMemoryAllocation : cudaSuccess);
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) { return cudaMallocHost(p, bytes); }
cudaError_t cudaFreeHost(void *p) {
    free(p);
    return cudaSuccess;
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) { return result(p && bytes ? cudaSuccess : cudaErrorInvalidValue); }
cudaError_t cudaHostUnregister(void *p) { return result(p ? cudaSuccess : cudaErrorInvalidValue); }
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) { return result(simt::copy(dst, src, bytes, kind)); }
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(dst, src, bytes, kind);
}
cudaError_t cudaMemcpy2D(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height, cudaMemcpyKind kind) {
    if (width > dpitch || width > spitch) return result(cudaErrorInvalidValue);
    for (size_t y = 0; y < height; y++) {
        cudaError_t e = simt::copy(static_cast<char *>(dst) + y * dpitch, static_cast<const char *>(src) + y * spitch, width, kind);
        if (e != cudaSuccess) return result(e);
    }
    return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t) {
    return cudaMemcpy2D(dst, dpitch, src, spitch, width, height, kind);
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    if (bytes && !simt::on_device(p, bytes)) return result(cudaErrorInvalidValue);
    if (bytes) memset(p, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t) { return cudaMemset(p, value, bytes); }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    size_t used = 0;
    std::lock_guard<std::mutex> hold(simt::lock);
    for (auto &r : simt::regions) used += r.second.bytes;
    *total_bytes = static_cast<size_t>(8) << 30;
    *free_bytes = used < *total_bytes ? *total_bytes - used : 0;
    return cudaSuccess;
}

/* ---- streams and events */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = new CUstream_st();
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream) return result(cudaErrorInvalidResourceHandle);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned) {
    return result(event ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new CUevent_st();
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    if (!event) return result(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    if (!event) return result(cudaErrorInvalidResourceHandle);
    event->seconds = simt::now();
    event->recorded = true;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return result(event ? cudaSuccess : cudaErrorInvalidResourceHandle); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return result(event ? cudaSuccess : cudaErrorInvalidResourceHandle); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    if (!start || !end || !start->recorded || !end->recorded) return result(cudaErrorInvalidResourceHandle);
    *ms = static_cast<float>((end->seconds - start->seconds) * 1e3);
    return cudaSuccess;
}

/* ---- errors */
cudaError_t cudaPeekAtLastError(void) { return simt::last_error; }
cudaError_t cudaGetLastError(void) {
    cudaError_t e = simt::last_error;
    simt::last_error = cudaSuccess;
    return e;
}
const char *cudaGetErrorString(cudaError_t error) {
    for (auto &e : simt::errors)
        if (e.code == error) return e.text;
    return "unrecognized error code";
}
const char *cudaGetErrorName(cudaError_t error) {
    for (auto &e : simt::errors)
        if (e.code == error) return e.name;
    return "unrecognized error code";
}

/* ---- device */
cudaError_t cudaDeviceSynchronize(void) {
    std::lock_guard<std::mutex> hold(simt::lock);
    for (auto &r : simt::regions) simt::check_guards(r.first, r.second);
    return cudaSuccess;
}
cudaError_t cudaDeviceReset(void) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int *count) {
    *count = simt::NDEVICES;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return result(device >= 0 && device < simt::NDEVICES ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device) {
    if (device < 0 || device >= simt::NDEVICES) return result(cudaErrorInvalidDevice);
    memset(prop, 0, sizeof *prop);
    snprintf(prop->name, sizeof prop->name, "stagediff SIMT (CPU)");
    prop->totalGlobalMem = static_cast<size_t>(8) << 30;
    prop->sharedMemPerBlock = simt::SMEM_DEFAULT;
    prop->sharedMemPerBlockOptin = simt::SMEM_OPTIN;
    prop->sharedMemPerMultiprocessor = simt::SMEM_OPTIN + 1024;
    prop->regsPerBlock = 65536;
    prop->warpSize = 32;
    prop->maxThreadsPerBlock = simt::MAX_THREADS;
    prop->major = 8;
    prop->minor = 0;
    prop->multiProcessorCount = 4;
    prop->l2CacheSize = 1 << 20;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device) {
    struct cudaDeviceProp prop;
    cudaError_t e = cudaGetDeviceProperties(&prop, device);
    if (e != cudaSuccess) return e;
    switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = prop.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = static_cast<int>(prop.sharedMemPerBlock);
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(prop.sharedMemPerBlockOptin);
        break;
    case cudaDevAttrWarpSize:
        *value = prop.warpSize;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = prop.multiProcessorCount;
        break;
    case cudaDevAttrL2CacheSize:
        *value = prop.l2CacheSize;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = prop.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = prop.minor;
        break;
    default:
        return result(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attr, int value) {
    if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || static_cast<size_t>(value) > simt::SMEM_OPTIN) return result(cudaErrorInvalidValue);
    std::lock_guard<std::mutex> hold(simt::lock);
    simt::limits[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
}
}
