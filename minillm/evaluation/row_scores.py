"""The part of a metric file that all scores of single responses share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minillm.evaluation.statistics import mean_and_error


def scored(
    metric: str,
    meta: Mapping[str, Any],
    rows: Mapping[int, Mapping[int, Mapping[str, Any]]],
    ids: Sequence[int],
    score: Callable[[Mapping[str, Any]], float],
) -> dict[str, Any]:
    """Scores (0 to 100) of each row of a generations file, by seed in the order of `ids`, and their means.

    "mean" is the mean of the seeds' means over rows, "standard_error" over the seeds' means (null for one
    seed).  `meta`, `rows`, `ids`: as generations.read_generations returns them.
    """
    scores = {str(seed): [score(rows[seed][id_]) for id_ in ids] for seed in meta["seeds"]}
    per_seed = {seed: math.fsum(values) / len(values) for seed, values in scores.items()}
    mean, error = mean_and_error(per_seed.values())
    return {
        "metric": metric,
        "dataset": meta["dataset"],
        "n": len(ids),
        "seeds": meta["seeds"],
        "mean": mean,
        "standard_error": error,
        "over": "sampling seeds",
        "per_seed": per_seed,
        "ids": ids,
        "scores": scores,
    }


def count_and_first(ids: Sequence[int]) -> dict[str, Any]:
    """How many rows, and the first ids."""
    return {"count": len(ids), "first_ids": list(ids[:5])}
