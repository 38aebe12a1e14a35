/* select_stats.c - odds ratio, Fisher's exact test for any counts, Benjamini-Hochberg, and which features they select. */
#include "analysis/select.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>

double odds_ratio(int64_t a, int64_t A, int64_t b, int64_t B) {
    double miss_a = (double)(A - a), miss_b = (double)(B - b);
    if (a + b == 0 || miss_a + miss_b == 0 || A == 0 || B == 0) return NAN;
    return b > 0 && miss_a > 0 ? (double)a * miss_b / ((double)b * miss_a) : 1e9;
}

/* ---- the hypergeometric distribution, after Loader (2000), "Fast and accurate computation of binomial probabilities" ----
 * log n! = log(sqrt(2 pi n)) + n log n - n + stirling_error(n); what remains of a binomial probability is a deviance without cancellation.
 */
static double stirling_error(double n) {
    if (n <= 15) return n < 1 ? 0 : lgamma(n + 1) - (n + 0.5) * log(n) + n - 0.91893853320467274178; /* log(2 pi) / 2 */
    double r = 1 / (n * n);
    return (1 / 12.0 - r * (1 / 360.0 - r * (1 / 1260.0 - r * (1 / 1680.0 - r / 1188.0)))) / n;
}

/* x log(x / m) + m - x */
static double deviance(double x, double m) {
    if (fabs(x - m) >= 0.1 * (x + m)) return x * log(x / m) + m - x;
    double v = (x - m) / (x + m), sum = (x - m) * v, term = 2 * x * v;
    for (int j = 3;; j += 2) {
        term *= v * v;
        double next = sum + term / j;
        if (next == sum) return sum;
        sum = next;
    }
}

/* log of the probability of x successes in n, p + q = 1, 0 < p < 1. */
static double log_binomial(double x, double n, double p, double q) {
    if (n == 0) return 0;
    if (x == 0) return p < 0.1 ? -deviance(n, n * q) - n * p : n * log(q);
    if (x == n) return q < 0.1 ? -deviance(n, n * p) - n * q : n * log(p);
    return stirling_error(n) - stirling_error(x) - stirling_error(n - x) - deviance(x, n * p) - deviance(n - x, n * q) -
           0.5 * (1.83787706640934548356 + log(x) + log((n - x) / n)); /* log(2 pi) */
}

/* log P(X = x), x of the n marked tokens among A, the others among B. */
static double log_hypergeometric(double x, double A, double B, double n) {
    double p = n / (A + B), q = (A + B - n) / (A + B);
    return log_binomial(x, A, p, q) + log_binomial(n - x, B, p, q) - log_binomial(n, A + B, p, q);
}

double fisher_greater_log10(int64_t a, int64_t A, int64_t b, int64_t B) {
    const double n = (double)(a + b), rows = (double)A, others = (double)B, x = (double)a;
    const double low = fmax(0, n - others), high = fmin(n, rows);
    double sum = 1, term = 1;
    if (x <= low) return 0;
    if (x > n * rows / (rows + others)) { /* above the mean: terms fall from here on */
        for (double k = x; k < high && term > 1e-18 * sum; k++) {
            term *= (rows - k) * (n - k) / ((k + 1) * (others - n + k + 1));
            sum += term;
        }
        return fmin(0, (log_hypergeometric(x, rows, others, n) + log(sum)) / M_LN10);
    }
    for (double k = x - 1; k > low && term > 1e-18 * sum; k--) { /* what lies below a */
        term *= k * (others - n + k) / ((rows - k + 1) * (n - k + 1));
        sum += term;
    }
    return log1p(-fmin(1, exp(log_hypergeometric(x - 1, rows, others, n)) * sum)) / M_LN10;
}

/* ---- false discoveries ---- */

static const double *sorted_p; /* of by_p: qsort has no context */

static int by_p(const void *a, const void *b) {
    const size_t i = *(const size_t *)a, j = *(const size_t *)b;
    if (sorted_p[i] != sorted_p[j]) return sorted_p[i] < sorted_p[j] ? -1 : 1;
    return (i > j) - (i < j);
}

void benjamini_hochberg(double *q, const double *p, size_t n) {
    size_t *order = memory_take(n + 1, sizeof *order);
    double least = 1;
    for (size_t i = 0; i < n; i++) order[i] = i;
    sorted_p = p;
    qsort(order, n, sizeof *order, by_p);
    for (size_t i = n; i-- > 0;) {
        least = fmin(least, p[order[i]] * (double)n / (double)(i + 1));
        q[order[i]] = least;
    }
    free(order);
}

/* ---- a task ---- */

int64_t select_fired(const struct select_task *t, const struct select_layer *l, int set, int feature) {
    int64_t sum = 0;
    for (int g = 0; g < DIFF_BASE; g++)
        if (t->counts[g]) sum += l->fired[set][(size_t)g * (size_t)l->job.M + (size_t)feature];
    return sum;
}

long select_tokens(const struct select_task *t, int set) {
    long sum = 0;
    for (int g = 0; g < DIFF_BASE; g++)
        if (t->counts[g]) sum += t->tokens[set][g];
    return sum;
}

void select_decide(const struct select_task *t, struct select_layer *layers, int n_layers) {
    const long A = select_tokens(t, SELECT_TARGET), B = select_tokens(t, SELECT_GENERAL);
    size_t total = 0, at = 0;
    for (int l = 0; l < n_layers; l++) total += (size_t)layers[l].job.M;
    double *p = memory_take(total + 1, sizeof *p), *q = memory_take(total + 1, sizeof *q);
    for (int l = 0; l < n_layers; l++) {
        struct select_layer *one = &layers[l];
#pragma omp parallel for schedule(dynamic, 64)
        for (int f = 0; f < one->job.M; f++) {
            const int64_t a = select_fired(t, one, SELECT_TARGET, f), b = select_fired(t, one, SELECT_GENERAL, f);
            one->odds[f] = odds_ratio(a, A, b, B);
            one->log10_p[f] = fisher_greater_log10(a, A, b, B);
            one->selected[f] =
                one->odds[f] >= t->c->odds_ratio && (double)a / (double)A - (double)b / (double)B >= t->c->difference; /* NaN: no */
            p[at + (size_t)f] = pow(10, one->log10_p[f]);
        }
        at += (size_t)one->job.M;
    }
    benjamini_hochberg(q, p, total);
    at = 0;
    for (int l = 0; l < n_layers; l++)
        for (int f = 0; f < layers[l].job.M; f++) layers[l].q[f] = q[at++];
    free(p);
    free(q);
}
