"""The main job's training on a real model: SmolLM2-135M over English prose of this machine, TopK dictionaries of 8x width on three layers from a
random start; then rows of the same text through sparsify's and SAELens' own code.

    real.py STAGEDIFF WORK [--tokens 1000000] [--steps 200] [--prose FOLDER]      needs tools/requirements_peers.txt

WORK/smollm2 is made by test_real.py, WORK/prose-TOKENS.jsonl by prose.py, WORK/rows-STEPS.safetensors for the comparison; the run lies in
WORK/run-TOKENS (run.db, sae/, metrics.jsonl). The same command goes on where it was stopped. Every line starts with the tokenizer's BOS, which no
dictionary sees: its residual stream is a hundred times as large as the others'.
Prints FVU, L0, dead features and tokens a second, FVU at equal steps beside the libraries (within 2 %) and the ratio of times, order A B B A."""
import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import torch
from safetensors.torch import load_file, save_file

import test_real

LAYERS, WIDTH, K, BATCH, LR = [5, 15, 25], 576, 32, 1024, 1e-3
HERE = os.path.dirname(os.path.abspath(__file__))


def say(text):
    print(text, flush=True)


def call(command, **how):
    """Runs what explains its own failures."""
    run = subprocess.run(command, text=True, **how)
    if run.returncode:
        sys.exit(f"real: stopped ({os.path.basename(command[0])} gave {run.returncode}); the same command goes on from here")
    return run.stdout


def timed(command):
    """Wall and processor seconds of a command."""
    start, before = time.perf_counter(), os.times()
    call(command, stdout=subprocess.DEVNULL)
    now = os.times()
    return time.perf_counter() - start, now.children_user + now.children_system - before.children_user - before.children_system


def prose(work, tokens, folder):
    """Lines of about as many tokens (4.4 bytes each), and a tenth more to validate on."""
    path = os.path.join(work, f"prose-{tokens}.jsonl")
    if not os.path.exists(path):
        call([sys.executable, os.path.join(HERE, "prose.py"), path, "--megabytes", str(tokens * 1.1 * 4.5e-6), "--start", "<|im_start|>", *([folder] if folder else [])])
    return path


def train(program, work, folder, lines, tokens):
    """Tokens streamed and those of a line."""
    count = sum(1 for _ in open(lines))
    out, path = os.path.join(work, f"run-{tokens}"), os.path.join(work, f"run-{tokens}.json")
    config = {"out": os.path.basename(out), "model": os.path.relpath(folder, work), "layers": LAYERS, "regimes": ["random"],
              "data": {"train": os.path.basename(lines), "train_samples": count - count // 11, "validation_samples": count // 11},
              "train": {"k": K, "batch": BATCH, "lr": LR, "ring_rows": 32768}}
    json.dump(config, open(path, "w"), indent=1)
    call([program, "plan", path])
    say(f"training on {tokens} tokens: half an hour on two cores; {out}/metrics.jsonl tells how it goes")
    others = test_real.Others()
    wall, cpu = timed([program, "train", path])
    db = sqlite3.connect(os.path.join(out, "run.db"))
    facts = dict(db.execute("SELECT name, value FROM facts WHERE stage = 'train'").fetchall())
    streamed = int(float(facts["rows"])) // len(LAYERS)
    say(f"{streamed} tokens streamed once, {float(facts['tokens_per_second']) / len(LAYERS):.0f} tokens a second for {len(LAYERS)} layers (forward pass, training); "
        f"this call, with validation: {wall:.0f} s, {cpu:.0f} s of CPU, other work on {others.cores():.2f} cores meanwhile; kept in {out}")
    say("layer     fvu     l0   dead of features")
    for layer, fvu, l0, dead in db.execute("SELECT layer, fvu, l0, dead_features FROM layer_metrics WHERE regime = 'random' ORDER BY layer"):
        say(f"{layer:5d}  {fvu:6.4f}  {l0:5.1f}   {dead:4d} of {8 * WIDTH}")
    return streamed, streamed / config["data"]["train_samples"]


# ---------------------------------------------------------------- beside the libraries
def make_rows(program, work, folder, lines, layer, steps, of_a_line):
    """The file of (N, d) shuffled rows of a layer, N = steps * BATCH where the text gives so many: "rest" without position 0, and "all" with it."""
    path, out, point = os.path.join(work, f"rows-{steps}.safetensors"), os.path.join(work, "harvest.safetensors"), f"blocks.{layer}.hook_resid_post"
    if os.path.exists(path):
        say(f"{path} is here already")
        return path
    some = os.path.join(work, "some.jsonl")
    with open(lines) as f, open(some, "w") as g:
        g.writelines(line for _, line in zip(range(int(1.1 * steps * BATCH / of_a_line) + 1), f))
    call([program, "harvest", "--model", folder, "--data", some, "--points", point, "--out", out])
    t = load_file(out)
    parts = [v for k, v in t.items() if k.endswith(point)]
    rest, every = torch.cat([p[1:] for p in parts]), torch.cat(parts)
    norm, rms = rest.norm(dim=1), rest.pow(2).mean(0).sqrt()
    shuffle = lambda x: x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))][:steps * BATCH].contiguous()
    save_file({"rest": shuffle(rest), "all": shuffle(every)}, path + ".tmp")
    os.replace(path + ".tmp", path)
    os.remove(out)
    say(f"{path}: {min(len(rest), steps * BATCH)} rows of layer {layer}; largest channel {rms.max():.0f}, median channel {rms.median():.1f} (RMS); "
        f"position 0 has norm {torch.stack([p[0] for p in parts]).norm(dim=1).mean():.0f}, the others {norm.mean():.0f} and up to {norm.max():.0f}")
    return path


class Rows:
    """One start, the same rows in the same order for everyone."""

    def __init__(self, program, work, path, steps):
        self.program, self.path, self.steps, self.start, self.out = program, path, steps, os.path.join(work, "start"), os.path.join(work, "ours")
        shutil.rmtree(self.start, ignore_errors=True)
        call([program, "train", "--rows", path, "--tensor", "rest", "--random", str(8 * WIDTH), "--k", str(K), "--steps", "1", "--batch", "8", "--lr", "0", "--out", self.start, "--quiet"],
             stdout=subprocess.DEVNULL)

    def ours(self, tensor, *more):
        """FVU of every step; wall and processor seconds of all but the first."""
        seconds = []
        for steps in (1, self.steps):
            shutil.rmtree(self.out, ignore_errors=True)
            seconds.append(timed([self.program, "train", "--rows", self.path, "--tensor", tensor, "--sae", self.start, "--lr", str(LR), "--batch", str(BATCH), "--no-shuffle",
                                  "--threads", str(test_real.THREADS), "--steps", str(steps), "--out", self.out, "--quiet", *more]))
        return [json.loads(x)["fvu"] for x in open(os.path.join(self.out, "metrics.jsonl"))], *(b - a for a, b in zip(*seconds))

    def theirs(self, name):
        script = os.path.join(HERE, "..", "bench", "peers", "sae_libraries.py")
        text = call([sys.executable, script, name, self.path, "rest", self.start, str(self.steps), str(BATCH), str(LR), str(test_real.THREADS)], stdout=subprocess.PIPE)
        peer = json.loads(text.splitlines()[-1])
        return peer["fvu"], peer["seconds"], peer["cpu"]

    def three(self, fvu):
        return " ".join(f"{fvu[i]:.4f}" for i in (0, self.steps // 2 - 1, -1))

    def beside(self, name, more):
        say(f"{name}: {self.steps} steps, ours, theirs, theirs, ours; minutes")
        others = test_real.Others()
        runs = [self.ours("rest", *more), self.theirs(name), self.theirs(name), self.ours("rest", *more)]
        (fvu, *_), (peer, *_) = runs[:2]
        same = fvu == runs[3][0]
        wall, cpu, peer_wall, peer_cpu = [min(runs[a][i], runs[b][i]) / (self.steps - 1) for a, b in ((0, 3), (1, 2)) for i in (1, 2)]
        worst = max(abs(a / b - 1) for a, b in zip(fvu, peer))
        say(f"  fvu after 1, {self.steps // 2}, {self.steps} steps: {self.three(peer)}; ours {self.three(fvu)}{'' if same else ' and other bits the second time'}; "
            f"largest difference at equal steps {100 * worst:.2f} %\n"
            f"  a step {1e3 * peer_wall:.0f} ms, ours {1e3 * wall:.0f}: {peer_wall / wall:.1f} times; processor time {1e3 * peer_cpu:.0f} ms, ours {1e3 * cpu:.0f}: {peer_cpu / cpu:.1f} times; "
            f"{test_real.THREADS} threads, other work on {others.cores():.2f} cores meanwhile, OMP_WAIT_POLICY of theirs {os.environ.get('OMP_WAIT_POLICY', 'as it comes')}")
        return worst <= 0.02 and same

    def massive(self):
        """Position 0 among the rows: the batch's variance is its own, but the others must go on learning, in f32 and with bf16 products."""
        ok = True
        for products in ("f32", "bf16"):
            fvu, *_ = self.ours("all", "--products", products)
            ok = ok and all(x == x and x < 10 for x in fvu) and fvu[-1] < 0.25 * fvu[0]
            say(f"with position 0, {products} products: fvu after 1, {self.steps // 2}, {self.steps} steps {self.three(fvu)}")
        return ok


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program")
    p.add_argument("work")
    p.add_argument("--tokens", type=int, default=1000000)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--prose", help="folder of text files in place of this machine's documentation")
    o = p.parse_args()
    os.makedirs(o.work, exist_ok=True)
    folder = test_real.fetch(o.work)
    lines = prose(o.work, o.tokens, o.prose)
    streamed, of_a_line = train(o.program, o.work, folder, lines, o.tokens)
    if streamed < o.tokens:
        say(f"only {streamed} tokens were streamed, {o.tokens} were asked for")
    rows = Rows(o.program, o.work, make_rows(o.program, o.work, folder, lines, LAYERS[1], o.steps, of_a_line), o.steps)
    ok = [streamed >= o.tokens, rows.beside("sparsify", ["--remove-parallel"]), rows.beside("saelens", ["--unit-norm-decoder", "off"]), rows.massive()]
    say(f"{o.work} keeps model, text, run and rows for the next time; 'rm -r {o.work}' frees the room")
    say("real: all within bounds" if all(ok) else "real: something is out of bounds, see above")
    sys.exit(not all(ok))


if __name__ == "__main__":
    main()
