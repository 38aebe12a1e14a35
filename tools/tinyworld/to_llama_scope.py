"""Trained TopK dictionaries (SAELens layout) -> Llama Scope v1 folders, as that project publishes its own.

    to_llama_scope.py --saes RUN/sae/random --rows rows.safetensors --test test.safetensors --k 32 --out WORLD/saes

What is stored is NOT ready for use, on purpose: weights belong to activations scaled by sqrt(d)/norm (norm: mean L2 norm of a row), and
decoder columns have norms of their own, so a loader has to fold both (docs of the format: norm_activation "dataset-wise",
sparsity_include_decoder_norm). The threshold is Llama Scope's TopK -> JumpReLU step: pre-activations of 32,768 tokens in raw units
for unit decoder rows, clamped at 0, all features together; the (tokens x k)-th largest is the threshold, so that L0 is k on average.
Everything is rounded to bf16. The error and L0 on held-out rows are computed from the stored file, loaded as its loader would.
"""
import argparse
import json
import os
import re
import struct

import numpy as np

TOKENS = 32768


def open_tensors(path):
    """name -> f32 array of a safetensors file (F32, BF16, I32, I64)."""
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(n))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + n)
    header.pop("__metadata__", None)

    def read(name):
        e = header[name]
        a, b = e["data_offsets"]
        raw = bytes(data[a:b])
        if e["dtype"] == "BF16":
            x = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(raw, {"F32": np.float32, "I32": np.int32, "I64": np.int64}[e["dtype"]])
        return x.reshape(e["shape"])
    return header, read


def bf16(x):
    """f32 -> bits of bf16, to nearest even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x):
    """A number that bf16 can hold."""
    return float(from_bf16(bf16(np.array([x], np.float32)))[0])


def write_tensors(path, tensors, metadata):
    header, at = {"__metadata__": metadata}, 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [at, at + bits.nbytes]}
        at += bits.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for bits in tensors.values():
            f.write(bits.tobytes())


def rows_of(path, layer, limit):
    """Residual rows of a layer over all samples, without bos."""
    header, read = open_tensors(path)
    rows, point = [], f"blocks.{layer}.hook_resid_post"
    for i in sorted(int(k.split("/")[0]) for k in header if k.endswith("/kinds")):
        rows.append(read(f"{i}/{point}")[read(f"{i}/kinds") != 0])
        if sum(map(len, rows)) >= limit:
            break
    return np.concatenate(rows)[:limit]


def load_as_its_loader(stored, norm, d):
    """Llama Scope's own folding, in f32: dataset norm first, then decoder norms. -> E (M, d), b_e, D (M, d), b_d in raw units."""
    s = np.float32(np.sqrt(d) / norm)
    E, b_e, D, b_d = (from_bf16(stored[k]) for k in ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"))
    n = np.linalg.norm(D, axis=0)
    return E * n[:, None], b_e / s * n, (D / n).T, b_d / s


def convert(folder, layer, args):
    header, read = open_tensors(os.path.join(folder, "sae_weights.safetensors"))
    E, b_e, D, b_d = read("W_enc").T, read("b_enc"), read("W_dec"), read("b_dec")
    M, d = E.shape
    rows = rows_of(args.rows, layer, TOKENS)
    norm = rounded(np.linalg.norm(rows, axis=1).mean())
    s = np.sqrt(d) / norm
    unit = np.linalg.norm(D, axis=1)
    n = np.exp(np.random.default_rng(layer).normal(np.log(1.5), 0.25, M))  # the stored decoder norms; about those of L15R-8x
    # raw, unit-decoder units: h = |D| (E x + b_e)
    stored = {"encoder.weight": bf16(E * (unit / n)[:, None]), "encoder.bias": bf16(b_e * unit / n * s),
              "decoder.weight": bf16((D / unit[:, None] * n[:, None]).T), "decoder.bias": bf16(b_d * s)}
    E, b_e, D, b_d = load_as_its_loader(stored, norm, d)
    h = np.maximum(rows @ E.T + b_e, 0).ravel()
    place = len(rows) * args.k
    threshold = rounded(np.partition(h, h.size - place)[h.size - place])
    hook = f"blocks.{layer}.hook_resid_post"
    settings = {
        "device": "cpu", "seed": 11, "dtype": "torch.bfloat16", "hook_point_in": hook, "hook_point_out": hook, "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False, "expansion_factor": M // d, "d_model": d, "d_sae": M, "bias_init_method": "all_zero", "act_fn": "jumprelu",
        "jump_relu_threshold": threshold, "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm},
        "decoder_exactly_fixed_norm": False, "sparsity_include_decoder_norm": True, "use_glu_encoder": False, "init_decoder_norm": 0.5, "init_encoder_norm": None,
        "init_encoder_with_decoder_transpose": True, "lp": 1, "l1_coefficient": 8e-05, "l1_coefficient_warmup_steps": 0, "top_k": args.k, "k_warmup_steps": 0,
        "use_batch_norm_mse": True, "use_ghost_grads": False, "tp_size": 1, "ddp_size": 1}
    out = os.path.join(args.out, f"L{layer}R-{M // d}x")
    write_tensors(os.path.join(out, "checkpoints", "final.safetensors"), stored, {"version": "1.0.0"})
    with open(os.path.join(out, "hyperparams.json"), "w") as f:
        json.dump(settings, f, indent=2)
        f.write("\n")
    test = rows_of(args.test, layer, 1 << 30)
    h = test @ E.T + b_e
    z = np.where(h > threshold, h, 0)
    fvu = ((z @ D + b_d - test) ** 2).sum(dtype=np.float64) / ((test - test.mean(0)) ** 2).sum(dtype=np.float64)
    print(f"layer {layer}: norm {norm:.4f}, threshold {threshold:.4f}, held-out L0 {(z > 0).sum(1).mean():.1f}, FVU {fvu:.4f}, rows {len(test)}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--saes", "--rows", "--test", "--out"):
        p.add_argument(name, required=True)
    p.add_argument("--k", type=int, required=True)
    args = p.parse_args()
    for name in sorted(os.listdir(args.saes), key=lambda s: int(re.sub(r"\D", "", s))):
        convert(os.path.join(args.saes, name), int(re.sub(r"\D", "", name)), args)


if __name__ == "__main__":
    main()
