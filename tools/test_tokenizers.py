"""Ids and text of `stagediff tokenize` and `detokenize` against the libraries that own the formats, on many generated strings.

    test_tokenizers.py STAGEDIFF [--count 20000] [--seed N] [--model DIR ...] [--decoded 150]

Tokenizers: LLaMA-3's real one where PyPI's `llama-models` is installed (its tiktoken ranks written as a tokenizer.json; reference: tiktoken, and
`tokenizers` on that file); every --model DIR with a tokenizer.json (reference: `tokenizers`); GPT-2's kind and SentencePiece models trained here,
the latter as tokenizer.model (reference: sentencepiece on the text between special tokens, and transformers' slow LlamaTokenizer where
transformers < 5 is installed) and as tokenizer.json in every spelling known of LLaMA-2's (reference: `tokenizers`).
Strings: languages, emoji, code, control and combining characters, contractions, runs of white space, special tokens, random characters and random
bytes read as text. Prints one line per tokenizer; exit status 1 when an id differs."""
import argparse
import base64
import importlib.util
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import sysconfig
import tempfile

import sentencepiece
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>",
                  "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
LLAMA3_SPECIAL += [f"<|reserved_special_token_{i}|>" for i in range(3, 248)]
BLANK = "\u2581"

# ---------------------------------------------------------------- strings
SENTENCES = """The red cube is left of the blue sphere, isn't it? They've said we'll see; I'd say HE'S right.
Größe, naïve Café, smörgåsbord, œuvre, Ærøskøbing, İstanbul'da ılık
Съешь ещё этих мягких французских булок, да выпей чаю
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία
日本語の文章は空白なしで書かれます。カタカナとひらがな。
敏捷的棕色狐狸跳过了懒狗。繁體中文也一樣
키스의 고유조건은 입술끼리 만나야 하고
نص حكيم له سر قاطع وذو شأن عظيم
דג סקרן שט בים מאוכזב ולפתע מצא חברה
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า
Tiếng Việt có nhiều dấu thanh điệu
የኢትዮጵያ ፊደል ሀሁሂሃሄህሆ
ქართული ანბანი და Հայերեն այբուբեն
for (int i = 0; i < n; ++i) { x[i] *= 0.5f; } // half
def f(x: int) -> str:\n\treturn f"{x:>08b}"  # 12345
<a href="https://example.org/?q=1&r=%20#top">link</a>
SELECT * FROM t WHERE a='b' AND c<>3;
👩\u200d👩\u200d👧\u200d👦 👍🏽 🇩🇪🇫🇷 ❤️‍🔥 #️⃣ 😀😃
3.14159 1,234,567 0x1F 1e-9 ½ ² Ⅷ ٠١٢٣ ४५६ 10:30pm""".split("\n")
SENTENCES = [s.encode().decode("unicode_escape").encode("latin-1").decode() if "\\" in s else s for s in SENTENCES]
POOLS = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", " \t\n\r  \u00a0\u3000\u2028\x85\x0b\x0c\x1c\x1f\u180e\u200b\u2009", "'’sStTrReEvVmMlLdD ſ\u212a",
         "äöüßéèñçÅØæœǅ", "日本語中文한국어ひらがなカタカナ", "😀👩\u200d👧👍🏽🇩🇪\ufe0f", "!?.,;:-_()[]{}<>|/\\\"'`~@#$%^&*+=", "٠١٢३४५Ⅷ½²①", "\u0301\u0308\u0323\u200d\u200b\ufeff\u00ad\u0e31",
         "ЖдиПриветЁё", "שלוםمرحبا", "\x00\x01\x07\x1b\x7f\u0080\ufffd\ufffe", BLANK + "_ ", "\U00010348\U0001d54f\U000e0041\U0010ffff"]
CONTRACTIONS = ["'s", "'S", "'t", "'T", "'re", "'RE", "'ve", "'Ve", "'m", "'ll", "'LL", "'lL", "'d", "’s", "'ſ", "''s", "'st", "n't", "I'm", "we'll've", "x'", "'"]
SPACES = [" ", "  ", "   ", "\n", "\n\n", " \n ", "\r\n", "\t", "\u00a0", "\u3000", " " * 17, "\n" * 9, "\u2028"]


def code_lines():
    """Lines of Python's own library: real code, comments and long words."""
    folder, lines = pathlib.Path(sysconfig.get_paths()["stdlib"]), []
    for name in ("argparse", "ast", "calendar", "csv", "difflib", "enum", "inspect", "json/decoder", "locale", "random", "statistics", "textwrap", "tokenize"):
        if (folder / f"{name}.py").exists():
            lines += (folder / f"{name}.py").read_text(errors="replace").split("\n")
    return [s for s in lines if s.strip()]


def strings(count, seed, special):
    rng, lines = random.Random(seed), code_lines()
    words = [w for s in SENTENCES + lines[:2000] for w in s.split() if len(w) < 40]

    def mixed():
        return "".join("".join(rng.choice(pool) for _ in range(rng.randint(1, 8))) for pool in rng.choices(POOLS, k=rng.randint(1, 6)))

    def characters():
        low, high = rng.choice([(0, 0x7f), (0, 0x2ff), (0x300, 0x1fff), (0x2000, 0x2fff), (0x3000, 0xd7ff), (0xe000, 0xffff), (0x10000, 0x1ffff), (0x20000, 0x10ffff)])
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 16)))

    kinds = [
        lambda: rng.choice(SENTENCES)[rng.randint(0, 8):rng.randint(9, 80)],
        lambda: " ".join(rng.choice(words) for _ in range(rng.randint(1, 20))),
        lambda: rng.choice(lines) + rng.choice(["", "\n", "\r\n"]) + rng.choice(lines),
        lambda: "\n".join(rng.choice(lines) for _ in range(rng.randint(2, 6))),
        lambda: "".join(rng.choice(words) + rng.choice(SPACES) for _ in range(rng.randint(1, 10))),
        lambda: rng.choice(["", " "]) + "".join(rng.choice(words)[:6] + rng.choice(CONTRACTIONS) + rng.choice(["", " ", "."]) for _ in range(rng.randint(1, 6))),
        mixed, mixed, characters, characters,
        lambda: bytes(rng.randint(0, 255) for _ in range(rng.randint(1, 40))).decode("latin-1"),
        lambda: bytes(rng.randint(0, 255) for _ in range(rng.randint(1, 60))).decode("utf-8", "replace"),
        lambda: "".join(rng.choice(special + SPACES[:4] + words[:200] + [special[0][:-1], "<", "|>"]) for _ in range(rng.randint(1, 8))),
        lambda: "".join(c + chr(rng.randint(0x300, 0x36f)) * rng.randint(0, 3) for c in rng.choice(words)),
        lambda: rng.choice([" ", "\n", "\t", "a", "1", "=", "é", "日", BLANK, "<"]) * rng.randint(1, 200),
    ]
    out = ["", " ", "  ", "\n", "a", " a", "a ", BLANK, " " + BLANK, "\x00", "<s>", "</s>x", " <unk> ", "<0x41>"] + SENTENCES
    while len(out) < count:
        out.append(rng.choice(kinds)())
    return out


# ---------------------------------------------------------------- tokenizers: (name, folder, {reference: function of a list of texts}, decode)
def write_json(folder, name, value):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "w") as f:
        json.dump(value, f)


def library(folder):
    tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    return lambda texts: [e.ids for e in tok.encode_batch(texts)], lambda ids: tok.decode(ids, skip_special_tokens=False)


def llama3(path, folder):
    import tiktoken
    ranks = {base64.b64decode(a): int(b) for a, b in (line.split() for line in open(path, "rb") if line.strip())}
    table = {}
    for b in range(256):
        table[b] = chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174 else chr(256 + sum(not (33 <= x <= 126 or 161 <= x <= 172 or x >= 174) for x in range(b)))
    spell = lambda data: "".join(table[b] for b in data)  # noqa: E731
    merges = []
    for token, rank in ranks.items():   # the two parts that the lower ranks leave
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            best = min((ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1))
            if best[0] >= rank:
                break
            parts[best[1]:best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]
        if len(parts) == 2:
            merges.append((rank, [spell(parts[0]), spell(parts[1])]))
    ids = {name: len(ranks) + i for i, name in enumerate(LLAMA3_SPECIAL)}
    added = [{"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for name, i in ids.items()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    bos = LLAMA3_SPECIAL[0]
    write_json(folder, "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [byte_level, {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}}}]},
        "decoder": byte_level, "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                                         "byte_fallback": False, "ignore_merges": True, "vocab": {spell(t): r for t, r in ranks.items()}, "merges": [m for _, m in sorted(merges, key=lambda m: m[0])]}})
    encode, decode = library(folder)
    encoding = tiktoken.Encoding("llama3", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=ids)
    return "LLaMA-3 (real)", folder, {"tokenizers": encode, "tiktoken": lambda texts: [[ids[bos]] + encoding.encode(t, allowed_special="all") for t in texts]}, decode, LLAMA3_SPECIAL[:11]


def gpt2(folder, corpus):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=6000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tok.add_special_tokens(special)
    os.makedirs(folder, exist_ok=True)
    tok.save(os.path.join(folder, "tokenizer.json"))
    value = json.load(open(os.path.join(folder, "tokenizer.json")))
    value["model"]["merges"] = [" ".join(m) for m in value["model"]["merges"]]   # the older spelling
    write_json(folder, "tokenizer.json", value)
    encode, decode = library(folder)
    return "GPT-2 kind (trained)", folder, {"tokenizers": encode}, decode, special


def train_pieces(path, corpus, **options):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    settings = dict(model_type="bpe", vocab_size=3000, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
                    allow_whitespace_only_pieces=True, character_coverage=0.9995, num_threads=1, max_sentence_length=100000, minloglevel=2) | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=open(path, "wb"), **settings)
    return sentencepiece.SentencePieceProcessor(model_file=path)


def pieces_model(name, folder, sp, side, special, legacy=True):
    """tokenizer.model alone; the texts between special tokens go to sentencepiece one by one."""
    for file, value in side.items():
        write_json(folder, file, value)
    ids = {t: sp.piece_to_id(t) if sp.piece_to_id(t) != sp.unk_id() or t == "<unk>" else i for t, i in special.items()}
    pattern = re.compile("(" + "|".join(re.escape(t) for t in sorted(ids, key=len, reverse=True)) + ")")

    def encode(text):
        out = [sp.bos_id()]
        for part in pattern.split(text):
            out += [ids[part]] if part in ids else sp.encode(part) if part else []
        return out

    found = {"sentencepiece": lambda texts: [encode(t) for t in texts]} if legacy else {}
    try:
        import transformers
        if int(transformers.__version__.split(".")[0]) < 5:
            transformers.logging.set_verbosity_error()
            slow = transformers.LlamaTokenizer.from_pretrained(folder, legacy=legacy)
            found["LlamaTokenizer"] = lambda texts: [slow(t).input_ids for t in texts]
    except ImportError:
        pass
    return name, folder, found, None, list(ids)


def pieces_json(name, folder, sp, special, extra=(), normalizer=None, pre=None, decoder=None, normalized=False, split=False):
    """The same pieces as tokenizer.json: a merge for every way to make a piece of two, the best score first."""
    n = sp.get_piece_size()
    vocab = {sp.id_to_piece(i): i for i in range(n)}
    merges = []
    for piece, i in vocab.items():
        if not (sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i)):
            parts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
            merges += [(-sp.get_score(i), i, vocab[a], vocab[b], a, b) for a, b in parts if a in vocab and b in vocab]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[m[4:] for m in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer, tok.decoder = normalizer, decoder
    if pre:
        tok.pre_tokenizer = pre
    tok.add_special_tokens([tokenizers.AddedToken(t, normalized=normalized, special=True) for t in special])
    tok.add_tokens(list(extra))
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])])
    os.makedirs(folder, exist_ok=True)
    tok.save(os.path.join(folder, "tokenizer.json"))
    encode, decode = library(folder)
    return name, folder, {"tokenizers": encode}, decode, list(special) + [str(t) for t in extra]


def all_tokenizers(folder, options):
    corpus = (code_lines() + SENTENCES * 20) * 2
    at = lambda *parts: os.path.join(folder, *parts)  # noqa: E731
    spec = importlib.util.find_spec("llama_models")
    if spec and spec.submodule_search_locations:
        yield llama3(os.path.join(list(spec.submodule_search_locations)[0], "llama3", "tokenizer.model"), at("llama3"))
    for model in options.model:
        encode, decode = library(model)
        special = [t.content for t in Tokenizer.from_file(os.path.join(model, "tokenizer.json")).get_added_tokens_decoder().values()][:8]
        yield model, model, {"tokenizers": encode}, decode, special
    yield gpt2(at("gpt2"), corpus)

    basic = {"<unk>": 0, "<s>": 1, "</s>": 2}
    sp = train_pieces(at("model", "tokenizer.model"), corpus)
    n = sp.get_piece_size()
    yield pieces_model("tokenizer.model alone", at("model"), sp, {}, basic)
    plain = sentencepiece.SentencePieceProcessor(model_file=at("model", "tokenizer.model"))
    os.makedirs(at("llava"))
    pathlib.Path(at("llava", "tokenizer.model")).write_bytes(pathlib.Path(at("model", "tokenizer.model")).read_bytes())
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    yield pieces_model("tokenizer.model, tokens beside it", at("llava"), plain, {
        "tokenizer_config.json": {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "legacy": True,
                                  "tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {str(i): flags | {"content": t} for i, t in ((0, "<unk>"), (1, "<s>"), (2, "</s>"), (n, "<image>"), (n + 1, "<pad>"))}},
        "special_tokens_map.json": {"bos_token": {"content": "<s>"} | flags, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        "added_tokens.json": {"<image>": n, "<pad>": n + 1}}, basic | {"<image>": n, "<pad>": n + 1})
    os.makedirs(at("new"))
    pathlib.Path(at("new", "tokenizer.model")).write_bytes(pathlib.Path(at("model", "tokenizer.model")).read_bytes())
    yield pieces_model("tokenizer.model, not legacy", at("new"), plain, {"tokenizer_config.json": {"legacy": False, "tokenizer_class": "LlamaTokenizer"}}, basic, legacy=False)
    yield pieces_model("tokenizer.model, pieces across blanks", at("across"), train_pieces(at("across", "tokenizer.model"), corpus, split_by_whitespace=False, vocab_size=2500), {}, basic)
    yield pieces_model("tokenizer.model, no dummy prefix", at("bare"), train_pieces(at("bare", "tokenizer.model"), corpus, add_dummy_prefix=False, vocab_size=1500), {}, basic)
    yield pieces_model("tokenizer.model, the user's symbols", at("user"), train_pieces(at("user", "tokenizer.model"), corpus, user_defined_symbols=["return", "self.x", "日本", "==="], vocab_size=1500), {}, basic)

    legacy = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    steps = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    metaspace = lambda scheme, split=False: pre_tokenizers.Metaspace(BLANK, prepend_scheme=scheme, split=split)  # noqa: E731
    added = [tokenizers.AddedToken("<image>", normalized=False, special=True), tokenizers.AddedToken("<pad>", normalized=False, special=True)]
    strips = [tokenizers.AddedToken("<image>", normalized=False, special=True, lstrip=True), tokenizers.AddedToken("foo bar", normalized=True), tokenizers.AddedToken("<r>", rstrip=True, normalized=False)]
    yield pieces_json("tokenizer.json, LLaMA-2's", at("j1"), sp, basic, added, legacy, None, steps)
    yield pieces_json("tokenizer.json, normalized specials", at("j2"), sp, basic, strips, legacy, None, steps, normalized=True)
    yield pieces_json("tokenizer.json, Metaspace first", at("j3"), sp, basic, added, None, metaspace("first"), decoders.Metaspace(BLANK, prepend_scheme="first"))
    yield pieces_json("tokenizer.json, Metaspace always", at("j4"), sp, basic, strips, None, metaspace("always"), steps)
    yield pieces_json("tokenizer.json, Metaspace split", at("j5"), sp, basic, added, None, metaspace("always", True), decoders.Metaspace(BLANK, prepend_scheme="always"))
    yield pieces_json("tokenizer.json, no prefix", at("j6"), sp, basic, added, normalizers.Replace(" ", BLANK), None, decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]))
    across = sentencepiece.SentencePieceProcessor(model_file=at("across", "tokenizer.model"))
    yield pieces_json("tokenizer.json, pieces across blanks", at("j7"), across, basic, added, legacy, None, steps)


# ---------------------------------------------------------------- the comparison
def ours(program, folder, texts, work):
    write, read = os.path.join(work, "in.jsonl"), os.path.join(work, "out.jsonl")
    with open(write, "w") as f:
        f.writelines(json.dumps({"text": t}) + "\n" for t in texts)
    subprocess.run([program, "tokenize", "--model", folder, "--in", write, "--out", read], check=True)
    return [json.loads(line)["ids"] for line in open(read)]


def decoded(program, folder, ids):
    run = subprocess.run([program, "detokenize", "--model", folder, "--ids", ",".join(map(str, ids))], stdout=subprocess.PIPE, check=True)
    return run.stdout.decode()[:-1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("stagediff")
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--decoded", type=int, default=150)
    parser.add_argument("--seed", type=int, default=20240731)
    parser.add_argument("--model", action="append", default=[], help="folder with a tokenizer.json")
    options = parser.parse_args()
    bad, total = 0, 0
    print(f"tokenizers {tokenizers.__version__}, sentencepiece {sentencepiece.__version__}, seed {options.seed}")
    with tempfile.TemporaryDirectory() as work:
        for name, folder, references, decode, special in all_tokenizers(work, options):
            texts = strings(options.count, options.seed, special)
            got, line = ours(options.stagediff, folder, texts, work), f"{name:40} {len(texts)} texts"
            for reference, encode in references.items():
                wrong = [(t, g, w) for t, g, w in zip(texts, got, encode(texts)) if g != w]
                line += f", {reference}: {len(wrong)} differ"
                bad, total = bad + len(wrong), total + len(texts)
                for t, g, w in wrong[:3]:
                    print(f"  {t!r}\n    ours {g}\n    {reference} {w}")
            if decode:
                rng = random.Random(options.seed)
                some = [ids for ids in rng.sample(got, options.decoded // 2) if ids]
                size = Tokenizer.from_file(os.path.join(folder, "tokenizer.json")).get_vocab_size()
                some += [[rng.randrange(rng.choice((size, min(size, 300)))) for _ in range(rng.randint(1, 12))] for _ in range(options.decoded // 2)]
                wrong = [(ids, decoded(options.stagediff, folder, ids), decode(ids)) for ids in some if decoded(options.stagediff, folder, ids) != decode(ids)]
                line += f"; {len(some)} decoded: {len(wrong)} differ"
                bad += len(wrong)
                for ids, g, w in wrong[:3]:
                    print(f"  {ids}\n    ours {g!r}\n    tokenizers {w!r}")
            print(line, flush=True)
    print(f"{total} comparisons, {bad} differ")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
