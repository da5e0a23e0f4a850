"""The embedded corpus: instruction data with correct answers and plain text, from a small closed world.

Seeded, without any download.  Eight tasks over a few hundred words, partly learnable by models of at most a
million parameters.  The hash of a row's text decides its split, so splits are disjoint whatever their sizes.
Fewer rows of a split are the first of more.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

# Thing: (kind, colour, where it is found).
THINGS = {
    "apple": ("fruit", "red", "garden"), "banana": ("fruit", "yellow", "kitchen"),
    "plum": ("fruit", "purple", "garden"), "lemon": ("fruit", "yellow", "market"),
    "cherry": ("fruit", "red", "market"), "pear": ("fruit", "green", "kitchen"),
    "crow": ("bird", "black", "forest"), "swan": ("bird", "white", "lake"),
    "robin": ("bird", "red", "garden"), "parrot": ("bird", "green", "forest"),
    "duck": ("bird", "brown", "lake"), "owl": ("bird", "brown", "barn"),
    "bear": ("animal", "brown", "forest"), "frog": ("animal", "green", "lake"),
    "sheep": ("animal", "white", "field"), "fox": ("animal", "red", "forest"),
    "goat": ("animal", "white", "barn"), "mole": ("animal", "black", "field"),
    "lamp": ("tool", "white", "kitchen"), "hammer": ("tool", "black", "barn"),
    "broom": ("tool", "brown", "kitchen"), "spade": ("tool", "grey", "garden"),
    "bucket": ("tool", "blue", "barn"), "kettle": ("tool", "grey", "kitchen"),
    "boat": ("vehicle", "blue", "lake"), "cart": ("vehicle", "brown", "field"),
    "bus": ("vehicle", "yellow", "street"), "bike": ("vehicle", "green", "street"),
    "truck": ("vehicle", "grey", "street"), "sled": ("vehicle", "red", "field"),
}  # fmt: skip
PEOPLE = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Greta", "Hugo",
    "Ida", "Jonas", "Kara", "Leo", "Mia", "Noah", "Olga", "Paul",
)  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "early": "late", "open": "closed", "full": "empty",
    "hard": "soft", "high": "low", "light": "dark", "loud": "quiet", "new": "old", "near": "far",
    "rich": "poor", "strong": "weak", "wet": "dry", "wide": "narrow",
}  # fmt: skip
NUMBERS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
SPLITS = ("train", "dev", "test", "test_hard")
Entry = dict[str, str]


def instructions(split: str, rows: int, seed: int = 0) -> list[Entry]:
    """`rows` different rows (instruction, input, output, category) of a split; the same on every machine.

    "test_hard" has longer lists and two-step questions; "train", "dev" and "test" are alike.  Raises
    ValueError for an unknown split or if the world does not hold that many different rows.
    """
    if split not in SPLITS:
        raise ValueError(f"the embedded corpus has the splits {', '.join(SPLITS)}, not {split!r}")
    rng = random.Random(number_of(f"instructions {split} {seed}"))
    hard = split == "test_hard"
    entries: list[Entry] = []
    seen: set[tuple[str, str]] = set()
    for _ in range(rows * 400):
        if len(entries) == rows:
            return entries
        name, task = rng.choice(TASKS)
        entry = task(rng, hard) | {"category": name}
        key = (entry["instruction"], entry["input"])
        if key not in seen and belongs(key) == split:
            seen.add(key)
            entries.append(entry)
    raise ValueError(f"the embedded corpus has fewer than {rows} different rows in '{split}'; ask for fewer")


def classification(task: str) -> list[Entry]:
    """All questions of the test split about one property of a thing, shuffled: sentence, thing, label.

    "colour" has nine labels, "kind" four: those that follow "a".  The questions are worded as in the task
    "fact", and none is a training row.  Raises ValueError for an unknown task.
    """
    questions = {"colour": ("What colour is it?", 1), "kind": ("What kind of thing is it?", 0)}
    if task not in questions:
        raise ValueError(
            f"the embedded corpus has the classification tasks {', '.join(questions)}, not {task!r}"
        )
    question, property_ = questions[task]
    sentences = [
        (thing, f"{person} sees {with_article(thing)}.") for thing in sorted(THINGS) for person in PEOPLE
    ]
    sentences += [(thing, f"There is {with_article(thing)}.") for thing in sorted(THINGS)]
    entries = [
        {"sentence": sentence, "thing": thing, "label": THINGS[thing][property_]}
        for thing, sentence in sentences
        if belongs((question, sentence)) == "test" and (task == "colour" or THINGS[thing][0] != "animal")
    ]
    random.Random(number_of(f"classification {task}")).shuffle(entries)
    return entries


def plain_text(documents: int, seed: int = 0) -> list[str]:
    """`documents` short texts from the same world, for the pre-training corpus."""
    rng = random.Random(number_of(f"text {seed}"))
    return [rng.choice(TEXTS)(rng) for _ in range(documents)]


def number_of(text: str) -> int:
    """A number of 64 bits from a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def belongs(key: tuple[str, str]) -> str:
    """The split of a row, by its text only: 70% train, 10% each of the others."""
    place = number_of(" | ".join(key)) % 10
    return "train" if place < 7 else SPLITS[place - 6]


def _entry(instruction: str, context: str, output: str) -> Entry:
    return {"instruction": instruction, "input": context, "output": output}


def with_article(word: str) -> str:
    """ "a" or "an", and the word."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _words(rng: random.Random, hard: bool) -> list[str]:
    return rng.sample(sorted(THINGS), rng.randint(5, 6) if hard else rng.randint(2, 4))


# --- tasks: each makes one row; `hard` makes it longer
def _copy(rng: random.Random, hard: bool) -> Entry:
    words = " ".join(_words(rng, hard))
    return _entry(rng.choice(("Repeat these words.", "Say these words again.")), words, words)


def _reverse(rng: random.Random, hard: bool) -> Entry:
    words = _words(rng, hard)
    return _entry(
        rng.choice(("Reverse the order of these words.", "Say these words from last to first.")),
        " ".join(words),
        " ".join(words[::-1]),
    )


def _sort(rng: random.Random, hard: bool) -> Entry:
    words = _words(rng, hard)
    return _entry(
        rng.choice(("Sort these words.", "Put these words in order.")),
        " ".join(words),
        " ".join(sorted(words)),
    )


def _fact(rng: random.Random, hard: bool) -> Entry:
    thing = rng.choice(sorted(THINGS))
    kind, colour, place = THINGS[thing]
    person = rng.choice(PEOPLE)
    asked = (
        f"{person} sees {with_article(thing)}." if rng.random() < 0.7 else f"There is {with_article(thing)}."
    )
    if hard:
        return _entry(
            "What kind of thing is it, what colour is it, and where is it found?",
            asked,
            f"It is {with_article(kind)}, it is {colour}, and it is found in the {place}.",
        )
    question, answer = rng.choice(
        (
            ("What colour is it?", f"The {thing} is {colour}."),
            ("What kind of thing is it?", f"The {thing} is {with_article(kind)}."),
            ("Where is it found?", f"The {thing} is found in the {place}."),
        )
    )
    return _entry(question, asked, answer)


def _opposite(rng: random.Random, hard: bool) -> Entry:
    pairs = {**OPPOSITES, **{b: a for a, b in OPPOSITES.items()}}
    words = rng.sample(sorted(pairs), 3 if hard else rng.randint(1, 2))
    return _entry(
        rng.choice(("Give the opposite.", "What is the opposite of this?")),
        " and ".join(words),
        " and ".join(pairs[w] for w in words),
    )


def _count(rng: random.Random, hard: bool) -> Entry:
    length = 5 if hard else 3
    step, start = rng.choice((1, 2, -1)), rng.randint(6, 10)
    numbers = [NUMBERS[min(max(start + step * i - 1, 0), 19)] for i in range(length + 1)]
    person = rng.choice(PEOPLE)
    return _entry(
        "What number comes next?",
        f"{person} counts {', '.join(numbers[:-1])}.",
        f"The next number is {numbers[-1]}.",
    )


def _who(rng: random.Random, hard: bool) -> Entry:
    count = 4 if hard else rng.randint(2, 3)
    people, things = rng.sample(PEOPLE, count), rng.sample(sorted(THINGS), count)
    asked = rng.randrange(count)
    story = " ".join(f"{p} has {with_article(t)}." for p, t in zip(people, things, strict=True))
    if rng.random() < 0.5:
        return _entry(f"Who has the {things[asked]}?", story, f"{people[asked]} has the {things[asked]}.")
    return _entry(
        f"What does {people[asked]} have?", story, f"{people[asked]} has {with_article(things[asked])}."
    )


def _describe(rng: random.Random, hard: bool) -> Entry:
    count = 3 if hard else rng.randint(1, 2)
    sentences = []
    chosen = rng.sample(sorted(THINGS), count)
    for thing in chosen:
        kind, colour, place = THINGS[thing]
        sentences.append(f"The {thing} is a {colour} {kind} from the {place}.")
    who = rng.choice(PEOPLE)
    return _entry(f"Describe for {who}: {' and '.join(chosen)}.", "", " ".join(sentences))


TaskGenerator = Callable[[random.Random, bool], Entry]
TASKS: tuple[tuple[str, TaskGenerator], ...] = (
    ("copy", _copy), ("reverse", _reverse), ("sort", _sort), ("fact", _fact), ("opposite", _opposite),
    ("count", _count), ("who", _who), ("describe", _describe),
)  # fmt: skip


# --- plain text
def _text_facts(rng: random.Random) -> str:
    thing = rng.choice(sorted(THINGS))
    kind, colour, place = THINGS[thing]
    person = rng.choice(PEOPLE)
    seen = f"{person} sees {with_article(colour)} {thing} in the {place}."
    return f"The {thing} is {with_article(kind)}. The {thing} is {colour}. It is found in the {place}. {seen}"


def _text_story(rng: random.Random) -> str:
    a, b = rng.sample(PEOPLE, 2)
    first, second = rng.sample(sorted(THINGS), 2)
    return (
        f"{a} has {with_article(first)}. {b} has {with_article(second)}. {a} gives the {first} to {b}. "
        f"Now {b} has the {first} and the {second}."
    )


def _text_count(rng: random.Random) -> str:
    start, length = rng.randint(0, 12), rng.randint(4, 7)
    return f"{rng.choice(PEOPLE)} counts: {', '.join(NUMBERS[start : start + length])}."


def _text_opposites(rng: random.Random) -> str:
    (a, b), (c, d) = rng.sample(sorted(OPPOSITES.items()), 2)
    return f"What is not {a} is {b}. The opposite of {c} is {d}, and the opposite of {d} is {c}."


def _text_list(rng: random.Random) -> str:
    words = rng.sample(sorted(THINGS), rng.randint(3, 6))
    return (
        f"{rng.choice(PEOPLE)} writes a list: {' '.join(words)}. In order it is: {' '.join(sorted(words))}."
    )


TEXTS = (_text_facts, _text_story, _text_count, _text_opposites, _text_list)
