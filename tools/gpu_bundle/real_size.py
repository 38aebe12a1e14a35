"""Real sizes on a GPU: random weights in LLaMA-3.1-8B's, CLIP-L/336's and Llama Scope 8x' shapes and formats, then
  - `harvest` beside transformers in bf16 and in f32 from the same weights: relative RMS by layer (the bf16 model is the floor);
  - `train` on two layers in the four regimes: tokens a second.

usage: real_size.py STAGEDIFF WORLD WORK [--layers 32] [--samples 96]      WORLD: the small world, for its tokenizer; WORK: about 20 GB"""
import argparse
import json
import math
import os
import shutil
import subprocess
import time

import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

C, F, H, G, V, M = 4096, 14336, 32, 8, 128256, 32768
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LLAMA = dict(hidden_size=C, intermediate_size=F, num_attention_heads=H, num_key_value_heads=G, vocab_size=V, rms_norm_eps=1e-5,
             max_position_embeddings=131072, rope_theta=500000.0, bos_token_id=1007, eos_token_id=1008, tie_word_embeddings=False,
             rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192))
CLIP = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14)


def say(**row):
    print(json.dumps(row), flush=True)


def normal(*shape, std=0.02):
    return torch.empty(*shape, dtype=torch.bfloat16, device=DEVICE).normal_(0, std)


def make_llm(layers):
    w = {"model.embed_tokens.weight": normal(V, C), "lm_head.weight": normal(V, C), "model.norm.weight": 1 + normal(C)}
    for i in range(layers):
        p = f"model.layers.{i}."
        w |= {p + "self_attn.q_proj.weight": normal(C, C), p + "self_attn.k_proj.weight": normal(C // 4, C), p + "self_attn.v_proj.weight": normal(C // 4, C),
              p + "self_attn.o_proj.weight": normal(C, C), p + "mlp.gate_proj.weight": normal(F, C), p + "mlp.up_proj.weight": normal(F, C),
              p + "mlp.down_proj.weight": normal(C, F), p + "input_layernorm.weight": 1 + normal(C), p + "post_attention_layernorm.weight": 1 + normal(C)}
    return w


def make_folders(work, world, layers, samples):
    vlm, clip = f"{work}/vlm", f"{work}/clip"
    os.makedirs(vlm), os.makedirs(f"{work}/images")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if os.path.exists(f"{world}/vlm/{name}"):
            shutil.copy(f"{world}/vlm/{name}", vlm)
    llm = make_llm(layers)
    start = time.time()
    save_file({k: v.cpu() for k, v in llm.items()} | {f"model.mm_projector.{n}": normal(*s).cpu() for n, s in (
        ("0.weight", (C, 1024)), ("0.bias", (C,)), ("2.weight", (C, C)), ("2.bias", (C,)))}, f"{vlm}/model.safetensors")
    json.dump(dict(LLAMA, num_hidden_layers=layers, model_type="llava_llama", architectures=["LlavaLlamaForCausalLM"], hidden_act="silu", torch_dtype="bfloat16",
                   mm_vision_tower="../clip", mm_hidden_size=1024, mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2,
                   mm_vision_select_feature="patch", image_aspect_ratio="pad", mm_patch_merge_type="flat"), open(f"{vlm}/config.json", "w"))
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP))
    tower.save_pretrained(clip)
    json.dump({"crop_size": 336, "size": 336, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3,
               "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}, open(f"{clip}/preprocessor_config.json", "w"))
    for L in sorted({layers // 2 - 1, layers - 1}):
        d = f"{work}/saes/L{L}R-8x"
        os.makedirs(f"{d}/checkpoints")
        rows = torch.nn.functional.normalize(torch.randn(M, C, device=DEVICE), dim=1)
        save_file({"encoder.weight": rows.bfloat16().cpu(), "encoder.bias": torch.zeros(M, dtype=torch.bfloat16),
                   "decoder.weight": rows.T.contiguous().bfloat16().cpu(), "decoder.bias": torch.zeros(C, dtype=torch.bfloat16)}, f"{d}/checkpoints/final.safetensors")
        json.dump({"dtype": "torch.bfloat16", "hook_point_in": f"blocks.{L}.hook_resid_post", "hook_point_out": f"blocks.{L}.hook_resid_post", "use_decoder_bias": True,
                   "apply_decoder_bias_to_pre_encoder": False, "expansion_factor": 8, "d_model": C, "d_sae": M, "act_fn": "jumprelu", "jump_relu_threshold": 0.35546875,
                   "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 10.8125, "out": 10.8125}, "sparsity_include_decoder_norm": True,
                   "use_glu_encoder": False, "top_k": 50}, open(f"{d}/hyperparams.json", "w"))
    g = torch.Generator().manual_seed(1)
    for i in range(16):
        small = torch.randint(0, 256, (12, 16, 3), generator=g, dtype=torch.uint8).numpy()
        Image.fromarray(small).resize((640, 480), Image.BICUBIC).save(f"{work}/images/{i}.jpg")
    with open(f"{work}/data.jsonl", "w") as f:
        for i in range(samples):
            f.write(json.dumps({"image": f"images/{i % 16}.jpg", "question": f"What is left of the red circle in picture {i}?", "answer": "blue square"}) + "\n")
    with open(f"{work}/few.jsonl", "w") as f:
        f.write("".join(open(f"{work}/data.jsonl").readlines()[:2]))
    say(what="folders", seconds=round(time.time() - start, 1), gigabytes=round(os.path.getsize(f"{vlm}/model.safetensors") / 1e9, 2))
    return llm, tower


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def hidden(model, rows):
    points, hooks = {}, []
    for i, layer in enumerate(model.model.layers):
        hooks.append(layer.register_forward_hook(lambda m, a, out, i=i: points.__setitem__(i, (out[0] if isinstance(out, tuple) else out)[0].float().cpu())))
    with torch.no_grad():
        points["logits"] = model(inputs_embeds=rows, use_cache=False).logits[0].float().cpu()
    for h in hooks:
        h.remove()
    return points


def parity(stagediff, work, llm, tower, layers):
    config = transformers.LlamaConfig(**LLAMA, num_hidden_layers=layers)
    at = sorted({0, layers // 2, layers - 2, layers - 1})
    points = ["hook_embed", "vision.selected", "projector", "logits"] + [f"blocks.{i}.hook_resid_post" for i in at]
    start = time.time()
    subprocess.run([stagediff, "harvest", "--quiet", "--model", f"{work}/vlm", "--data", f"{work}/few.jsonl", "--points", ",".join(points), "--out", f"{work}/ours.safetensors"], check=True)
    subprocess.run([stagediff, "preprocess", "--quiet", "--model", f"{work}/vlm", "--image", f"{work}/images/0.jpg", "--out", f"{work}/pixels.safetensors"], check=True)
    say(what="harvest of 2 samples, with loading", seconds=round(time.time() - start, 1))
    with safe_open(f"{work}/ours.safetensors", "pt") as f:
        ours = {p: f.get_tensor(f"0/{p}") for p in points}
    with safe_open(f"{work}/pixels.safetensors", "pt") as f:
        pixels = f.get_tensor("pixel_values/0")[None]
    vision = {}
    for dtype in (torch.float32, torch.bfloat16):
        t = tower.to(DEVICE, dtype)
        with torch.no_grad():
            vision[dtype] = t(pixels.to(DEVICE, dtype), output_hidden_states=True).hidden_states[-2][0, 1:].float().cpu()
    say(point="vision.selected", ours=relative(ours["vision.selected"], vision[torch.float32]), transformers_bf16=relative(vision[torch.bfloat16], vision[torch.float32]))
    states = {}
    for dtype in (torch.bfloat16, torch.float32):
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config)
        model = model.to(dtype)
        model.load_state_dict({k: v.to(dtype) for k, v in llm.items()}, assign=True)
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(DEVICE)
        states[dtype] = hidden(model.eval(), ours["hook_embed"][None].to(DEVICE, dtype))
        del model
        torch.cuda.empty_cache()
    for p in at + ["logits"]:
        name = p if p == "logits" else f"blocks.{p}.hook_resid_post"
        say(point=name, ours=relative(ours[name], states[torch.float32][p]), transformers_bf16=relative(states[torch.bfloat16][p], states[torch.float32][p]),
            finite=bool(torch.isfinite(ours[name]).all()), rms=math.sqrt(ours[name].double().pow(2).mean().item()))


def train(stagediff, work, layers, samples):
    config = {"out": "run", "model": "vlm", "saes": "saes", "layers": sorted({layers // 2 - 1, layers - 1}),
              "data": {"train": "data.jsonl", "train_samples": samples - 8, "validation_samples": 8},
              "train": {"k": 50, "batch": 8192, "lr": 2e-4, "ring_rows": 32768, "forward_samples": 16, "products": "bf16"}}
    json.dump(config, open(f"{work}/config.json", "w"))
    start = time.time()
    r = subprocess.run([stagediff, "train", f"{work}/config.json"], capture_output=True, text=True)
    say(what="train, 2 layers, 4 regimes", status=r.returncode, seconds=round(time.time() - start, 1), said=(r.stderr + r.stdout)[-1500:])
    metrics = f"{work}/run/metrics.jsonl"
    if os.path.exists(metrics):
        for line in open(metrics).readlines()[-8:]:
            print(line.strip())


def main():
    p = argparse.ArgumentParser()
    p.add_argument("stagediff"), p.add_argument("world"), p.add_argument("work")
    p.add_argument("--layers", type=int, default=32), p.add_argument("--samples", type=int, default=200)
    a = p.parse_args()
    torch.manual_seed(0)
    os.makedirs(a.work, exist_ok=True)
    llm, tower = make_folders(a.work, a.world, a.layers, a.samples)
    parity(a.stagediff, a.work, llm, tower, a.layers)
    del llm, tower
    torch.cuda.empty_cache()
    train(a.stagediff, a.work, a.layers, a.samples)


if __name__ == "__main__":
    main()
