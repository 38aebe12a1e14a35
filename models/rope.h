/* rope.h - rotary position tables in f32, in Hugging Face's order of operations. */
#ifndef MODELS_ROPE_H
#define MODELS_ROPE_H
#include "models/config.h"
/* inv_freq [out] (D/2) f32: theta^(-2i/D), scaled as the type says (linear: / factor; llama3: formats in docs/models.md). */
void rope_frequencies(float *inv_freq, const struct rope_config *rope, int D);
/* cosine, sine [out] (positions, D/2) f32: of position * inv_freq, product rounded to f32 first, as transformers does. */
void rope_tables(float *cosine, float *sine, const struct rope_config *rope, int positions, int D);
#endif
