"""Attribution patching of one sample by transformers with hooks and autograd (f32, and bf16 weights) beside `bench attribution`: clean
pass, corrupt pass, gradient of resid_post of the last layer . direction over the text rows, scores of every head and row. Same shape, same
number of threads, order A B B A; wall and processor time.

usage: attribution.py BENCH [THREADS]          e.g. bench/peers/attribution.py build/cpu/bench 2"""
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
import transformers

SHAPE = dict(width=512, layers=8, heads=8, kv=2, mlp=1376, tokens=640)
RUNS, TEXT = 7, 64


def cpu():
    return time.process_time()


def peer(threads, dtype):
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=1024, hidden_size=SHAPE["width"], intermediate_size=SHAPE["mlp"], num_hidden_layers=SHAPE["layers"],
                                      num_attention_heads=SHAPE["heads"], num_key_value_heads=SHAPE["kv"], max_position_embeddings=4096)
    models = {a: transformers.LlamaModel._from_config(config, attn_implementation=a).to(dtype).eval() for a in ("sdpa", "eager")}
    clean = torch.randn(1, SHAPE["tokens"], SHAPE["width"]).to(dtype)
    corrupt, direction = clean.clone(), torch.randn(SHAPE["width"]).to(dtype)
    corrupt[:, :-TEXT] = torch.randn(1, 1, SHAPE["width"]).to(dtype)
    head = SHAPE["width"] // SHAPE["heads"]

    def forward(model, embed, grad):
        z, last = [], []

        def at_z(_, args):
            x = args[0]
            if grad and not z:
                x = x.detach().requires_grad_()  # nothing below the first layer's z is differentiated
            z.append(x)
            return (x,)
        hooks = [layer.self_attn.o_proj.register_forward_pre_hook(at_z) for layer in model.layers]
        hooks.append(model.layers[-1].register_forward_hook(lambda _, a, o: last.append(o[0] if isinstance(o, tuple) else o)))
        with torch.set_grad_enabled(grad):
            model(inputs_embeds=embed, use_cache=False)
            m = (last[0].reshape(embed.shape)[:, -TEXT:] @ direction).sum()
        [h.remove() for h in hooks]
        return z, m

    def once(model):
        z0, _ = forward(model, clean, False)
        z1, m = forward(model, corrupt, True)
        grads = torch.autograd.grad(m, z1)
        return [((a - b) * g).view(-1, SHAPE["heads"], head).sum(-1) for a, b, g in zip(z0, z1, grads)]

    def run():
        best = None
        for name, model in models.items():
            for p in model.parameters():
                p.requires_grad_(False)
            walls, cpus = [], []
            for _ in range(RUNS + 1):
                start, c = time.perf_counter(), cpu()
                once(model)
                walls.append((time.perf_counter() - start) * 1e3)
                cpus.append((cpu() - c) * 1e3)
            r = (min(walls[1:]), statistics.median(walls[1:]), min(cpus[1:]), name)
            best = r if best is None or r < best else best
        return best
    return run


def main(bench, threads=2):
    threads = int(threads)
    theirs, low = peer(threads, torch.float32), peer(threads, torch.bfloat16)
    command = [bench, "attribution", "--runs", str(RUNS), "--json", *(x for k, v in SHAPE.items() for x in (f"--{k}", str(v)))]

    def children(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run(command[:3] + [str(runs)] + command[4:], check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return json.loads(out.splitlines()[-1]), (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3

    def ours():
        r, many = children(RUNS)
        _, few = children(1)  # what is spent around the runs falls out
        return r["best_ms"], r["median_ms"], (many - few) / (RUNS - 1), ""
    rows = [("stagediff", *ours()), ("transformers", *theirs()), ("transformers", *theirs()), ("stagediff", *ours()), ("transformers bf16", *low())]
    for r in rows:
        print(f"{r[0]:18} best {r[1]:8.1f} ms   median {r[2]:8.1f} ms   processor {r[3]:8.1f} ms   {r[4]}")
    best = lambda name, i: min(r[i] for r in rows if r[0] == name)
    print(f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {threads} threads, {SHAPE}")
    print("ratio: " + ", ".join(f"{what} {best('transformers', i) / best('stagediff', i):.2f}" for i, what in ((1, "best"), (2, "median"), (3, "processor"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
