"""What one table or figure is made from: models, the frame of their numbers, and other records of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.config import layout
from minillm.errors import UserError
from minillm.publish.metric_shapes import wrong_part
from minillm.publish.published_numbers import Key, Published
from minillm.publish.results import (
    MODEL,
    Value,
    calibration_of,
    damage,
    over_sets,
    over_training_seeds,
    read_frame,
    read_json,
    read_text,
    seeds_pooled,
)
from minillm.publish.run_models import MetricFile, labels, method_of, models, weights_of
from minillm.publish.settings import MetricsSettings, PublishSettings
from minillm.publish.style import METHOD_NAMES
from minillm.readers import Kind, is_a, read_json_lines

# Keys of metrics.jsonl that items read, besides those of dev evaluations.
OF_DEV = ("dev_rouge", "dev_loss", "dev_reverse_kl", "dev_forward_kl")
LOGGED = (
    "response_length",
    "sampled_tokens",
    "effective_samples",
    "clip_fraction",
    "grad_variance",
    "grad_norm",
)


@dataclass(frozen=True)
class Trained:
    """A teacher (`student` is empty), or a student trained by one method, over all training seeds."""

    teacher: str
    student: str
    method: str
    # The model's own label.
    label: str
    teacher_label: str
    method_label: str
    # Training seed -> path below models/.
    weights: dict[int, str] = field(compare=False)

    @property
    def name(self) -> str:
        """The model's name in the configuration."""
        return self.student or self.teacher

    @property
    def key(self) -> tuple[str, str, str]:
        """Teacher, student and method, as in the frame."""
        return self.teacher, self.student, self.method


@dataclass
class RunResults:
    """What a job of publishing reads of a run; `sources` collects the files used, relative to its folder.

    `paper`: the published numbers.  A missing file gives None, or no row.
    """

    settings: PublishSettings | MetricsSettings
    folder: Path
    paper: Mapping[Key, Published] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    # --- the models
    def models(self) -> list[Trained]:
        """Every model that the item covers (the main table's, or the whole run's), in the table's order."""
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
        """Each pair: the teacher, and the models of one of its students."""
        every_model = self.models()
        for teacher, student in dict.fromkeys((m.teacher, m.student) for m in every_model if m.student):
            students = [m for m in every_model if (m.teacher, m.student) == (teacher, student)]
            yield next(m for m in every_model if m.teacher == teacher and not m.student), students

    @property
    def crowded(self) -> bool:
        """Whether the run has too many methods to tell apart in one panel."""
        return len(self.settings.table.methods) > 6

    def drawn(self, models: Sequence[Trained]) -> list[Trained]:
        """Those of `models` that a panel shows: if `crowded`, only the methods of the paper's main table."""
        return [model for model in models if not self.crowded or model.method in METHOD_NAMES]

    @property
    def drawn_note(self) -> str:
        """The caption's sentence about `drawn`; empty if nothing is left out."""
        if not self.crowded:
            return ""
        count = len(self.settings.table.methods)
        return f" Only the methods of the paper's main table are drawn; this run has {count} methods."

    def names(self, kind: str) -> list[str]:
        """Names of the sets (calibration: tasks) on which the configuration asks for metrics/<kind>."""
        return list(self.settings.asked.get(kind, ()))

    def label(self, test: str) -> str:
        """A test set's label."""
        return self.settings.table.test_labels.get(test, test)

    def published(self, table: str, model: Trained, name: str, metric: str) -> Published | None:
        """The paper's number for a model in the paper's table `table` ("2"); None if there is none."""
        specs = self.settings.models
        student, teacher = (f"{specs[key].family} {specs[key].size}" for key in (model.name, model.teacher))
        return self.paper.get((table, student, teacher, model.method_label, name, metric))

    # --- their numbers
    @cached_property
    def files(self) -> list[MetricFile]:
        """The metric files that the item's job declares; no other file in metrics/ is read."""
        return self.settings.files()

    @cached_property
    def _files_of(self) -> dict[tuple[str, ...], list[MetricFile]]:
        files: dict[tuple[str, ...], list[MetricFile]] = {}
        for file in self.files:
            key = (file.kind, file.test_set, file.teacher, file.student, file.method)
            files.setdefault(key, []).append(file)
        return files

    def _of(self, kind: str, model: Trained, name: str) -> list[MetricFile]:
        """The declared files of one model and set, one per training seed."""
        return self._files_of.get((kind, name, *model.key), [])

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All numbers in `files`, as a tidy frame (results.py)."""
        return read_frame(self.folder, self.files)

    @cached_property
    def _rows(self) -> dict[Any, pd.DataFrame]:
        """(teacher, student, method, whether for a single sampling seed) -> rows of the frame."""
        return dict(iter(self.frame.groupby([*MODEL, self.frame["sampling_seed"].notna()], sort=False)))

    @cached_property
    def _n(self) -> dict[Any, int]:
        """Metric file -> its n."""
        return self.frame.dropna(subset="n").groupby("source")["n"].first().to_dict()

    def rows(
        self, model: Trained, metric: str | Sequence[str], names: Sequence[str], each_seed: bool = False
    ) -> pd.DataFrame:
        """The frame's rows for one model, one per training seed and set; their files become sources.

        The values are over all sampling seeds, or with `each_seed` one per sampling seed.
        """
        rows = self._rows.get((*model.key, each_seed), self.frame[:0])
        metrics = [metric] if isinstance(metric, str) else metric
        rows = rows[rows["metric"].isin(metrics) & rows["test_set"].isin(names)]
        self._use(rows["source"])
        return rows

    def value(self, model: Trained, metric: str | Sequence[str], name: str) -> Value | None:
        """Mean and standard error over training seeds on one set; for one seed, the metric's own error."""
        return over_training_seeds(self.rows(model, metric, [name]))

    def average(self, model: Trained, metric: str, names: Sequence[str]) -> Value | None:
        """The same for the unweighted mean over several sets; None if no training seed has all of them."""
        return over_sets(self.rows(model, metric, names), names)

    def sizes(self, kind: str, models: Sequence[Trained], name: str) -> list[int]:
        """The distinct n of one kind of metric on a set, ascending."""
        paths = [f.path for model in models for f in self._of(kind, model, name) if self._n.get(f.path)]
        self._use(paths)
        return sorted({self._n[path] for path in paths})

    def sizes_text(self, kind: str, names: Sequence[str], models: Sequence[Trained]) -> list[str]:
        """ "DollyEval: n = 500" for each set on which some of `models` were measured."""
        sizes = {name: self.sizes(kind, models, name) for name in names}
        return [f"{self.label(name)}: n = {' or '.join(map(str, n))}" for name, n in sizes.items() if n]

    # --- what the frame does not hold: scores of single prompts, curves, bins, who judged
    def contents(self, kind: str, model: Trained, name: str) -> list[dict[str, Any]]:
        """The contents of the declared metric files that exist, in the order of training seeds.

        Raises UserError if one is damaged.
        """
        found = []
        for file in self._of(kind, model, name):
            content = self.json(file.path)
            if content is not None:
                with damage(self.folder / file.path):
                    flat = calibration_of(content) if kind == "calibration" else content
                    if key := wrong_part(kind, flat):
                        raise TypeError(f"'{key}' is missing or of the wrong type or length")
                found.append(flat)
        return found

    def calibration(self, model: Trained, task: str) -> list[dict[str, Any]]:
        """Calibration of each training seed, as `calibration_of` returns it."""
        return self.contents("calibration", model, task)

    def comparisons(self) -> dict[str, list[dict[str, Any]]]:
        """Answered human comparisons of each MiniLLM student and set, as `comparison_of` returns them."""
        flat = {}
        for file in self.files:
            if file.kind == "human":
                page = (self.json(file.path) or {}).get("comparisons", ())
                with damage(self.folder / file.path):
                    flat[f"{file.weights}/{file.test_set}"] = [comparison_of(c) for c in page if c["n"]]
        return {name: comparisons for name, comparisons in flat.items() if comparisons}

    # --- other records of the run
    def text(self, path: str) -> str | None:
        """A file's text; the file becomes a source."""
        text = read_text(self.folder / path)
        if text is not None:
            self._use([path])
        return text

    def json(self, path: str) -> dict[str, Any] | None:
        """A JSON object; the file becomes a source.  Raises UserError if it is damaged."""
        content = read_json(self.folder / path)
        if content is not None:
            self._use([path])
        return content

    def lines(self, path: str, again: str, keys: Mapping[str, Kind] | None = None) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file, which becomes a source; empty if there is none.

        Raises UserError, one line that ends in `again`, if it is damaged or a line lacks one of `keys`.
        """
        file = self.folder / path
        if not file.exists():
            return []
        self._use([path])
        return [entry for _, entry in read_json_lines(file, keys or {}, again=again)]

    def _use(self, paths: Sequence[str] | pd.Series) -> None:
        self.sources += [path for path in dict.fromkeys(paths) if path not in self.sources]

    def log(self, weights: str) -> list[dict[str, Any]]:
        """The entries of a model's metrics.jsonl; empty if there is no such file."""
        path = f"{layout.model(weights)}/metrics.jsonl"
        again = "remove the model's folder and train again"
        entries = self.lines(path, again, {"step": int})
        for number, entry in enumerate(entries, 1):
            for key, value in entry.items():
                read = key.startswith("dev_") or key in LOGGED
                # A diverged training may have logged NaN.
                if read and (isinstance(value, bool) or not isinstance(value, int | float | None)):
                    raise UserError(f"{self.folder / path}:{number}: '{key}' is not a number; {again}")
        return entries

    def dev_rows(self, model: Trained) -> int | None:
        """The number of dev rows on which a model was evaluated in training; None if it is not recorded."""
        path = f"{layout.model(next(iter(model.weights.values())))}/provenance.json"
        provenance = self.json(path) or {}
        with damage(self.folder / path):
            rows = provenance.get("settings", {}).get("training", {}).get("dev_rows")
        if rows != 0:
            return rows if isinstance(rows, int) else None
        # 0 means all rows.
        path = f"{layout.training_data(self.settings.models[model.name].tokenizer)}/card.json"
        card = self.json(path) or {}
        with damage(self.folder / path):
            kept = card.get("dev", {}).get("kept")
        return kept if isinstance(kept, int) else None

    def dev_rouge(self, model: Trained) -> Value | None:
        """Dev ROUGE-L of the chosen checkpoint, mean and standard error over training seeds."""
        recorded = [self.dev_values(weights).get("dev_rouge") for weights in model.weights.values()]
        scores = [score for score in recorded if score is not None]
        return seeds_pooled(scores, [None] * len(scores))

    def dev_values(self, weights: str) -> dict[str, float]:
        """`OF_DEV` of one training's chosen checkpoint, as far as measured; empty if none was chosen."""
        path = f"{layout.model(weights)}/selection.json"
        selection = self.json(path)
        if selection is None:
            return {}
        with damage(self.folder / path):
            chosen = selection["chosen"]
            values = {name: chosen[name] for name in OF_DEV if chosen.get(name) is not None}
            values.setdefault("dev_rouge", chosen["dev_rouge"])
            for name, value in values.items():
                if not is_a(value, (int, float)):
                    raise TypeError(f"{name}: {value!r}")
            return {name: float(value) for name, value in values.items()}


@dataclass
class ItemResults(RunResults):
    """What one table or figure of registry.py is made from."""

    settings: PublishSettings


def parameters(size: str) -> float | None:
    """ "120M" -> 1.2e8; None if `size` is not a size."""
    scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(size[-1:].upper())
    try:
        return float(size[:-1]) * scale if scale else None
    except ValueError:
        return None


def comparison_of(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """A human comparison, flattened: `against` as a method's name, counts, and intervals in percent.

    annotators: how many people judged at least one pair.
    """
    outcomes = {outcome: comparison[outcome] for outcome in ("win", "tie", "loss")}
    return {
        "against": method_of(comparison["against"]),
        "n": comparison["n"],
        "annotators": sum(map(bool, comparison["annotators"].values())),
        **{outcome: share["count"] for outcome, share in outcomes.items()},
        "intervals": {outcome: (share["low"], share["high"]) for outcome, share in outcomes.items()},
    }


def judge_of(metric: Mapping[str, Any]) -> str:
    """The judge's kind and model, in words."""
    judge = metric.get("judge", "")
    if not isinstance(judge, dict):
        return str(judge)
    return f"{judge.get('kind', '')} {judge.get('model', '')}".strip()
