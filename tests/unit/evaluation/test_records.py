"""Generations and metrics that contradict their own record, or the place where they lie, are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm.errors import UserError
from minillm.evaluation.generations import read_generations
from minillm.evaluation.records import check_scores
from minillm.files import RECORD, check_record, sha256, write_json

Rows = list[dict[str, Any]]


def run(folder: Path) -> Path:
    """A generations file in a run's folder, with its model and its record."""
    path = folder / "results/run/generations/small/sft/seed10/easy.jsonl"
    rows = [
        {
            "id": i,
            "dataset": "easy",
            "prompt": f"p{i}",
            "references": [f"r{i}"],
            "response": "r0",
            "seed": seed,
        }
        for seed in (10, 20)
        for i in (0, 1)
    ]
    save(path, rows)
    write_json(
        folder / "results/run/models/small/sft/seed10/provenance.json", {"content": "weights", "settings": {}}
    )
    return path


def save(path: Path, rows: Rows, **meta: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"dataset": "easy", "rows": 2, "seeds": [10, 20], "sampling": {}, "model": "weights"}
    write_json(path.with_suffix(".meta.json"), {**values, "content": sha256(path), **meta})


def rows_of(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def other_references(path: Path) -> None:
    rows = rows_of(path)
    rows[2]["references"] = ["another"]
    save(path, rows)


def other_prompt(path: Path) -> None:
    rows = rows_of(path)
    rows[3]["prompt"] = "another"
    save(path, rows)


def row_of_another_test(path: Path) -> None:
    rows = rows_of(path)
    rows[1]["dataset"] = "hard"
    save(path, rows)


def of_another_test(path: Path) -> None:
    save(path, [{**row, "dataset": "hard"} for row in rows_of(path)], dataset="hard")


def of_another_model(path: Path) -> None:
    save(path, rows_of(path), model="others")


def an_answer(path: Path) -> None:
    path.write_text(path.read_text().replace('"r0", "seed": 20', '"r1", "seed": 20'))


def a_value_of_the_meta_file(path: Path) -> None:
    file = path.with_suffix(".meta.json")
    file.write_text(file.read_text().replace('"sampling": {}', '"sampling": {"top_k": 1}'))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            other_references,
            "seed 20, id 0: 'references' differs from that of seed 10; remove it and generate",
        ),
        (other_prompt, "seed 20, id 1: 'prompt' differs from that of seed 10"),
        (row_of_another_test, "seed 10, id 1 is of the test set 'hard', but easy.meta.json says 'easy'"),
        (of_another_test, "answers to the test set 'hard', not 'easy'; remove it and generate again"),
        (of_another_model, "not by the weights in .*/models/small/sft/seed10; remove it and generate again"),
        (an_answer, "not the answers that easy.meta.json describes, or changed; remove it"),
        (a_value_of_the_meta_file, "easy.meta.json: changed since it was written"),
    ],
)
def test_generations_are_what_their_record_says(
    tmp_path: Path, edit: Callable[[Path], None], said: str
) -> None:
    path = run(tmp_path)
    assert read_generations(path)[2] == [0, 1]
    edit(path)
    with pytest.raises(UserError, match=said) as error:
        read_generations(path)
    assert "\n" not in str(error.value)


def test_generations_of_earlier_versions_and_other_places_are_read(tmp_path: Path) -> None:
    path = run(tmp_path)
    meta = json.loads(path.with_suffix(".meta.json").read_text())
    for key in ("content", RECORD):
        del meta[key]
    path.with_suffix(".meta.json").write_text(json.dumps(meta))
    assert read_generations(path)[2] == [0, 1]
    save(tmp_path / "mine.jsonl", rows_of(path), model="others")
    assert read_generations(tmp_path / "mine.jsonl")[2] == [0, 1]


def test_means_are_those_of_the_scores() -> None:
    metric = {"mean": 20.0, "per_seed": {"10": 15.0, "20": 25.0}, "scores": {"10": [10, 20], "20": [25, 25]}}
    check_scores(metric)
    for change, said in (
        ({"mean": 20.5}, "mean is 20.5"),
        ({"per_seed": {"10": 15.5, "20": 25.0}}, "per_seed of 10 is 15.5, but the mean of its values 15.0"),
        ({"per_seed": {"10": 15.0}}, "per_seed has the seeds"),
    ):
        with pytest.raises(ValueError, match=said):
            check_scores(metric | change)


def test_a_record_binds_its_values_whatever_their_order(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": (1, 2.5), "a": {3: "x"}})
    value = json.loads(path.read_text())
    assert value["b"] == [1, 2.5] and list(value)[-1] == RECORD
    check_record(dict(reversed(value.items())), path, "again")
    for change in ({"b": [1, 2.6]}, {"c": 0}, {"a": {}}):
        with pytest.raises(UserError, match=f"a.json: changed since it was written .*{RECORD}.*; again$"):
            check_record(value | change, path, "again")
    check_record({"b": 1}, path, "again")
