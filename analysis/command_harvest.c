/* command_harvest.c - `stagediff harvest`: activations at named points of every sample, into one safetensors file.
 * Sample i: <i>/tokens (T) i32, <i>/kinds (T) i32, <i>/<point> (T, width) f32. docs/cli.md has the contract. */
#include "analysis/edit.h"
#include "host/file.h"
#include "host/progress.h"
#include "host/tensors.h"
#include "kernels/activation.h"
#include "models/ahead.h"
#include "models/command.h"
#include <stdlib.h>
#include <string.h>

struct harvest {
    struct safetensors_writer *writer;
    bool last_only;
    int n_pictures;  /* of the batch in flight */
    real_t *staging; /* device, where act_t is not f32 */
    size_t staging_bytes;
};
struct harvest_point {
    struct harvest *harvest;
    enum probe_point point;
};

/* count elements of a device tensor, from `first` on, as f32 on the host. */
static int fetch(struct harvest *h, struct device *dev, enum probe_point point, float *dst, const void *x, size_t first, size_t count,
                 struct error *err) {
    if (point == PROBE_LOGITS || sizeof(act_t) == sizeof(float)) {
        device_download(dev, dst, (const float *)x + first, count * sizeof *dst);
        return 0;
    }
    if (count * sizeof *h->staging > h->staging_bytes) {
        device_free(dev, h->staging);
        h->staging_bytes = count * sizeof *h->staging;
        h->staging = device_alloc(dev, h->staging_bytes);
    }
    if (!h->staging)
        return fail(err, "out of memory on %s: a staging buffer needs %zu bytes, %zu are free; use a smaller --batch", device_name(dev),
                    h->staging_bytes, device_memory_free(dev));
    real_from_act(dev, h->staging, (const act_t *)x + first, count);
    device_download(dev, dst, h->staging, count * sizeof *dst);
    return 0;
}

static int keep(struct harvest *h, struct device *dev, enum probe_point point, int layer, long sample, const void *x, int from, int rows,
                int width, struct error *err) {
    char at[64], name[96];
    if (h->last_only) {
        from += rows - 1;
        rows = 1;
    }
    const size_t count = (size_t)rows * (size_t)width;
    float *data = malloc(count * sizeof *data);
    if (!data) return fail(err, "out of memory for the harvested activations; harvest fewer samples or points at a time");
    if (fetch(h, dev, point, data, x, (size_t)from * (size_t)width, count, err)) {
        free(data);
        return -1;
    }
    probe_name(point, layer, at, sizeof at);
    snprintf(name, sizeof name, "%ld/%s", sample, at);
    safetensors_writer_give(h->writer, name, DTYPE_F32, 2, (const int64_t[]){rows, width}, data);
    return 0;
}

/* The probe: each sample's rows of the packed tensor; at vision points each picture's rows, for the sample that has it. */
static int observe(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *b, struct error *err) {
    const struct harvest_point *p = context;
    const bool vision = p->point >= PROBE_VISION_RESID;
    for (int i = 0; i < b->n_samples; i++) {
        int from = b->cu_seqlens[i], n = b->cu_seqlens[i + 1] - from;
        if (vision) {
            n = rows / b->n_images;
            from = b->picture[i] * n;
        }
        if (from >= 0 && keep(p->harvest, dev, p->point, layer, b->sample[i], x, from, n, width, err)) return -1;
    }
    return 0;
}

static void keep_tokens(struct harvest *h, const struct batch *b) {
    char name[64];
    for (int i = 0; i < b->n_samples && b->n_tokens; i++) {
        const int end = b->cu_seqlens[i + 1], from = h->last_only ? end - 1 : b->cu_seqlens[i];
        int32_t *tokens = memory_take((size_t)(end - from), sizeof *tokens), *kinds = memory_take((size_t)(end - from), sizeof *kinds);
        for (int t = from; t < end; t++) {
            tokens[t - from] = b->ids[t];
            kinds[t - from] = b->kinds[t];
        }
        snprintf(name, sizeof name, "%ld/tokens", b->sample[i]);
        safetensors_writer_give(h->writer, name, DTYPE_I32, 1, (const int64_t[]){end - from}, tokens);
        snprintf(name, sizeof name, "%ld/kinds", b->sample[i]);
        safetensors_writer_give(h->writer, name, DTYPE_I32, 1, (const int64_t[]){end - from}, kinds);
    }
}

/* --points to probes, each point once; a '*' swallows the single layers of its point. */
static int parse_points(const char *list, const struct model *m, struct harvest *h, struct probe **probes, int *n, struct error *err) {
    char *copy = memory_string(list), *rest = copy, *word;
    size_t capacity = 1;
    for (const char *c = list; *c; c++) capacity += *c == ',';
    *probes = memory_take(capacity, sizeof **probes);
    struct harvest_point *contexts = memory_take(PROBE_POINTS, sizeof *contexts); /* freed as the first probe's */
    int status = -1;
    *n = 0;
    for (int p = 0; p < PROBE_POINTS; p++) contexts[p] = (struct harvest_point){h, (enum probe_point)p};
    while ((word = strsep(&rest, ","))) {
        struct probe p = {.run = observe};
        bool have = false;
        if (probe_parse(word, &p.point, &p.layer, err) || model_check_point(m, p.point, p.layer, err)) goto cleanup;
        p.context = &contexts[p.point];
        for (int i = 0; i < *n; i++) {
            struct probe *q = &(*probes)[i];
            have = have || (q->point == p.point && (q->layer == p.layer || q->layer == -1));
        }
        if (have) continue;
        if (p.layer == -1)
            for (int i = 0; i < *n; i++)
                if ((*probes)[i].point == p.point) (*probes)[i--] = (*probes)[--*n];
        (*probes)[(*n)++] = p;
    }
    status = 0;
cleanup:
    free(copy);
    if (status || *n == 0) {
        free(contexts);
        free(*probes);
        *probes = NULL;
    }
    return status;
}

/* With --last-only the head runs on the last rows alone: `logits` leaves the list of probes. */
static bool take_logits(struct probe *probes, int *n) {
    for (int i = 0; i < *n; i++)
        if (probes[i].point == PROBE_LOGITS) {
            memmove(probes + i, probes + i + 1, (size_t)(*n - i - 1) * sizeof *probes);
            --*n;
            return true;
        }
    return false;
}

static int pass(struct model *m, struct harvest *h, const struct batch *b, const struct probe *probes, int n, bool logits,
                struct error *err) {
    float *last = logits ? memory_take((size_t)b->n_samples * (size_t)m->vocab, sizeof *last) : NULL;
    int status = model_forward(m, b, probes, n, last, err);
    if (!status) keep_tokens(h, b);
    for (int i = 0; !status && last && i < b->n_samples; i++) {
        char name[64];
        float *row = memory_take((size_t)m->vocab, sizeof *row);
        memcpy(row, last + (size_t)i * (size_t)m->vocab, (size_t)m->vocab * sizeof *row);
        snprintf(name, sizeof name, "%ld/logits", b->sample[i]);
        safetensors_writer_give(h->writer, name, DTYPE_F32, 2, (const int64_t[]){1, m->vocab}, row);
    }
    free(last);
    return status;
}

static int run(const struct command *self, struct error *err) {
    const char *data = option(self, "--data")->text, *out = option(self, "--out")->text;
    const size_t size = (size_t)option(self, "--batch")->number;
    struct model m = {0};
    struct samples s = {0};
    struct ahead ahead = {.m = &m, .s = &s, .with_answer = true};
    struct harvest h = {.last_only = option(self, "--last-only")->given};
    struct edit_session edit = {0};
    struct probe *probes = NULL, *all = NULL;
    struct harvest_point *contexts = NULL;
    struct progress progress;
    int n = 0, n_all, status = -1;
    if (samples_open(&s, data, err) || command_open(&m, self, err)) goto cleanup;
    if (edit_session_open(&edit, &m, option(self, "--edit")->text, err) ||
        parse_points(option(self, "--points")->text, &m, &h, &probes, &n, err) || safetensors_writer_open(&h.writer, out, err))
        goto cleanup;
    contexts = (struct harvest_point *)probes[0].context - probes[0].point;
    const bool logits = h.last_only && take_logits(probes, &n);
    all = edits_before(edit.edits, probes, n, &n_all);
    progress_start(&progress, "harvest", "samples", (long)s.count);
    for (size_t first = 0; first < s.count; first += size) {
        struct batch b;
        const size_t count = s.count - first < size ? s.count - first : size;
        if (ahead_next(&ahead, &b, first, size, s.count, err)) goto cleanup;
        const int failed = pass(&m, &h, &b, all, n_all, logits, err);
        batch_free(&b);
        if (failed) goto cleanup;
        progress_update(&progress, (long)(first + count), NULL);
    }
    progress_end(&progress);
    status = safetensors_writer_commit(h.writer, err);
    h.writer = NULL;
cleanup:
    ahead_end(&ahead);
    if (h.writer) safetensors_writer_abort(h.writer);
    device_free(m.dev, h.staging);
    free(contexts);
    free(probes);
    free(all);
    samples_free(&s);
    edit_session_close(&edit);
    if (m.dev) command_close(&m);
    return status;
}

static struct option options[] = {
    MODEL_OPTIONS,
    {.name = "--data",
     .value = "FILE.jsonl",
     .type = OPTION_TEXT,
     .required = true,
     .help = "samples, one JSON object a line (docs/cli.md)"},
    {.name = "--points", .value = "P,...", .type = OPTION_TEXT, .required = true, .help = "comma-separated points; * for all layers"},
    {.name = "--out", .value = "FILE", .type = OPTION_TEXT, .required = true, .help = "safetensors file to write"},
    EDIT_OPTION,
    {.name = "--last-only", .type = OPTION_FLAG, .help = "keep the last position of each tensor only"},
    {.name = NULL},
};
struct command command_harvest = {
    .name = "harvest",
    .summary = "activations at named points of the model, to a safetensors file",
    .description =
        "Runs every sample through the model and keeps what passes the points asked for: <i>/tokens (T), <i>/kinds (T) and\n"
        "<i>/<point> (T, width) for sample i. Rows that come from the picture have token id -200.\n\n"
        "Points: hook_embed, blocks.L.hook_resid_pre, blocks.L.attn.hook_z, blocks.L.hook_attn_out, blocks.L.hook_resid_mid,\n"
        "blocks.L.hook_mlp_out, blocks.L.hook_resid_post, ln_final.hook_normalized (before the norm's weight), logits,\n"
        "vision.L.hook_resid_post (class row first), vision.selected, projector.\n\n"
        "With --edit the values are those after the edits of their point. A list of one edit, the direction of a decoder row taken\n"
        "out of everything after the picture:\n"
        "  [{\"op\": \"project_out\", \"vector\": {\"sae\": \"DIR\", \"feature\": 17}, \"points\": [\"attn_out\", \"mlp_out\",\n"
        "    \"resid_post\"], \"after_image\": true}]\n\n"
        "Example:\n  stagediff harvest --model DIR --data data.jsonl --points 'blocks.*.hook_resid_post,logits' --out acts.safetensors",
    .options = options,
    .run = run,
};
