/* weights.c - placing the weights of a checkpoint on the device (weights.h). */
#include "models/weights.h"
#include "host/error.h"
#include "kernels/activation.h"
#include "host/check.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { WEIGHTS_CHUNK = 1 << 20 };

/* Is there a tensor whose name starts with prefix + mark? */
static bool any(const struct tensors *st, const char *prefix, const char *mark) {
    size_t p = strlen(prefix), m = strlen(mark);
    for (int i = 0; i < tensors_count(st); i++) {
        const char *name = tensors_at(st, i)->name;
        if (!strncmp(name, prefix, p) && !strncmp(name + p, mark, m)) return true;
    }
    return false;
}

static const char *find_prefix(const struct tensors *st, const char *const *prefixes, const char *const *marks) {
    for (const char *const *p = prefixes; *p; p++)
        for (const char *const *m = marks; *m; m++)
            if (any(st, *p, *m)) return *p;
    return NULL;
}

void weight_names_find(struct weight_names *names, const struct tensors *st) {
    static const char *const llm[] = {"model.", "language_model.model.", "model.language_model.", "model.language_model.model.", "", NULL};
    static const char *const llm_marks[] = {"embed_tokens.", "layers.0.", "norm.weight", NULL};
    static const char *const heads[] = {"lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight", NULL};
    static const char *const tower[] = {"model.vision_tower.vision_tower.vision_model.",
                                        "model.vision_tower.vision_tower.",
                                        "vision_tower.vision_model.",
                                        "model.vision_tower.vision_model.",
                                        "model.vision_tower.",
                                        "vision_tower.",
                                        "vision_model.",
                                        "",
                                        NULL};
    static const char *const tower_marks[] = {"embeddings.class_embedding", "embeddings.patch_embedding.", "encoder.layers.0.", NULL};
    static const char *const mm[] = {"model.mm_projector.", "mm_projector.", NULL};
    static const char *const hf[] = {"multi_modal_projector.", "model.multi_modal_projector.", NULL};
    static const char *const every[] = {"", NULL};

    memset(names, 0, sizeof *names);
    names->llm = find_prefix(st, llm, llm_marks);
    for (const char *const *h = heads; *h && !names->head; h++)
        if (tensors_find(st, *h)) names->head = *h;
    names->tower = find_prefix(st, tower, tower_marks);
    names->projector = find_prefix(st, hf, every);
    names->projector_hf = names->projector != NULL;
    if (!names->projector) names->projector = find_prefix(st, mm, every);
}

int weights_begin(struct weights *w, const struct weight_source *from, struct device *dev, struct error *err) {
    *w = (struct weights){.st = from->st, .dev = dev, .err = err};
    if (!dev) return 0;
    w->host = malloc(WEIGHTS_CHUNK * sizeof *w->host);
    w->staging = device_alloc(dev, WEIGHTS_CHUNK * sizeof *w->staging);
    if (w->host && w->staging) return 0;
    weights_end(w);
    return fail(err, "%s: out of memory for a weight staging buffer of %zu bytes", from->path, WEIGHTS_CHUNK * sizeof(float));
}

void weights_end(struct weights *w) {
    free(w->host);
    device_free(w->dev, w->staging);
    w->host = NULL;
    w->staging = NULL;
}

static void fault(struct weights *w, const struct error *why) {
    if (w->faults++ == 0 && w->err) *w->err = *why;
    if (w->report) w->report(w->context, why->text);
}

static void upload(struct weights *w, act_t *dst, const struct tensor *t) {
#ifdef STAGEDIFF_BF16
    const enum dtype same = DTYPE_BF16;
#else
    const enum dtype same = DTYPE_F32;
#endif
    if (t->dtype == same && !t->strided) {
        device_upload(w->dev, dst, t->data, t->bytes);
        return;
    }
    for (size_t first = 0; first < t->count; first += WEIGHTS_CHUNK) {
        size_t n = t->count - first < WEIGHTS_CHUNK ? t->count - first : WEIGHTS_CHUNK;
        tensor_to_f32(t, first, n, w->host);
        device_upload(w->dev, w->staging, w->host, n * sizeof *w->host);
        act_from_real(w->dev, dst + first, w->staging, n);
    }
}

void weights_place(struct weights *w, act_t *dst, int rank, const int64_t *shape, const char *prefix, const char *name, ...) {
    char full[512];
    size_t p = strlen(prefix);
    va_list args;
    CHECK(p < sizeof full, "prefix %s", prefix);
    memcpy(full, prefix, p + 1);
    va_start(args, name);
    int n = vsnprintf(full + p, sizeof full - p, name, args);
    va_end(args);
    CHECK(n >= 0 && (size_t)n < sizeof full - p, "tensor name %s", full);

    struct error why;
    const struct tensor *t = tensors_require(w->st, full, rank, shape, &why);
    if (t &&
        (t->dtype == DTYPE_OTHER || dtype_bytes(t->dtype) < 2 || t->dtype == DTYPE_I64 || t->dtype == DTYPE_I32 || t->dtype == DTYPE_I16)) {
        fail(&why, "%s: tensor %s: expected F32, F16, BF16 or F64 weights, found %s", t->file, full, dtype_name(t->dtype));
        t = NULL;
    }
    if (!t) {
        fault(w, &why);
        return;
    }
    if (!w->dev || w->checking || w->faults) return;
    upload(w, dst, t);
    tensors_release(w->st, t);
}
