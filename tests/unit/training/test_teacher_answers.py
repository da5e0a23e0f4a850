"""The teacher's answers for SeqKD: short, doubled, foreign or damaged ones end in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_case import BASE, message

from minillm.data.prepare import run_stage as prepare
from minillm.data.rows import Rows
from minillm.files import sha256, write_json
from minillm.training.base_model import plain_text_examples
from minillm.training.supervised import training_examples

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "data"
    prepare(BASE, out=folder)
    return folder


def answers(data: Path) -> Lines:
    """To two dev rows and to five training rows."""
    return [
        {"id": i, "split": split, "response": "a", "response_tokens": [i % 7, 399], "finished": True}
        for split, count in (("dev", 2), ("train", 5))
        for i in Rows.open(data, split).ids[:count]
    ]


def save(path: Path, lines: Lines) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_answers_come_in_the_order_of_the_rows(data: Path, tmp_path: Path) -> None:
    lines = answers(data)
    train, dev = training_examples(data, save(tmp_path / "t.jsonl", lines))
    again, _ = training_examples(data, save(tmp_path / "u.jsonl", lines[::-1]))
    assert [response.tolist() for _, response in train] == [line["response_tokens"] for line in lines[2:]]
    assert [response.tolist() for _, response in train] == [response.tolist() for _, response in again]
    assert len(dev) == 2 and train[3][0].tolist() == Rows.open(data, "train").prompt(3).tolist()


def test_healing_reads_prompt_and_answer_as_one_text(data: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "t.jsonl", answers(data))
    without, texts = (plain_text_examples(data, with_rows=True, pseudo=pseudo) for pseudo in (None, path))
    assert len(texts) == len(without) + 5
    prompt, answer = Rows.open(data, "train").prompt(3), answers(data)[5]["response_tokens"]
    assert np.concatenate(texts[-2]).tolist() == [*prompt.tolist(), *answer]


def changed(number: int, **values: Any) -> Callable[[Lines], Any]:
    return lambda lines: lines.__setitem__(number, lines[number] | values)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda lines: lines.pop(4), "no answer to the train row"),
        (lambda lines: lines.__delitem__(slice(2, None)), "no answer to a training row"),
        (lambda lines: lines.append(lines[3]), "is answered twice"),
        (changed(3, response_tokens=[1, 400]), "t.jsonl:4: 400 is not a token of a vocabulary of 400"),
        (changed(3, response_tokens=[-1]), "-1 is not a token"),
        (changed(3, response_tokens=[1.5]), "1.5 is not a token"),
        (changed(3, response_tokens=[]), "t.jsonl:4: no tokens"),
        (changed(3, response_tokens="1"), "'response_tokens' is missing or of the wrong type"),
        (changed(3, id=10**9), "no train row has the id 1000000000"),
        (changed(3, split="test"), "no test row has the id"),
    ],
)
def test_damaged_answers_are_one_line(data: Path, tmp_path: Path, edit: Any, said: str) -> None:
    lines = answers(data)
    edit(lines)
    path = save(tmp_path / "t.jsonl", lines)
    found = message(lambda: training_examples(data, path))
    assert said in found and found.endswith("make the teacher's answers again")


def test_a_cut_file_and_one_that_is_not_text(data: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "t.jsonl", answers(data))
    write_json(path.with_suffix(".meta.json"), {"content": sha256(path)})
    training_examples(data, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert "changed or cut short" in message(lambda: training_examples(data, path))
    path.with_suffix(".meta.json").unlink()
    for text in (b"".join([lines[0].encode()[:20], b"\n"]), b"\xff\n", b"", b"[" * 10_000 + b"\n"):
        path.write_bytes(text)
        assert message(lambda: training_examples(data, path)).startswith(f"{path}")
