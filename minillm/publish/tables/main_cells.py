"""Cells of the main table: what was measured for every teacher, student and method on every test set, and which lead is significant.

`collect_cells` turns metric files into cells; `write_csv` and `read_csv` keep them.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minillm.config.stage_settings import TableSettings
from minillm.errors import UserError
from minillm.evaluation.statistics import (
    Part,
    bootstrap_error,
    bootstrap_mean,
    components,
    holm,
    mean_and_error,
    paired_bootstrap,
    part,
    pooled,
    t_interval,
    t_test,
)
from minillm.files import read_object, whole_file
from minillm.publish.published_numbers import GPT4, Key, Published
from minillm.publish.run_models import labels, models, weights_of
from minillm.publish.style import METHOD_NAMES

LEVEL = 0.05  # of the comparisons of a table together


@dataclass(frozen=True)
class Cell:
    """One model under one test set; `mean` is None where no metric file is there."""

    teacher: str
    student: str  # empty for the teacher itself
    student_label: str
    teacher_label: str
    method: str
    method_label: str
    test: str
    test_label: str
    n: int | None = None
    rows: str = ""  # hash of the ids of the test rows: cells of one hash were tested on the same rows
    mean: float | None = None
    standard_error: float | None = None
    over: str = ""
    low: float | None = None  # 95% interval of the mean (`_interval`)
    high: float | None = None
    between_variance: float | None = None  # of training seeds
    within_variance: float | None = None  # of sampling seeds of one training seed
    best: bool = False  # leads every other method of its student significantly
    sources: str = ""
    published: float | None = None  # the paper's ROUGE-L
    published_status: str = ""  # verified or unverified
    judged: float | None = None  # a real judge's score in percent, where the test set has such a column
    judged_error: float | None = None
    judged_n: int | None = None
    judged_published: float | None = None  # the paper's GPT-4 score
    judged_published_status: str = ""
    exact_match: float | None = None  # percent of the responses that are one of the references
    exact_match_error: float | None = None  # over training seeds where there are several, else over sampling seeds

    @property
    def training_seeds(self) -> int:
        """How many training seeds are behind the mean."""
        return sum("metrics/rouge/" in source for source in self.sources.split(";"))


def collect_cells(settings: TableSettings, metrics: Path, paper: Mapping[Key, Published] | None = None) -> list[Cell]:
    """All cells, pair by pair, from the files below `metrics` (a run's metrics folder) and the published numbers.

    Raises UserError where a file is damaged, is of other settings, or where a teacher and its students were tested on different
    rows.  Different teachers may be: which prompts are dropped as too long depends on the tokenizer, which only a pair shares.
    """
    names = labels(settings)
    found: list[tuple[Cell, list[float], Part | None]] = []
    rows: dict[
        tuple[str, str], tuple[list[int], Path]
    ] = {}  # teacher, test -> ids of the rows, and the first file that has them
    for teacher, student, method in models(settings):
        for test in settings.tests:
            label = METHOD_NAMES.get(method) or settings.method_labels[method]
            who = (teacher, student, names.get(student, ""), names[teacher], method, label)
            cell = Cell(*who, test, settings.test_labels.get(test, test))
            cell, own, training = _scored(_beside(cell, settings, paper or {}), settings, metrics, rows)
            found.append((_judged(cell, settings, metrics), own, training))
    cells, scores, trainings = (list(column) for column in zip(*found, strict=True)) if found else ([], [], [])
    best = significant_leads([(cell.teacher, cell.student, cell.test) for cell in cells], cells, scores, trainings)
    return [dataclasses.replace(cell, best=i in best) for i, cell in enumerate(cells)]


def _scored(
    cell: Cell, settings: TableSettings, metrics: Path, rows: dict[tuple[str, str], tuple[list[int], Path]]
) -> tuple[Cell, list[float], Part | None]:
    """The cell with its ROUGE-L; its score at each prompt, averaged over all seeds; and what training seeds add to the mean's variance."""
    seeds: dict[int, dict[int, float]] = {}
    answers: list[list[float]] = []  # of every seed, one score a prompt
    exact: list[dict[str, Any]] = []
    sources = []
    for seed, weights in weights_of(settings, cell.teacher, cell.student, cell.method).items():
        path = metrics / "rouge" / weights / f"{cell.test}.json"
        if path.exists():
            metric = _read(path, settings, cell.test)
            ids, other = rows.setdefault((cell.teacher, cell.test), (metric["ids"], path))
            if metric["ids"] != ids:
                raise UserError(f"{path}: its rows are not those of {other}; generate and score both again")
            seeds[seed] = {int(s): value for s, value in metric["per_seed"].items()}
            answers += metric["scores"].values()
            exact += [metric] if "exact_match" in metric else []
            sources.append(f"metrics/rouge/{weights}/{cell.test}.json")
    if not seeds:
        return cell, [], None
    scores = [math.fsum(column) / len(column) for column in zip(*answers, strict=True)]
    training = part([math.fsum(values.values()) / len(values) for values in seeds.values()])
    mean, error, over = pooled(seeds)
    if error is None and len(scores) > 1:  # a single run
        error = _error_over_prompts(scores)
        over = f"prompts (bootstrap), {over}"
    exact_mean, exact_error = mean_and_error(metric["exact_match"] for metric in exact) if exact else (None, None)
    if len(exact) == 1:
        exact_error = exact[0].get("exact_match_error")
    variances = components(seeds)
    low, high = _interval(mean, scores, training, "/".join((cell.teacher, cell.student, cell.method, cell.test)))
    cell = dataclasses.replace(
        cell,
        n=len(ids),
        rows=hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8],
        mean=mean,
        standard_error=error,
        over=over,
        low=low,
        high=high,
        between_variance=variances.between,
        within_variance=variances.within,
        exact_match=exact_mean,
        exact_match_error=exact_error,
        sources=";".join(sources),
    )
    return cell, scores, training


def _error_over_prompts(scores: Sequence[float]) -> float | None:
    values = np.array(scores)
    return bootstrap_error(lambda chosen: float(values[chosen].mean()), len(values))


def _interval(mean: float, scores: Sequence[float], training: Part | None, name: str) -> tuple[float | None, float | None]:
    """95% interval of a mean: percentile bootstrap over prompts; with several training seeds Student's t, variances of both added.

    Added they are a little too wide: what prompts and seeds do together is in both.
    """
    prompts = part(scores)
    if training is None or prompts is None:
        return bootstrap_mean(scores, name) or (None, None)
    return t_interval(mean, [prompts, training])


def _beside(cell: Cell, settings: TableSettings, paper: Mapping[Key, Published]) -> Cell:
    """The cell with the paper's numbers for it, of Table 1 or 6."""
    model, teacher = (settings.labels.get(name, name) for name in (cell.student or cell.teacher, cell.teacher))
    changes: dict[str, Any] = {}
    for key, metric in (("published", "rougeL"), ("judged_published", "gpt4")):
        keys = [(table, model, teacher, cell.method_label, cell.test, metric) for table in ("1", "6")]
        found = next((paper[own] for own in keys if own in paper), None)
        if found and (metric == "rougeL" or GPT4.fullmatch(settings.judge)):
            changes |= {key: found.value, f"{key}_status": found.status}
    return dataclasses.replace(cell, **changes)


def _judged(cell: Cell, settings: TableSettings, metrics: Path) -> Cell:
    """The cell with a real judge's score, over training seeds as they are there."""
    if not settings.judge or cell.test not in settings.judged:
        return cell
    paths = [
        f"judge/{weights}/{cell.test}.json"
        for weights in weights_of(settings, cell.teacher, cell.student, cell.method).values()
    ]
    found = {path: read_object(metrics / path, {"n": int, "mean": float, "stand_in": bool}, "", "remove it and judge again")
             for path in paths if (metrics / path).exists()}  # fmt: skip
    if not found or any(metric["stand_in"] for metric in found.values()):
        return cell
    mean, error = mean_and_error(metric["mean"] for metric in found.values())
    own = next(iter(found.values())).get("standard_error") if len(found) == 1 else error
    sources = ";".join(filter(None, [cell.sources, *(f"metrics/{path}" for path in found)]))
    n = next(iter(found.values()))["n"]
    return dataclasses.replace(cell, judged=mean, judged_error=own, judged_n=n, sources=sources)


def significant_leads(
    groups: Sequence[tuple[str, str, str]],
    cells: Sequence[Cell],
    scores: Sequence[Sequence[float]],
    trainings: Sequence[Part | None],
) -> set[int]:
    """Places of the cells whose lead over every other student method of their group is significant.

    groups: (teacher, student, test) of each cell.  scores: one a prompt.  trainings: what training seeds add to the variance of a cell's
    mean, where there are several.  In each group of students' cells the highest mean is compared with each of the others (`_p`); Holm's
    correction is over the comparisons of the whole table.  Cells over fewer training seeds than others are compared like the rest.
    """
    found: dict[tuple[str, str, str], list[int]] = {}
    for i, (group, cell) in enumerate(zip(groups, cells, strict=True)):
        if cell.student and cell.mean is not None and len(scores[i]) > 1:
            found.setdefault(group, []).append(i)
    pairs = []
    for places in found.values():
        leader = max(places, key=lambda i: math.fsum(scores[i]))
        pairs += [(leader, other) for other in places if other != leader]
    names = ["/".join((*groups[a], cells[a].method, cells[b].method)) for a, b in pairs]
    p = [
        _p(scores[a], scores[b], [own for own in (trainings[a], trainings[b]) if own], name)
        for (a, b), name in zip(pairs, names, strict=True)
    ]
    leads: dict[int, bool] = {}
    for (leader, _), value in zip(pairs, holm(p), strict=True):
        leads[leader] = leads.get(leader, True) and value <= LEVEL
    return {leader for leader, lead in leads.items() if lead}


def _p(first: Sequence[float], second: Sequence[float], trainings: Sequence[Part], name: str) -> float:
    """Two-sided p of a difference of two methods on the same prompts: paired bootstrap; with training seeds Student's t, variances added."""
    if not trainings:
        return paired_bootstrap(first, second, name).p
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, _ = mean_and_error(differences)
    prompts = part(differences)
    return t_test(mean, [*trainings, *([prompts] if prompts else [])])


def write_csv(cells: list[Cell], path: Path) -> None:
    """Long form, one line a cell; numbers in full, empty where there is none."""
    with whole_file(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Cell)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(cell) for cell in cells)


def read_csv(path: Path) -> list[Cell]:
    """What `write_csv` wrote.  Raises UserError, one line naming file and line."""
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            missing = [field.name for field in dataclasses.fields(Cell) if field.name not in (reader.fieldnames or [])]
            if missing:
                raise UserError(f"{path}:1: no column '{missing[0]}'; make the table again")
            cells = []
            for row in reader:
                try:
                    cells.append(_cell(row))
                except (ValueError, TypeError) as error:
                    raise UserError(f"{path}:{reader.line_num}: {error}; make the table again") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such table; make it first") from None
    if not cells:
        raise UserError(f"{path}: no rows; make the table again")
    return cells


def _cell(row: dict[str, Any]) -> Cell:
    numbers = ("mean", "standard_error", "low", "high", "between_variance", "within_variance",
               "published", "judged", "judged_error", "judged_published", "exact_match", "exact_match_error")  # fmt: skip
    values = {key: float(row[key]) if row[key] else None for key in numbers}
    counts = {key: int(row[key]) if row[key] else None for key in ("n", "judged_n")}
    return Cell(**{**row, **values, **counts, "best": row["best"] == "True"})


def _read(path: Path, settings: TableSettings, test: str) -> dict[str, Any]:
    """A metric file, checked against the settings: the table must not mix what was sampled in different ways."""
    keys = {"dataset": str, "ids": list, "per_seed": dict, "scores": dict, "sampling": dict}
    metric = read_object(path, keys, "no such metric file; score the generations", "remove it and score again")
    values = metric["per_seed"].values()
    if not metric["ids"] or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise UserError(f"{path}: no rows, or a score that is no number; remove it and score again")
    if any(len(scores) != len(metric["ids"]) for scores in metric["scores"].values()):
        raise UserError(f"{path}: not every row has a score; remove it and score again")
    if metric["dataset"] != test:
        raise UserError(f"{path}: holds the test set '{metric['dataset']}', not '{test}'; remove it and score again")
    seeds = sorted(str(seed) for seed in settings.sampling_seeds)
    if sorted(metric["per_seed"]) != seeds:
        raise UserError(
            f"{path}: sampling seeds {', '.join(metric['per_seed'])}, but the table is of {', '.join(seeds)}; generate again"
        )
    if metric["sampling"] != dataclasses.asdict(settings.sampling):
        raise UserError(f"{path}: sampled with {metric['sampling']}, not as the table says; generate again")
    return metric
