"""Golden file of the backward operations: inputs and gradients of PyTorch's autograd in double precision.

    python tools/golden/make_backward.py tests/golden/backward.safetensors
"""
import sys

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

SEED, EPS = 13, 1e-5
T, SPLIT, H, G, D = 11, 7, 4, 2, 16  # attention: two packed sequences, rows 0..6 and 7..10
C, FF, O, V = 24, 40, 17, 7


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def leaf(*shape):
    return random(*shape).requires_grad_()


def norm(out):
    x, w, dy = leaf(5, C), leaf(C), random(5, C)
    F.rms_norm(x, (C,), w, EPS).backward(dy)
    out |= {"norm.x": x, "norm.w": w, "norm.dy": dy, "norm.dx": x.grad, "norm.dw": w.grad}


def swiglu(out):
    gate_up, dy = leaf(6, 2 * FF), random(6, FF)
    (F.silu(gate_up[:, :FF]) * gate_up[:, FF:]).backward(dy)
    out |= {"swiglu.gate_up": gate_up, "swiglu.dy": dy, "swiglu.dgate_up": gate_up.grad}


def linear(out):
    x, w, dy = leaf(7, C), leaf(O, C), random(7, O)
    F.linear(x, w).backward(dy)
    out |= {"linear.x": x, "linear.w": w, "linear.dy": dy, "linear.dx": x.grad, "linear.dw": w.grad}


def embed(out):
    table, source, dx = leaf(V, C), torch.tensor([3, 1, 3, 0, 6, 3, 1, 5, 0]), random(9, C)
    F.embedding(source, table).backward(dx)
    out |= {"embed.source": source.int(), "embed.dx": dx, "embed.dtable": table.grad}


def attention(out):
    qkv, dz = leaf(T, (H + 2 * G) * D), random(T, H, D)
    position = torch.cat([torch.arange(SPLIT), torch.arange(T - SPLIT)])
    angle = torch.arange(12, dtype=torch.float64)[:, None] * 10000 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    both, rows = torch.cat([angle, angle], -1)[position], []
    for a, b in ((0, SPLIT), (SPLIT, T)):
        q, k, v = (p.view(1, b - a, -1, D).transpose(1, 2) for p in qkv[a:b].split([H * D, G * D, G * D], dim=-1))
        q, k = apply_rotary_pos_emb(q, k, both[None, a:b].cos(), both[None, a:b].sin())
        wide = lambda t: t.repeat_interleave(H // G, dim=1)
        rows.append(F.scaled_dot_product_attention(q, wide(k), wide(v), is_causal=True)[0].transpose(0, 1))
    z = torch.cat(rows)
    z.backward(dz)
    out |= {"attn.qkv": qkv, "attn.dz": dz, "attn.position": position.int(), "attn.cos": angle.cos(), "attn.sin": angle.sin(), "attn.z": z, "attn.dqkv": qkv.grad}


def main(path):
    torch.manual_seed(SEED)
    out = {}
    for make in (norm, swiglu, linear, embed, attention):
        make(out)
    meta = {"script": "tools/golden/make_backward.py", "torch": torch.__version__, "transformers": transformers.__version__, "seed": str(SEED), "eps": str(EPS)}
    save_file({k: v.detach().contiguous() for k, v in out.items()}, path, metadata=meta)


if __name__ == "__main__":
    main(*sys.argv[1:])
