"""Stage `metrics`: metrics.csv, the frame of all that the configuration asks to measure (docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.config import layout
from minillm.files import whole_file
from minillm.publish.item_results import RunResults
from minillm.publish.results import COLUMNS
from minillm.publish.run_costs import costs_of
from minillm.publish.settings import MetricsSettings

# Of what on-policy training logs step by step.
AVERAGED = ("clip_fraction", "effective_samples", "grad_variance", "grad_norm", "response_length")


def run_stage(settings: MetricsSettings, *, run_folder: Path, out: Path) -> None:
    """Write to `out` what the metric files in `run_folder` (results/<run>) hold, and what trainings recorded.

    At full precision, rows sorted.  A missing file gives no row.  Raises UserError, one line, if a file is
    damaged.
    """
    results = RunResults(settings, run_folder)
    recorded = pd.DataFrame(_of_trainings(results), columns=COLUMNS)
    frame = results.frame
    if not recorded.empty:
        frame = pd.concat([frame, recorded.astype(frame.dtypes)])
    with whole_file(out) as partial:
        frame.sort_values([*COLUMNS[:7], "source"], na_position="first").to_csv(partial, index=False)


def _of_trainings(results: RunResults) -> Iterator[tuple[Any, ...]]:
    """Rows of trainings: dev values of the chosen checkpoint, what it cost, and means of what it logged."""
    for model in results.models():
        for seed, weights in model.weights.items():
            folder = layout.model(weights)
            found: dict[str, tuple[str, Mapping[str, float | None]]] = {
                "selection.json": ("dev", results.dev_values(weights)),
                "provenance.json": ("", costs_of(results, model, weights) or {}),
                "metrics.jsonl": ("", _means(results.log(weights))),
            }
            for file, (test, values) in found.items():
                for name, value in values.items():
                    if value is not None:
                        key = (*model.key, seed, pd.NA, test, name)
                        yield (*key, float(value), None, pd.NA, f"{folder}/{file}")


def _means(log: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each of `AVERAGED` over the lines that have it; NaN if training has logged no number once."""
    values = {key: [line[key] for line in log if key in line] for key in AVERAGED}
    return {
        f"mean_{key}": math.nan if None in found else math.fsum(found) / len(found)
        for key, found in values.items()
        if found
    }
