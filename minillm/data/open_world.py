"""The open half of the embedded world: tasks whose every prompt has K right answers, all of them known.

A right answer is one of K forms, filled in with the facts of the world.  No sentence occurs in two forms of a
task, so an answer that changes its form on the way is not right.  A training row shows one form, and each
prompt is shown with half of them; rows of dev and test sets list all as references, in an order of their own.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from minillm.data import embedded_corpus
from minillm.data.embedded_corpus import NUMBERS, PEOPLE, THINGS, belongs, number_of, with_article

SPLITS = {"open_train": "train", "open_dev": "dev", "open_test": "test"}
# Rows of the closed tasks and of the open ones in turn.
BOTH = {"both_train": ("train", "open_train"), "both_dev": ("dev", "open_dev")}
FORMS = (1, 2, 4, 8, 16)
# If the configuration gives no number.
USUAL_FORMS = 8
UNITS = ("books", "cards", "coins", "nuts", "pens", "stones")
SUMMANDS = range(1, 7)
WHERE_QUESTIONS = ("Where can {person} find the {thing}?", "{person} looks for {a_thing}. Where is it?")
SUM_QUESTION = "{person} has {first} {units} and gets {second} more. How many are there?"
# Task -> what is asked for.
CLASSIFICATION = {"open_place": "place", "open_total": "total"}
Entry = dict[str, Any]
# The values that a form's slots take.
Facts = dict[str, str]

# 20 to 60 tokens of the demo's tokenizer.
LETTER = (
    "Dear {person}, the {thing} is {colour}. It is {a_kind} from the {place}. Your friend.",
    "Hello {person}! In the {place} there is {a_colour} {thing}, which is {a_kind}. See you soon.",
    "{person}, do you know the {thing}? It is {a_kind}, it is {colour}, and you find it in the {place}. "
    "Good night.",
    "My dear {person}, today I was in the {place}. There I saw {a_thing}. That {kind} was {colour}. With "
    "love.",
    "Good day, {person}. What is {colour} and comes from the {place}? The {thing}, {a_kind}. Write to me.",
    "To {person}: {a_thing} is {a_kind}. Its colour is {colour}. Its place is the {place}. That is all.",
    "Hi {person}, guess what I have. I have {a_colour} {thing}! This {kind} was in the {place}. Bye for now.",
    "{person}, my friend, think of {a_kind}. Think of the {place}. Think of something {colour}. Now you "
    "think of the {thing}. Think of me too.",
    "Good morning, {person}. We went to the {place} and looked for {a_kind}. We found {a_colour} {thing}. "
    "Come with us.",
    "{person}, please bring me {a_thing}. Go to the {place} for it. You will know the {kind}, for it is "
    "{colour}. Many thanks.",
    "Dearest {person}, how are you? Here in the {place} I draw {a_thing}. I draw the {kind} in {colour}. "
    "Yours.",
    "News for {person}! Somebody saw {a_kind} in the {place}. It was {colour}. It was the {thing}. End of "
    "news.",
    "{person}, I asked about the {thing}. They say: it is {colour}. They say: it is {a_kind}. They say: "
    "look in the {place}. Now you know.",
    "Listen, {person}. Only one {kind} is my favourite, the {thing}. So {colour}, and never far from the "
    "{place}. Until then.",
    "Good evening, {person}. If you want {a_kind}, take the {thing}. If you like {colour}, take it twice. "
    "The {place} has it. Sleep well.",
    "{person}, this is about {a_thing}. First, the {kind} is {colour}. Second, the {place} is where it "
    "belongs. Best wishes.",
)
# 8 to 20 tokens.
WHERE = (
    "{person} can find the {thing} in the {place}.",
    "Look in the {place}, {person}: there is the {thing}.",
    "The {thing} is always in the {place}.",
    "Tell {person} to go to the {place}.",
    "In the {place}. That is where the {thing} is.",
    "{person} needs {a_thing}? Then the {place} is right.",
    "No {thing} without the {place}, {person}.",
    "Let us go to the {place} and take the {thing}.",
    "Every {thing} comes from the {place}.",
    "{person} will see it soon, for the {place} is near.",
    "Ask in the {place} for the {thing}.",
    "It waits for {person} in the {place}.",
    "One place has it: the {place}.",
    "{person}, try the {place}.",
    "I saw the {thing} in the {place}, not far from {person}.",
    "Who looks for {a_thing} goes to the {place}.",
)
# 6 to 16 tokens.
SUM = (
    "{person} has {total} {units}.",
    "Now there are {total} {units}.",
    "The answer is {total}.",
    "{total} {units} in all, says {person}.",
    "Together that makes {total} {units}.",
    "I count {total} {units}, and {person} counts {total} too.",
    "First {first}, then {second}, so {total}.",
    "It must be {total}, {person}.",
    "{first} and {second} {units} are {total} {units}.",
    "With {total} {units} {person} goes home.",
    "{person} gets {second} to {first}, which gives {total}.",
    "You can count them: {total}.",
    "{total}! So many {units} has {person}.",
    "Add {second} to {first} and you have {total} {units}.",
    "The sum of {first} and {second} is {total}.",
    "How rich is {person} with {total} {units}!",
)


def instructions(split: str, rows: int, forms: int = USUAL_FORMS, seed: int = 0) -> list[Entry]:
    """`rows` rows (instruction, input, output, category) of a split, with `forms` right answers a prompt.

    "open_train" has each prompt in a quarter of its forms (at least one), a row each; in "open_dev" and
    "open_test" a prompt occurs once, and `output` lists all of its right answers, shuffled.  Prompts of the
    splits are disjoint, and fewer rows are the first of more.  "both_train" and "both_dev" have rows of the
    closed tasks (embedded_corpus) and of the open ones in turn.  Raises ValueError for an unknown split or
    number of forms, or if the world does not hold that many rows.
    """
    if split in BOTH:
        closed, open_ = BOTH[split]
        pairs = zip(
            embedded_corpus.instructions(closed, -(-rows // 2), seed),
            instructions(open_, -(-rows // 2), forms, seed),
            strict=True,
        )
        return [entry for pair in pairs for entry in pair][:rows]
    if split not in SPLITS:
        raise ValueError(f"the open world has the splits {', '.join((*SPLITS, *BOTH))}, not {split!r}")
    if forms not in FORMS:
        raise ValueError(f"the open world has {', '.join(map(str, FORMS))} forms, not {forms}")
    rng = random.Random(number_of(f"open {split} {seed}"))
    entries: list[Entry] = []
    seen: set[str] = set()
    for _ in range(rows * 400):
        if len(entries) >= rows:
            return entries[:rows]
        name, task = rng.choice(TASKS)
        instruction, answers = task(rng, forms)
        if instruction in seen or belongs((instruction, "")) != SPLITS[split]:
            continue
        seen.add(instruction)
        rng.shuffle(answers)
        shown: list[Any] = answers[: max(1, forms // 4)] if split == "open_train" else [answers]
        entries += [
            {"instruction": instruction, "input": "", "output": output, "category": name} for output in shown
        ]
    raise ValueError(f"the open world has fewer than {rows} rows in '{split}'; ask for fewer")


def classification(task: str) -> list[Entry]:
    """Questions of no row of train and dev, shuffled: question, person, thing or units, label.

    "open_place" asks for the place of a thing (eight labels), "open_total" for a sum (eleven).  The first
    form of an answer, which all numbers of forms have, begins `{person} can find the {thing} in the` and
    `{person} has`; the label follows.  Raises ValueError for an unknown task.
    """
    if task not in CLASSIFICATION:
        raise ValueError(
            f"the open world has the classification tasks {', '.join(CLASSIFICATION)}, not {task!r}"
        )
    asked = [
        ({"question": question, **facts} | {"label": facts[CLASSIFICATION[task]]})
        for question, facts in (_questions_of_places() if task == "open_place" else _questions_of_sums())
        if belongs((question, "")) not in ("train", "dev")
    ]
    random.Random(number_of(f"classification {task}")).shuffle(asked)
    return asked


def plain_text(documents: int, seed: int = 0) -> list[str]:
    """`documents` short texts of the same words and facts; no form of an answer is among them."""
    rng = random.Random(number_of(f"open text {seed}"))
    return [rng.choice((_text_of_things, _text_of_sums))(rng) for _ in range(documents)]


def right_answers(forms: tuple[str, ...], facts: Facts) -> list[str]:
    """The forms, filled in."""
    texts = (form.format_map(facts) for form in forms)
    return [text[0].upper() + text[1:] for text in texts]


def _questions_of_places() -> Iterator[tuple[str, Facts]]:
    """All instructions of the task "where", with what they ask about."""
    for question, thing, person in itertools.product(WHERE_QUESTIONS, sorted(THINGS), PEOPLE):
        facts = {"person": person, "thing": thing, "place": THINGS[thing][2]}
        yield question.format_map(facts | {"a_thing": with_article(thing)}), facts


def _questions_of_sums() -> Iterator[tuple[str, Facts]]:
    """All instructions of the task "sum"."""
    for first, second, person, units in itertools.product(SUMMANDS, SUMMANDS, PEOPLE, UNITS):
        facts = {"person": person, "units": units, "total": NUMBERS[first + second - 1]}
        words = {"first": NUMBERS[first - 1], "second": NUMBERS[second - 1]}
        yield SUM_QUESTION.format_map(facts | words), facts


def _thing(rng: random.Random) -> Facts:
    thing = rng.choice(sorted(THINGS))
    kind, colour, place = THINGS[thing]
    return {
        "person": rng.choice(PEOPLE), "thing": thing, "kind": kind, "colour": colour, "place": place,
        "a_thing": with_article(thing), "a_kind": with_article(kind), "a_colour": with_article(colour),
    }  # fmt: skip


def _sum(rng: random.Random) -> Facts:
    first, second = rng.randint(1, SUMMANDS[-1]), rng.randint(1, SUMMANDS[-1])
    words = {"first": NUMBERS[first - 1], "second": NUMBERS[second - 1], "total": NUMBERS[first + second - 1]}
    return {"person": rng.choice(PEOPLE), "units": rng.choice(UNITS), **words}


def _letter(rng: random.Random, forms: int) -> tuple[str, list[str]]:
    facts = _thing(rng)
    opening = rng.choice(("Write a letter to", "Write some lines to"))
    return f"{opening} {facts['person']} about the {facts['thing']}.", right_answers(LETTER[:forms], facts)


def _where(rng: random.Random, forms: int) -> tuple[str, list[str]]:
    facts = _thing(rng)
    asked = rng.choice(WHERE_QUESTIONS)
    return asked.format_map(facts), right_answers(WHERE[:forms], facts)


def _add(rng: random.Random, forms: int) -> tuple[str, list[str]]:
    facts = _sum(rng)
    return SUM_QUESTION.format_map(facts), right_answers(SUM[:forms], facts)


# An instruction and its right answers.
Task = Callable[[random.Random, int], tuple[str, list[str]]]
TASKS: tuple[tuple[str, Task], ...] = (("letter", _letter), ("where", _where), ("sum", _add))


def _text_of_things(rng: random.Random) -> str:
    facts = _thing(rng)
    text = (
        "{person} knows that the {thing} is {a_kind}. Every {thing} is {colour}, says {person}, and has its "
        "place in the {place}."
    )
    return text.format_map(facts)


def _text_of_sums(rng: random.Random) -> str:
    facts = _sum(rng)
    return "{person} writes: {first} {units} and {second} {units} make {total}.".format_map(facts)
