"""Where the files behind a table or figure come from: their own sources, sampling settings and run times."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.errors import UserError
from minillm.readers import read_object, read_text


def origins(run: Path, sources: Sequence[str]) -> dict[str, Any]:
    """Where the results `sources` (paths below the run's folder) came from; the keys are those of a sidecar.

    origins: the files that the metric files among `sources` name as theirs.  sampling: each way in which
    responses were drawn, in words.  seconds: stage -> jobs and their total seconds, from the benchmark files
    of sources and origins.  A missing or damaged file adds nothing.
    """
    metrics = [_json(run / source) for source in sources if layout.is_metric(source)]
    behind = [_below(run, str(path)) for metric in metrics for path in _list(metric.get("sources"))]
    files = [path for path in dict.fromkeys(behind) if path not in sources]
    answers = [path for path in (*sources, *files) if layout.is_generations(path)]
    cards = [*metrics, *(_json(run / layout.meta(path)) for path in answers)]
    texts = dict.fromkeys(_sampling(card) for card in cards if isinstance(card.get("sampling"), dict))
    return {"origins": files, "sampling": list(texts), "seconds": _seconds(run, (*sources, *files))}


def _sampling(card: dict[str, Any]) -> str:
    """ "temperature 1.0, top_k 0; sampling seeds 10, 20", from a metric or the meta file of generations."""
    seeds = _list(card.get("seeds")) or [card[key] for key in ("seed",) if key in card]
    settings = ", ".join(f"{key} {value}" for key, value in card["sampling"].items())
    if not seeds:
        return settings
    return f"{settings}; sampling seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _seconds(run: Path, paths: Iterable[str]) -> dict[str, dict[str, float]]:
    """Stage -> "jobs" and their total "seconds"."""
    stages: dict[str, dict[str, float]] = {}
    for path in dict.fromkeys(map(layout.benchmark_of, paths)):
        seconds = path and _wall(run / path)
        if path and seconds:
            stage = stages.setdefault(path.split("/")[1], {"jobs": 0, "seconds": 0.0})
            stage["jobs"] += 1
            stage["seconds"] = round(stage["seconds"] + seconds, 2)
    return stages


def _wall(path: Path) -> float | None:
    """Wall-clock seconds in a benchmark file; None if it has none."""
    try:
        return number_of(table_row(read_text(path)).get("s"))
    except UserError:
        return None


def table_row(text: str) -> dict[str, Any]:
    """The first row of a benchmark file; empty if it has none."""
    try:
        return next(csv.DictReader(text.splitlines(), delimiter="\t"), {})
    except csv.Error:
        return {}


def number_of(text: Any) -> float | None:
    """The number in a benchmark's field; None for Snakemake's "-" and for what is no finite number."""
    try:
        value = float(text)
    except (ValueError, TypeError):
        return None
    return value if math.isfinite(value) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, {}, "no such file", "")
    except UserError:
        return {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _below(run: Path, path: str) -> str:
    """`path` relative to the run's folder if it is below it, else unchanged."""
    inside = os.path.relpath(path, run)
    return path if inside.startswith("..") else inside
