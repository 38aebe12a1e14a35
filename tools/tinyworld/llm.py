"""The language model: LLaMA (RMSNorm, grouped-query attention, llama3-scaled RoPE, SwiGLU), with transformers' parameter names,
and batches in which many questions share one scene.

A sample is a prefix (system text and scene, or image) and branches (question and answer). A branch sees the prefix and itself, and its
positions continue the prefix's, so every branch is trained exactly as if it were the only question, but the prefix is paid for once.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

WIDTH, HEADS, KV, LAYERS, MLP, DIM = 128, 8, 2, 8, 384, 16
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

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, HEADS, DIM).transpose(1, 2)
        k = self.k_proj(x).view(b, t, KV, DIM).transpose(1, 2)
        v = self.v_proj(x).view(b, t, KV, DIM).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (z.repeat_interleave(HEADS // KV, 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, WIDTH))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


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

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
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
        self.frequency = frequencies()

    def embed(self, ids):
        return self.model.embed_tokens(ids)

    def hidden(self, x, position, mask):
        """x [B, T, C], position [B, T], mask bool [B, 1, T, T] -> normed last state [B, T, C]"""
        angle = (position[..., None].float() * self.frequency)[:, None]
        cos, sin = angle.cos(), angle.sin()
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return self.model.norm(x)


def frequencies():
    """RoPE frequencies with llama3 scaling, [DIM / 2]."""
    f = THETA ** (-torch.arange(0, DIM, 2, dtype=torch.float32) / DIM)
    wave, old, lo, hi = 2 * math.pi / f, ROPE["original_max_position_embeddings"], ROPE["low_freq_factor"], ROPE["high_freq_factor"]
    s = ((old / wave - lo) / (hi - lo)).clamp(0, 1)
    return (1 - s) * f / ROPE["factor"] + s * f


IMAGE = -200                  # placeholder of one image row in token lists


def collate(samples):
    """samples: list of (prefix ids, [(branch ids, loss weights)]) -> ids, position, mask, weight, lists of branch ends

    ends[b] = [(index of the first token after the prompt, branch number)] is not needed: weights mark what is predicted.
    """
    rows = []
    for prefix, branches in samples:
        ids, pos, br, w = list(prefix), list(range(len(prefix))), [0] * len(prefix), [0.0] * len(prefix)
        for k, (b, bw) in enumerate(branches):
            ids += b
            pos += range(len(prefix), len(prefix) + len(b))
            br += [k + 1] * len(b)
            w += bw
        rows.append((ids, pos, br, w))
    t = max(len(r[0]) for r in rows)
    ids, pos, br = (torch.tensor([r[j] + [fill] * (t - len(r[0])) for r in rows]) for j, fill in ((0, 0), (1, 0), (2, -1)))
    weight = torch.tensor([r[3] + [0.0] * (t - len(r[0])) for r in rows])
    same = (br[:, :, None] == br[:, None, :]) | (br[:, None, :] == 0)
    mask = same & torch.ones(t, t, dtype=torch.bool).tril()
    return ids, pos, mask[:, None], weight


def predict(llm, x, pos, mask, weight, ids):
    """Logits and targets at the weighted places only: -> logits [n, V], targets [n], weights [n], places (b, t) of the targets"""
    h = llm.hidden(x, pos, mask)
    b, t = torch.nonzero(weight[:, 1:], as_tuple=True)
    return llm.lm_head(h[b, t]), ids[b, t + 1], weight[b, t + 1], (b, t + 1)
