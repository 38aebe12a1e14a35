"""Golden files of host/: tensors in the containers of torch.save and numpy.savez, and what they hold.

Writes tests/golden/containers/:
    plain.pt       a state_dict: every dtype, 0-d, empty, a parameter, an OrderedDict with _metadata
    strided.pt     transposed, sliced, permuted and shared views
    nested.pt      a training checkpoint: dictionaries in dictionaries, numbers, texts, lists, an optimizer's state
    wide.pt        the state of plain.pt in a zip64 archive
    legacy.pt, code.pt, expanded.pt    refused: before PyTorch 1.6; a pickled function; a view larger than its storage
    stored.npz, deflated.npz           every descr that is read, C and Fortran order, versions 1 to 3, and some that are not read
    about.json     versions; for each file and tensor the shape and FNV-1a 64 of the values as torch and numpy give them: f32, row-major

usage: make_containers.py OUT_DIR      needs torch, numpy
"""
import io
import json
import os
import sys
import warnings
import zipfile

import numpy as np
import torch

SEED = 20240817


def values(x):
    a = x.detach().to(torch.float32).numpy() if isinstance(x, torch.Tensor) else np.asarray(x).astype(np.float32)
    h = 0xCBF29CE484222325
    for byte in np.ascontiguousarray(a, dtype="<f4").tobytes():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return [list(a.shape), f"{h:016x}"]


def plain():
    g = torch.Generator().manual_seed(SEED)
    sd = torch.nn.Linear(3, 4).state_dict()   # an OrderedDict with _metadata
    with torch.no_grad():
        for v in sd.values():
            v.copy_(torch.randn(v.shape, generator=g))
    sd["param"] = torch.nn.Parameter(torch.randn(2, 3, generator=g))
    for name, t in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f64", torch.float64)):
        sd[name] = torch.randn(5, generator=g).to(t)
    for name, t in (("i64", torch.int64), ("i32", torch.int32), ("i16", torch.int16), ("i8", torch.int8), ("u8", torch.uint8)):
        sd[name] = torch.randint(0 if t == torch.uint8 else -100, 100, (2, 3), generator=g).to(t)
    sd["bool"] = torch.tensor([True, False, True])
    sd["scalar"] = torch.tensor(2.5)
    sd["k"] = torch.tensor(50, dtype=torch.int32)
    sd["empty"] = torch.empty(0, 7)
    sd["größe.名"] = torch.tensor([1.0])
    return sd


def strided():
    g = torch.Generator().manual_seed(SEED + 1)
    base = torch.randn(66, 131, generator=g).half()   # past one tile in both directions
    cube = torch.randn(3, 4, 5, generator=g)
    i = torch.arange(24).reshape(4, 6)
    return {"transposed": base.t(), "shared": base, "rows": base[3:9], "columns": base[:, 5:17:3], "offset": base.reshape(-1)[77:177],
            "permuted": cube.permute(2, 0, 1), "bf16": base[:5, :7].to(torch.bfloat16).t(), "f64": cube.double().transpose(0, 2),
            "u8": i.to(torch.uint8).t(), "i64": i.t(), "i32": i.int()[:, ::2], "one": base[:, 3:4], "wide_one": base[2:3].t(),
            "parameter": torch.nn.Parameter(cube[0].t())}


def nested():
    g = torch.Generator().manual_seed(SEED + 2)
    w = torch.randn(3, 2, generator=g)
    return {"step": 12, "norm_factor": 1.5, "version": "1.2", "done": False, "none": None, "list": [1, 2, {"x": w}], "pair": (1, 2), "huge": 2**40,
            "ae": {"encoder": {"weight": w.t(), "bias": w[:, 0]}},
            "optimizer": {"state": {0: {"exp_avg": w * 2}, 1: {"exp_avg": w[0]}}, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]}}


def zip64(path, source):
    """The same archive with the zip64 records that torch writes beyond 4 GB."""
    with zipfile.ZipFile(source) as z, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        for info in z.infolist():
            with out.open(info.filename, "w", force_zip64=True) as f:
                f.write(z.read(info))
    data = bytearray(open(path, "rb").read())
    # the directory with every 32-bit field moved to the extra field of kind 1, and both zip64 end records
    end = data.rindex(b"PK\5\6")
    count, size, at = (int.from_bytes(data[end + o:end + o + n], "little") for o, n in ((10, 2), (12, 4), (16, 4)))
    old, new, p = bytes(data[at:at + size]), b"", 0
    for _ in range(count):
        n, e, c = (int.from_bytes(old[p + o:p + o + 2], "little") for o in (28, 30, 32))
        packed, full, local = old[p + 20:p + 24], old[p + 24:p + 28], old[p + 42:p + 46]
        extra = b"\1\0\30\0" + b"".join(x + bytes(4) for x in (full, packed, local))
        f = b"\xff" * 4
        new += old[p:p + 20] + f + f + old[p + 28:p + 30] + len(extra).to_bytes(2, "little") + bytes(2) + old[p + 34:p + 42] + f + old[p + 46:p + 46 + n] + extra
        p += 46 + n + e + c
    q = lambda x, n=8: x.to_bytes(n, "little")
    wide = b"PK\6\6" + q(44) + q(45, 2) + q(45, 2) + q(0, 4) + q(0, 4) + q(count) + q(count) + q(len(new)) + q(at)
    locator = b"PK\6\7" + q(0, 4) + q(at + len(new)) + q(1, 4)
    tail = b"PK\5\6" + q(0, 4) + b"\xff" * 12 + q(0, 2)
    open(path, "wb").write(bytes(data[:at]) + new + wide + locator + tail)
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None


def arrays():
    rng = np.random.default_rng(SEED)
    a = {"f4": rng.standard_normal((3, 5)).astype("<f4"), "f2": rng.standard_normal(4).astype("<f2"), "f8": rng.standard_normal((2, 2, 3)),
         "fortran": np.asfortranarray(rng.standard_normal((6, 4)).astype("<f4")), "fortran3": np.asfortranarray(rng.standard_normal((2, 3, 4))),
         "scalar": np.float32(3.25), "empty": np.zeros((0, 4), "<f4"), "zeros": np.zeros((40, 50), "<f4")}
    for t in ("<i8", "<i4", "<i2", "|i1", "|u1"):
        a[t[1:]] = rng.integers(0, 100, (2, 3)).astype(t)
    a["b1"] = np.array([True, False])
    other = {"text": np.array(["ab", "c"]), "big": np.arange(3, dtype=">f4"), "u4": np.arange(3, dtype="<u4"), "c8": np.zeros(2, "<c8")}
    return a, other


def versions(path):
    """Adds .npy members of format 2 and 3, which numpy itself writes only for headers that need them."""
    with zipfile.ZipFile(path, "a") as z:
        for v in (2, 3):
            b = io.BytesIO()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                np.lib.format.write_array(b, np.arange(v, dtype="<f4"), version=(v, 0))
            z.writestr(f"version{v}.npy", b.getvalue())


def square(x):
    return x * x


def main(out):
    os.makedirs(out, exist_ok=True)
    at = lambda name: os.path.join(out, name)
    about = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__, "seed": SEED, "files": {}}
    for name, make in (("plain.pt", plain), ("strided.pt", strided), ("nested.pt", nested)):
        torch.save(make(), at(name))
    zip64(at("wide.pt"), at("plain.pt"))
    for name, make in (("plain.pt", plain), ("strided.pt", strided), ("wide.pt", plain)):
        about["files"][name] = {k: values(v) for k, v in make().items()}
    n = nested()
    about["files"]["nested.pt"] = {"ae.encoder.weight": values(n["ae"]["encoder"]["weight"]), "ae.encoder.bias": values(n["ae"]["encoder"]["bias"]),
                                   "optimizer.state.0.exp_avg": values(n["optimizer"]["state"][0]["exp_avg"]),
                                   "optimizer.state.1.exp_avg": values(n["optimizer"]["state"][1]["exp_avg"])}
    torch.save(plain(), at("legacy.pt"), _use_new_zipfile_serialization=False)
    torch.save({"w": torch.zeros(2), "f": square}, at("code.pt"))
    torch.save({"w": torch.arange(3.0).expand(1000, 3)}, at("expanded.pt"))
    a, other = arrays()
    np.savez(at("stored.npz"), **a, **other)
    np.savez_compressed(at("deflated.npz"), **a, **other)
    for name in ("stored.npz", "deflated.npz"):
        versions(at(name))
        about["files"][name] = {k: values(v) for k, v in a.items()} | {f"version{v}": values(np.arange(v)) for v in (2, 3)}
    with open(at("about.json"), "w") as f:
        json.dump(about, f, separators=(",", ":"), ensure_ascii=False)
        f.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
