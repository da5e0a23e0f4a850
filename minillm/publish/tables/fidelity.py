"""How far measured numbers are from published ones: one line per published number (config/paper/*.csv)."""

from __future__ import annotations

import dataclasses
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

# Decimals of a metric, if not 1.
PLACES = {"ece": 3, "loss": 2}
COLUMNS = [
    *("Table", "Model", "Teacher", "Method", "Set", "Metric"),
    *("Measured", "95% interval", "Difference", "Published", "Status", "Published is"),
]


@dataclass(frozen=True)
class Measured:
    """A measured value and its 95% interval, whose bounds are None if nothing was repeated."""

    mean: float
    low: float | None
    high: float | None


def fidelity(results: ItemResults) -> Sheet:
    """The table `fidelity`: measured, interval, published and their difference; dashes if not measured."""
    # Published scores are ROUGE-L.
    table = dataclasses.replace(results.settings.table, tests=tuple(results.names("rouge")), metrics=None)
    cells = {(c.teacher, c.student, c.method, c.test): c for c in collect_cells(table, results.folder)}
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    for key, paper in results.paper.items():
        measured = _measured(results, key, cells)
        difference = None if measured is None else measured.mean - paper.value
        verdict = ""
        if measured is not None and measured.low is not None and measured.high is not None:
            verdict = "inside" if measured.low <= paper.value <= measured.high else "outside"
        places = PLACES.get(key[-1], 1)
        shown = f"{paper.value:.{2 if paper.status == 'digitised' else places}f}"
        rows.append([*key, *_texts(measured, places, difference), shown, paper.status, verdict or DASH])
        records.append(_record(key, paper, measured, difference, verdict))
    sources = {source for cell in cells.values() for source in cell.sources.split(";") if source}
    results.sources += sorted(sources - set(results.sources))
    judges = {
        judge_of(metric)
        for model in results.models()
        for test in results.names("judge")
        for metric in results.contents("judge", model, test)
    }
    count = sum(record["measured"] is not None for record in records)
    n = f"{count} of {len(records)} published numbers"
    notes = [
        *_notes(judges),
        f"{n} were measured; {DASH}: not measured. Models are matched by family and size.",
    ]
    missing = (
        "" if count else "not measured: no model of this run is one of the paper's, or none was evaluated"
    )
    return Sheet(
        "Measured numbers next to published ones.", COLUMNS, rows, notes, records, n, missing, left=6
    )


def _notes(judges: set[str]) -> list[str]:
    """What intervals, verdicts, status and metrics mean."""
    return [
        "Interval (95%) of rougeL on a test set: percentile bootstrap over prompts, scores averaged over "
        "seeds; with several training seeds Student's t, variances over prompts and over training seeds "
        "added. Otherwise the mean ± Student's t × standard error: over training seeds if there are "
        "several, else over sampling seeds (dist4) or rows.",
        "inside: the interval contains the published value; it does not account for the published value's "
        "own spread, which the paper does not give.",
        "unverified: recalled, not compared with a source; no measure of fidelity. digitised: read off a "
        "figure that does not agree with the paper's own Table 1 everywhere.",
        "ece: not normalised (with normalised confidences, KD's and SeqKD's BoolQ values would be the "
        "largest that their accuracies allow, or nearly). loss: only the published script's (released). "
        "gpt4, inst: only if the judge was GPT-4; cls, inst and means of gpt4: only over exactly the paper's "
        f"sets; judge of this run: {', '.join(sorted(judges)) or 'none'}.",
    ]


def _record(
    key: Key, paper: Published, measured: Measured | None, difference: float | None, verdict: str
) -> dict[str, Any]:
    return {
        **dict(zip(("table", "model", "teacher", "method", "dataset", "metric"), key, strict=True)),
        "measured": measured and measured.mean,
        "low": measured and measured.low,
        "high": measured and measured.high,
        "published": paper.value,
        "status": paper.status,
        "difference": difference,
        "published_is": verdict,
        "source": paper.source,
    }


def _texts(measured: Measured | None, places: int, difference: float | None) -> list[str]:
    if measured is None or difference is None:
        return [DASH, DASH, DASH]
    interval = DASH
    if measured.low is not None and measured.high is not None:
        interval = f"{measured.low:.{places}f} to {measured.high:.{places}f}"
    return [f"{measured.mean:.{places}f}", interval, f"{difference:+.{places}f}"]


def _model(results: ItemResults, key: Key) -> Trained | None:
    """The model of a published number, by family and size of model and teacher, and by the method's label."""
    _, student, teacher, method, _, _ = key

    def matches(name: str, label: str) -> bool:
        spec = results.settings.models[name]
        return bool(spec.family) and f"{spec.family} {spec.size}" == label

    for model in results.models():
        if model.method_label == method and matches(model.teacher, teacher) and matches(model.name, student):
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
    value, freedom = _value(results, model, metric, test)
    if value is None or value[1] is None:
        return value and Measured(value[0], None, None)
    return Measured(value[0], *t_interval(value[0], [Part(value[1] ** 2, freedom)]))


def _value(results: ItemResults, model: Trained, metric: str, test: str) -> tuple[Value | None, float]:
    """Any value but ROUGE-L on a test set, in the published unit, and the degrees of freedom of its error."""
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
    """The set from which a mean over all sets of a kind takes its degrees of freedom."""
    return next(iter(results.names(kind)), "")


def _freedom(results: ItemResults, model: Trained, metric: str, test: str) -> float:
    """Degrees of freedom of an error, over training seeds if several, else sampling seeds or rows."""
    rows = results.rows(model, metric, [test])
    if len(rows) != 1:
        return len(rows) - 1 if len(rows) else math.inf
    per_seed = results.rows(model, metric, [test], each_seed=True)
    return max(1, (len(per_seed) or rows["n"].fillna(2).iloc[0]) - 1)
