/* model.c - opening a checkpoint folder, and one forward pass over a packed batch (model.h). */
#include "models/model.h"
#include "host/file.h"
#include "host/check.h"
#include "models/checkpoint.h"
#include "models/state.h"
#include <stdlib.h>
#include <string.h>

/* How pictures are preprocessed: the settings of the tower's folder, else of the model's, else CLIP's at the tower's size. */
static int open_pictures(struct model *m, const struct checkpoint *c, struct error *err) {
    const struct checkpoint_config *g = &c->config;
    const char *settings = g->layout == LAYOUT_LLAVA ? c->vision.path : m->dir;
    if (preprocess_open(&m->preprocess, settings, err)) return -1;
    if (!settings) m->preprocess.shortest_edge = m->preprocess.crop = g->clip.S;
    if (g->layout == LAYOUT_LLAVA) {
        m->preprocess.pad_square = g->llava.pad_square;
        for (int i = 0; i < 3; i++) m->preprocess.pad_color[i] = (uint8_t)(255 * (double)m->preprocess.mean[i]);
    }
    if (m->preprocess.crop != g->clip.S)
        return fail(err, "%s: pictures are cropped to %d, but the vision tower takes %d", settings, m->preprocess.crop, g->clip.S);
    return 0;
}

static int open_tower(struct model *m, const struct checkpoint *c, struct error *err) {
    struct weights w;
    if (weights_begin(&w, c->tower, m->dev, err)) return -1;
    m->tower = memory_take(1, sizeof *m->tower);
    int status = clip_open(m->tower, &c->config.clip, &w, c->tower->names.tower ? c->tower->names.tower : "vision_model.", err);
    weights_end(&w);
    return status;
}

static int open_llm(struct model *m, const struct checkpoint *c, int layers, struct error *err) {
    struct weights w;
    if (weights_begin(&w, c->llm, m->dev, err)) return -1;
    m->llm = memory_take(1, sizeof *m->llm);
    int status = llama_open(m->llm, &c->config.llm, layers, &w, &c->llm->names, err);
    weights_end(&w);
    return status;
}

static int open_bridge(struct model *m, const struct checkpoint *c, struct error *err) {
    struct weights w;
    if (weights_begin(&w, c->projector, m->dev, err)) return -1;
    m->bridge = memory_take(1, sizeof *m->bridge);
    int status = llava_open(m->bridge, &c->config.llava, &c->config.clip, c->config.llm.C, &w, &c->projector->names, err);
    weights_end(&w);
    return status;
}

static int open_text(struct model *m, const struct checkpoint *c, const char *template, struct error *err) {
    struct error unknown; /* a folder without a known template still takes prompts; questions then say what to do */
    if (tokenizer_open(&m->tokenizer, checkpoint_tokenizer(c), err)) return -1;
    if (template) return prompt_template_named(&m->template, template, err);
    if (prompt_template_of(&m->template, m->tokenizer, c->config.layout == LAYOUT_LLAVA, &unknown)) m->template = TEMPLATE_NONE;
    return 0;
}

static void publish(struct model *m, const struct checkpoint_config *c) {
    if (m->llm) {
        m->n_layers = m->llm->layers;
        m->d_model = c->llm.C;
        m->n_heads = c->llm.H;
        m->n_kv_heads = c->llm.G;
        m->head_dim = c->llm.D;
        m->vocab = c->llm.V;
        m->max_positions = c->llm.max_positions;
    }
    if (m->tower) {
        m->vision_layers = c->clip.L;
        m->vision_width = c->clip.C;
        m->image_size = c->clip.S;
    }
    m->n_image_rows = m->bridge ? m->bridge->rows : 0;
    m->n_eos = c->n_eos;
    memcpy(m->eos, c->eos, sizeof m->eos);
}

int model_open(struct model *m, struct device *dev, const char *dir, const struct model_options *options, struct error *err) {
    static const struct model_options none;
    const struct model_options *o = options ? options : &none;
    const struct checkpoint_options files = {.base = o->base, .vision_tower = o->vision_tower};
    struct checkpoint c;
    int status = -1;
    memset(m, 0, sizeof *m);
    m->dev = dev;
    m->dir = path_join(NULL, dir);
    m->state = memory_take(1, sizeof *m->state);
    if (checkpoint_open(&c, dir, &files, err)) goto cleanup;
    const bool tower = c.config.has_tower, llm = c.config.has_llm;
    if ((tower && open_pictures(m, &c, err)) || (llm && open_text(m, &c, o->template, err))) goto cleanup;
    if ((tower && open_tower(m, &c, err)) || (llm && open_llm(m, &c, o->layers, err)) || (llm && tower && open_bridge(m, &c, err)))
        goto cleanup;
    publish(m, &c.config);
    status = 0;
cleanup:
    checkpoint_close(&c);
    if (status) model_close(m);
    return status;
}

void model_close(struct model *m) {
    if (m->llm) llama_close(m->llm, m->dev);
    if (m->tower) clip_close(m->tower, m->dev);
    if (m->bridge) llava_close(m->bridge, m->dev);
    if (m->state) {
        buffer_free(&m->state->index, m->dev);
        buffer_free(&m->state->logits, m->dev);
        buffer_free(&m->state->cache, m->dev);
    }
    tokenizer_close(m->tokenizer);
    free(m->llm);
    free(m->tower);
    free(m->bridge);
    free(m->state);
    free(m->dir);
    memset(m, 0, sizeof *m);
}

int model_check_point(const struct model *m, enum probe_point point, int layer, struct error *err) {
    char name[64];
    const bool vision = point >= PROBE_VISION_RESID;
    const int layers = vision ? m->vision_layers : m->n_layers;
    probe_name(point, layer, name, sizeof name);
    if (vision && !m->tower) return fail(err, "point %s: the model at %s has no vision tower", name, m->dir);
    if (!vision && !m->llm) return fail(err, "point %s: %s is a vision tower alone; its points are vision.L.hook_resid_post", name, m->dir);
    if ((point == PROBE_VISION_SELECTED || point == PROBE_PROJECTOR) && !m->bridge)
        return fail(err, "point %s: %s is a vision tower alone; its points are vision.L.hook_resid_post", name, m->dir);
    if (layer >= layers) return fail(err, "point %s: the model at %s has layers 0 to %d", name, m->dir, layers - 1);
    if ((point == PROBE_FINAL_NORM || point == PROBE_LOGITS) && !m->llm->head)
        return fail(err, "point %s: only the first %d layers are loaded", name, m->n_layers);
    return 0;
}

/* ---- one pass ---- */
int model_image_rows(struct model *m, const struct batch *b, const struct probes *probes, bool project, const act_t **image_rows,
                     struct error *err) {
    *image_rows = NULL;
    if (!b->n_images) return 0;
    if (m->bridge) return llava_image_rows(m->bridge, m->tower, m->dev, image_rows, b->pixels, b->n_images, project, probes, err);
    return clip_forward(m->tower, m->dev, NULL, b->pixels, b->n_images, 0, true, probes, err);
}

int model_upload_rows(struct model *m, struct llama_rows *rows, const struct batch *b, const int *k_start, const int *k_length,
                      struct error *err) {
    const int N = b->n_tokens, S = b->n_samples;
    const size_t n = (size_t)N, s = (size_t)S, count = 2 * n + 5 * s + 2;
    int *host = memory_take(count, sizeof *host);
    int *position = host + n, *q_start = position + n, *starts = q_start + s + 1, *lengths = starts + s, *last = lengths + s,
        *one_each = last + s;
    memcpy(host, b->source, n * sizeof *host);
    memcpy(position, b->position, n * sizeof *host);
    memcpy(q_start, b->cu_seqlens, (s + 1) * sizeof *host);
    for (int i = 0; i <= S; i++) one_each[i] = i;
    for (int i = 0; i < S; i++) {
        const int length = b->cu_seqlens[i + 1] - b->cu_seqlens[i];
        starts[i] = k_start ? k_start[i] : b->cu_seqlens[i];
        lengths[i] = k_length ? k_length[i] : length;
        last[i] = b->cu_seqlens[i + 1] - 1;
        rows->max_q = length > rows->max_q ? length : rows->max_q;
    }
    int status = buffer_reserve(&m->state->index, m->dev, count * sizeof *host, "token indices", err);
    if (!status) {
        const int *d = m->state->index.data;
        device_upload(m->dev, m->state->index.data, host, count * sizeof *host);
        rows->N = N;
        rows->S = S;
        rows->source = d;
        rows->position = d + n;
        rows->q_start = d + 2 * n;
        rows->k_start = rows->q_start + s + 1;
        rows->k_length = rows->k_start + s;
        rows->last = rows->k_length + s;
        rows->one_each = rows->last + s;
    }
    free(host);
    return status;
}

int model_logits(struct model *m, int S, real_t **logits, int **argmax, struct error *err) {
    const size_t count = (size_t)S * (size_t)m->vocab;
    if (buffer_reserve(&m->state->logits, m->dev, count * sizeof(real_t) + (size_t)S * sizeof(int), "logits", err)) return -1;
    *logits = m->state->logits.data;
    *argmax = (int *)(void *)(*logits + count);
    return 0;
}

int model_rows(struct model *m, const struct batch *b, struct llama_rows *rows, struct error *err) {
    *rows = (struct llama_rows){0};
    return llama_reserve_positions(m->llm, m->dev, b->longest, err) || model_upload_rows(m, rows, b, NULL, NULL, err) ? -1 : 0;
}

int model_forward(struct model *m, const struct batch *b, const struct probe *probes, int n_probes, float *last_logits, struct error *err) {
    const struct probes set = {probes, n_probes, b};
    bool vision = false, llm = last_logits != NULL;
    for (int i = 0; i < n_probes; i++) {
        vision = vision || probes[i].point >= PROBE_VISION_RESID;
        llm = llm || (probes[i].point < PROBE_VISION_RESID && probes[i].layer != PROBE_EDIT);
    }
    CHECK(!llm || m->llm, "a pass through the language model of %s, which has none", m->dir);
    struct llama_rows rows = {0};
    real_t *logits = NULL;
    int *argmax;
    const bool project = llm || probes_want(&set, PROBE_PROJECTOR, -1);
    if ((llm || vision) && model_image_rows(m, b, &set, project, &rows.image_rows, err)) return -1;
    if (!llm) return 0;
    if (llama_reserve_positions(m->llm, m->dev, b->longest, err) || model_upload_rows(m, &rows, b, NULL, NULL, err)) return -1;
    if (last_logits && model_logits(m, b->n_samples, &logits, &argmax, err)) return -1;
    if (llama_forward(m->llm, m->dev, &rows, &set, logits, err)) return -1;
    if (last_logits) device_download(m->dev, last_logits, logits, (size_t)b->n_samples * (size_t)m->vocab * sizeof *last_logits);
    return 0;
}
