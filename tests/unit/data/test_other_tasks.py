"""Rows of other tasks than instructions: rows chosen by a column, one instruction for all, options."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_case import needs_data

from minillm.config.data import Dataset
from minillm.config.derive import canonical
from minillm.data.sources import read_entries, read_rows, read_texts
from minillm.errors import UserError
from minillm.evaluation.numeric import score
from minillm.files import without_unset

REPO = Path(__file__).resolve().parents[3]


def file_of(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(path: str, **keys: Any) -> list[Any]:
    return read_rows(Dataset(source="folder", path=path, **keys), "datasets.a")


def test_rows_are_chosen_by_their_columns(tmp_path: Path) -> None:
    rows = [
        {"instruction": str(i), "output": "x", "topic": topic, "level": i % 2}
        for i, topic in enumerate(["a", "b", "a", "a", "b"])
    ]
    path = file_of(tmp_path, *rows)
    assert [row.id for row in rows_of(path, where={"topic": "a"})] == [0, 2, 3]
    assert [row.id for row in rows_of(path, where={"topic": "a", "level": "0"})] == [0, 2]
    # The slice comes first, and ids are positions in the source.
    assert [row.id for row in rows_of(path, where={"topic": "a"}, start=1, rows=2)] == [2]
    entries = read_entries(Dataset(source="folder", path=path, where={"topic": "b"}), "datasets.a")
    assert [i for i, _, _ in entries] == [1, 4]
    for where in ({"topic": "c"}, {"nowhere": "None"}):
        with pytest.raises(UserError, match="no rows here; check path, start, rows and where$"):
            rows_of(path, where=where)


def test_rows_of_the_embedded_world_are_chosen_by_category() -> None:
    dataset = Dataset(source="embedded", split="test", rows=80, where={"category": "count"})
    rows = read_rows(dataset, "datasets.a")
    every = read_rows(dataclasses.replace(dataset, where=None), "datasets.a")
    assert rows == [row for row in every if row.category == "count"] and 0 < len(rows) < len(every)


def test_one_instruction_for_all_rows(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"document": "Long.", "summary": "Short."})
    fields = {"input": "document", "output": "summary"}
    (row,) = rows_of(path, instruction="Summarize.", fields=fields)
    assert (row.instruction, row.input, row.outputs) == ("Summarize.", "Long.", ("Short.",))
    with pytest.raises(UserError, match="datasets.a: instruction: fields names a column for it already"):
        rows_of(path, instruction="Summarize.", fields={**fields, "instruction": "document"})


@pytest.mark.parametrize("key", [{"where": {"a": "b"}}, {"instruction": "x"}])
def test_plain_text_has_no_rows(key: dict[str, Any], tmp_path: Path) -> None:
    path = file_of(tmp_path, {"text": "words"})
    with pytest.raises(UserError, match=rf"data.corpus.{next(iter(key))}: plain text has no rows"):
        read_texts(Dataset(source="folder", path=path, **key), "data.corpus")


FIELDS = {"instruction": "question", "options": "choices", "output": "answer"}


@pytest.mark.parametrize("answer", [1, "B", " B ", "the moon"])
def test_options_are_shown_and_the_right_one_is_the_reference(answer: Any, tmp_path: Path) -> None:
    row = {"question": "What shines?", "choices": ["a shoe", "the moon"], "answer": answer}
    (read,) = rows_of(file_of(tmp_path, row), fields=FIELDS)
    assert read.input == "A. a shoe\nB. the moon"
    assert read.outputs == ("B", "the moon") and dict(read.options) == {"A": "a shoe", "B": "the moon"}


def test_options_with_labels_of_their_own_and_an_input(tmp_path: Path) -> None:
    row = {
        "question": "Which?",
        "input": "Context.",
        "choices": {"text": ["x", "y"], "label": ["1", "2"]},
        "answer": "2",
    }
    (read,) = rows_of(file_of(tmp_path, row), fields=FIELDS)
    assert read.input == "Context.\n1. x\n2. y" and read.outputs == ("2", "y")


def test_a_column_of_options_is_not_read_unless_it_is_named(tmp_path: Path) -> None:
    row = {"instruction": "q", "options": ["a", "b"], "output": "free text"}
    (read,) = rows_of(file_of(tmp_path, row))
    assert read.options == () and read.input == "" and read.outputs == ("free text",)


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (None, 0, "rows.jsonl:1: the field 'choices' has no options"),
        (["one"], 0, "has no options"),
        (["a", 2], 0, "has no options"),
        ({"label": ["A", "A"], "text": ["x", "y"]}, "A", "has no options"),
        ({"label": ["A"], "text": ["x", "y"]}, "A", "has no options"),
        (["a", "b"], 2, "the field 'answer' names none of the options"),
        (["a", "b"], True, "names none of the options"),
        (["a", "b"], "C", "names none of the options"),
    ],
)
def test_damaged_options_are_refused(choices: Any, answer: Any, message: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, {"question": "q", "choices": choices, "answer": answer})
    with pytest.raises(UserError, match=message):
        rows_of(path, fields=FIELDS)


def test_new_keys_are_in_no_settings_file_unless_they_are_set() -> None:
    old = without_unset(dataclasses.asdict(Dataset(source="embedded", split="test")))
    assert not {"where", "instruction"} & set(old)
    new = without_unset(dataclasses.asdict(Dataset(source="embedded", split="test", where={"a": "b"})))
    assert '"where": {"a": "b"}' in canonical(new)


# --- the catalogue, on local files with the same columns
def catalogue(name: str, path: str) -> Dataset:
    entry = yaml.safe_load((REPO / "config/datasets.yaml").read_text())["datasets"][name]
    entry = {key: value for key, value in entry.items() if key not in ("subset", "split", "revision")}
    return Dataset(**{**entry, "source": "folder", "path": path})


def test_gsm8k(tmp_path: Path) -> None:
    answer = "She sold 48/2 = <<48/2=24>>24 clips.\nThat makes 48+24 = <<48+24=72>>72.\n#### 72"
    path = file_of(tmp_path, {"question": "How many clips?", "answer": answer})
    (row,) = read_rows(catalogue("gsm8k", path), "datasets.gsm8k")
    assert row.instruction == "How many clips?" and row.outputs == (answer,)
    assert score("So it is 72 clips", row.outputs) == 100 and score("24", row.outputs) == 0


def test_xsum_and_dialogsum(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"document": "News.", "dialogue": "A: Hi.", "summary": "Short.", "id": "1"})
    for name, text in (("xsum", "News."), ("dialogsum", "A: Hi.")):
        (row,) = read_rows(catalogue(name, path), f"datasets.{name}")
        assert row.instruction.startswith("Summarize") and (row.input, row.outputs) == (text, ("Short.",))


@needs_data
def test_dollys_summaries() -> None:
    path = f"{os.environ['MINILLM_DATA']}/dolly/test.jsonl"
    rows = rows_of(path, where={"topic": "summarization"})
    assert len(rows) == 28 and all(row.input and row.outputs[0] for row in rows)
