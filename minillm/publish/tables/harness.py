"""Tasks of lm-eval, model by model."""

from __future__ import annotations

from typing import Any

from minillm.config.measurements.harness import FILE
from minillm.publish.item_results import ItemResults
from minillm.publish.style import DASH
from minillm.publish.tables.sheet import Sheet, decimals, merged_labels

PREFIX = "harness_"


def harness(results: ItemResults) -> Sheet:
    """One line per model, one column per task and metric; a mean over training seeds."""
    found = results.frame[results.frame["metric"].str.startswith(PREFIX)]
    pairs = list(dict.fromkeys(zip(found["test_set"], found["metric"], strict=True)))
    names = [f"{task}, {metric.removeprefix(PREFIX)}" for task, metric in pairs]
    rows, records = [], []
    for model in results.models():
        values = [results.value(model, metric, task) for task, metric in pairs]
        rows.append([model.label, model.method_label, *(decimals(value, 3) for value in values)])
        record: dict[str, Any] = {"teacher": model.teacher, "student": model.student, "method": model.method}
        for name, value in zip(names, values, strict=True):
            record |= {name: value and value[0], f"{name}, error": value and value[1]}
        records.append(record)
    counts = found.dropna(subset="n").drop_duplicates("test_set")
    n = "; ".join(f"{task}: n = {n}" for task, n in zip(counts["test_set"], counts["n"], strict=True))
    versions = dict.fromkeys(
        _how(content) for model in results.models() for content in results.contents("harness", model, FILE)
    )
    notes = [
        "Numbers as lm-eval gives them (accuracies from 0 to 1), by the tasks' own prompts. ± for a single "
        "training: lm-eval's standard error over questions; over training seeds if there are several. "
        f"{DASH}: not measured.",
        *(f"{version}." for version in versions),
        *([f"{n}."] if n else []),
    ]
    missing = "" if pairs else "not measured in this run"
    columns = ["Model", "Method", *names]
    return Sheet("Tasks of lm-eval.", columns, merged_labels(rows), notes, records, n, missing)


def _how(content: dict[str, Any]) -> str:
    """How the questions of one metric file were asked."""
    shots, limit = content["fewshot"], content["limit"]
    return (
        f"lm-eval {content['lm_eval']}; examples before a question: "
        f"{'as in the task' if shots is None else shots}; "
        f"questions of each task: {'all' if limit is None else limit}"
    )
