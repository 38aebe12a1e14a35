"""Golden files of gradients, from PyTorch's autograd in double precision.

    python tools/golden/make_backward.py tests/golden tests/models/golden

  tests/golden/backward.safetensors   the backward operations: inputs and gradients
  tests/models/golden/backward.safetensors   whole models, whose weights and samples lie beside it (make_models.py):
      llava/<i>/seed, dz (layers, T, H*D), dembed: of f = sum seed * resid_post of the last layer; floor: how far the same in f32
        is from it, relative RMS of dz of each layer, then of dembed
      llama/seed/<i>, llama/<weight>: of f = sum over both samples of seed * logits (f32 here, computed in f64); llama/cos, llama/sin
"""
import os
import sys

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration
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


def relative_rms(a, b):
    return ((a.double() - b).square().sum() / b.square().sum()).sqrt()


def stream_gradients(model, embed, seed):
    """dz of each layer and dembed of sum seed * resid_post of the last layer, for one sample of a text model."""
    embed, z, last = embed.clone().requires_grad_(), [], []
    hooks = [layer.self_attn.o_proj.register_forward_pre_hook(lambda _, a: z.append(a[0])) for layer in model.layers]
    hooks.append(model.layers[-1].register_forward_hook(lambda _, a, o: last.append(o[0] if isinstance(o, tuple) else o)))
    model(inputs_embeds=embed[None], use_cache=False)
    [h.remove() for h in hooks]
    grads = torch.autograd.grad((last[0].reshape(seed.shape) * seed).sum(), z + [embed])
    return torch.stack([g[0] for g in grads[:-1]]), grads[-1]


def make_llava(folder, out):
    states = load_file(os.path.join(folder, "tiny_llava.safetensors"))
    model = LlavaForConditionalGeneration.from_pretrained(os.path.join(folder, "tiny_llava"), dtype=torch.float32, attn_implementation="sdpa").model.language_model
    exact = {}
    for i in range(3):
        embed = states[f"{i}/states"][0]
        seed = torch.randn(embed.shape)
        exact[i] = [embed, seed, *stream_gradients(model, embed, seed)]
    model = double(model)
    for i, (embed, seed, dz32, dembed32) in exact.items():
        dz, dembed = stream_gradients(model, embed.double(), seed.double())
        floor = torch.stack([relative_rms(a, b) for a, b in zip(dz32, dz)] + [relative_rms(dembed32, dembed)])
        out |= {f"llava/{i}/seed": seed, f"llava/{i}/dz": dz, f"llava/{i}/dembed": dembed, f"llava/{i}/floor": floor}


def double(model):
    """In double throughout: transformers' own RMSNorm goes through f32. Epsilon as an f32, as checkpoints use it."""
    for m in model.modules():
        if hasattr(m, "variance_epsilon"):
            m.forward = lambda x, m=m: F.rms_norm(x, x.shape[-1:], m.weight, torch.tensor(m.variance_epsilon).float().item())
    return model.double()


def make_llama(folder, out):
    states = load_file(os.path.join(folder, "tiny_llama.safetensors"))
    model = double(LlamaForCausalLM.from_pretrained(os.path.join(folder, "tiny_llama"), dtype=torch.float32, attn_implementation="sdpa"))
    loss = 0
    for i in range(2):
        ids = states[f"{i}/ids"].long()[None]
        logits = model(input_ids=ids, use_cache=False).logits[0]
        seed = torch.randn(logits.shape)
        loss = loss + (logits * seed.double()).sum()
        out[f"llama/seed/{i}"] = seed
    loss.backward()
    cos, sin = model.model.rotary_emb(logits, torch.arange(ids.shape[1])[None])
    half = cos.shape[-1] // 2
    out |= {f"llama/{k}": p.grad.float() for k, p in model.named_parameters()}
    out |= {"llama/cos": cos[0, :, :half].double(), "llama/sin": sin[0, :, :half].double()}


def save(out, path):
    meta = {"script": "tools/golden/make_backward.py", "torch": torch.__version__, "transformers": transformers.__version__, "seed": str(SEED), "eps": str(EPS)}
    save_file({k: v.detach().contiguous() for k, v in out.items()}, os.path.join(path, "backward.safetensors"), metadata=meta)
    os.chmod(os.path.join(path, "backward.safetensors"), 0o644)


def main(ops, models):
    for path, makers in ((ops, (norm, swiglu, linear, embed, attention)), (models, (make_llava, make_llama))):
        torch.manual_seed(SEED)
        out = {}
        for make in makers:
            make(out) if path == ops else make(models, out)
        save(out, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
