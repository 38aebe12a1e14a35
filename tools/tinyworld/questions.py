"""Questions, statements and descriptions about a scene, by templates with paraphrases.

Every maker takes (rng, scene) and returns a Q or None when the scene does not allow it. Spatial words are only used where the
centres differ by scenes.MARGIN on that axis, so a relation is never a matter of taste. Yes and no are equally frequent, and a
false statement names the opposite relation, so text alone does not answer it.
"""
from collections import namedtuple

import scenes

# text, answer, kind ("general" or "spatial"), answer_type ("yes/no", "number", "other"), topic (for tables of accuracy)
Q = namedtuple("Q", "text answer kind answer_type topic")

WORD = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")     # rows and columns are said as words
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "front": "behind", "behind": "front"}
PHRASES = {"left": ("left of", "to the left of"), "right": ("right of", "to the right of"), "above": ("above", "higher than"),
           "below": ("below", "lower than", "under"), "front": ("in front of",), "behind": ("behind",)}
VSR_NAME = {"left": "left of", "right": "right of", "above": "above", "below": "below", "front": "in front of", "behind": "behind"}
VSR_PROMPT = "Is the following statement correct? Answer only with 'Yes' or 'No'.\nStatement: {caption}\nAnswer:"
NEUTRAL = ("Describe how the items are arranged.", "Comment on the overall layout and organization of the scene.",
           "Summarize the structure in terms of grouping or separation.",
           "Explain the relative positioning of objects without naming directions.",
           "Describe patterns of arrangement, such as order or symmetry.")


def relations(scene, a, b):
    """What a is with respect to b: a list out of left, right, above, below, front, behind."""
    out = []
    if abs(a.x - b.x) >= scenes.MARGIN and a.column != b.column:
        out.append("left" if a.x < b.x else "right")
    if abs(a.y - b.y) >= scenes.MARGIN and a.row != b.row:
        out.append("above" if a.y < b.y else "below")
    if scene.pair == (a, b):
        out.append("front")
    if scene.pair == (b, a):
        out.append("behind")
    return out


def pick_relation(rng, scene, depth=0.35):
    """(a, b, relation) that holds; overlapping pairs are asked about their depth more often than by chance."""
    if scene.pair and rng.random() < depth:
        a, b = scene.pair if rng.random() < 0.5 else scene.pair[::-1]
        return a, b, "front" if (a, b) == scene.pair else "behind"
    for _ in range(20):
        a, b = rng.sample(scene.things, 2)
        r = [k for k in relations(scene, a, b) if k not in ("front", "behind")]
        if r:
            return a, b, rng.choice(r)
    return None


def relation(rng, scene, depth=0.35):
    """Is A left of B?"""
    found = pick_relation(rng, scene, depth)
    if not found:
        return None
    a, b, r = found
    yes = rng.random() < 0.5
    said = rng.choice(PHRASES[r if yes else OPPOSITE[r]])
    text = rng.choice(("Is the {a} {r} the {b}?", "Is the {a} {r} the {b}?", "Do you see the {a} {r} the {b}?"))
    return Q(text.format(a=a.name, b=b.name, r=said), "yes" if yes else "no", "spatial", "yes/no", r)


def choice(rng, scene, depth=0.35):
    """Is A left or right of B?"""
    found = pick_relation(rng, scene, depth)
    if not found:
        return None
    a, b, r = found
    words = {"left": "left or right of", "right": "left or right of", "above": "above or below", "below": "above or below",
             "front": "in front of or behind", "behind": "in front of or behind"}[r]
    answer = "in front" if r == "front" else r
    text = rng.choice(("Is the {a} {r} the {b}?", "Is the {a} {r} the {b}?", "Compared with the {b}, is the {a} {s}?"))
    short = words.replace(" of or", " or").removesuffix(" of")
    return Q(text.format(a=a.name, b=b.name, r=words, s=short), answer, "spatial", "other", "choice " + r)


def statement(rng, scene, depth=0.35):
    """One VSR item: (caption, label, relation)."""
    found = pick_relation(rng, scene, depth)
    if not found:
        return None
    a, b, r = found
    label = rng.random() < 0.5
    r = r if label else OPPOSITE[r]
    return f"The {a.name} is {VSR_NAME[r]} the {b.name}.", int(label), VSR_NAME[r]


def vsr(rng, scene, depth=0.35):
    s = statement(rng, scene, depth)
    return s and Q(VSR_PROMPT.format(caption=s[0]), "Yes" if s[1] else "No", "spatial", "yes/no", "vsr")


def topmost(rng, scene):
    """Which one is in front? The easiest question about depth: the answer is read off the thing itself."""
    front = rng.random() < 0.5
    text = rng.choice(("Which object is {p}?", "What is {p}?")).format(p="in front" if front else "behind")
    return Q(text, scene.pair[0 if front else 1].name, "spatial", "other", "topmost")


def overlap(rng, scene, i):
    """Question i (0, 1, 2) about who is in front; only for training, where it would otherwise be rare."""
    return topmost(rng, scene) if i == 0 else (choice if i == 1 else rng.choice((choice, relation, vsr)))(rng, scene, 1.0)


def _between(x, a, b):
    dx, dy = b.x - a.x, b.y - a.y
    n = dx * dx + dy * dy
    f = ((x.x - a.x) * dx + (x.y - a.y) * dy) / n
    return f, abs((x.x - a.x) * dy - (x.y - a.y) * dx) / n ** 0.5


def between(rng, scene):
    """Is A between B and C? Asked of three things about in a line; a no asks for one of the outer two."""
    if len(scene.things) < 3:
        return None
    for _ in range(12):
        x, a, b = rng.sample(scene.things, 3)
        f, off = _between(x, a, b)
        if 0.25 < f < 0.75 and off < 6:
            yes = rng.random() < 0.5
            if not yes:
                x, a = a, x
            return Q(f"Is the {x.name} between the {a.name} and the {b.name}?", "yes" if yes else "no", "spatial", "yes/no", "between")
    return None


def extreme(rng, scene):
    """Which one is furthest to the left?"""
    axis = rng.choice(("left", "right", "top", "bottom"))
    key = {"left": lambda t: t.x, "right": lambda t: -t.x, "top": lambda t: t.y, "bottom": lambda t: -t.y}[axis]
    order = sorted(scene.things, key=key)
    if abs(key(order[0]) - key(order[1])) < scenes.MARGIN:
        return None
    text = rng.choice(("Which shape is closest to the {s}?", "What is nearest to the {s} side?"))
    return Q(text.format(s=axis), order[0].name, "spatial", "other", "extreme")


def half(rng, scene):
    """Is A at the top or at the bottom of the picture?"""
    t = rng.choice(scene.things)
    words, v = rng.choice(((("left", "right"), t.x), (("top", "bottom"), t.y)))
    if abs(v - scenes.FRAME / 2) < scenes.MARGIN / 2:
        return None
    text = rng.choice(("Is the {a} on the {p} or the {q} side?", "Where is the {a}, {p} or {q}?"))
    return Q(text.format(a=t.name, p=words[0], q=words[1]), words[v > scenes.FRAME / 2], "spatial", "other", "half")


def lookup(rng, scene):
    """Which row is A in? Only trained on, as the first step to the others."""
    t = rng.choice(scene.things)
    if rng.random() < 0.5:
        return Q(f"Which row is the {t.name} in?", WORD[t.row], "lookup", "other", "row")
    return Q(f"Which column is the {t.name} in?", WORD[t.column], "lookup", "other", "column")


def colour(rng, scene):
    t = rng.choice(scene.things)
    if sum(o.shape == t.shape for o in scene.things) > 1:
        return None
    text = rng.choice(("What color is the {s}?", "Which color does the {s} have?", "The {s} is what color?"))
    return Q(text.format(s=t.shape), t.colour, "general", "other", "colour")


def shape(rng, scene):
    t = rng.choice(scene.things)
    if sum(o.colour == t.colour for o in scene.things) > 1:
        return None
    text = rng.choice(("What shape is the {c} object?", "What shape does the {c} thing have?", "The {c} object has what shape?"))
    return Q(text.format(c=t.colour), t.shape, "general", "other", "shape")


def count(rng, scene):
    text = rng.choice(("How many objects are there?", "How many shapes are in the picture?", "Count the objects."))
    return Q(text, str(len(scene.things)), "general", "number", "count")


def count_some(rng, scene):
    if rng.random() < 0.5:
        t = rng.choice([t.shape for t in scene.things] + [rng.choice(scenes.SHAPES)])
        return Q(f"How many {t + ('es' if t == 'cross' else 's')} are there?", str(sum(o.shape == t for o in scene.things)), "general", "number", "count some")
    t = rng.choice([t.colour for t in scene.things] + [rng.choice(list(scenes.COLOURS))])
    return Q(f"How many {t} objects are there?", str(sum(o.colour == t for o in scene.things)), "general", "number", "count some")


def exists(rng, scene):
    have = {t.name for t in scene.things}
    yes = rng.random() < 0.5
    if yes:
        name = rng.choice(sorted(have))
    else:                     # half of the absent ones mix a colour and a shape that are both there
        if rng.random() < 0.5:
            name = f"{rng.choice(scene.things).colour} {rng.choice(scene.things).shape}"
        else:
            name = f"{rng.choice(list(scenes.COLOURS))} {rng.choice(scenes.SHAPES)}"
        if name in have:
            return None
    a = "an" if name[0] == "o" else "a"
    text = rng.choice(("Is there {a} {n} in the picture?", "Do you see {a} {n}?", "Is there {a} {n}?"))
    return Q(text.format(a=a, n=name), "yes" if yes else "no", "general", "yes/no", "exists")


def is_colour(rng, scene):
    t = rng.choice(scene.things)
    if sum(o.shape == t.shape for o in scene.things) > 1:
        return None
    yes = rng.random() < 0.5
    c = t.colour if yes else rng.choice([c for c in scenes.COLOURS if c != t.colour])
    return Q(rng.choice(("Is the {s} {c}?", "Is the color of the {s} {c}?")).format(s=t.shape, c=c), "yes" if yes else "no", "general", "yes/no", "is colour")


GENERAL = (colour, shape, count, count_some, exists, is_colour)
SPATIAL = (relation, relation, choice, extreme, half, between)


def where(t):
    """Words for the ninth of the frame a thing is in."""
    v = "top" if t.y < 21.3 else "bottom" if t.y > 42.7 else "middle"
    h = "left" if t.x < 21.3 else "right" if t.x > 42.7 else "center"
    return f"{v} {h}"


def with_article(name):
    return ("an " if name[0] == "o" else "a ") + name


def caption(rng, scene, ordered=True):
    """A description of stage 1 (any order) and of "Describe this image." (top to bottom): everything with its row and column."""
    things = sorted(scene.things, key=lambda t: (t.row, t.column)) if ordered else rng.sample(scene.things, len(scene.things))
    front = f" The {scene.pair[0].name} is in front of the {scene.pair[1].name}." if scene.pair else ""
    return "Scene:" + "".join(f" {t.name} {WORD[t.row]} {WORD[t.column]}." for t in things) + front


def arrangement(rng, scene, prompt):
    """An answer to one of the five neutral prompts."""
    things = sorted(scene.things, key=lambda t: (t.row, t.column))
    number = {2: "two", 3: "three", 4: "four"}[len(things)]
    names = ", ".join("the " + t.name for t in things)
    xs, ys = [t.x for t in things], [t.y for t in things]
    lone = [t.name for t in things if not scene.pair or t not in scene.pair]
    if prompt == 0:
        return f"From top to bottom: {names}."
    if prompt == 1:
        return f"There are {number} objects. " + " ".join(f"The {t.name} is at the {where(t)}." for t in things)
    if prompt == 2:
        if not scene.pair:
            return f"The {number} objects are separate: {names}."
        a, b = scene.pair
        rest = f" Apart from them: {', '.join('the ' + n for n in lone)}." if lone else ""
        return f"The {a.name} overlaps the {b.name}.{rest}"
    if prompt == 3:
        if not scene.pair:
            return f"No object touches another: {names}."
        return f"The {scene.pair[0].name} covers part of the {scene.pair[1].name}."
    if max(ys) - min(ys) < 14:
        return "The objects form a row."
    if max(xs) - min(xs) < 14:
        return "The objects form a column."
    return "The objects are spread without a clear pattern."


def draw(rng, scene, makers):
    """One question out of the makers; tries until one fits."""
    while True:
        q = rng.choice(makers)(rng, scene)
        if q:
            return q
