"""Checks that transformers loads what export.py wrote and computes the same: the base's logits, the tower's rows, and the VLM through
to_llava_hf.py, with pictures and text from the data files.

usage: check.py WORLD_DIR SCRATCH_DIR
"""
import json
import os
import sys

import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration

import evaluate
import llm
import scenes
import texts
import to_llava_hf


def ours(model, ids, pixels):
    return llm.logits(model.llm, model.embed(torch.tensor([ids]), pixels))[0]


def main(world, scratch):
    torch.set_num_threads(1)
    code, model = evaluate.load(world)
    none = torch.zeros(0, 3, 64, 64)
    with torch.no_grad():
        base = LlamaForCausalLM.from_pretrained(os.path.join(world, "base"), dtype=torch.float32)
        text = json.loads(open(os.path.join(world, "data", "text_test.jsonl")).readline())["prompt"]
        tok = AutoTokenizer.from_pretrained(os.path.join(world, "base"))
        ids = tok(text).input_ids
        assert ids == [code.bos] + code(text), "tokenizer"
        mine = llm.Llm(code.size)
        mine.load_state_dict({k: v for k, v in base.state_dict().items()})
        holder = type("Holder", (), {"embed": lambda s, i, p: mine.embed(i), "llm": mine})()
        print("base logits, largest difference", (base(torch.tensor([ids])).logits[0] - ours(holder, ids, none)).abs().max().item())
        chat = tok.apply_chat_template([{"role": "system", "content": texts.TEXT_SYSTEM}, {"role": "user", "content": "What color is grass?"}], tokenize=False)
        assert chat == texts.BOS + texts.turn("system", texts.TEXT_SYSTEM) + texts.turn("user", "What color is grass?") + texts.header("assistant"), chat
        out = base.generate(torch.tensor([tok(chat, add_special_tokens=False).input_ids]), max_new_tokens=8, do_sample=False)
        print("base says:", tok.decode(out[0])[len(chat):])
        row = json.loads(open(os.path.join(world, "data", "vqa_test.jsonl")).readline())
        pixels = torch.tensor(scenes.preprocess(Image.open(os.path.join(world, "data", row["image"]))))[None]
        clip = CLIPVisionModel.from_pretrained(os.path.join(world, "clip"), dtype=torch.float32)
        rows = clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        print("tower rows, largest difference", (rows - model.tower(pixels)).abs().max().item())
        to_llava_hf.main(os.path.join(world, "vlm"), scratch)
        hf = LlavaForConditionalGeneration.from_pretrained(scratch, dtype=torch.float32)
        ids = evaluate.image_prefix(code) + code("\n" + row["question"] + texts.EOT + texts.header("assistant"))
        expected = ours(model, ids, pixels)
        image = hf.config.image_token_id
        got = hf(input_ids=torch.tensor([[image if i == llm.IMAGE else i for i in ids]]), pixel_values=pixels).logits[0]
        print("VLM logits, largest difference", (got[:, :code.size] - expected).abs().max().item(), "largest logit", expected.abs().max().item())


if __name__ == "__main__":
    main(*sys.argv[1:3])
