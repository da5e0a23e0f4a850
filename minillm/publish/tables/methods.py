"""Table `methods`: all methods of a run side by side, and which differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import layout
from minillm.evaluation.statistics import holm, mean_and_error, part, t_test
from minillm.publish.item_results import ItemResults, Trained
from minillm.publish.results import damage
from minillm.publish.run_costs import costs_of
from minillm.publish.style import DASH
from minillm.publish.tables.sheet import Sheet, merged_labels

CAPTION = "All methods, from the same initial students."
# Column of a row -> (heading, decimals).
MEASURES = {
    "dev_reverse_kl": ("dev\nreverse KL", 3),
    "dev_forward_kl": ("dev\nforward KL", 3),
    "rouge": ("ROUGE-L", 1),
    "precision": ("precision\n(%)", 1),
    "coverage": ("coverage\n(%)", 1),
    "length": ("length", 1),
    "repetition": ("repe-\ntition (%)", 1),
    "truncation": ("trun-\ncated (%)", 1),
    "seconds": ("seconds", 0),
    "tokens": ("tokens\n(M)", 3),
}
# What is tested, each over all methods at once; the first is what on-policy methods minimise.
TESTED = ("dev_reverse_kl", "rouge")
# A row's metrics of the comparison's test set, by the names that they have in the frame.
OF_TEST = {
    "rouge": "rouge",
    "precision": "validity",
    "coverage": "validity_coverage",
    "length": "response_tokens",
    "repetition": "repetition",
    "truncation": "finished",
}
# Of the checkpoint that was kept.
OF_DEV = ("dev_rouge", "dev_reverse_kl", "dev_forward_kl")
LEVEL = 0.05
Row = Mapping[str, Any]
# In the place of a method: where the on-policy methods start.
INITIAL = "initial"
NOTES = (
    "Mean ± standard error over training seeds; a single one has none. Dev: of the checkpoint that was kept, "
    "on fresh responses, in nats a token; the initial student's is measured before the first step. "
    "Precision, coverage: right answers among the responses, and the share of them that is reached. "
    "Repetition: share of repeated n-grams. Truncated: responses without an end. Seconds: of the training, "
    "evaluations included. Tokens: sampled in training, or those of the answers trained on.",
    "p: two-sided, Student's t with the variances over training seeds of both, after Holm's correction over "
    "all methods of the column; * below 0.05. Prompts are taken as they are.",
)


def methods(results: ItemResults) -> Sheet:
    """One line per method, its records one per training."""
    return sheet(rows_of(results), results.settings.against or ())


# --- rows
def rows_of(results: ItemResults) -> list[dict[str, Any]]:
    """One row per training of a student: what was measured of it and how it was made; None: not measured."""
    rows: list[dict[str, Any]] = []
    starts: dict[tuple[str, int], dict[str, Any]] = {}
    for model in results.models():
        for seed, weights in model.weights.items() if model.student else ():
            row = _row(results, model, seed, weights)
            if row is None:
                continue
            rows.append(row)
            first = next(iter(results.log(weights)), {}) if row["initial"] else {}
            if first.get("step") == 0 and "dev_reverse_kl" in first:
                key = (row["pair"], seed)
                about = {
                    "method": INITIAL,
                    "label": "Initial student",
                    "lr": None,
                    "steps": 0,
                    "step": 0,
                    "edge": "",
                }
                none = dict.fromkeys(MEASURES)
                starts.setdefault(key, {**row, **none, **about, **{name: first.get(name) for name in OF_DEV}})
    return [*starts.values(), *rows]


def _row(results: ItemResults, model: Trained, seed: int, weights: str) -> dict[str, Any] | None:
    folder = layout.model(weights)
    provenance, selection = (
        results.json(f"{folder}/provenance.json"),
        results.json(f"{folder}/selection.json"),
    )
    if provenance is None or selection is None:
        return None
    with damage(results.folder / folder / "provenance.json"):
        inputs, training = provenance["inputs"], provenance["settings"]["training"]
        about = {
            "method": model.method,
            "label": model.method_label,
            "pair": f"{model.label} < {model.teacher_label}",
            "seed": seed,
            "teacher": str(inputs.get("teacher", ""))[:12],
            "initial": str(inputs.get("init", ""))[:12],
            "processor": str(provenance.get("processor", "")),
            "lr": training["lr"],
            "steps": provenance["steps"],
            "step": selection["chosen"]["step"],
            "edge": (provenance.get("grid") or {}).get("edge", ""),
            "settings": provenance["settings_sha256"][:12],
            "git": provenance["git"],
        }
        dev = {name: selection["chosen"].get(name) for name in OF_DEV}
    measured = {name: _of_test(results, model, seed, metric) for name, metric in OF_TEST.items()}
    if measured["truncation"] is not None:
        measured["truncation"] = 100 - measured["truncation"]
    costs = costs_of(results, model, weights) or {}
    tokens = costs.get("tokens")
    spent = {"seconds": provenance.get("wall_seconds"), "tokens": None if tokens is None else tokens / 1e6}
    return {**about, **dev, **measured, **spent}


def _of_test(results: ItemResults, model: Trained, seed: int, metric: str) -> float | None:
    """A metric of one training on the comparison's test set."""
    sets = [name for names in results.settings.asked.values() for name in names]
    rows = results.rows(model, metric, sets[:1])
    values = rows[rows["training_seed"] == seed]["value"].tolist()
    return float(values[0]) if values else None


# --- from rows to a table; docs/methods/collect.py makes its own from the rows of several runs
def by_method(rows: Sequence[Row], measure: str) -> dict[str, list[float]]:
    """Method -> its values over training seeds, of those that have any."""
    found: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(measure)
        if value is not None and math.isfinite(value):
            found.setdefault(row["method"], []).append(float(value))
    return found


def p_values(rows: Sequence[Row], measure: str, against: str) -> dict[str, float]:
    """Method -> adjusted p of its difference to `against`, of those with two seeds or more; see NOTES."""
    values = by_method(rows, measure)
    theirs = values.pop(against, [])
    values.pop(INITIAL, None)
    found = {}
    for method, ours in values.items():
        parts = [each for each in (part(side) for side in (ours, theirs) if side) if each]
        if len(parts) == 2:
            found[method] = t_test(mean_and_error(ours)[0] - mean_and_error(theirs)[0], parts)
    return dict(zip(found, holm(list(found.values())), strict=True))


def comparable(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(pair, teacher's weights) -> the rows that may be compared with each other."""
    groups: dict[tuple[str, str], list[Row]] = {}
    # SFT knows no teacher: its weights are those of the pair's other rows.
    known = {row["pair"]: row["teacher"] for row in rows if row["teacher"]}
    for row in rows:
        groups.setdefault((row["pair"], row["teacher"] or known.get(row["pair"], "")), []).append(row)
    return groups


def sheet(rows: Sequence[Row], against: Sequence[str]) -> Sheet:
    """One line per method in the order of `rows`, with means, errors and tests against `against`."""
    groups = comparable(rows)
    labels = {row["method"]: row["label"] for row in rows}
    tested = [(name, measure) for name in against for measure in TESTED]
    columns = [*(["Model"] if len(groups) > 1 else []), "Method", "lr", "n"]
    columns += [heading for heading, _ in MEASURES.values()]
    columns += [f"p, {labels.get(name, name)}\n{MEASURES[measure][0]}" for name, measure in tested]
    lines = []
    for (pair, _), group in groups.items():
        values = {measure: by_method(group, measure) for measure in MEASURES}
        tests = {(name, measure): p_values(group, measure, name) for name, measure in tested}
        for method in dict.fromkeys(row["method"] for row in group):
            own = [row for row in group if row["method"] == method]
            rates = dict.fromkeys(DASH if row["lr"] is None else f"{row['lr']:g}" for row in own)
            cells = [*([pair] if len(groups) > 1 else []), labels[method], ", ".join(rates), str(len(own))]
            cells += [_cell(values[name].get(method), places) for name, (_, places) in MEASURES.items()]
            lines.append([*cells, *(_p(tests[key].get(method)) for key in tested)])
    missing = "" if rows else "not measured in this run"
    n = f"{len(rows)} trainings" if rows else ""
    left = 1 + (len(groups) > 1)
    shown = merged_labels(lines) if len(groups) > 1 else lines
    return Sheet(CAPTION, columns, shown, list(NOTES), [dict(row) for row in rows], n, missing, left=left)


def _cell(values: list[float] | None, places: int) -> str:
    if not values:
        return DASH
    mean, error = mean_and_error(values)
    return f"{mean:.{places}f}" + ("" if error is None else f" ± {error:.{places}f}")


def _p(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.2g}" + ("*" if value < LEVEL else "")
