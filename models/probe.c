/* probe.c - names of probe points, and running them (probe.h). */
#include "models/probe.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *before, *after; /* before L after; after NULL: no layer */
} names[PROBE_POINTS] = {
    [PROBE_EMBED] = {"hook_embed", NULL},
    [PROBE_RESID_PRE] = {"blocks.", ".hook_resid_pre"},
    [PROBE_ATTN_Z] = {"blocks.", ".attn.hook_z"},
    [PROBE_ATTN_OUT] = {"blocks.", ".hook_attn_out"},
    [PROBE_RESID_MID] = {"blocks.", ".hook_resid_mid"},
    [PROBE_MLP_OUT] = {"blocks.", ".hook_mlp_out"},
    [PROBE_RESID_POST] = {"blocks.", ".hook_resid_post"},
    [PROBE_FINAL_NORM] = {"ln_final.hook_normalized", NULL},
    [PROBE_LOGITS] = {"logits", NULL},
    [PROBE_VISION_RESID] = {"vision.", ".hook_resid_post"},
    [PROBE_VISION_SELECTED] = {"vision.selected", NULL},
    [PROBE_PROJECTOR] = {"projector", NULL},
};

bool probe_has_layer(enum probe_point point) { return names[point].after != NULL; }

/* "3" or "*" between before and after; -2: neither. */
static int layer_of(const char *text, size_t length) {
    char digits[12];
    if (length == 1 && *text == '*') return -1;
    if (length == 0 || length > 6 || strspn(text, "0123456789") < length || (length > 1 && *text == '0')) return -2;
    memcpy(digits, text, length);
    digits[length] = 0;
    return (int)strtol(digits, NULL, 10);
}

int probe_parse(const char *name, enum probe_point *point, int *layer, struct error *err) {
    for (int p = 0; p < PROBE_POINTS; p++) {
        const char *before = names[p].before, *after = names[p].after;
        size_t n = strlen(name), b = strlen(before), a = after ? strlen(after) : 0;
        if (!after && strcmp(name, before)) continue;
        if (after && (n <= a + b || strncmp(name, before, b) || strcmp(name + n - a, after))) continue;
        int l = after ? layer_of(name + b, n - a - b) : -1;
        if (l == -2) return fail(err, "point \"%s\": expected a layer number or * between %s and %s", name, before, after);
        *point = (enum probe_point)p;
        *layer = l;
        return 0;
    }
    return fail(err,
                "unknown point \"%s\"; points: hook_embed, blocks.L.hook_resid_pre, blocks.L.attn.hook_z, blocks.L.hook_attn_out, "
                "blocks.L.hook_resid_mid, "
                "blocks.L.hook_mlp_out, blocks.L.hook_resid_post, ln_final.hook_normalized, logits, vision.L.hook_resid_post, "
                "vision.selected, projector",
                name);
}

void probe_name(enum probe_point point, int layer, char *out, size_t out_bytes) {
    if (!names[point].after)
        snprintf(out, out_bytes, "%s", names[point].before);
    else if (layer < 0)
        snprintf(out, out_bytes, "%s*%s", names[point].before, names[point].after);
    else
        snprintf(out, out_bytes, "%s%d%s", names[point].before, layer, names[point].after);
}

bool probes_want(const struct probes *p, enum probe_point point, int layer) {
    for (int i = 0; i < p->n; i++)
        if (p->at[i].point == point && (p->at[i].layer < 0 || layer == -1 || p->at[i].layer == layer)) return true;
    return false;
}

int probes_run(const struct probes *p, struct device *dev, enum probe_point point, int layer, void *x, int rows, int width,
               struct error *err) {
    for (int i = 0; i < p->n; i++) {
        const struct probe *probe = &p->at[i];
        if (probe->point != point || (probe->layer >= 0 && probe->layer != layer)) continue;
        if (probe->run(probe->context, dev, layer, x, rows, width, p->batch, err)) return -1;
    }
    return 0;
}
