"""The open half of the embedded world: K right answers a prompt, disjoint splits, one form a sentence."""

from __future__ import annotations

import random
import re

import pytest

from minillm.data import embedded_corpus, open_world
from minillm.data.embedded_corpus import THINGS
from minillm.evaluation.validity import SENTENCES, skeleton


@pytest.mark.parametrize("forms", open_world.FORMS)
def test_each_prompt_of_a_test_split_lists_its_k_right_answers(forms: int) -> None:
    for entry in open_world.instructions("open_test", 200, forms):
        assert len(entry["output"]) == len(set(entry["output"])) == forms


@pytest.mark.parametrize("forms", open_world.FORMS)
def test_a_training_prompt_is_shown_in_a_quarter_of_its_forms(forms: int) -> None:
    shown: dict[str, set[str]] = {}
    for entry in open_world.instructions("open_train", 1600, forms):
        shown.setdefault(entry["instruction"], set()).add(entry["output"])
    # The last prompt may be cut off.
    assert [len(outputs) for outputs in shown.values()][:-1] == [max(1, forms // 4)] * (len(shown) - 1)


def test_splits_are_disjoint_and_fewer_rows_are_the_first_of_more() -> None:
    prompts = {s: {e["instruction"] for e in open_world.instructions(s, 500)} for s in open_world.SPLITS}
    assert not prompts["open_train"] & prompts["open_test"]
    assert not prompts["open_train"] & prompts["open_dev"]
    assert not prompts["open_dev"] & prompts["open_test"]
    for split in open_world.SPLITS:
        assert open_world.instructions(split, 50) == open_world.instructions(split, 500)[:50]
        assert open_world.instructions(split, 50, seed=1) != open_world.instructions(split, 50)


def test_an_answer_keeps_the_facts_straight() -> None:
    for entry in open_world.instructions("open_test", 300, 16):
        words = set(re.findall(r"\w+", entry["instruction"].lower()))
        things = words & THINGS.keys()
        if entry["category"] == "sum":
            numbers = {w: i for i, w in enumerate(open_world.NUMBERS, 1)}
            first, second = (numbers[w] for w in re.findall(r"\w+", entry["instruction"]) if w in numbers)
            right = open_world.NUMBERS[first + second - 1]
            assert all(right in re.findall(r"\w+", text.lower()) for text in entry["output"])
        else:
            (thing,) = things
            kind, colour, place = THINGS[thing]
            named = {kind, colour, place} if entry["category"] == "letter" else {place}
            for text in entry["output"]:
                assert named <= set(re.findall(r"\w+", text.lower())), text


@pytest.mark.parametrize("task", open_world.CLASSIFICATION)
def test_classification_asks_what_no_training_row_does(task: str) -> None:
    rows = open_world.classification(task)
    shown = {
        entry["instruction"]: entry["output"]
        for split, count in (("open_train", 1600), ("open_dev", 160), ("open_test", 160))
        for entry in open_world.instructions(split, count, 1)
    }
    asked = [row["question"] for row in rows]
    trained = {
        e["instruction"] for s in ("open_train", "open_dev") for e in open_world.instructions(s, 160, 1)
    }
    assert len(set(asked)) == len(asked) >= 190 and not trained & set(asked)
    # Some are test prompts, and their first form is what a configuration's cue begins.
    cue = (
        "{person} can find the {thing} in the {label}."
        if task == "open_place"
        else "{person} has {label} {units}."
    )
    both = [row for row in rows if row["question"] in shown]
    assert len(both) > 20
    assert all(cue.format_map(row) in shown[row["question"]] for row in both)
    with pytest.raises(ValueError, match="has the classification tasks open_place, open_total"):
        open_world.classification("colour")


def test_no_sentence_belongs_to_two_forms_and_no_form_begins_another() -> None:
    rng = random.Random(0)
    for _, task in open_world.TASKS:
        shapes = [[skeleton(part) for part in SENTENCES.split(text)] for text in sorted(task(rng, 16)[1])]
        every = [shape for sentences in shapes for shape in set(sentences)]
        assert len(every) == len(set(every))
        whole = [sum(sentences, ()) for sentences in shapes]
        for i, a in enumerate(whole):
            for j, b in enumerate(whole):
                assert i == j or b[: len(a)] != a


def test_no_form_is_in_the_plain_text_but_its_words_are() -> None:
    texts = open_world.plain_text(2000)
    sentences = {skeleton(part) for text in texts for part in SENTENCES.split(text)}
    for _, task in open_world.TASKS:
        for text in task(random.Random(1), 16)[1]:
            assert not {skeleton(part) for part in SENTENCES.split(text)} & sentences
    assert THINGS.keys() <= set(re.findall(r"\w+", " ".join(texts)))


def test_both_halves_take_turns() -> None:
    rows = open_world.instructions("both_train", 41, 4)
    assert rows[::2] == embedded_corpus.instructions("train", 21)
    assert rows[1::2] == open_world.instructions("open_train", 20, 4)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(
        ValueError, match="splits open_train, open_dev, open_test, both_train, both_dev, not 'open'"
    ):
        open_world.instructions("open", 1)
    with pytest.raises(ValueError, match="1, 2, 4, 8, 16 forms, not 3"):
        open_world.instructions("open_test", 1, 3)
    with pytest.raises(ValueError, match="fewer than 5000 rows in 'open_test'"):
        open_world.instructions("open_test", 5000)
