"""The libraries' own TopK code on the rows that `stagediff train --rows --no-shuffle` gets, from the same start: FVU of every step, and times.

    sae_libraries.py sparsify|saelens ROWS.safetensors TENSOR START_DIR STEPS BATCH LR [THREADS]

START_DIR: a TopK dictionary in SAELens' layout. sparsify: SparseCoder.forward (its fvu is the loss; transcode = true, so that b_dec is not taken from
the input first), its removal of parallel gradients and its unit norm, torch's Adam. SAELens: TopKTrainingSAE.training_forward_pass, its mse
divided by the batch's variance (a batch with one massive row would count a hundredfold otherwise), torch's Adam, no decoder norm. Prints one JSON object: fvu, seconds and cpu of all steps but the first."""
import json
import os
import sys
import time

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # its eager decoder: Triton needs a GPU
import torch
from safetensors.torch import load_file


def sparsify(start, d, M, k):
    from sparsify import SparseCoder, SparseCoderConfig
    sae = SparseCoder(d, SparseCoderConfig(num_latents=M, k=k, transcode=True))
    with torch.no_grad():
        sae.encoder.weight.copy_(start["W_enc"].T), sae.encoder.bias.copy_(start["b_enc"]), sae.W_dec.copy_(start["W_dec"]), sae.b_dec.copy_(start["b_dec"])

    def loss(x):
        out = sae(x)
        return out.fvu, out.sae_out

    def after(optimizer):
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        sae.set_decoder_norm_to_unit_norm()
    return sae, loss, after


def saelens(start, d, M, k):
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=M, k=k, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=False, normalize_activations="none"))
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(sae, name).copy_(start[name])

    def loss(x):
        step = {"sae_in": x, "dead_neuron_mask": None, "coefficients": {}}
        names = TrainStepInput.__dataclass_fields__
        more = {n: 0 for n in names if n not in step}
        out = sae.training_forward_pass(TrainStepInput(**{n: v for n, v in (step | more).items() if n in names}))
        return out.loss * len(x) / ((x - x.mean(0)).pow(2).sum() + 1e-8), out.sae_out
    return sae, loss, lambda optimizer: optimizer.step()


def main(library, rows, tensor, start, steps, batch, lr, threads="2"):
    torch.set_num_threads(int(threads))
    steps, batch = int(steps), int(batch)
    x, config = load_file(rows)[tensor], json.load(open(os.path.join(start, "cfg.json")))
    weights = load_file(os.path.join(start, "sae_weights.safetensors"))
    sae, loss_of, after = {"sparsify": sparsify, "saelens": saelens}[library](weights, config["d_in"], config["d_sae"], config["k"])
    optimizer = torch.optim.Adam(sae.parameters(), lr=float(lr))
    fvu, began = [], None
    for s in range(steps):
        part = x[torch.arange(s * batch, (s + 1) * batch) % len(x)]
        loss, out = loss_of(part)
        with torch.no_grad():
            fvu.append((((out - part).pow(2).sum()) / ((part - part.mean(0)).pow(2).sum() + 1e-8)).item())
        optimizer.zero_grad()
        loss.backward()
        after(optimizer)
        if s == 0:
            began = time.perf_counter(), time.process_time()
    print(json.dumps({"fvu": fvu, "seconds": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
