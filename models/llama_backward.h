/* llama_backward.h - gradients through LLaMA: from resid_post of a layer down to hook_z of every layer and hook_embed, and on
 * request of every weight. Letters as in llama.h. */
#ifndef MODELS_LLAMA_BACKWARD_H
#define MODELS_LLAMA_BACKWARD_H
#include "models/llama.h"

/* What a forward pass keeps for the backward pass: the residual stream before every layer, and of as many layers as the memory
 * allows all else; the others share one place and are run again when the backward pass comes to them. */
struct llama_tape {
    int layers, own; /* the first `own` have a place of their own */
    struct llama_kept *layer;
    struct buffer memory;
};
/* Makes room for N rows of the first `layers` layers (rows->keep = tape->layer). `most` bytes at most go to layers with places of
 * their own. */
int llama_tape_reserve(struct llama_tape *tape, const struct llama *m, struct device *dev, int N, int layers, size_t most,
                       struct error *err);
void llama_tape_free(struct llama_tape *tape, struct device *dev);

/* Gradients of the weights, in the shapes of llama.h, f32 [acc]. */
struct llama_layer_gradients {
    real_t *attn_norm, *qkv, *o, *mlp_norm, *gate_up, *down;
};
struct llama_gradients {
    real_t *embed, *final_norm, *head; /* head: embed's when tied; final_norm, head NULL when fewer than all layers are loaded */
    struct llama_layer_gradients *layer;
    struct buffer memory;
};
int llama_gradients_reserve(struct llama_gradients *g, const struct llama *m, struct device *dev, struct error *err); /* all zero */
void llama_gradients_free(struct llama_gradients *g, struct device *dev);

/* From the gradient of some scalar at resid_post of the tape's last layer to the layers below.
 *   dx [in, out] (N, C) act: that gradient; on return the one at the last point that was asked for
 * Probes see gradients in the place of activations: hook_resid_post, hook_resid_mid, attn.hook_z, hook_resid_pre of each layer of the
 * tape, hook_embed at last. It stops after the lowest point that a probe asks for, unless weight gradients are wanted.
 *   rows: of the pass that filled the tape (rows->keep)    g [acc]: NULL or the weights' gradients
 * Cost: 2 N times the parameters of the layers, attention, and once more the forward pass for layers without a place of their own;
 * with g 2 N times the parameters more. Bitwise repeatable. */
int llama_backward(struct llama *m, struct device *dev, const struct llama_rows *rows, const struct llama_tape *tape, act_t *dx,
                   const struct probes *probes, const struct llama_gradients *g, struct error *err);
/* From the gradient at the logits to the one at resid_post of the last layer:  logits = head . rmsnorm(x)
 *   dx [out] (N, C) act    dlogits [in] (N, V) act    x [in] (N, C) act, resid_post of the last layer */
int llama_backward_output(struct llama *m, struct device *dev, act_t *dx, const act_t *dlogits, const act_t *x, int N,
                          const struct llama_gradients *g, struct error *err);
#endif
