"""Measures the exported files (bf16 weights, pictures from disk, greedy) on the held-out questions and statements.

    VQA: exact match of the generated answer, by topic and for general and spatial questions
    VSR: probability of the first tokens of Yes and No, as in the VSR ablations
    without the image: the same prompts with no image rows; near chance when the text does not give the answer away
    base: the text-only LLM on the same kinds of questions about scenes in words

usage: evaluate.py WORLD_DIR [LIMIT] [SPLIT]
"""
import json
import os
import random
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import llm
import questions
import scenes
import texts
from llm_train import Coder
from vlm_train import Vlm, image_prefix


def load(world):
    code = Coder(os.path.join(world, "vlm"))
    state = {k: v.float() for k, v in load_file(os.path.join(world, "vlm", "model.safetensors")).items()}
    model = Vlm(code.size)
    own = model.tower.hf_state()
    for k, v in own.items():
        v.copy_(state.pop("model.vision_tower.vision_tower." + k))
    for k, v in model.projector.state_dict().items():
        v.copy_(state.pop("model.mm_projector." + k))
    model.llm.load_state_dict(state)
    return code, model.eval()


def base(world, code, n=600):
    """The base LLM, scene in the prompt as words -> {kind: [right, asked]}"""
    model = Vlm(code.size).eval()
    model.llm.load_state_dict({k: v.float() for k, v in load_file(os.path.join(world, "base", "model.safetensors")).items()})
    table = {}
    for i in range(n):
        rng = random.Random(f"evaluate base {i}")
        scene = scenes.sample(rng)
        q = questions.draw(rng, scene, questions.GENERAL if i % 2 else questions.SPATIAL)
        prompt = texts.turn("system", texts.TEXT_SYSTEM) + texts.turn("user", texts.scene_text(rng, scene) + "\n" + q.text) + texts.header("assistant")
        said, _ = answers(code, model, [[code.bos] + code(prompt)], None)
        c = table.setdefault(q.kind, [0, 0])
        c[0] += said[0] == q.answer
        c[1] += 1
    return table


def answers(code, model, prompts, pictures, new=6):
    """Greedy answers and the first step's probabilities. prompts of one length; pictures None for no image."""
    ids = torch.tensor(prompts)
    pixels = torch.tensor(np.array([] if pictures is None else pictures, np.float32))
    with torch.no_grad():
        x = model.embed(ids, pixels)
        out, first = [], None
        for _ in range(new):
            p = llm.logits(model.llm, x)[:, -1].softmax(-1)
            first = p if first is None else first
            out.append(p.argmax(-1))
            if all((torch.stack(out, 1) == code.eot).any(1)):
                break
            x = torch.cat([x, model.llm.embed(out[-1])[:, None]], 1)
    return [code.tok.decode(r[:r.index(code.eot)] if code.eot in r else r) for r in torch.stack(out, 1).tolist()], first


def run(code, model, items, with_image):
    """items: (image path, question) -> answers and P(yes) - P(no), grouped by length so that no padding is needed"""
    prefix = image_prefix(code)
    prefix = prefix if with_image else [i for i in prefix if i != llm.IMAGE]
    prompts = [prefix + code(("\n" if with_image else "") + q + texts.EOT + texts.header("assistant")) for _, q in items]
    yes, no = ([code(s)[0] for s in words if len(code(s)) == 1] for words in ((" Yes", "Yes", " yes", "yes"), (" No", "No", " no", "no")))
    result = [None] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    at = 0
    while at < len(order):
        n = next((j for j in range(at, min(at + 32, len(order))) if len(prompts[order[j]]) != len(prompts[order[at]])), min(at + 32, len(order)))
        group = order[at:n]
        pictures = [scenes.preprocess(Image.open(items[i][0])) for i in group] if with_image else None
        said, p = answers(code, model, [prompts[i] for i in group], pictures)
        for i, s, q in zip(group, said, p):
            result[i] = (s, (q[yes].sum() - q[no].sum()).item())
        at = n
    return result


def main(world, limit=10 ** 9, split="test"):
    torch.set_num_threads(1)
    code, model = load(world)
    read = lambda name: [json.loads(line) for line in open(os.path.join(world, "data", name))][:limit]
    vqa, vsr = read(f"vqa_{split}.jsonl"), read(f"vsr_{split}.jsonl")
    path = lambda r: os.path.join(world, "data", r["image"])
    for with_image in (True, False):
        print("with the image" if with_image else "without the image")
        table = {}
        for r, (said, _) in zip(vqa, run(code, model, [(path(r), r["question"]) for r in vqa], with_image)):
            for key in (f"VQA {r['kind']}", f"VQA {r['kind']} {r['answer_type']}", f"   topic {r['topic']}"):
                c = table.setdefault(key, [0, 0])
                c[0] += said.strip().lower() == r["answer"]
                c[1] += 1
        for r, (_, d) in zip(vsr, run(code, model, [(path(r), questions.VSR_PROMPT.format(caption=r["caption"])) for r in vsr], with_image)):
            for key in ("VSR", f"VSR {r['relation']}"):
                c = table.setdefault(key, [0, 0])
                c[0] += (d > 0) == bool(r["label"])
                c[1] += 1
        for k, (a, n) in sorted(table.items()):
            if with_image or "topic" not in k:
                print(f"  {k:32s} {100 * a / n:5.1f} %  of {n}")
    print("base LLM, scenes in words")
    for k, (a, n) in sorted(base(world, code).items()):
        print(f"  {k:32s} {100 * a / n:5.1f} %  of {n}")


if __name__ == "__main__":
    main(sys.argv[1], *(int(a) if a.isdigit() else a for a in sys.argv[2:]))
