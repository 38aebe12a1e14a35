"""Trains the base LLM on text only. Three phases, each needed by the next (measured in trials: without the first, nothing binds):
1. random token sequences given twice, the second copy to be predicted: induction heads form;
2. scenes of two things: look-up of a row or column, left-or-right, yes or no, and copying a scene in another order;
3. scenes of up to four things, all questions, and the corpus itself in raw text and in the chat layout.

usage: llm_train.py TOKENIZER_DIR WORK_DIR SECONDS     resumable; the state is WORK_DIR/llm.pt
"""
import os
import random
import sys
import time

import torch
import torch.nn.functional as F

import llm
import questions
import ranks
import scenes
import texts
import tokenizer

QUESTIONS, ROWS = 8, 8        # questions a scene, scenes a step and process


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


def induction_batch(rng, code):
    n = rng.randint(4, 16)
    a = torch.randint(0, code.size, (64, n), generator=torch.Generator().manual_seed(rng.randrange(1 << 40)))
    ids = torch.cat([torch.full((64, 1), code.bos), a, a], 1)
    return llm.Batch([([], [(row, [0.0] * (n + 2) + [1.0] * (n - 1))]) for row in ids.tolist()])


def topics_of(batch, samples):
    """{place of the first answer token: topic} for the branches that carry a topic as third entry"""
    names = {}
    for starts, (_, branches, *_) in zip(batch.starts, samples):
        for at, b in zip(starts, branches):
            if len(b) == 3:
                names[at + next(j for j, w in enumerate(b[1]) if w)] = b[2]
    return names


def tally(right, place, names, topics):
    """Adds to topics {topic: [right, asked]}."""
    for i, r in zip(place.tolist(), right.tolist()):
        if i in names:
            c = topics.setdefault(names[i], [0, 0])
            c[0] += r
            c[1] += 1


def main(folder, work, seconds):
    torch.set_num_threads(1)
    torch.manual_seed(7)
    ranks.start()
    code = Coder(folder)
    path = os.path.join(work, "llm.pt")
    model = llm.Llm(code.size)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    state = {"stage": 1, "step": 0, "used": 0.0, "in_stage": 0, "score": 0.0}
    if os.path.exists(path):
        s = torch.load(path)
        model.load_state_dict(s["model"]), opt.load_state_dict(s["opt"]), state.update(s["state"])
    start, saved, topics = time.time() - state["used"], state["used"], {}
    while state["used"] < seconds:
        state["used"] = ranks.same(time.time() - start)
        rng = random.Random(f"llm {state['step']} {ranks.RANK}")
        stage = state["stage"]
        lr = 1.2e-3 * min(1, (state["step"] + 1) / 100) * max(0.03, min(1, 2.5 * (1 - state["used"] / seconds)))
        for g in opt.param_groups:
            g["lr"] = lr
        names = {}
        if stage == 1:
            batch = induction_batch(rng, code)
        else:
            samples = [document_sample(rng, code) if stage == 3 and rng.random() < 0.3 else
                       scene_sample(rng, code, 2 if stage == 2 else rng.choice((2, 3, 4)), stage) for _ in range(ROWS)]
            batch = llm.Batch([(p, [b[:2] for b in br]) for p, br in samples])
            names = topics_of(batch, samples)
        logits, target, w, place = llm.predict(model, model.embed(batch.ids), batch)
        loss = (F.cross_entropy(logits, target, reduction="none") * w).sum() / w.sum()
        opt.zero_grad()
        loss.backward()
        ranks.average(list(model.parameters()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        right = logits.argmax(-1) == target
        if stage == 1:
            state["score"] += 0.03 * (right.float().mean().item() - state["score"])
        else:
            tally(right, place, names, topics)
        state["step"] += 1
        state["in_stage"] += 1
        if state["step"] % 100 == 0:
            share = {k: round(v[0] / v[1], 2) for k, v in sorted(topics.items())}
            if ranks.RANK == 0:
                print(f"llm stage {stage} step {state['step']} {state['used']:.0f}s loss {loss.item():.3f} score {state['score']:.3f} {share}", flush=True)
            done = ranks.same(bool(share) and min(share.get(k, 0) for k in ("row", "column", "choice left", "choice above", "left")) > 0.93)
            if stage == 2 and (done or state["in_stage"] >= 1000):
                state.update(stage=3, in_stage=0)
            topics = {}
        if stage == 1 and ranks.same(state["score"] > 0.97 or state["in_stage"] >= 2000):
            state.update(stage=2, in_stage=0)
        if ranks.RANK == 0 and (state["used"] - saved > 90 or state["used"] >= seconds):
            torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "state": state}, path + ".new")
            os.replace(path + ".new", path)
            saved = state["used"]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
