/* sae.c - a dictionary on the host: names, its random start, its turn into a TopK one. */
#include "sae/sae.h"
#include "host/file.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

const char *sae_format_name(enum sae_format f) {
    static const char *const names[] = {"Llama Scope v1", "OpenMOSS (early 2025)", "OpenMOSS (since June 2025)", "SAELens",
                                        "sparsify",       "Gemma Scope",           "dictionary_learning",        "MMDiff",
                                        "Qwen Scope"};
    return names[f];
}

const char *sae_activation_name(enum sae_activation a) {
    static const char *const names[] = {"topk", "jumprelu", "relu", "signed topk", "groupmax"};
    return names[a];
}

bool sae_fixed_k(enum sae_activation a) { return a != SAE_JUMPRELU && a != SAE_RELU; }

void sae_host_free(struct sae_host *s) {
    float **arrays[] = {&s->E, &s->D, &s->b_e, &s->b_d, &s->threshold, &s->rank_scale, &s->skip};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        free(*arrays[i]);
        *arrays[i] = NULL;
    }
}

/* splitmix64 (Steele, Lea & Flood 2014) */
static uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A normal variate as the sum of 12 uniforms less 6: additions alone, so the same bits on every machine. */
static double random_normal(uint64_t *state) {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += (double)(random_bits(state) >> 11) * 0x1p-53;
    return sum;
}

int sae_random(struct sae_host *s, int d, int M, int K, unsigned long seed, struct error *err) {
    if (d < 1 || M < 1 || K < 1 || K > M)
        return fail(err, "a random dictionary needs d_model >= 1 and 1 <= k <= features; found d_model %d, features %d, k %d", d, M, K);
    size_t n = (size_t)M * (size_t)d;
    memset(s, 0, sizeof *s);
    s->format = SAE_FORMAT_SAELENS;
    s->activation = SAE_TOPK;
    s->d = d, s->M = M, s->K = K, s->layer = -1;
    s->E = memory_take(n, sizeof *s->E);
    s->D = memory_take(n, sizeof *s->D);
    s->b_e = memory_take((size_t)M, sizeof *s->b_e);
    s->b_d = memory_take((size_t)d, sizeof *s->b_d);
#pragma omp parallel for schedule(static)
    for (int f = 0; f < M; f++) {
        uint64_t state = (uint64_t)seed;
        state = random_bits(&state) + (uint64_t)f * 0xd1342543de82ef95u;
        float *row = s->D + (size_t)f * (size_t)d;
        double norm = 0;
        for (int c = 0; c < d; c++) {
            row[c] = (float)random_normal(&state);
            norm += (double)row[c] * (double)row[c];
        }
        norm = norm > 0 ? sqrt(norm) : 1;
        for (int c = 0; c < d; c++) row[c] = (float)((double)row[c] / norm);
    }
    memcpy(s->E, s->D, n * sizeof *s->E);
    return 0;
}

int sae_make_topk(struct sae_host *s, int k, struct error *err) {
    if (sae_check_plain(s, err)) return -1;
    free(s->threshold), free(s->rank_scale);
    s->threshold = s->rank_scale = NULL;
    s->ranked = false;
    if (s->activation != SAE_TOPK || k > 0 || s->K == 0) s->K = k > 0 ? k : s->activation == SAE_TOPK && s->K > 0 ? s->K : 50;
    s->activation = SAE_TOPK;
    if (s->K > s->M) return fail(err, "k is %d but the dictionary has %d features; give a smaller k", s->K, s->M);
    return 0;
}

int sae_set_k(struct sae_host *s, int k, const char *path, struct error *err) {
    if (k == 0) return 0;
    if (!sae_fixed_k(s->activation))
        return fail(err, "--k %d: %s is a %s dictionary, which has no k; leave --k out", k, path, sae_activation_name(s->activation));
    if (k > s->M) return fail(err, "--k must be at most %d, the features of %s, found %d", s->M, path, k);
    if (s->activation == SAE_GROUPMAX && s->M % k)
        return fail(err, "--k must divide %d, the features of the groupmax dictionary %s, found %d", s->M, path, k);
    if (s->K > 0 && s->K != k && !s->k_assumed) log_note("%s: its own k is %d, --k %d takes its place", path, s->K, k);
    s->K = k;
    return 0;
}

int sae_check_plain(const struct sae_host *s, struct error *err) {
    if (s->transcoder)
        return fail(err, "a transcoder (its input is %s) does not give back its input; expected a sparse autoencoder",
                    s->hook[0] ? s->hook : "another hook point than its output");
    if (s->norm != SAE_NORM_NONE)
        return fail(err, "a dictionary that normalises every row (%s) is for encode and convert only",
                    s->norm == SAE_NORM_LAYER ? "layer_norm" : "constant_norm_rescale");
    return 0;
}

void sae_normalise(enum sae_norm norm, float *x, float *shift, float *scale, int n, int d) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < n; r++) {
        float *row = x + (size_t)r * (size_t)d;
        double mean = 0, square = 0;
        for (int i = 0; i < d && norm == SAE_NORM_LAYER; i++) mean += (double)row[i] / d;
        for (int i = 0; i < d; i++) square += ((double)row[i] - mean) * ((double)row[i] - mean);
        const double size = norm == SAE_NORM_LAYER ? sqrt(square / (d > 1 ? d - 1 : 1)) : sqrt(square / d);
        const double by = norm == SAE_NORM_LAYER ? size + 1e-5 : size > 0 ? size : 1; /* a row of zeros stays one */
        for (int i = 0; i < d; i++) row[i] = (float)(((double)row[i] - mean) / by);
        shift[r] = (float)mean, scale[r] = (float)size;
    }
}

void sae_denormalise(float *x, const float *shift, const float *scale, int n, int d) {
    for (int r = 0; r < n; r++)
        for (int i = 0; i < d; i++) x[(size_t)r * (size_t)d + (size_t)i] = x[(size_t)r * (size_t)d + (size_t)i] * scale[r] + shift[r];
}
