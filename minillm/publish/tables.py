"""The main table: ROUGE-L of every teacher, student and method on every test set, as CSV, Markdown and LaTeX.

`collect` turns metric files into cells, `write_csv` and `read_csv` keep them, and the rest shows them.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.statistics import pooled
from minillm.files import whole_file
from minillm.publish.style import DASH, FEWER, METHOD_NAMES, latex, markdown, number, sampling_text
from minillm.settings import TableSettings


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
    sources: str = ""

    @property
    def training_seeds(self) -> int:
        """How many training seeds are behind the mean."""
        return len(self.sources.split(";")) if self.sources else 0


def collect(settings: TableSettings, metrics: Path) -> list[Cell]:
    """All cells, pair by pair, from the files below `metrics` (a run's metrics folder).

    Raises UserError where a file is damaged, is of other settings, or where a teacher and its students were tested on different
    rows.  Different teachers may be: which prompts are dropped as too long depends on the tokenizer, which only a pair shares.
    """
    names = _labels(settings)
    cells = []
    rows: dict[tuple[str, str], tuple[list[int], Path]] = {}
    for teacher, student, method in _models(settings):
        for test in settings.tests:
            cell = Cell(
                teacher,
                student,
                names.get(student, ""),
                names[teacher],
                method,
                METHOD_NAMES.get(method) or settings.method_labels[method],
                test,
                settings.test_labels.get(test, test),
            )
            found: dict[int, dict[int, float]] = {}
            sources = []
            for seed, weights in _weights(settings, teacher, student, method).items():
                path = metrics / "rouge" / weights / f"{test}.json"
                if path.exists():
                    metric = _read(path, settings, test)
                    ids, other = rows.setdefault((teacher, test), (metric["ids"], path))
                    if metric["ids"] != ids:
                        raise UserError(f"{path}: its rows are not those of {other}; generate and score both again")
                    found[seed] = {int(s): value for s, value in metric["per_seed"].items()}
                    sources.append(f"metrics/rouge/{weights}/{test}.json")
            if found:
                mean, error, over = pooled(found)
                cell = dataclasses.replace(
                    cell,
                    n=len(ids),
                    rows=hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8],
                    mean=mean,
                    standard_error=error,
                    over=over,
                    sources=";".join(sources),
                )
            cells.append(cell)
    return cells


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
    return Cell(
        **{
            **row,
            "n": int(row["n"]) if row["n"] else None,
            "mean": float(row["mean"]) if row["mean"] else None,
            "standard_error": float(row["standard_error"]) if row["standard_error"] else None,
        }
    )


def _models(settings: TableSettings) -> Iterator[tuple[str, str, str]]:
    """(teacher, student, method) of every row of the table; a teacher of several pairs has one row of its own."""
    students: dict[str, list[str]] = {}
    for pair in settings.pairs:
        known = students.setdefault(pair.teacher, [])
        known += [student for student in pair.students if student not in known]
    for teacher, names in students.items():
        yield teacher, "", "teacher"
        for student in names:
            for method in settings.methods:
                yield teacher, student, method


def _weights(settings: TableSettings, teacher: str, student: str, method: str) -> dict[int, str]:
    """Training seed -> path of the weights below the models folder."""
    if method == "teacher":  # trained with the first training seed only
        return {settings.training_seeds[0]: f"{teacher}/teacher"}
    under = f"{student}/sft" if method == "sft" else f"{student}/{method}/{teacher}"
    return {seed: f"{under}/seed{seed}" for seed in settings.training_seeds}


def _labels(settings: TableSettings) -> dict[str, str]:
    """Labels of the models; two models of one label are told apart by their names."""
    used = {name for pair in settings.pairs for name in (pair.teacher, *pair.students)}
    labels = {name: settings.labels.get(name, name) for name in used}
    times = Counter(labels.values())
    return {name: label if times[label] == 1 else f"{label} ({name})" for name, label in labels.items()}


def _read(path: Path, settings: TableSettings, test: str) -> dict[str, Any]:
    """A metric file, checked against the settings: the table must not mix what was sampled in different ways."""
    try:
        metric = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; remove it and score again") from None
    for key, kind in (("dataset", str), ("ids", list), ("per_seed", dict), ("sampling", dict)):
        if not isinstance(metric, dict) or not isinstance(metric.get(key), kind):
            raise UserError(f"{path}: '{key}' is missing or of the wrong type; remove it and score again")
    values = metric["per_seed"].values()
    if not metric["ids"] or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise UserError(f"{path}: no rows, or a score that is no number; remove it and score again")
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


# --- the cells as a table to read
def write_main_table(settings: TableSettings, metrics: Path, out: Path) -> None:
    """main.csv (long form), main.md and main.tex in `out`, from the metric files below `metrics` (results/<run>/metrics).

    A missing metric file gives a dash.  Raises UserError where one is damaged or was made with other settings.
    """
    cells = collect(settings, Path(metrics))
    notes = footnotes(settings, cells)
    write_csv(cells, Path(out) / "main.csv")
    for name, text in (("main.md", _markdown(settings, cells, notes)), ("main.tex", _latex(settings, cells, notes))):
        with whole_file(Path(out) / name) as partial:
            partial.write_text(text)


def footnotes(settings: TableSettings, cells: list[Cell]) -> list[str]:
    """What the numbers are, what the standard errors range over, how the responses were drawn."""
    notes = [f"ROUGE-L F-measure × 100, best of the references; mean{_ranges(settings, cells)}."]
    if any(c.standard_error is not None and c.training_seeds == 1 for c in cells):
        notes.append("A standard error over sampling seeds says nothing about training again with another seed.")
    if any(_fewer(settings, c) for c in cells):
        notes.append(
            f"{FEWER}: over fewer training seeds than the {len(settings.training_seeds)} of this table, not comparable with "
            "the other cells; main.csv holds what its mean and its standard error range over."
        )
    seeds = ", ".join(map(str, settings.sampling_seeds))
    notes.append(f"Sampling: {sampling_text(settings.sampling)}; sampling seeds {seeds}. {_training(settings)}")
    others = [label for label, hashes in _rows_by_test(cells).items() if len(hashes) > 1]
    if others:
        notes.append(
            f"Not every teacher's block was tested on the same rows of {', '.join(others)} (prompts too long in the block's "
            "tokenizer are dropped); compare within a block."
        )
    if any(c.mean is None for c in cells):
        notes.append(f"{DASH}: not evaluated.")
    return notes


def _training(settings: TableSettings) -> str:
    first, *more = settings.training_seeds
    if not more:
        return f"Training seed {first}."
    return f"Training seeds {', '.join(map(str, settings.training_seeds))}; teachers {first} alone."


def _fewer(settings: TableSettings, cell: Cell) -> bool:
    """Whether a student's cell lacks training seeds (a teacher has one by design)."""
    return cell.student != "" and 0 < cell.training_seeds < len(settings.training_seeds)


def _rows_by_test(cells: list[Cell]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for c in cells:
        if c.rows:
            found.setdefault(c.test_label, set()).add(c.rows)
    return found


def _ranges(settings: TableSettings, cells: list[Cell]) -> str:
    """What the standard errors range over, method by method; cells that lack training seeds are marked instead."""
    found: dict[str, list[str]] = {}
    for c in cells:
        if c.mean is not None and not _fewer(settings, c):
            names = found.setdefault(c.over if c.standard_error is not None else "", [])
            if c.method_label not in names:
                names.append(c.method_label)
    texts = [f"± standard error over {where}" if where else "no standard error from a single run" for where in found]
    if len(texts) == 1:
        return " " + texts[0] if next(iter(found)) else "; " + texts[0]
    return "".join(f"; {text} ({', '.join(names)})" for text, names in zip(texts, found.values(), strict=True))


@dataclass(frozen=True)
class _Block:
    """A teacher and its students, as texts."""

    counts: list[str]  # "n = 500" of each test set; a dash for n where nothing was evaluated on it
    lines: list[tuple[str, str, list[str]]]  # model label, method label, one text a test set


def _blocks(settings: TableSettings, cells: list[Cell]) -> list[_Block]:
    """A block a teacher."""
    blocks = []
    for teacher in dict.fromkeys(c.teacher for c in cells):
        own = [c for c in cells if c.teacher == teacher]
        counts = {c.test: c.n for c in own if c.n is not None}
        lines: dict[tuple[str, str], list[Cell]] = {}
        for c in own:
            lines.setdefault((c.student, c.method), []).append(c)
        blocks.append(
            _Block(
                [f"n = {counts.get(test, DASH)}" for test in settings.tests],
                [
                    (
                        line[0].student_label or line[0].teacher_label,
                        line[0].method_label,
                        [number(c.mean, c.standard_error) + FEWER * _fewer(settings, c) for c in line],
                    )
                    for line in lines.values()
                ],
            )
        )
    return blocks


def _test_labels(settings: TableSettings) -> list[str]:
    return [settings.test_labels.get(test, test) for test in settings.tests]


def _markdown(settings: TableSettings, cells: list[Cell], notes: list[str]) -> str:
    lines = []
    for block in _blocks(settings, cells):
        heads = [f"{markdown(label)}<br>{n}" for label, n in zip(_test_labels(settings), block.counts, strict=True)]
        lines += [f"**Teacher: {markdown(block.lines[0][0])}**", ""]
        lines += ["| " + " | ".join(["Model", "Method", *heads]) + " |", "|:--|:--|" + "--:|" * len(heads)]
        lines += [
            "| " + " | ".join([markdown(label), markdown(method), *values]) + " |" for label, method, values in block.lines
        ]
        lines.append("")
    return "\n".join(lines + ["  \n".join(map(markdown, notes)), ""])


def _latex(settings: TableSettings, cells: list[Cell], notes: list[str]) -> str:
    labels = _test_labels(settings)
    blocks = _blocks(settings, cells)
    alike = all(block.counts == blocks[0].counts for block in blocks)  # else each block says its own n
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{ll{'r' * len(labels)}}}",
        r"\toprule",
        " & ".join(["Model", "Method", *map(latex, labels)]) + r" \\",
        *([_latex_counts(blocks[0])] if alike else []),
    ]
    for block in blocks:
        lines += [r"\midrule", *([] if alike else [_latex_counts(block)])]
        before = ""
        for label, method, values in block.lines:
            if before and label != before:
                lines.append(r"\addlinespace")
            shown = latex(label) if label != before else ""
            lines.append(" & ".join([shown, latex(method), *map(latex, values)]) + r" \\")
            before = label
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\smallskip", r"\parbox{\linewidth}{\footnotesize"]
    lines += [latex(note).replace("×", r"$\times$") for note in notes]
    return "\n".join(lines + ["}", r"\end{table}", ""])


def _latex_counts(block: _Block) -> str:
    return " & ".join(["", "", *(f"${n}$" if DASH not in n else f"$n$ = {latex(DASH)}" for n in block.counts)]) + r" \\"
