"""Parity of the forward pass and of greedy generation with transformers, on random weights of odd shapes, in every folder layout.

    test_models.py STAGEDIFF [--sim PROGRAM] [--only NAME] [--seed N]

Each architecture is written to a temporary folder as original LLaVA and as llava-hf, its weights stored as F32 and as BF16; `harvest` and
`generate` run on it. Reference: transformers in float64 on the stored weights. The floor is transformers in float32 (bfloat16 for --sim) against
the same reference; ours may have at most 1.25 times its relative RMS at any point (floors below 1e-7 count as 1e-7). Greedy ids must be equal, but
for a step where the reference's two best logits are closer than the measured error of the logits. Then the same weights in every other
packaging (prefixes, spellings, shards, .bin, towers in their own folder): bytes must be equal. Exit status 1 when anything differs."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy
import tokenizers
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

ALLOWED, SMALLEST = 1.25, 1e-7
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def arch(name, llm, vision, projector="mlp2x_gelu", select=-2, feature="patch", positions=256, **more):
    keys = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size", "num_hidden_layers")
    tower = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "image_size", "patch_size")
    return dict(name=name, llm=dict(zip(keys, llm)) | {"max_position_embeddings": positions, "rms_norm_eps": 1e-5} | more, vision=dict(zip(tower, vision)),
                projector=projector, select=select, feature=feature)


DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
#                            C   H  G  D   F    V    L        C   H  F   L  S   P
ARCHITECTURES = [
    arch("one kv head, head_dim 24", (72, 3, 1, 24, 104, 301, 3), (32, 2, 40, 3, 24, 8), rope_parameters=DEFAULT),
    arch("H D > C, head_dim 40, tied, linear rope", (48, 2, 1, 40, 56, 283, 4), (48, 2, 56, 4, 42, 14), select=-1, tie_word_embeddings=True,
         rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}),
    arch("MHA, head_dim 8, class row", (56, 7, 7, 8, 120, 299, 2), (24, 3, 32, 2, 32, 16), feature="cls_patch", rope_parameters=DEFAULT | {"rope_theta": 500000.0}),
    arch("GQA 3, llama3 rope, first layer selected", (96, 6, 2, 16, 176, 515, 3), (40, 5, 48, 5, 20, 4), select=1, rope_parameters=LLAMA3),
    arch("deep and thin, head_dim 88", (88, 1, 1, 88, 96, 267, 11), (64, 1, 72, 2, 28, 14), rope_parameters=DEFAULT),
    arch("head_dim 256, eps 1e-6", (72, 3, 3, 256, 72, 277, 2), (32, 4, 40, 6, 48, 12), rms_norm_eps=1e-6, rope_parameters=DEFAULT, select=-3),
    arch("LLaMA-3.1-8B's layer", (4096, 32, 8, 128, 14336, 1003, 1), (64, 4, 88, 2, 56, 14), rope_parameters=LLAMA3 | {"original_max_position_embeddings": 8192}),
    arch("linear projector (original only)", (72, 9, 3, 8, 88, 271, 2), (32, 2, 40, 3, 24, 8), projector="linear", rope_parameters=DEFAULT),
    arch("mlp3x projector (original only)", (72, 9, 3, 8, 88, 271, 2), (32, 2, 40, 3, 24, 8), projector="mlp3x_gelu", rope_parameters=DEFAULT),
]


# ---------------------------------------------------------------- the weights
class Parts:
    """Random LLM, tower and projector; `state` maps canonical names (llm., head., tower., projector.N.) to float32 tensors that BF16 and F16 can hold."""

    def __init__(self, a, seed):
        torch.manual_seed(seed)
        self.a, self.llm_config, self.clip_config = a, LlamaConfig(**a["llm"]), CLIPVisionConfig(**a["vision"])
        self.linears = 1 if a["projector"] == "linear" else int(a["projector"][3])
        llm, tower = LlamaForCausalLM(self.llm_config), CLIPVisionModel(self.clip_config)
        self.state = {("head.weight" if k == "lm_head.weight" else "llm." + k.removeprefix("model.")): v for k, v in llm.state_dict().items()}
        self.state |= {"tower." + k.removeprefix("vision_model."): v for k, v in tower.state_dict().items() if "position_ids" not in k}
        if self.llm_config.tie_word_embeddings:
            self.state.pop("head.weight", None)
        width, inner = self.llm_config.hidden_size, self.clip_config.hidden_size
        for i in range(self.linears):
            self.state |= {f"projector.{i}.weight": torch.empty(width, inner if i == 0 else width), f"projector.{i}.bias": torch.empty(width)}
        for name, t in self.state.items():
            norm = "norm" in name and name.endswith("weight") or "layrnorm.weight" in name
            spread = 0.2 if t.dim() == 1 else 1.2 * t[0].numel() ** -0.5 if "embed" not in name else 1.0
            values = (torch.randn(t.shape) * spread + (1 if norm else 0)).bfloat16().float()
            self.state[name] = values * (values.abs() >= 2 ** -17)  # F16 holds them too

    def modules(self, dtype):
        llm, tower = LlamaForCausalLM(self.llm_config).eval(), CLIPVisionModel(self.clip_config).eval()
        own = {k: ("head.weight" if k == "lm_head.weight" else "llm." + k.removeprefix("model.")) for k in llm.state_dict()}
        llm.load_state_dict({k: self.state.get(v, self.state["llm.embed_tokens.weight"]) for k, v in own.items()})
        tower.load_state_dict({k: self.state["tower." + k.removeprefix("vision_model.")] for k in tower.state_dict() if "position_ids" not in k}, strict=False)
        layers = []
        for i in range(self.linears):
            linear = torch.nn.Linear(self.state[f"projector.{i}.weight"].shape[1], self.llm_config.hidden_size)
            linear.load_state_dict({"weight": self.state[f"projector.{i}.weight"], "bias": self.state[f"projector.{i}.bias"]})
            layers += [torch.nn.GELU()] * (i > 0) + [linear]
        for m in (llm, tower):
            m.set_attn_implementation("eager")
        return llm.to(dtype), tower.to(dtype), torch.nn.Sequential(*layers).to(dtype)


@torch.no_grad()
def reference(a, modules, ids, pixels):
    """What harvest gives, by transformers' modules: {point: tensor}; ids with -200 for image rows."""
    llm, tower, projector = modules
    dtype, out = next(llm.parameters()).dtype, {}
    embed = llm.model.embed_tokens(torch.tensor([max(i, 0) for i in ids]))
    if pixels is not None:
        states = tower(pixels[None].to(dtype), output_hidden_states=True).hidden_states
        out |= {f"vision.{l}.hook_resid_post": s[0] for l, s in enumerate(states[1:])}
        rows = projector(states[a["select"]][0][0 if a["feature"] == "cls_patch" else 1:])
        out["projector"] = rows
        embed[torch.tensor(ids) == -200] = rows
    kept = []
    hooks = [m.register_forward_hook(lambda _, args, o: kept.append(o[0] if isinstance(o, tuple) else o)) for m in llm.model.layers]
    out["logits"] = llm(inputs_embeds=embed[None]).logits[0]
    for h in hooks:
        h.remove()
    out |= {f"blocks.{l}.hook_resid_post": k.reshape(len(ids), -1) for l, k in enumerate(kept)}
    return out | {"hook_embed": embed}


# ---------------------------------------------------------------- folders
def write_tokenizer(folder, vocab):
    """A byte-level BPE of 256 bytes and specials, enough for a folder to open."""
    t = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<image>"])
    t.save(os.path.join(folder, "tokenizer.json"))
    dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>"}, folder, "tokenizer_config.json")


def dump(value, folder, name):
    json.dump(value, open(os.path.join(folder, name), "w"), indent=1)


def spelled(config, old):
    """LlamaConfig's keys as transformers 4 (old) or 5 wrote them."""
    c = dict(config)
    if old:
        p = dict(c.pop("rope_parameters"))
        c["rope_theta"] = p.pop("rope_theta")
        c["rope_scaling"] = p if p["rope_type"] != "default" else None
    return c


def write_weights(folder, state, how):
    """how: one of model, shards, bin, bin shards."""
    shards = 3 if "shards" in how else 1
    torch_file, index = "bin" in how, {}
    stem, end = ("pytorch_model", "bin") if torch_file else ("model", "safetensors")
    for s in range(shards):
        part = {n: state[n].contiguous() for n in sorted(state)[s::shards]}
        name = f"{stem}.{end}" if shards == 1 else f"{stem}-{s + 1:05}-of-{shards:05}.{end}"
        torch.save(part, os.path.join(folder, name)) if torch_file else save_file(part, os.path.join(folder, name), metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    if shards > 1:
        dump({"metadata": {"total_size": 0}, "weight_map": index}, folder, f"{stem}.{end}.index.json")


def stored(parts, dtype):
    """The canonical state in F32, F16, BF16, or mixed by turns."""
    kinds = {"F32": [torch.float32], "F16": [torch.float16], "BF16": [torch.bfloat16], "mixed": [torch.float32, torch.bfloat16, torch.float32]}[dtype]
    return {k: v.to(kinds[i % len(kinds)]) for i, (k, v) in enumerate(parts.state.items())}


IMAGE_SETTINGS = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_center_crop": True, "do_normalize": True, "resample": 3}


def image_settings(side, generation):
    sizes = {"size": side, "crop_size": side} if generation == "ints" else {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return IMAGE_SETTINGS | sizes


def write_tower(folder, parts, state, prefix="vision_model.", full=False):
    os.makedirs(folder, exist_ok=True)
    tower = {prefix + k[6:]: v for k, v in state.items() if k.startswith("tower.")}
    config = {"model_type": "clip_vision_model"} | parts.a["vision"]
    if full:  # both towers in one file
        tower |= {"text_model.embeddings.token_embedding.weight": torch.zeros(7, 8), "logit_scale": torch.zeros(()), "visual_projection.weight": torch.zeros(8, 8),
                  prefix + "embeddings.position_ids": torch.arange(5)[None]}
        config = {"model_type": "clip", "vision_config": parts.a["vision"], "text_config": {"hidden_size": 8}}
    dump(config, folder, "config.json")
    dump(image_settings(parts.a["vision"]["image_size"], "ints"), folder, "preprocessor_config.json")
    write_weights(folder, tower, "model")


def write_original(folder, parts, dtype="BF16", files="model", tower="inside", old=True, projector="inside", pad=False, **tower_how):
    """tower: inside (with its folder beside for the dims) or beside; projector: inside, beside (mm_projector.bin) or alone (base in a folder of its own)."""
    a, state = parts.a, stored(parts, dtype)
    os.makedirs(folder)
    write_tower(os.path.join(folder, "tower"), parts, state, **tower_how)
    llm = {"model." + k[4:] if k.startswith("llm.") else "lm_head.weight": v for k, v in state.items() if k.startswith(("llm.", "head."))}
    bridge = {("model.mm_projector." + k.split(".")[-1]) if a["projector"] == "linear" else f"model.mm_projector.{2 * int(k.split('.')[1])}.{k.split('.')[-1]}": v
              for k, v in state.items() if k.startswith("projector.")}
    weights = llm | (bridge if projector == "inside" else {})
    if tower == "inside":
        weights |= {"model.vision_tower.vision_tower.vision_model." + k[6:]: v for k, v in state.items() if k.startswith("tower.")}
    config = {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "tower", "mm_hidden_size": a["vision"]["hidden_size"],
              "mm_projector_type": a["projector"], "mm_vision_select_layer": a["select"], "mm_vision_select_feature": a["feature"], "mm_patch_merge_type": "flat",
              "image_aspect_ratio": "pad" if pad else None, "mm_use_im_start_end": False, "eos_token_id": 257} | spelled(a["llm"], old)
    home = folder
    if projector == "alone":
        home = os.path.join(folder, "base")
        os.makedirs(home)
        config["_name_or_path"] = "base"
        dump({"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | spelled(a["llm"], old), home, "config.json")
    if projector != "inside":
        torch.save(bridge, os.path.join(folder, "mm_projector.bin"))
    dump(config, folder, "config.json")
    write_tokenizer(home, a["llm"]["vocab_size"])
    write_weights(home, weights, files)


PREFIXES = {  # llm, head, tower, projector (formats.md 6.2)
    "hub": ("language_model.model.", "language_model.lm_head.", "vision_tower.vision_model.", "multi_modal_projector."),
    "memory": ("model.language_model.", "lm_head.", "model.vision_tower.vision_model.", "model.multi_modal_projector."),
    "memory5": ("model.language_model.", "lm_head.", "model.vision_tower.", "model.multi_modal_projector."),
    "written5": ("language_model.model.", "language_model.lm_head.", "vision_tower.", "multi_modal_projector."),
}


def write_hf(folder, parts, dtype="BF16", files="model", prefixes="written5", old=False, nested=False, generation="dicts"):
    a, state, p = parts.a, stored(parts, dtype), PREFIXES[prefixes]
    os.makedirs(folder)
    rename = {"llm.": p[0], "head.": p[1], "tower.": p[2]}
    weights = {rename[k[:k.index(".") + 1]] + k[k.index(".") + 1:]: v for k, v in state.items() if not k.startswith("projector.")}
    weights |= {f"{p[3]}linear_{int(k.split('.')[1]) + 1}.{k.split('.')[2]}": v for k, v in state.items() if k.startswith("projector.")}
    text = {"model_type": "llama"} | spelled(a["llm"], old)
    vision = {"model_type": "clip_vision_model"} | a["vision"]
    rows = (a["vision"]["image_size"] // a["vision"]["patch_size"]) ** 2 + (a["feature"] == "cls_patch")
    dump({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index" if old else "image_token_id": 258, "vision_feature_layer": a["select"],
          "vision_feature_select_strategy": "full" if a["feature"] == "cls_patch" else "default", "image_seq_length": rows, "projector_hidden_act": "gelu",
          "tie_word_embeddings": bool(a["llm"].get("tie_word_embeddings")), "eos_token_id": 257, "text_config": text, "vision_config": vision,
          ("torch_dtype" if old else "dtype"): "bfloat16"}, folder, "config.json")
    settings = image_settings(a["vision"]["image_size"], generation)
    dump({"image_processor": settings, "processor_class": "LlavaProcessor", "patch_size": a["vision"]["patch_size"]} if nested else settings, folder,
         "processor_config.json" if nested else "preprocessor_config.json")
    write_tokenizer(folder, a["llm"]["vocab_size"])
    write_weights(folder, weights, files)


# ---------------------------------------------------------------- running, comparing
PROMPTS = [("a", "Is <image> it?"), ("b", "no picture in this one, but words enough to pass sixty-four positions of llama3's rope"), ("c", "x<image>"), (None, "é")]


class Check:
    def __init__(self, program, sim, work):
        self.program, self.sim, self.work, self.faults, self.checks = program, sim, work, 0, 0
        rng = numpy.random.default_rng(5)
        for name, size in (("a", (61, 40)), ("c", (33, 90))):
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)).save(os.path.join(work, name + ".png"))
        with open(os.path.join(work, "lines.jsonl"), "w") as f:
            for image, prompt in PROMPTS:
                f.write(json.dumps({"prompt": prompt} | ({"image": image + ".png"} if image and "<image>" in prompt else {})) + "\n")

    def verdict(self, ok, text):
        self.checks += 1
        self.faults += not ok
        print(("ok    " if ok else "FAIL  ") + text, flush=True)

    def harvest(self, program, folder, *more, data="lines.jsonl", points="hook_embed,blocks.*.hook_resid_post,logits,vision.*.hook_resid_post,projector"):
        out = os.path.join(self.work, "out.safetensors")
        run = subprocess.run([program, "harvest", "--model", folder, "--data", os.path.join(self.work, data), "--points", points, "--out", out, "--quiet", *more],
                             capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"harvest of {folder} gave {run.returncode}: {run.stderr}")
        tensors = load_file(out)
        return {k: v.clone() for k, v in tensors.items()}

    def pixels(self, folder, more):
        out = os.path.join(self.work, "pixels.safetensors")
        subprocess.run([self.program, "preprocess", "--model", folder, "--image", os.path.join(self.work, "a.png"), "--image", os.path.join(self.work, "c.png"), "--out", out, *more],
                       check=True)
        p = load_file(out)
        return {"a": p["pixel_values/0"].clone(), "c": p["pixel_values/1"].clone()}

    def forward(self, title, program, parts, ours, pixels, low):
        """Ours and the floor (transformers in `low`) against float64, the worst point by ratio."""
        exact, plain = parts.modules(torch.float64), parts.modules(low)
        sums, margin = {}, 0  # per point over all lines: squared values, our squared errors, the floor's
        for i, (image, prompt) in enumerate(PROMPTS):
            ids = ours[f"{i}/tokens"].tolist()
            picture = pixels[image] if image and "<image>" in prompt else None
            right, near = reference(parts.a, exact, ids, picture), reference(parts.a, plain, ids, picture)
            for point, r in right.items():
                o = ours[f"{i}/{point}"].double()
                new = torch.stack([r.pow(2).sum(), (o - r).pow(2).sum(), (near[point].double() - r).pow(2).sum()])
                sums[point] = sums.get(point, 0) + new
                if point == "logits":
                    margin = max(margin, (o - r).abs().max().item())
        rms = {p: ((s[1] / s[0]).sqrt().item(), (s[2] / s[0]).sqrt().item()) for p, s in sums.items()}
        worst = max(rms, key=lambda p: rms[p][0] / max(rms[p][1], SMALLEST))
        e, f = rms[worst]
        self.verdict(e <= ALLOWED * max(f, SMALLEST), f"{title}: {len(rms)} points, worst {worst}: relative RMS {e:.2g}, floor {f:.2g}; logits {rms['logits'][0]:.2g}, {rms['logits'][1]:.2g}")
        return exact, margin

    @torch.no_grad()
    def generation(self, title, program, folder, parts, exact, pixels, margin, new=12):
        run = subprocess.run([program, "generate", "--model", folder, "--data", os.path.join(self.work, "lines.jsonl"), "--json", "--max-new-tokens", str(new), "--quiet"],
                             capture_output=True, text=True, check=True)
        ties, wrong = 0, 0
        for (image, prompt), line in zip(PROMPTS, run.stdout.splitlines()):
            line = json.loads(line)
            ids, picture = list(line["prompt_ids"]), pixels[image] if image and "<image>" in prompt else None
            for token in line["ids"]:
                logits = reference(parts.a, exact, ids, picture)["logits"][-1]
                best = logits.argmax().item()
                if best != token:
                    close = (logits[best] - logits[token]).item() <= 2 * margin
                    ties, wrong = ties + close, wrong + (not close)
                ids.append(token)
            wrong += (line["stopped"] == "eos") != (line["ids"][-1] == 257) or (line["stopped"] == "length" and len(line["ids"]) != new)
        self.verdict(wrong == 0, f"{title}: greedy ids of {len(PROMPTS)} prompts, {ties} ties, {wrong} wrong")

    def same(self, title, folder, *more, expected):
        try:
            got = self.harvest(self.program, folder, *more)
        except RuntimeError as e:
            self.verdict(False, f"{title}: {e}")
            return
        bad = [k for k in expected if k not in got or not torch.equal(got[k], expected[k])]
        self.verdict(not bad, f"{title}: {len(expected)} tensors, {len(bad)} differ{': ' + bad[0] if bad else ''}")


def hf_model(folder, parts, exact, pixels):
    """LlavaForConditionalGeneration.from_pretrained of the folder as written gives the reference's logits: the folder is a real one."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    rows = model.config.image_seq_length
    ids = [256, 5] + [-200] * rows + [9, 10]
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([[258 if i == -200 else i for i in ids]]), pixel_values=pixels["a"][None].double()).logits[0]
    return (theirs - reference(parts.a, exact, ids, pixels["a"])["logits"]).abs().max().item()


def architectures(check, only, seed):
    for n, a in enumerate(ARCHITECTURES):
        if only and only not in a["name"]:
            continue
        parts = Parts(a, seed + n)
        small = a["llm"]["hidden_size"] < 1000
        for layout, write in (("original", write_original), ("llava-hf", write_hf)):
            if layout == "llava-hf" and parts.linears != 2:
                continue
            for dtype in ("F32", "BF16"):
                folder = os.path.join(check.work, "model")
                shutil.rmtree(folder, ignore_errors=True)
                write(folder, parts, dtype=dtype, files="shards" if dtype == "F32" else "model")
                title = f"{a['name']}, {layout}, {dtype}"
                pixels = check.pixels(folder, [])
                exact, margin = check.forward(title, check.program, parts, check.harvest(check.program, folder), pixels, torch.float32)
                check.generation(title, check.program, folder, parts, exact, pixels, margin, 12 if small else 3)
                if layout == "llava-hf" and small:
                    e = hf_model(folder, parts, exact, pixels)
                    check.verdict(e < 1e-9, f"{title}: from_pretrained of the folder, largest difference of logits {e:.2g}")
                if check.sim and dtype == "BF16" and small:
                    _, margin = check.forward(title + ", CUDA kernels in bf16", check.sim, parts, check.harvest(check.sim, folder), pixels, torch.bfloat16)


def packagings(check, seed):
    parts = Parts(ARCHITECTURES[0], seed)
    folder = os.path.join(check.work, "first")
    write_original(folder, parts)
    original = check.harvest(check.program, folder)
    hf = os.path.join(check.work, "first_hf")
    write_hf(hf, parts)
    llava = check.harvest(check.program, hf)
    base = {"original": (write_original, original), "llava-hf": (write_hf, llava)}
    variants = [("original", dict(files=f)) for f in ("shards", "bin", "bin shards")]
    variants += [("original", dict(tower="beside")), ("original", dict(tower="beside", prefix="")), ("original", dict(tower="beside", full=True)),
                 ("original", dict(old=False)), ("original", dict(dtype="F16", tower="beside")), ("original", dict(dtype="mixed")), ("original", dict(projector="beside")),
                 ("original", dict(projector="alone", tower="beside"))]
    variants += [("llava-hf", dict(prefixes=p, old=o)) for p in PREFIXES for o in (False, True)]
    variants += [("llava-hf", dict(nested=True)), ("llava-hf", dict(generation="ints")), ("llava-hf", dict(files="bin shards")), ("llava-hf", dict(dtype="mixed", files="shards"))]
    for layout, how in variants:
        write, expected = base[layout]
        folder = os.path.join(check.work, "variant")
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, parts, **how)
        check.same(f"{layout}, {', '.join(f'{k} {v}' for k, v in how.items())}", folder, expected=expected)


def close(a, b):
    """Equal but for the rounding that another number of rows in a product brings."""
    return a.shape == b.shape and (a.double() - b.double()).pow(2).sum() <= 1e-12 * b.double().pow(2).sum()


def parts_alone(check, seed):
    """The language model as a plain LLaMA folder, the tower as a CLIP folder."""
    parts = Parts(ARCHITECTURES[0], seed)
    state, whole = stored(parts, "BF16"), os.path.join(check.work, "whole")
    write_original(whole, parts)
    expected = check.harvest(check.program, whole)
    folder = os.path.join(check.work, "plain")
    os.makedirs(folder)
    dump({"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | parts.a["llm"], folder, "config.json")
    write_tokenizer(folder, 0)
    write_weights(folder, {"model." + k[4:] if k.startswith("llm.") else "lm_head.weight": v for k, v in state.items() if k.startswith(("llm.", "head."))}, "model")
    lines = [json.dumps({"prompt": p}) + "\n" for _, p in PROMPTS if "<image>" not in p]
    open(os.path.join(check.work, "texts.jsonl"), "w").writelines(lines)
    got = check.harvest(check.program, folder, data="texts.jsonl", points="blocks.*.hook_resid_post,logits")
    lined = [i for i, (_, p) in enumerate(PROMPTS) if "<image>" not in p]
    bad = [k for k, v in got.items() if not close(v, expected[f"{lined[int(k.split('/')[0])]}/{k.split('/', 1)[1]}"])]
    check.verdict(not bad, f"plain LLaMA folder: {len(got)} tensors, {len(bad)} differ")
    for prefix, full in (("vision_model.", False), ("", False), ("vision_model.", True)):
        folder = os.path.join(check.work, f"clip{len(prefix)}{full}")
        write_tower(folder, parts, state, prefix=prefix, full=full)
        open(os.path.join(check.work, "pictures.jsonl"), "w").write('{"image": "a.png"}\n')
        got = check.harvest(check.program, folder, data="pictures.jsonl", points="vision.*.hook_resid_post")
        bad = [k for k in got if "vision" in k and not close(got[k], expected[k])]
        check.verdict(not bad and len(got) >= 3, f"plain CLIP folder, prefix \"{prefix}\"{', text tower in the file' if full else ''}: {len(got)} tensors, {len(bad)} differ")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("program")
    p.add_argument("--sim")
    p.add_argument("--only")
    p.add_argument("--seed", type=int, default=1)
    o = p.parse_args()
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        check = Check(o.program, o.sim, work)
        if not o.only:
            packagings(check, o.seed)
            parts_alone(check, o.seed)
        architectures(check, o.only, o.seed)
    print(f"{check.checks - check.faults} passed, {check.faults} failed")
    sys.exit(check.faults > 0)


if __name__ == "__main__":
    main()
