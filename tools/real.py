"""The main job's training on a real model: SmolLM2-135M over English prose of this machine, TopK dictionaries of 8x width on three layers from a
random start; then the same rows through sparsify's and SAELens' own code.

    real.py STAGEDIFF WORK [--tokens 1000000] [--steps 200] [--sparsify PYTHON] [--saelens PYTHON]

WORK/smollm2 is made by test_real.py, WORK/prose.jsonl by prose.py; the run lies in WORK/run (run.db, sae/, metrics.jsonl) and goes on where it was when
stopped. Every line starts with the tokenizer's BOS, which no dictionary sees: its residual stream is a hundred times as large as the others'.
Prints FVU, L0, dead features and tokens a second, FVU at equal steps beside the libraries (within 2 %) and the ratio of times."""
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


def timed(command):
    """Wall and processor seconds of a command."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    now = os.times()
    return time.perf_counter() - start, now.children_user + now.children_system - before.children_user - before.children_system


def prose(work, tokens):
    """Lines of about as many tokens (4.4 bytes each), and a tenth more to validate on."""
    path, wanted = os.path.join(work, "prose.jsonl"), round(tokens * 1.1 * 4.5e-6, 2)
    made = path + f".{wanted}"
    if not os.path.exists(made):
        subprocess.run([sys.executable, os.path.join(HERE, "prose.py"), path, "--megabytes", str(wanted), "--start", "<|im_start|>"], check=True)
        open(made, "w").close()
    return path


def train(program, work, folder, lines):
    count = sum(1 for _ in open(lines))
    config = {"out": "run", "model": os.path.relpath(folder, work), "layers": LAYERS, "regimes": ["random"],
              "data": {"train": os.path.basename(lines), "train_samples": count - count // 11, "validation_samples": count // 11},
              "train": {"k": K, "batch": BATCH, "lr": LR, "ring_rows": 32768}}
    path = os.path.join(work, "run.json")
    json.dump(config, open(path, "w"), indent=1)
    subprocess.run([program, "plan", path], check=True)
    wall, cpu = timed([program, "train", path])
    db = sqlite3.connect(os.path.join(work, "run", "run.db"))
    facts = dict(db.execute("SELECT name, value FROM facts WHERE stage = 'train'").fetchall())
    print(f"{int(float(facts['rows'])) // len(LAYERS)} tokens streamed once, {float(facts['tokens_per_second']) / len(LAYERS):.0f} tokens a second for {len(LAYERS)} layers "
          f"(forward pass, training); with validation {wall:.0f} s, {cpu:.0f} s of CPU; load {os.getloadavg()[0]:.1f}")
    print("layer     fvu     l0   dead of features")
    for layer, fvu, l0, dead in db.execute("SELECT layer, fvu, l0, dead_features FROM layer_metrics WHERE regime = 'random' ORDER BY layer"):
        print(f"{layer:5d}  {fvu:6.4f}  {l0:5.1f}   {dead:4d} of {8 * WIDTH}")


def make_rows(program, work, folder, lines, layer):
    """(N, d) shuffled rows of a layer without position 0, and with it."""
    some, out = os.path.join(work, "some.jsonl"), os.path.join(work, "harvest.safetensors")
    with open(lines) as f, open(some, "w") as g:
        g.writelines(line for _, line in zip(range(60), f))
    point = f"blocks.{layer}.hook_resid_post"
    subprocess.run([program, "harvest", "--model", folder, "--data", some, "--points", point, "--out", out, "--quiet"], check=True)
    t = load_file(out)
    parts = [t[f"{i}/{point}"] for i in range(60)]
    rest, every = torch.cat([p[1:] for p in parts]), torch.cat(parts)
    shuffle = lambda x: x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))].contiguous()
    save_file({"rest": shuffle(rest), "all": shuffle(every)}, os.path.join(work, "rows.safetensors"))
    os.remove(out)
    norm = every.norm(dim=1)
    print(f"rows of layer {layer}: {len(rest)}; largest channel {rest.pow(2).mean(0).sqrt().max():.0f}, median channel {rest.pow(2).mean(0).sqrt().median():.1f} (RMS); "
          f"position 0 has norm {torch.stack([p[0] for p in parts]).norm(dim=1).mean():.0f}, the others {rest.norm(dim=1).mean():.0f}; largest {norm.max():.0f}")


def ours(program, work, steps, tensor, *more):
    out = os.path.join(work, "ours")
    command = [program, "train", "--rows", os.path.join(work, "rows.safetensors"), "--tensor", tensor, "--batch", str(BATCH), "--no-shuffle", "--out", out, "--quiet", *more]
    shutil.rmtree(out, ignore_errors=True)
    one = timed([*command, "--steps", "1"])
    shutil.rmtree(out, ignore_errors=True)
    all_ = timed([*command, "--steps", str(steps)])
    return [json.loads(x)["fvu"] for x in open(os.path.join(out, "metrics.jsonl"))], all_[0] - one[0], all_[1] - one[1]


def beside(program, work, steps, name, python, more):
    start = os.path.join(work, "start")
    common = ["--sae", start, "--lr", str(LR)]
    fvu, wall, cpu = ours(program, work, steps, "rest", *common, *more)
    peer = json.loads(subprocess.run([python, os.path.join(HERE, "..", "bench", "peers", "sae_libraries.py"), name, os.path.join(work, "rows.safetensors"), "rest", start,
                                      str(steps), str(BATCH), str(LR)], check=True, capture_output=True, text=True, env=os.environ | {"OMP_WAIT_POLICY": "passive"}).stdout.splitlines()[-1])
    worst = max(abs(a / b - 1) for a, b in zip(fvu, peer["fvu"]))
    print(f"{name:8}  fvu after 1, {steps // 2}, {steps} steps: {peer['fvu'][0]:.4f} {peer['fvu'][steps // 2 - 1]:.4f} {peer['fvu'][-1]:.4f}; ours {fvu[0]:.4f} {fvu[steps // 2 - 1]:.4f} "
          f"{fvu[-1]:.4f}; largest difference at equal steps {100 * worst:.2f} %; a step {1e3 * peer['seconds'] / (steps - 1):.0f} ms, ours {1e3 * wall / (steps - 1):.0f}: "
          f"{peer['seconds'] / wall:.1f} times (processor time {peer['cpu'] / cpu:.1f} times)")
    return worst <= 0.02


def massive(program, work, steps):
    """Position 0 among the rows: the batch's variance is its own, but the others must go on learning, in f32 and with bf16 products."""
    ok = True
    for products in ("f32", "bf16"):
        fvu, _, _ = ours(program, work, steps, "all", "--sae", os.path.join(work, "start"), "--lr", str(LR), "--products", products)
        ok = ok and all(x == x and x < 10 for x in fvu) and fvu[-1] < 0.25 * fvu[0]
        print(f"with position 0, {products} products: fvu after 1, {steps // 2}, {steps} steps {fvu[0]:.4f} {fvu[steps // 2 - 1]:.4f} {fvu[-1]:.4f}")
    return ok


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program")
    p.add_argument("work")
    p.add_argument("--tokens", type=int, default=1000000)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--sparsify", help="interpreter that has eai-sparsify")
    p.add_argument("--saelens", help="interpreter that has sae-lens")
    o = p.parse_args()
    folder = test_real.fetch(o.work)
    lines = prose(o.work, o.tokens)
    train(o.program, o.work, folder, lines)
    make_rows(o.program, o.work, folder, lines, LAYERS[1])
    start = os.path.join(o.work, "start")
    shutil.rmtree(start, ignore_errors=True)
    timed([o.program, "train", "--rows", os.path.join(o.work, "rows.safetensors"), "--tensor", "rest", "--random", str(8 * WIDTH), "--k", str(K), "--steps", "1", "--batch", "8", "--lr", "0",
           "--out", start, "--quiet"])
    ok = massive(o.program, o.work, o.steps)
    for name, python, more in (("sparsify", o.sparsify, ["--remove-parallel"]), ("saelens", o.saelens, ["--unit-norm-decoder", "off"])):
        if python:
            ok = beside(o.program, o.work, o.steps, name, python, more) and ok
        else:
            print(f"{name}: no interpreter given, skipped")
    print("real: all within bounds" if ok else "real: something is out of bounds, see above")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
