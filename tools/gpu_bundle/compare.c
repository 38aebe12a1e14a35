/* compare.c - relative RMS difference of two harvests, by point: sqrt(sum (a-b)^2 / sum a^2) over all samples, one JSON line
 * each, beside the bf16 floor (transformers' own bf16 run) where the golden file knows the point.
 * usage: compare CPU.safetensors CUDA.safetensors FLOORS.json       status 1 when a point is over 1.25 times its floor */
#include "host/safetensors.h"
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct point {
    char name[128];
    double error, scale;
};

static void add(struct point *p, const struct tensor *x, const struct tensor *y) {
    float *u = malloc(x->count * sizeof *u), *v = malloc(x->count * sizeof *v);
    if (!u || !v) exit(2);
    tensor_to_f32(x, 0, x->count, u);
    tensor_to_f32(y, 0, y->count, v);
    for (size_t k = 0; k < x->count; k++) {
        double d = (double)u[k] - (double)v[k];
        p->error += d * d;
        p->scale += (double)u[k] * (double)u[k];
    }
    free(u);
    free(v);
}

int main(int argc, char **argv) {
    static struct point points[256];
    struct safetensors *a = NULL, *b = NULL;
    struct error err;
    int n = 0, over = 0;
    if (argc != 4) return fprintf(stderr, "usage: compare CPU.safetensors CUDA.safetensors FLOORS.json\n"), 2;
    if (safetensors_open(&a, argv[1], &err) || safetensors_open(&b, argv[2], &err)) return fprintf(stderr, "compare: %s\n", err.text), 2;
    for (int i = 0; i < safetensors_count(a); i++) {
        const struct tensor *x = safetensors_at(a, i), *y = safetensors_find(b, x->name);
        const char *name = strchr(x->name, '/');
        if (!name || x->dtype != DTYPE_F32 || !y || y->count != x->count) continue;
        int p = 0;
        while (p < n && strcmp(points[p].name, name + 1) != 0) p++;
        if (p == n) {
            if (n == 256) break;
            snprintf(points[n++].name, sizeof points[0].name, "%s", name + 1);
        }
        add(&points[p], x, y);
    }
    json_t *floors = json_object_get(json_load_file(argv[3], 0, NULL), "floors");
    for (int p = 0; p < n; p++) {
        double rms = sqrt(points[p].error / points[p].scale), floor = json_number_value(json_object_get(floors, points[p].name));
        printf("{\"point\": \"%s\", \"relative_rms\": %.6f, \"bf16_floor\": %.6f}\n", points[p].name, rms, floor);
        if (!(rms <= 1.25 * floor) && floor > 0) over++, printf("error: %s: %.6f is over 1.25 x %.6f\n", points[p].name, rms, floor);
    }
    safetensors_close(a);
    safetensors_close(b);
    return n == 0 || over > 0;
}
