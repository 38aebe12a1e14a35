/* cuda_runtime_api.h of a simulated build, found through -Ikernels/simt/include: see cuda_types.h. */
#include "../cuda_types.h"
