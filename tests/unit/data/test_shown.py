"""Stage `prompts`: the rows of a data folder by another text, for the teacher to read."""

from __future__ import annotations

import dataclasses
import json

import pytest
from chat_case import HEADERS, MARKS, conversations, make_tokenizer, spec, turns
from chat_case import settings as chat_settings
from data_case import BASE, card, message, row, rows_file

from minillm.config.stage_settings import PromptsSettings
from minillm.config.teaching import PROMPTS, check_prompt
from minillm.data.prepare import run_stage as prepare
from minillm.data.rows import Rows
from minillm.data.shown import run_stage, shown
from minillm.data.sources import Row
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.files import identity
from minillm.models.loading import load_tokenizer

SHOWS = "{question}\n\nRight: {output}"


def settings(data, text=SHOWS, **more):
    common = {name: getattr(data, name) for name in ("template", "train", "dev", "turns")}
    return PromptsSettings(**{"stage": "prompts", "name": "p", "text": text, **common, **more})


def made(folder, data, **more):
    prepare(data, out=folder / "data")
    run_stage(settings(data, **more), data=folder / "data", out=folder / "shown")
    return folder / "data", folder / "shown"


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_the_rows_by_another_text_with_the_same_responses(tmp_path, template):
    base = dataclasses.replace(BASE, template=template, max_prompt={"plain": 40, "alpaca": 175}[template])
    data, folder = made(tmp_path, base)
    tokenizer = load_tokenizer(data / "tokenizer")
    for split in ("train", "dev"):
        ours, theirs = Rows.open(data, split), Rows.open(folder, split)
        assert ours.ids == theirs.ids and len(ours) > 10
        for i, record in enumerate(theirs.records):
            asked = Row(0, record["instruction"], record["input"], (record["response"],))
            whole = f"{asked.instruction}\n\n{asked.input}" if asked.input else asked.instruction
            text = f"{whole}\n\nRight: {asked.outputs[0]}"
            head, tail = {
                "plain": ("", "\n### Response:\n"),
                "alpaca": (
                    "Below is an instruction that describes a task. Write a response that appropriately "
                    "completes the request.\n\n### Instruction:\n",
                    "\n\n### Response:\n",
                ),
            }[template]
            assert record["prompt"] == head + text + tail
            assert tokenizer.decode(theirs.prompt(i).tolist()) == record["prompt"]
            assert theirs.response(i).tolist() == ours.response(i).tolist()
            assert record["response"] == ours.records[i]["response"] and record["category"]
            # Alpaca's wrapper has more words around an input of its own.
            assert template == "alpaca" or len(theirs.prompt(i)) > len(ours.prompt(i))
        # Some are longer than what a student's prompt may be, and none is dropped.
        assert template == "alpaca" or theirs.lengths[:, 0].max() > base.max_prompt
    opened = TeacherPrompts.open(data, folder)
    assert opened is not None and opened.swap is None
    assert card(folder / "card.json")["data"] == identity(data) and identity(folder) != identity(data)


def test_without_a_text_the_prompts_are_the_rows_own(tmp_path):
    data, folder = made(tmp_path, BASE, text=PROMPTS["usual"])
    for split in ("train", "dev"):
        ours, theirs = Rows.open(data, split), Rows.open(folder, split)
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert [{**r, "category": "x"} for r in ours.records] == [
            {**r, "category": "x"} for r in theirs.records
        ]


@pytest.mark.parametrize("turns_", ["last", "all"])
def test_conversations_keep_their_earlier_turns(tmp_path, turns_):
    make_tokenizer(tmp_path / "tokenizer", MARKS)
    data = dataclasses.replace(
        chat_settings(tmp_path, spec(tmp_path / "tokenizer", thinking=False)),
        train=conversations(tmp_path / "a.jsonl", turns("Hi", "Yo", "And {you}?", "Fine {0}.")),
        dev=conversations(tmp_path / "b.jsonl", turns("Bye", "See you.", system="Be brief.")),
        turns=turns_,
    )
    _, folder = made(tmp_path, data)
    rows = {r["id"]: r["prompt"] for r in Rows.open(folder, "train").records}
    assert len(rows) == (2 if turns_ == "all" else 1)
    assert rows[0] == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\nAnd {you}?\n\nRight: Fine {0}.<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n"
    )
    [dev] = Rows.open(folder, "dev").records
    assert dev["prompt"].startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nBye\n\nRight: "
    )


def test_two_templates_with_two_ends(tmp_path):
    """The pair's teacher reads its own template, and its own end is exchanged for the student's."""
    for name, template in (("marks", MARKS), ("headers", HEADERS)):
        make_tokenizer(tmp_path / name, template)
    marks, headers = spec(tmp_path / "marks"), spec(tmp_path / "headers")
    ours, theirs = chat_settings(tmp_path, marks, headers), chat_settings(tmp_path, headers, marks)
    for name, data in (("ours", ours), ("theirs", theirs)):
        prepare(data, out=tmp_path / name)
    run_stage(settings(theirs), data=tmp_path / "theirs", out=tmp_path / "shown")
    opened = TeacherPrompts.open(tmp_path / "ours", tmp_path / "shown")
    usual = TeacherPrompts.open(tmp_path / "ours", tmp_path / "theirs")
    assert opened is not None and usual is not None and opened.swap == usual.swap is not None


def test_categories_come_from_the_column_that_is_named(tmp_path):
    rows = [row(f"Say {i}.", topic="ab"[i % 2]) for i in range(4)]
    train = dataclasses.replace(rows_file(tmp_path / "t.jsonl", *rows), fields={"category": "topic"})
    data = dataclasses.replace(BASE, train=train)
    _, folder = made(tmp_path, data)
    assert [r["category"] for r in Rows.open(folder, "train").records] == ["a", "b", "a", "b"]


def test_rows_of_another_source_are_refused(tmp_path):
    data, _ = made(tmp_path, BASE)
    other = rows_file(tmp_path / "t.jsonl", *[row(f"Say {i}.") for i in range(100)])
    said = message(lambda: run_stage(settings(BASE, train=other), data=data, out=tmp_path / "again"))
    assert said.startswith("data.train: row 0 is not the one in ") and not (tmp_path / "again").exists()


def test_texts_put_nothing_else_in():
    asked = Row(1, "Add {x}.", "2 and 3", ("{question} 5 ",))
    assert shown(asked, "{{{instruction}}} [{input}] {question}: {output}").instruction == (
        "{Add {x}.} [2 and 3] Add {x}.\n\n2 and 3: {question} 5"
    )
    assert shown(asked, "") is asked
    again = json.loads(json.dumps(PROMPTS))
    assert "{output}" in again["demonstration"] and "{question}" in again["demonstration"]
    check_prompt("demonstration", again["demonstration"], "x")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p", "{output}", "the teacher would not see the question; put in {question}"),
        ("p", " {question} ", "shows the teacher nothing but the row; put in {output}, or text"),
        ("p", "{instruction}\n{input}", "shows the teacher nothing but the row; put in {output}, or text"),
        (
            "p",
            "{question} {prompt}",
            "cannot put in '{prompt}'; known: {instruction}, {input}, {question}, {output}",
        ),
        (
            "p",
            "{question!r}",
            "cannot put in '{question}'; known: {instruction}, {input}, {question}, {output}",
        ),
        (
            "p",
            "{question} {",
            "Single '{' encountered in format string; write {{ and }} for braces of the text itself",
        ),
        ("usual", "{question}!", "this name stands for the row's own prompt; choose another"),
    ],
)
def test_texts_that_are_no_templates_are_refused(name, text, said):
    assert message(lambda: check_prompt(name, text, "x")) == f"x: data.prompts.{name}: {said}"
