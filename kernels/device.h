/* device.h - one device: its memory, its stream. Host code knows no device type; linking device.c (cpu) or
 * device.cu (cuda, sim) decides. Launches and copies are ordered on the device's one stream; a download returns
 * when its bytes are here. */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H
#include "kernels/op.h"
EXTERN_C_BEGIN

/* Opens device `index` (cpu: 0) with `threads` worker threads (cpu; 0: all). NULL with one sentence in `why`. */
struct device *device_open(int index, int threads, char *why, size_t why_bytes);
void device_close(struct device *dev); /* NULL is fine */

const char *device_name(const struct device *dev);   /* "cpu, 2 threads", "NVIDIA H100 80GB HBM3", "sim" */
size_t device_memory_free(const struct device *dev); /* bytes */

/* Device memory, 256-byte aligned. NULL when there is not enough (the caller reports it as the world's fault).
 * Contents undefined; debug builds fill it with NaN. device_free(NULL) is fine. */
void *device_alloc(struct device *dev, size_t bytes);
void device_free(struct device *dev, void *p);

void device_upload(struct device *dev, void *dst, const void *host_src, size_t bytes);   /* src may be reused on return */
void device_download(struct device *dev, void *host_dst, const void *src, size_t bytes); /* waits */
void device_copy(struct device *dev, void *dst, const void *src, size_t bytes);          /* device to device */
void device_zero(struct device *dev, void *dst, size_t bytes);
void device_sync(struct device *dev);

EXTERN_C_END
#endif
