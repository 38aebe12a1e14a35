/* relative_rms.h - how far two harvests are apart, for the end-to-end test and the GPU bundle. */
#ifndef TESTS_RELATIVE_RMS_H
#define TESTS_RELATIVE_RMS_H
#include "host/tensors.h"
/* sqrt(sum (a-b)^2 / sum a^2) over all tensors of a whose name ends in "/point"; -1 when b lacks one or has another size, or when
 * a has none or only zeros. */
double relative_rms(const struct tensors *a, const struct tensors *b, const char *point);
#endif
