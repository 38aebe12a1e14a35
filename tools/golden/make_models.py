"""Golden files of models/ from transformers (f32): tests/models/golden/.

  world.safetensors   8 samples of the small world: ids, a hash of the pixel values, hidden states of some rows at every layer, last logits
  world_texts.jsonl   200 greedy answers
  tiny_llava/, tiny_llama/   random checkpoints with odd shapes (head_dim 24, one kv head, vocabulary no multiple of 8, tied head,
                      sharded file, both spellings of the config), and <name>.safetensors: ids, pixels, states, logits

  tiny_stage1/        what LLaVA's first stage leaves: config.json and mm_projector.bin, the language model (GQA of 3, llama3 rotary) in base/, the tower
                      in tower/; three-layer projector, class row kept, first tower layer selected; and tiny_stage1.safetensors

Remake all after the world's weights changed:  python tools/golden/make_models.py tools/tinyworld/world tests/models/golden
"""
import hashlib
import json
import os
import shutil
import sys

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

import hf_world

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import test_models

SEED, QUESTIONS, NEW = 7, 200, 16
SAMPLES = [("vqa_test.jsonl", 3 * i + i % 2) for i in range(8)]


def metadata(**more):
    return {"script": "tools/golden/make_models.py", "torch": torch.__version__, "transformers": transformers.__version__, "seed": str(SEED), **more}


def fnv(data):
    """FNV-1a of bytes, 64 bit, as two i32."""
    h = 0xcbf29ce484222325
    for b in data:
        h = (h ^ b) * 0x100000001b3 & 0xffffffffffffffff
    return torch.tensor([h & 0xffffffff, h >> 32], dtype=torch.int64).to(torch.int32)


def make_world(folder, out):
    world, tensors, lines = hf_world.World(folder), {}, []
    weights = hashlib.sha256(open(os.path.join(folder, "vlm", "model.safetensors"), "rb").read()).hexdigest()
    for i, (name, index) in enumerate(SAMPLES):
        line = world.line(name, index)
        ids, pixels = world.ids(hf_world.conversation(line["question"], True)), world.pixels(line["image"])
        states, logits = world.forward(ids, pixels)
        image = ids.index(-200)
        rows = torch.tensor([0, image + 13, image + world.rows + 2, len(ids) - 1])
        tensors |= {f"{i}/line": torch.tensor([index], dtype=torch.int32), f"{i}/ids": torch.tensor(ids, dtype=torch.int32), f"{i}/pixel_hash": fnv(pixels.numpy().tobytes()),
                    f"{i}/rows": rows.int(), f"{i}/states": states[:, rows].contiguous(), f"{i}/logits": logits[-1].clone()}
        if i == 0:
            vision, projected = world.vision(pixels)
            tensors |= {"vision": vision[:, ::16].contiguous(), "projector": projected[::16].contiguous()}
    save_file(tensors, os.path.join(out, "world.safetensors"), metadata=metadata(weights=weights, data=SAMPLES[0][0]))
    for index in range(QUESTIONS):
        line = world.line("vqa_test.jsonl", index)
        ids, text = world.generate(world.ids(hf_world.conversation(line["question"], True)), world.pixels(line["image"]), NEW)
        lines.append(json.dumps({"ids": ids, "text": text.split("\0")[0]}) + "\n")  # C strings end at a zero byte
    open(os.path.join(out, "world_texts.jsonl"), "w").writelines(lines)


def write_tokenizer(folder, vocab):
    """A byte-level BPE of 256 bytes and specials, enough for a folder to open."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    t = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet[:vocab - 4])}, merges=[]))
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<image>"])
    t.save(os.path.join(folder, "tokenizer.json"))
    json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>"}, open(os.path.join(folder, "tokenizer_config.json"), "w"))


def save(folder, config, state, shards):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    json.dump(config, open(os.path.join(folder, "config.json"), "w"), indent=1)
    names, index = sorted(state), {}
    for s in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{s + 1:05}-of-{shards:05}.safetensors"
        part = {n: state[n].bfloat16().contiguous() for n in names[s::shards]}
        save_file(part, os.path.join(folder, file), metadata={"format": "pt"})
        index |= {n: file for n in part}
    if shards > 1:
        json.dump({"metadata": {"total_size": sum(t.numel() * 2 for t in state.values())}, "weight_map": index}, open(os.path.join(folder, "model.safetensors.index.json"), "w"))


def randomise(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_((torch.randn(p.shape) * (0.3 if p.dim() > 1 else 0.2) * (p.shape[-1] ** -0.5 * 4 if p.dim() > 1 else 1) + (1 if "norm" in name and name.endswith("weight") else 0)).bfloat16())


def old_spelling(c):
    """rope_theta and rope_scaling as transformers 4 wrote them."""
    p = dict(c.pop("rope_parameters"))
    c["rope_theta"] = p.pop("rope_theta")
    c["rope_scaling"] = p if p.get("rope_type", "default") != "default" else None
    c["torch_dtype"] = "bfloat16"
    return c


@torch.no_grad()
def make_tiny_llava(out):
    """llava-hf layout, Hub spelling, two shards; rows: two pictures with text, one text alone."""
    text = LlamaConfig(vocab_size=267, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=24,
                       max_position_embeddings=128, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=24, patch_size=8)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=266, image_seq_length=9, vision_feature_layer=-2, vision_feature_select_strategy="default")
    model = LlavaForConditionalGeneration(config).float().eval()
    randomise(model)
    rename = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.vision_tower.": "vision_tower.vision_model.", "model.multi_modal_projector.": "multi_modal_projector."}
    state = {}
    for k, v in model.state_dict().items():
        old = next(o for o in rename if k.startswith(o))
        state[rename[old] + k[len(old):].removeprefix("vision_model.")] = v
    folder = os.path.join(out, "tiny_llava")
    written = config.to_dict()
    keep = ("model_type", "image_token_index", "image_seq_length", "vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act", "multimodal_projector_bias")
    small = {k: written[k] for k in keep if k in written} | {"image_token_index": 266, "architectures": ["LlavaForConditionalGeneration"], "torch_dtype": "bfloat16", "eos_token_id": 257}
    small["text_config"] = old_spelling({k: text.to_dict()[k] for k in ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                                                          "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters")})
    small["vision_config"] = {k: vision.to_dict()[k] for k in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")}
    save(folder, small, state, 2)
    write_tokenizer(folder, 260)
    json.dump({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}, open(os.path.join(folder, "preprocessor_config.json"), "w"))
    tensors = {}
    for i in range(3):
        ids = [256] + [-200] * 9 * (i < 2) + torch.randint(0, 256, (5 + 4 * i,)).tolist()
        pixels = torch.randn(1, 3, 24, 24)
        row = torch.tensor([[266 if t == -200 else t for t in ids]])
        kept = []
        hooks = [m.register_forward_hook(lambda _, a, o: kept.append(o[0] if isinstance(o, tuple) else o)) for m in model.model.language_model.layers]
        o = model(input_ids=row, output_hidden_states=True, **({"pixel_values": pixels} if i < 2 else {}))
        [h.remove() for h in hooks]
        states = torch.stack([o.hidden_states[0][0]] + [k.reshape(len(ids), -1) for k in kept])
        tensors |= {f"{i}/ids": torch.tensor(ids, dtype=torch.int32), f"{i}/states": states, f"{i}/logits": o.logits[0].clone()}
        if i < 2:
            tensors[f"{i}/pixels"] = pixels[0]
            tensors[f"{i}/vision"] = torch.stack([s[0] for s in model.model.vision_tower(pixels, output_hidden_states=True).hidden_states])
    save_file(tensors, os.path.join(out, "tiny_llava.safetensors"), metadata=metadata())


@torch.no_grad()
def make_tiny_llama(out):
    """LlamaForCausalLM, tied head, H*D != C, transformers 5's spelling, linear rope."""
    config = LlamaConfig(vocab_size=261, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=24, max_position_embeddings=96,
                         rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})
    model = LlamaForCausalLM(config).float().eval()
    randomise(model)
    folder, full = os.path.join(out, "tiny_llama"), config.to_dict()
    small = {k: full[k] for k in ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                                  "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_parameters")}
    save(folder, small | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}, {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}, 1)
    write_tokenizer(folder, 260)
    tensors = {}
    for i in range(2):
        ids = torch.randint(0, 256, (1, 7 + 30 * i))
        kept = []
        hooks = [m.register_forward_hook(lambda _, a, o: kept.append(o[0] if isinstance(o, tuple) else o)) for m in model.model.layers]
        o = model(input_ids=ids, output_hidden_states=True)
        [h.remove() for h in hooks]
        states = torch.stack([o.hidden_states[0][0]] + [k.reshape(ids.shape[1], -1) for k in kept])
        tensors |= {f"{i}/ids": ids[0].int(), f"{i}/states": states, f"{i}/logits": o.logits[0].clone()}
    save_file(tensors, os.path.join(out, "tiny_llama.safetensors"), metadata=metadata())


@torch.no_grad()
def make_tiny_stage1(out):
    a = test_models.arch("stage 1", (48, 6, 2, 16, 56, 267, 2), (32, 2, 40, 3, 24, 8), projector="mlp3x_gelu", select=1, feature="cls_patch", positions=128,
                         rope_parameters=test_models.LLAMA3)
    parts, folder, tensors = test_models.Parts(a, SEED), os.path.join(out, "tiny_stage1"), {}
    shutil.rmtree(folder, ignore_errors=True)
    test_models.write_original(folder, parts, tower="beside", projector="alone", pad=True)
    modules = parts.modules(torch.float32)
    for i in range(3):
        ids, pixels = [256] + [-200] * 10 * (i != 1) + torch.randint(0, 256, (5 + 36 * i,)).tolist(), torch.randn(3, 24, 24) if i != 1 else None
        r = test_models.reference(a, modules, ids, pixels)
        tensors |= {f"{i}/ids": torch.tensor(ids, dtype=torch.int32), f"{i}/logits": r["logits"].clone(),
                    f"{i}/states": torch.stack([r["hook_embed"]] + [r[f"blocks.{l}.hook_resid_post"] for l in range(2)])}
        if pixels is not None:
            tower = [r[f"vision.{l}.hook_resid_post"] for l in range(3)]
            tensors |= {f"{i}/pixels": pixels, f"{i}/vision": torch.stack([torch.zeros_like(tower[0])] + tower)}
    save_file(tensors, os.path.join(out, "tiny_stage1.safetensors"), metadata=metadata())


def main(world, out):
    torch.set_num_threads(1)
    os.makedirs(out, exist_ok=True)
    torch.manual_seed(SEED)
    make_tiny_llava(out)
    make_tiny_llama(out)
    make_tiny_stage1(out)
    make_world(world, out)


if __name__ == "__main__":
    main(*sys.argv[1:3])
