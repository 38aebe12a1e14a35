/* rope.c - rotary position tables (rope.h). llama3 scaling: Llama 3.1's, by wavelength w = 2 pi / f and original length P:
 *   w < P/high: f     w > P/low: f/factor     else (1-s) f/factor + s f,  s = (P/w - low) / (high - low)
 * Everything is rounded to f32 where transformers keeps f32 tensors: at position 100,000 the last bit of f is visible. */
#include "models/rope.h"
#include <math.h>

void rope_frequencies(float *inv_freq, const struct rope_config *rope, int D) {
    for (int i = 0; i < D / 2; i++) {
        float exponent = (float)(2 * i) / (float)D;
        float f = 1.0f / (float)pow(rope->theta, exponent);
        if (rope->type == ROPE_LINEAR) f /= (float)rope->factor;
        if (rope->type == ROPE_LLAMA3) {
            const double P = rope->original_positions, low = rope->low_freq_factor, high = rope->high_freq_factor;
            const float w = (float)(2 * M_PI) / f;
            const float s = ((float)P / w - (float)low) / (float)(high - low);
            if (w > (float)(P / low))
                f /= (float)rope->factor;
            else if (w >= (float)(P / high))
                f = (1 - s) * f / (float)rope->factor + s * f;
        }
        inv_freq[i] = f;
    }
}

void rope_tables(float *cosine, float *sine, const struct rope_config *rope, int positions, int D) {
    float inv_freq[128]; /* D <= 256, checked by config.c */
    rope_frequencies(inv_freq, rope, D);
#pragma omp parallel for
    for (int t = 0; t < positions; t++)
        for (int i = 0; i < D / 2; i++) {
            const float angle = (float)t * inv_freq[i];
            cosine[(size_t)t * (size_t)(D / 2) + (size_t)i] = cosf(angle);
            sine[(size_t)t * (size_t)(D / 2) + (size_t)i] = sinf(angle);
        }
}
