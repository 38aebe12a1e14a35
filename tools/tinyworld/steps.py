"""Training steps: batches made ahead by other processes, and on a GPU the whole step as one graph (its thousand kernels are too small
to be launched one by one). A step's batch and rate follow from its number alone, so a run that was stopped goes on where it was.
"""
import os
import time
from collections import namedtuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WORKERS = int(os.environ.get("WORKERS", max(1, (os.cpu_count() or 2) - 2)))
torch.backends.cuda.matmul.allow_tf32 = True
torch.set_num_threads(1 if DEVICE.type == "cuda" else max(1, (os.cpu_count() or 2) // 2))


class _Batches(Dataset):
    def __init__(self, make, first, last):
        self.make, self.first, self.count = make, first, last - first

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        arrays, note = self.make(self.first + i)
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}, note


def _one_thread(_):
    torch.set_num_threads(1)


def batches(make, first, last):
    """make(step) -> ({name: array}, note), for the steps first .. last - 1, in order."""
    return DataLoader(_Batches(make, first, last), batch_size=None, num_workers=WORKERS, prefetch_factor=4, worker_init_fn=_one_thread)


def phase(lengths, step):
    """Which part of a training a step lies in, from 1; lengths in steps."""
    return 1 + sum(step >= end for end in np.cumsum(lengths)[:-1])


# A part of a training: its number of steps; make(step) -> ({name: array}, names) and rate(step), both with steps counted from the beginning of the
# training; the parameters that learn; work(batch) -> (loss, right); AdamW's settings
Stage = namedtuple("Stage", "steps make params work rate adamw")


class Step:
    """One optimiser step of a stage, gradients clipped to 1: step(batch, rate) -> (loss, right)."""

    def __init__(self, stage):
        self.params, self.work, self.graph = list(stage.params), stage.work, None
        self.opt = torch.optim.AdamW(self.params, lr=torch.zeros((), device=DEVICE), capturable=DEVICE.type == "cuda", foreach=DEVICE.type == "cuda", **stage.adamw)

    def _run(self):
        loss, right = self.work(self.batch)
        self.opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.opt.step()
        return loss.detach(), right

    def _capture(self):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):      # at rate 0, so that nothing is learnt from a batch seen four times
            self._set_rate(0.0)
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = self._run()

    def _set_rate(self, rate):
        for g in self.opt.param_groups:
            g["lr"].fill_(rate)

    def __call__(self, batch, rate):
        if DEVICE.type != "cuda":
            self.batch = batch
            self._set_rate(rate)
            return self._run()
        if self.graph is None:
            self.batch = {k: v.to(DEVICE) for k, v in batch.items()}
            self._capture()
        for k, v in batch.items():
            self.batch[k].copy_(v)
        self._set_rate(rate)
        self.graph.replay()
        return self.out


class Topics:
    """Share of questions answered right by topic, from the first token of each answer."""

    def __init__(self):
        self.table = {}

    def add(self, right, names):
        """right [B, T - 1] of ids[:, 1:]; names: [(row, place, topic)]"""
        if names:
            right = right.cpu()
        for row, place, name in names:
            c = self.table.setdefault(name, [0, 0])
            c[0] += right[row, place - 1].item()
            c[1] += 1

    def __str__(self):
        return " ".join(f"{k} {a / n:.2f}" for k, (a, n) in sorted(self.table.items()))


def topics_of(arrays, samples):
    """[(row, place of the first answer token, topic)] for the branches that carry a topic as third entry and are in the arrays"""
    found = []
    for i, (_, branches, *_) in enumerate(samples):
        for j, branch in enumerate(branches):
            places = np.nonzero((arrays["unit"][i] == j + 1) & (arrays["weight"][i] > 0))[0]
            if len(branch) == 3 and len(places):
                found.append((i, int(places[0]), branch[2]))
    return found


def train(name, path, model, stages):
    """Runs the stages from where path's checkpoint stopped. A line every 100 steps, a checkpoint every minute and at the end."""
    at, kept, began, saved, first, end = 0, None, time.time(), time.time(), 0, sum(s.steps for s in stages)
    if os.path.exists(path):
        kept = torch.load(path, map_location=DEVICE)
        model.load_state_dict(kept["model"])
        at = kept["step"]
    start = at
    for number, stage in enumerate(stages):
        last = first + stage.steps
        if at < last:
            step, topics = Step(stage), Topics()
            if kept and kept["stage"] == number:
                step.opt.load_state_dict(kept["opt"])
            for batch, names in batches(stage.make, at, last):
                loss, right = step(batch, stage.rate(at))
                if at % 100 >= 90:
                    topics.add(right, names)
                at += 1
                if at % 100 == 0:
                    left = (time.time() - began) / (at - start) * (end - at)
                    shares = topics if topics.table else " ".join(f"{r:.3f}" for r in right.tolist()) if right.dim() == 1 else ""
                    print(f"{name} step {at} of {end}, {left / 60:.1f} min left, loss {loss.item():.3f} {shares}", flush=True)
                    topics = Topics()
                if time.time() - saved > 60 or at == last:
                    torch.save({"model": model.state_dict(), "opt": step.opt.state_dict(), "stage": number, "step": at}, path + ".new")
                    os.replace(path + ".new", path)
                    saved = time.time()
        first = last
