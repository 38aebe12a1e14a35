"""The language model: LLaMA (RMSNorm, grouped-query attention, llama3-scaled RoPE, SwiGLU), with transformers' parameter names,
and batches in which many questions share one scene.

A sample is a prefix (system text and scene, or image) and branches (question and answer). A branch sees the prefix and itself, and its
positions continue the prefix's, so every branch is trained exactly as if it were the only question, but the prefix is paid for once.
All tokens of a batch lie in one packed list without padding; only attention gathers them, unit by unit (a unit: one prefix or one
branch, its queries over its context and itself), units of like length together.
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

    def forward(self, x, cos, sin, groups, back):
        """x [N, C]; groups of (query rows [n, L], key rows [n, K], mask [n, 1, L * HEADS / KV, K]); back [N] undoes the gathering"""
        q = rotate(self.q_proj(x), cos, sin)
        k = rotate(self.k_proj(x), cos[:, :KV * DIM], sin[:, :KV * DIM])
        v = self.v_proj(x)
        out = []
        for rows, keys, mask in groups:
            (n, l), m = rows.shape, keys.shape[1]
            a = q.index_select(0, rows.flatten()).view(n, l, KV, HEADS // KV, DIM).permute(0, 2, 3, 1, 4).reshape(n, KV, -1, DIM)
            b, c = (z.index_select(0, keys.flatten()).view(n, m, KV, DIM).transpose(1, 2) for z in (k, v))
            y = F.scaled_dot_product_attention(a, b, c, attn_mask=mask)
            out.append(y.view(n, KV, HEADS // KV, l, DIM).permute(0, 3, 1, 2, 4).reshape(n * l, HEADS * DIM))
        return self.o_proj(torch.cat(out).index_select(0, back))


def rotate(x, cos, sin):
    """RoPE, rotate-half, on [N, heads * DIM]; sin carries the signs."""
    return x * cos + x.view(len(x), -1, 2, DIM // 2).flip(2).flatten(1) * sin


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

    def forward(self, x, *where):
        x = x + self.self_attn(self.input_layernorm(x), *where)
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

    def hidden(self, x, batch):
        """x [N, C] -> normed last state [N, C]"""
        angle = batch.position[:, None].float() * self.frequency
        cos, sin = angle.cos().repeat(1, 2 * HEADS), torch.cat([-angle.sin(), angle.sin()], 1).repeat(1, HEADS)
        for layer in self.model.layers:
            x = layer(x, cos, sin, batch.groups, batch.back)
        return self.model.norm(x)


def frequencies():
    """RoPE frequencies with llama3 scaling, [DIM / 2]."""
    f = THETA ** (-torch.arange(0, DIM, 2, dtype=torch.float32) / DIM)
    wave, old, lo, hi = 2 * math.pi / f, ROPE["original_max_position_embeddings"], ROPE["low_freq_factor"], ROPE["high_freq_factor"]
    s = ((old / wave - lo) / (hi - lo)).clamp(0, 1)
    return (1 - s) * f / ROPE["factor"] + s * f


IMAGE = -200                  # stands for one image row in token lists


class Batch:
    """ids, position, weight [N] (weight of each token as a target), groups and back for Attention, starts of the branches."""

    def __init__(self, samples, common=()):
        """samples: list of (prefix ids, [(branch ids, loss weights)]); prefixes that begin with common share those tokens."""
        common = list(common)
        ids, pos, w, units = list(common), list(range(len(common))), [0.0] * len(common), []
        if common:
            units.append((range(len(common)), ()))
        self.starts = []
        for prefix, branches in samples:
            shared = len(common) if common and prefix[:len(common)] == common else 0
            own = range(len(ids), len(ids) + len(prefix) - shared)
            ids += prefix[shared:]
            pos += range(shared, len(prefix))
            w += [0.0] * len(own)
            units.append((own, range(shared)))
            starts = []
            for b, bw in branches:
                starts.append(len(ids))
                units.append((range(len(ids), len(ids) + len(b)), (*range(shared), *own)))
                ids += b
                pos += range(len(prefix), len(prefix) + len(b))
                w += bw
            self.starts.append(starts)
        self.ids, self.position, self.weight = torch.tensor(ids), torch.tensor(pos), torch.tensor(w)
        self._group(sorted((u for u in units if len(u[0])), key=lambda u: len(u[0])))

    def _group(self, units):
        self.groups, self.back, at = [], torch.zeros(len(self.ids), dtype=torch.long), 0
        while units:
            n = next((i for i, u in enumerate(units) if len(u[0]) > 1.25 * len(units[0][0]) + 2), len(units))
            chunk, units = units[:n], units[n:]
            l, m = max(len(u) for u, _ in chunk), max(len(u) + len(c) for u, c in chunk)
            rows, keys, mask = torch.zeros(n, l, dtype=torch.long), torch.zeros(n, m, dtype=torch.long), torch.full((n, l, m), -1e9)
            for i, (u, c) in enumerate(chunk):
                rows[i, :len(u)] = torch.arange(u.start, u.stop)
                keys[i, :len(c) + len(u)] = torch.tensor([*c, *u])
                mask[i, :len(u), :len(c)] = 0
                mask[i, :len(u), len(c):len(c) + len(u)] = CAUSAL[:len(u), :len(u)]
                self.back[u.start:u.stop] = at + i * l + torch.arange(len(u))
            self.groups.append((rows, keys, mask.repeat(1, HEADS // KV, 1)[:, None]))
            at += n * l


CAUSAL = torch.full((MAX_POSITION, MAX_POSITION), -1e9).triu(1)


def predict(llm, x, batch):
    """Logits, targets and weights of the weighted tokens, and their places in the batch."""
    place = torch.nonzero(batch.weight)[:, 0]
    h = llm.hidden(x, batch)
    return llm.lm_head(h[place - 1]), batch.ids[place], batch.weight[place], place


def logits(llm, x):
    """Plain sequences of one length: x [B, T, C] -> logits [B, T, V]"""
    b, t, c = x.shape
    return llm.lm_head(llm.hidden(x.reshape(b * t, c), Batch([([], [([0] * t, [0.0] * t)])] * b))).view(b, t, -1)
