/* vectors.h - directions to steer with and means to ablate with. Sources: CAA: Rimsky et al. 2024; MMDiff-CAA in its two published forms
 * and head means: papers.md 3.5, 1.6. */
#ifndef ANALYSIS_VECTORS_H
#define ANALYSIS_VECTORS_H
#include "analysis/evaluate.h"

/* What CAA tells apart, always at the last token of the text (resid_post of every layer):
 *   answers    each line twice, with its right answer and with a wrong one appended
 *   outcomes   lines that the model answers right, and those that it does not (score below 1/2) */
enum contrast { CONTRAST_ANSWERS, CONTRAST_OUTCOMES };
struct caa {
    int layers, width;
    float *vectors;          /* (layers, width), owned: mean of the right ones - mean of the wrong ones */
    long positive, negative; /* how many of either */
};
/* Right answer: VSR's label as Yes or No, else the line's `answer` (or first of `answers`); wrong one: the line's `incorrect`, else the
 * other of yes and no in the same letters; a line without either is an error. Errors too when there are no lines on one side. task: how
 * answers are scored. */
int caa_make(struct caa *c, struct model *m, const struct samples *s, size_t first, size_t count, enum contrast contrast,
             enum evaluation_task task, int batch, struct error *err);
void caa_free(struct caa *c);
/* v := v/|v| + (beta - 1) (v/|v| . w) w, w = direction/|direction|: the published code's steer; beta 1 is plain CAA of unit length. */
void mmdiff_scale(float *v, const float *direction, int width, double beta);
/* v := alpha v + gamma w: the paper's text, at the feature's layer (elsewhere gamma is 0). */
void mmdiff_sum(float *v, const float *direction, int width, double alpha, double gamma);
double vector_norm(const float *v, int width);

/* means [out] (L, H*D): hook_z of every layer, its mean over all tokens of the samples. */
int head_means(float *means, struct model *m, const struct samples *s, size_t first, size_t count, int batch, struct error *err);
#endif
