// device.cu - a CUDA device: one stream, stream-ordered copies. With kernels/simt/ the same calls run on the CPU ("sim").
#include "kernels/simt/simt.h"
#include "kernels/device_internal.h"
#include "kernels/variant.h"
#include <cstring>

static int fail(char *why, size_t why_bytes, const char *what, cudaError_t error) {
    snprintf(why, why_bytes, "%s: %s", what, cudaGetErrorString(error));
    return 0;
}

static int start(struct device *dev, int index, char *why, size_t why_bytes) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return fail(why, why_bytes, "no CUDA device can be used", error);
    if (index < 0 || index >= count) {
        snprintf(why, why_bytes, "device %d was asked for, this machine has %d", index, count);
        return 0;
    }
    error = cudaSetDevice(index);
    if (error != cudaSuccess) return fail(why, why_bytes, "the device cannot be selected", error);
    dev->index = index;
    dev->variant = -1;
#ifdef __CUDACC__
    cudaDeviceProp prop;
    error = cudaGetDeviceProperties(&prop, index);
    if (error != cudaSuccess) return fail(why, why_bytes, "the device's properties cannot be read", error);
    if (prop.major < 8) {
        snprintf(why, why_bytes, "%s has compute capability %d.%d; 8.0 or newer is needed", prop.name, prop.major, prop.minor);
        return 0;
    }
    snprintf(dev->name, sizeof dev->name, "%s", prop.name);
    dev->multiprocessors = prop.multiProcessorCount;
    error = cudaStreamCreateWithFlags(&dev->stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) return fail(why, why_bytes, "no stream could be made", error);
#else
    snprintf(dev->name, sizeof dev->name, "sim");
    dev->multiprocessors = 2;
#endif
    return 1;
}

struct device *device_open(int index, int threads, char *why, size_t why_bytes) {
    (void)threads;
    struct device *dev = static_cast<struct device *>(calloc(1, sizeof *dev));
    if (!dev) {
        snprintf(why, why_bytes, "no memory for a device");
        return nullptr;
    }
    if (!start(dev, index, why, why_bytes)) {
        free(dev);
        return nullptr;
    }
    return dev;
}

void device_close(struct device *dev) {
    if (!dev) return;
    if (dev->blas_free) dev->blas_free(dev);
    if (dev->blas_workspace) CUDA_CHECK(cudaFree(dev->blas_workspace));
#ifdef __CUDACC__
    CUDA_CHECK(cudaStreamDestroy(dev->stream));
#endif
    free(dev);
}

const char *device_name(const struct device *dev) { return dev->name; }

size_t device_memory_free(const struct device *dev) {
    (void)dev;
    size_t left = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&left, &total));
    return left;
}

void *device_alloc(struct device *dev, size_t bytes) {
    (void)dev;
    void *p = nullptr;
    cudaError_t error = cudaMalloc(&p, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError(); // the caller reports it; not sticky
        return nullptr;
    }
    CUDA_CHECK(error);
#ifdef STAGEDIFF_POISON
    CUDA_CHECK(cudaMemsetAsync(p, 0xFF, bytes ? bytes : 1, dev->stream)); // NaN
#endif
    return p;
}

void device_free(struct device *dev, void *p) {
    (void)dev;
    if (p) CUDA_CHECK(cudaFree(p));
}

// Pageable host memory: the runtime has read the source when the call returns.
void device_upload(struct device *dev, void *dst, const void *host_src, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemcpyAsync(dst, host_src, bytes, cudaMemcpyHostToDevice, dev->stream));
}

void device_download(struct device *dev, void *host_dst, const void *src, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemcpyAsync(host_dst, src, bytes, cudaMemcpyDeviceToHost, dev->stream));
    CUDA_CHECK(cudaStreamSynchronize(dev->stream));
}

void device_copy(struct device *dev, void *dst, const void *src, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, dev->stream));
}

void device_zero(struct device *dev, void *dst, size_t bytes) {
    if (bytes) CUDA_CHECK(cudaMemsetAsync(dst, 0, bytes, dev->stream));
}

void device_sync(struct device *dev) { CUDA_CHECK(cudaStreamSynchronize(dev->stream)); }

void device_force_variant(struct device *dev, int index) { dev->variant = index; }
