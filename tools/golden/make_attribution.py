"""Golden file of `stagediff attribute`: attribution patching of transformers with hooks and autograd, in double precision, on the tiny
LLaVA of make_models.py and a random TopK dictionary, by the definitions of docs/cli.md.

    python tools/golden/make_attribution.py tests/models/golden tests/golden/host/pictures tests/analysis/golden/attribute

Writes data.jsonl, sae/ (SAELens), expected.safetensors: for each case <case>/<i>/score (L+1, H, T), <case>/<i>/metric, <case>/signed,
<case>/mean_abs, <case>/exact, attention of sample 1 to its picture, and <case>/floor: relative RMS of all scores of the same in f32 and in bf16 from those in double.
"""
import codecs
import json
import os
import sys

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from make_backward import double

SEED, LAYER, M, K, FEATURES, D = 17, 1, 96, 12, [3, 17, 40, 41, 90], 24
LINES = [("rgb_32x32.png", "ab", "is it red?"), ("rgb_17x33.png", "", "how many shapes are there here"), (None, "no picture here", ""), ("rgb_64x32.png", "x", "left or right"),
         ("rgb_33x47.png", "what is this? ", "")]
CASES = {"mean": dict(corrupt="mean", exact=1), "zero": dict(corrupt="zero", gradient="clean"), "swap": dict(corrupt="swap", gradient=3), "prompt": dict(corrupt="prompt"),
         "code": dict(corrupt="mean", metric="code", exact=2)}


class Tiny:
    def __init__(self, folder, dtype):
        self.dtype = dtype
        model = LlavaForConditionalGeneration.from_pretrained(os.path.join(folder, "tiny_llava"), dtype=torch.float32, attn_implementation="sdpa").eval()
        self.model = double(model) if dtype == torch.float64 else model.to(dtype)
        self.text = self.model.model.language_model
        self.heads = self.model.config.text_config.num_attention_heads
        for p in self.model.parameters():
            p.requires_grad_(False)

    def embed(self, ids, pixels):
        kept = []
        hook = self.text.layers[0].register_forward_pre_hook(lambda _, a, k: kept.append(a[0] if a else k["hidden_states"]), with_kwargs=True)
        self.model(input_ids=ids[None], use_cache=False, **({} if pixels is None else {"pixel_values": pixels.to(self.dtype)}))
        hook.remove()
        return kept[0][0]

    def run(self, embed, metric, patch=None):
        """m, z of each layer and dm/dz; patch: (layer, head, z) put in place of the run's own."""
        z, post = [], []

        def at_z(layer):
            def hook(_, args):
                x = args[0]
                if patch and patch[0] == layer:
                    part = slice(patch[1] * D, (patch[1] + 1) * D)
                    x = torch.cat([x[..., :part.start], patch[2][None, :, part], x[..., part.stop:]], -1)
                z.append(x)
                return (x,)
            return hook
        hooks = [l.self_attn.o_proj.register_forward_pre_hook(at_z(i)) for i, l in enumerate(self.text.layers)]
        hooks.append(self.text.layers[LAYER].register_forward_hook(lambda _, a, o: post.append(o[0] if isinstance(o, tuple) else o)))
        embed = embed.detach().requires_grad_()
        self.text(inputs_embeds=embed[None], use_cache=False)
        [h.remove() for h in hooks]
        m = metric(post[0].reshape(embed.shape))
        grads = torch.autograd.grad(m, z[:LAYER + 1])
        return m.detach(), [x[0].detach() for x in z[:LAYER + 1]], [g[0] for g in grads]


def attribute(tiny, sae, samples, corrupt, gradient="corrupt", metric="direction", exact=0):
    sae = {k: v.to(tiny.dtype) for k, v in sae.items()}
    clean = [tiny.embed(s["ids"], s["pixels"]) for s in samples]
    rows = [s["ids"] == 266 for s in samples]
    mean = torch.cat([e[r] for e, r in zip(clean, rows)]).double().mean(0).to(tiny.dtype)
    out, scores, runs = {}, [], []
    for i, s in enumerate(samples):
        other = clean[i].clone()
        if corrupt == "mean":
            other[rows[i]] = mean
        elif corrupt == "zero":
            other[rows[i]] = 0
        elif corrupt == "swap" and s["pixels"] is not None:
            j = next(k % len(samples) for k in range(i + 1, i + len(samples)) if samples[k % len(samples)]["pixels"] is not None)
            other[rows[i]] = clean[j][rows[j]]
        elif corrupt == "prompt":
            other = tiny.embed(s["corrupt_ids"], s["pixels"])
        last = rows[i].nonzero().max() if rows[i].any() else -1
        after = torch.arange(len(rows[i])) > last

        def measure(h, after=after):
            h = h[after]
            if metric == "direction":
                return (h @ sae["W_dec"][FEATURES].sum(0)).sum()
            pre = h @ sae["W_enc"] + sae["b_enc"]
            kept = torch.zeros_like(pre, dtype=torch.bool).scatter(-1, pre.topk(K, dim=-1).indices, True)
            return (torch.relu(pre) * kept)[:, FEATURES].sum()
        m0, z0, g0 = tiny.run(clean[i], measure)
        m1, z1, g1 = tiny.run(other, measure)
        if isinstance(gradient, int):
            steps = [tiny.run(other + (k + 0.5) / gradient * (clean[i] - other), measure)[2] for k in range(gradient)]
            g = [sum(p) / gradient for p in zip(*steps)]
        else:
            g = g0 if gradient == "clean" else g1
        score = torch.stack([((a - b) * c).view(len(after), tiny.heads, D).sum(-1).T for a, b, c in zip(z0, z1, g)])
        out |= {f"{i}/score": score, f"{i}/metric": torch.stack([m0, m1])}
        scores.append((score, after))
        runs.append((other, measure, z0, m1))
    out["signed"] = torch.stack([s.sum(-1) for s, _ in scores]).mean(0)
    out["mean_abs"] = torch.stack([s[..., a].abs().mean(-1) if a.any() else torch.zeros_like(s[..., 0]) for s, a in scores]).mean(0)
    if exact:
        flat = out["signed"].flatten()
        top = flat.abs().sort(descending=True, stable=True).indices.tolist()[:exact]
        places = top + [p for p in range(len(flat)) if p not in top]  # all heads: 2 exact >= their number
        assert 2 * exact >= len(flat) or exact == 1
        effect = [torch.stack([tiny.run(o, f, (p // tiny.heads, p % tiny.heads, z[p // tiny.heads]))[0] - m for o, f, z, m in runs]).mean() for p in places]
        out["exact"] = torch.stack([torch.stack([torch.tensor(float(p // tiny.heads)), torch.tensor(float(p % tiny.heads)), e.double(), flat[p].double()]) for p, e in zip(places, effect)])
    return out


def attention(models, sample):
    """(L+1, H, image rows): mean over the positions behind the image of the softmax at each image row."""
    model = LlavaForConditionalGeneration.from_pretrained(os.path.join(models, "tiny_llava"), dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(input_ids=sample["ids"][None], pixel_values=sample["pixels"], output_attentions=True, use_cache=False)
    image = (sample["ids"] == 266).nonzero().flatten()
    return torch.stack([a[0][:, image.max() + 1:][:, :, image].mean(1) for a in out.attentions[:LAYER + 1]])


def dictionary(folder):
    E, b = torch.randn(48, M) / 48**0.5, 0.1 * torch.randn(M)
    D_ = torch.randn(M, 48)
    sae = {"W_enc": E, "b_enc": b, "W_dec": D_ / D_.norm(dim=1, keepdim=True), "b_dec": 0.1 * torch.randn(48)}
    os.makedirs(folder, exist_ok=True)
    config = {"d_in": 48, "d_sae": M, "dtype": "float32", "architecture": "topk", "k": K, "apply_b_dec_to_input": False, "normalize_activations": "none",
              "metadata": {"hook_name": f"blocks.{LAYER}.hook_resid_post"}}
    json.dump(config, open(os.path.join(folder, "cfg.json"), "w"), indent=1)
    save_file({k: v.contiguous() for k, v in sae.items()}, os.path.join(folder, "sae_weights.safetensors"))
    return sae


def main(models, pictures, out):
    torch.manual_seed(SEED)
    os.makedirs(out, exist_ok=True)
    sae = dictionary(os.path.join(out, "sae"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(os.path.join(models, "tiny_llava"))
    processor = CLIPImageProcessorPil.from_pretrained(os.path.join(models, "tiny_llava"))
    image = tokenizer.convert_tokens_to_ids("<image>")

    def ids(text):
        return torch.tensor(sum(([266] * 9 if t == image else [t] for t in tokenizer(text, add_special_tokens=False).input_ids), []))
    samples, lines = [], []
    for picture, before, behind in LINES:
        join = lambda a, b: "<|begin_of_text|>" + a + ("<image>" if picture else "") + b
        prompt, corrupt = join(before, behind), join(codecs.encode(before, "rot13"), codecs.encode(behind, "rot13"))
        pixels = picture and processor(Image.open(os.path.join(pictures, picture)).convert("RGB"), return_tensors="pt").pixel_values
        samples.append({"ids": ids(prompt), "corrupt_ids": ids(corrupt), "pixels": pixels if picture else None})
        assert len(samples[-1]["ids"]) == len(samples[-1]["corrupt_ids"]), (prompt, corrupt)
        where = os.path.relpath(os.path.join(pictures, picture), out) if picture else None
        lines.append({"prompt": prompt, "corrupt_prompt": corrupt, "answer": "not read"} | ({"image": where} if picture else {}))
    open(os.path.join(out, "data.jsonl"), "w").writelines(json.dumps(line) + "\n" for line in lines)
    results = {dtype: {name: attribute(tiny, sae, samples, **case) for name, case in CASES.items()} for dtype in (torch.float64, torch.float32, torch.bfloat16) for tiny in [Tiny(models, dtype)]}
    tensors = {}
    for name, want in results[torch.float64].items():
        every = lambda r: torch.cat([r[f"{i}/score"].double().flatten() for i in range(len(samples))])
        exact = every(want)
        off = [((every(results[t][name]) - exact).square().sum() / exact.square().sum()).sqrt() for t in (torch.float32, torch.bfloat16)]
        tensors |= {f"{name}/{k}": v for k, v in want.items()} | {f"{name}/floor": torch.stack(off)}
        print(name, "f32 and bf16 from double, relative RMS:", [f"{x:.2g}" for x in off])
    tensors |= {f"{i}/ids": torch.where(s["ids"] == 266, -200, s["ids"]).int() for i, s in enumerate(samples)}
    tensors["attention"] = attention(models, samples[1])
    meta = {"script": "tools/golden/make_attribution.py", "torch": torch.__version__, "transformers": transformers.__version__, "seed": str(SEED), "features": ",".join(map(str, FEATURES))}
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(out, "expected.safetensors"), metadata=meta)
    for path in (os.path.join(out, "expected.safetensors"), os.path.join(out, "sae", "sae_weights.safetensors")):
        os.chmod(path, 0o644)


if __name__ == "__main__":
    main(*sys.argv[1:])
