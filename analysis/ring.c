/* ring.c - a block of activation rows a layer (ring.h). */
#include "analysis/ring.h"
#include "host/file.h"
#include "host/check.h"
#include "models/model.h"
#include <stdlib.h>
#include <string.h>

#include "kernels/activation.h"

bool regime_takes(enum regime r, int kind) {
    if (kind == KIND_BOS) return false;
    return r == REGIME_IMAGE ? kind == KIND_IMAGE : r == REGIME_TEXT ? kind != KIND_IMAGE : true;
}

size_t ring_bytes_per_layer(int capacity, int d) { return (size_t)capacity * (size_t)d * sizeof(act_t); }

int ring_open(struct ring *r, struct device *dev, int n_layers, const int *layers, int d, int capacity, const bool regimes[REGIME_COUNT],
              struct error *err) {
    *r = (struct ring){.dev = dev, .n_layers = n_layers, .d = d, .capacity = capacity};
    r->layers = memory_take((size_t)n_layers, sizeof *r->layers);
    memcpy(r->layers, layers, (size_t)n_layers * sizeof *layers);
    r->rows = memory_take((size_t)n_layers, sizeof *r->rows);
    r->kinds = memory_take((size_t)capacity, 1);
    for (int kind = 0; kind < KIND_COUNT; kind++)
        for (int regime = 0; regime < REGIME_COUNT; regime++)
            r->keep[kind] = r->keep[kind] || (regimes[regime] && regime_takes((enum regime)regime, kind));
    for (int l = 0; l < n_layers; l++) {
        r->rows[l] = device_alloc(dev, ring_bytes_per_layer(capacity, d));
        if (!r->rows[l]) {
            ring_close(r);
            return fail(err, "%s: a block of %d rows for %d layers needs %zu bytes, %zu are free; use a smaller \"train.ring_rows\"",
                        device_name(dev), capacity, n_layers, ring_bytes_per_layer(capacity, d) * (size_t)n_layers,
                        device_memory_free(dev));
        }
    }
    return 0;
}

void ring_close(struct ring *r) {
    for (int l = 0; r->rows && l < r->n_layers; l++) device_free(r->dev, r->rows[l]);
    if (r->dev) device_free(r->dev, r->index);
    free(r->layers), free(r->rows), free(r->kinds);
    memset(r, 0, sizeof *r);
}

int ring_kept(const struct ring *r, const struct batch *b) {
    int kept = 0;
    for (int i = 0; i < b->n_tokens; i++) kept += r->keep[b->kinds[i]];
    return kept;
}

static int take_rows(void *context, struct device *dev, int layer, void *x, int rows, int width, const struct batch *batch,
                     struct error *err) {
    struct ring *r = context;
    int slot = 0;
    (void)err;
    while (slot < r->n_layers && r->layers[slot] != layer) slot++;
    CHECK(slot < r->n_layers && rows == batch->n_tokens && width == r->d, "layer=%d rows=%d width=%d", layer, rows, width);
    OP(gather_rows)(dev, (act_t *)r->rows[slot] + (size_t)r->used * (size_t)r->d, x, r->index, r->adding, r->d);
    return 0;
}

static int upload_index(struct ring *r, const struct batch *b, struct error *err) {
    if (b->n_tokens > r->index_room) {
        device_free(r->dev, r->index);
        r->index_room = 0;
        r->index = device_alloc(r->dev, (size_t)b->n_tokens * sizeof(int));
        if (!r->index) return fail(err, "%s: no memory for the index of %d tokens", device_name(r->dev), b->n_tokens);
        r->index_room = b->n_tokens;
    }
    int *host = memory_take((size_t)b->n_tokens, sizeof *host), n = 0;
    for (int i = 0; i < b->n_tokens; i++)
        if (r->keep[b->kinds[i]]) {
            r->kinds[r->used + n] = b->kinds[i];
            host[n++] = i;
        }
    device_upload(r->dev, r->index, host, (size_t)n * sizeof *host);
    free(host);
    r->adding = n;
    return 0;
}

int ring_add(struct ring *r, struct model *m, const struct batch *b, struct error *err) {
    int kept = ring_kept(r, b), status = -1;
    CHECK(r->used + kept <= r->capacity, "used=%d kept=%d capacity=%d", r->used, kept, r->capacity);
    if (kept == 0) return 0;
    if (upload_index(r, b, err)) return -1;
    struct probe *probes = memory_take((size_t)r->n_layers, sizeof *probes);
    for (int l = 0; l < r->n_layers; l++)
        probes[l] = (struct probe){.point = PROBE_RESID_POST, .layer = r->layers[l], .run = take_rows, .context = r};
    if (model_forward(m, b, probes, r->n_layers, NULL, err) == 0) {
        r->used += kept;
        status = 0;
    }
    free(probes);
    return status;
}

int ring_select(const struct ring *r, enum regime regime, int *index) {
    int n = 0;
    for (int i = 0; i < r->used; i++)
        if (regime_takes(regime, r->kinds[i])) index[n++] = i;
    return n;
}
