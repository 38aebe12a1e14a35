"""The vision tower: CLIP's ViT (class token, pre-LN blocks, quick_gelu) at 64 x 64 pixels, patch 8, and its training.

Trained on dense labels at the layer that LLaVA reads (-2): for every patch the colour, the shape, the row and column of the
centre and the depth of the thing it belongs to; and on scene content at the class token after the last layer (how many things,
which ones). Labels stand in for CLIP's 400 million captions: what the tower must provide is the same, features that say what is
where. It then stays frozen.   usage: tower.py WORK_DIR     resumable; the state is WORK_DIR/tower.pt
"""
import os
import random
import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import scenes
import steps

WIDTH, HEADS, LAYERS, MLP, PATCH, SIZE = 96, 6, 5, 384, 8, 64
SELECT = LAYERS - 1           # output of this many layers = hidden_states[-2]
COLOURS, SHAPES = list(scenes.COLOURS), list(scenes.SHAPES)
ROWS, STEPS = 40, 8000       # pictures a step


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, MLP), nn.Linear(MLP, WIDTH)

    def forward(self, x):
        b, t, _ = x.shape
        h = self.n1(x)
        q, k, v = (f(h).view(b, t, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, WIDTH))
        h = self.fc1(self.n2(x))
        return x + self.fc2(h * torch.sigmoid(1.702 * h))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.patch = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.position = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, WIDTH) * 0.02)
        self.pre, self.post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, pixels, every=False):
        """pixels [B, 3, 64, 64] -> [B, 64, 96], the rows LLaVA takes; with every also the class row after the last layer"""
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        x = self.pre(torch.cat([self.cls.expand(len(x), 1, -1), x], 1) + self.position)
        for b in self.blocks[:SELECT]:
            x = b(x)
        rows = x[:, 1:]
        if not every:
            return rows
        for b in self.blocks[SELECT:]:
            x = b(x)
        return rows, self.post(x[:, 0])

    def hf_state(self):
        """Weights under the names of transformers' CLIPVisionModel."""
        p = "vision_model."
        out = {p + "embeddings.class_embedding": self.cls, p + "embeddings.patch_embedding.weight": self.patch.weight,
               p + "embeddings.position_embedding.weight": self.position}
        for name, m in (("pre_layrnorm", self.pre), ("post_layernorm", self.post)):
            out[f"{p}{name}.weight"], out[f"{p}{name}.bias"] = m.weight, m.bias
        names = {"n1": "layer_norm1", "n2": "layer_norm2", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
                 "o": "self_attn.out_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
        for i, b in enumerate(self.blocks):
            for k, v in b.state_dict().items():
                m, leaf = k.split(".")
                out[f"{p}encoder.layers.{i}.{names[m]}.{leaf}"] = v
        return {k: v.detach() for k, v in out.items()}


class Heads(nn.Module):
    """Linear read-outs for the labels; thrown away after training."""

    def __init__(self):
        super().__init__()
        n = SIZE // PATCH
        self.dims = (len(COLOURS) + 1, len(SHAPES) + 1, n + 1, n + 1, 4)
        self.dense = nn.Linear(WIDTH, sum(self.dims))
        self.xy = nn.Linear(WIDTH, 2)
        self.count = nn.Linear(WIDTH, 3)
        self.what = nn.Linear(WIDTH, len(COLOURS) * len(SHAPES))


def labels(scene):
    """Dense labels [64, 5], centre [64, 2] in frame halves, count, content [32]."""
    owner = scenes.patch_owner(scene)
    table = [[COLOURS.index(t.colour) + 1, SHAPES.index(t.shape) + 1, t.row, t.column, t.depth + 1] for t in scene.things] + [[0] * 5]
    xy = [[t.x / 32 - 1, t.y / 32 - 1] for t in scene.things] + [[0, 0]]
    what = np.zeros(len(COLOURS) * len(SHAPES), np.float32)
    for t in scene.things:
        what[COLOURS.index(t.colour) * len(SHAPES) + SHAPES.index(t.shape)] = 1
    return np.array(table)[owner], np.array(xy)[owner], len(scene.things) - 2, what


def batch(step):
    rng = random.Random(f"tower {step}")
    ss = [scenes.sample(rng, overlap=0.7) for _ in range(ROWS)]       # who is in front is the hardest label
    d, xy, count, what = zip(*map(labels, ss))
    return {"pixels": np.stack([scenes.picture(s, rng) for s in ss]), "dense": np.stack(d), "xy": np.stack(xy).astype(np.float32),
            "count": np.array(count), "what": np.stack(what)}, []


def mean_of(x, among):
    return (x * among).sum() / among.sum().clamp(min=1)


def step_loss(tower, heads, data):
    """Loss, and the shares right of colour, shape, row, column, depth (of overlapping things) and count."""
    dense = data["dense"]
    rows, cls = tower(data["pixels"], every=True)
    thing, overlaps = dense[..., 0] > 0, dense[..., 4] > 1
    loss, hits = 0, []
    for j, logits in enumerate(heads.dense(rows).split(heads.dims, -1)):
        ce = F.cross_entropy(logits.flatten(0, 1), dense[..., j].flatten(), reduction="none").view(thing.shape)
        loss = loss + mean_of(ce, torch.where(thing, 1.0, 0.35))
        if j == 4:
            loss = loss + 1.5 * mean_of(ce, overlaps)
        hits.append(mean_of(logits.argmax(-1) == dense[..., j], overlaps if j == 4 else thing))
    loss = loss + 2 * mean_of((heads.xy(rows) - data["xy"]).abs().sum(-1), thing)
    c = heads.count(cls)
    loss = loss + 0.3 * F.cross_entropy(c, data["count"]) + 3 * F.binary_cross_entropy_with_logits(heads.what(cls), data["what"])
    hits.append((c.argmax(-1) == data["count"]).float().mean())
    return loss, torch.stack(hits)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower, self.heads = Tower(), Heads()


def main(work):
    torch.manual_seed(11)
    both = Both().to(steps.DEVICE)
    steps.train("tower", os.path.join(work, "tower_heads.pt"), both, [
        steps.Stage(STEPS, batch, both.parameters(), lambda b: step_loss(both.tower, both.heads, b),
                    lambda s: 1.5e-3 * min(1, (s + 1) / 200) * max(0.02, min(1, 1.6 * (1 - s / STEPS))), {"betas": (0.9, 0.98), "weight_decay": 0.02})])
    torch.save({"model": both.tower.state_dict()}, os.path.join(work, "tower.pt"))


if __name__ == "__main__":
    main(sys.argv[1])
