/* llava.c - pictures to rows of the language model (llava.h). */
#include "models/llava.h"
#include "kernels/activation.h"
#include "kernels/gemm.h"

static void layout_weights(struct llava *m, struct arena *a) {
    for (int i = 0; i < m->config.projector_linears; i++) {
        m->w[i] = arena_acts(a, (size_t)m->out, (size_t)(i ? m->out : m->in));
        m->b[i] = m->config.projector_bias ? arena_acts(a, 1, (size_t)m->out) : NULL;
    }
}

static void place_weights(struct llava *m, struct weights *w, const struct weight_names *names) {
    const char *p = names->projector ? names->projector : m->config.image_token >= 0 ? "multi_modal_projector." : "model.mm_projector.";
    for (int i = 0; i < m->config.projector_linears; i++) {
        char at[32];
        if (names->projector_hf || m->config.image_token >= 0)
            snprintf(at, sizeof at, "linear_%d.", i + 1); /* llava-hf */
        else if (m->config.projector == PROJECTOR_LINEAR)
            at[0] = 0; /* one nn.Linear */
        else
            snprintf(at, sizeof at, "%d.", 2 * i); /* nn.Sequential with GELUs between */
        weights_place(w, m->w[i], SHAPE2(m->out, i ? m->out : m->in), p, "%sweight", at);
        if (m->config.projector_bias) weights_place(w, m->b[i], SHAPE1(m->out), p, "%sbias", at);
    }
}

int llava_rows(const struct llava_config *config, const struct clip_config *tower) {
    const int side = tower->S / tower->P;
    return side * side + (config->class_row ? 1 : 0);
}

static struct llava shape_of(const struct llava_config *config, const struct clip_config *tower, int C) {
    return (struct llava){.config = *config, .in = tower->C, .out = C, .rows = llava_rows(config, tower)};
}

size_t llava_weight_bytes(const struct llava_config *config, const struct clip_config *tower, int C) {
    struct llava m = shape_of(config, tower, C);
    struct arena a = {0};
    layout_weights(&m, &a);
    return a.used;
}

int llava_open(struct llava *m, const struct llava_config *config, const struct clip_config *tower, int C, struct weights *w,
               const struct weight_names *names, struct error *err) {
    *m = shape_of(config, tower, C);
    w->checking = true;
    place_weights(m, w, names);
    w->checking = false;
    if (w->faults || !w->dev) return w->faults ? -1 : 0;
    struct arena a = {0};
    layout_weights(m, &a);
    if (buffer_reserve(&m->weights, w->dev, a.used, "the projector's weights", err)) return -1;
    a = (struct arena){.base = m->weights.data};
    layout_weights(m, &a);
    place_weights(m, w, names);
    return w->faults ? -1 : 0;
}

void llava_close(struct llava *m, struct device *dev) {
    buffer_free(&m->weights, dev);
    buffer_free(&m->scratch, dev);
}

struct llava_scratch {
    act_t *selected; /* (R, in) */
    act_t *x, *y;    /* (R, C), in turns */
};

static void layout_scratch(struct llava_scratch *s, struct arena *a, const struct llava *m, size_t R) {
    s->selected = arena_acts(a, R, (size_t)m->in);
    s->x = arena_acts(a, R, (size_t)m->out);
    s->y = arena_acts(a, R, (size_t)m->out);
}

size_t llava_scratch_bytes(const struct llava_config *config, const struct clip_config *tower, int C, int B) {
    const struct llava m = shape_of(config, tower, C);
    struct llava_scratch s;
    struct arena a = {0};
    layout_scratch(&s, &a, &m, (size_t)B * (size_t)m.rows);
    return a.used;
}

int llava_image_rows(struct llava *m, struct clip *tower, struct device *dev, const act_t **image_rows, const float *pixels, int B,
                     bool projector, const struct probes *probes, struct error *err) {
    const int R = B * m->rows, C = m->out;
    struct llava_scratch s;
    struct arena a = {0};
    layout_scratch(&s, &a, m, (size_t)R);
    if (buffer_reserve(&m->scratch, dev, a.used, "image rows", err)) return -1;
    a = (struct arena){.base = m->scratch.data};
    layout_scratch(&s, &a, m, (size_t)R);

    if (clip_forward(tower, dev, s.selected, pixels, B, m->config.selected, m->config.class_row, probes, err) ||
        probes_run(probes, dev, PROBE_VISION_SELECTED, -1, s.selected, R, m->in, err))
        return -1;
    if (!projector) return 0;
    linear_forward(dev, s.x, s.selected, m->w[0], m->b[0], R, m->in, C); /* x (R, C) */
    for (int i = 1; i < m->config.projector_linears; i++) {
        gelu_forward(dev, s.x, s.x, (size_t)R * (size_t)C);
        linear_forward(dev, s.y, s.x, m->w[i], m->b[i], R, C, C);
        act_t *t = s.x;
        s.x = s.y;
        s.y = t;
    }
    *image_rows = s.x;
    return probes_run(probes, dev, PROBE_PROJECTOR, -1, s.x, R, C, err);
}
