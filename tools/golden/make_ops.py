"""Golden file of the model operations: inputs and results of PyTorch's and transformers' own functions in double precision.

    python tools/golden/make_ops.py tests/golden/ops.safetensors
"""
import sys

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import CLIPVisionConfig
from transformers.activations import ACT2FN
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

SEED, EPS = 11, 1e-5
T, H, G, D, PAST = 9, 4, 2, 16, 5  # attention: T tokens, the first PAST of them already in the cache for `decode`
C, FF, O = 24, 40, 17
IMAGE, PATCH, WIDTH, BATCH = 12, 4, 8, 2


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def norms(out):
    x, w, b = random(5, C) * 3 + 1, random(C), random(C)
    out |= {"norm.x": x, "norm.w": w, "norm.b": b}
    out["norm.rms"] = F.rms_norm(x, (C,), w, EPS)
    out["norm.rms_plain"] = F.rms_norm(x, (C,), None, EPS)
    out["norm.layer"] = F.layer_norm(x, (C,), w, b, EPS)


def activations(out):
    x = random(257) * 4
    gate_up = random(6, 2 * FF)
    out |= {"act.x": x, "act.gate_up": gate_up}
    out["act.gelu"] = F.gelu(x)
    out["act.quick_gelu"] = ACT2FN["quick_gelu"](x)
    out["act.swiglu"] = F.silu(gate_up[:, :FF]) * gate_up[:, FF:]


def attention(out):
    qkv = random(T, (H + 2 * G) * D)
    position = torch.tensor([3, 4, 5, 0, 7, 8, 1, 10, 11])
    angle = torch.arange(12, dtype=torch.float64)[:, None] * 10000 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    q, k, v = (p.view(1, T, -1, D).transpose(1, 2) for p in qkv.split([H * D, G * D, G * D], dim=-1))
    both = torch.cat([angle, angle], -1)[position][None]
    q, k = apply_rotary_pos_emb(q, k, both.cos(), both.sin())
    rows = lambda t: t[0].transpose(0, 1).contiguous()  # (1, heads, T, D) -> (T, heads, D)
    out |= {"attn.qkv": qkv, "attn.position": position.int(), "attn.cos": angle.cos(), "attn.sin": angle.sin()}
    out |= {"attn.q": rows(q), "attn.k": rows(k), "attn.v": rows(v)}
    wide = lambda t: t.repeat_interleave(H // G, dim=1)
    for name, causal in (("causal", True), ("all", False)):
        out[f"attn.z_{name}"] = rows(F.scaled_dot_product_attention(q, wide(k), wide(v), is_causal=causal))
        scores = q @ wide(k).transpose(-1, -2) / D**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
        out[f"attn.lse_{name}"] = scores.logsumexp(-1)[0].T.contiguous()


def vision(out):
    config = CLIPVisionConfig(hidden_size=WIDTH, num_attention_heads=2, image_size=IMAGE, patch_size=PATCH)
    module = CLIPVisionEmbeddings(config).double()
    for p in module.parameters():
        p.data = random(*p.shape)
    pixels = random(BATCH, 3, IMAGE, IMAGE)
    out |= {"clip.pixels": pixels, "clip.weight": module.patch_embedding.weight.data.flatten(1), "clip.class": module.class_embedding.data}
    out |= {"clip.position": module.position_embedding.weight.data, "clip.embedded": module(pixels).detach()}


def products(out):
    x, w, b = random(7, C), random(O, C), random(O)
    logits = torch.randint(0, 5, (6, O)).double()  # ties
    logits[2, 5] = logits[2, 11] = torch.nan
    logits[3] = -torch.inf
    out |= {"linear.x": x, "linear.w": w, "linear.b": b, "linear.y": F.linear(x, w, b), "argmax.x": logits, "argmax.index": logits.argmax(-1).int()}


def main(path):
    torch.manual_seed(SEED)
    out = {}
    for make in (norms, activations, attention, vision, products):
        make(out)
    meta = {"script": "tools/golden/make_ops.py", "torch": torch.__version__, "transformers": transformers.__version__, "seed": str(SEED), "eps": str(EPS)}
    save_file({k: v.contiguous() for k, v in out.items()}, path, metadata=meta)


if __name__ == "__main__":
    main(sys.argv[1])
