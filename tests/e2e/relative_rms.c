/* relative_rms.c - see relative_rms.h. */
#include "tests/e2e/relative_rms.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

double relative_rms(const struct tensors *a, const struct tensors *b, const char *point) {
    double error = 0, scale = 0;
    for (int i = 0; i < tensors_count(a); i++) {
        const struct tensor *x = tensors_at(a, i), *y;
        const char *slash = strchr(x->name, '/');
        if (slash == NULL || strcmp(slash + 1, point) != 0) continue;
        y = tensors_find(b, x->name);
        if (y == NULL || y->count != x->count) return -1;
        float *u = memory_take(x->count, sizeof *u), *v = memory_take(x->count, sizeof *v);
        tensor_to_f32(x, 0, x->count, u);
        tensor_to_f32(y, 0, y->count, v);
        for (size_t k = 0; k < x->count; k++) {
            error += ((double)u[k] - (double)v[k]) * ((double)u[k] - (double)v[k]);
            scale += (double)u[k] * (double)u[k];
        }
        free(u);
        free(v);
    }
    return scale > 0 ? sqrt(error / scale) : -1;
}
