/* codes.c - see codes.h. */
#include "analysis/codes.h"
#include "kernels/activation.h"
#include "host/check.h"
#include <string.h>

enum { JUMPRELU_SLOTS = 128 };

static int place(struct codes *w, struct sae *sae, int K, int F, struct error *err) {
    const size_t rows = CODES_ROWS, d = (size_t)sae->d;
    for (int placing = 0; placing < 2; placing++) {
        struct arena a = {.base = placing ? w->work.data : NULL};
        w->x = arena_acts(&a, rows, d);
        w->x_hat = arena_take(&a, rows * d * sizeof(real_t));
        w->c = arena_take(&a, rows * (size_t)F * sizeof(real_t));
        w->indices = arena_take(&a, rows * (size_t)K * sizeof(int));
        w->values = arena_take(&a, rows * (size_t)K * sizeof(real_t));
        w->counts = arena_take(&a, rows * sizeof(int));
        if (!placing && buffer_reserve(&w->work, sae->dev, a.used, "the codes of edited rows", err)) return -1;
    }
    w->d = sae->d, w->K = K, w->F = F;
    return 0;
}

int codes_encode(struct codes *w, struct sae *sae, const act_t *y, const int *rows, int n, int F, struct error *err) {
    int counts[CODES_ROWS], most = 0;
    CHECK(n <= CODES_ROWS, "n=%d", n);
    if (place(w, sae, sae_fixed_k(sae->activation) ? sae->K : sae->M < JUMPRELU_SLOTS ? sae->M : JUMPRELU_SLOTS, F, err)) return -1;
    gather_rows(sae->dev, w->x, y, rows, n, sae->d);
    sae_encode(sae, w->indices, w->values, w->counts, w->x, n, w->K);
    if (sae_fixed_k(sae->activation) || w->K == sae->M) return 0;
    device_download(sae->dev, counts, w->counts, (size_t)n * sizeof *counts);
    for (int i = 0; i < n; i++) most = counts[i] > most ? counts[i] : most;
    if (most <= w->K) return 0;
    if (place(w, sae, most, F, err)) return -1; /* a row with more active features than slots: once more with enough */
    gather_rows(sae->dev, w->x, y, rows, n, sae->d);
    sae_encode(sae, w->indices, w->values, w->counts, w->x, n, w->K);
    return 0;
}

void codes_free(struct codes *w, struct device *dev) {
    buffer_free(&w->work, dev);
    memset(w, 0, sizeof *w);
}
