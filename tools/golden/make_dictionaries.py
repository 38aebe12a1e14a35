"""Golden dictionaries: one of every published format, made and run by the library that owns the format, and the way back: what
`stagediff convert` writes is opened by that library.

    python tools/golden/make_dictionaries.py make [GROUP ...]                  writes tests/sae/golden/
    python tools/golden/make_dictionaries.py check build/cpu/stagediff [GROUP ...]

Groups: sparsify, saelens, openmoss, dictionary_learning, files (no library: formats that are only tensors). Each needs its own library
(pip install eai-sparsify, sae-lens, llamascopium, dictionary-learning; their requirements clash, so one environment each), default: all.
make: FOLDER/ with the dictionary (d 16, M 64) and expected.safetensors: x (16, 16), dense codes (16, 64) and reconstruction as the library's
own encode and decode give them in double, and in float (.f32: its distance from double is the error floor of the test). Codes are in the
units of docs/cli.md: the library's, divided by s_out for OpenMOSS.
check: encode of every golden dictionary against its library, then convert into each layout; the library of the target must give the
same codes and reconstruction. Prints the largest differences.
"""
import json
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "sae", "golden")
d, M, K, N = 16, 64, 5, 16


def path(*names):
    p = os.path.join(OUT, *names)
    os.makedirs(os.path.dirname(p), exist_ok=True)
    return p


def draw(shape, scale, g):
    return torch.randn(shape, generator=g) * scale


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def finish(folder, library, x, forward):
    """forward(dtype) -> dense codes, reconstruction."""
    codes, reconstruction = forward(torch.float64)
    codes32, reconstruction32 = forward(torch.float32)
    assert codes.shape == (N, M) and reconstruction.shape == (N, d)
    assert torch.equal(codes != 0, codes32 != 0), f"{folder}: a decision too close to call, take another seed"
    assert (codes != 0).any(1).all(), f"{folder}: a row without codes"
    tensors = {"x": x, "codes": codes.float(), "codes.f32": codes32.float(), "reconstruction": reconstruction.float(), "reconstruction.f32": reconstruction32.float()}
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, path(folder, "expected.safetensors"),
              {"script": "tools/golden/make_dictionaries.py", "library": library, "torch": torch.__version__})
    print(f"{folder}: {library}, {(codes != 0).sum(1).float().mean():.1f} active")


def randomise(parameters, seed, scales):
    """Every parameter from its own generator; scales by the end of the name, default 0.3."""
    for i, (name, p) in enumerate(parameters):
        scale = next((s for n, s in scales.items() if name.endswith(n)), 0.3)
        p.data.copy_(draw(p.shape, scale, seeded(100 * seed + i)))


# ---- EleutherAI sparsify ----

def sparsify_forward(coder, x, dtype):
    coder = coder.to(dtype)
    rows = x.to(dtype)
    out = coder(rows)
    codes = torch.zeros(len(x), M, dtype=dtype).scatter(1, out.latent_indices, out.latent_acts)
    return codes.detach(), out.sae_out.detach()


def make_sparsify():
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from importlib.metadata import version

    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig
    for seed, (folder, hook, settings) in enumerate([("sparsify_topk", "layers.3", {}), ("sparsify_groupmax", "layers.3.mlp", {"activation": "groupmax", "k": 8}),
                                                     ("sparsify_skip", "layers.3.mlp", {"transcode": True, "skip_connection": True}), ("sparsify_bf16", "layers.3", {"k": 3})]):
        cfg = SparseCoderConfig(**{"num_latents": M, "k": K, **settings})
        coder = SparseCoder(d, cfg, dtype=torch.bfloat16 if folder.endswith("bf16") else torch.float32)
        randomise(coder.named_parameters(), 1 + seed, {"b_dec": 0.5})
        coder.save_to_disk(path(folder, hook, ""))
        x = draw((N, d), 1.5, seeded(20 + seed))
        finish(folder, f"eai-sparsify {version('eai-sparsify')}", x, lambda dtype: sparsify_forward(SparseCoder.load_from_disk(path(folder, hook)), x, dtype))

    folder = "sparsify_signed"  # of June to August 2024, by definition: later versions drop the key
    coder = SparseCoder(d, SparseCoderConfig(num_latents=M, k=K))
    randomise(coder.named_parameters(), 7, {"b_dec": 0.5})
    coder.save_to_disk(path(folder, "layer_3", ""))
    json.dump({"expansion_factor": M // d, "normalize_decoder": True, "k": K, "signed": True, "d_in": d}, open(path(folder, "layer_3", "cfg.json"), "w"))
    x = draw((N, d), 1.5, seeded(27))

    def signed(dtype):
        c = SparseCoder.load_from_disk(path(folder, "layer_3")).to(dtype)
        h = torch.nn.functional.linear(x.to(dtype) - c.b_dec, c.encoder.weight, c.encoder.bias)
        codes = torch.zeros_like(h).scatter(1, h.abs().topk(K, dim=1).indices, 1) * h
        return codes.detach(), (codes @ c.W_dec + c.b_dec).detach()
    finish(folder, "definition", x, signed)


# ---- OpenMOSS since 2025 ----

def openmoss_forward(sae, x, x_in, x_out, dtype):
    """-> codes / s_out, reconstruction, as a caller of the library gets them."""
    sae = sae.to(dtype)
    sae.cfg.dtype = dtype
    if hasattr(sae.activation_function, "dtype"):
        sae.activation_function.dtype = dtype
    rows = {x_in: x.to(dtype), x_out: x.to(dtype)}
    scaled, scales = sae.normalize_activations(rows, return_scale_factor=True)
    codes = sae.encode(scaled[x_in])
    y = sae.denormalize_activations({x_out: sae.decode(codes)}, scales)[x_out]
    return (codes / scales[x_out]).detach(), y.detach()


def make_openmoss():
    from importlib.metadata import version

    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
    library = f"llamascopium {version('llamascopium')}"
    resid, mlp_in, mlp_out = "blocks.2.hook_resid_post", "blocks.2.ln2.hook_normalized", "blocks.2.hook_mlp_out"
    cases = [("openmoss_jumprelu", resid, resid, {"act_fn": "jumprelu"}), ("openmoss_topk", resid, resid, {"act_fn": "topk", "top_k": K}),
             ("openmoss_transcoder", mlp_in, mlp_out, {"act_fn": "jumprelu"}), ("openmoss_relu", resid, resid, {"act_fn": "relu", "norm_activation": "inference", "use_decoder_bias": False}),
             ("openmoss_early", resid, resid, {"act_fn": "jumprelu", "sparsity_include_decoder_norm": False}), ("openmoss_pt", resid, resid, {"act_fn": "jumprelu"})]
    for seed, (folder, x_in, x_out, settings) in enumerate(cases):
        cfg = SAEConfig(sae_type="sae", hook_point_in=x_in, hook_point_out=x_out, d_model=d, expansion_factor=M / d, device="cpu", dtype=torch.float32, **settings)
        sae = SparseAutoEncoder(cfg)
        randomise(sae.named_parameters(), 30 + seed, {})
        sae.set_dataset_average_activation_norm({x_in: 10.8125, **({x_out: 3.25} if x_out != x_in else {})})
        sae.save_pretrained(path(folder, ""))
        cfg.save_hyperparameters(path(folder, ""))
        x = draw((N, d), 2.5, seeded(40 + seed))
        finish(folder, library, x, lambda dtype: openmoss_forward(SparseAutoEncoder.from_pretrained(path(folder), device="cpu", dtype=torch.float32), x, x_in, x_out, dtype))
        weights = path(folder, "sae_weights.safetensors")
        if folder == "openmoss_early":  # the same in the layout of January to June 2025
            w = load_file(weights)
            names = {"W_E": "encoder.weight", "b_E": "encoder.bias", "W_D": "decoder.weight", "b_D": "decoder.bias", "activation_function.log_jumprelu_threshold": "log_jumprelu_threshold"}
            save_file({names.get(n, n): (t.T if n in ("W_E", "W_D") else t).contiguous() for n, t in w.items()}, weights, {"version": "1.0.0"})
            config = json.load(open(path(folder, "config.json")))
            json.dump({**config, "jump_relu_threshold": 0.0, "apply_decoder_bias_to_pre_encoder": False}, open(path(folder, "config.json"), "w"), indent=1)
        if folder == "openmoss_pt":
            sae.save_checkpoint(path(folder, "sae_weights.pt"))
            os.remove(weights)


MAKERS = {"sparsify": make_sparsify, "openmoss": make_openmoss}


def main():
    mode, arguments = sys.argv[1], sys.argv[2:]
    if mode == "make":
        for group in arguments or MAKERS:
            MAKERS[group]()


if __name__ == "__main__":
    main()
