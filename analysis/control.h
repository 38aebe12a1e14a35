/* control.h - matched controls of an edit list: the same edits of something else of the same kind. A head becomes a random head of the same
 * layers, a feature (or its decoder row) a random one of the same dictionary that fires about as often (none that is edited or barred), a
 * vector of a file a random direction of the same length. (papers.md 4.3) */
#ifndef ANALYSIS_CONTROL_H
#define ANALYSIS_CONTROL_H
#include "analysis/edit.h"
#include <stdint.h>

enum control_kind { CONTROL_MATCHED, CONTROL_DIRECTIONS }; /* directions: for decoder rows too */
enum { CONTROL_LEAST = 20, CONTROL_SAMPLES = 256 };
struct controls;
/* Counts how often features fire on the rows that their edit names, at their dictionary's layer, in the first CONTROL_SAMPLES of the
 * samples; "about as often": the max(20, 2 * draws) features of nearest log count. Errors: a list whose edits leave nothing to draw (all
 * heads of a layer, reconstruct alone); a decoder row of a dictionary that does not say its layer. */
int controls_open(struct controls **c, struct model *m, const struct edit_list *l, const struct samples *s, size_t first, size_t count,
                  enum control_kind kind, int draws, uint64_t seed, int batch, struct error *err);
/* The edits of one draw, 0 to draws - 1; the same bits whatever was drawn before. Free it before the list it comes from. */
void controls_draw(const struct controls *c, int draw, struct edit_list *out);
void controls_close(struct controls *c); /* NULL is fine */
#endif
