"""How far the measured numbers are from the published ones: one line a published number (config/paper/*.csv)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from minillm.evaluation.statistics import Part, t_interval
from minillm.publish.item_results import ItemResults, Trained, judge_of
from minillm.publish.published_numbers import Key, Published
from minillm.publish.results import Value
from minillm.publish.style import DASH
from minillm.publish.tables.ablations import class_accuracy, inst_is_papers, inst_score, is_gpt4, papers_sets
from minillm.publish.tables.calibration_diversity import PAPERS_LOSS
from minillm.publish.tables.main_cells import Cell, collect_cells
from minillm.publish.tables.sheet import Sheet

PLACES = {"ece": 3, "loss": 2}


@dataclass(frozen=True)
class Measured:
    """A measured value and its 95% interval; bounds are None if nothing was repeated."""

    mean: float
    low: float | None
    high: float | None


def fidelity(results: ItemResults) -> Sheet:
    """The table `fidelity`: measured, interval, published and their difference; dashes for what was not measured."""
    cells = {
        (c.teacher, c.student, c.method, c.test): c
        for c in collect_cells(results.settings.table, results.folder)
    }
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    for key, other in results.paper.items():
        measured = _measured(results, key, cells)
        difference = None if measured is None else measured.mean - other.value
        verdict = ""
        if measured is not None and measured.low is not None and measured.high is not None:
            verdict = "inside" if measured.low <= other.value <= measured.high else "outside"
        places = PLACES.get(key[-1], 1)
        shown = f"{other.value:.{2 if other.status == 'digitised' else places}f}"
        rows.append([*key, *_texts(measured, places, difference), shown, other.status, verdict or DASH])
        records.append(_record(key, other, measured, difference, verdict))
    results.sources += sorted(
        {s for c in cells.values() for s in c.sources.split(";") if s} - set(results.sources)
    )
    judges = {
        judge_of(m)
        for model in results.models()
        for test in results.names("judge")
        for m in results.contents("judge", model, test)
    }
    count = sum(record["measured"] is not None for record in records)
    columns = [
        "Table",
        "Model",
        "Teacher",
        "Method",
        "Set",
        "Metric",
        "Measured",
        "95% interval",
        "Difference",
        "Published",
    ]
    notes = [
        "Interval (95%) of rougeL on a test set: percentile bootstrap over prompts, scores averaged over seeds; with several training seeds "
        "Student's t, variances over prompts and over training seeds added. Else the mean ± Student's t × standard error: over training seeds "
        "where there are several, else over sampling seeds (dist4) or rows.",
        "inside: the interval holds the published value; it does not hold the published value's own spread, which the paper does not give.",
        "unverified: recalled, not compared with a source; no measure of fidelity. digitised: read off a figure that does not agree with the "
        "paper's own Table 1 everywhere.",
        "ece: not normalised (with normalised confidences, KD's and SeqKD's BoolQ values would be the largest that their accuracies allow, or "
        "nearly). loss: only the published script's (released). gpt4, inst: only where the judge was GPT-4; cls, inst "
        "and means of gpt4: only over exactly the paper's sets; "
        f"judge of this run: {', '.join(sorted(judges)) or 'none'}.",
        f"{count} of {len(records)} published numbers were measured; {DASH}: not measured. Models are matched by family and size.",
    ]
    caption = "Measured beside published numbers."
    missing = (
        "" if count else "not measured: no model of this run is one of the paper's, or none was evaluated"
    )
    return Sheet(
        caption,
        [*columns, "Status", "Published is"],
        rows,
        notes,
        records,
        f"{count} of {len(records)} published numbers",
        missing,
        left=6,
    )


def _record(
    key: Key, other: Published, measured: Measured | None, difference: float | None, verdict: str
) -> dict[str, Any]:
    return {
        **dict(zip(("table", "model", "teacher", "method", "dataset", "metric"), key, strict=True)),
        "measured": measured and measured.mean,
        "low": measured and measured.low,
        "high": measured and measured.high,
        "published": other.value,
        "status": other.status,
        "difference": difference,
        "published_is": verdict,
        "source": other.source,
    }


def _texts(measured: Measured | None, places: int, difference: float | None) -> list[str]:
    if measured is None or difference is None:
        return [DASH, DASH, DASH]
    interval = (
        DASH
        if measured.low is None or measured.high is None
        else f"{measured.low:.{places}f} to {measured.high:.{places}f}"
    )
    return [f"{measured.mean:.{places}f}", interval, f"{difference:+.{places}f}"]


def _model(results: ItemResults, key: Key) -> Trained | None:
    """The model of a published number: by family and size of it and its teacher, and by the method's label."""
    _, student, teacher, method, _, _ = key

    def is_(name: str, label: str) -> bool:
        model = results.settings.models[name]
        return bool(model.family) and f"{model.family} {model.size}" == label

    for model in results.models():
        if model.method_label == method and is_(model.teacher, teacher) and is_(model.name, student):
            return model
    return None


def _measured(
    results: ItemResults, key: Key, cells: dict[tuple[str, str, str, str], Cell]
) -> Measured | None:
    model, (*_, test, metric) = _model(results, key), key
    if model is None:
        return None
    if metric == "rougeL" and test != "dev":
        cell = cells.get((model.teacher, model.student, model.method, test))
        return None if cell is None or cell.mean is None else Measured(cell.mean, cell.low, cell.high)
    value, freedom = _other(results, model, metric, test)
    if value is None or value[1] is None:
        return value and Measured(value[0], None, None)
    return Measured(value[0], *t_interval(value[0], [Part(value[1] ** 2, freedom)]))


def _other(results: ItemResults, model: Trained, metric: str, test: str) -> tuple[Value | None, float]:
    """Everything but ROUGE-L on a test set, in the published unit, and the degrees of freedom of its error."""
    if metric == "rougeL":
        return results.dev_rouge(model), len(model.weights) - 1
    if metric == "cls":
        value = class_accuracy(results, model) if papers_sets(results, "calibration") else None
        return value, _freedom(results, model, "accuracy", _first(results, "calibration"))
    if metric == "inst" or test == "average":
        value = inst_score(results, model) if inst_is_papers(results, model) else None
        return value, _freedom(results, model, "judge", _first(results, "judge"))
    if metric == "gpt4" and not all(map(is_gpt4, results.contents("judge", model, test))):
        return None, math.inf
    name = {"gpt4": "judge", "ece": "ece_raw", "loss": PAPERS_LOSS}.get(metric, metric)
    return results.value(model, name, test), _freedom(results, model, name, test)


def _first(results: ItemResults, kind: str) -> str:
    """The set whose degrees of freedom a mean over all sets of a kind has."""
    return next(iter(results.names(kind)), "")


def _freedom(results: ItemResults, model: Trained, metric: str, test: str) -> float:
    """Degrees of freedom of an error over training seeds if there are several, else over sampling seeds or rows."""
    rows = results.rows(model, metric, [test])
    if len(rows) != 1:
        return len(rows) - 1 if len(rows) else math.inf
    per_seed = results.rows(model, metric, [test], each_seed=True)
    return max(1, (len(per_seed) or rows["n"].fillna(2).iloc[0]) - 1)
