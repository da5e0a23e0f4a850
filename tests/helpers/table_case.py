"""A main table's settings, and metric files by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from minillm.config.sections import Pair, Sampling
from minillm.config.stage_settings import TableSettings

SETTINGS = TableSettings(
    stage="table",
    run="r",
    pairs=(Pair(teacher="big", students=("small",)),),
    methods=("sft", "kd", "seqkd", "minillm"),
    method_labels={},
    labels={"big": "Scratch_A 3M", "small": "Scratch_A 1M"},
    tests=("easy", "hard"),
    test_labels={"easy": "Easy & plain", "hard": "Hard"},
    training_seeds=(10,),
    sampling_seeds=(10, 20),
    sampling=Sampling(no_repeat_ngram=6),
)
MODELS = ["big/teacher", *(f"small/{m}/seed10" for m in ("sft", "kd/big", "seqkd/big", "minillm/big"))]


def metric(folder: Path, weights: str, test: str, values: tuple[float, ...], **changed: object) -> Path:
    seeds = [10, 20, 30][: len(values)]
    path = folder / "rouge" / weights / f"{test}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {
        "dataset": test,
        "ids": list(range(150 if test == "easy" else 100)),
        "seeds": seeds,
        "per_seed": dict(zip(map(str, seeds), values, strict=True)),
        "scores": {},
        "sampling": dataclasses.asdict(SETTINGS.sampling),
    }
    value |= changed
    if isinstance(value["per_seed"], dict) and not value["scores"]:
        value["scores"] = {seed: [mean] * len(value["ids"]) for seed, mean in value["per_seed"].items()}
    if "scores" in changed and "per_seed" not in changed:
        # Scores whose means are the values.
        for seed, mean in value["per_seed"].items():
            scores = value["scores"][seed]
            value["scores"][seed] = [score + mean - sum(scores) / len(scores) for score in scores]
    path.write_text(json.dumps(value))
    return path


def metrics_of_one_pair(tmp_path: Path) -> Path:
    """Every metric of one pair but SeqKD's on the second set."""
    folder = tmp_path / "run/metrics"
    for i, weights in enumerate(MODELS):
        for test in SETTINGS.tests:
            if not ("seqkd" in weights and test == "hard"):
                metric(folder, weights, test, (20.0 + i, 21.0 + i))
    return folder
