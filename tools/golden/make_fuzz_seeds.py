"""Seeds of the fuzz targets: small files of every kind that each reader takes, out of the golden files and written here.

Writes tests/fuzz/corpus/<target>/seed_*; inputs that once failed stand beside them under other names and are kept.

usage: make_fuzz_seeds.py CORPUS_DIR        (from the repository's root; needs numpy)
"""
import io
import json
import os
import struct
import sys
import zipfile

import numpy as np

CONTAINERS, HOST = "tests/golden/containers/", "tests/golden/host/"
TEXTS = ("prompt", "question", "caption")
KEYS = TEXTS + ("id", "image", "answer", "answers", "label", "relation")


def safetensors(tensors, metadata=None):
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, n in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + n]}
        data += bytes(range(n))
    h = json.dumps(header, separators=(",", ":")).encode()
    return len(h).to_bytes(8, "little") + h + data


def seeds():
    yield "safetensors", "one", safetensors([("a", "F32", [2, 3], 24)])
    yield "safetensors", "mixed", safetensors([("u", "U8", [1], 1), ("s", "F64", [], 8), ("h", "F16", [2], 4), ("b", "BF16", [1, 2], 4), ("z", "F32", [0, 5], 0),
                                               ("l", "I64", [1], 8), ("q", "F8_E4M3", [3], 3)], {"format": "pt"})
    yield "safetensors", "none", safetensors([])
    for name in ("plain", "strided", "nested", "code", "expanded"):
        with zipfile.ZipFile(CONTAINERS + name + ".pt") as z:
            yield "torch", name + ".pkl", next(z.read(n) for n in z.namelist() if n.endswith("data.pkl"))
    for name in ("nested", "wide"):
        yield "torch", name + ".pt", open(CONTAINERS + name + ".pt", "rb").read()
    a = np.arange(6, dtype="<f4").reshape(2, 3)
    for name, x in (("c", a), ("fortran", np.asfortranarray(a)), ("scalar", np.float64(2)), ("text", np.array(["ab"])), ("empty", a[:0])):
        b = io.BytesIO()
        np.save(b, x)
        yield "npz", name + ".npy", b.getvalue()
    for name, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
        b = io.BytesIO()
        save(b, a=a, b=np.asfortranarray(a), z=np.zeros(300, "<i2"))
        yield "npz", name + ".npz", b.getvalue()
    yield from configs()
    yield from tokenizers()
    yield from dictionaries()
    for name in ("gray.jpg", "cmyk.jpg", "progressive.jpg", "restarts.jpg", "subsampling_1.jpg", "bilevel.png", "gray_alpha_16.png", "interlaced.png",
                 "palette_2.png", "palette_transparent.png", "rgb_5x5.png", "rgba.png"):
        yield "image", name, open(HOST + "pictures/" + name, "rb").read()
    lines = open(HOST + "prompts.jsonl", encoding="utf-8").read().splitlines()
    samples = [json.loads(line)["line"] for line in lines]
    samples = [{k: v for k, v in x.items() if k in KEYS} for x in samples]
    yield "samples", "lines", "\n".join(json.dumps(x, ensure_ascii=False) for x in samples if any(k in x for k in TEXTS))[:3000].rsplit("\n", 1)[0].encode()
    yield "samples", "vsr", b'{"image": "a.jpg", "caption": "The cat is on the mat.", "label": 1, "relation": "on"}\n\n{"id": 7, "question": "q", "answers": ["a"]}\n'
    for i, text in enumerate(["It's 12345, <image>\nisn't   it?", "<|begin_of_text|><image><image><|eot_id|>", "größe 名 😀 \u0301 \r\n\t x\0y", "def f(x):\n    return x ** 2"]):
        yield "text", str(i), text.encode()


def configs():
    yield "config", "llama", open("tests/models/golden/tiny_llama/config.json", "rb").read()
    yield "config", "llava", open("tests/models/golden/tiny_llava/config.json", "rb").read()
    yield "config", "images", open("tests/models/golden/tiny_llava/preprocessor_config.json", "rb").read()
    llama = {"hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 267, "rms_norm_eps": 1e-5}
    original = {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 32,
                "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad", **llama}
    yield "config", "original", json.dumps(original).encode()
    scaled = {"model_type": "llama", **llama, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, "eos_token_id": [1, 2]}
    yield "config", "scaled", json.dumps(scaled).encode()
    clip = {"model_type": "clip", "vision_config": {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 24,
            "patch_size": 8, "hidden_act": "quick_gelu"}}
    yield "config", "clip", json.dumps(clip).encode()
    images = {"image_processor": {"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 24}, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
              "image_std": [0.5, 0.5, 0.5], "rescale_factor": 1 / 255, "resample": 3}}
    yield "config", "processor", json.dumps(images).encode()


def dictionaries():
    """The last byte chooses the format: fuzz_dictionary.c."""
    lens = {"architecture": "jumprelu", "d_in": 4, "d_sae": 6, "dtype": "float32", "apply_b_dec_to_input": True, "normalize_activations": "none",
            "metadata": {"hook_name": "blocks.3.hook_resid_post"}, "hook_name": "blocks.3.hook_resid_post", "k": 2}
    parsify = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": 6, "k": 2, "d_in": 4, "signed": False, "transcode": False}
    scope = {"d_model": 4, "d_sae": 6, "expansion_factor": 1.5, "act_fn": "jumprelu", "jump_relu_threshold": 0.25, "use_decoder_bias": True, "top_k": 2,
             "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 2.0, "out": 2.0}, "sparsity_include_decoder_norm": True,
             "hook_point_in": "blocks.3.hook_resid_post", "hook_point_out": "blocks.3.hook_resid_post", "use_glu_encoder": False}
    moss = {"sae_type": "sae", **scope}
    learning = {"trainer": {"dict_class": "AutoEncoderTopK", "activation_dim": 4, "dict_size": 6, "k": 2, "layer": 3, "submodule_name": "resid_post_layer_3"}, "buffer": {}}
    for i, (name, config) in enumerate((("saelens", lens), ("sparsify", parsify), ("scope", scope), ("openmoss", moss), ("learning", learning))):
        yield "dictionary", name, json.dumps(config).encode() + bytes([i])


def few_pieces():
    field = lambda number, data: bytes([number << 3 | 2, len(data)]) + data
    piece = lambda text, score, kind: field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))
    pieces = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("\u2581a", -1, 1) + piece("user", 0, 4) + piece("\u2581", -3, 1) + piece("a", -2, 1)
    return pieces + field(2, bytes([3 << 3, 2])) + field(3, bytes([3 << 3, 1, 4 << 3, 0, 5 << 3, 1]))


def tokenizers():
    """The golden tokenizers with few merges, so that mutations reach every part."""
    yield "tokenizer_model", "pieces", open(HOST + "pieces/tokenizer.model", "rb").read()
    yield "tokenizer_model", "few", few_pieces()
    for name in ("llama3", "gpt2", "llava_hf"):
        t = json.load(open(HOST + name + "/tokenizer.json", encoding="utf-8"))
        m = t["model"]
        m["merges"] = m["merges"][:12]
        keep = {"".join(x if isinstance(x, list) else x.split(" ")) for x in m["merges"]}
        m["vocab"] = {k: i for i, k in enumerate([k for k in m["vocab"] if len(k) == 1 or k in keep])}
        yield "tokenizer", name, json.dumps(t, ensure_ascii=False, separators=(",", ":")).encode()


if __name__ == "__main__":
    for target, name, data in seeds():
        os.makedirs(os.path.join(sys.argv[1], target), exist_ok=True)
        with open(os.path.join(sys.argv[1], target, "seed_" + name), "wb") as f:
            f.write(data)
