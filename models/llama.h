/* llama.h - LLaMA: weights, and the forward pass over packed rows. Tensor names and shapes: docs/models.md.
 * Letters: N rows, S sequences, C width, H heads, G kv heads, D head dim, F mlp, V vocabulary, L layers. */
#ifndef MODELS_LLAMA_H
#define MODELS_LLAMA_H
#include "models/arena.h"
#include "models/config.h"
#include "models/probe.h"
#include "models/weights.h"

struct llama_layer {
    act_t *attn_norm; /* (C) */
    act_t *qkv;       /* ((H+2G)*D, C): q rows, k rows, v rows */
    act_t *o;         /* (C, H*D) */
    act_t *mlp_norm;  /* (C) */
    act_t *gate_up;   /* (2F, C): gate rows, up rows */
    act_t *down;      /* (C, F) */
};
/* Activations of one layer that llama_backward reads. */
struct llama_kept {
    act_t *x, *mid;                     /* (N, C) the residual stream before attention, and before the MLP */
    act_t *q, *z;                       /* (N, H, D), q after rotation */
    act_t *k, *v;                       /* (N, G, D), k after rotation */
    act_t *gate_up;                     /* (N, 2F) */
    real_t *attn_rstd, *mlp_rstd, *lse; /* (N), (N), (N, H): the norms' and the softmax's */
};
/* Activations of one pass, placed in llama.scratch; attention's and the MLP's share their place. */
struct llama_scratch {
    act_t *x;                           /* (N, C) residual stream */
    act_t *h;                           /* (N, C) normalised */
    act_t *out;                         /* (N, C) attn_out, then mlp_out */
    act_t *qkv;                         /* (N, (H+2G)*D) */
    act_t *q, *z;                       /* (N, H, D) */
    act_t *k, *v;                       /* (N, G, D) */
    act_t *gate_up;                     /* (N, 2F) */
    act_t *y;                           /* (N, F) */
    act_t *last;                        /* (S, C) */
    real_t *attn_rstd, *mlp_rstd, *lse; /* as in llama_kept, NULL: not kept */
};
struct llama {
    struct llama_config config;
    int layers;        /* loaded: at most config.L */
    act_t *embed;      /* (V, C) */
    act_t *final_norm; /* (C), NULL when fewer than config.L layers are loaded */
    act_t *head;       /* (V, C), embed when tied; NULL likewise */
    struct llama_layer *layer;
    real_t *cosine, *sine; /* (positions, D/2) */
    int positions;
    struct buffer weights, rope, scratch, logits, backward;
};
/* Keys and values of every layer, row-major by layer; sequence s owns rows k_start[s] .. of it. */
struct kv_cache {
    act_t *k, *v; /* (L, rows, G, D) */
    size_t rows;
    const int *q_start;   /* host (S+1), as in llama_rows */
    const int *store_row; /* host (S): the cache row of each sequence's first new key */
};
/* Packed query rows and where their keys lie; arrays on the device. */
struct llama_rows {
    int N, S, max_q;
    const int *source, *position;            /* (N) i32: embed_forward's, qkv_split_rope's */
    const int *q_start, *k_start, *k_length; /* (S+1), (S), (S) i32: attention_forward's */
    const int *last;                         /* (S) i32: each sequence's last row; used for last_logits */
    const int *one_each;                     /* (S+1) i32: 0 .. S, q_start when only the last rows are queries */
    const act_t *image_rows;                 /* (R, C), NULL without pictures */
    struct kv_cache *cache;                  /* NULL: the keys are the rows' own */
    const act_t *stream; /* (N, C): the pass starts with this as hook_resid_pre of layer `from`; NULL: with the embedding */
    int from;
    const struct llama_kept *keep; /* (layers) where activations go that llama_backward reads; no last_logits then. NULL: none are kept */
};

/* Loads the first `layers` layers (0: all, with final norm and head). w->dev NULL: only checks names, dtypes and shapes. */
int llama_open(struct llama *m, const struct llama_config *config, int layers, struct weights *w, const struct weight_names *names,
               struct error *err);
void llama_close(struct llama *m, struct device *dev);
/* Device bytes: weights of the first `layers` layers (0: all, with final norm and head); activations of a pass over N rows, S sequences. */
size_t llama_weight_bytes(const struct llama_config *c, int layers, bool own_head);
size_t llama_scratch_bytes(const struct llama_config *c, int N, int S);
/* Rotary tables for positions below `positions`, grown by doubling. */
int llama_reserve_positions(struct llama *m, struct device *dev, int positions, struct error *err);
/* One pass; probes run where they ask to, and it stops after the last place that anyone asked for.
 *   last_logits [out] (S, V) real on the device, or NULL
 * Where only last_logits follow the last layer's keys, the rest of that layer runs for each sequence's last row alone.
 * Cost: 2 N times the parameters of the layers run, plus attention. */
int llama_forward(struct llama *m, struct device *dev, const struct llama_rows *rows, const struct probes *probes, real_t *last_logits,
                  struct error *err);
#endif
