"""The vision tower: CLIP's ViT (class token, pre-LN blocks, quick_gelu) at 64 x 64 pixels, patch 8, and its training.

Trained on dense labels at the layer that LLaVA reads (-2): for every patch the colour, the shape, the row and column of the
centre and the depth of the thing it belongs to; and on scene content at the class token after the last layer (how many things,
which ones). Labels stand in for CLIP's 400 million captions: what the tower must provide is the same, features that say what is
where. It then stays frozen.   usage: tower.py WORK_DIR SECONDS
"""
import os
import random
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import scenes

WIDTH, HEADS, LAYERS, MLP, PATCH, SIZE = 96, 6, 5, 384, 8, 64
SELECT = LAYERS - 1           # output of this many layers = hidden_states[-2]
COLOURS, SHAPES = list(scenes.COLOURS), list(scenes.SHAPES)


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
    what = torch.zeros(len(COLOURS) * len(SHAPES))
    for t in scene.things:
        what[COLOURS.index(t.colour) * len(SHAPES) + SHAPES.index(t.shape)] = 1
    return torch.tensor(table)[owner], torch.tensor(xy)[owner], len(scene.things) - 2, what


def batch(rng, size):
    ss = [scenes.sample(rng, overlap=0.7) for _ in range(size)]       # who is in front is the hardest label
    pixels = torch.tensor(np.stack([scenes.picture(s, rng) for s in ss]))
    d, xy, count, what = zip(*map(labels, ss))
    return pixels, torch.stack(d), torch.stack(xy), torch.tensor(count), torch.stack(what)


def step_loss(tower, heads, data):
    pixels, dense, xy, count, what = data
    rows, cls = tower(pixels, every=True)
    weight = torch.where(dense[..., 0] > 0, 1.0, 0.35)
    loss, hits = 0, []
    thing = dense[..., 0] > 0
    for j, logits in enumerate(heads.dense(rows).split(heads.dims, -1)):
        ce = F.cross_entropy(logits.flatten(0, 1), dense[..., j].flatten(), reduction="none").view_as(weight)
        loss = loss + (ce * weight).sum() / weight.sum()
        asked = thing
        if j == 4:
            asked = dense[..., 4] > 1          # reported for overlapping things only
            loss = loss + 1.5 * ce[asked].mean()
        hits.append((logits.argmax(-1) == dense[..., j])[asked].float().mean().item())
    loss = loss + 2 * ((heads.xy(rows) - xy).abs().sum(-1) * thing).sum() / thing.sum()
    c = heads.count(cls)
    loss = loss + 0.3 * F.cross_entropy(c, count) + 3 * F.binary_cross_entropy_with_logits(heads.what(cls), what)
    hits.append((c.argmax(-1) == count).float().mean().item())
    return loss, hits


def main(work, seconds):
    torch.set_num_threads(1)
    torch.manual_seed(11)
    path = os.path.join(work, "tower.pt")
    tower, heads = Tower(), Heads()
    params = [*tower.parameters(), *heads.parameters()]
    opt = torch.optim.AdamW(params, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02)
    step = used = 0
    if os.path.exists(path):
        s = torch.load(path)
        tower.load_state_dict(s["tower"]), heads.load_state_dict(s["heads"]), opt.load_state_dict(s["opt"])
        step, used = s["step"], s["used"]
    start, saved, mean = time.time() - used, used, None
    while used < seconds:
        rng = random.Random(f"tower {step}")
        used = time.time() - start
        lr = 1.5e-3 * min(1, (step + 1) / 200) * max(0.02, min(1, 1.6 * (1 - used / seconds)))
        for g in opt.param_groups:
            g["lr"] = lr
        loss, hits = step_loss(tower, heads, batch(rng, 32))
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        mean = hits if mean is None else [0.98 * m + 0.02 * h for m, h in zip(mean, hits)]
        if step % 100 == 0:
            print(f"tower {step} {used:.0f}s loss {loss.item():.3f} colour shape row column depth count",
                  " ".join(f"{m:.3f}" for m in mean), flush=True)
        if used - saved > 60 or used >= seconds:
            torch.save({"tower": tower.state_dict(), "heads": heads.state_dict(), "opt": opt.state_dict(), "step": step, "used": used}, path + ".new")
            os.replace(path + ".new", path)
            saved = used


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
