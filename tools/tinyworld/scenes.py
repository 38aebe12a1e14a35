"""Scenes of the small world: what is where, and how it is drawn.

A scene is two to four coloured shapes in a square frame of 64 x 64 units (the frame the vision tower sees after padding).
A picture may be smaller than its frame on one axis (non-square files); the rest of the frame is then LLaVA's padding colour.
Each (colour, shape) pair occurs once, so "the red circle" always names one thing. At most one pair of things overlaps; who is
in front is part of the scene. Everything follows from a random.Random, so a seed is a scene.
"""
import io
import math
import random

import numpy as np
from PIL import Image

FRAME = 64
CELL = 8                      # one patch of the tower; rows and columns of the text are the same 8 x 8 cells
COLOURS = {"red": (214, 40, 44), "green": (40, 165, 62), "blue": (44, 76, 214), "yellow": (236, 214, 48),
           "purple": (140, 52, 178), "orange": (242, 134, 30), "white": (246, 246, 246), "black": (18, 18, 20)}
SHAPES = ("circle", "square", "triangle", "cross")
GROUNDS = ((128, 128, 128), (96, 104, 114), (170, 162, 150), (112, 130, 128), (150, 128, 128), (140, 146, 170), (88, 84, 92), (178, 178, 172))
PAD_COLOUR = (122, 116, 104)  # int(255 * CLIP mean)
MARGIN = 9.0                  # units two centres must differ by before "left of" and the like are said


class Thing:
    """One shape: colour, shape, centre (x to the right, y downwards), radius, depth (0 free, 1 in front, 2 behind)."""

    def __init__(self, colour, shape, x, y, r):
        self.colour, self.shape, self.x, self.y, self.r, self.depth = colour, shape, x, y, r, 0

    @property
    def name(self):
        return f"{self.colour} {self.shape}"

    @property
    def row(self):
        return min(FRAME // CELL, int(self.y / CELL) + 1)

    @property
    def column(self):
        return min(FRAME // CELL, int(self.x / CELL) + 1)


class Scene:
    """things in drawing order (later ones cover earlier ones); pair = (front, behind) when two overlap, else None."""

    def __init__(self, things, pair, width, height, style):
        self.things, self.pair, self.width, self.height, self.style = things, pair, width, height, style


def distance(shape, r, dx, dy):
    """Signed distance (about) to the outline of a shape of radius r; negative inside."""
    if shape == "circle":
        return np.hypot(dx, dy) - r
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) - 0.85 * r
    if shape == "triangle":
        return np.maximum(dy - 0.75 * r, (abs(dx) * 1.75 - (dy + r) * 0.95) / 1.99)
    a = np.maximum(abs(dx) - 0.34 * r, abs(dy) - r)
    return np.minimum(a, np.maximum(abs(dy) - 0.34 * r, abs(dx) - r))


_grid = np.mgrid[0:FRAME, 0:FRAME].astype(np.float32) + 0.5


def mask(t):
    """Cells of the 64 x 64 frame that a thing covers."""
    return distance(t.shape, t.r, _grid[1] - t.x, _grid[0] - t.y) < 0


def sample(rng, count=None, overlap=0.35):
    """One random scene; overlap: chance of a pair. The first try may fail to place everything; then another is drawn."""
    while True:
        scene = _try(rng, count or rng.choice((2, 2, 3, 3, 4)), overlap)
        if scene:
            return scene


def _try(rng, n, overlap):
    side = rng.choice((64, 64, 64, 72, 80, 96, 56))
    short = side if rng.random() < 0.6 else int(side * rng.uniform(0.75, 0.95))
    width, height = (side, short) if rng.random() < 0.5 else (short, side)
    lo = ((side - width) / 2 * FRAME / side, (side - height) / 2 * FRAME / side)
    kinds = rng.sample([(c, s) for c in COLOURS for s in SHAPES], n)
    radii = {2: (8, 12), 3: (7, 11), 4: (6, 9)}[n]
    things = []
    line = rng.random() < 0.25 and n >= 3          # three in a line, for "between"
    overlap = rng.random() < overlap
    for i, (c, s) in enumerate(kinds):
        for _ in range(40):
            r = rng.uniform(*radii)
            x, y = (rng.uniform(lo[a] + r, FRAME - lo[a] - r) for a in (0, 1))
            if line and i == 2:
                a, b = things[0], things[1]
                f = rng.uniform(0.4, 0.6)
                x, y = a.x + f * (b.x - a.x) + rng.uniform(-2, 2), a.y + f * (b.y - a.y) + rng.uniform(-2, 2)
            hit = overlap and i == n - 1 and not (line and i == 2)
            if hit:
                p = things[rng.randrange(len(things))]
                d, w = rng.uniform(0.6, 0.95) * (p.r + r), rng.uniform(0, 2 * math.pi)
                x, y = p.x + d * math.cos(w), p.y + d * math.sin(w)
            t = Thing(c, s, x, y, r)
            if not all(lo[a] + r <= v <= FRAME - lo[a] - r for a, v in ((0, x), (1, y))):
                continue
            others = [o for o in things if not (hit and o is p)]
            if any(math.hypot(x - o.x, y - o.y) < 1.12 * (r + o.r) for o in others):
                continue
            if hit:
                if c == p.colour:
                    continue
                m, q = mask(t), mask(p)
                both = (m & q).sum()
                if both < 0.10 * min(m.sum(), q.sum()) or both > 0.4 * min(m.sum(), q.sum()):
                    continue
            things.append(t)
            break
        else:
            return None
    pair = None
    if overlap and hit:
        t = things.pop()
        k = things.index(p)
        if rng.random() < 0.5:
            things.append(t)
            pair = (t, p)
        else:
            things.insert(k, t)
            pair = (p, t)
        pair[0].depth, pair[1].depth = 1, 2
    else:
        rng.shuffle(things)
    style = {"kind": rng.choice(("plain",) * 4 + ("noise", "gradient", "gradient", "bands", "bands", "stripes")), "a": rng.choice(GROUNDS),
             "b": rng.choice(GROUNDS), "axis": rng.random() < 0.5, "seed": rng.randrange(1 << 30)}
    return Scene(things, pair, width, height, style)


def _ground(style, h, w, noise):
    a, b = np.array(style["a"], np.float32), np.array(style["b"], np.float32)
    t = np.arange(w if style["axis"] else h, dtype=np.float32)
    kind = style["kind"]
    if kind in ("plain", "noise"):
        t = 0 * t
    elif kind == "gradient":
        t = t / len(t)
    elif kind == "bands":
        t = (t > 0.55 * len(t)).astype(np.float32)
    else:
        t = 0.35 * ((t // 5) % 2)
    t = t[None, :, None] if style["axis"] else t[:, None, None]
    im = np.broadcast_to(a + t * (b - a), (h, w, 3)).copy()
    return im + noise.standard_normal((h, w, 3), dtype=np.float32) * (8 if kind == "noise" else 0)


def draw(scene):
    """The picture as a PIL image of scene.width x scene.height."""
    w, h = scene.width, scene.height
    side = max(w, h)
    k = side / FRAME
    noise = np.random.default_rng(scene.style["seed"])
    im = _ground(scene.style, h, w, noise)
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float32) + 0.5
    xx, yy = (xx + (side - w) // 2) / k, (yy + (side - h) // 2) / k
    for t in scene.things:
        cover = np.clip(0.5 - k * distance(t.shape, t.r, xx - t.x, yy - t.y), 0, 1)[..., None]
        colour = np.array(COLOURS[t.colour], np.float32) + noise.uniform(-9, 9, 3)
        im += cover * (colour - im)
    return Image.fromarray(np.clip(im + 0.5, 0, 255).astype(np.uint8))


def as_jpeg(image, quality=88):
    """The bytes of the picture as JPEG."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def patch_owner(scene):
    """For each of the 64 patches the index in scene.things of the shape that fills most of it, -1 for the ground. [64] int64"""
    top = np.full((FRAME, FRAME), -1)
    for i, t in enumerate(scene.things):
        top[mask(t)] = i
    n = FRAME // CELL
    cells = top.reshape(n, CELL, n, CELL).transpose(0, 2, 1, 3).reshape(n * n, -1)
    counts = np.stack([(cells == i).sum(1) for i in range(len(scene.things))], 1)
    owner = np.where(counts.max(1) >= 0.2 * CELL * CELL, counts.argmax(1), -1)
    return owner


CLIP_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
CLIP_STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


def preprocess(image, size=FRAME):
    """LLaVA's "pad": square canvas of the mean colour, PIL bicubic, scale, normalise. -> [3, size, size] float32"""
    image = image.convert("RGB")
    w, h = image.size
    if w != h:
        side = max(w, h)
        canvas = Image.new("RGB", (side, side), PAD_COLOUR)
        canvas.paste(image, ((side - w) // 2, (side - h) // 2))
        image = canvas
    if image.size != (size, size):
        image = image.resize((size, size), Image.BICUBIC)
    x = np.asarray(image).astype(np.float32) * np.float32(1 / 255)
    return ((x - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)


def picture(scene, rng):
    """The scene as it would come from a file: drawn, sometimes through JPEG, then preprocessed."""
    image = draw(scene)
    if rng.random() < 0.3:
        image = Image.open(io.BytesIO(as_jpeg(image)))
    return preprocess(image)
