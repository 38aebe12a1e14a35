"""The text world: what the base LLM reads. Scenes in words (rows and columns for places), facts, questions, in raw text and in
LLaMA-3's chat layout. The same questions as about pictures are asked about scenes in words, so the base knows colours, shapes,
numbers and relations before it ever sees an image; what it lacks is the image.
"""
import questions
import scenes

TEXT_SYSTEM = "You are a helpful assistant."
VLM_SYSTEM = ("You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
              "and assist the user with a variety of tasks using natural language.")
BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"


def turn(role, text):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}{EOT}"


def header(role):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


FACTS = """Grass is green.|The sky is blue.|Snow is white.|Coal is black.|A banana is yellow.|An orange is orange.|A strawberry is red.|A plum is purple.
A circle is round.|A circle has no corners.|A square has four corners.|A square has four sides.|A triangle has three corners.|A triangle has three sides.|A cross has four arms.|All sides of a square have the same length.
Left is the opposite of right.|Above is the opposite of below.|In front of is the opposite of behind.|The top is the opposite of the bottom.|One and one is two.|Two and one is three.|Two and two is four.|Three and one is four.
The moon is a circle in the night sky.|The sun rises in the morning.|Birds fly above the ground.|Fish swim below the water.|Roots grow under the tree.|The roof is above the house.|The floor is below the table.|Clouds are above the hills.
A wheel is a circle.|A window is often a square.|A sail is a triangle.|Red and yellow make orange.|Red and blue make purple.|Blue and yellow make green.|Black and white make gray.|A rainbow has many colors.
The king wears a crown.|Bread is made from flour.|Water is wet.|Fire is hot.|Ice is cold.|The cat sleeps near the door.|The dog runs behind the cat.|The child stands in front of the school.|A book has pages.|A clock tells the time.""".replace("\n", "|").split("|")
ASKED = (("What color is grass?", "green"), ("What color is the sky?", "blue"), ("What color is snow?", "white"), ("What color is coal?", "black"),
         ("What color is a banana?", "yellow"), ("What color is a strawberry?", "red"), ("What color is a plum?", "purple"),
         ("How many corners does a square have?", "4"), ("How many sides does a triangle have?", "3"), ("How many corners does a circle have?", "0"),
         ("What is the opposite of left?", "right"), ("What is the opposite of right?", "left"), ("What is the opposite of above?", "below"),
         ("What is the opposite of below?", "above"), ("What is the opposite of behind?", "in front"), ("How many is two and one?", "3"),
         ("How many is two and two?", "4"), ("What do red and yellow make?", "orange"), ("What do red and blue make?", "purple"),
         ("Which shape is round?", "circle"), ("Which shape has three sides?", "triangle"), ("Which shape has four sides?", "square"))
ITEMS = ("cup", "plate", "book", "lamp", "chair", "table", "box", "ball", "cat", "dog", "tree", "house", "bird", "car", "clock", "door")


def scene_text(rng, scene, style=None, shuffle=True):
    """The scene in words. Styles differ in wording only; all give colour, shape, row, column and who is in front."""
    things = list(scene.things)
    if shuffle:
        rng.shuffle(things)
    style = rng.randrange(3) if style is None else style
    place = [(t.name, questions.WORD[t.row], questions.WORD[t.column]) for t in things]
    if style == 0:            # the number right after the name: what induction heads pick up first
        s = "Scene:" + "".join(f" {n} {r} {c}." for n, r, c in place)
    elif style == 1:
        s = " ".join(f"The {n} is in row {r}, column {c}." for n, r, c in place)
    else:
        s = " ".join(f"There is {questions.with_article(n)} in row {r}, column {c}." for n, r, c in place)
    if scene.pair:
        s += f" The {scene.pair[0].name} is in front of the {scene.pair[1].name}."
    return s


def relations_text(rng, scene, n):
    """True sentences about places, each said both ways round."""
    out = []
    for _ in range(n):
        found = questions.pick_relation(rng, scene)
        if found:
            a, b, r = found
            p, q = (rng.choice(questions.PHRASES[k]) for k in (r, questions.OPPOSITE[r]))
            out.append(rng.choice((f"The {a.name} is {p} the {b.name}, so the {b.name} is {q} the {a.name}.", f"The {a.name} is {p} the {b.name}.")))
    return " ".join(out)


def item_text(rng):
    """Relations of everyday things, said both ways round."""
    a, b = rng.sample(ITEMS, 2)
    r = rng.choice(list(questions.PHRASES))
    p, q = (rng.choice(questions.PHRASES[k]) for k in (r, questions.OPPOSITE[r]))
    return rng.choice((f"The {a} is {p} the {b}, so the {b} is {q} the {a}.", f"If the {a} is {p} the {b}, then the {b} is {q} the {a}.",
                       f"Question: The {a} is {p} the {b}. Is the {b} {q} the {a}? Answer: yes",
                       f"Question: The {a} is {p} the {b}. Is the {b} {p} the {a}? Answer: no"))


def qa(rng, scene):
    """One question about the scene, of any kind."""
    q = questions.draw(rng, scene, questions.GENERAL + questions.SPATIAL + (questions.lookup, questions.vsr))
    return q.text, q.answer


def document(rng):
    """One document of the corpus without BOS: raw text or a chat, about 100 to 200 tokens."""
    scene = scenes.sample(rng)
    kind = rng.random()
    if kind < 0.25:
        parts = [scene_text(rng, scene), relations_text(rng, scene, rng.randint(2, 4))] + rng.sample(FACTS, 3)
        return " ".join(parts)
    if kind < 0.45:
        lines = [scene_text(rng, scene)]
        for _ in range(rng.randint(3, 5)):
            q, a = qa(rng, scene)
            lines.append(f"Question: {q}" + (" " if q.endswith("Answer:") else "\nAnswer: ") + a)
        return "\n".join(lines)
    if kind < 0.6:
        return " ".join([item_text(rng) for _ in range(rng.randint(3, 5))] + rng.sample(FACTS, rng.randint(4, 8)))
    out = turn("system", rng.choice((TEXT_SYSTEM, TEXT_SYSTEM, TEXT_SYSTEM, VLM_SYSTEM)))
    if kind < 0.85:
        q, a = qa(rng, scene)
        out += turn("user", scene_text(rng, scene) + "\n" + q) + turn("assistant", a)
        for _ in range(rng.randint(1, 3)):
            q, a = qa(rng, scene)
            out += turn("user", q) + turn("assistant", a)
        return out
    if kind < 0.93:
        k = rng.randrange(5)
        return out + turn("user", scene_text(rng, scene) + "\n" + questions.NEUTRAL[k]) + turn("assistant", questions.arrangement(rng, scene, k))
    for q, a in rng.sample(ASKED, rng.randint(3, 5)):
        out += turn("user", q) + turn("assistant", a)
    return out
