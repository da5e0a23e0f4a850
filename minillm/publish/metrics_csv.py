"""Stage `metrics`: metrics.csv, the frame of all that the configuration asks to measure (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.config import layout
from minillm.files import whole_file
from minillm.publish.item_results import RunResults
from minillm.publish.results import COLUMNS
from minillm.publish.run_costs import costs_of
from minillm.publish.settings import MetricsSettings


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
    """Rows of dev ROUGE-L of the chosen checkpoints and of what each training cost: not in a metric file."""
    for model in results.models():
        for seed, weights in model.weights.items():
            folder = layout.model(weights)
            score = results.dev_score(weights)
            if score is not None:
                source = f"{folder}/selection.json"
                yield (*model.key, seed, pd.NA, "dev", "dev_rouge", score, None, pd.NA, source)
            for name, value in (costs_of(results, model, weights) or {}).items():
                if value is not None:
                    source = f"{folder}/provenance.json"
                    yield (*model.key, seed, pd.NA, "", name, float(value), None, pd.NA, source)
