"""What a verification says: values compared one by one, differences in one line each, a summary."""

from __future__ import annotations

import json
from pathlib import Path

from minillm.errors import UserError
from minillm.files import write_json
from minillm.verify.findings import Findings
from minillm.verify.metrics import compare
from minillm.verify.records import each
from minillm.verify.run_folder import Run


def differing(recorded: object, found: object, tolerance: float = 1e-9) -> list[str]:
    return list(compare(json.loads(json.dumps(recorded)), json.loads(json.dumps(found)), tolerance))


def test_values_are_compared_one_by_one() -> None:
    value = {"mean": 1.0, "n": 3, "rows": [{"a": None}, {"a": "x"}], "flag": True, "sources": ["here"]}
    assert differing(value, value | {"sources": ["there"], "mean": 1.0 + 1e-12}) == []
    assert differing(value, value | {"of_a_later_version": 1}) == []
    assert differing(value, value | {"mean": 1.1}) == ["mean: recorded 1.0, computed again 1.1"]
    assert differing(value, value | {"rows": [{"a": None}, {"a": "y"}]}) == [
        "rows.1.a: recorded x, computed again y"
    ]
    assert differing(value, value | {"flag": 0}) == ["flag: recorded True, computed again 0"]
    assert differing(value, value | {"n": None}) == ["n: recorded 3, computed again None"]
    assert differing(value, value | {"rows": []}) == [
        "rows: recorded [{'a': None}, {'a': 'x'}], computed again []"
    ]
    assert differing(value | {"more": 1}, value) == ["more: not there if computed again"]


def test_a_tolerance_is_relative_and_not_a_number_is_a_difference() -> None:
    assert differing({"a": 100.0}, {"a": 101.0}, 2e-2) == []
    assert len(differing({"a": 100.0}, {"a": 103.0}, 2e-2)) == 1
    assert len(differing({"a": float("nan")}, {"a": 1.0})) == 1


def test_one_line_for_each_difference_and_a_summary(tmp_path: Path) -> None:
    findings = Findings(tmp_path)
    findings.same(tmp_path / "a.json", "hashes", "x", "x")
    findings.same(tmp_path / "a.json", "hashes", "x", "y", "of weights")
    findings.same(tmp_path / "a.json", "hashes", "x", None)
    findings.skip("metrics of judge", "a judge is not asked again")

    def refuse(path: Path) -> None:
        raise UserError(f"{path}: damaged\nin two lines")

    def fail(path: Path) -> None:
        raise KeyError("prompt")

    each(findings, [tmp_path / "b.json"], refuse)
    each(findings, [tmp_path / "c.json"], fail)
    assert findings.differences == [
        "a.json: hashes, of weights: recorded y, found x",
        "b.json: damaged in two lines",
        "c.json: damaged: KeyError('prompt')",
    ]
    assert findings.summary() == [
        "checked: 2 hashes",
        "not checked: 1 hashes: not recorded (by a version before)",
        "not checked: 1 metrics of judge: a judge is not asked again",
        f"{tmp_path}: 3 differences",
    ]


def test_models_find_their_settings_and_parents(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.settings_key("big/base", "base") == "base/big"
    assert run.settings_key("big/teacher", "teacher") == "teacher/big"
    assert run.settings_key("small/init/seed10", "sft") == "sft/small/10"
    assert run.settings_key("small/kd/big/seed10", "kd") == "kd/small/big/10"
    assert run.settings_key("small/kd/big/seed10", "base") == "checkpoint/small/kd/big/seed10"
    write_json(tmp_path / "configs/base/small.json", {"model": {"tokenizer": "letters"}})
    write_json(tmp_path / "configs/checkpoint/big/teacher.json", {"model": {"tokenizer": "letters"}})
    assert run.tokenizers == {"small": "letters", "big": "letters"}
    weights, provenance = "small/minillm/big/seed10", {"settings": {"model": {"parent": "big"}}}
    places = {
        "data": "data/letters/training",
        "base": "models/small/base",
        "init": "models/small/init/seed10",
        "teacher": "models/big/teacher",
        "pseudo": "data/letters/pseudo/big.jsonl",
        "parent": "models/big/base",
    }
    for role, place in places.items():
        assert run.parent(weights, role, provenance) == tmp_path / place
    assert run.place("results/other/models/a/base") == tmp_path / "models/a/base"
    assert run.place("/x/results/other/models/a/base") == tmp_path / "models/a/base"
    assert run.place("mine/answers.json") == Path("mine/answers.json")
