/* ref_names.h - for files that take in models/llama.c or llama_backward.c once more in double: the oracle's ops in the place of the
 * executor's, and every public name with ref_ before it. Include it first. */
#ifndef TESTS_MODELS_REF_NAMES_H
#define TESTS_MODELS_REF_NAMES_H
#define STAGEDIFF_REF
#define arena_acts              ref_arena_acts
#define arena_take              ref_arena_take
#define attention_backward      ref_attention_backward
#define attention_forward       ref_attention_forward
#define buffer_free             ref_buffer_free
#define buffer_reserve          ref_buffer_reserve
#define embed_backward          ref_embed_backward
#define embed_forward           ref_embed_forward
#define gather_rows             ref_gather_rows
#define linear_backward_input   ref_linear_backward_input
#define linear_backward_weight  ref_linear_backward_weight
#define linear_forward          ref_linear_forward
#define linear_forward_real     ref_linear_forward_real
#define qkv_split_rope          ref_qkv_split_rope
#define qkv_split_rope_backward ref_qkv_split_rope_backward
#define residual_add            ref_residual_add
#define rmsnorm_backward        ref_rmsnorm_backward
#define rmsnorm_backward_weight ref_rmsnorm_backward_weight
#define rmsnorm_forward         ref_rmsnorm_forward
#define swiglu_backward         ref_swiglu_backward
#define swiglu_forward          ref_swiglu_forward
#define llama_backward          ref_llama_backward
#define llama_backward_output   ref_llama_backward_output
#define llama_close             ref_llama_close
#define llama_forward           ref_llama_forward
#define llama_gradients_free    ref_llama_gradients_free
#define llama_gradients_reserve ref_llama_gradients_reserve
#define llama_open              ref_llama_open
#define llama_reserve_positions ref_llama_reserve_positions
#define llama_scratch_bytes     ref_llama_scratch_bytes
#define llama_tape_free         ref_llama_tape_free
#define llama_tape_reserve      ref_llama_tape_reserve
#define llama_weight_bytes      ref_llama_weight_bytes
#include <math.h>
#define sqrtf sqrt
#endif
