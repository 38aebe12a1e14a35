/* compare.c - relative RMS difference of two harvests, by point: sqrt(sum (a-b)^2 / sum a^2) over all samples, one JSON line
 * each, beside the bf16 floor (transformers' own bf16 run) where the golden file knows the point.
 * usage: compare CPU.safetensors CUDA.safetensors FLOORS.json       status 1 when a point is over 1.25 times its floor */
#include "tests/e2e/relative_rms.h"
#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { POINTS = 256 };

int main(int argc, char **argv) {
    const char *points[POINTS];
    struct tensors *a = NULL, *b = NULL;
    struct error err;
    int n = 0, over = 0;
    if (argc != 4) return fprintf(stderr, "usage: compare CPU.safetensors CUDA.safetensors FLOORS.json\n"), 2;
    if (tensors_open(&a, argv[1], &err) || tensors_open(&b, argv[2], &err)) return fprintf(stderr, "compare: %s\n", err.text), 2;
    for (int i = 0; i < tensors_count(a) && n < POINTS; i++) {
        const struct tensor *x = tensors_at(a, i);
        const char *name = strchr(x->name, '/');
        int p = 0;
        if (!name || x->dtype != DTYPE_F32) continue;
        while (p < n && strcmp(points[p], name + 1) != 0) p++;
        if (p == n) points[n++] = name + 1;
    }
    json_t *floors = json_object_get(json_load_file(argv[3], 0, NULL), "floors");
    for (int p = 0; p < n; p++) {
        double rms = relative_rms(a, b, points[p]), floor = json_number_value(json_object_get(floors, points[p]));
        printf("{\"point\": \"%s\", \"relative_rms\": %.6f, \"bf16_floor\": %.6f}\n", points[p], rms, floor);
        bool wrong = rms < 0 || (floor > 0 && !(rms <= 1.25 * floor));
        if (wrong) over++, printf("error: %s: %.6f, limit 1.25 x %.6f\n", points[p], rms, floor);
    }
    tensors_close(a);
    tensors_close(b);
    return n == 0 || over > 0;
}
