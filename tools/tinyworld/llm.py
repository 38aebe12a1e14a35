"""The language model: LLaMA (RMSNorm, grouped-query attention, llama3-scaled RoPE, SwiGLU), with transformers' parameter names,
and batches in which many questions share one scene.

A sample is a prefix (system text and scene, or image) and branches (question and answer). A branch sees the prefix and itself, and its
positions continue the prefix's, so every branch is trained exactly as if it were the only question, but the prefix is paid for once.
A batch has one row a sample, all of one length, so that every step is the same work (on a GPU: one graph, replayed).
"""
import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

WIDTH, HEADS, KV, LAYERS, MLP, DIM = 160, 10, 2, 8, 448, 16
ROPE = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
THETA, MAX_POSITION, EPS = 10000.0, 1024, 1e-5


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return F.rms_norm(x, (WIDTH,), self.weight, EPS)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * DIM, bias=False)
        self.k_proj = nn.Linear(WIDTH, KV * DIM, bias=False)
        self.v_proj = nn.Linear(WIDTH, KV * DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * DIM, WIDTH, bias=False)

    def forward(self, x, cos, sin, mask, drop):
        """x [B, T, C]; cos, sin [B, T, DIM]; mask [B, 1, T, T]; drop [] or number: share of (sample, head) pairs whose output is set to
        zero in training"""
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, -1, DIM).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        k, v = rotate(k, cos, sin).repeat_interleave(HEADS // KV, 1), v.repeat_interleave(HEADS // KV, 1)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, attn_mask=mask)
        if self.training:
            y = y * (torch.rand(b, HEADS, 1, 1, device=x.device) >= drop)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, HEADS * DIM))


def rotate(x, cos, sin):
    """RoPE, rotate-half, on [B, heads, T, DIM]; sin carries the signs."""
    return x * cos[:, None] + x.roll(DIM // 2, -1) * sin[:, None]


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, MLP, bias=False)
        self.up_proj = nn.Linear(WIDTH, MLP, bias=False)
        self.down_proj = nn.Linear(MLP, WIDTH, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn, self.mlp = Attention(), Mlp()

    def forward(self, x, *how):
        x = x + self.self_attn(self.input_layernorm(x), *how)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()


class Llm(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.model = Model(vocab)
        self.lm_head = nn.Linear(WIDTH, vocab, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.03)
        self.register_buffer("frequency", frequencies(), persistent=False)

    def embed(self, ids):
        return self.model.embed_tokens(ids)

    def hidden(self, x, position, mask, drop=0.0):
        """x [B, T, C] -> normed last state [B, T, C]"""
        angle = position[..., None].float() * self.frequency
        cos, sin = angle.cos().repeat(1, 1, 2), torch.cat([-angle.sin(), angle.sin()], -1)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask, drop)
        return self.model.norm(x)


def frequencies():
    """RoPE frequencies with llama3 scaling, [DIM / 2]."""
    f = THETA ** (-torch.arange(0, DIM, 2, dtype=torch.float32) / DIM)
    wave, old, lo, hi = 2 * math.pi / f, ROPE["original_max_position_embeddings"], ROPE["low_freq_factor"], ROPE["high_freq_factor"]
    s = ((old / wave - lo) / (hi - lo)).clamp(0, 1)
    return (1 - s) * f / ROPE["factor"] + s * f


IMAGE = -200                  # stands for one image row in token lists


def rows(samples, length):
    """Samples, a list of (prefix ids, [(branch ids, loss weights, ...)]), as arrays [B, length]: ids, position, unit (0 prefix, 1.. branches,
    -1 nothing) and weight of each token as a target. Branches that do not fit are left out."""
    b = len(samples)
    out = {"ids": np.zeros((b, length), np.int64), "position": np.zeros((b, length), np.int64), "unit": np.full((b, length), -1, np.int64),
           "weight": np.zeros((b, length), np.float32)}
    for i, (prefix, branches, *_) in enumerate(samples):
        at, n = len(prefix), len(prefix)
        out["ids"][i, :n], out["position"][i, :n], out["unit"][i, :n] = prefix, np.arange(n), 0
        for j, (ids, weight, *_) in enumerate(branches):
            end = at + len(ids)
            if end > length:
                continue
            out["ids"][i, at:end], out["weight"][i, at:end], out["unit"][i, at:end] = ids, weight, j + 1
            out["position"][i, at:end] = np.arange(n, n + len(ids))
            at = end
    return out


def visible(unit):
    """What a token sees: the prefix and its own branch, up to itself. unit [B, T] -> [B, 1, T, T]"""
    t = unit.shape[1]
    before = torch.ones(t, t, dtype=torch.bool, device=unit.device).tril()
    return (before & ((unit[:, None] == 0) | (unit[:, None] == unit[:, :, None])))[:, None]


def predict(llm, x, batch, drop=0.0):
    """x [B, T, C] -> mean loss over the weighted tokens, and which tokens are predicted right [B, T - 1] (of ids[:, 1:])."""
    scores = llm.lm_head(llm.hidden(x, batch["position"], visible(batch["unit"]), drop)[:, :-1])
    target, weight = batch["ids"][:, 1:].clamp(min=0), batch["weight"][:, 1:]
    loss = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
    return (loss * weight).sum() / weight.sum(), scores.argmax(-1) == target


def logits(llm, x):
    """Plain sequences of one length: x [B, T, C] -> logits [B, T, V]"""
    b, t, _ = x.shape
    where = torch.arange(t, device=x.device).expand(b, t)
    return llm.lm_head(llm.hidden(x, where, visible(torch.zeros_like(where))))
