/* device_internal.h - what struct device holds; for device.c/.cu and the ops only, never for host code. */
#ifndef KERNELS_DEVICE_INTERNAL_H
#define KERNELS_DEVICE_INTERNAL_H
#include "host/check.h"
#include "kernels/device.h"

#ifdef __cplusplus
/* A failed runtime call is our bug or a broken device: say which call, stop. */
#define CUDA_CHECK(call)                                                                                                                   \
    do {                                                                                                                                   \
        cudaError_t error_ = (call);                                                                                                       \
        CHECK(error_ == cudaSuccess, "%s: %s", #call, cudaGetErrorString(error_));                                                         \
    } while (0)

/* A named range in profiles round everything an op launches: OP_RANGE(); first in its body. Build with -DSTAGEDIFF_NVTX. */
#if defined(__CUDACC__) && defined(STAGEDIFF_NVTX)
#include <nvtx3/nvToolsExt.h>
struct op_range {
    explicit op_range(const char *name) { nvtxRangePushA(name); }
    ~op_range() { nvtxRangePop(); }
};
#define OP_RANGE() struct op_range op_range_(__func__)
#else
#define OP_RANGE() ((void)0)
#endif

enum { DEVICE_WORKSPACE_BYTES = 32 << 20 };
struct device {
    char name[256];
    int index, multiprocessors;
    cudaStream_t stream;
    void *blas;           /* cublasLtHandle_t, made by gemm.cu at first use; freed through blas_free */
    void *blas_workspace; /* DEVICE_WORKSPACE_BYTES on the device, owned */
    void (*blas_free)(struct device *dev);
    int variant; /* -1: the op's dispatch decides; else this row of its variant table (tests, bench) */
};
#else
struct device {
    char name[64];
    int threads;
};
#endif
#endif
