"""Live comparison of `stagediff harvest` and `generate` with transformers (f32) on the small world: every row of every layer, not the few
that the golden files hold.      usage: parity.py STAGEDIFF WORLD_DIR [SAMPLES [LIMIT]]
Exit status 1 when tokens or answers differ or a relative RMS error passes LIMIT (1e-4)."""
import json
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file

import hf_world


def relative(a, b):
    return ((a - b).pow(2).mean() / b.pow(2).mean()).sqrt().item()


def main(program, folder, samples=16, limit=1e-4):
    torch.set_num_threads(1)
    world, samples, limit = hf_world.World(folder), int(samples), float(limit)
    data = os.path.join(folder, "data")
    lines = [json.loads(x) for x in open(os.path.join(data, "vqa_test.jsonl"))][:samples]
    with tempfile.NamedTemporaryFile("w", dir=data, suffix=".jsonl") as f, tempfile.TemporaryDirectory() as out:
        f.write("".join(json.dumps({k: x[k] for k in ("image", "question", "answer")}) + "\n" for x in lines))
        f.flush()
        common = ["--model", os.path.join(folder, "vlm"), "--data", f.name]
        points = "hook_embed,blocks.*.hook_resid_post,logits,vision.*.hook_resid_post,projector"
        subprocess.run([program, "harvest", *common, "--points", points, "--out", out + "/h"], check=True)
        ours = load_file(out + "/h")
        answers = subprocess.run([program, "generate", *common, "--json", "--max-new-tokens", "16"], check=True, capture_output=True, text=True).stdout.splitlines()
    worst, bad = {}, 0

    def compare(point, a, b):
        worst[point] = max(worst.get(point, 0), relative(a, b))

    for i, line in enumerate(lines):
        ids, pixels = world.ids(hf_world.conversation(line["question"], True, line["answer"])), world.pixels(line["image"])
        if ours[f"{i}/tokens"].tolist() != ids:
            print(f"sample {i}: tokens differ")
            bad += 1
            continue
        states, logits = world.forward(ids, pixels)
        vision, projected = world.vision(pixels)
        compare("hook_embed", ours[f"{i}/hook_embed"], states[0])
        for l in range(len(states) - 1):
            compare(f"blocks.{l}.hook_resid_post", ours[f"{i}/blocks.{l}.hook_resid_post"], states[l + 1])
        for l in range(len(vision) - 1):
            compare(f"vision.{l}.hook_resid_post", ours[f"{i}/vision.{l}.hook_resid_post"], vision[l + 1])
        compare("projector", ours[f"{i}/projector"], projected)
        compare("logits", ours[f"{i}/logits"], logits)
        ids, _ = world.generate(world.ids(hf_world.conversation(line["question"], True)), pixels, 16)
        if json.loads(answers[i])["ids"] != ids:
            print(f"sample {i}: answers differ: {json.loads(answers[i])['ids']} and {ids}")
            bad += 1
    for point, e in worst.items():
        print(f"{point:28} largest relative RMS error {e:.2g}")
    print(f"{len(lines)} samples, {bad} with differing tokens or answers")
    sys.exit(bad > 0 or max(worst.values()) > limit)


if __name__ == "__main__":
    main(*sys.argv[1:])
