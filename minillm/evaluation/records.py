"""Whether a generations file or a metric file contradicts its own record, or where it lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.errors import UserError
from minillm.files import PROVENANCE, check_record, sha256
from minillm.readers import read_object

GENERATE = "remove it and generate again"
TOLERANCE = 1e-6
# Seed -> id -> row.
Rows = Mapping[int, Mapping[int, Mapping[str, Any]]]


def check_generations(path: Path, meta: Mapping[str, Any], rows: Rows) -> None:
    """Raises UserError, one line, if a generations file is not what its meta file or its place says.

    Compared are the hashes of both (if recorded), the test set, the model's weights (if the file is in a
    run's folder with its model), and the questions and references of the seeds with each other.
    """
    meta_file = path.with_suffix(".meta.json")
    check_record(meta, meta_file, GENERATE)
    if "content" in meta and meta["content"] != sha256(path):
        raise UserError(f"{path}: not the answers that {meta_file.name} describes, or changed; {GENERATE}")
    _check_place(path, meta)
    first = rows[meta["seeds"][0]]
    for seed, answers in rows.items():
        for id_, row in answers.items():
            if row.get("dataset", meta["dataset"]) != meta["dataset"]:
                raise UserError(
                    f"{path}: seed {seed}, id {id_} is of the test set '{row['dataset']}', "
                    f"but {meta_file.name} says '{meta['dataset']}'; {GENERATE}"
                )
            for key in ("references", "prompt"):
                if row.get(key) != first[id_].get(key):
                    raise UserError(
                        f"{path}: seed {seed}, id {id_}: '{key}' differs from that of seed "
                        f"{meta['seeds'][0]}; {GENERATE}"
                    )


def _check_place(path: Path, meta: Mapping[str, Any]) -> None:
    place = layout.place_of(path.as_posix())
    if place is None:
        return
    run, weights, test = place
    if meta["dataset"] != test:
        raise UserError(f"{path}: answers to the test set '{meta['dataset']}', not '{test}'; {GENERATE}")
    provenance = Path(run) / layout.model(weights) / PROVENANCE
    if not isinstance(meta.get("model"), str) or not provenance.is_file():
        return
    model = read_object(provenance, {"content": str}, "no such file", "make the model again")
    if meta["model"] != model["content"]:
        raise UserError(f"{path}: not by the weights in {provenance.parent}; {GENERATE}")


def check_scores(metric: Mapping[str, Any]) -> None:
    """Raises ValueError if means are not those of the rows' scores, as far as a metric file has them."""
    per_seed, scores = metric.get("per_seed"), metric.get("scores")
    if not isinstance(per_seed, dict) or not isinstance(scores, dict) or not scores:
        return
    if sorted(per_seed) != sorted(scores):
        raise ValueError(f"per_seed has the seeds {sorted(per_seed)}, scores {sorted(scores)}")
    for seed, values in scores.items():
        _same(per_seed[seed], values, f"per_seed of {seed}")
    if "mean" in metric:
        _same(metric["mean"], list(per_seed.values()), "mean")


def _same(mean: float, values: list[float], what: str) -> None:
    expected = math.fsum(values) / len(values) if values else math.nan
    if not math.isclose(mean, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise ValueError(f"{what} is {mean}, but the mean of its values {expected}")
