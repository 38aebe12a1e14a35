/* diff_select.c - energies, the percentile, the adapted set, and which features are shown. */
#include "analysis/diff.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double percentile_linear(double *values, size_t n, double p)
{
    if (n == 0)
        return NAN;
    qsort(values, n, sizeof *values, rising);
    double at = p / 100 * (double)(n - 1);
    size_t low = (size_t)at;
    if (low + 1 >= n)
        return values[n - 1];
    double share = at - (double)low, step = values[low + 1] - values[low];
    /* numpy's lerp: from the nearer end, so that the ends are exact */
    return share < 0.5 ? values[low] + step * share : values[low + 1] - step * (1 - share);
}

double diff_energy(const struct diff_job *job, const struct diff_counts *n, int f, bool image)
{
    size_t M = (size_t)job->M, i = (size_t)f;
    double sum = image ? job->energy[DIFF_WORDS * M + i] + (n->text_only ? 0 : job->energy[DIFF_PATCHES * M + i]) : job->energy[DIFF_BASE * M + i];
    long tokens = image ? n->tokens[DIFF_WORDS] + (n->text_only ? 0 : n->tokens[DIFF_PATCHES]) : n->tokens[DIFF_BASE];
    return tokens ? sum / (double)tokens : 0;
}

double diff_fire(const struct diff_job *job, const struct diff_counts *n, int f, bool image)
{
    size_t M = (size_t)job->M, i = (size_t)f;
    int64_t sum = image ? job->fired[DIFF_WORDS * M + i] + (n->text_only ? 0 : job->fired[DIFF_PATCHES * M + i]) : job->fired[DIFF_BASE * M + i];
    long tokens = image ? n->tokens[DIFF_WORDS] + (n->text_only ? 0 : n->tokens[DIFF_PATCHES]) : n->tokens[DIFF_BASE];
    return tokens ? (double)sum / (double)tokens : 0;
}

double diff_select(struct diff_job *jobs, int n_jobs, enum regime regime, const struct diff_counts *n, double eps, double percentile)
{
    size_t total = 0, at = 0;
    for (int j = 0; j < n_jobs; j++)
        total += jobs[j].regime == regime ? (size_t)jobs[j].M : 0;
    double *pooled = memory_take(total + 1, sizeof *pooled);
    for (int j = 0; j < n_jobs; j++)
        for (int f = 0; jobs[j].regime == regime && f < jobs[j].M; f++)
            pooled[at++] = (double)jobs[j].decoder_cosine[f];
    double threshold = percentile_linear(pooled, total, percentile);
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

static int strongest_first(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->energy != y->energy)
        return x->energy < y->energy ? 1 : -1;
    return x->job != y->job ? x->job - y->job : x->feature - y->feature;
}

struct diff_chosen *diff_choose(const struct diff_job *jobs, int n_jobs, enum regime regime, const struct diff_counts *n, int wanted, int *count)
{
    size_t total = 0, adapted = 0;
    int layers = 0;
    for (int j = 0; j < n_jobs; j++)
        for (int f = 0; jobs[j].regime == regime && f < jobs[j].M; f++) {
            layers += f == 0;
            total++;
            adapted += jobs[j].adapted[f];
        }
    struct candidate *all = memory_take(total + 1, sizeof *all);
    size_t kept = 0;
    for (int j = 0; j < n_jobs; j++)
        for (int f = 0; jobs[j].regime == regime && f < jobs[j].M; f++)
            if (jobs[j].adapted[f] || adapted == 0)
                all[kept++] = (struct candidate){diff_energy(&jobs[j], n, f, true), j, f};
    qsort(all, kept, sizeof *all, strongest_first);
    int share = layers ? (2 * wanted + layers - 1) / layers : wanted, *taken = memory_take((size_t)n_jobs + 1, sizeof *taken);
    struct diff_chosen *chosen = memory_take((size_t)wanted + 1, sizeof *chosen);
    *count = 0;
    for (size_t i = 0; i < kept && *count < wanted; i++)
        if (all[i].energy > 0 && taken[all[i].job] < share) {
            taken[all[i].job]++;
            chosen[(*count)++] = (struct diff_chosen){all[i].job, all[i].feature};
        }
    free(taken);
    free(all);
    return chosen;
}
