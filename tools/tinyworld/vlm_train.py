"""Trains the VLM from the base LLM: LLaVA's two stages with the frozen tower.

Stage 1: the projector alone, on captions in LLaVA's `plain` layout (image, caption, newline).
Stage 2: projector and all LLM weights, on questions, statements and descriptions in LLaVA-MORE's `llama_3_1` layout. Scenes of two
things and look-up questions come first, then everything. Scenes are drawn on the fly; their seeds are disjoint from the data files'.

usage: vlm_train.py TOKENIZER_DIR WORK_DIR     resumable; the state is WORK_DIR/vlm.pt
"""
import os
import random
import sys
from functools import partial

import numpy as np
import torch
import torch.nn as nn

import llm
import questions
import scenes
import steps
import texts
import tower
from llm_train import LENGTH, Coder, scene_sample

QUESTIONS, ROWS = 9, 16       # questions a picture, pictures a step
DROP = 0.1                    # as for the LLM, while everything is asked
STEPS = (250, 900, 5350)     # captions through the projector; all weights with two things and easy questions; with everything


def projector(width):
    return nn.Sequential(nn.Linear(width, llm.WIDTH), nn.GELU(), nn.Linear(llm.WIDTH, llm.WIDTH))


class Vlm(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.llm, self.tower = llm.Llm(vocab), tower.Tower().requires_grad_(False)
        self.projector = projector(tower.WIDTH)

    def embed(self, ids, pixels):
        """Token embeddings [B, T, C] with the image rows put in; pixels [B, 3, 64, 64], of which rows without image tokens take nothing."""
        x, image = self.llm.embed(ids.clamp(min=0)), (ids == llm.IMAGE)[..., None]
        if not len(pixels):
            return x
        with torch.no_grad():
            seen = self.tower(pixels)
        which = (image.long().cumsum(1) - 1).clamp(0, seen.shape[1] - 1)
        return torch.where(image, self.projector(seen).gather(1, which.expand(-1, -1, x.shape[-1])), x)


def round_bf16(module):
    """Weights as they will be on disk."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(p.bfloat16().float())


def image_prefix(code):
    return [code.bos] + code(texts.turn("system", texts.VLM_SYSTEM) + texts.header("user")) + [llm.IMAGE] * 64


def image_sample(rng, code, things, early):
    scene = scenes.sample(rng, things, 0.5)
    ask = lambda text, answer, w=1.0: code.branch(f"\n{text}{texts.EOT}{texts.header('assistant')}", answer, w)
    first = (questions.lookup,) * 2 + (questions.choice,) * 2 + (questions.relation, questions.half, questions.colour, questions.shape)
    later = questions.GENERAL + questions.SPATIAL + (questions.lookup, questions.vsr, questions.vsr) + (
        questions.extreme, questions.between, questions.half, questions.count, questions.count_some, questions.count_some)
    branches = []
    for i in range(QUESTIONS):             # who is in front is the hardest to learn: three of nine where things overlap
        q = questions.overlap(rng, scene, i) if scene.pair and i < 3 and not early else questions.draw(rng, scene, first if early else later)
        branches.append(ask(q.text, q.answer) + (q.topic,))
    k = rng.random()
    if early or k < 0.25:
        branches.append(ask("Describe this image.", questions.caption(rng, scene), 0.3))
    elif k < 0.6:
        j = rng.randrange(5)
        branches.append(ask(questions.NEUTRAL[j], questions.arrangement(rng, scene, j), 0.3))
    return image_prefix(code), branches, scenes.picture(scene, rng)


def caption_sample(rng, code, things):
    scene = scenes.sample(rng, things, 0.5)
    ids = code(questions.caption(rng, scene, ordered=False) + "\n")
    free = {code(" " + c)[0] for c in scenes.COLOURS}           # which thing comes next is free, the rest follows from the picture
    listed = len(scene.things) * 5 + 2                          # "Scene:", then five tokens a thing; who is in front comes after
    weight = [0.0, 0.0] + [0.1 if t in free and i < listed else 1.0 for i, t in enumerate(ids[2:], 2)]
    return [code.bos] + [llm.IMAGE] * 64, [(ids, weight)], scenes.picture(scene, rng)


def batch(code, step):
    rng = random.Random(f"vlm {step}")
    stage = steps.phase(STEPS, step)
    if stage == 1:
        samples = [caption_sample(rng, code, rng.choice((2, 2, 3, 4))) for _ in range(ROWS)]
    else:
        samples = [image_sample(rng, code, 2 if stage == 2 else rng.choice((2, 3, 3, 4)), stage == 2) for _ in range(ROWS)]
        samples[-1] = scene_sample(rng, code, None, 3) + (np.zeros((3, tower.SIZE, tower.SIZE), np.float32),)   # keeps what the base knew
    arrays = llm.rows(samples, LENGTH)
    arrays.update(pixels=np.stack([s[2] for s in samples]), drop=np.float32(DROP if stage == 3 else 0.0))
    return arrays, steps.topics_of(arrays, samples[:-1])


def main(folder, work):
    torch.manual_seed(3)
    code = Coder(folder)
    model = Vlm(code.size).to(steps.DEVICE)
    for part in ("llm", "tower"):
        getattr(model, part).load_state_dict(torch.load(os.path.join(work, part + ".pt"), map_location=steps.DEVICE)["model"])
        round_bf16(getattr(model, part))
    learns = [*model.projector.parameters(), *model.llm.parameters()]
    adamw = {"betas": (0.9, 0.95), "weight_decay": 0.01}
    work_of = lambda b: llm.predict(model.llm, model.embed(b["ids"], b["pixels"]), b, b["drop"])
    first, rest = STEPS[0], STEPS[1] + STEPS[2]
    steps.train("vlm", os.path.join(work, "vlm.pt"), model, [
        steps.Stage(first, partial(batch, code), list(model.projector.parameters()), work_of, lambda s: 2e-3 * min(1, (s + 1) / 50), adamw),
        steps.Stage(rest, partial(batch, code), learns, work_of,
                    lambda s: 1e-3 * min(1, (s - first + 1) / 100) * max(0.02, min(1, 2.2 * (1 - (s - first) / rest))), adamw)])


if __name__ == "__main__":
    main(*sys.argv[1:3])
