"""LLaMA prefill of transformers (f32) beside `bench prefill`, same shape, same number of threads, in the order A B B A.
Both get the rows of the embedding (576 image rows and 64 of text) and return the last token's logits.

usage: prefill.py BENCH [THREADS]          e.g. bench/peers/prefill.py build/cpu/bench 2"""
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import transformers

SHAPE = dict(width=512, layers=8, heads=8, kv=2, mlp=1376, tokens=640)
RUNS = 10


def peer(threads):
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=1024, hidden_size=SHAPE["width"], intermediate_size=SHAPE["mlp"], num_hidden_layers=SHAPE["layers"],
                                      num_attention_heads=SHAPE["heads"], num_key_value_heads=SHAPE["kv"], max_position_embeddings=4096)
    models = {a: transformers.LlamaForCausalLM._from_config(config, attn_implementation=a).float().eval() for a in ("sdpa", "eager")}
    rows = torch.randn(1, SHAPE["tokens"], SHAPE["width"])

    def run():
        best = None
        for name, m in models.items():
            times = []
            with torch.no_grad():
                for i in range(RUNS + 2):
                    start = time.perf_counter()
                    m(inputs_embeds=rows, use_cache=False, logits_to_keep=1)
                    times.append((time.perf_counter() - start) * 1e3)
            r = (min(times[2:]), statistics.median(times[2:]), name)
            best = r if best is None or r < best else best
        return best
    return run


def main(bench, threads=2):
    threads = int(threads)
    theirs = peer(threads)
    command = [bench, "prefill", "--runs", str(RUNS), "--json", *(x for k, v in SHAPE.items() for x in (f"--{k}", str(v)))]

    def ours():
        out = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}).stdout
        r = json.loads(out.splitlines()[-1])
        return r["best_ms"], r["median_ms"]
    rows = [("stagediff", *ours()), ("transformers", *theirs()), ("transformers", *theirs()), ("stagediff", *ours())]
    for r in rows:
        print(f"{r[0]:14} best {r[1]:8.1f} ms   median {r[2]:8.1f} ms   {r[3] if len(r) > 3 else ''}")
    best = lambda name, i: min(r[i] for r in rows if r[0] == name)
    print(f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {threads} threads, {SHAPE}")
    print(f"ratio: best {best('transformers', 1) / best('stagediff', 1):.2f}, median {best('transformers', 2) / best('stagediff', 2):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
