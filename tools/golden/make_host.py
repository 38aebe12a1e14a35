"""Golden files of host/: tokenizers, prompts and pictures, against the libraries whose results users expect.

Writes tests/golden/host/:
    llama3/, gpt2/     small trained tokenizers (tokenizer.json) of LLaMA-3's and of SmolLM2's kind
    texts.jsonl        text and its ids under both, by `tokenizers`
    pieces/            a small SentencePiece BPE (tokenizer.model) of LLaMA-2's kind, as in Vicuna's folder
    llava_hf/          the same pieces as tokenizer.json, with llava-hf's <image>
    texts_pieces.jsonl text and its ids: under pieces/ by sentencepiece between special tokens; under llava_hf/, as it is and with Metaspace
                       (first) instead of its normalizer, by `tokenizers`; by LlamaTokenizer with legacy=False
    decoded.jsonl      ids and their text under llava_hf/ (its decoder, and Metaspace's), by `tokenizers`
    prompts.jsonl      data lines and their ids and kinds: chunks around <image> as LLaVA's tokenizer_image_token cuts them; llava-hf's in one
    pictures/          JPEG and PNG files of every kind
    pictures.jsonl      for each: FNV-1a 64 of the RGB bytes by Pillow and of the pixel values by CLIPImageProcessor (slow)
    about.json         versions and seed

usage: make_host.py OUT_DIR      needs tools/requirements_host.txt: pillow < 12, transformers < 5 (its slow CLIPImageProcessor)
"""
import json
import os
import random
import re
import struct
import sys
import zlib

import numpy as np
import PIL
import sentencepiece
import tokenizers
import transformers
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.models.clip.image_processing_clip import CLIPImageProcessor

SEED = 20240731
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eot|>", "<|eot_id|>!"]   # the last begins as another one does
CORPUS = ["The red cube is left of the blue sphere.", "Where is the green cylinder? It's behind the cone.", "They don't think we'll see what he's seen, I've said.",
          "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user "
          "with a variety of tasks using natural language.", "system user assistant", "Is the following statement correct? Answer only with 'Yes' or 'No'.\nStatement: ",
          "def f(x):\n    return x ** 2  # 12345\n", "Größe, naïve café, smörgåsbord", "Съешь ещё этих мягких булок", "日本語の文章と中文的句子", "😀 👍🏽 🇫🇷",
          "!\u180e!\u180e \u180e\u180ex \u180e"] * 20   # U+180E: white space for PCRE2 alone


# ---- tokenizers ----
def train(kind, folder):
    tok = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    first = (pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated", invert=False) if kind == "llama3" else pre_tokenizers.Digits(individual_digits=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")])
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = SPECIAL if kind == "llama3" else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    tok.add_special_tokens(special)
    if kind == "llama3":
        tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A {SPECIAL[0]} $B", special_tokens=[(SPECIAL[0], tok.token_to_id(SPECIAL[0]))])])
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "tokenizer.json")
    tok.save(path)
    value = json.load(open(path))
    if kind == "llama3":   # reachable only through ignore_merges: a whole word without the merges that make it
        value["model"]["vocab"]["Ġxylophone"] = len(value["model"]["vocab"])
        for t in value["added_tokens"]:
            t["id"] += 1
        value["post_processor"]["processors"][1]["special_tokens"][SPECIAL[0]]["ids"] = [value["added_tokens"][0]["id"]]
    else:                  # the older spelling of merges, and a vocabulary that lacks some bytes
        value["model"]["merges"] = [" ".join(m) for m in value["model"]["merges"]]
        used = {c for m in value["model"]["merges"] for part in m.split(" ") for c in part}
        gone = [c for c in alphabet if c not in used][:12]
        value["model"]["vocab"] = {k: i for i, k in enumerate(k for k in value["model"]["vocab"] if k not in gone)}
        for t in value["added_tokens"]:
            t["id"] -= len(gone)
    with open(path, "w") as f:
        json.dump(value, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    return Tokenizer.from_file(path)


BLANK = "\u2581"
PIECES_SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]


def save_compact(path, value):
    with open(path, "w") as f:
        json.dump(value, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def train_pieces(folder):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "tokenizer.model")
    with open(path, "wb") as f:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=f, model_type="bpe", vocab_size=620, byte_fallback=True, normalization_rule_name="identity",
                                                 remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.99, num_threads=1, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_file=path)
    n, flags = sp.get_piece_size(), {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    save_compact(os.path.join(folder, "tokenizer_config.json"), {
        "add_bos_token": True, "add_eos_token": False, "legacy": True, "tokenizer_class": "LlamaTokenizer", "bos_token": {"__type": "AddedToken", "content": "<s>"} | flags, "pad_token": None,
        "added_tokens_decoder": {str(i): {"content": t} | flags for i, t in enumerate(PIECES_SPECIAL[:3])}})
    save_compact(os.path.join(folder, "added_tokens.json"), {"<pad>": n})
    save_compact(os.path.join(folder, "special_tokens_map.json"), {"bos_token": "<s>", "eos_token": {"content": "</s>"} | flags, "unk_token": "<unk>", "pad_token": "<pad>"})
    return sp


def pieces_json(sp, folder):
    """The pieces as LLaMA-2's tokenizer.json has them: a merge for every way to make one of two, the best score first."""
    vocab = {sp.id_to_piece(i): i for i in range(sp.get_piece_size())}
    merges = []
    for piece, i in vocab.items():
        if not (sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i)):
            merges += [(-sp.get_score(i), i, vocab[piece[:k]], piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in vocab and piece[k:] in vocab]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[m[3:] for m in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    tok.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in PIECES_SPECIAL])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])])
    os.makedirs(folder, exist_ok=True)
    save_compact(os.path.join(folder, "tokenizer.json"), json.loads(tok.to_str()))
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def with_metaspace(tok):
    other = Tokenizer.from_str(tok.to_str())
    other.normalizer = None
    other.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, prepend_scheme="first", split=False)
    other.decoder = decoders.Metaspace(BLANK, prepend_scheme="first")
    return other


def pieces_between(sp, text):
    """What transformers' LlamaTokenizer (slow, legacy) does: every text between special tokens goes to sentencepiece by itself."""
    ids = {t: i for i, t in enumerate(PIECES_SPECIAL[:3])} | {"<pad>": sp.get_piece_size()}
    out = [sp.bos_id()]
    for part in re.split("(" + "|".join(map(re.escape, ids)) + ")", text):
        out += [ids[part]] if part in ids else sp.encode(part) if part else []
    return out


POOLS = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " \t\n\r  \u00a0\u3000\u2028\x85\x0b\x0c\x1c\x1f", "'’sStTrReEvVmMlLdD ſ\u212a",
         "äöüßéèñçÅØæœ", "日本語中文한국어ひらがなカタカナ", "😀👩\u200d👧👍🏽🇩🇪", "!?.,;:-_()[]{}<>|/\\\"'`~@#$%^&*+=", "٠١٢३४५Ⅷ½²①", "\u0301\u200d\u200b\u180e\ufeff\u00ad",
         "ЖдиПривет", "שלוםمرحبا", "\x00\x01\x7f\u0080"]
WORDS = ("the red cube is left of the blue sphere don't I'll we've HE'S it'ſ THEY'RE xylophone xylophones Hello foo_bar <|eot_id|> <|eot|> <|begin_of_text|> <|eot_id "
         "<|im_start|> <|im_end|> <| |> 1234567 3.14159 https://example.org/a?b=c \n\n \r\n ==").split(" ") + ["", " ", "   ", "\n", "\t"]


def texts(n, seed):
    rng, out = random.Random(seed), ["", " ", "  ", "\n", " \n ", "a", "<|eot_id|>", " xylophone", "\x00", "''s", "\u180e x", "!\u180e!\u180e  \u180e\u180ex", "x\u2028\u2029y", "<|eot_id|>!!", "a<|eot_id|>!b<|eot_id|>"]
    while len(out) < n:
        k = rng.random()
        if k < 0.3:
            s = "".join(rng.choice(rng.choice(POOLS)) for _ in range(rng.randint(1, 24)))
        elif k < 0.6:
            s = rng.choice((" ", "", " ")).join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
        elif k < 0.8:
            s = "".join("".join(rng.choice(pool) for _ in range(rng.randint(1, 8))) for pool in rng.choices(POOLS, k=rng.randint(1, 5)))
        else:
            s = "".join(chr(rng.choice((rng.randint(0, 0x2fff), rng.randint(0, 0xd7ff), rng.randint(0xe000, 0x10ffff)))) for _ in range(rng.randint(1, 12)))
        out.append(s)
    return out


def pieces_texts(sp, tok, folder):
    rng, other = random.Random(SEED + 1), with_metaspace(tok)
    some = [t.replace("<|eot_id|>", rng.choice(PIECES_SPECIAL)).replace("<|im_start|>", " </s>") for t in texts(200, SEED + 1)]
    slow = transformers.LlamaTokenizer(os.path.join(folder, "tokenizer.model"), legacy=False)   # tokens after a special one get no prefix
    some += ["<s>", "a<s>b", "<s> a", " <unk>x", "<0x41>", BLANK, BLANK + BLANK + "a", " " + BLANK + " a", "<image>\nWhere is the red cube?", "x" * 50, " " * 20, "日本語の文章" * 10]
    lines = [{"text": t, "pieces": pieces_between(sp, t), "llava_hf": tok.encode(t).ids, "metaspace": other.encode(t).ids, "not_legacy": slow(t).input_ids} for t in some]
    back = []
    for _ in range(80):
        ids = rng.choice(lines)["llava_hf"][:12] if rng.random() < 0.5 else [rng.randrange(rng.choice((tok.get_vocab_size(), 259))) for _ in range(rng.randint(1, 8))]
        back.append({"ids": ids, "llava_hf": tok.decode(ids, skip_special_tokens=False), "skipped": tok.decode(ids), "metaspace": other.decode(ids, skip_special_tokens=False)})
    return lines, back


def write_lines(path, lines):
    with open(path, "w") as f:
        for line in lines:
            f.write(json.dumps(line, separators=(",", ":")) + "\n")


# ---- prompts: the text with the kind of every character, cut at <image>, each piece tokenised by itself ----
LLAVA = ("You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
         "and assist the user with a variety of tasks using natural language.")
HEAD = "<|start_header_id|>%s<|end_header_id|>\n\n"
SHAPES = {  # before, after, before the answer
    "llama_3_1": ("<|begin_of_text|>" + HEAD % "system" + LLAVA + "<|eot_id|>" + HEAD % "user", "<|eot_id|>" + HEAD % "assistant", ""),
    "llama3": ("<|begin_of_text|>" + HEAD % "user", "<|eot_id|>" + HEAD % "assistant", ""),
    "vicuna_v1": ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the "
                  "user's questions. USER: ", " ASSISTANT:", " "),
    "llava_1_5": ("USER: ", " ASSISTANT:", " "),
    "plain": ("", "", "")}


def tokens(tok, text, kinds):
    e = tok.encode(text, add_special_tokens=False)
    return e.ids, [kinds[a] for a, _ in e.offsets]


def goes_on(tok):
    """The tokenizer for a text that goes on: nothing is put before it."""
    if tok.normalizer is None:
        return tok
    other = Tokenizer.from_str(tok.to_str())
    other.normalizer = normalizers.Replace(" ", BLANK)
    return other


def prompt(tok, line, template, rows):
    if "prompt" in line:
        text, kinds = line["prompt"], [3] * len(line["prompt"])
    else:
        before, after, *_ = SHAPES[template]
        if "image" in line:
            before += "<image>" if template == "plain" else "<image>\n"
        q = line.get("question", f"Is the following statement correct? Answer only with 'Yes' or 'No'.\nStatement: {line.get('caption')}\nAnswer:")
        text, kinds = before + q + after, [2] * len(before) + [3] * len(q) + [2] * len(after)
    spelled = "<|begin_of_text|>" if tok.token_to_id("<|begin_of_text|>") else "<s>"
    ids, out, image = [tok.token_to_id(spelled)], [0], tok.token_to_id("<image>")
    if text.startswith(spelled):
        text, kinds = text[len(spelled):], kinds[len(spelled):]
    pieces = [text] if image is not None else text.split("<image>")
    if "image" in line and "<image>" not in text:
        ids, out = ids + [-200] * rows, out + [1] * rows
    at = 0
    for i, piece in enumerate(pieces):
        if i:
            ids, out = ids + [-200] * rows, out + [1] * rows
        for token, kind in zip(*tokens(tok, piece, kinds[at:at + len(piece)])):
            ids, out = (ids + [-200] * rows, out + [1] * rows) if token == image else (ids + [token], out + [kind])
        at += len(piece) + 7
    if "answer" in line:
        part = ("" if "prompt" in line else SHAPES[template][2]) + line["answer"]
        a, b = tokens(goes_on(tok), part, [4] * len(part))
        ids, out = ids + a, out + b
    return {"line": line, "template": template, "rows": rows, "ids": ids, "kinds": out}


def prompts(tok, pieces, llava_hf):
    lines = [{"prompt": "The red cube"}, {"prompt": "<|begin_of_text|>The red cube"}, {"prompt": "The red cube", "image": "a.png"}, {"prompt": "See <image> here", "image": "a.png"},
             {"prompt": "<image>\nWhere is it?", "image": "a.png"}, {"prompt": "Is it red?", "answer": "yes"}, {"prompt": "A:<|eot_id|>", "answer": " It's blue"}]
    asked = [{"question": "Where is the cube?"}, {"question": " Where is it? "}, {"question": "Where is the cube?", "image": "a.png"}, {"question": "  two blanks", "image": "a.png"},
             {"question": "Where is it?", "image": "a.png", "answer": "behind the cone"}, {"caption": "The cube is left of the cone.", "image": "a.png", "label": 1},
             {"question": "日本語?", "image": "a.png", "answer": "Größe"}]
    out = [prompt(tok, line, "llama_3_1", 3) for line in lines] + [prompt(tok, line, t, 4) for t in ("llama_3_1", "llama3", "vicuna_v1") for line in asked]
    lines[1], lines[6] = {"prompt": "<s>The red cube"}, {"prompt": "A:</s>", "answer": " It's blue"}
    for name, other, templates in (("pieces", pieces, ("vicuna_v1", "plain")), ("llava_hf", llava_hf, ("llava_1_5", "vicuna_v1"))):
        out += [{"tokenizer": name} | prompt(other, line, templates[0], 3) for line in lines]
        out += [{"tokenizer": name} | prompt(other, line, t, 4) for t in templates for line in asked]
    return out


# ---- pictures ----
def scene(w, h, seed):
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([(x * 5 + y * 3 + seed * 11) % 256, ((x // 5 + y // 3) % 2) * 200 + seed, np.sin(x / 5) * 60 + np.cos(y / 7) * 60 + 128], -1)
    a[h // 3:h // 2, w // 4:w // 2] += rng.randint(-60, 60, (h // 2 - h // 3, w // 2 - w // 4, 3))
    return Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))


def chunk(tag, data):
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def png(w, h, depth, kind, rows, extra=b"", interlace=0):
    head = struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pictures(folder):
    os.makedirs(folder, exist_ok=True)
    rng, names = np.random.RandomState(SEED % 2**31), []

    def save(image, name, **options):
        image.save(os.path.join(folder, name), **options)
        names.append(name)

    def raw(data, name):
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)
        names.append(name)

    for i, (w, h) in enumerate([(32, 32), (33, 17), (17, 33), (50, 19), (19, 50), (96, 70), (7, 90), (90, 7), (64, 32), (33, 47), (32, 33), (300, 12), (5, 5), (2, 9)]):
        save(scene(w, h, i), f"rgb_{w}x{h}.png")
    for i in range(3):
        save(scene(50 + i, 40 + 3 * i, 20 + i), f"subsampling_{i}.jpg", quality=80, subsampling=i)
    exif = Image.Exif()
    exif[0x112] = 6
    save(scene(43, 61, 30), "progressive.jpg", quality=70, progressive=True)
    save(scene(43, 31, 31), "optimized.jpg", quality=95, optimize=True)
    save(scene(30, 44, 32).convert("L"), "gray.jpg", quality=85)
    save(scene(34, 27, 33).convert("CMYK"), "cmyk.jpg", quality=90)
    save(scene(41, 23, 34), "low.jpg", quality=5)
    save(scene(31, 47, 35), "rotated_by_exif.jpg", quality=90, exif=exif)
    save(scene(38, 33, 36), "restarts.jpg", quality=75, restart_marker_rows=1)
    save(scene(40, 30, 40).convert("L"), "gray_8.png")
    save(scene(40, 30, 41).convert("1"), "bilevel.png")
    for mode, name in (("LA", "gray_alpha.png"), ("RGBA", "rgba.png")):
        im = scene(25, 20, 42).convert(mode)
        im.putalpha(Image.fromarray(rng.randint(0, 256, (20, 25), dtype=np.uint8)))
        save(im, name)
    for bits in (1, 2, 4, 8):
        save(scene(41, 35, 45 + bits).convert("P", palette=Image.Palette.ADAPTIVE, colors=min(2**bits, 200)), f"palette_{bits}.png", **({} if bits == 8 else {"bits": bits}))
    save(scene(40, 35, 50).convert("P", palette=Image.Palette.ADAPTIVE, colors=20), "palette_transparent.png", transparency=3)
    save(scene(40, 35, 51), "rgb_transparent.png", transparency=(3, 4, 5))
    for channels, kind, name in ((3, 2, "rgb_16.png"), (2, 4, "gray_alpha_16.png"), (4, 6, "rgba_16.png")):
        a = rng.randint(0, 65536, (13, 17, channels)).astype(">u2")
        raw(png(17, 13, 16, kind, b"".join(b"\0" + row.tobytes() for row in a)), name)
    for depth in (2, 4):
        raw(png(43, 35, depth, 0, b"".join(b"\0" + rng.bytes((43 * depth + 7) // 8) for _ in range(35))), f"gray_{depth}.png")
    raw(png(20, 20, 8, 2, b"".join(b"\0" + rng.bytes(60) for _ in range(20)), chunk(b"gAMA", struct.pack(">I", 100000))), "gamma.png")
    raw(png(30, 20, 8, 3, b"".join(b"\0" + rng.randint(0, 6, 30).astype(np.uint8).tobytes() for _ in range(20)), chunk(b"PLTE", bytes(range(9)))), "palette_short.png")
    a, rows = rng.randint(0, 256, (19, 23, 3)).astype(np.uint8), b""
    for y, x, dy, dx in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)):
        rows += b"".join(b"\0" + row.tobytes() for row in a[y::dy, x::dx])
    raw(png(23, 19, 8, 2, rows, interlace=1), "interlaced.png")
    return names


def fnv(data):
    h = 1469598103934665603
    for byte in data:
        h = ((h ^ byte) * 1099511628211) & (2**64 - 1)
    return f"{h:016x}"


def square(image, background):
    w, h = image.size
    out = Image.new("RGB", (max(w, h),) * 2, background)
    out.paste(image, ((max(w, h) - w) // 2, (max(w, h) - h) // 2))
    return out


SETTINGS = {"crop": (32, 32, False), "pad": (32, 32, True), "wider": (24, 31, False), "odd": (35, 27, False)}   # shortest edge, crop, pad


def pixels(folder, names):
    out = []
    for name in names:
        image = Image.open(os.path.join(folder, name)).convert("RGB")
        row = {"file": name, "width": image.width, "height": image.height, "rgb": fnv(image.tobytes())}
        for key, (edge, crop, pad) in SETTINGS.items():
            p = CLIPImageProcessor(size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop})
            im = square(image, tuple(int(255 * m) for m in p.image_mean)) if pad else image
            values = p.preprocess(im, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
            assert values.dtype == np.float32 and values.shape == (3, crop, crop)
            row[key] = fnv(np.ascontiguousarray(values).tobytes())
        out.append(row)
    return out


def main(out):
    os.makedirs(out, exist_ok=True)
    toks = {kind: train(kind, os.path.join(out, kind)) for kind in ("llama3", "gpt2")}
    write_lines(os.path.join(out, "texts.jsonl"), [{"text": t, **{k: v.encode(t).ids for k, v in toks.items()}} for t in texts(340, SEED)])
    sp = train_pieces(os.path.join(out, "pieces"))
    llava_hf = pieces_json(sp, os.path.join(out, "llava_hf"))
    without = Tokenizer.from_str(json.dumps({**json.loads(llava_hf.to_str()), "added_tokens": json.loads(llava_hf.to_str())["added_tokens"][:3]}))   # pieces/ knows no <image>
    lines, back = pieces_texts(sp, llava_hf, os.path.join(out, "pieces"))
    write_lines(os.path.join(out, "texts_pieces.jsonl"), lines)
    write_lines(os.path.join(out, "decoded.jsonl"), back)
    write_lines(os.path.join(out, "prompts.jsonl"), prompts(toks["llama3"], without, llava_hf))
    folder = os.path.join(out, "pictures")
    write_lines(os.path.join(out, "pictures.jsonl"), pixels(folder, pictures(folder)))
    about = {"made_by": "tools/golden/make_host.py", "seed": SEED, "tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__, "pillow": PIL.__version__,
             "transformers": transformers.__version__, "numpy": np.__version__, "settings": SETTINGS}
    with open(os.path.join(out, "about.json"), "w") as f:
        json.dump(about, f, indent=2)
        f.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
