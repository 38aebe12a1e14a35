/* device.c - the cpu "device": host memory, OpenMP threads, everything synchronous. */
#include "kernels/device.h"

#include <malloc.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/device_internal.h"
#include "kernels/variant.h"

/* From HUGE_BYTES on, tensors lie on 2 MiB pages where the system gives them: rows fetched by index otherwise miss the
 * TLB each time (decode 18 % faster, Adam 10 %; bench/LOG.md). */
enum { ALIGNMENT = 256, HUGE_BYTES = 2 << 20 };

struct device *device_open(int index, int threads, char *why, size_t why_bytes) {
    if (index != 0 || threads < 0) {
        snprintf(why, why_bytes, "the cpu build has one device, 0, with 0 (all) or more threads; %d with %d was asked for", index, threads);
        return NULL;
    }
    struct device *dev = calloc(1, sizeof *dev);
    if (!dev) {
        snprintf(why, why_bytes, "no memory for a device");
        return NULL;
    }
    mallopt(M_MMAP_THRESHOLD, 4 << 20);   /* fixed: large blocks go back to the system when they are freed, */
    mallopt(M_TRIM_THRESHOLD, 256 << 20); /* smaller ones stay: a sample's activations are taken and freed by every pass */
    dev->threads = threads > 0 ? threads : omp_get_max_threads();
    if (threads > 0) omp_set_num_threads(threads);
    snprintf(dev->name, sizeof dev->name, "cpu, %d thread%s", dev->threads, dev->threads == 1 ? "" : "s");
    return dev;
}

void device_close(struct device *dev) { free(dev); }

const char *device_name(const struct device *dev) { return dev->name; }

/* MemAvailable: free pages and those that the system would give up (caches). */
size_t device_memory_free(const struct device *dev) {
    (void)dev;
    char line[128];
    size_t kilobytes = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && !kilobytes && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %zu kB", &kilobytes) != 1) kilobytes = 0;
    if (f) fclose(f);
    return kilobytes * 1024;
}

void *device_alloc(struct device *dev, size_t bytes) {
    (void)dev;
    const size_t alignment = bytes >= HUGE_BYTES ? HUGE_BYTES : ALIGNMENT;
    if (bytes > SIZE_MAX - alignment) return NULL;
    size_t whole = (bytes + alignment - 1) / alignment * alignment;
    void *p = aligned_alloc(alignment, whole ? whole : alignment);
    if (p && alignment == HUGE_BYTES) madvise(p, whole, MADV_HUGEPAGE); /* advice: it may fail */
#ifdef STAGEDIFF_POISON
    if (p) memset(p, 0xFF, whole); /* NaN */
#endif
    return p;
}

void device_free(struct device *dev, void *p) {
    (void)dev;
    free(p);
}

void device_upload(struct device *dev, void *dst, const void *host_src, size_t bytes) { device_copy(dev, dst, host_src, bytes); }

void device_download(struct device *dev, void *host_dst, const void *src, size_t bytes) { device_copy(dev, host_dst, src, bytes); }

void device_copy(struct device *dev, void *dst, const void *src, size_t bytes) {
    (void)dev;
    if (bytes) memcpy(dst, src, bytes);
}

void device_zero(struct device *dev, void *dst, size_t bytes) {
    (void)dev;
    if (bytes) memset(dst, 0, bytes);
}

void device_sync(struct device *dev) { (void)dev; }

void device_force_variant(struct device *dev, int index) { (void)dev, (void)index; }

const char *attention_variant(int index) {
    (void)index;
    return NULL;
}

const char *attention_backward_variant(int index) {
    (void)index;
    return NULL;
}
