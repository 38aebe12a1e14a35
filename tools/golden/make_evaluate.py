"""Golden answers of the official VQA evaluation: random strings full of what its rules are about, normalised and scored by the
published implementation, which this script reads from a checkout of GT-Vision-Lab/VQA (not part of this repository).

usage: make_evaluate.py VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py OUT.json [CASES]
"""
import json
import random
import re
import sys

SEED = 20


def official(path):
    """The class VQAEval; the file is Python 2, its print statements are dropped."""
    lines = ["" if re.match(r"\s*print ", line) else line for line in open(path, encoding="utf-8").read().split("\n")]
    space = {}
    exec(compile("\n".join(lines), path, "exec"), space)
    maker = space["VQAEval"]

    class Questions:
        def __init__(self, qa):
            self.qa = qa

        def getQuesIds(self):
            return list(self.qa)

    def evaluate(answer, references):
        answers = [{"answer": r, "answer_id": i} for i, r in enumerate(references)]
        e = maker(Questions({0: {"answers": answers, "question_type": "t", "answer_type": "a"}}), Questions({0: {"answer": answer}}), n=12)
        e.updateProgress = lambda *_: None
        kept = []
        e.setEvalQA = lambda _, accuracy: kept.append(accuracy)
        e.evaluate()
        return kept[0]

    e = maker(Questions({}), Questions({}))
    return evaluate, lambda text: e.processDigitArticle(e.processPunctuation(text.replace("\n", " ").replace("\t", " ").strip())), e


def pieces(e):
    words = list(e.contractions) + list(e.contractions.values()) + list(e.manualMap) + e.articles * 6
    words += ["yes", "No", "2", "red", "Left", "T-shirt", "CAF\u00c9", "\u00c4\u00d6", "\u0130x", "\u0416\u0414", "3.5", "1,000", "a.m.", "U.S.A", "10", "o'clock", "don't"]
    signs = e.punct + [".", "..", ",", "'", ":", "%", "$", "&", "*", "#"]
    blanks = [" "] * 8 + ["", "", "  ", "\n", "\t", "\u00a0", "\u2003", "\r", "\u3000"]
    return words, signs, blanks


def text(rng, parts):
    words, signs, blanks = parts
    out = ""
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5, 9])):
        kind = rng.random()
        piece = rng.choice(words) if kind < 0.65 else rng.choice(signs) if kind < 0.9 else str(rng.randrange(2000))
        out += (piece.upper() if rng.random() < 0.1 else piece) + rng.choice(blanks if rng.random() < 0.7 else [""])
    return out + ("." * 40 if rng.random() < 0.01 else "")


def main(path, out, cases=400):
    evaluate, normalise, e = official(path)
    rng, parts, rows = random.Random(SEED), pieces(e), []
    for i in range(cases):
        answer = text(rng, parts)
        pool = [answer, normalise(answer), answer.upper(), text(rng, parts), text(rng, parts)][:rng.choice([1, 2, 3, 5])]
        n = rng.choice([2, 3, 5, 9, 10, 10, 10])
        references = [rng.choice(pool) for _ in range(n)]
        rows.append([answer, normalise(answer), references, evaluate(answer, references)])
    with open(out, "w", encoding="utf-8") as f:
        f.write('{"source": "GT-Vision-Lab/VQA vqaEval, seed %d", "cases": [\n' % SEED)
        f.write(",\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:3], *(int(a) for a in sys.argv[3:4]))
