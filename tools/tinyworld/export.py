"""Writes the trained weights in the formats of the real checkpoints, all bf16:
    base/  LlamaForCausalLM: config, generation_config, model.safetensors, tokenizer files
    clip/  CLIPVisionModel: config, preprocessor_config, model.safetensors
    vlm/   LLaVA-MORE's layout (LlavaLlamaForCausalLM): LLM, model.mm_projector.*, model.vision_tower.vision_tower.*, tokenizer files

usage: export.py TOKENIZER_DIR WORK_DIR OUT_DIR      uses WORK_DIR/{llm,tower,vlm}.pt, as far as they exist
"""
import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

import llm
import scenes
import tokenizer
import tower
from vlm_train import Vlm


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def save(state, folder):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.safetensors")
    save_file({k: v.detach().bfloat16().contiguous() for k, v in state.items()}, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)


def llama_config(tok):
    return {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": tok.token_to_id("<|begin_of_text|>"),
            "eos_token_id": [tok.token_to_id(s) for s in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")], "head_dim": llm.DIM, "hidden_act": "silu",
            "hidden_size": llm.WIDTH, "initializer_range": 0.02, "intermediate_size": llm.MLP, "max_position_embeddings": llm.MAX_POSITION,
            "mlp_bias": False, "model_type": "llama", "num_attention_heads": llm.HEADS, "num_hidden_layers": llm.LAYERS, "num_key_value_heads": llm.KV,
            "pretraining_tp": 1, "rms_norm_eps": llm.EPS, "rope_scaling": llm.ROPE, "rope_theta": llm.THETA, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": tok.get_vocab_size()}


def llava_config(tok):
    c = llama_config(tok)
    c.update({"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "mm_vision_tower": "../clip", "mm_hidden_size": tower.WIDTH,
              "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
              "mm_patch_merge_type": "flat", "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "mm_projector_lr": None,
              "tokenizer_model_max_length": llm.MAX_POSITION, "tokenizer_padding_side": "right", "tune_mm_mlp_adapter": False,
              "freeze_mm_mlp_adapter": False, "use_mm_proj": True, "unfreeze_mm_vision_tower": False})
    return c


def clip_config():
    return {"architectures": ["CLIPVisionModel"], "attention_dropout": 0.0, "hidden_act": "quick_gelu", "hidden_size": tower.WIDTH, "image_size": tower.SIZE,
            "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": tower.MLP, "layer_norm_eps": 1e-5, "model_type": "clip_vision_model",
            "num_attention_heads": tower.HEADS, "num_channels": 3, "num_hidden_layers": tower.LAYERS, "patch_size": tower.PATCH, "projection_dim": tower.WIDTH,
            "torch_dtype": "bfloat16"}


def preprocessor():
    return {"crop_size": {"height": tower.SIZE, "width": tower.SIZE}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
            "do_resize": True, "image_mean": [round(float(v), 8) for v in scenes.CLIP_MEAN], "image_processor_type": "CLIPImageProcessor",
            "image_std": [round(float(v), 8) for v in scenes.CLIP_STD], "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": tower.SIZE}}


def language_folder(folder, source, tok, config, eos):
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(os.path.join(source, "tokenizer.json"), os.path.join(folder, "tokenizer.json"))
    tokenizer.write_companions(folder, tok)
    write_json(os.path.join(folder, "config.json"), config)
    write_json(os.path.join(folder, "generation_config.json"), {"bos_token_id": config["bos_token_id"], "do_sample": False, "eos_token_id": eos,
                                                                "pad_token_id": tok.token_to_id("<|finetune_right_pad_id|>")})


def main(source, work, out):
    tok = tokenizer.load(source)
    config = llama_config(tok)
    os.makedirs(os.path.join(out, "clip"), exist_ok=True)
    language_folder(os.path.join(out, "base"), source, tok, config, config["eos_token_id"])
    language_folder(os.path.join(out, "vlm"), source, tok, llava_config(tok), config["eos_token_id"])
    write_json(os.path.join(out, "clip", "config.json"), clip_config())
    write_json(os.path.join(out, "clip", "preprocessor_config.json"), preprocessor())
    torch.manual_seed(0)
    model = Vlm(tok.get_vocab_size())
    paths = {k: os.path.join(work, k + ".pt") for k in ("llm", "tower", "vlm")}
    if os.path.exists(paths["llm"]):
        model.llm.load_state_dict(torch.load(paths["llm"], map_location="cpu")["model"])
    if os.path.exists(paths["tower"]):
        model.tower.load_state_dict(torch.load(paths["tower"], map_location="cpu")["model"])
    save(model.llm.state_dict(), os.path.join(out, "base"))
    if os.path.exists(paths["vlm"]):
        model.load_state_dict(torch.load(paths["vlm"], map_location="cpu")["model"])
    vision = model.tower.hf_state()
    save(vision, os.path.join(out, "clip"))
    both = dict(model.llm.state_dict())
    both.update({"model.mm_projector." + k: v for k, v in model.projector.state_dict().items()})
    both.update({"model.vision_tower.vision_tower." + k: v for k, v in vision.items()})
    save(both, os.path.join(out, "vlm"))


if __name__ == "__main__":
    main(*sys.argv[1:4])
