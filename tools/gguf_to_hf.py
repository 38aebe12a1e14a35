"""A GGUF file of a LLaMA-kind model as a Hugging Face folder: config.json, generation_config.json, model.safetensors, tokenizer.json,
tokenizer_config.json.      usage: gguf_to_hf.py FILE.gguf FOLDER [--dtype F32|F16|BF16]

GGUF (version 2 and 3, little endian): "GGUF", u32 version, u64 tensors, u64 keys; keys (string, u32 type, value); tensors (name, u32 rank, u64 dims
fastest first, u32 type, u64 offset); data from the next multiple of general.alignment (32). Block formats of 32 or 256 weights: BLOCKS below.
The rows of q and k stand in pairs (Meta's rotary order); Hugging Face rotates halves, so each head's (D/2, 2) rows go back to (2, D/2).
What this cannot say exactly is refused: other architectures, rotary scaling, tokenizers that are not byte-level BPE."""
import argparse
import json
import os
import struct
import sys

import numpy as np

TYPES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE = {  # tokenizer.ggml.pre -> pre_tokenizer, ignore_merges
    "gpt-2": (BYTE_LEVEL, False),
    "smollm": ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}, False),
    "llama-bpe": ({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
                                                         BYTE_LEVEL | {"use_regex": False}]}, True),
}
CONTROL, USER = 3, 4  # token types


def refuse(sentence):
    sys.exit(f"gguf_to_hf: {sentence}")


# ---------------------------------------------------------------- blocks of quantised weights, (n, bytes) uint8 -> (n, weights) f32
def half(raw, at):
    return raw[:, at:at + 2].copy().view("<f2").astype(np.float32)


def nibbles(raw):
    return np.concatenate([raw & 15, raw >> 4], axis=1)


def fifth(raw, at):
    bits = raw[:, at:at + 4].copy().view("<u4")
    return ((bits >> np.arange(32, dtype=np.uint32)) & 1).astype(np.uint8) << 4


def scales_k(raw):
    """12 bytes -> eight 6-bit scales and minima."""
    q = raw.astype(np.uint8)
    low, high, top = q[:, :4], q[:, 4:8], q[:, 8:12]
    return np.concatenate([low & 63, (top & 15) | (low >> 6) << 4], 1).astype(np.float32), np.concatenate([high & 63, (top >> 4) | (high >> 6) << 4], 1).astype(np.float32)


def k_quants(raw, low):
    """Q4_K, Q5_K: w = d scale q - dmin minimum; low: (n, 8, 32) values of the eight parts."""
    scale, minimum = scales_k(raw[:, 4:16])
    return ((half(raw, 0) * scale)[:, :, None] * low - (half(raw, 2) * minimum)[:, :, None]).reshape(len(raw), 256)


def halves(bytes_):
    """(n, 128) nibble pairs: 64 weights from 32 bytes, low nibbles first -> (n, 8, 32)."""
    b = bytes_.reshape(-1, 4, 1, 32)
    return np.concatenate([b & 15, b >> 4], axis=2).reshape(-1, 8, 32)


def q5_k(raw):
    high = (raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    return k_quants(raw, halves(raw[:, 48:176]).astype(np.float32) + 16 * high.astype(np.float32))


def q6_k(raw):
    n = len(raw)
    low, high = raw[:, :128].reshape(n, 2, 64), raw[:, 128:192].reshape(n, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(n, 2, 4, 32)
    q = (low | ((high >> np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]) & 3) << 4).astype(np.float32) - 32
    scale = raw[:, 192:208].view(np.int8).astype(np.float32).reshape(n, 2, 4, 2)
    return (half(raw, 208)[:, :, None, None, None] * scale[..., None] * q.reshape(n, 2, 4, 2, 16)).reshape(n, 256)


BLOCKS = {  # type -> name, weights of a block, bytes, reader
    0: ("F32", 1, 4, lambda r: r.view("<f4")),
    1: ("F16", 1, 2, lambda r: r.view("<f2").astype(np.float32)),
    30: ("BF16", 1, 2, lambda r: (r.view("<u2").astype(np.uint32) << 16).view(np.float32)),
    2: ("Q4_0", 32, 18, lambda r: half(r, 0) * (nibbles(r[:, 2:]).astype(np.float32) - 8)),
    3: ("Q4_1", 32, 20, lambda r: half(r, 0) * nibbles(r[:, 4:]).astype(np.float32) + half(r, 2)),
    6: ("Q5_0", 32, 22, lambda r: half(r, 0) * ((nibbles(r[:, 6:]) | fifth(r, 2)).astype(np.float32) - 16)),
    7: ("Q5_1", 32, 24, lambda r: half(r, 0) * (nibbles(r[:, 8:]) | fifth(r, 4)).astype(np.float32) + half(r, 2)),
    8: ("Q8_0", 32, 34, lambda r: half(r, 0) * r[:, 2:].view(np.int8).astype(np.float32)),
    12: ("Q4_K", 256, 144, lambda r: k_quants(r, halves(r[:, 16:144]).astype(np.float32))),
    13: ("Q5_K", 256, 176, q5_k),
    14: ("Q6_K", 256, 210, q6_k),
}


# ---------------------------------------------------------------- the file
class Gguf:
    def __init__(self, path):
        self.data, self.at = np.memmap(path, dtype=np.uint8, mode="r"), 4
        if len(self.data) < 24 or bytes(self.data[:4]) != b"GGUF":
            refuse(f"{path}: expected a GGUF file, it starts with {bytes(self.data[:4])!r}")
        version, tensors, keys = self.number("I"), self.number("Q"), self.number("Q")
        if version not in (2, 3):
            refuse(f"{path}: GGUF version {version}, expected 2 or 3")
        self.keys = {}
        for _ in range(keys):
            name, kind = self.string(), self.number("I")
            self.keys[name] = self.value(kind)
        self.tensors = {}
        for _ in range(tensors):
            name, rank = self.string(), self.number("I")
            dims = [self.number("Q") for _ in range(rank)]
            self.tensors[name] = (dims[::-1], self.number("I"), self.number("Q"))
        alignment = self.keys.get("general.alignment", 32)
        self.start = (self.at + alignment - 1) // alignment * alignment

    def take(self, n):
        if self.at + n > len(self.data):
            refuse(f"the file ends at byte {len(self.data)}, inside a value that begins at {self.at}")
        self.at += n
        return bytes(self.data[self.at - n:self.at])

    def number(self, letter):
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def string(self):
        return self.take(self.number("Q")).decode("utf-8", "surrogateescape")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, n = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(n)]
        if kind not in TYPES:
            refuse(f"a value of type {kind} at byte {self.at}, expected 0 to 12")
        return self.number(TYPES[kind])

    def tensor(self, name):
        shape, kind, offset = self.tensors[name]
        if kind not in BLOCKS:
            refuse(f"tensor {name} has type {kind}, which is not read; read are {', '.join(b[0] for b in BLOCKS.values())}")
        _, weights, size, read = BLOCKS[kind]
        count = int(np.prod(shape, dtype=np.int64))
        begin, n = self.start + offset, count // weights * size
        if count % weights or begin + n > len(self.data):
            refuse(f"tensor {name} {shape} does not lie inside the file")
        return np.ascontiguousarray(read(np.array(self.data[begin:begin + n]).reshape(-1, size))).reshape(shape)


def unpermute(w, heads):
    """Rows of each head from (D/2, 2) to (2, D/2)."""
    return np.ascontiguousarray(w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2)).reshape(w.shape)


# ---------------------------------------------------------------- the folder
def config_of(g):
    k = g.keys
    if k.get("general.architecture") != "llama":
        refuse(f"architecture {k.get('general.architecture')}, expected llama")
    if k.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in g.tensors:
        refuse("rotary scaling, which GGUF holds as factors only; take the model's own Hugging Face folder")
    heads, width = k["llama.attention.head_count"], k["llama.embedding_length"]
    dim = k.get("llama.attention.key_length", width // heads)
    if k.get("llama.rope.dimension_count", dim) != dim:
        refuse(f"rotary dims {k['llama.rope.dimension_count']} of a head of {dim}, expected all")
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": k["llama.feed_forward_length"],
            "num_hidden_layers": k["llama.block_count"], "num_attention_heads": heads, "num_key_value_heads": k.get("llama.attention.head_count_kv", heads),
            "head_dim": dim, "vocab_size": g.tensors["token_embd.weight"][0][0], "max_position_embeddings": k["llama.context_length"],
            "rms_norm_eps": float(np.format_float_positional(np.float32(k["llama.attention.layer_norm_rms_epsilon"]), unique=True)),
            "rope_theta": k.get("llama.rope.freq_base", 10000.0), "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "tie_word_embeddings": "output.weight" not in g.tensors, "bos_token_id": k.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": k.get("tokenizer.ggml.eos_token_id")}


def weights_of(g, config):
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    for name in g.tensors:
        piece = name.split(".")
        if piece[0] == "blk" and len(piece) == 4 and piece[2] in parts and piece[3] == "weight":
            names[name] = f"model.layers.{piece[1]}.{parts[piece[2]]}.weight"
        elif name not in names:
            refuse(f"tensor {name} belongs to no LLaMA this script knows")
    for name in sorted(g.tensors):
        w = g.tensor(name)
        if "attn_q.weight" in name:
            w = unpermute(w, config["num_attention_heads"])
        if "attn_k.weight" in name:
            w = unpermute(w, config["num_key_value_heads"])
        yield names[name], w


def write_weights(path, g, config, dtype):
    """safetensors: u64 header bytes, JSON, data in the header's order."""
    header, at, chunks = {"__metadata__": {"format": "pt"}}, 0, []
    for name, w in weights_of(g, config):
        if dtype == "BF16":  # round to nearest even
            bits = w.astype(np.float32).view(np.uint32)
            raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        else:
            raw = w.astype("<f4" if dtype == "F32" else "<f2")
        header[name] = {"dtype": dtype, "shape": list(w.shape), "data_offsets": [at, at + raw.nbytes]}
        at += raw.nbytes
        chunks.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".tmp", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for c in chunks:
            c.tofile(f)
    os.replace(path + ".tmp", path)


def tokenizer_of(g):
    k = g.keys
    pre = k.get("tokenizer.ggml.pre", "gpt-2")
    if k.get("tokenizer.ggml.model") != "gpt2" or pre not in PRE:
        refuse(f"tokenizer {k.get('tokenizer.ggml.model')} with pre-tokenizer {pre}, expected gpt2 with one of {', '.join(PRE)}")
    pieces, types = k["tokenizer.ggml.tokens"], k.get("tokenizer.ggml.token_type", [])
    added = [{"id": i, "content": p, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": t == CONTROL}
             for i, (p, t) in enumerate(zip(pieces, types)) if t in (CONTROL, USER)]
    splitter, ignore_merges = PRE[pre]
    bos = k.get("tokenizer.ggml.bos_token_id") if k.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") else None
    post = BYTE_LEVEL if bos is None else {"type": "Sequence", "processors": [BYTE_LEVEL, {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": pieces[bos], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {pieces[bos]: {"id": pieces[bos], "ids": [bos], "tokens": [pieces[bos]]}}}]}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
             "byte_fallback": False, "ignore_merges": ignore_merges, "vocab": {p: i for i, p in enumerate(pieces)}, "merges": k["tokenizer.ggml.merges"]}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": k["llama.context_length"]}
    for name in ("bos", "eos", "unk", "pad"):
        key = f"tokenizer.ggml.{dict(unk='unknown', pad='padding').get(name, name)}_token_id"
        if k.get(key) is not None:
            settings[f"{name}_token"] = pieces[k[key]]
    if "tokenizer.chat_template" in k:
        settings["chat_template"] = k["tokenizer.chat_template"]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": splitter, "post_processor": post,
            "decoder": BYTE_LEVEL, "model": model}, settings


def convert(path, folder, dtype="F32"):
    g = Gguf(path)
    config, (tokenizer, settings) = config_of(g), tokenizer_of(g)
    os.makedirs(folder, exist_ok=True)
    write_weights(os.path.join(folder, "model.safetensors"), g, config, dtype)
    config["torch_dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    generation = {n: config[n] for n in ("bos_token_id", "eos_token_id") if config[n] is not None}
    for name, value in (("config.json", config), ("generation_config.json", generation), ("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(value, f, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file")
    p.add_argument("folder")
    p.add_argument("--dtype", choices=("F32", "F16", "BF16"), default="F32")
    o = p.parse_args()
    convert(o.file, o.folder, o.dtype)
