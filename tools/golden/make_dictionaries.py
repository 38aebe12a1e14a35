"""Golden dictionaries: one of every published format, made and run by the library that owns the format, and the way back: what
`stagediff convert` writes is opened by that library.

    python tools/golden/make_dictionaries.py make [GROUP ...]                  writes tests/sae/golden/
    python tools/golden/make_dictionaries.py check build/cpu/stagediff [saelens] [sparsify] [mmdiff] [llama_scope]

Groups: sparsify, saelens, llama_scope, openmoss, dictionary_learning, files (no library: formats that are only tensors), default all. Each
needs its own library (pip install eai-sparsify, sae-lens, llamascopium, dictionary-learning; llama_scope: lm_saes of the tag v1.0.0 of
OpenMOSS/Language-Model-SAEs on PYTHONPATH; where their requirements clash, an environment each).
make: FOLDER/ with the dictionary (d 16, M 64) and expected.safetensors: x (16, 16), dense codes (16, 64) and reconstruction as the library's
own encode and decode give them in double, and in float (.f32: its distance from double is the error floor of the test). Codes are in the
units of docs/cli.md: the library's, divided by s_out for OpenMOSS.
check: encode of every golden dictionary, then convert into each layout; the library of the target must give the same codes and
reconstruction. The definitions of make_train.py are run in their libraries too. Prints the largest differences.
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


# ---- SAELens ----

def saelens_forward(folder, x, dtype):
    from sae_lens import SAE
    sae = SAE.load_from_disk(folder, device="cpu").to(dtype=dtype)
    codes, y = sae.encode(x.to(dtype)), sae(x.to(dtype))
    return codes.detach(), y.detach()


def make_saelens():
    import sae_lens
    from sae_lens import (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, GatedSAE, GatedSAEConfig, JumpReLUTranscoder, JumpReLUTranscoderConfig, MatryoshkaBatchTopKTrainingSAE,
                          MatryoshkaBatchTopKTrainingSAEConfig, SkipTranscoder, SkipTranscoderConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig, Transcoder, TranscoderConfig)
    from sae_lens.saes.sae import SAEMetadata
    hook = SAEMetadata(hook_name="blocks.7.hook_resid_post")
    mlp = SAEMetadata(hook_name="blocks.7.ln2.hook_normalized", hook_name_out="blocks.7.hook_mlp_out")
    dims, cross = {"d_in": d, "d_sae": M, "metadata": hook}, {"d_in": d, "d_sae": M, "d_out": d, "apply_b_dec_to_input": False, "metadata": mlp}
    cases = [("saelens_gated", GatedSAE(GatedSAEConfig(**dims))), ("saelens_transcoder", Transcoder(TranscoderConfig(**cross))), ("saelens_skip_transcoder", SkipTranscoder(SkipTranscoderConfig(**cross))),
             ("saelens_jumprelu_transcoder", JumpReLUTranscoder(JumpReLUTranscoderConfig(**cross))), ("saelens_batchtopk", BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=K, **dims))),
             ("saelens_matryoshka", MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(k=K, matryoshka_widths=[16, 64], **dims))),
             ("saelens_layer_norm", TopKSAE(TopKSAEConfig(k=K, normalize_activations="layer_norm", **dims))),
             ("saelens_constant_norm", StandardSAE(StandardSAEConfig(normalize_activations="constant_norm_rescale", **dims)))]
    for seed, (folder, sae) in enumerate(cases):
        randomise(sae.named_parameters(), 80 + seed, {"r_mag": 0.5})
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.8)
            sae.save_inference_model(path(folder, ""))
        else:
            sae.save_model(path(folder, ""))
        x = draw((N, d), 1.5, seeded(90 + seed))
        finish(folder, f"sae-lens {sae_lens.__version__}", x, lambda dtype: saelens_forward(path(folder), x, dtype))


# ---- Llama Scope v1 ----

def scope_forward(folder, x, dtype):
    """The library folds in the type of the file and runs in that of the configuration: both are made `dtype`."""
    from lm_saes.sae import SparseAutoEncoder
    with tempfile.TemporaryDirectory() as temporary:
        settings = json.load(open(os.path.join(folder, "hyperparams.json")))
        json.dump({**settings, "dtype": str(dtype), "device": "cpu", "init_encoder_with_decoder_transpose": False}, open(os.path.join(temporary, "hyperparams.json"), "w"))
        stored = torch.load(os.path.join(folder, "sae_weights.pt"))["sae"] if os.path.exists(os.path.join(folder, "sae_weights.pt")) else load_file(os.path.join(folder, "checkpoints", "final.safetensors"))
        save_file({n: t.to(dtype) for n, t in stored.items()}, os.path.join(temporary, "sae_weights.safetensors"))
        sae = SparseAutoEncoder.from_pretrained(temporary)
    codes = sae.encode(x.to(dtype))
    return codes.detach(), sae.decode(codes).detach()


def make_llama_scope():
    mlp = ("blocks.9.ln2.hook_normalized", "blocks.9.hook_mlp_out")
    resid = ("blocks.9.hook_resid_post", "blocks.9.hook_resid_post")
    for seed, (folder, hooks, norms) in enumerate([("llama_scope_transcoder", mlp, (4.0, 0.80078125)), ("llama_scope_pt", resid, (10.8125, 10.8125))]):
        g = seeded(110 + seed)
        stored = {"encoder.weight": draw((M, d), 0.3, g), "encoder.bias": draw((M,), 0.3, g), "decoder.weight": draw((d, M), 0.3, g), "decoder.bias": draw((d,), 0.3, g)}
        stored = {n: t.bfloat16() for n, t in stored.items()}
        if folder.endswith("pt"):
            torch.save({"sae": stored, "version": "1.0.0"}, path(folder, "sae_weights.pt"))
        else:
            save_file(stored, path(folder, "checkpoints", "final.safetensors"), {"version": "1.0.0"})
        settings = {"hook_point_in": hooks[0], "hook_point_out": hooks[1], "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "expansion_factor": M // d, "d_model": d, "d_sae": M,
                    "act_fn": "jumprelu", "jump_relu_threshold": 0.162109375, "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norms[0], "out": norms[1]},
                    "sparsity_include_decoder_norm": True, "use_glu_encoder": False, "top_k": 50, "dtype": "torch.bfloat16"}
        json.dump(settings, open(path(folder, "hyperparams.json"), "w"), indent=1)
        x = draw((N, d), 1.0, g)
        finish(folder, "lm_saes 1.0.0", x, lambda dtype: scope_forward(path(folder), x, dtype))


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


# ---- dictionary_learning ----

def make_dictionary_learning():
    from importlib.metadata import version

    from dictionary_learning import dictionary as D
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary
    cases = [("dl_autoencoder", D.AutoEncoder(d, M)), ("dl_autoencoder_new", D.AutoEncoderNew(d, M)), ("dl_gated", D.GatedAutoEncoder(d, M)), ("dl_jumprelu", D.JumpReluAutoEncoder(d, M)),
             ("dl_topk", AutoEncoderTopK(d, M, K)), ("dl_batch_topk", BatchTopKSAE(d, M, K)), ("dl_matryoshka", MatryoshkaBatchTopKSAE(d, M, K, [16, 16, 32]))]
    for seed, (folder, ae) in enumerate(cases):
        randomise(ae.named_parameters(), 50 + seed, {"r_mag": 0.5})
        if hasattr(ae, "threshold") and ae.threshold.ndim == 0:
            ae.threshold.fill_(0.75)
        torch.save(ae.state_dict(), path(folder, "ae.pt"))
        trainer = {"trainer_class": "Trainer", "dict_class": type(ae).__name__, "activation_dim": d, "dict_size": M, "layer": 4, "lm_name": "none", "submodule_name": "resid_post_layer_4"}
        json.dump({"trainer": {**trainer, **({"k": K} if hasattr(ae, "k") else {})}, "buffer": {"d_submodule": d, "io": "out"}}, open(path(folder, "config.json"), "w"), indent=1)
        x = draw((N, d), 1.5, seeded(60 + seed))

        def forward(dtype):
            own = load_dictionary(path(folder), "cpu")[0].to(dtype)
            codes = own.encode(x.to(dtype))
            return codes.detach(), own.decode(codes).detach()
        finish(folder, f"dictionary-learning {version('dictionary-learning')}", x, forward)


# ---- formats that are only tensors, by definition ----

def make_files():
    import numpy
    g = seeded(70)
    w = {"W_enc": draw((d, M), 0.3, g), "b_enc": draw((M,), 0.3, g), "W_dec": draw((M, d), 0.3, g), "b_dec": draw((d,), 0.3, g), "threshold": draw((M,), 0.5, g)}
    x = draw((N, d), 1.5, g)

    def jumprelu(relu, enc, dec):
        def forward(dtype):
            t = {n: v.to(dtype) for n, v in w.items()}
            h = x.to(dtype) @ (t["W_enc"] * enc) + t["b_enc"]
            codes = h * (h > (t["threshold"].clamp(min=0) if relu else t["threshold"]))
            return codes, codes @ (t["W_dec"] * dec) + t["b_dec"]
        return forward

    def topk(k):
        def forward(dtype):
            t = {n: v.to(dtype) for n, v in w.items()}
            h = x.to(dtype) @ t["W_enc"] + t["b_enc"]
            codes = torch.zeros_like(h).scatter(1, h.topk(k, dim=1).indices, 1) * h.relu()
            return codes, codes @ t["W_dec"] + t["b_dec"]
        return forward
    arrays = {n: v.numpy() for n, v in w.items()}
    numpy.savez(path("gemma_scope", "layer_6", "width_16k", "average_l0_9", "params.npz"), **arrays)
    finish("gemma_scope", "definition", x, jumprelu(True, 1, 1))
    numpy.savez_compressed(path("gemma_scope_embedding", "embedding", "width_4k", "average_l0_9", "params.npz"), **{n.lower(): v for n, v in arrays.items()})
    finish("gemma_scope_embedding", "definition", x, jumprelu(True, d**-0.5, d**0.5))
    torch.save({**w, "W_enc": w["W_enc"].T.contiguous().T}, path("mmdiff_jumprelu", "text-only_layer_13.pt"))  # as the authors' file: strides (1, d)
    finish("mmdiff_jumprelu", "definition", x, jumprelu(False, 1, 1))
    four = {n: v for n, v in w.items() if n != "threshold"}
    torch.save(four, path("mmdiff_topk", "text-only_layer_3.pt"))
    finish("mmdiff_topk", "definition", x, topk(50))
    torch.save({**four, "W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous()}, path("qwen_scope", "SAE-W64-L0_5", "layer7.sae.pt"))
    finish("qwen_scope", "definition", x, topk(5))


# ---- the way back ----

def golden_folders():
    """(name, path of the dictionary) of every golden one."""
    for name in sorted(os.listdir(OUT)):
        if os.path.exists(os.path.join(OUT, name, "expected.safetensors")):
            inner = os.path.join(OUT, name)
            while not any(f.endswith((".json", ".pt", ".npz")) for f in os.listdir(inner)):
                inner = next(e.path for e in sorted(os.scandir(inner), key=lambda e: e.name) if e.is_dir() and e.name != "checkpoints")
            yield name, inner


def differences(name, codes, reconstruction):
    """Largest differences from the golden codes and reconstruction; the active features must be the same."""
    expected = load_file(os.path.join(OUT, name, "expected.safetensors"))
    assert torch.equal(codes != 0, expected["codes"] != 0), f"{name}: other features are active"
    worst = [(a.double() - expected[n].double()).abs().max().item() for a, n in ((codes, "codes"), (reconstruction, "reconstruction"))]
    floor = max((expected[n].double() - expected[n + ".f32"].double()).abs().max().item() for n in ("codes", "reconstruction"))
    limit = 3 * max(floor, max(expected[n].abs().max().item() for n in ("codes", "reconstruction")) * 2**-23)
    assert max(worst) <= limit, f"{name}: differs by {worst}, limit {limit}"
    return max(worst)


def run_saelens(folder, x):
    return saelens_forward(folder, x, torch.float32)


def run_sparsify(folder, x):
    from sparsify import SparseCoder
    coder = SparseCoder.load_from_disk(folder)
    out = coder(x)
    codes = torch.zeros(len(x), coder.num_latents).scatter(1, out.latent_indices, out.latent_acts)
    return codes.detach(), out.sae_out.detach()


def run_mmdiff(file, x):
    t = torch.load(file, weights_only=True)
    h = x @ t["W_enc"] + t["b_enc"]
    if "threshold" in t:
        codes = h * (h > t["threshold"])
    else:
        codes = torch.zeros_like(h).scatter(1, h.topk(t.get("k", torch.tensor(50)).item(), dim=1).indices, 1) * h.relu()
    return codes, codes @ t["W_dec"] + t["b_dec"]


def run_stagediff(program, sae, x, features):
    with tempfile.TemporaryDirectory() as folder:
        rows, out = os.path.join(folder, "x.safetensors"), os.path.join(folder, "z.safetensors")
        save_file({"x": x}, rows)
        subprocess.run([program, "encode", "--sae", sae, "--in", rows, "--tensor", "x", "--out", out, "--quiet"], check=True)
        z = load_file(out)
    codes = torch.zeros(len(x), features + 1).scatter(1, z["indices"].long() % (features + 1), z["values"])
    return codes[:, :features], z["reconstruction"]


def check(program, layouts):
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    runners = {"saelens": run_saelens, "sparsify": run_sparsify, "mmdiff": run_mmdiff}
    for name, folder in golden_folders():
        expected = load_file(os.path.join(OUT, name, "expected.safetensors"))
        x, line = expected["x"], f"{name:28}"
        line += f" encode {differences(name, *run_stagediff(program, folder, x, expected['codes'].shape[1])):.1e}"
        if name.startswith("saelens") and "saelens" in layouts:  # the definitions of make_train.py too
            line += f"  library {differences(name, *run_saelens(folder, x)):.1e}"
        if name.startswith("llama_scope") and "llama_scope" in layouts:
            line += f"  library {differences(name, *scope_forward(folder, x, torch.float32)):.1e}"
        for layout in [y for y in layouts if y in runners]:
            with tempfile.TemporaryDirectory() as temporary:
                to = os.path.join(temporary, "converted")
                done = subprocess.run([program, "convert", folder, to, "--to", layout, "--quiet"], capture_output=True, text=True)
                assert done.returncode in (0, 2) and (done.returncode == 0) == os.path.exists(to), done.stderr
                line += f"  {layout} {differences(name, *runners[layout](to, x)):.1e}" if done.returncode == 0 else f"  {layout} refused"
        print(line)


MAKERS = {"dictionary_learning": make_dictionary_learning, "files": make_files, "sparsify": make_sparsify, "saelens": make_saelens, "llama_scope": make_llama_scope, "openmoss": make_openmoss}


def main():
    mode, arguments = sys.argv[1], sys.argv[2:]
    if mode == "make":
        for group in arguments or MAKERS:
            MAKERS[group]()
    else:
        check(arguments[0], arguments[1:] or ["saelens", "sparsify", "mmdiff"])


if __name__ == "__main__":
    main()
