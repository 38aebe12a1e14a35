"""Two or more processes that share each training step: RANK and WORLD_SIZE in the environment, gradients averaged over gloo."""
import os

import torch
import torch.distributed as dist

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def start():
    if WORLD > 1:
        dist.init_process_group("gloo", init_method=os.environ["RENDEZVOUS"], rank=RANK, world_size=WORLD)


def same(value):
    """Rank 0's number, on every rank; clocks and decisions go through here so that all ranks take the same path."""
    t = torch.tensor(float(value), dtype=torch.float64)
    if WORLD > 1:
        dist.broadcast(t, 0)
    return t.item()


def average(params):
    """Gradients become the mean over the ranks."""
    if WORLD > 1:
        flat = torch.cat([p.grad.flatten() for p in params])
        dist.all_reduce(flat)
        flat /= WORLD
        at = 0
        for p in params:
            p.grad.copy_(flat[at:at + p.numel()].view_as(p))
            at += p.numel()
