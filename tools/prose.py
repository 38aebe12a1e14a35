"""English prose of a Debian machine as data lines: paragraphs of manual pages and of /usr/share/doc, each once.

    prose.py OUT.jsonl [--megabytes 6] [--seed 0] [--start TEXT] [ROOT ...]          default roots: /usr/share/man/man[1-8], /usr/share/doc

A paragraph is kept when it reads as prose: 25 words or more, nine in ten characters letters, blanks or usual punctuation, common English words among
them. Paragraphs of one file stay together in lines {"prompt": TEXT} of about 1,800 characters; lines are shuffled by the seed. What packages are
installed decides what is found; the same machine gives the same file."""
import argparse
import glob
import gzip
import html
import json
import os
import random
import re
import sys

LINE, WORDS = 1800, 25
COMMON = set("the of and to a in is that for it as be on with this are by or not an if from can which will you used when has".split())
ESCAPES = [(r"\\f[BIRPC1-4]|\\f\(..|\\f\[[^]]*\]", ""), (r"\\s[-+]?\d+|\\[&|^/,%:c]", ""), (r"\\\(aq|\\\[aq\]|\\\(cq|\\\[cq\]|\\\(oq", "'"), (r"\\\(lq|\\\(rq|\\\(dq|\\\*\(lq|\\\*\(rq", '"'),
           (r"\\\(em|\\\(en|\\-|\\\(hy", "-"), (r"\\\(bu", ""), (r"\\[e\\]", r"\\"), (r"\\[ ~0]", " "), (r'\\".*', ""), (r"\\\*?\(..|\\\*?\[[^]]*\]|\\.", "")]


def from_man(text):
    """Running text of a page in man or mdoc macros: requests that set fonts keep their words, the others end a paragraph."""
    fonts = {"B", "I", "R", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB", "Nm", "Fl", "Ar", "Cm", "Em", "Sy", "Pa", "Xr", "Va", "Ev", "Dv", "Li", "Ql", "Dq", "Sq"}
    out, skipped = [], False
    for line in text.splitlines():
        if re.match(r"[.']\s*(nf|EX|TS|Bd|de|ig)\b", line):
            skipped = True
        if re.match(r"[.']\s*(fi|EE|TE|Ed|\.)\s*$", line):
            skipped = False
            continue
        if skipped or line.startswith((".\\\"", "'\\\"")):
            continue
        if line[:1] in ".'":
            parts = line[1:].split(None, 1)
            if parts and parts[0] in fonts and len(parts) == 2:
                line = " ".join(quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', parts[1]))
            else:
                out.append("")
                continue
        for pattern, to in ESCAPES:
            line = re.sub(pattern, to, line)
        out.append(line)
    return "\n".join(out)


def from_html(text):
    text = re.sub(r"(?is)<(script|style|pre|head)\b.*?</\1>", "\n\n", text)
    text = re.sub(r"(?i)</?(p|div|li|h\d|td|tr|br|dd|dt)\b[^>]*>", "\n\n", text)
    return html.unescape(re.sub(r"<[^>]*>", "", text))


def read(path):
    try:
        raw = gzip.open(path).read(4 << 20) if path.endswith(".gz") else open(path, "rb").read(4 << 20)
        text = raw.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return ""
    if "/man/" in path:
        return "" if text.startswith(".so ") else from_man(text)
    return from_html(text) if re.search(r"\.html?(\.gz)?$", path) else text


def is_prose(p):
    words = p.split()
    if len(words) < WORDS or sum(w.lower() in COMMON for w in words) < len(words) / 6:
        return False
    return sum(c.isalpha() or c in " ,.;:'\"-()" for c in p) >= 0.9 * len(p) and max(map(len, words)) <= 40


def files(roots):
    for root in roots:
        for folder, inside, names in os.walk(root):
            inside.sort()
            yield from (os.path.join(folder, n) for n in sorted(names) if "/man/" in folder or re.search(r"(?i)\.(txt|md|rst|html?)(\.gz)?$|readme|news|faq|howto|manual|guide|intro", n))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("roots", nargs="*")
    p.add_argument("--megabytes", type=float, default=6)
    p.add_argument("--start", default="", help="text before every line, such as a BOS")
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args()
    seen, lines, pages = set(), [], list(files(o.roots or sorted(glob.glob("/usr/share/man/man[1-8]")) + ["/usr/share/doc"]))
    random.Random(o.seed).shuffle(pages)
    size = 0
    for path in pages:
        held = ""
        for paragraph in re.split(r"\n\s*\n", read(path)):
            paragraph = " ".join(paragraph.split())
            if paragraph in seen or not is_prose(paragraph):
                continue
            seen.add(paragraph)
            held += ("\n\n" if held else "") + paragraph
            if len(held) >= LINE:
                lines.append(held[:2 * LINE])
                size, held = size + len(lines[-1]), ""
        if len(held) >= LINE / 6:
            lines.append(held)
            size += len(held)
        if size >= o.megabytes * 1e6:
            break
    if size < 0.9e6 * o.megabytes:
        sys.exit(f"prose.py: {size / 1e6:.1f} MB of prose found where {o.megabytes:.1f} were asked for; install manpages-dev and some documentation, or name a folder of text")
    random.Random(o.seed + 1).shuffle(lines)
    with open(o.out + ".tmp", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"prompt": o.start + x}, ensure_ascii=False) + "\n" for x in lines)
    os.replace(o.out + ".tmp", o.out)
    print(f"{o.out}: {len(lines)} lines, {size / 1e6:.1f} MB of text", flush=True)


if __name__ == "__main__":
    main()
