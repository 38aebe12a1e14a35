"""Trains the VLM from the base LLM: LLaVA's two stages with the frozen tower.

Stage 1: the projector alone, on captions in LLaVA's `plain` layout (image, caption, newline).
Stage 2: projector and all LLM weights, on questions, statements and descriptions in LLaVA-MORE's `llama_3_1` layout. Scenes of two
things and look-up questions come first, then everything. Scenes are drawn on the fly; their seeds are disjoint from the data files'.

usage: vlm_train.py TOKENIZER_DIR WORK_DIR STAGE1_SECONDS STAGE2_SECONDS     resumable; the state is WORK_DIR/vlm.pt
With RANK and WORLD_SIZE set, that many processes share each step (gradients are averaged by gloo).
"""
import os
import random
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import llm
import questions
import ranks
import scenes
import texts
from llm_train import Coder, scene_sample, tally, topics_of
from tower import Tower

QUESTIONS, ROWS = 9, 6        # questions a picture, pictures a step and process


def projector(width):
    return nn.Sequential(nn.Linear(width, llm.WIDTH), nn.GELU(), nn.Linear(llm.WIDTH, llm.WIDTH))


class Vlm(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.llm, self.tower = llm.Llm(vocab), Tower().requires_grad_(False)
        self.projector = projector(96)

    def embed(self, ids, pixels):
        """Token embeddings with the image rows put in; pixels [n, 3, 64, 64] in the order of the rows that hold images."""
        x = self.llm.embed(ids.clamp(min=0))
        if len(pixels):
            with torch.no_grad():
                rows = self.tower(pixels)
            x = x.masked_scatter((ids == llm.IMAGE)[..., None], self.projector(rows))
        return x


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


def main(folder, work, seconds1, seconds2):
    torch.set_num_threads(1)
    torch.manual_seed(3)
    ranks.start()
    code = Coder(folder)
    path = os.path.join(work, "vlm.pt")
    model = Vlm(code.size)
    state = {"stage": 1, "step": 0, "used": 0.0, "early": True, "in_stage": 0}
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    if os.path.exists(path):
        s = torch.load(path)
        model.load_state_dict(s["model"]), opt.load_state_dict(s["opt"]), state.update(s["state"])
    else:
        model.llm.load_state_dict(torch.load(os.path.join(work, "llm.pt"))["model"])
        model.tower.load_state_dict(torch.load(os.path.join(work, "tower.pt"))["tower"])
        round_bf16(model.llm), round_bf16(model.tower)
    common = image_prefix(code)[:-64]
    start, saved, topics = time.time() - state["used"], state["used"], {}
    while state["used"] < seconds1 + seconds2:
        used = state["used"] = ranks.same(time.time() - start)
        if state["stage"] == 1 and used >= seconds1:
            state.update(stage=2, in_stage=0)
        stage, early = state["stage"], state["early"]
        rng = random.Random(f"vlm {state['step']} {ranks.RANK}")
        if stage == 1:
            lr, last = 2e-3 * min(1, (state["in_stage"] + 1) / 50), seconds1
            samples = [caption_sample(rng, code, rng.choice((2, 2, 3, 4))) for _ in range(2 * ROWS)]
        else:
            lr = float(os.environ.get("LR", 1e-3)) * min(1, (state["in_stage"] + 1) / 100) * max(0.02, min(1, 2.2 * (1 - (used - seconds1) / seconds2)))
            things = 2 if early else None
            samples = [image_sample(rng, code, things or rng.choice((2, 3, 3, 4)), early) for _ in range(ROWS)]
            if rng.random() < 0.5:
                samples[-1] = scene_sample(rng, code, None, 3) + (None,)
        for g in opt.param_groups:
            g["lr"] = lr
        batch = llm.Batch([(p, [b[:2] for b in br]) for p, br, _ in samples], common if stage == 2 else ())
        names = topics_of(batch, [s for s in samples if s[2] is not None])
        pixels = torch.tensor(np.array([s[2] for s in samples if s[2] is not None]))
        logits, target, w, place = llm.predict(model.llm, model.embed(batch.ids, pixels), batch)
        loss = (F.cross_entropy(logits, target, reduction="none") * w).sum() / w.sum()
        opt.zero_grad()
        loss.backward()
        if stage == 1:
            for p in model.llm.parameters():
                p.grad = None
            active = list(model.projector.parameters())
        else:
            active = params
        ranks.average(active)
        torch.nn.utils.clip_grad_norm_(active, 1.0)
        opt.step()
        tally(logits.argmax(-1) == target, place, names, topics)
        state["step"] += 1
        state["in_stage"] += 1
        if state["step"] % 50 == 0:
            share = {k: round(v[0] / v[1], 2) for k, v in sorted(topics.items())}
            acc = (logits.argmax(-1) == target).float().mean().item()
            if ranks.RANK == 0:
                print(f"vlm stage {stage} step {state['step']} {used:.0f}s lr {lr:.1e} loss {loss.item():.3f} tokens right {acc:.3f} {share}", flush=True)
            done = ranks.same(bool(share) and min(share.get(k, 0) for k in ("row", "column", "choice left", "choice above")) > 0.85)
            if stage == 2 and early and (done or state["in_stage"] >= 1200):
                state["early"] = False
            topics = {}
        if ranks.RANK == 0 and (used - saved > 90 or used >= seconds1 + seconds2):
            torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "state": state}, path + ".new")
            os.replace(path + ".new", path)
            saved = used


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
