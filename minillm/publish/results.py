"""Reading a finished run: its models, and what was measured of them; a file that is not there is None."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.statistics import mean_and_error
from minillm.publish.published_numbers import Key, Published
from minillm.publish.run_models import labels, models, weights_of
from minillm.publish.settings import PublishSettings
from minillm.publish.style import METHOD_NAMES


@dataclass(frozen=True)
class Trained:
    """A teacher, or a student trained by one method, over all training seeds; `student` is empty for a teacher."""

    teacher: str
    student: str
    method: str
    label: str  # of the model itself
    teacher_label: str
    method_label: str
    weights: dict[int, str] = field(compare=False)  # training seed -> path below models/

    @property
    def name(self) -> str:
        """The model's name in the configuration."""
        return self.student or self.teacher


@dataclass
class Found:
    """What was found; `sources` collects the files that were read, relative to the run's folder.  `paper`: the published numbers."""

    settings: PublishSettings
    folder: Path
    paper: Mapping[Key, Published] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def models(self) -> list[Trained]:
        """Every model that the item is about (of the main table, or of the whole run), in the table's order."""
        table = self.settings.table
        names = labels(table)
        return [
            Trained(
                teacher,
                student,
                method,
                names[student or teacher],
                names[teacher],
                METHOD_NAMES.get(method) or table.method_labels[method],
                weights_of(table, teacher, student, method),
            )
            for teacher, student, method in models(table)
        ]

    def pairs(self) -> Iterator[tuple[Trained, list[Trained]]]:
        """Each teacher with one student's models."""
        every = self.models()
        for teacher, student in dict.fromkeys((m.teacher, m.student) for m in every if m.student):
            own = [m for m in every if (m.teacher, m.student) == (teacher, student)]
            yield next(m for m in every if m.teacher == teacher and not m.student), own

    def published(self, table: str, model: Trained, name: str, metric: str) -> Published | None:
        """The paper's number for a model, in its table of that name ("2"); None where it has none, or it is not known."""
        named = self.settings.models
        own, teacher = (f"{named[key].family} {named[key].size}" for key in (model.name, model.teacher))
        return self.paper.get((table, own, teacher, model.method_label, name, metric))

    @property
    def crowded(self) -> bool:
        """Whether the run has more methods than can be told apart in one panel."""
        return len(self.settings.table.methods) > 6

    def drawn(self, models: Sequence[Trained]) -> list[Trained]:
        """Those that a panel shows: where it is `crowded`, the methods of the paper's main table alone."""
        return [model for model in models if not self.crowded or model.method in METHOD_NAMES]

    @property
    def drawn_note(self) -> str:
        """What a caption says of `drawn`, or nothing."""
        count = len(self.settings.table.methods)
        return f" Drawn: the methods of the paper's main table alone, of {count} in this run." if self.crowded else ""

    def text(self, path: str) -> str | None:
        """A file's text; the file becomes a source."""
        try:
            text = (self.folder / path).read_text()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.folder / path}: not UTF-8: {error}; remove it and make it again") from None
        if path not in self.sources:
            self.sources.append(path)
        return text

    def json(self, path: str) -> dict[str, Any] | None:
        """A JSON object.  Raises UserError where the file is damaged."""
        text = self.text(path)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UserError(f"{self.folder / path}: not JSON: {error}; remove it and make it again") from None
        if not isinstance(value, dict):
            raise UserError(f"{self.folder / path}: not a JSON object; remove it and make it again")
        return value

    def metric(self, kind: str, weights: str, name: str, under: str = "") -> dict[str, Any] | None:
        """metrics/<kind>/[<under>/]<weights>/<name>.json."""
        return self.json("/".join(filter(None, ("metrics", kind, under, weights, f"{name}.json"))))

    def metrics(self, kind: str, model: Trained, name: str, under: str = "") -> list[dict[str, Any]]:
        """That metric of each training seed that has it."""
        found = (self.metric(kind, weights, name, under) for weights in model.weights.values())
        return [metric for metric in found if metric is not None]

    def calibration(self, model: Trained, task: str) -> list[dict[str, Any]]:
        """Calibration of each training seed, as `calibration_of` has it."""
        return [calibration_of(metric) for metric in self.metrics("calibration", model, task)]

    def average(
        self, kind: str, model: Trained, names: Sequence[str], mean: str = "mean", error: str = "standard_error"
    ) -> tuple[float, float | None] | None:
        """Unweighted mean of a metric over several sets: of each training seed, then over seeds; None where no seed has all sets."""
        seeds = []
        for weights in model.weights.values():
            own = [metric for name in names if (metric := self.metric(kind, weights, name)) is not None]
            if kind == "calibration":
                own = [calibration_of(metric) for metric in own]
            found = average([over_seeds([metric], mean, error) for metric in own]) if len(own) == len(names) else None
            if found is not None:
                seeds.append({"mean": found[0], "standard_error": found[1]})
        return over_seeds(seeds)

    def names(self, kind: str) -> list[str]:
        """Names of the sets (calibration: tasks) of which the configuration asks for metrics/<kind>."""
        return list(self.settings.asked.get(kind, ()))

    def comparisons(self) -> dict[str, list[dict[str, Any]]]:
        """Human comparisons of each MiniLLM student, first training seed, each as `comparison_of` has it; those without an answer left out."""
        ours = [next(iter(model.weights.values())) for model in self.models() if model.method == "minillm"]
        names = [f"{weights}/{test}" for weights in ours for test in self.names("human")]
        found = {name: self.json(f"metrics/human/{name}.json") or {} for name in names}
        methods = {weights: model.method for model in self.models() for weights in model.weights.values()}
        pages = {
            name: [comparison_of(c, methods) for c in page.get("comparisons", ()) if c["n"]] for name, page in found.items()
        }
        return {name: comparisons for name, comparisons in pages.items() if comparisons}

    def sizes(self, kind: str, names: Sequence[str], models: Sequence[Trained]) -> list[str]:
        """ "DollyEval: n = 500" of each set that some of `models` were measured on."""
        found = {name: counts([m for model in models for m in self.metrics(kind, model, name)]) for name in names}
        return [f"{self.label(name)}: n = {' or '.join(map(str, own))}" for name, own in found.items() if own]

    def label(self, test: str) -> str:
        """A test set's label."""
        return self.settings.table.test_labels.get(test, test)

    def log(self, weights: str) -> list[dict[str, Any]]:
        """models/<weights>/metrics.jsonl; empty where it is not there."""
        text = self.text(f"models/{weights}/metrics.jsonl") or ""
        try:
            return [json.loads(line) for line in text.split("\n") if line]
        except ValueError as error:
            raise UserError(f"{self.folder}/models/{weights}/metrics.jsonl: not JSON: {error}") from None

    def dev_rows(self, model: Trained) -> int | None:
        """How many dev rows a model was evaluated on in training; None where it is not recorded."""
        provenance = self.json(f"models/{next(iter(model.weights.values()))}/provenance.json") or {}
        rows = provenance.get("settings", {}).get("training", {}).get("dev_rows")
        if rows != 0:
            return rows if isinstance(rows, int) else None
        card = self.json(f"data/{self.settings.models[model.name].tokenizer}/training/card.json") or {}  # 0: all there are
        kept = card.get("dev", {}).get("kept")
        return kept if isinstance(kept, int) else None

    def dev_rouge(self, model: Trained) -> tuple[float, float | None] | None:
        """Dev ROUGE-L of the chosen checkpoint, mean and standard error over training seeds."""
        found = [self.json(f"models/{weights}/selection.json") for weights in model.weights.values()]
        return over_seeds([{"mean": f["chosen"]["dev_rouge"]} for f in found if f])


def over_seeds(
    metrics: Sequence[Mapping[str, Any]], mean: str = "mean", error: str = "standard_error"
) -> tuple[float, float | None] | None:
    """Mean and standard error of a value of several training seeds: over their means, or the value's own where there is one seed."""
    values = [metric for metric in metrics if isinstance(metric.get(mean), int | float)]
    if not values:
        return None
    if len(values) == 1:
        return float(values[0][mean]), values[0].get(error)
    return mean_and_error(float(metric[mean]) for metric in values)


def average(cells: Sequence[tuple[float, float | None] | None]) -> tuple[float, float | None] | None:
    """Unweighted mean of several measured values, with the error that independent errors give; None where one is missing."""
    if not cells or any(cell is None for cell in cells):
        return None
    known = [cell for cell in cells if cell is not None]
    errors = [error for _, error in known if error is not None]
    error = math.sqrt(math.fsum(e * e for e in errors)) / len(known) if len(errors) == len(known) else None
    return math.fsum(mean for mean, _ in known) / len(known), error


def parameters(size: str) -> float | None:
    """ "120M" -> 1.2e8; None for what is no size."""
    scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(size[-1:].upper())
    try:
        return float(size[:-1]) * scale if scale else None
    except ValueError:
        return None


def calibration_of(metric: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration metric flat: accuracy, ece (normalised) and ece_raw, each with its error, and bins with low and high."""
    if "normalised" not in metric:
        return dict(metric)
    flat = {**metric, "bins": [{**b, "low": b["from"], "high": b["to"]} for b in metric["normalised"]["bins"]]}
    for key, part in (("ece", "normalised"), ("ece_raw", "raw")):
        flat |= {key: metric[part]["ece"], f"{key}_error": metric[part]["standard_error"]}
    accuracy = metric["accuracy"]
    return flat | {"accuracy": accuracy["mean"], "accuracy_error": accuracy["standard_error"]}


def comparison_of(comparison: Mapping[str, Any], methods: Mapping[str, str]) -> dict[str, Any]:
    """A human comparison flat: `against` as a method's name (given weights -> method), counts, and intervals in percent.

    annotators: how many judged something.
    """
    method = next(
        (method for weights, method in methods.items() if f"/{weights}/" in comparison["against"]), comparison["against"]
    )
    outcomes = {outcome: comparison[outcome] for outcome in ("win", "tie", "loss")}
    return {
        "against": method,
        "n": comparison["n"],
        "annotators": sum(map(bool, comparison["annotators"].values())),
        **{outcome: found["count"] for outcome, found in outcomes.items()},
        "intervals": {outcome: (found["low"], found["high"]) for outcome, found in outcomes.items()},
    }


def judge_of(metric: Mapping[str, Any]) -> str:
    """Who judged, in words."""
    judge = metric.get("judge", "")
    return f"{judge.get('kind', '')} {judge.get('model', '')}".strip() if isinstance(judge, dict) else str(judge)


def counts(metrics: Sequence[Mapping[str, Any]]) -> list[int]:
    """The different n of some metrics, in order."""
    return sorted({int(metric["n"]) for metric in metrics if metric.get("n")})
