"""How far the measured numbers are from the published ones: one line a published cell (config/paper/*.csv)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.publish.ablations import class_accuracy, inst_score
from minillm.publish.cells import Cell, collect
from minillm.publish.found import Found, Trained, judge_of, over_seeds
from minillm.publish.sheets import distinct, percent
from minillm.publish.show import Sheet
from minillm.publish.style import DASH

NEEDED = ("family", "size", "method", "dataset", "metric", "value", "verified", "source")
PLACES = {"ece": 3, "loss": 2}
Z = 1.96  # of a 95% interval


@dataclass(frozen=True)
class Measured:
    """A measured value and its 95% interval; bounds are None where nothing was repeated."""

    mean: float
    low: float | None
    high: float | None


def published(folder: Path) -> list[dict[str, str]]:
    """Rows of table*.csv in `folder`, with "table" and "teacher" ("GPT-2 1.5B").

    Where a file has no column `teacher`, it is the row "Teacher" of the same family.  Raises UserError for a missing column or no number.
    """
    rows: list[dict[str, str]] = []
    for path in sorted(folder.glob("table*.csv")):
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            lacking = [column for column in NEEDED if column not in (reader.fieldnames or [])]
            if lacking:
                raise UserError(f"{path}:1: no column '{lacking[0]}'; add it")
            own = list(reader)
        teachers = {row["family"]: f"{row['family']} {row['size']}" for row in own if row["method"] == "Teacher"}
        for line, row in enumerate(own, start=2):
            try:
                float(row["value"])
            except ValueError:
                raise UserError(f"{path}:{line}: value: '{row['value']}' is no number; mend it or remove the row") from None
            rows.append({"teacher": teachers.get(row["family"], ""), **row, "table": path.stem.removeprefix("table")})
    if not rows:
        raise UserError(f"{folder}: no table*.csv with published numbers; give the folder with --paper")
    return rows


def fidelity(found: Found, paper: Path) -> Sheet:
    """The table `fidelity`: measured, interval, published and their difference; dashes where nothing was measured."""
    cells = {(c.teacher, c.student, c.method, c.test): c for c in collect(found.settings.table, found.folder / "metrics")}
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    for row in published(paper):
        measured = _measured(found, row, cells)
        value = float(row["value"])
        difference = None if measured is None else measured.mean - value
        verdict = ""
        if measured is not None and measured.low is not None and measured.high is not None:
            verdict = "inside" if measured.low <= value <= measured.high else "outside"
        status = "verified" if row["verified"] == "yes" else "unverified"
        rows.append([row["table"], f"{row['family']} {row['size']}", row["teacher"], row["method"], row["dataset"], row["metric"]]
                    + _texts(measured, row["metric"], difference) + [row["value"], status, verdict or DASH])  # fmt: skip
        records.append(
            {
                **{key: row[key] for key in ("table", "family", "size", "teacher", "method", "dataset", "metric")},
                "measured": measured and measured.mean,
                "low": measured and measured.low,
                "high": measured and measured.high,
                "published": value,
                "status": status,
                "difference": difference,
                "published_is": verdict,
                "source": row["source"],
            }
        )
    found.sources += sorted({s for c in cells.values() for s in c.sources.split(";") if s} - set(found.sources))
    count = sum(record["measured"] is not None for record in records)
    columns = ["Table", "Model", "Teacher", "Method", "Set", "Metric", "Measured", "95% interval", "Difference", "Published"]
    notes = [
        "Interval of rougeL on a test set: percentile bootstrap over prompts, scores averaged over seeds; else ±1.96 standard errors. "
        "inside: the interval holds the published value; it does not hold the published value's own spread, which the paper does not give.",
        "unverified: recalled, not compared with a source; no measure of fidelity. ece: not normalised (normalised confidences cannot reach "
        "the published values). gpt4: only where the judge was GPT-4.",
        f"{count} of {len(records)} published cells were measured; {DASH}: not measured. Models are matched by family and size.",
    ]
    caption = "Measured beside published numbers."
    missing = "" if count else "not measured: no model of this run is one of the paper's, or none was evaluated"
    return Sheet(
        caption, [*columns, "Status", "Published is"], rows, notes, records, f"{count} of {len(records)} cells", missing, left=6
    )


def _texts(measured: Measured | None, metric: str, difference: float | None) -> list[str]:
    places = PLACES.get(metric, 1)
    if measured is None or difference is None:
        return [DASH, DASH, DASH]
    interval = (
        DASH if measured.low is None or measured.high is None else f"{measured.low:.{places}f} to {measured.high:.{places}f}"
    )
    return [f"{measured.mean:.{places}f}", interval, f"{difference:+.{places}f}"]


def _model(found: Found, row: dict[str, str]) -> Trained | None:
    """The model of a published row: by family and size of it and its teacher, and by the method's label."""

    def is_(name: str, label: str) -> bool:
        model = found.settings.models[name]
        return bool(model.family) and f"{model.family} {model.size}" == label

    for model in found.models():
        own = model.method_label == row["method"] and is_(model.teacher, row["teacher"])
        if own and is_(model.name, f"{row['family']} {row['size']}"):
            return model
    return None


def _measured(found: Found, row: dict[str, str], cells: dict[tuple[str, str, str, str], Cell]) -> Measured | None:
    model, metric, test = _model(found, row), row["metric"], row["dataset"]
    if model is None:
        return None
    if metric == "rougeL" and test == "dev":
        return _with_interval(found.dev_rouge(model))
    if metric == "rougeL":
        cell = cells.get((model.teacher, model.student, model.method, test))
        return None if cell is None or cell.mean is None else Measured(cell.mean, cell.low, cell.high)
    return _with_interval(_other(found, model, metric, test))


def _other(found: Found, model: Trained, metric: str, test: str) -> tuple[float, float | None] | None:
    """Everything but ROUGE-L, in the published unit."""
    if metric == "gpt4":
        judged = found.metrics("judge", model, test)
        return over_seeds(judged) if all(_is_gpt4(own) for own in judged) else None
    if metric in ("ece", "accuracy"):
        own = found.calibration(model, test)
        scale = percent(own, "accuracy") if metric == "accuracy" else 1.0
        key = "ece_raw" if metric == "ece" else metric
        value = over_seeds(own, key, f"{key}_error")
        return value and (value[0] * scale, None if value[1] is None else value[1] * scale)
    if metric == "dist4":
        return over_seeds([distinct(m) for m in found.metrics("diversity", model, test) if m.get("ngram") == 4])
    if metric == "loss":
        return over_seeds(found.metrics("reference_loss", model, test))
    if metric == "cls":
        return class_accuracy(found, model)
    judged = [m for name in found.names("judge") for m in found.metrics("judge", model, name)]
    return inst_score(found, model) if metric == "inst" and all(map(_is_gpt4, judged)) else None


def _is_gpt4(judged: dict[str, Any]) -> bool:
    return not judged.get("stand_in", True) and "gpt-4" in judge_of(judged).lower()


def _with_interval(value: tuple[float, float | None] | None) -> Measured | None:
    if value is None:
        return None
    mean, error = value
    return Measured(mean, None, None) if error is None else Measured(mean, mean - Z * error, mean + Z * error)
