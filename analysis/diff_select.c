/* diff_select.c - energies, the percentile, the adapted set, and which features are shown. */
#include "analysis/diff.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>

static int rising(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double percentile_linear(double *values, size_t n, double p) {
    if (n == 0) return NAN;
    qsort(values, n, sizeof *values, rising);
    double at = p / 100 * (double)(n - 1);
    size_t low = (size_t)at;
    if (low + 1 >= n) return values[n - 1];
    double share = at - (double)low, step = values[low + 1] - values[low];
    /* numpy's lerp: from the nearer end, so that the ends are exact */
    return share < 0.5 ? values[low] + step * share : values[low + 1] - step * (1 - share);
}

static long tokens_of(const struct diff_counts *n, bool image) {
    return image ? n->tokens[DIFF_WORDS] + n->tokens[DIFF_TEMPLATE] + (n->text_only ? 0 : n->tokens[DIFF_PATCHES]) : n->tokens[DIFF_BASE];
}

double diff_energy(const struct diff_job *job, const struct diff_counts *n, int f, bool image) {
    size_t M = (size_t)job->M, i = (size_t)f;
    double text = job->energy[DIFF_WORDS * M + i] + job->energy[DIFF_TEMPLATE * M + i];
    double sum = image ? text + (n->text_only ? 0 : job->energy[DIFF_PATCHES * M + i]) : job->energy[DIFF_BASE * M + i];
    long tokens = tokens_of(n, image);
    return tokens ? sum / (double)tokens : 0;
}

double diff_fire(const struct diff_job *job, const struct diff_counts *n, int f, bool image) {
    size_t M = (size_t)job->M, i = (size_t)f;
    int64_t text = job->fired[DIFF_WORDS * M + i] + job->fired[DIFF_TEMPLATE * M + i];
    int64_t sum = image ? text + (n->text_only ? 0 : job->fired[DIFF_PATCHES * M + i]) : job->fired[DIFF_BASE * M + i];
    long tokens = tokens_of(n, image);
    return tokens ? (double)sum / (double)tokens : 0;
}

double diff_select(struct diff_job *jobs, int n_jobs, enum regime regime, const struct diff_counts *n, double eps, double percentile) {
    size_t total = 0, at = 0;
    for (int j = 0; j < n_jobs; j++) total += jobs[j].regime == regime ? (size_t)jobs[j].M : 0;
    double *pooled = memory_take(total + 1, sizeof *pooled);
    for (int j = 0; j < n_jobs; j++)
        for (int f = 0; jobs[j].regime == regime && f < jobs[j].M; f++)
            if (!isnan(jobs[j].decoder_cosine[f])) pooled[at++] = (double)jobs[j].decoder_cosine[f];
    double threshold = percentile_linear(pooled, at, percentile);
    free(pooled);
    for (int j = 0; j < n_jobs; j++)
        for (int f = 0; jobs[j].regime == regime && f < jobs[j].M; f++)
            jobs[j].adapted[f] = diff_energy(&jobs[j], n, f, true) > eps && (double)jobs[j].decoder_cosine[f] <= threshold;
    return threshold;
}

struct candidate {
    double energy;
    int job, feature;
};

static int strongest_first(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->energy != y->energy) return x->energy < y->energy ? 1 : -1;
    return x->job != y->job ? x->job - y->job : x->feature - y->feature;
}

struct choice {
    const struct diff_job *jobs;
    int n_jobs, wanted, count;
    struct diff_chosen *chosen;
};

static bool is_chosen(const struct choice *c, int job, int feature) {
    for (int i = 0; i < c->count; i++)
        if (c->chosen[i].job == job && c->chosen[i].feature == feature) return true;
    return false;
}

/* Takes up to `wanted` of the candidates, strongest first, at most `share` of a layer. */
static void take(struct choice *c, struct candidate *from, size_t n, int wanted, int share) {
    int *taken = memory_take((size_t)c->n_jobs + 1, sizeof *taken), got = 0;
    qsort(from, n, sizeof *from, strongest_first);
    for (size_t i = 0; i < n && got < wanted && c->count < c->wanted; i++)
        if (from[i].energy > 0 && taken[from[i].job] < share && !is_chosen(c, from[i].job, from[i].feature)) {
            taken[from[i].job]++;
            c->chosen[c->count++] = (struct diff_chosen){from[i].job, from[i].feature};
            got++;
        }
    free(taken);
}

struct diff_chosen *diff_choose(const struct diff_job *jobs, int n_jobs, enum regime regime, const struct diff_counts *n, int wanted,
                                int *count) {
    static const int groups[] = {DIFF_PATCHES, DIFF_WORDS, -1};
    struct choice c = {jobs, n_jobs, wanted, 0, memory_take((size_t)wanted + 1, sizeof *c.chosen)};
    size_t total = 0, adapted = 0;
    int layers = 0;
    for (int j = 0; j < n_jobs; j++)
        for (int f = 0; jobs[j].regime == regime && f < jobs[j].M; f++) {
            layers += f == 0;
            total++;
            adapted += jobs[j].adapted[f];
        }
    struct candidate *all = memory_take(total + 1, sizeof *all);
    for (int pass = 0; pass < 3; pass++) {
        int g = groups[pass], half = g < 0 ? wanted : (wanted + 1) / 2;
        size_t kept = 0;
        for (int j = 0; j < n_jobs; j++)
            for (int f = 0; jobs[j].regime == regime && f < jobs[j].M; f++) {
                size_t i = (size_t)(g < 0 ? 0 : g) * (size_t)jobs[j].M + (size_t)f;
                bool dense = g >= 0 && (double)jobs[j].fired[i] > DIFF_DENSE * (double)n->tokens[g];
                if ((jobs[j].adapted[f] || adapted == 0) && !dense)
                    all[kept++] = (struct candidate){g < 0 ? diff_energy(&jobs[j], n, f, true) : jobs[j].energy[i], j, f};
            }
        take(&c, all, kept, half, layers && g >= 0 ? (2 * half + layers - 1) / layers : wanted);
    }
    free(all);
    *count = c.count;
    return c.chosen;
}
