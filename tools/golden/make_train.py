"""Golden files of tests/sae: what PyTorch's autograd and Adam make of 20 steps, and what each dictionary format's own forward gives.

    python tools/golden/make_train.py            writes tests/sae/golden/

train.safetensors: x (540, 24), the start (E, D, b_e, b_d) of a TopK dictionary M 96, k 5, and for each variant (unit: decoder rows set to
unit norm; plain: not; parallel: unit and --remove-parallel) the 20 losses and the weights after them, in double (`.f64`) and float (`.f32`; its
distance from double is the error floor of the test). Batch s is rows [32 s, 32 s + 32) modulo 540.
FOLDER/ for each format: the files of one dictionary (d 16, M 40), expected.safetensors: x (32, 16), dense codes (32, 40) and reconstruction
by the format's definition as written, nothing folded, in double (codes, reconstruction) and float (codes.f32, reconstruction.f32).
"""
import json
import math
import os

import torch
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "sae", "golden")
META = {"script": "tools/golden/make_train.py", "torch": torch.__version__, "seed": "1234"}


def steps(x, start, k, batch, n, lr, unit, parallel, dtype):
    """20 steps of Adam on the FVU loss -> losses, weights."""
    E, D, b_e, b_d = weights = [t.clone().to(dtype).requires_grad_() for t in start]
    adam = torch.optim.Adam(weights, lr=lr)
    losses = []
    for s in range(n):
        rows = x[[(s * batch + i) % len(x) for i in range(batch)]].to(dtype)
        h = rows @ E.T + b_e
        values, index = h.topk(k, dim=1)
        z = torch.zeros_like(h).scatter(1, index, values.relu())
        loss = ((z @ D + b_d - rows) ** 2).sum() / (((rows - rows.mean(0)) ** 2).sum() + 1e-8)
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            if parallel:
                D.grad -= (D.grad * D).sum(1, keepdim=True) / (D * D).sum(1, keepdim=True) * D
            adam.step()
            if unit:
                D /= D.norm(dim=1, keepdim=True)
    return torch.tensor(losses, dtype=torch.float64), [w.detach() for w in weights]


def make_train():
    torch.manual_seed(1234)
    d, M, k, batch = 24, 96, 5, 32
    x = torch.randn(540, d) * torch.linspace(0.5, 3, d) + 2 * torch.randn(d)
    D = torch.randn(M, d)
    D /= D.norm(dim=1, keepdim=True)
    start = [0.3 * torch.randn(M, d), D, 0.1 * torch.randn(M), 0.1 * torch.randn(d)]
    out = {"x": x, **dict(zip(("E", "D", "b_e", "b_d"), start))}
    for name, unit, parallel in (("unit", True, False), ("plain", False, False), ("parallel", True, True)):
        for tag, dtype in (("f64", torch.float64), ("f32", torch.float32)):
            losses, weights = steps(x, start, k, batch, 20, 1e-2, unit, parallel, dtype)
            out[f"{name}.loss.{tag}"] = losses.float()
            for w, v in zip(("E", "D", "b_e", "b_d"), weights):
                out[f"{name}.{w}.{tag}"] = v.float().contiguous()
    save_file(out, os.path.join(OUT, "train.safetensors"), META)


def act(kind, h, k, threshold, rank=None):
    """TopK (ranked by h * rank), JumpReLU, ReLU; asserts that no decision is closer than rounding can tell."""
    if kind == "topk":
        score = h if rank is None else h * rank
        order = score.sort(dim=1, descending=True)
        assert (order.values[:, k - 1] - order.values[:, k]).min() > 1e-4
        keep = torch.zeros_like(h).scatter(1, order.indices[:, :k], 1.0)
        return h.relu() * keep
    assert (h - threshold).abs().min() > 1e-5
    return torch.where(h > threshold, h, torch.zeros_like(h))


def finish(folder, x, forward):
    expected = {"x": x}
    for tag, dtype in (("", torch.float64), (".f32", torch.float32)):
        codes, reconstruction = forward(dtype)
        expected["codes" + tag], expected["reconstruction" + tag] = codes.float().contiguous(), reconstruction.float().contiguous()
    save_file(expected, os.path.join(OUT, folder, "expected.safetensors"), META)


def make_llama_scope(folder, seed, act_fn, pre_bias, decoder_norm):
    torch.manual_seed(seed)
    d, M, k, threshold, norm_in = 16, 40, 6, 0.75, 10.8125
    os.makedirs(os.path.join(OUT, folder, "checkpoints"), exist_ok=True)
    stored = {"encoder.weight": torch.randn(M, d) * 0.3, "encoder.bias": torch.randn(M) * 0.2, "decoder.weight": torch.randn(d, M) * 0.4, "decoder.bias": torch.randn(d) * 0.2}
    stored = {n: t.bfloat16() for n, t in stored.items()}
    save_file(stored, os.path.join(OUT, folder, "checkpoints", "final.safetensors"), {"version": "1.0.0"})
    hook = "blocks.5.hook_resid_post"
    settings = {"hook_point_in": hook, "hook_point_out": hook, "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": pre_bias, "expansion_factor": 2.5, "d_model": d, "d_sae": M,
                "act_fn": act_fn, "jump_relu_threshold": threshold, "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm_in, "out": norm_in},
                "sparsity_include_decoder_norm": decoder_norm, "use_glu_encoder": False, "top_k": k, "dtype": "torch.bfloat16"}
    json.dump(settings, open(os.path.join(OUT, folder, "hyperparams.json"), "w"), indent=1)
    x = torch.randn(32, d) * 2.5

    def forward(dtype):  # training-space forward; the gate in raw units for unit decoder rows
        E, b_e, D, b_d = (stored[n].to(dtype) for n in ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"))
        s, rows = math.sqrt(d) / norm_in, x.to(dtype)
        inside = s * rows - b_d if pre_bias else s * rows
        n0 = D.norm(dim=0) if decoder_norm else torch.ones(M, dtype=dtype)
        h = inside @ E.T + b_e
        raw = act("topk" if act_fn == "topk" else "jumprelu", h * n0 / s, k, threshold)
        return raw, (raw / n0 * s) @ D.T / s + b_d / s
    finish(folder, x, forward)


def make_saelens(folder, seed, cfg, threshold=None):
    torch.manual_seed(seed)
    d, M = 16, 40
    os.makedirs(os.path.join(OUT, folder), exist_ok=True)
    W = {"W_enc": torch.randn(d, M) * 0.4, "b_enc": torch.randn(M) * 0.2, "W_dec": torch.randn(M, d) * 0.5, "b_dec": torch.randn(d) * 0.3}
    if threshold is not None:
        W["threshold"] = threshold(M)
    save_file(W, os.path.join(OUT, folder, "sae_weights.safetensors"))
    json.dump({"d_in": d, "d_sae": M, "dtype": "float32", **cfg}, open(os.path.join(OUT, folder, "cfg.json"), "w"), indent=1)
    x = torch.randn(32, d) * 1.5

    def forward(dtype):
        w = {n: t.to(dtype) for n, t in W.items()}
        rows = x.to(dtype)
        h = (rows - w["b_dec"] if cfg.get("apply_b_dec_to_input", True) else rows) @ w["W_enc"] + w["b_enc"]
        norm = w["W_dec"].norm(dim=1)
        if cfg.get("rescale_acts_by_decoder_norm"):
            h = h * norm
        if "threshold" in w:
            codes = h.relu() * (h > w["threshold"]) if (h - w["threshold"]).abs().min() > 1e-5 else None
        elif "k" in cfg or "activation_fn_kwargs" in cfg:
            codes = act("topk", h, cfg.get("k") or cfg["activation_fn_kwargs"]["k"], 0)
        else:
            codes = h.relu()
        z = codes / norm if cfg.get("rescale_acts_by_decoder_norm") else codes
        return codes, z @ w["W_dec"] + w["b_dec"]
    finish(folder, x, forward)


def main():
    os.makedirs(OUT, exist_ok=True)
    make_train()
    make_llama_scope("llama_scope", 1, "jumprelu", False, True)
    make_llama_scope("llama_scope_topk", 2, "topk", True, True)
    make_llama_scope("llama_scope_unscaled", 3, "jumprelu", False, False)
    meta = {"hook_name": "blocks.7.hook_resid_post"}
    make_saelens("saelens_topk", 4, {"architecture": "topk", "k": 5, "apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": meta})
    make_saelens("saelens_topk_rescaled", 5, {"architecture": "topk", "k": 5, "apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": True, "normalize_activations": "none", "metadata": meta})
    make_saelens("saelens_jumprelu", 6, {"architecture": "jumprelu", "apply_b_dec_to_input": False, "normalize_activations": "none", "metadata": meta}, lambda M: torch.linspace(-0.5, 1.5, M))
    make_saelens("saelens_before_6", 7, {"hook_point": "blocks.7.hook_resid_post", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "normalize_activations": False})
    make_saelens("saelens_standard", 8, {"architecture": "standard", "apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": meta})


if __name__ == "__main__":
    main()
