"""Writes the data files of the small world: pictures, questions (VQA), statements (VSR) and the text corpus.

    images/{train,dev,test}_NNNN.{png,jpg}     every third picture is a JPEG; some are not square
    vqa_{split}.jsonl     {"image","question","answer","answers","question_id","answer_type","kind","topic"}
    vsr_{split}.jsonl     VSR's schema: {"image","caption","label","relation"}
    text_{train,test}.jsonl   {"prompt"}: the base LLM's corpus; the tokenizer adds BOS

Splits use disjoint seeds, and disjoint from those of training on the fly.    usage: data.py OUT_DIR
"""
import json
import os
import random
import sys

import questions
import scenes
import texts

SCENES = {"train": 1200, "dev": 150, "test": 300}
GENERAL, SPATIAL, STATEMENTS = 2, 2, 2      # a scene
TEXTS = {"train": 4800, "test": 400}


def lines(path, rows):
    with open(path, "w") as f:
        for r in rows:
            f.write(json.dumps(r) + "\n")


def save_picture(folder, name, number, scene):
    image = scenes.draw(scene)
    if number % 3 == 2:
        name += ".jpg"
        with open(os.path.join(folder, name), "wb") as f:
            f.write(scenes.as_jpeg(image))
    else:
        name += ".png"
        image.save(os.path.join(folder, name), optimize=True)
    return "images/" + name


def distinct(rng, scene, makers, n):
    out, seen = [], set()
    for _ in range(60):
        q = questions.draw(rng, scene, makers)
        if q.text not in seen and len(out) < n:
            seen.add(q.text)
            out.append(q)
    return out


def main(out):
    pictures = os.path.join(out, "images")
    os.makedirs(pictures, exist_ok=True)
    for split, n in SCENES.items():
        vqa, vsr = [], []
        for i in range(n):
            rng = random.Random(f"data {split} {i}")
            scene = scenes.sample(rng)
            image = save_picture(pictures, f"{split}_{i:04d}", i, scene)
            asked = distinct(rng, scene, questions.GENERAL, GENERAL) + distinct(rng, scene, questions.SPATIAL, SPATIAL)
            for q in asked:
                vqa.append({"image": image, "question": q.text, "answer": q.answer, "answers": [q.answer], "question_id": f"{split}-{len(vqa)}",
                            "answer_type": q.answer_type, "kind": q.kind, "topic": q.topic})
            said = set()
            for _ in range(20):
                s = questions.statement(rng, scene)
                if s and s[0] not in said and len(said) < STATEMENTS:
                    said.add(s[0])
                    vsr.append({"image": image, "caption": s[0], "label": s[1], "relation": s[2]})
        lines(os.path.join(out, f"vqa_{split}.jsonl"), vqa)
        lines(os.path.join(out, f"vsr_{split}.jsonl"), vsr)
    for split, n in TEXTS.items():
        rng = random.Random(f"text {split}")
        lines(os.path.join(out, f"text_{split}.jsonl"), ({"prompt": texts.document(rng)} for _ in range(n)))


if __name__ == "__main__":
    main(sys.argv[1])
