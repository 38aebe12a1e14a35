"""Measures the bf16 floor of the small world's forward pass: how far transformers' own bf16 run is from its f32 run, by layer.

tests/e2e/test_executors.c allows the CUDA path (executed by the SIMT layer) 1.25 times this. Writes relative RMS errors
sqrt(sum (a-b)^2 / sum a^2) over all tokens of the first SAMPLES lines of data/vqa_test.jsonl whose pictures are square.

usage: make_executors.py WORLD OUT.json
"""
import json
import os
import sys
import tempfile

import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, LlavaForConditionalGeneration

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tinyworld"))
import to_llava_hf  # noqa: E402
import scenes  # noqa: E402
import texts  # noqa: E402

SAMPLES = 6


def main(world, out):
    torch.set_num_threads(1)
    tok = AutoTokenizer.from_pretrained(os.path.join(world, "base"))
    system = ("You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and "
              "assist the user with a variety of tasks using natural language.")
    rows = [json.loads(line) for line in open(os.path.join(world, "data", "vqa_test.jsonl"))][:SAMPLES]
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        to_llava_hf.main(os.path.join(world, "vlm"), scratch)
        f32 = LlavaForConditionalGeneration.from_pretrained(scratch, dtype=torch.float32)
        low = LlavaForConditionalGeneration.from_pretrained(scratch, dtype=torch.bfloat16)
        image = f32.config.image_token_id
        error, scale = {}, {}
        for row in rows:
            pixels = torch.tensor(scenes.preprocess(Image.open(os.path.join(world, "data", row["image"]))))[None]
            before = texts.BOS + texts.turn("system", system) + texts.header("user")
            after = "\n" + row["question"] + texts.EOT + texts.header("assistant")
            n = f32.config.image_seq_length
            ids = tok(before, add_special_tokens=False).input_ids + [image] * n + tok(after, add_special_tokens=False).input_ids
            run = lambda m: m(input_ids=torch.tensor([ids]), pixel_values=pixels.to(m.dtype), output_hidden_states=True)
            a, b = run(f32), run(low)
            points = {f"blocks.{i}.hook_resid_post": (x, y) for i, (x, y) in enumerate(zip(a.hidden_states[1:-1], b.hidden_states[1:-1]))}
            vocabulary = a.logits.shape[-1] - 1
            points["logits"] = a.logits[..., :vocabulary], b.logits[..., :vocabulary]
            for name, (x, y) in points.items():
                error[name] = error.get(name, 0.0) + (x - y.float()).double().pow(2).sum().item()
                scale[name] = scale.get(name, 0.0) + x.double().pow(2).sum().item()
    floors = {name: (error[name] / scale[name]) ** 0.5 for name in error}
    with open(out, "w") as f:
        json.dump({"what": "relative RMS of transformers bf16 against f32", "transformers": transformers.__version__, "torch": torch.__version__,
                   "samples": SAMPLES, "floors": floors}, f, indent=1)
        f.write("\n")
    print(json.dumps(floors, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:3])
