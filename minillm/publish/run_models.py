"""The models of a run in the order of its tables, the paths of their weights, and their metric files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from minillm.config import layout
from minillm.config.measurements.metrics import STAGE_OF, metrics_of
from minillm.config.stage_settings import TableSettings

# Measured only for the main table's models, never for those of a sweep.
MAIN_TABLE_ONLY = ("exposure_bias", "human")


class MetricFile(NamedTuple):
    """One metric file of a run: what was measured, for which model, on which set (calibration: task)."""

    kind: str
    teacher: str
    # Empty for a teacher.
    student: str
    method: str
    training_seed: int
    test_set: str
    # Path of the model below models/.
    weights: str

    @property
    def path(self) -> str:
        """The file's path relative to the run's folder."""
        teacher = self.teacher if self.kind == "exposure_bias" else ""
        return layout.metric(self.kind, self.weights, self.test_set, teacher)


def models(settings: TableSettings) -> Iterator[tuple[str, str, str]]:
    """(teacher, student, method) of every row of the table; a teacher has one row, however many its pairs."""
    students: dict[str, dict[str, set[str]]] = {}
    for pair in (*settings.pairs, *settings.sweeps):
        for student in pair.students:
            methods = students.setdefault(pair.teacher, {}).setdefault(student, set())
            methods.update(pair.methods or settings.methods)
    for teacher, methods_of in students.items():
        yield teacher, "", "teacher"
        for student, methods in methods_of.items():
            yield from ((teacher, student, method) for method in settings.methods if method in methods)


def weights_of(settings: TableSettings, teacher: str, student: str, method: str) -> dict[int, str]:
    """Training seed -> path below models/; teachers and sweeps have only the first training seed."""
    if method == "teacher":
        return {settings.training_seeds[0]: layout.teacher_weights(teacher)}
    main = any(
        pair.teacher == teacher and student in pair.students and method in (pair.methods or settings.methods)
        for pair in settings.pairs
    )
    seeds = settings.training_seeds[: None if main else 1]
    return {seed: layout.student_weights(student, method, teacher, seed) for seed in seeds}


def method_of(generations: str) -> str:
    """The method of the model that wrote a file of generations (.../generations/<weights>/<test>.jsonl)."""
    return generations.rpartition("generations/")[2].split("/")[1]


def declared(
    settings: TableSettings, asked: Mapping[str, Sequence[str]], main_only: Collection[str] = ()
) -> list[MetricFile]:
    """Every metric file of the table's models; `asked`: kind of metric -> names of its sets.

    main_only: kinds that are not measured for the models of the table's sweeps. A student's SFT belongs to
    each of its teachers, so one file can be listed several times.  Exposure bias is measured only for
    students; people compare MiniLLM's answers of the first training seed.
    """
    first = settings.training_seeds[0]
    with_sweeps, main = (
        [(*model, weights_of(table, *model)) for model in models(table)]
        for table in (settings, dataclasses.replace(settings, sweeps=()))
    )
    return [
        MetricFile(kind, teacher, student, method, seed, name, weights)
        for kind, names in asked.items()
        for teacher, student, method, seeds in (
            main if kind in (*MAIN_TABLE_ONLY, *main_only) else with_sweeps
        )
        if (kind != "exposure_bias" or student) and (kind != "human" or method == "minillm")
        for seed, weights in seeds.items()
        if kind != "human" or seed == first
        for name in names
    ]


def main_table_asks(settings: TableSettings) -> dict[str, tuple[str, ...]]:
    """What the main table shows, as `declared` takes it: the sets' metrics, and a real judge's scores."""
    asked: dict[str, tuple[str, ...]] = {}
    for test in settings.tests:
        for metric in metrics_of(settings.metrics, test):
            asked[STAGE_OF[metric]] = (*asked.get(STAGE_OF[metric], ()), test)
    return asked | ({"judge": settings.judged} if settings.judge else {})


def labels(settings: TableSettings) -> dict[str, str]:
    """Model -> label; if models share a label, their names are appended."""
    used = {name for pair in (*settings.pairs, *settings.sweeps) for name in (pair.teacher, *pair.students)}
    labels = {name: settings.labels.get(name, name) for name in used}
    times = Counter(labels.values())
    return {name: label if times[label] == 1 else f"{label} ({name})" for name, label in labels.items()}
