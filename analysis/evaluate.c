/* evaluate.c - a model's answers to data lines and their scores: generated answers for VQA, next-token mass for VSR. See evaluate.h. */
#include "analysis/evaluate.h"
#include "host/file.h"
#include "host/progress.h"
#include "models/ahead.h"
#include "models/llama.h"
#include "models/prefix.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum evaluation_task evaluation_task_of(const struct samples *s) {
    return s->count > 0 && s->at[0].label >= 0 ? EVALUATE_VSR : EVALUATE_VQA;
}

void evaluation_free(struct evaluation *e) {
    for (size_t i = 0; e->at && i < e->count; i++) free(e->at[i].text);
    free(e->at);
    e->at = NULL;
    e->count = e->scored = 0;
    e->correct = 0;
}

int references_of(const struct sample *s, const char ***out, struct error *err) {
    const json_t *answers = json_object_get(s->json, "answers");
    size_t n = json_is_array(answers) ? json_array_size(answers) : 0;
    *out = memory_take(n + 1, sizeof **out);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(answers, i);
        (*out)[i] = json_string_value(json_is_object(one) ? json_object_get(one, "answer") : one);
        if ((*out)[i]) continue;
        free(*out);
        return fail(err, "the key 'answers', entry %zu: expected a text or {\"answer\": a text}", i);
    }
    if (n == 0 && s->answer) (*out)[n++] = s->answer;
    return (int)n;
}

/* ---- VSR ---- */

static int first_tokens(int *ids, int *n, const struct tokenizer *tok, const char *const *words, struct error *err) {
    *n = 0;
    for (int i = 0; i < 4; i++) {
        struct token_list list = {0};
        if (tokenizer_encode(tok, words[i], strlen(words[i]), false, &list, err)) return -1;
        bool known = list.count == 0;
        for (int j = 0; j < *n && !known; j++) known = ids[j] == list.ids[0];
        if (!known) ids[(*n)++] = list.ids[0];
        token_list_free(&list);
    }
    return 0;
}

/* a without what b holds too. */
static int without(int *a, int n, const int *b, int n_b) {
    int kept = 0;
    for (int i = 0; i < n; i++) {
        bool shared = false;
        for (int j = 0; j < n_b; j++) shared = shared || a[i] == b[j];
        if (!shared) a[kept++] = a[i];
    }
    return kept;
}

int yes_no_tokens(struct yes_no *w, const struct tokenizer *tok, struct error *err) {
    static const char *const yes[] = {" Yes", "Yes", " yes", "YES"}, *const no[] = {" No", "No", " no", "NO"};
    int all_yes[4], n;
    if (first_tokens(w->yes, &w->n_yes, tok, yes, err) || first_tokens(w->no, &w->n_no, tok, no, err)) return -1;
    n = w->n_yes;
    memcpy(all_yes, w->yes, sizeof all_yes);
    w->n_yes = without(w->yes, n, w->no, w->n_no);
    w->n_no = without(w->no, w->n_no, all_yes, n);
    if (w->n_yes && w->n_no) return 0;
    return fail(err,
                "the tokenizer begins every spelling of %s (\" Yes\", \"Yes\", \" yes\", \"YES\"; \" No\", \"No\", \" no\", \"NO\") with a "
                "token that "
                "the other word begins with too, so the next token cannot tell yes from no; score generated answers instead (--task vqa)",
                w->n_yes  ? "no"
                : w->n_no ? "yes"
                          : "yes and of no");
}

static double mass(const int *ids, int n, const float *logits, double top, int V) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        if (ids[i] < V) sum += exp((double)logits[ids[i]] - top);
    return sum;
}

double yes_no_probability(const struct yes_no *w, const float *logits, int V) {
    double top = -INFINITY; /* of the words alone: the softmax's denominator cancels */
    for (int i = 0; i < w->n_yes; i++) top = fmax(top, w->yes[i] < V ? (double)logits[w->yes[i]] : top);
    for (int i = 0; i < w->n_no; i++) top = fmax(top, w->no[i] < V ? (double)logits[w->no[i]] : top);
    double yes = mass(w->yes, w->n_yes, logits, top, V), no = mass(w->no, w->n_no, logits, top, V);
    return yes / (yes + no);
}

/* ---- a batch ---- */

struct job {
    struct model *m;
    const struct samples *s;
    const struct variant *variants;
    int n;
    bool after_image;
    struct yes_no words;
    float *logits; /* (batch, V), VSR */
    size_t batch;
    struct ahead ahead;
};

/* p NULL: the batch is run by itself. */
static int answer_vsr(struct job *j, const struct variant *v, const struct batch *b, struct prefix *p, size_t first, struct evaluated *at,
                      struct error *err) {
    const int V = j->m->vocab;
    if (p ? prefix_forward(p, v->probes, v->n_probes, j->logits, err) : model_forward(j->m, b, v->probes, v->n_probes, j->logits, err))
        return -1;
    for (int i = 0; i < b->n_samples; i++) {
        const int label = j->s->at[first + (size_t)i].label;
        at[i].p_yes = yes_no_probability(&j->words, j->logits + (size_t)i * (size_t)V, V);
        if (!isfinite(at[i].p_yes))
            return fail(err, "%s, line %ld: the model's logits are not finite", j->s->path, j->s->at[first + (size_t)i].line);
        const bool yes = at[i].p_yes > 0.5;
        at[i].text = memory_string(yes ? "yes" : "no");
        at[i].score = label < 0 ? NAN : yes == (label == 1);
    }
    return 0;
}

static int score_vqa(const struct sample *s, struct evaluated *at, struct error *err) {
    const char **references;
    int n = references_of(s, &references, err);
    if (n < 0) return -1;
    at->score = n > 0 ? vqa_accuracy(at->text, references, n) : NAN;
    free(references);
    return 0;
}

static int new_tokens(const struct job *j) {
    const int wanted = j->variants[0].out->max_new_tokens;
    return j->variants[0].out->task == EVALUATE_VSR ? 0 : wanted > 0 ? wanted : EVALUATE_NEW_TOKENS;
}

static int answer_vqa(struct job *j, const struct variant *v, const struct batch *b, struct prefix *p, size_t first, struct evaluated *at,
                      struct error *err) {
    const int max_new = new_tokens(j);
    int *ids, *lengths, status = 0;
    bool *stopped;
    if (p ? prefix_generate(p, v->probes, v->n_probes, &ids, &lengths, &stopped, err)
          : model_generate(j->m, b, max_new, v->probes, v->n_probes, &ids, &lengths, &stopped, err))
        return -1;
    for (int i = 0; i < b->n_samples && status == 0; i++) {
        const struct sample *s = &j->s->at[first + (size_t)i];
        at[i].text = tokenizer_decode(j->m->tokenizer, ids + (size_t)i * (size_t)max_new, (size_t)lengths[i], true);
        at[i].stopped = stopped[i];
        at[i].p_yes = NAN;
        status = score_vqa(s, &at[i], err);
        if (status) error_context(err, "%s, line %ld", j->s->path, s->line);
    }
    free(ids);
    free(lengths);
    free(stopped);
    return status;
}

/* The batch that begins at first + at, under every variant. */
static int run_batch(struct job *j, size_t first, size_t at, size_t end, struct error *err) {
    struct batch b;
    struct prefix *p = NULL;
    int status = stop_signal ? 128 + stop_signal : ahead_next(&j->ahead, &b, first + at, j->batch, end, err);
    if (status) return status;
    if (j->n > 1) status = prefix_open(&p, j->m, &b, j->after_image, new_tokens(j), err);
    for (int i = 0; i < j->n && status == 0; i++) {
        const struct variant *v = &j->variants[i];
        status = stop_signal                    ? 128 + stop_signal
                 : v->out->task == EVALUATE_VSR ? answer_vsr(j, v, &b, p, first + at, v->out->at + at, err)
                                                : answer_vqa(j, v, &b, p, first + at, v->out->at + at, err);
    }
    prefix_close(p);
    batch_free(&b);
    return status;
}

static int run(struct job *j, size_t first, size_t count, int batch, struct error *err) {
    const char *what = j->variants[0].out->progress;
    struct progress progress;
    int status = 0;
    if (what) progress_start(&progress, what, "samples", (long)count);
    for (size_t at = 0; at < count && status == 0; at += (size_t)batch) {
        const size_t n = count - at < (size_t)batch ? count - at : (size_t)batch;
        status = run_batch(j, first, at, first + count, err);
        if (what) progress_update(&progress, (long)(at + n), NULL);
    }
    ahead_end(&j->ahead);
    if (what) progress_end(&progress);
    return status;
}

static void count_scores(struct evaluation *e) {
    for (size_t i = 0; i < e->count; i++)
        if (!isnan(e->at[i].score)) {
            e->scored++;
            e->correct += e->at[i].score;
        }
}

int evaluate_variants(struct model *m, const struct samples *s, size_t first, size_t count, const struct variant *variants, int n,
                      bool after_image, int batch, struct error *err) {
    struct job j = {
        .m = m, .s = s, .variants = variants, .n = n, .after_image = after_image, .batch = (size_t)batch, .ahead = {.m = m, .s = s}};
    for (int i = 0; i < n; i++) {
        struct evaluation *e = variants[i].out;
        e->at = NULL;
        e->count = e->scored = 0;
        e->correct = 0;
    }
    const bool vsr = n > 0 && variants[0].out->task == EVALUATE_VSR;
    if (!m->llm || !m->llm->head) return fail(err, "%s: answering needs a language model with all its layers", m->dir);
    if (vsr && yes_no_tokens(&j.words, m->tokenizer, err)) return error_context(err, "%s", m->dir);
    for (int i = 0; i < n; i++) {
        variants[i].out->at = memory_take(count + 1, sizeof *variants[i].out->at);
        variants[i].out->count = count;
    }
    if (vsr) j.logits = memory_take((size_t)batch * (size_t)m->vocab, sizeof *j.logits);
    const int status = n ? run(&j, first, count, batch, err) : 0;
    free(j.logits);
    for (int i = 0; i < n; i++)
        if (status)
            evaluation_free(variants[i].out);
        else
            count_scores(variants[i].out);
    return status;
}

int evaluate_samples(struct model *m, const struct samples *s, size_t first, size_t count, const struct probe *probes, int n_probes,
                     int batch, struct evaluation *out, struct error *err) {
    const struct variant one = {probes, n_probes, out};
    return evaluate_variants(m, s, first, count, &one, 1, false, batch, err);
}
