"""Stage `harness`: a task file of our own through lm-eval, where it is installed, and what is said if not."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from word_model import word_model

from minillm.config.launch import Launch
from minillm.config.measurements.harness import Harness, HarnessSettings
from minillm.errors import UserError
from minillm.evaluation.harness import cut_to, entries, run_stage
from minillm.files import settings_hash
from minillm.models.loading import load_model

# The model has two rows more: padding.
WORDS = ["<end>", *"abcdefghij"]
# Question, choices, number of the right one.
QUESTIONS = [("a b", ["c", "d", "e"], 0), ("f", ["g", "h", "i"], 2), ("j a", ["b", "c", "d"], 1)] * 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return word_model(tmp_path / "model", WORDS)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task of lm-eval and its data."""
    place = tmp_path / "tasks"
    place.mkdir()
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    (place / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: dict[str, Any] = {
        "task": "letters",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(place / "letters.jsonl")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (place / "letters.yaml").write_text(yaml.safe_dump(task))
    return place


def settings(folder: Path | str, tasks: Sequence[str] = ("letters",), **keys: Any) -> HarnessSettings:
    return HarnessSettings("harness", Harness(tuple(tasks), str(folder), **keys), "fp32", 0)


def chosen(model: Any, question: str, choices: list[str]) -> int:
    """The likeliest next word, by a pass in float64 over the tokenizer's words."""
    ids = torch.tensor([[WORDS.index(word) for word in question.split()]])
    with torch.no_grad():
        logits = model.double()(ids).logits[0, -1, : len(WORDS)]
    return max(range(len(choices)), key=lambda i: float(logits[WORDS.index(choices[i])]))


def test_a_task_of_our_own(folder: Path, tasks: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `harness`)")
    out = tmp_path / "tasks.json"
    given = settings(tasks)
    run_stage(given, Launch(), model=folder, out=out)
    metric = json.loads(out.read_text())
    model = load_model(folder, "fp32")
    right = [chosen(model, question, choices) == answer for question, choices, answer in QUESTIONS]
    (entry,) = metric["results"]
    assert (entry["task"], entry["metric"], entry["filter"], entry["n"]) == ("letters", "acc", "none", 6)
    assert entry["value"] == pytest.approx(sum(right) / 6)
    spread = math.sqrt(sum((hit - sum(right) / 6) ** 2 for hit in right) / 5)
    assert entry["error"] == pytest.approx(spread / math.sqrt(6))
    assert metric["sources_sha256"] == {
        str(folder): json.loads((folder / "provenance.json").read_text())["content"]
    }

    assert metric["settings_sha256"] == settings_hash(dataclasses.asdict(given))
    # Fewer questions, with examples.
    run_stage(settings(tasks, limit=2, fewshot=1), Launch(), model=folder, out=out)
    fewer = json.loads(out.read_text())
    assert (fewer["results"][0]["n"], fewer["limit"], fewer["fewshot"]) == (2, 2, 1)
    with pytest.raises(UserError, match="harness.tasks: lm-eval has no task 'nowhere'; `lm-eval ls tasks`"):
        run_stage(settings(tasks, ["nowhere"]), Launch(), model=folder, out=tmp_path / "no.json")
    (tasks / "letters.jsonl").unlink()
    with pytest.raises(UserError, match="^harness.tasks: lm-eval failed ") as caught:
        run_stage(settings(tasks), Launch(), model=folder, out=tmp_path / "no.json")
    assert "\n" not in str(caught.value) and not (tmp_path / "no.json").exists()


def test_without_lm_eval_one_line_says_how_to_get_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "lm_eval":
            raise ModuleNotFoundError("No module named 'lm_eval'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    line = r"^harness.tasks: needs lm-eval \(No module .*\); install it with: pip install '.\[harness\]'$"
    with pytest.raises(UserError, match=line):
        run_stage(settings(""), Launch(), model=folder, out=tmp_path / "m.json")


def test_padding_of_the_embedding_is_cut_off(folder: Path) -> None:
    model = load_model(folder, "fp32")
    ids = torch.tensor([[1, 2, 3]])
    whole = model(ids).logits
    cut_to(model, len(WORDS))
    assert whole.shape[-1] == 13 and torch.equal(model(ids).logits, whole[..., :11])


def test_every_number_of_lm_evals_results_is_an_entry() -> None:
    measured = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.25,
                "exact_match_stderr,strict-match": 0.1,
                "exact_match,flexible-extract": 0.5,
                "exact_match_stderr,flexible-extract": "N/A",
            },
            "a-group": {"acc,none": 1, "acc_stderr,none": float("nan")},
        },
        "n-samples": {"gsm8k": {"original": 1319, "effective": 8}},
        "versions": {"gsm8k": 3.0},
    }
    found = [tuple(entry.values()) for entry in entries(measured)]
    assert found == [
        ("a-group", "acc", "none", 1, None, None, None),
        ("gsm8k", "exact_match", "flexible-extract", 0.5, None, 8, 3.0),
        ("gsm8k", "exact_match", "strict-match", 0.25, 0.1, 8, 3.0),
    ]
