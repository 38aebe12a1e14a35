"""One training step of a TopK dictionary in PyTorch beside `bench sae_step`: same shape, same number of threads, in the order
A B B A, at least seven runs of each. The forms are those of the SAE libraries, each with the fastest flags we found: fused
Adam, gradients set to None, one pass of renormalisation.

usage: sae_step.py BENCH [--threads N] [--d --m --k --batch] [--form NAME ...] [--device cuda] [--json]
       BENCH `none`: PyTorch alone, best of --runs (on a GPU ours is timed by its own call)
       e.g. bench/peers/sae_step.py build/cpu/bench --threads 2

dense          relu(topk) scattered into (N, M), decoder as a matrix product (dictionary_learning, SAELens, Llamascopium)
dense_bf16     the same under torch.autocast(bfloat16)
sparse         embedding_bag decode, encoder gradient by index_add over (N*K, d) (sparsify's eager form)
sparse_loop    the same with one index_add per kept feature: no (N*K, d) tensor
sparse_mixed   embedding_bag decode, encoder gradient scattered to (N, M) and multiplied
sparse_bf16    sparse_mixed with the encoder's product under autocast
"""
import argparse
import json
import os
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

FORMS = ("dense", "dense_bf16", "sparse", "sparse_loop", "sparse_mixed", "sparse_bf16")
BATCHES = 4


class Encoder(torch.autograd.Function):
    """Values and indices of the K largest pre-activations; the backward pass never sees an (N, M) gradient but in `mixed`."""

    @staticmethod
    def forward(ctx, x, w, b, k, how):
        v, i = torch.topk(F.linear(x, w, b), k, dim=-1, sorted=False)
        ctx.save_for_backward(x, w, v, i)
        ctx.how = how
        return F.relu(v.float()), i

    @staticmethod
    def backward(ctx, gv, _):
        x, w, v, i = ctx.saved_tensors
        gv = gv * (v > 0)
        if ctx.how == "mixed":
            g = gv.new_zeros(x.shape[0], w.shape[0]).scatter_(-1, i, gv)
            return None, g.t() @ x, g.sum(0), None, None
        gw = torch.zeros_like(w)
        if ctx.how == "batch":
            gw.index_add_(0, i.flatten(), (gv.unsqueeze(2) * x.unsqueeze(1)).reshape(-1, x.shape[1]))
        else:
            for j in range(i.shape[1]):
                gw.index_add_(0, i[:, j], gv[:, j : j + 1] * x)
        gb = gv.new_zeros(w.shape[0]).index_add_(0, i.flatten(), gv.flatten())
        return None, gw, gb, None, None


def decode(form, x, p, k):
    if form.startswith("dense"):
        h = F.linear(x, p["E"], p["b_e"])
        v, i = torch.topk(h, k, dim=-1, sorted=False)
        return torch.zeros_like(h).scatter(-1, i, F.relu(v)) @ p["D"] + p["b_d"]
    how = {"sparse": "batch", "sparse_loop": "loop"}.get(form, "mixed")
    v, i = Encoder.apply(x, p["E"], p["b_e"], k, how)
    return F.embedding_bag(i, p["D"], per_sample_weights=v, mode="sum") + p["b_d"]


class Step:
    def __init__(self, form, a):
        torch.manual_seed(0)
        self.form, self.k, self.n = form, a.k, 0
        self.device = a.device
        self.x = [torch.randn(a.batch, a.d, device=a.device) for _ in range(BATCHES)]
        e = torch.randn(a.m, a.d, device=a.device)
        e /= e.norm(dim=1, keepdim=True)
        self.p = {"E": e.clone(), "D": e.clone(), "b_e": torch.zeros(a.m, device=a.device), "b_d": torch.zeros(a.d, device=a.device)}
        for v in self.p.values():
            v.requires_grad_()
        self.adam = torch.optim.Adam(self.p.values(), lr=2e-4, fused=True)

    def __call__(self):
        x = self.x[self.n % BATCHES]
        self.n += 1
        self.adam.zero_grad(set_to_none=True)
        variance = ((x - x.mean(0)) ** 2).sum()
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.form.endswith("bf16")):
            y = decode(self.form, x, self.p, self.k)
        loss = ((y.float() - x) ** 2).sum() / (variance + 1e-8)
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            self.p["D"].div_(self.p["D"].norm(dim=1, keepdim=True))
        return float(loss.detach())


def time_form(form, a, runs):
    step = Step(form, a)
    step(), step()
    ms = []
    for _ in range(runs):
        start = a.now()
        step()
        ms.append((a.now() - start) * 1e3)
    return ms


def time_ours(dtype, a, runs):
    shape = [x for k in ("d", "m", "k", "batch") for x in (f"--{k}", str(getattr(a, k)))]
    out = subprocess.run([a.bench, "sae_step", *shape, "--dtype", dtype, "--runs", str(runs), "--threads", str(a.threads), "--clock", a.clock, "--json"], check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(a.threads)}).stdout
    r = json.loads(out.splitlines()[-1])
    return [r["best_ms"], *[r["median_ms"]] * (runs - 2), r["p90_ms"]]  # enough of the sample for best and median


def alone(a):
    """Each form by itself; a form that does not fit in memory is named and left out. float(loss) in a step waits for the GPU."""
    for form in a.form or FORMS:
        try:
            ms = time_form(form, a, a.runs)
            print(json.dumps({"op": "sae_step", "form": f"PyTorch {torch.__version__} {form}", "device": a.device, "shape": {k: getattr(a, k) for k in ("d", "m", "k", "batch")}, "median_ms": statistics.median(ms), "best_ms": min(ms)}), flush=True)
        except torch.OutOfMemoryError:
            print(json.dumps({"op": "sae_step", "form": form, "device": a.device, "error": "out of memory"}), flush=True)
        if a.device == "cuda":
            torch.cuda.empty_cache()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("bench")
    for name, value in (("d", 1024), ("m", 8192), ("k", 32), ("batch", 1024), ("threads", 2), ("runs", 7)):
        ap.add_argument(f"--{name}", type=int, default=value)
    ap.add_argument("--form", choices=FORMS, action="append")
    ap.add_argument("--clock", choices=("wall", "thread"), default="wall", help="thread: the main thread's processor time, for machines that others use too (set OMP_WAIT_POLICY=passive)")
    ap.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    ap.add_argument("--json", action="store_true")
    a = ap.parse_args()
    a.now = time.perf_counter if a.clock == "wall" else time.thread_time
    torch.set_num_threads(a.threads)
    if a.bench == "none":
        return alone(a)
    half = (a.runs + 1) // 2
    forms = a.form or list(FORMS)
    ms = {name: [] for name in ["ours f32", "ours bf16", *forms]}
    for turn in range(2):  # A B, then B A
        for part in ("ours", "peer") if turn == 0 else ("peer", "ours"):
            if part == "ours":
                for dtype in ("f32", "bf16"):
                    ms[f"ours {dtype}"] += time_ours(dtype, a, max(a.runs, 3))
            else:
                for form in forms if turn == 0 else reversed(forms):
                    ms[form] += time_form(form, a, half)
    best = {k: min(v) for k, v in ms.items()}
    median = {k: statistics.median(v) for k, v in ms.items()}
    f32 = min((f for f in forms if not f.endswith("bf16")), key=best.get)
    any_form = min(forms, key=best.get)
    ratio = {"f32": best[f32] / best["ours f32"], "bf16": best[any_form] / best["ours bf16"], "f32_median": min(median[f] for f in forms if not f.endswith("bf16")) / median["ours f32"], "bf16_median": min(median[f] for f in forms) / median["ours bf16"]}
    if a.json:
        print(json.dumps({"torch": torch.__version__, "clock": a.clock, "threads": a.threads, "shape": {k: getattr(a, k) for k in ("d", "m", "k", "batch")}, "best_ms": best, "median_ms": median, "fastest_f32": f32, "fastest": any_form, "ratio": ratio}))
        return
    print(f"SAE training step, d {a.d}, M {a.m}, K {a.k}, batch {a.batch}; PyTorch {torch.__version__}, {a.threads} threads, {a.clock} time")
    for name in ms:
        print(f"{name:14} best {best[name]:9.1f} ms   median {median[name]:9.1f} ms")
    print(f"ratio f32:  {ratio['f32']:.2f} (medians {ratio['f32_median']:.2f}) over {f32}, the fastest f32 form")
    print(f"ratio bf16: {ratio['bf16']:.2f} (medians {ratio['bf16_median']:.2f}) over {any_form}, the fastest form of all")


if __name__ == "__main__":
    main()
