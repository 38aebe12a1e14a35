/* paired.h - statistics of one set of samples scored twice: before and after an intervention. Sources: Efron & Tibshirani 1993 (percentile
 * bootstrap of pairs), McNemar 1947 (exact: a binomial test of the discordant pairs). */
#ifndef ANALYSIS_PAIRED_H
#define ANALYSIS_PAIRED_H
#include <stddef.h>
#include <stdint.h>

enum { PAIRED_DRAWS = 10000 };
struct paired {
    long n;                      /* pairs with both scores */
    double baseline, intervened; /* mean scores; 0 without pairs */
    double delta;                /* intervened - baseline */
    double ci_low, ci_high;      /* 2.5 and 97.5 percentile (linear interpolation) of delta over PAIRED_DRAWS samples of n pairs with
                                    replacement; the same seed gives the same bits */
    long lost, gained;           /* pairs whose score fell, rose */
    double mcnemar_p;            /* exact, two-sided: how likely so uneven a split of lost + gained is, were either as likely */
};
/* Scores of the same samples; NaN: not scored, the pair is left out. */
void paired_compare(struct paired *p, const double *baseline, const double *intervened, size_t n, uint64_t seed);
double mcnemar_exact(long lost, long gained);
/* The q-th percentile (0 to 100) of n values with linear interpolation between ranks, as numpy.percentile; sorts them. NaN for n 0. */
double percentile(double *values, size_t n, double q);
/* splitmix64 (Steele, Lea & Flood 2014), and a whole number below n from it by multiplication. */
uint64_t random_next(uint64_t *state);
size_t random_below(uint64_t *state, size_t n);
double random_normal(uint64_t *state); /* sum of 12 uniforms less 6: additions alone, the same bits everywhere */
#endif
