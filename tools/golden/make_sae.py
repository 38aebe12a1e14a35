"""Golden file of a TopK dictionary's training step: loss and autograd gradients of the first step, and the weights after
20 steps of torch.optim.Adam with unit-norm decoder rows, all in double precision.

    python tools/golden/make_sae.py tests/golden/sae_step.safetensors
"""
import sys

import torch
from safetensors.torch import save_file

BATCHES, N, d, M, K, STEPS, LR, SEED = 4, 32, 16, 64, 5, 20, 2e-3, 7


def forward(x, p):
    h = x @ p["E"].T + p["b_e"]
    kept = torch.topk(h, K, dim=-1).indices
    z = torch.zeros_like(h).scatter(-1, kept, torch.relu(h.gather(-1, kept)))
    x_hat = z @ p["D"] + p["b_d"]
    variance = ((x - x.mean(0)) ** 2).sum()
    return ((x_hat - x) ** 2).sum() / (variance + 1e-8), kept.sort(-1).values


def main(path):
    torch.manual_seed(SEED)
    x = torch.randn(BATCHES, N, d, dtype=torch.float64) + 0.5
    E = torch.randn(M, d, dtype=torch.float64) / d**0.5
    start = {"E": E, "D": E / E.norm(dim=1, keepdim=True), "b_e": 0.1 * torch.randn(M, dtype=torch.float64) - 0.2, "b_d": x[0].mean(0)}
    p = {k: v.clone().requires_grad_() for k, v in start.items()}
    out = {"x": x} | {f"start.{k}": v for k, v in start.items()}
    adam = torch.optim.Adam(p.values(), lr=LR, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step in range(STEPS):
        adam.zero_grad()
        loss, kept = forward(x[step % BATCHES], p)
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            out |= {"kept": kept.int()} | {f"grad.{k}": v.grad.clone() for k, v in p.items()}
        adam.step()
        with torch.no_grad():
            p["D"] /= p["D"].norm(dim=1, keepdim=True)
    out |= {"loss": torch.stack(losses)} | {f"end.{k}": v.detach() for k, v in p.items()}
    meta = {"script": "tools/golden/make_sae.py", "torch": torch.__version__, "seed": str(SEED), "K": str(K), "lr": str(LR)}
    save_file({k: v.contiguous() for k, v in out.items()}, path, metadata=meta)


if __name__ == "__main__":
    main(sys.argv[1])
