"""Tokenising and preprocessing per core, in processor time, beside the libraries: the order is A B B A, the best of each counts.

    host.py STAGEDIFF [--megabytes 4] [--pictures 60] [--repeats 5]      needs tools/requirements_host.txt

Tokenizers: LLaMA-3's where `llama-models` is installed, else only those trained here (tools/test_tokenizers.py makes them), beside `tokenizers` with
one thread, tiktoken, sentencepiece and transformers' slow (Python) ones. Text: Python's library in pieces of 1,000 characters. Ours is the whole command,
JSON in and out, less its start; theirs is the bare call. Pictures: JPEG photographs' sizes and a PNG screenshot's, as files; ours `preprocess`, its
tensors written to memory; theirs Pillow and transformers' slow CLIPImageProcessor, and the same steps by Pillow and numpy alone."""
import argparse
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import numpy as np  # noqa: E402
import test_images  # noqa: E402
import test_tokenizers  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

transformers.logging.set_verbosity_error()


def of_child(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_call(call):
    begin = time.process_time()
    call()
    return time.process_time() - begin


def compare(title, unit, amount, ours, peers, repeats):
    best = {}
    for i in range(repeats):
        order = [("stagediff", ours)] + list(peers.items())
        for name, run in order if i % 2 == 0 else order[::-1]:
            best[name] = min(best.get(name, 1e9), run())
    row = ", ".join(f"{name} {amount / seconds:,.0f} ({seconds / best['stagediff']:.1f}x)" for name, seconds in best.items())
    print(f"{title}: {unit} per second and core: {row}", flush=True)


# ---------------------------------------------------------------- text
def texts(size):
    text = ""
    for path in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_text(errors="replace")
        if len(text) > size:
            break
    return [text[i:i + 1000] for i in range(0, min(len(text), size), 1000)]


def tokenize(program, folder, lines, work):
    def command(name, part):
        path = os.path.join(work, name)
        with open(path, "w") as f:
            f.writelines(json.dumps({"text": t}) + "\n" for t in part)
        return [program, "tokenize", "--model", folder, "--in", path, "--out", os.path.join(work, "ids.jsonl")]
    whole, start = command("all.jsonl", lines), command("one.jsonl", lines[:1])
    return lambda: of_child(whole) - of_child(start)


def slow_gpt2(folder, special):
    value = json.load(open(os.path.join(folder, "tokenizer.json")))["model"]
    json.dump(value["vocab"], open(os.path.join(folder, "vocab.json"), "w"))
    open(os.path.join(folder, "merges.txt"), "w").write("#version: 0.2\n" + "\n".join(value["merges"]) + "\n")
    return transformers.GPT2Tokenizer(os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt"), unk_token=special, bos_token=special, eos_token=special)


def bench_text(options, work):
    lines = texts(options.megabytes * 1_000_000)
    small = lines[:len(lines) // 8]   # for the slow ones
    wanted = argparse.Namespace(model=[])
    for name, folder, references, _, special in test_tokenizers.all_tokenizers(work, wanted):
        if name not in ("LLaMA-3 (real)", "GPT-2 kind (trained)", "tokenizer.model alone", "tokenizer.json, LLaMA-2's"):
            continue
        peers, count = {}, sum(map(len, next(iter(references.values()))(lines)))
        if os.path.exists(os.path.join(folder, "tokenizer.json")):
            tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
            peers["tokenizers"] = lambda: of_call(lambda: tok.encode_batch(lines))
        if "tiktoken" in references:
            peers["tiktoken"] = lambda: of_call(lambda: references["tiktoken"](lines))
        if "sentencepiece" in references:
            import sentencepiece
            sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer.model"))
            peers["sentencepiece"] = lambda: of_call(lambda: [sp.encode(t) for t in lines])
            slow = transformers.LlamaTokenizer.from_pretrained(folder, legacy=True)
            peers["LlamaTokenizer (slow)"] = lambda: 8 * of_call(lambda: [slow(t).input_ids for t in small])
        if name.startswith("GPT-2"):
            slow = slow_gpt2(folder, special[0])
            slow(lines[0])

            def fresh():
                slow.cache.clear()
                return 8 * of_call(lambda: [slow(t).input_ids for t in small])
            peers["GPT2Tokenizer (slow)"] = fresh
        compare(name, "tokens", count, tokenize(options.stagediff, folder, lines, work), peers, options.repeats)


# ---------------------------------------------------------------- pictures
def by_hand(path):
    """The processor's steps for a crop, without its overhead."""
    image = Image.open(path).convert("RGB")
    short = min(image.size)
    image = image.resize([336 if s == short else int(336 * s / short) for s in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - 336) // 2, (image.height - 336) // 2
    values = np.asarray(image.crop((left, top, left + 336, top + 336))).astype(np.float32) * np.float32(1 / 255)
    return ((values - np.float32(test_images.MEAN)) / np.float32(test_images.STD)).transpose(2, 0, 1)


def bench_pictures(options, work):
    rng = random.Random(1)
    folder = os.path.join(work, "crop")
    os.makedirs(folder)
    json.dump(test_images.NEW, open(os.path.join(folder, "preprocessor_config.json"), "w"))
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    for title, end, (w, h) in (("JPEG 640 x 480", "jpg", (640, 480)), ("JPEG 2048 x 1536", "jpg", (2048, 1536)), ("PNG 1280 x 720", "png", (1280, 720))):
        n = max(4, options.pictures * 640 * 480 // (w * h))
        files = [os.path.join(work, f"{i}_{w}.{end}") for i in range(n)]
        for path in files:   # smooth at the scale of a photograph: noise would make the decoder's part larger than it is
            small = test_images.scene(w // 8, h // 8, rng)
            small.resize((w, h), Image.Resampling.BICUBIC).save(path, **({"quality": 88} if end == "jpg" else {}))
        images = [x for path in files for x in ("--image", path)]
        command = [options.stagediff, "preprocess", "--threads", "1", "--model", folder, "--out", "/dev/null"]
        peers = {"CLIPImageProcessor (slow)": lambda: of_call(lambda: [processor(Image.open(f), return_tensors="np") for f in files]),
                 "Pillow and numpy": lambda: of_call(lambda: [by_hand(f) for f in files])}
        compare(title, "pictures", n, lambda: of_child(command + images), peers, options.repeats)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("stagediff")
    parser.add_argument("--megabytes", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench_text(options, work)
        bench_pictures(options, work)


if __name__ == "__main__":
    main()
