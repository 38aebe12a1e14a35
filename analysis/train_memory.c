/* train_memory.c - what stage_train needs and how many layers fit at once, before anything is opened. Every size comes from the function
 * that the owner of the memory takes it by, so the arithmetic cannot drift from the work. */
#include "analysis/train_job.h"
#include "host/file.h"
#include "models/llava.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/sae_ops.h"

const char *bytes_text(char out[32], size_t bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double x = (double)bytes;
    int u = 0;
    for (; x >= 1000 && u < 4; u++) x /= 1000;
    snprintf(out, 32, x < 10 && u > 0 ? "%.2f %s" : x < 100 && u > 0 ? "%.1f %s" : "%.0f %s", x, units[u]);
    return out;
}

/* What oneDNN, OpenMP and the heap's gaps take once at work; measured on the demo with two threads. */
enum { LIBRARIES = 16 << 20 };

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* ---- the largest forward pass ---- */

static size_t text_bytes(const struct sample *s) {
    const char *const parts[] = {s->prompt, s->question, s->caption, s->answer};
    size_t n = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) n += parts[i] ? strlen(parts[i]) : 0;
    return n;
}

static bool is_kept(const struct run_config *c, int kind) {
    for (int r = 0; r < REGIME_COUNT; r++)
        if (c->regimes[r] && regime_takes((enum regime)r, kind)) return true;
    return false;
}

/* Of the batches of `n` samples the one with most text (4 bytes counted as a token) and pictures is tokenised; its counts are the pass. */
static int measure_pass(struct train_plan *p, const struct run_config *c, const struct checkpoint *model, const struct samples *s, size_t n,
                        struct error *err) {
    struct checkpoint_pass *pass = &p->memory.pass;
    const struct checkpoint_config *g = &model->config;
    const size_t rows = g->has_tower ? (size_t)llava_rows(&g->llava, &g->clip) : 0;
    struct tokenizer *tokenizer = NULL;
    enum prompt_template template;
    struct error unknown;
    size_t most = 0, at = p->first;
    int status = 0;
    for (size_t first = 0; first < p->count; first += n) {
        size_t size = 1;
        for (size_t i = first; i < first + n && i < p->count; i++)
            size += text_bytes(&s->at[p->first + i]) + 4 * (s->at[p->first + i].image ? rows : 0);
        if (size > most) most = size, at = p->first + first;
    }
    *pass = (struct checkpoint_pass){0};
    p->memory.rows = 0;
    if (tokenizer_open(&tokenizer, checkpoint_tokenizer(model), err)) return -1;
    if (prompt_template_of(&template, tokenizer, g->layout == LAYOUT_LLAVA, &unknown)) template = TEMPLATE_NONE;
    for (size_t i = at; i < at + n && i < p->first + p->count && status == 0; i++) {
        struct prompt prompt;
        status = prompt_build(&prompt, tokenizer, template, &s->at[i], (int)rows, true, err);
        if (status) {
            error_context(err, "%s, line %ld", s->path, s->at[i].line);
            break;
        }
        pass->tokens += prompt.count, pass->samples++, pass->pictures += s->at[i].image != NULL;
        for (int t = 0; t < prompt.count; t++) p->memory.rows += is_kept(c, prompt.kinds[t]);
        prompt_free(&prompt);
    }
    tokenizer_close(tokenizer);
    return status;
}

/* ---- sizes ---- */

int evaluation_slots(const struct run_config *c) { return c->saes && c->k < EVALUATION_ACTIVE ? EVALUATION_ACTIVE : c->k; }

static size_t evaluation_scratch(const struct train_plan *p, int k) {
    enum { CHUNK = EVALUATION_CHUNK };
    const size_t n = (size_t)CHUNK * (size_t)k, d = (size_t)p->d;
    const struct sae shape = {.activation = SAE_TOPK, .d = p->d, .M = p->largest};
    return sae_scratch_bytes(&shape, CHUNK, k) + OP(sae_csc_scratch)(CHUNK, p->largest, k) + n * (2 * sizeof(int) + sizeof(real_t)) +
           (size_t)p->largest * sizeof(int) + (size_t)p->memory.pass.tokens * (d * sizeof(act_t) + 3 * sizeof(int));
}

static void count_layers(struct train_plan *p, const struct run_config *c) {
    struct train_memory *m = &p->memory;
    m->saving = m->dictionaries = m->optimizer = m->evaluated = m->disk_dictionaries = m->disk_state = 0;
    for (int i = 0; i < p->n_layers; i++) {
        size_t dictionaries = 0, optimizer = 0, statistics = 0;
        for (int r = 0; r < REGIME_COUNT; r++) {
            const int M = train_plan_features(p, (enum regime)r, i);
            if (!c->regimes[r]) continue;
            const size_t one = sae_device_bytes(p->d, M, c->bf16_products), all = sae_trainer_bytes(p->d, M, c->bf16_products);
            dictionaries += one, optimizer += all - one, statistics += (size_t)M * (sizeof(double) + sizeof(int64_t));
            m->saving = larger(m->saving, all);
            m->disk_dictionaries += 2 * sizeof(real_t) * (size_t)M * (size_t)p->d, m->disk_state += all;
        }
        size_t base = 2 * sae_device_bytes(p->d, p->base_features[i], c->bf16_products) + 4 * 16 * (size_t)p->base_features[i];
        m->dictionaries = larger(m->dictionaries, dictionaries);
        m->optimizer = larger(m->optimizer, optimizer);
        m->evaluated = larger(m->evaluated, dictionaries + statistics + (c->saes ? base : 0));
    }
    m->ring = ring_bytes_per_layer((int)c->ring_rows, p->d);
}

size_t train_memory_needed(const struct train_memory *m, int layers) {
    const size_t n = (size_t)layers;
    return m->weights + m->activations + larger(m->step + n * (m->dictionaries + m->optimizer + m->ring), m->evaluation + n * m->evaluated);
}

static void count_needs(struct train_plan *p, const struct run_config *c, const struct checkpoint *model) {
    struct train_memory *m = &p->memory;
    const size_t step = sae_workspace_bytes(p->d, p->largest, p->k, c->batch) + (size_t)c->batch * (size_t)p->d * sizeof(act_t) +
                        (size_t)c->ring_rows * sizeof(int) + (size_t)m->pass.tokens * sizeof(int);
    m->weights = checkpoint_weight_bytes(model, p->layers[p->n_layers - 1] + 1);
    m->activations = checkpoint_scratch_bytes(model, &m->pass);
    m->step = step;
    m->evaluation = evaluation_scratch(p, evaluation_slots(c));
    count_layers(p, c);
}

/* ---- placement ---- */

/* Smaller settings until one layer fits: block, batch, then one regime at a time. What they are, or what memory would do. */
static int refuse(struct train_plan *p, const struct run_config *c, const struct checkpoint *model, const struct device *dev, size_t usable,
                  struct error *err) {
    struct train_memory *m = &p->memory;
    struct run_config less = *c;
    const struct train_memory asked = *m;
    int regimes = 0, first = REGIME_COUNT;
    char advice[256], text[8][32];
    for (int r = REGIME_COUNT - 1; r >= 0; r--)
        if (c->regimes[r]) regimes++, first = r;
    while (less.ring_rows / 2 > m->pass.tokens && less.ring_rows / 2 >= less.batch && train_memory_needed(m, 1) > usable)
        less.ring_rows /= 2, count_needs(p, &less, model);
    while (less.batch > 256 && train_memory_needed(m, 1) > usable) less.batch /= 2, count_needs(p, &less, model);
    bool alone = regimes > 1 && train_memory_needed(m, 1) > usable;
    for (int r = first + 1; r < REGIME_COUNT && alone; r++) less.regimes[r] = false;
    if (alone) count_needs(p, &less, model);
    if (train_memory_needed(m, 1) <= usable)
        snprintf(advice, sizeof advice, "\"train.ring_rows\" %ld with \"train.batch\" %d%s would fit", less.ring_rows, less.batch,
                 alone ? " and one regime a run" : "");
    else
        snprintf(advice, sizeof advice, "no setting would fit, the smallest needs %s; use a smaller model or dictionary",
                 bytes_text(text[0], train_memory_needed(m, 1)));
    *m = asked;
    return fail(
        err,
        "%s: training one layer needs %s (model %s, activations %s, scratch of a step %s, %d dictionaries %s, Adam %s, block %s), %s "
        "are free; %s",
        device_name(dev), bytes_text(text[0], train_memory_needed(m, 1)), bytes_text(text[1], m->weights),
        bytes_text(text[2], m->activations), bytes_text(text[3], larger(m->step, m->evaluation)), regimes,
        bytes_text(text[4], m->dictionaries), bytes_text(text[5], m->optimizer), bytes_text(text[6], m->ring), bytes_text(text[7], m->free),
        advice);
}

static size_t resident_bytes(void) {
    size_t pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    if (fscanf(f, "%zu %zu", &pages, &resident) != 2) resident = 0;
    fclose(f);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

int train_memory_place(struct train_plan *p, const struct run_config *c, const struct checkpoint *model, struct device *dev,
                       const struct samples *s, int at_once, struct error *err) {
    struct train_memory *m = &p->memory;
    const int asked = at_once > 0 ? at_once : c->layers_at_once;
    const size_t n = (size_t)(c->forward_samples > EVALUATION_SAMPLES ? c->forward_samples : EVALUATION_SAMPLES);
    char a[32], b[32];
    m->host =
        sizeof(act_t) == sizeof(float) ? resident_bytes() + LIBRARIES : 0; /* the cpu's: the program itself stands beside the tensors */
    m->free = device_memory_free(dev);
    if (measure_pass(p, c, model, s, n, err)) return -1;
    if (c->forward_samples >= EVALUATION_SAMPLES && m->rows > c->ring_rows)
        return fail(
            err, "\"train.ring_rows\" is %ld, but %d samples of a forward pass give %d rows; raise it or lower \"train.forward_samples\"",
            c->ring_rows, m->pass.samples, m->rows);
    count_needs(p, c, model);
    const size_t usable = m->free / 100 * 95;
    const int wanted = asked > 0 && asked < p->n_layers ? asked : p->n_layers;
    int fit = wanted;
    while (fit > 0 && train_memory_needed(m, fit) > usable) fit--;
    if (fit == 0) return refuse(p, c, model, dev, usable, err);
    if (fit < wanted && asked > 0)
        return fail(err, "%s: %d layers at once need %s, %s are free; %d would fit", device_name(dev), wanted,
                    bytes_text(a, train_memory_needed(m, wanted)), bytes_text(b, m->free), fit);
    p->layers_at_once = fit;
    p->n_groups = (p->n_layers + fit - 1) / fit;
    m->needed = train_memory_needed(m, fit);
    m->host += m->host ? m->saving : 0;
    return 0;
}
