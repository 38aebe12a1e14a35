"""Golden files of edits (the language of docs/cli.md): tests/models/golden/edits/.

  <case>.json          the edit list
  vectors.safetensors  directions and head means that the lists name;  sae_topk/, sae_jumprelu/  dictionaries (SAELens layout)
  golden.safetensors   tiny_llava under each list, through transformers with hooks, in double: <case>/0/states (L, T, C), <case>/0/z (L, T, H*D)
                       (what the output projection reads; where heads are edited), <case>/<i>/logits (V) of the last row, <case>/<i>/generated; <i>/kinds;
                       floor: the RMS error of the same in f32, relative, of states and logits, worst case

Reads tiny_llava/ and tiny_llava.safetensors:  python tools/golden/make_edits.py tests/models/golden
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

SEED, NEW, SAMPLES = 11, 5, (0, 2)
C, H, D, L, M = 48, 2, 24, 2, 40
KINDS = ["bos", "image", "template", "question", "answer"]
POINTS = ["attn_out", "mlp_out", "resid_post"]
V0, V1, ONE = {"file": "vectors.safetensors", "tensor": "rows", "row": 0}, {"file": "vectors.safetensors", "tensor": "rows", "row": 1}, {"file": "vectors.safetensors", "tensor": "one"}
TOPK, JUMP = "sae_topk", "sae_jumprelu"
HEADS = {"op": "head", "layers": [1], "heads": [0, 1], "mode": "mean", "mean": "vectors.safetensors", "after_image": True}
CASES = {
    "none": [],
    "project_everywhere": [{"op": "project_out", "vector": V0, "points": POINTS}],
    "project_kinds": [{"op": "project_out", "vector": {"sae": TOPK, "feature": 7}, "points": ["resid_post"], "layers": [1], "kinds": ["question", "answer"], "scale": 0.5}],
    "project_after": [{"op": "project_out", "vector": ONE, "points": ["attn_out", "mlp_out"], "layers": "all", "after_image": True, "scale": 2}],
    "project_both": [{"op": "project_out", "vector": V1, "points": ["attn_out"], "kinds": ["template", "bos"], "after_image": True}],
    "add": [{"op": "add", "vector": V1, "points": ["resid_post"], "layers": [0], "scale": -0.75}],
    "add_unit": [{"op": "add", "vector": ONE, "points": ["mlp_out", "attn_out"], "unit": True, "scale": 3, "kinds": ["image", "answer"]}],
    "head_zero": [{"op": "head", "heads": [1], "mode": "zero"}],
    "head_mean": [HEADS],
    "subtract": [{"op": "feature", "sae": TOPK, "layer": 0, "features": list(range(0, M, 2)), "mode": "subtract", "after_image": True}],
    "subtract_jumprelu": [{"op": "feature", "sae": JUMP, "layer": 1, "features": [39, 4, 5, 6, 20], "mode": "subtract"}],
    "scale": [{"op": "feature", "sae": JUMP, "layer": 0, "features": [3, 30, 2, 8, 9, 1], "mode": "scale", "value": 2.5, "kinds": ["image", "question"]}],
    "clamp": [{"op": "feature", "sae": TOPK, "layer": 1, "features": [11, 2], "mode": "clamp", "value": 1.5, "kinds": ["question", "answer"]}],
    "reconstruct": [{"op": "reconstruct", "sae": TOPK, "layer": 0, "keep_error": False}],
    "reconstruct_jumprelu": [{"op": "reconstruct", "sae": JUMP, "layer": 0, "keep_error": False, "after_image": True}],
    "keep_error": [{"op": "reconstruct", "sae": TOPK, "layer": 0}, {"op": "reconstruct", "sae": JUMP, "layer": 1, "keep_error": True, "kinds": ["image"]}],
    "in_order": [{"op": "add", "vector": V0, "points": ["resid_post"], "scale": 1.25}, {"op": "feature", "sae": TOPK, "layer": 0, "features": [0, 5, 9, 12, 33], "mode": "scale", "value": -1},
                 {"op": "project_out", "vector": V0, "points": ["resid_post", "mlp_out"]}, HEADS, {"op": "head", "layers": [0, 1], "heads": [0], "mode": "zero", "kinds": ["question"]},
                 {"op": "reconstruct", "sae": JUMP, "layer": 1, "keep_error": False}, {"op": "add", "vector": ONE, "points": ["resid_post"], "layers": [1], "kinds": ["answer"]}],
}


class Dictionary:
    """SAELens's forward: x - b_dec in where the configuration says so; topk or jumprelu; decode plus b_dec."""

    def __init__(self, folder, dtype):
        self.config = json.load(open(os.path.join(folder, "cfg.json")))
        self.w = {k: v.to(dtype) for k, v in load_file(os.path.join(folder, "sae_weights.safetensors")).items()}

    def encode(self, x):
        w = self.w
        h = (x - w["b_dec"] if self.config["apply_b_dec_to_input"] else x) @ w["W_enc"] + w["b_enc"]
        if self.config["architecture"] == "jumprelu":
            return torch.relu(h) * (h > w["threshold"])
        top = torch.topk(h, self.config["k"], dim=-1)
        return torch.zeros_like(h).scatter(-1, top.indices, torch.relu(top.values))


def make_dictionary(folder, **config):
    os.makedirs(folder, exist_ok=True)
    d = torch.randn(M, C)
    d = d / d.norm(dim=-1, keepdim=True)
    w = {"W_enc": d.T.contiguous() * 1.5 + 0.1 * torch.randn(C, M), "W_dec": d, "b_enc": 0.2 * torch.randn(M), "b_dec": 0.3 * torch.randn(C)}
    if config["architecture"] == "jumprelu":
        w["threshold"] = 0.5 + torch.rand(M)
    save_file({k: v.contiguous() for k, v in w.items()}, os.path.join(folder, "sae_weights.safetensors"))
    json.dump({"d_in": C, "d_sae": M, "dtype": "float32", "normalize_activations": "none", **config}, open(os.path.join(folder, "cfg.json"), "w"), indent=1)


class Edited:
    """The model with hooks that carry out a list on one sample whose kinds are known (further rows: answer)."""

    def __init__(self, folder, model, spec, kinds, ids):
        self.folder, self.model, self.spec, self.dtype = folder, model, spec, model.lm_head.weight.dtype
        self.kinds, last = list(kinds), max([i for i, t in enumerate(ids) if t == -200], default=-1)
        self.after, self.kept, self.z, self.handles = last, {}, {}, []
        for l, layer in enumerate(model.model.language_model.layers):
            hooks = [(layer.self_attn.o_proj.register_forward_pre_hook, lambda _, args, l=l: (self.heads(l, args[0]),)),
                     (layer.self_attn.register_forward_hook, lambda _, args, out, l=l: (self.at("attn_out", l, out[0]), *out[1:])),
                     (layer.mlp.register_forward_hook, lambda _, args, out, l=l: self.at("mlp_out", l, out)),
                     (layer.register_forward_hook, lambda _, args, out, l=l: self.keep(l, out))]
            self.handles += [register(f) for register, f in hooks]

    def rows(self, edit, T):
        kinds = self.kinds + [4] * (T - len(self.kinds))
        return torch.tensor([("kinds" not in edit or KINDS[kinds[t]] in edit["kinds"]) and (not edit.get("after_image") or t > self.after) for t in range(T)])

    def here(self, l, edit):
        return l == edit["layer"] if "layer" in edit else edit.get("layers", "all") == "all" or l in edit["layers"]

    def vector(self, v):
        if "sae" in v:
            return Dictionary(os.path.join(self.folder, v["sae"]), self.dtype).w["W_dec"][v["feature"]]
        t = load_file(os.path.join(self.folder, v["file"]))[v["tensor"]].to(self.dtype)
        return t[v["row"]] if t.dim() == 2 else t

    def heads(self, l, z):
        z = z.clone()
        for e in self.spec:
            if e["op"] != "head" or not self.here(l, e):
                continue
            value = load_file(os.path.join(self.folder, e["mean"]))[f"blocks.{l}.attn.hook_z"].to(self.dtype) if e["mode"] == "mean" else torch.zeros(H * D, dtype=self.dtype)
            for h in e["heads"]:
                z[0, self.rows(e, z.shape[1]), h * D:(h + 1) * D] = value[h * D:(h + 1) * D]
        self.z[l] = z[0]
        return z

    def at(self, point, l, y):
        y = y.clone()
        for e in self.spec:
            if e["op"] == "head" or point not in e.get("points", ["resid_post"]) or not self.here(l, e):
                continue
            rows = self.rows(e, y.shape[1])
            x = y[0, rows]
            if e["op"] == "project_out":
                u = self.vector(e["vector"])
                u = u / u.norm()
                x = x - e.get("scale", 1) * (x @ u)[:, None] * u
            elif e["op"] == "add":
                v = self.vector(e["vector"])
                x = x + e.get("scale", 1) * (v / v.norm() if e.get("unit") else v)
            else:
                sae = Dictionary(os.path.join(self.folder, e["sae"]), self.dtype)
                z = sae.encode(x)
                hat = z @ sae.w["W_dec"] + sae.w["b_dec"]
                if e["op"] == "reconstruct":
                    x = hat + (x - hat if e.get("keep_error", True) else 0)
                else:
                    for f in e["features"]:
                        c = {"subtract": -z[:, f], "scale": (e.get("value", 0) - 1) * z[:, f], "clamp": e.get("value", 0) - z[:, f]}[e["mode"]]
                        x = x + c[:, None] * sae.w["W_dec"][f]
            y[0, rows] = x
        return y

    def keep(self, l, out):
        y = self.at("resid_post", l, out[0] if isinstance(out, tuple) else out)
        self.kept[l] = y[0]
        return (y, *out[1:]) if isinstance(out, tuple) else y

    @torch.no_grad()
    def forward(self, ids, pixels):
        inner = self.model.model
        x = inner.language_model.embed_tokens(torch.tensor([[max(i, 0) for i in ids]]))
        if pixels is not None:
            tower = inner.vision_tower(pixels[None].to(self.dtype), output_hidden_states=True).hidden_states
            x[0, [i for i, t in enumerate(ids) if t == -200]] = inner.multi_modal_projector(tower[self.model.config.vision_feature_layer][:, 1:])[0]
        last = inner.language_model(inputs_embeds=x, use_cache=False).last_hidden_state
        return torch.stack([self.kept[l] for l in range(L)]), torch.stack([self.z[l] for l in range(L)]), self.model.lm_head(last)[0, -1]

    def close(self):
        [h.remove() for h in self.handles]


def kinds_of(ids):
    text = [i for i, t in enumerate(ids) if t != -200 and i > 0]
    kinds = [0] + [1] * (len(ids) - 1)
    for n, i in enumerate(text):
        kinds[i] = 2 if n < 2 or n == len(text) - 3 else 4 if n >= len(text) - 2 else 3
    return kinds


def error(a, b):
    return float((a.double() - b).norm() / b.norm())


def main(out):
    folder = os.path.join(out, "edits")
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(SEED)
    save_file({"rows": torch.randn(3, C), "one": 2 * torch.randn(C), "blocks.0.attn.hook_z": torch.randn(H * D), "blocks.1.attn.hook_z": torch.randn(H * D)}, os.path.join(folder, "vectors.safetensors"))
    make_dictionary(os.path.join(folder, TOPK), architecture="topk", k=4, apply_b_dec_to_input=True, metadata={"hook_name": "blocks.0.hook_resid_post"})
    make_dictionary(os.path.join(folder, JUMP), architecture="jumprelu", apply_b_dec_to_input=False, metadata={"hook_name": "blocks.1.hook_resid_post"})
    inputs = load_file(os.path.join(out, "tiny_llava.safetensors"))
    load = lambda dtype: transformers.LlavaForConditionalGeneration.from_pretrained(os.path.join(out, "tiny_llava"), dtype=dtype, attn_implementation="eager").eval()
    exact, single = load(torch.float64), load(torch.float32)
    tensors, floor, margin = {}, 0.0, 1e9
    for name, spec in CASES.items():
        json.dump(spec, open(os.path.join(folder, name + ".json"), "w"), indent=1)
        for i in SAMPLES:
            ids, pixels = inputs[f"{i}/ids"].tolist(), inputs.get(f"{i}/pixels")
            kinds = kinds_of(ids)
            runs = []
            for model in (exact, single):
                e = Edited(folder, model, spec, kinds, ids)
                runs.append(e.forward(ids, pixels))
                if model is exact:
                    longer = list(ids)
                    for _ in range(NEW):
                        top = torch.topk(e.forward(longer, pixels)[2], 2)
                        margin = min(margin, float(top.values[0] - top.values[1]))
                        longer.append(int(top.indices[0]))
                e.close()
            floor = max([floor] + [error(b, a) for a, b in zip(*runs)])
            tensors |= {f"{name}/{i}/states": runs[0][0].float(), f"{name}/{i}/z": runs[0][1].float(), f"{name}/{i}/logits": runs[0][2].float(),
                        f"{name}/{i}/generated": torch.tensor(longer[len(ids):], dtype=torch.int32), f"{i}/kinds": torch.tensor(kinds, dtype=torch.int32)}
        if name not in ("none", "keep_error"):
            print(f"{name:22} moves the logits by {error(tensors[f'{name}/0/logits'], tensors['none/0/logits'].double()):.3f}, {error(tensors[f'{name}/2/logits'], tensors['none/2/logits'].double()):.3f}")
    print(f"floor {floor:.2g}, least margin of a new token {margin:.2g}")
    tensors["floor"] = torch.tensor([floor])
    # kept small: states of the sample with a picture, z where heads are edited; the logits hang on all the rest
    drop = lambda k: k.endswith("/z") and not k.startswith(("head", "in_order")) or k.endswith(("2/states", "2/z"))
    tensors = {k: v.contiguous() for k, v in tensors.items() if not drop(k)}
    save_file(tensors, os.path.join(folder, "golden.safetensors"), metadata={"script": "tools/golden/make_edits.py", "torch": torch.__version__, "transformers": transformers.__version__, "seed": str(SEED)})


if __name__ == "__main__":
    main(*sys.argv[1:])
