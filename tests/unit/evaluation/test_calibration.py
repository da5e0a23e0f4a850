"""Calibration errors of known predictions, label words' probabilities of a tiny model, and real rows."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import yaml

from minillm.config.data import Dataset
from minillm.config.derive import stage_settings
from minillm.config.experiment import experiment
from minillm.config.launch import Launch
from minillm.config.measurements.calibration import CalibrationSettings, ClassificationTask
from minillm.config.strict import parse
from minillm.data.embedded_corpus import classification, instructions, plain_text
from minillm.data.sources import read_entries
from minillm.data.tokenizers import train_tokenizer
from minillm.errors import UserError
from minillm.evaluation.calibration import (
    LabelQuestion,
    _check_words,
    _passes,
    bin_of,
    ece,
    label_logprobs,
    measures,
    read_questions,
    reliability,
    run_stage,
)
from minillm.models.loading import save_model
from minillm.runtime import provenance

ROOT = Path(__file__).parents[3]


# --- the measure
def test_ece_of_constructed_predictions_is_exact() -> None:
    """By hand: 4 rows in each of two bins.

    Bin 0.6-0.7: 4 rows of 0.625, 3 right (gap 0.125); bin 0.9-1: 4 rows of 0.9375, 2 right (gap 0.4375).
    """
    confidence = np.array([0.625] * 4 + [0.9375] * 4)
    right = np.array([True, True, True, False, True, True, False, False])
    assert ece(confidence, right, 10) == 0.5 * 0.125 + 0.5 * 0.4375
    bins = reliability(confidence, right, 10)
    assert [(b["n"], b["confidence"], b["accuracy"]) for b in bins if b["n"]] == [
        (4, 0.625, 0.75),
        (4, 0.9375, 0.5),
    ]
    assert (bins[6]["from"], bins[6]["to"], bins[0]["confidence"]) == (0.6, 0.7, None)


def test_both_definitions_of_the_confidence() -> None:
    """Two labels of 0.3 and 0.1: normalised 0.75, raw 0.3; half of the predictions are right."""
    logprobs = np.log(np.array([[0.3, 0.1]] * 4))
    found = measures(logprobs, np.array([0, 0, 1, 1]), 10)
    assert found["accuracy"]["mean"] == 50
    assert found["normalised"]["ece"] == pytest.approx(0.25) and found["mean"] == found["normalised"]["ece"]
    assert found["raw"]["ece"] == pytest.approx(0.2)
    assert found["raw"]["confidence"] == pytest.approx(0.3)


def test_bins_hold_their_lower_edge_and_the_last_one_holds_1() -> None:
    for bins in (10, 15, 7, 100):
        assert bin_of(np.arange(bins + 1) / bins, bins).tolist() == [*range(bins), bins - 1]
    assert bin_of(np.array([np.nextafter(0.7, 0), 0.0]), 10).tolist() == [6, 0]


def test_a_calibrated_predictor_is_near_zero_and_the_bootstrap_error_covers() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    p = generator.uniform(size=50_000)
    gold = (generator.uniform(size=len(p)) > p).astype(int)
    assert ece(np.maximum(p, 1 - p), gold == (p < 0.5), 10) < 0.01
    p, gold = p[:500], gold[:500]
    half = measures(
        np.log(0.5 * np.stack([p, 1 - p], 1)), gold, 10
    )  # the other half of the probability is on other text
    assert half["normalised"]["ece"] == pytest.approx(
        ece(np.maximum(p, 1 - p), gold == (p < 0.5), 10), abs=1e-12
    )
    assert half["raw"]["ece"] == pytest.approx(
        half["accuracy"]["mean"] / 100 - half["raw"]["confidence"], abs=1e-9
    )
    # One bin: |accuracy - confidence|, whose bootstrap error is that of a mean.
    one = measures(np.log(np.array([[0.9, 0.1]] * 400)), (generator.uniform(size=400) > 0.6).astype(int), 1)
    assert one["normalised"]["standard_error"] == pytest.approx(
        one["accuracy"]["standard_error"] / 100, rel=0.1
    )


# --- probabilities of words
class Ids:
    """What `label_logprobs` needs of a tokenizer: its size and its special tokens."""

    eos_token_id = pad_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(11)}  # the models have 13 rows: two are padding of the vocabulary


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_words_against_one_row_at_a_time(family: str) -> None:
    model = tiny_models.make(family, 3)
    words = tuple(np.array(w) for w in ([5], [3, 4], [3, 7, 2], [9, 4]))
    questions = [LabelQuestion(i, 0, np.arange(1, 3 + 4 * i) % 11, words, 0) for i in range(4)]
    expected = []
    for question in questions:
        row = []
        for word in words:
            tokens = torch.from_numpy(np.concatenate([question.prompt, word]))[None]
            with torch.no_grad():
                logprobs = model(tokens).logits[0, :, :11].double().log_softmax(-1)
            start = len(question.prompt)
            row.append(sum(logprobs[start + t - 1, word[t]].item() for t in range(len(word))))
        expected.append(row)
    for batch in (1, 3, 16):
        found = label_logprobs(model, Ids(), questions, batch)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_words_of_one_token_take_one_pass() -> None:
    assert len(_passes([np.array([1]), np.array([2]), np.array([3])])) == 1
    assert [
        w.tolist() for w in _passes([np.array([1]), np.array([2, 3]), np.array([2, 5]), np.array([4, 1])])
    ] == [
        [2, 3],
        [4, 1],
    ]


def test_words_that_begin_others_are_refused() -> None:
    with pytest.raises(UserError, match=r"^t.labels: the tokens of 'no' begin 'nobody'; choose other words$"):
        _check_words([np.array([4]), np.array([4, 2])], ["no", "nobody"], "t")


# --- rows
COLOUR = {
    "dataset": "colours",
    "prompt": "What colour is it?",
    "input": "{sentence}",
    "cue": "The {thing} is",
    "labels": {
        c: f" {c}" for c in ("red", "yellow", "purple", "green", "black", "white", "brown", "grey", "blue")
    },
}


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    rows = instructions("train", 60)
    return train_tokenizer(
        [*plain_text(60), *(f"{r['instruction']}\n{r['input']}\n### Response:\n{r['output']}" for r in rows)],
        400,
    )


def settings(task: dict[str, Any], dataset: Dataset, **more: Any) -> CalibrationSettings:
    values = {
        "template": "plain",
        "bins": 10,
        "max_prompt": 0,
        "seed": 0,
        "precision": "fp32",
        "name": "t",
        **more,
    }
    return CalibrationSettings(
        stage="calibration", task=ClassificationTask(**task), dataset=dataset, **values
    )


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Dataset:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset(source="folder", path=str(path))


def test_the_embedded_tasks_are_no_training_rows() -> None:
    train = {(r["instruction"], r["input"]) for r in instructions("train", 3000)}
    for task, question in (("colour", "What colour is it?"), ("kind", "What kind of thing is it?")):
        rows = classification(task)
        assert len({r["sentence"] for r in rows}) == len(rows) > 40
        assert not train & {(question, r["sentence"]) for r in rows}
        assert {r["label"] for r in rows} <= set(COLOUR["labels"]) | {"fruit", "bird", "tool", "vehicle"}  # type: ignore[arg-type]


def test_the_prompt_is_wrapped_and_the_cue_follows(tokenizer: Any) -> None:
    found = read_questions(
        settings(COLOUR, Dataset(source="embedded", split="colour", rows=3)), tokenizer, 99, 99
    )
    entry = classification("colour")[0]
    text = f"What colour is it?\n{entry['sentence']}\n### Response:\nThe {entry['thing']} is"
    assert tokenizer.decode(found[0].prompt.tolist()) == text
    assert tokenizer.decode(found[0].words[found[0].gold].tolist()) == f" {entry['label']}"
    assert [q.id for q in found] == [0, 1, 2]


def test_a_long_passage_is_cut_at_its_end_and_nothing_else(tokenizer: Any, tmp_path: Path) -> None:
    task = {
        "dataset": "d",
        "prompt": "Read.",
        "input": "{passage}\nQ: {question}",
        "labels": {"true": "yes", "false": "no"},
    }
    data = jsonl(
        tmp_path / "d.jsonl",
        [
            {"passage": "one two three " * 30, "question": "is it?", "label": True},
            {"passage": "x", "question": "y", "label": False},
        ],
    )
    long, short = read_questions(settings({**task, "truncate": "passage"}, data), tokenizer, 60, 61)
    text = tokenizer.decode(long.prompt.tolist())
    assert text.startswith("Read.\none two three one") and text.endswith("\nQ: is it?\n### Response:\n")
    assert len(long.prompt) <= 60 and len(long.prompt) + max(map(len, long.words)) <= 61
    assert long.cut > 0 and short.cut == 0 and len(long.prompt) > 55
    assert (long.gold, short.gold) == (0, 1)
    with pytest.raises(
        UserError, match=r"^.*d.jsonl:1: the prompt has more than 60 tokens; name the column to cut"
    ):
        read_questions(settings(task, data), tokenizer, 60, 99)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"sentence": "s", "thing": "t"},
            "no text in the column 'label' that calibration.tasks.t names; known: sentence, thing",
        ),
        ({"sentence": None, "thing": "t", "label": "red"}, "no text in the column 'sentence' that .*"),
        (
            {"sentence": "s", "thing": "t", "label": -1},
            "'label' is -1, which calibration.tasks.t.labels does not have; known: .*",
        ),
    ],
)
def test_a_wrong_row_is_one_line(tokenizer: Any, tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^.*d.jsonl:1: {said}$"):
        read_questions(settings(COLOUR, jsonl(tmp_path / "d.jsonl", [row])), tokenizer, 99, 99)


def test_the_stage_writes_what_publishing_needs(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    shape = GPT2Config(
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=64,
        vocab_size=len(tokenizer),
        bos_token_id=end,
        eos_token_id=end,
    )
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(GPT2LMHeadModel(shape), tokenizer, folder)
    provenance.write(folder, {}, {}, {})
    run_stage(
        settings(COLOUR, Dataset(source="embedded", split="colour", rows=12)),
        Launch(eval_batch=5),
        model=folder,
        out=tmp_path / "m.json",
    )
    found = json.loads((tmp_path / "m.json").read_text())
    assert (found["metric"], found["dataset"], found["n"], len(found["raw"]["bins"])) == (
        "calibration",
        "t",
        12,
        10,
    )
    raw, among = np.array(found["raw_probabilities"]), np.array(found["normalised_probabilities"])
    np.testing.assert_allclose(raw / raw.sum(1, keepdims=True), among, rtol=1e-9)
    right = np.array(found["predicted"]) == np.array(found["gold"])
    assert found["accuracy"]["mean"] == pytest.approx(100 * right.mean())
    assert found["raw"]["ece"] == pytest.approx(ece(raw.max(1), right, 10))
    assert found["sources"] == ["embedded colour", str(folder)] and found["truncated"] == []


# --- configurations
@pytest.mark.parametrize("task", ["sst2", "boolq"])
def test_real_rows_parse(task: str, tokenizer: Any) -> None:
    if "MINILLM_DATA" not in os.environ:
        pytest.skip("MINILLM_DATA is not set: no real data")
    mini, more = (yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()) for name in ("mini", "mini-all"))
    # Passages that have to be cut.
    boolq = {"source": "folder", "path": "$MINILLM_DATA/boolq/validation.jsonl", "rows": 1000}
    asked = {"prompt": "Read the passage.", "input": "{passage}\n\n{question}?", "truncate": "passage"}
    labels = {"gold": "answer", "labels": {"true": "yes", "false": "no"}}
    more["calibration"]["tasks"]["boolq"] = {"dataset": "boolq", **asked, **labels}
    config = experiment(
        {**mini, **more, "datasets": {**mini["datasets"], **more["datasets"], "boolq": boolq}}
    )
    values = parse(CalibrationSettings, stage_settings(config, "calibration", task=task), "test")
    assert len(read_entries(values.dataset, "test")) == {"sst2": 872, "boolq": 1000}[task]
    found = read_questions(replace(values, dataset=replace(values.dataset, rows=60)), tokenizer, 512, 520)
    assert {q.gold for q in found} == {0, 1}
    assert all(tokenizer.decode(q.prompt.tolist()).endswith("### Response:\n") for q in found)
    assert any(q.cut for q in found) == (task == "boolq")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"dataset": "colour"},
            "calibration.tasks.c.dataset: there is no 'colour'; did you mean 'colours'\\?",
        ),
        ({"input": "{sentence"}, "calibration.tasks.c.input: .*; write {{ and }} for braces in the text"),
        ({"input": "{0}"}, "calibration.tasks.c.input: \\{0\\} is not a \\{column\\}; .*"),
        (
            {"truncate": "passage"},
            "calibration.tasks.c.truncate: no template has the column 'passage'; known: sentence, thing",
        ),
        ({"labels": {"red": " red"}}, "calibration.tasks.c.labels: .*"),
    ],
)
def test_a_wrong_task_is_one_line(change: dict[str, Any], said: str) -> None:
    raw = yaml.safe_load((ROOT / "tests/config/tiny.yaml").read_text())
    raw["datasets"]["colours"] = {"source": "embedded", "split": "colour"}
    raw["calibration"] = {"tasks": {"c": {**COLOUR, **change}}}
    with pytest.raises(UserError, match=f"^config: {said}$"):
        experiment(raw)
