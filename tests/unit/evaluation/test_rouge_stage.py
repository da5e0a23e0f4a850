"""Generations to a metric file, and what is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from minillm.config.measurements.rouge import RougeSettings
from minillm.errors import UserError
from minillm.evaluation.rouge import run_stage as evaluate
from minillm.files import record_hash


def row(seed: int, id_: int, response: str) -> dict:
    return {
        "id": id_,
        "dataset": "t",
        "prompt": "p",
        "references": ["red blue"],
        "response": response,
        "seed": seed,
    }


ROWS = [row(10, 3, "red blue"), row(10, 7, "pink"), row(20, 3, "red blue"), row(20, 7, "red gray")]


def write(folder: Path, rows: list, meta: dict | None = None) -> Path:
    path = folder / "t.jsonl"
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows)
    )
    values = {"model": "abc", "sampling": {"temperature": 1.0}, "seeds": [10, 20], "dataset": "t", "rows": 2}
    path.with_suffix(".meta.json").write_text(json.dumps({**values, **(meta or {})}))
    return path


def test_metric_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    evaluate(generations=path, out=tmp_path / "out/t.json")
    metric = json.loads((tmp_path / "out/t.json").read_text())
    assert metric == {
        "metric": "rougeL",
        "dataset": "t",
        "n": 2,
        "seeds": [10, 20],
        "mean": pytest.approx(62.5),
        "standard_error": pytest.approx(math.sqrt(2 * 12.5**2) / math.sqrt(2)),
        "over": "sampling seeds",
        "per_seed": {"10": pytest.approx(50), "20": pytest.approx(75)},
        "ids": [3, 7],
        "scores": {"10": pytest.approx([100, 0]), "20": pytest.approx([100, 50])},
        "exact_match": pytest.approx(50),
        "exact_match_error": 0,
        "sampling": {"temperature": 1.0},
        "sources": [str(path)],
        "record_sha256": record_hash(metric),
    }


def test_one_seed_has_no_error(tmp_path: Path) -> None:
    evaluate(generations=write(tmp_path, ROWS[:2], {"seeds": [10]}), out=tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["standard_error"] is None


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    evaluate(generations=write(tmp_path, ROWS), out=tmp_path / "a.json")
    evaluate(generations=write(tmp_path, ROWS[::-1]), out=tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_separators_inside_a_text_end_no_line(tmp_path: Path) -> None:
    evaluate(
        generations=write(tmp_path, [*ROWS[:3], row(20, 7, "red\u2028\x85gray")]), out=tmp_path / "m.json"
    )
    assert json.loads((tmp_path / "m.json").read_text())["scores"]["20"] == pytest.approx([100, 50])


def without(key: str) -> dict:
    return {k: v for k, v in ROWS[1].items() if k != key}


@pytest.mark.parametrize(
    ("rows", "meta", "line"),
    [
        (
            [ROWS[0], '{"id": 7, "resp', *ROWS[2:]],
            {},
            "FILE:2: not JSON .*; remove it and generate again",
        ),
        (
            [ROWS[0], "[]", *ROWS[2:]],
            {},
            "FILE:2: not a JSON object, .*; remove it and generate again",
        ),
        (
            [ROWS[0], without("response"), *ROWS[2:]],
            {},
            "FILE:2: 'response' is missing or of the wrong type; .*",
        ),
        (
            [ROWS[0], {**ROWS[1], "references": []}],
            {},
            "FILE:2: 'references' must be a list of at least one text; .*",
        ),
        ([*ROWS, ROWS[1]], {}, "FILE:5: seed 10, id 7 is in line 2 already; remove it and generate again"),
        (
            ROWS[:3],
            {},
            "FILE: seed 20 lacks 1 rows that other seeds have, first id 7; remove it and generate again",
        ),
        (
            ROWS,
            {"rows": 3},
            "FILE: 2 rows for each seed, but its meta file says 3; remove it and generate again",
        ),
        (ROWS, {"rows": "2"}, "META: 'rows' is missing or of the wrong type; remove it and generate again"),
        (ROWS, {"seeds": 10}, "META: 'seeds' is missing or of the wrong type; remove it and generate again"),
        (
            ROWS,
            {"seeds": [10]},
            r"FILE: seeds \[10, 20\], but its meta file says \[10\]; remove it and generate again",
        ),
    ],
)
def test_damage_is_one_line_with_the_place(tmp_path: Path, rows: list, meta: dict, line: str) -> None:
    path = write(tmp_path, rows, meta)
    with pytest.raises(UserError) as error:
        evaluate(generations=path, out=tmp_path / "m.json")
    line = line.replace("FILE", re.escape(str(path))).replace(
        "META", re.escape(str(path.with_suffix(".meta.json")))
    )
    assert re.fullmatch(line, str(error.value))
    assert not (tmp_path / "m.json").exists()


def test_a_failed_write_leaves_the_earlier_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write(tmp_path, ROWS), tmp_path / "out/m.json"
    evaluate(generations=path, out=out)
    before = out.read_bytes()

    def half(self: Path, text: str, *_: object, **__: object) -> int:
        with open(self, "w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="disk full"):
            evaluate(generations=path, out=out)
    assert out.read_bytes() == before
    assert [file.name for file in out.parent.iterdir()] == ["m.json"]


def test_missing_and_damaged_meta(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    meta = path.with_suffix(".meta.json")
    for text, line in (("{", "not JSON"), ("{}", "'dataset' is missing"), (None, "no such file")):
        meta.unlink() if text is None else meta.write_text(text)
        with pytest.raises(UserError, match=f"^{re.escape(str(meta))}: {line}.*$"):
            evaluate(generations=path, out=tmp_path / "m.json")
    write(tmp_path, ROWS)
    path.unlink()
    with pytest.raises(UserError, match="no such generations file"):
        evaluate(generations=path, out=tmp_path / "m.json")


def test_rows_in_other_scripts_are_counted_and_scored_on_request(tmp_path: Path) -> None:
    text = "\u4f60\u597d"
    rows = [r if r["id"] == 3 else {**r, "references": [text], "response": text} for r in ROWS]
    path = write(tmp_path, rows)
    evaluate(generations=path, out=tmp_path / "a.json")
    metric = json.loads((tmp_path / "a.json").read_text())
    assert metric["without_tokens"] == {"count": 1, "first_ids": [7]} and "tokenizer" not in metric
    assert metric["scores"]["10"] == [100, 0]
    evaluate(RougeSettings("rouge", "unicode"), generations=path, out=tmp_path / "b.json")
    metric = json.loads((tmp_path / "b.json").read_text())
    assert metric["scores"]["10"] == [100, 100]
    assert metric["tokenizer"] == "unicode" and "without_tokens" not in metric


@pytest.mark.parametrize(
    ("meta", "key"),
    [
        ({"seeds": ["10", "20"]}, "seeds"),
        ({"seeds": [10, 10]}, "seeds"),
        ({"rows": 2.0}, "rows"),
        ({"rows": True}, "rows"),
    ],
)
def test_a_damaged_meta_file_is_one_line(tmp_path: Path, meta: dict, key: str) -> None:
    path = write(tmp_path, ROWS, meta)
    with pytest.raises(UserError, match=rf"t\.meta\.json: '{key}' .*; remove it and generate again$"):
        evaluate(generations=path, out=tmp_path / "out.json")
