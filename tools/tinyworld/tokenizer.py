"""The tokenizer in LLaMA-3's form: byte-level BPE with its regex, ignore_merges, its special tokens and one BOS.

Trained on the text world, so that nearly every word is one token and prompts stay short.   usage: tokenizer.py OUT_DIR
"""
import json
import os
import random
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import questions
import scenes
import texts

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>",
           "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
SPECIAL += [f"<|reserved_special_token_{i}|>" for i in range(3, 9)]
CHAT = ("{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
        "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}")


def corpus():
    """Text for the merges: every sentence the world can say, and each word in its four spellings."""
    rng = random.Random("tokenizer")
    words = list(scenes.COLOURS) + list(scenes.SHAPES) + ["yes", "no", "in", "left", "right", "above", "below", "behind", "top", "bottom", *questions.WORD]
    for w in words:
        for s in (w, w.capitalize(), w.upper() if w in ("yes", "no") else w):
            for _ in range(40):
                yield s
                yield "the " + s
    for _ in range(60):
        yield from (texts.TEXT_SYSTEM, texts.VLM_SYSTEM, *questions.NEUTRAL, "Describe this image.", "What do you see?", *texts.FACTS)
        yield from (w for qa in texts.ASKED for w in qa)
        yield from (" the " + w for w in texts.ITEMS)
        yield "system user assistant"
        yield questions.VSR_PROMPT
    for _ in range(3000):
        yield texts.document(rng)
        s = scenes.sample(rng)
        for k in range(5):
            yield questions.arrangement(rng, s, k)


def build(folder):
    tok = Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    strip = (t.replace("<|eot_id|>", "\n\n").replace("<|start_header_id|>", "").replace("<|end_header_id|>", "") for t in corpus())
    tok.train_from_iterator(strip, trainers.BpeTrainer(vocab_size=1280 - len(SPECIAL), min_frequency=20, show_progress=False,
                                                       initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tok.add_special_tokens(SPECIAL)
    bos = tok.token_to_id(SPECIAL[0])
    tok.post_processor = processors.Sequence([processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True), processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A {SPECIAL[0]}:1 $B:1", special_tokens=[(SPECIAL[0], bos)])])
    os.makedirs(folder, exist_ok=True)
    tok.save(os.path.join(folder, "tokenizer.json"))
    return tok


def write_companions(folder, tok):
    """tokenizer_config.json and special_tokens_map.json"""
    added = {str(tok.token_to_id(s)): {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True} for s in SPECIAL}
    config = {"added_tokens_decoder": added, "bos_token": SPECIAL[0], "chat_template": CHAT, "clean_up_tokenization_spaces": True, "eos_token": "<|eot_id|>",
              "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 1024, "pad_token": "<|finetune_right_pad_id|>",
              "tokenizer_class": "PreTrainedTokenizerFast"}
    names = {"bos_token": SPECIAL[0], "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(value, f, indent=2)
            f.write("\n")


def load(folder):
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


if __name__ == "__main__":
    t = build(sys.argv[1])
    write_companions(sys.argv[1], t)
    print("vocabulary", t.get_vocab_size())
