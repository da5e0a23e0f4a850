"""Stage `diversity`: distinct n-grams, repetition and length of finished responses; needs no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minillm.config.measurements.diversity import DiversitySettings
from minillm.counts import distinct, repetition
from minillm.evaluation.generations import read_generations
from minillm.evaluation.lengths import response_of
from minillm.evaluation.statistics import mean_and_error
from minillm.files import write_json


def run_stage(settings: DiversitySettings, *, generations: Path, out: Path) -> None:
    """Write Dist-n of the responses in `generations` (0 to 100), seed by seed, to the metric file `out`.

    N-grams are of tokens (without special ones and the EOS) or of words, within one response.  "distinct" is
    C, "total" N and "dist" 100 C / N, over all responses of a seed together; null if no response has n
    units.  "repetition" is the mean over responses of the share of n-grams that occurred earlier in the same
    response.
    """
    meta, rows, ids = read_generations(generations)
    per_seed = {}
    for seed in meta["seeds"]:
        answers = [rows[seed][id_] for id_ in ids]
        lengths = [len(response_of(row, generations)) for row in answers]
        units = [_units(row, settings.unit, generations) for row in answers]
        per_seed[str(seed)] = {
            **dist(units, settings.ngram),
            "repetition": _mean([repetition(unit, settings.ngram) for unit in units]),
            "response_tokens": _mean(lengths),
            "finished": _mean([float(row["finished"]) for row in answers]),
        }
    values = [seed["dist"] for seed in per_seed.values() if seed["dist"] is not None]
    mean, error = mean_and_error(values) if len(values) == len(per_seed) else (None, None)
    names = ("distinct", "total", "repetition", "response_tokens", "finished")
    write_json(
        out,
        {
            "metric": "diversity",
            "dataset": meta["dataset"],
            "n": len(ids),
            "ngram": settings.ngram,
            "unit": settings.unit,
            "mean": mean,
            "standard_error": error,
            "over": "sampling seeds",
            "means": {name: _mean([seed[name] for seed in per_seed.values()]) for name in names},
            "seeds": meta["seeds"],
            "per_seed": per_seed,
            "sampling": meta["sampling"],
            "sources": [str(generations)],
        },
    )


def dist(units: Sequence[Sequence[Any]], n: int) -> dict[str, Any]:
    """C, N and 100 C / N (null if N = 0) of the n-grams of all responses."""
    different, total = distinct(units, n)
    return {"distinct": different, "total": total, "dist": 100.0 * different / total if total else None}


def _units(row: dict[str, Any], unit: str, where: Path) -> Sequence[Any]:
    return response_of(row, where) if unit == "tokens" else row["response"].split()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
