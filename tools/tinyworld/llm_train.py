"""Trains the base LLM on text only. Three phases, each needed by the next (measured in trials: without the first, nothing binds):
1. random token sequences given twice, the second copy to be predicted: induction heads form;
2. scenes of two things: look-up of a row or column, left-or-right, yes or no, and copying a scene in another order;
3. scenes of up to four things, all questions, and the corpus itself in raw text and in the chat layout.

usage: llm_train.py TOKENIZER_DIR WORK_DIR     resumable; the state is WORK_DIR/llm.pt
"""
import os
import random
import sys
from functools import partial

import numpy as np
import torch

import llm
import questions
import scenes
import steps
import texts
import tokenizer

QUESTIONS, ROWS, LENGTH = 8, 16, 448        # questions a scene, scenes a step, tokens a row
STEPS = (700, 900, 3900)                  # of the three phases
DROP = 0.05                                 # heads without output in the third, so that no single one carries a skill


class Coder:
    """Token lists; texts.encode without BOS, cached for the short strings that recur."""

    def __init__(self, folder):
        self.tok = tokenizer.load(folder)
        self.size = self.tok.get_vocab_size()
        self.bos = self.tok.token_to_id(texts.BOS)
        self.eot = self.tok.token_to_id(texts.EOT)

    def __call__(self, text):
        return self.tok.encode(text, add_special_tokens=False).ids

    def branch(self, prompt, answer, weight=1.0):
        """Prompt without loss, answer and its end with loss."""
        p, a = self(prompt), self(answer) + [self.eot]
        return p + a, [0.0] * len(p) + [weight] * len(a)


def scene_sample(rng, code, things, stage):
    """A scene in words and questions about it, in the chat layout."""
    scene = scenes.sample(rng, things)
    system = texts.turn("system", rng.choice((texts.TEXT_SYSTEM, texts.TEXT_SYSTEM, texts.VLM_SYSTEM))) if rng.random() < 0.5 else ""
    easy = 0 if stage == 2 or rng.random() < 0.3 else rng.randrange(1, 3)
    prefix = [code.bos] + code(system + texts.header("user") + texts.scene_text(rng, scene, easy)[:-1])
    branches = []
    known = {code(" " + w)[0] for w in (*scenes.SHAPES, *questions.WORD)}       # follows from the first telling
    again = code(".\n" + texts.scene_text(rng, scene, easy))
    branches.append((again, [0.5 if t in known else 0.0 for t in again]))
    first = (questions.lookup,) + (questions.choice,) * 3 + (questions.relation,) * 3 + (questions.colour,)
    later = questions.GENERAL + questions.SPATIAL + (questions.lookup, questions.relation, questions.relation, questions.vsr, questions.vsr)
    for _ in range(QUESTIONS):
        q = questions.draw(rng, scene, first if stage == 2 else later)
        branches.append(code.branch(f".\n{q.text}{texts.EOT}{texts.header('assistant')}", q.answer) + (q.topic,))
    if stage == 3 and rng.random() < 0.3:
        k = rng.randrange(5)
        branches.append(code.branch(f".\n{questions.NEUTRAL[k]}{texts.EOT}{texts.header('assistant')}", questions.arrangement(rng, scene, k), 0.3))
    return prefix, branches


def document_sample(rng, code):
    ids = code(texts.document(rng))
    return [code.bos], [(ids, [0.15] * len(ids))]


def induction_sample(rng, code):
    """Random token sequences given twice, as many as fit."""
    n = rng.randint(4, 16)
    weight = [0.0] * (n + 2) + [1.0] * (n - 1)
    branches = []
    for _ in range(LENGTH // (2 * n + 1)):
        a = [rng.randrange(code.size) for _ in range(n)]
        branches.append(([code.bos] + a + a, weight))
    return [], branches


def batch(code, step):
    rng = random.Random(f"llm {step}")
    stage = steps.phase(STEPS, step)
    if stage == 1:
        samples = [induction_sample(rng, code) for _ in range(ROWS)]
    else:
        samples = [document_sample(rng, code) if stage == 3 and rng.random() < 0.3 else
                   scene_sample(rng, code, 2 if stage == 2 else rng.choice((2, 3, 4)), stage) for _ in range(ROWS)]
    arrays = llm.rows(samples, LENGTH)
    arrays["drop"] = np.float32(DROP if stage == 3 else 0.0)
    return arrays, steps.topics_of(arrays, samples)


def main(folder, work):
    torch.manual_seed(7)
    code = Coder(folder)
    model = llm.Llm(code.size).to(steps.DEVICE)
    total = sum(STEPS)
    stage = steps.Stage(steps=total, make=partial(batch, code), params=model.parameters(),
                        work=lambda b: llm.predict(model, model.embed(b["ids"]), b, b["drop"]),
                        rate=lambda step: 1.2e-3 * min(1, (step + 1) / 100) * max(0.03, min(1, 2.5 * (1 - step / total))),
                        adamw={"betas": (0.9, 0.95), "weight_decay": 0.01})
    steps.train("llm", os.path.join(work, "llm.pt"), model, [stage])


if __name__ == "__main__":
    main(*sys.argv[1:3])
