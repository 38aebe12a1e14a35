/* embed.c - see embed.h. */
#include "kernels/embed.h"

#include "host/check.h"
#include "kernels/cpu.h"

void OP(embed_forward)(struct device *dev, act_t *x, const int *source, const act_t *table, const act_t *image_rows, int N, int C) {
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)C > CPU_PARALLEL_MIN)
    for (int n = 0; n < N; n++) {
        int s = source[n];
        CHECK(s >= 0 || image_rows, "source[%d]=%d without image rows", n, s);
        const act_t *row = s >= 0 ? table + cpu_offset(s, C) : image_rows + cpu_offset(-1 - s, C);
        memcpy(x + cpu_offset(n, C), row, (size_t)C * sizeof(act_t));
    }
}

void OP(embed_backward)(struct device *dev, real_t *dtable, real_t *dimage_rows, const int *source, const act_t *dx, int N, int C) {
    enum { COLUMNS = 64 };
    (void)dev;
#pragma omp parallel for schedule(static) if ((size_t)N * (size_t)C > CPU_PARALLEL_MIN)
    for (int first = 0; first < C; first += COLUMNS)
        for (int n = 0; n < N; n++) {
            const int s = source[n], last = C - first < COLUMNS ? C : first + COLUMNS;
            if (!(s >= 0 ? dtable : dimage_rows)) continue;
            real_t *to = s >= 0 ? dtable + cpu_offset(s, C) : dimage_rows + cpu_offset(-1 - s, C);
            for (int c = first; c < last; c++) to[c] += dx[cpu_offset(n, C) + (size_t)c];
        }
}

void OP(patch_extract)(struct device *dev, act_t *rows, const real_t *pixels, int B, int S, int P) {
    (void)dev;
    CHECK(P > 0 && S % P == 0, "S=%d P=%d", S, P);
    int side = S / P, width = 3 * P * P;
#pragma omp parallel for schedule(static) collapse(2)
    for (int b = 0; b < B; b++)
        for (int patch = 0; patch < side * side; patch++) {
            int i = patch / side, j = patch % side;
            act_t *row = rows + cpu_offset(b * side * side + patch, width);
            for (int c = 0; c < 3; c++)
                for (int u = 0; u < P; u++) {
                    const real_t *line =
                        pixels + ((size_t)(b * 3 + c) * (size_t)S + (size_t)(i * P + u)) * (size_t)S + (size_t)j * (size_t)P;
                    for (int v = 0; v < P; v++) row[(c * P + u) * P + v] = (act_t)line[v];
                }
        }
}

void OP(vision_embed_forward)(struct device *dev, act_t *x, const act_t *patches, const act_t *class_row, const act_t *position, int B,
                              int n, int C) {
    (void)dev;
#pragma omp parallel for schedule(static) collapse(2)
    for (int b = 0; b < B; b++)
        for (int i = 0; i <= n; i++) {
            const act_t *from = i ? patches + ((size_t)b * (size_t)n + (size_t)(i - 1)) * (size_t)C : class_row;
            const act_t *at = position + cpu_offset(i, C);
            act_t *to = x + ((size_t)b * (size_t)(n + 1) + (size_t)i) * (size_t)C;
            for (int c = 0; c < C; c++) to[c] = from[c] + at[c];
        }
}
