/* cuda_runtime_api.h of a simulated build: see kernels/simt/cuda_types.h. Found through -Ikernels/simt/include, which only such builds use. */
#include "../cuda_types.h"
