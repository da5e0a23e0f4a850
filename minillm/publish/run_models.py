"""The models of a run in the order of its tables, and where their weights are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from minillm.config.stage_settings import TableSettings


def models(settings: TableSettings) -> Iterator[tuple[str, str, str]]:
    """(teacher, student, method) of every row of the table; a teacher of several pairs has one row of its own."""
    students: dict[str, dict[str, set[str]]] = {}
    for pair in (*settings.pairs, *settings.sweeps):
        for student in pair.students:
            students.setdefault(pair.teacher, {}).setdefault(student, set()).update(pair.methods or settings.methods)
    for teacher, own in students.items():
        yield teacher, "", "teacher"
        for student, methods in own.items():
            yield from ((teacher, student, method) for method in settings.methods if method in methods)


def weights_of(settings: TableSettings, teacher: str, student: str, method: str) -> dict[int, str]:
    """Training seed -> path of the weights below the models folder; teachers and sweeps have the first training seed alone."""
    if method == "teacher":
        return {settings.training_seeds[0]: f"{teacher}/teacher"}
    under = f"{student}/sft" if method == "sft" else f"{student}/{method}/{teacher}"
    main = any(
        pair.teacher == teacher and student in pair.students and method in (pair.methods or settings.methods)
        for pair in settings.pairs
    )
    return {seed: f"{under}/seed{seed}" for seed in settings.training_seeds[: None if main else 1]}


def labels(settings: TableSettings) -> dict[str, str]:
    """Labels of the models; two models of one label are told apart by their names."""
    used = {name for pair in (*settings.pairs, *settings.sweeps) for name in (pair.teacher, *pair.students)}
    labels = {name: settings.labels.get(name, name) for name in used}
    times = Counter(labels.values())
    return {name: label if times[label] == 1 else f"{label} ({name})" for name, label in labels.items()}
