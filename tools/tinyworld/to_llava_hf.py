"""Converts the LLaVA-MORE layout to the llava-hf layout that transformers' LlavaForConditionalGeneration loads.

The image token is a new last row of the vocabulary (its embedding is never used). The processor is CLIP's; the "pad" preprocessing of
the original layout is not part of llava-hf, so pictures for comparison must be square or padded before.

usage: to_llava_hf.py VLM_DIR OUT_DIR      needs the tower's config beside it, at the config's mm_vision_tower
"""
import json
import os
import sys

import torch
from safetensors.torch import load_file, save_file


def rename(key):
    if key.startswith("model.vision_tower.vision_tower."):
        return key.removeprefix("model.vision_tower.")
    if key.startswith("model.mm_projector."):
        _, _, n, leaf = key.split(".")
        return f"multi_modal_projector.linear_{1 if n == '0' else 2}.{leaf}"
    return "language_model." + key


def main(source, out):
    read = lambda *p: json.load(open(os.path.join(*p)))
    config, clip = read(source, "config.json"), os.path.normpath(os.path.join(source, read(source, "config.json")["mm_vision_tower"]))
    text = {k: v for k, v in config.items() if not k.startswith(("mm_", "image_", "tokenizer_", "tune_", "freeze_", "use_mm", "unfreeze"))}
    image_token = text["vocab_size"]
    text.update(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=image_token + 1)
    vision = read(clip, "config.json")
    state = {rename(k): v for k, v in load_file(os.path.join(source, "model.safetensors")).items()}
    for k in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        state[k] = torch.cat([state[k], torch.zeros_like(state[k][:1])])
    os.makedirs(out, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    tok = read(source, "tokenizer.json")
    tok["added_tokens"].append({"id": image_token, "content": "<image>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True})
    llava = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "ignore_index": -100, "image_token_index": image_token,
             "image_seq_length": (vision["image_size"] // vision["patch_size"]) ** 2, "multimodal_projector_bias": True, "projector_hidden_act": "gelu",
             "tie_word_embeddings": False, "torch_dtype": config["torch_dtype"], "vision_feature_layer": config["mm_vision_select_layer"],
             "vision_feature_select_strategy": "default", "text_config": text, "vision_config": vision}
    prep = read(clip, "preprocessor_config.json")
    files = {"config.json": llava, "tokenizer.json": tok, "preprocessor_config.json": prep, "tokenizer_config.json": read(source, "tokenizer_config.json"),
             "special_tokens_map.json": read(source, "special_tokens_map.json"), "generation_config.json": read(source, "generation_config.json"),
             "processor_config.json": {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": vision["patch_size"],
                                       "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"}}
    for name, value in files.items():
        with open(os.path.join(out, name), "w") as f:
            json.dump(value, f, indent=2, ensure_ascii=False)
            f.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
