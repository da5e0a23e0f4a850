"""Metrics computed again by their own stages, into a folder that is removed, and compared value by value."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minillm.config import layout
from minillm.config.launch import Launch
from minillm.config.stages import MEASUREMENTS, STAGES, Stage
from minillm.files import RECORD
from minillm.readers import read_object
from minillm.verify.findings import Findings
from minillm.verify.records import METRICS, each
from minillm.verify.run_folder import AGAIN, LEFT, Run, metric_of

# Keys that say where a metric comes from; records.py compares them.
ORIGIN = ("sources", "sources_sha256", "settings_sha256", RECORD)
# Largest relative difference; models are computed here on the CPU, maybe elsewhere before, in that precision.
EXACT = 1e-9
ROUNDING = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
# Exposure bias is in percent, and of the difference of two nearly equal numbers.
PERCENT = 100


def check_metrics(run: Run, findings: Findings, models: bool) -> None:
    """Every metric file of the run; those computed with a model only if `models`."""
    each(findings, run.files(METRICS), lambda path: _metric(run, findings, path, models))
    if run.asked is None:
        findings.differs(run.folder / layout.settings_file("metrics"), "is missing or damaged")
    for file in run.asked or ():
        if not (run.folder / file.path).is_file():
            findings.differs(run.folder / file.path, "is missing")


def _settings(run: Run, entry: Stage, path: Path) -> Any:
    """The settings of a metric; None if the stage has none, or only a configuration that sets them has."""
    if not entry.settings:
        return None
    key = _key(entry, path)
    if "config" in entry.optional and not (run.folder / layout.settings_file(key)).exists():
        return None
    return run.settings(key)


def _metric(run: Run, findings: Findings, path: Path, models: bool) -> None:
    kind, weights, name, teacher = metric_of(run, path)
    if not run.is_asked(weights, name):
        findings.skip(f"metrics of {kind}", LEFT)
        return
    entry = STAGES.get("human-import") if kind == "human" else MEASUREMENTS.get(kind)
    if entry is None:
        findings.skip(f"metrics of {kind}", "this version does not have the measurement")
        return
    if entry.launched and not models:
        findings.skip(f"metrics of {kind}", "they need a model; add --models")
        return
    recorded = read_object(path, {}, "no such file", AGAIN)
    stage = entry.name if kind != "human" else "human"
    settings: Any = _settings(run, entry, path)
    if kind == "judge" and settings.judge.kind != "stand-in":
        findings.skip("metrics of judge", "a judge is not asked again")
        return
    with TemporaryDirectory() as temporary:
        out = Path(temporary) / "metric.json"
        paths = _paths(run, weights, name, teacher)
        if kind == "human":
            paths |= _of_people(run, weights, name, recorded)
        wanted = [*entry.required, *_optional(run, entry, weights, teacher)]
        chosen = {name.replace("-", "_"): paths[name] for name in wanted if name in paths}
        positional = [settings] if settings is not None else []
        positional += [Launch()] if entry.launched else []
        with contextlib.redirect_stdout(io.StringIO()):
            entry.entry_point()(*positional, **chosen, out=out)
        found = read_object(out, {}, "no such file", AGAIN)
    findings.checked[f"metrics of {stage}"] += 1
    # Exposure bias has the settings of its samples.
    tolerance = ROUNDING[getattr(settings, "samples", settings).precision] if entry.launched else EXACT
    tolerance *= PERCENT if kind == "exposure_bias" else 1
    differing = list(compare(recorded, found, tolerance))
    if differing:
        others = len(differing) - 1
        more = f" (and {others} more value{'s' * (others > 1)})" if others else ""
        findings.differs(path, f"{differing[0]}{more}")


def _key(entry: Stage, path: Path) -> str:
    """The settings file of a measurement: for some one for each test set or task."""
    return f"{entry.name}/{path.stem}" if entry.key else entry.name


def _optional(run: Run, entry: Stage, weights: str, teacher: str) -> tuple[str, ...]:
    """Optional paths of exposure bias: those of a student whose prompts are not its teacher's."""
    apart = bool(teacher) and run.data(weights) != run.data(layout.teacher_weights(teacher))
    return entry.optional if apart else ()


def _paths(run: Run, weights: str, name: str, teacher: str) -> dict[str, Any]:
    """The paths that a stage may ask for, by the names of its options."""
    folder = run.folder
    return {
        "generations": folder / layout.generations(weights, name),
        "metric": folder / layout.metric("rouge", weights, name),
        "model": folder / layout.model(weights),
        "teacher": folder / layout.model(layout.teacher_weights(teacher)),
        "samples": folder / layout.samples(teacher, name),
        "cache": folder / layout.judge_cache(),
        "data": run.data(weights),
        "test": run.test(weights, name),
    }


def _of_people(run: Run, weights: str, name: str, recorded: dict[str, Any]) -> dict[str, Any]:
    """The key of a page for annotators, and the answers that were counted."""
    answers = [run.place(source) for source in recorded.get("sources", [])[1:]]
    return {"key": run.folder / layout.key(layout.human_page(weights, name)), "answers": answers}


def compare(recorded: Any, found: Any, tolerance: float, key: str = "") -> Iterator[str]:
    """What differs between two JSON values, one line each; numbers may by `tolerance`, relative.

    Keys that only the new value has are of a later version.
    """
    if isinstance(recorded, dict) and isinstance(found, dict):
        for name, value in recorded.items():
            if key or name not in ORIGIN:
                below = f"{key}.{name}" if key else name
                if name in found:
                    yield from compare(value, found[name], tolerance, below)
                else:
                    yield f"{below}: not there if computed again"
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for i, (a, b) in enumerate(zip(recorded, found, strict=True)):
            yield from compare(a, b, tolerance, f"{key}.{i}")
    elif _is_number(recorded) and _is_number(found):
        if not math.isclose(recorded, found, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{key}: recorded {recorded}, computed again {found}"
    elif recorded != found:
        yield f"{key}: recorded {str(recorded)[:60]}, computed again {str(found)[:60]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
