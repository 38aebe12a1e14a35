/* codes.h - sparse codes of chosen rows of a packed tensor, CODES_ROWS of them at a time. */
#ifndef ANALYSIS_CODES_H
#define ANALYSIS_CODES_H
#include "models/arena.h"
#include "sae/sae.h"
enum { CODES_ROWS = 1024 };
struct codes { /* on the device, placed in work; zeroed before first use */
    struct buffer work;
    int d, K, F;
    act_t *x;              /* (CODES_ROWS, d) the rows */
    real_t *x_hat;         /* (CODES_ROWS, d) for the caller */
    real_t *c;             /* (CODES_ROWS, F) for the caller */
    int *indices, *counts; /* (CODES_ROWS, K), (CODES_ROWS) */
    real_t *values;        /* (CODES_ROWS, K), 0 in unused slots */
};
/* Codes of y[rows[0 .. n)], n <= CODES_ROWS; y (.., d) act, rows on the device. w->K slots a row: the dictionary's k, or as many as the
 * most active row needs. F: columns of c. */
int codes_encode(struct codes *w, struct sae *sae, const act_t *y, const int *rows, int n, int F, struct error *err);
void codes_free(struct codes *w, struct device *dev);
#endif
