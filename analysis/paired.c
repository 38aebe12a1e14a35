/* paired.c - see paired.h. */
#include "analysis/paired.h"
#include "host/file.h"
#include <math.h>
#include <stdlib.h>

uint64_t random_next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The upper 64 bits of random * n, from 32-bit halves; n < 2^32. */
size_t random_below(uint64_t *state, size_t n) {
    const uint64_t r = random_next(state), low = (r & 0xffffffffu) * n, high = (r >> 32) * n;
    return (size_t)((high + (low >> 32)) >> 32);
}

double random_normal(uint64_t *state) {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += (double)(random_next(state) >> 11) * 0x1p-53;
    return sum;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double percentile(double *values, size_t n, double q) {
    if (n == 0) return NAN;
    qsort(values, n, sizeof *values, ascending);
    const double at = q / 100 * (double)(n - 1);
    const size_t below = (size_t)at, above = below + 1 < n ? below + 1 : below;
    return values[below] + (at - (double)below) * (values[above] - values[below]);
}

/* sum of binomial(n, k) / 2^n, k = 0 .. fewer, twice; the largest term is taken out so that none underflows before its time */
double mcnemar_exact(long lost, long gained) {
    const long n = lost + gained, fewer = lost < gained ? lost : gained;
    double term = 1, sum = 0; /* in units of the last term, binomial(n, fewer) */
    if (2 * fewer == n) return 1;
    for (long k = fewer; k >= 0 && term > 0; k--) {
        sum += term;
        term *= (double)k / (double)(n - k + 1);
    }
    const double last = lgamma((double)n + 1) - lgamma((double)fewer + 1) - lgamma((double)(n - fewer) + 1) - (double)n * M_LN2;
    return fmin(1, 2 * sum * exp(last));
}

static void bootstrap(struct paired *p, const double *difference, uint64_t seed) {
    const size_t n = (size_t)p->n;
    double *means = memory_take(PAIRED_DRAWS, sizeof *means);
#pragma omp parallel for schedule(static)
    for (int draw = 0; draw < PAIRED_DRAWS; draw++) {
        uint64_t state = seed;
        double sum = 0;
        state = random_next(&state) + (uint64_t)draw * 0xd1342543de82ef95u;
        for (size_t i = 0; i < n; i++) sum += difference[random_below(&state, n)];
        means[draw] = sum / (double)n;
    }
    p->ci_low = percentile(means, PAIRED_DRAWS, 2.5);
    p->ci_high = percentile(means, PAIRED_DRAWS, 97.5);
    free(means);
}

void paired_compare(struct paired *p, const double *baseline, const double *intervened, size_t n, uint64_t seed) {
    double *difference = memory_take(n + 1, sizeof *difference);
    *p = (struct paired){.mcnemar_p = 1};
    for (size_t i = 0; i < n; i++) {
        if (isnan(baseline[i]) || isnan(intervened[i])) continue;
        p->baseline += baseline[i];
        p->intervened += intervened[i];
        p->lost += intervened[i] < baseline[i];
        p->gained += intervened[i] > baseline[i];
        difference[p->n++] = intervened[i] - baseline[i];
    }
    if (p->n) {
        p->baseline /= (double)p->n;
        p->intervened /= (double)p->n;
        p->delta = p->intervened - p->baseline;
        p->mcnemar_p = mcnemar_exact(p->lost, p->gained);
        bootstrap(p, difference, seed);
    }
    free(difference);
}
