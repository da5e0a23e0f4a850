"""The main figure: the main table as grouped bars, one panel per teacher and student."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from minillm.config.sections import Style
from minillm.config.stage_settings import FigureSettings
from minillm.publish.figures.drawing import Looks, fonts, legend, looks_of, save
from minillm.publish.style import DASH, METHOD_NAMES, METRIC_NAMES
from minillm.publish.tables.main_cells import Cell, read_csv

# Width of a test set's group of bars.
GROUP = 0.8
# Teacher, student.
Panel = tuple[str, str]


def run_stage(settings: FigureSettings, *, table: Path, out: Path) -> None:
    """Draw main.csv (`table`) to main.png and main.pdf in `out`.

    `style.height` is the height of a figure with one row of panels.  Raises UserError if the table is
    damaged, or if the style's palette has an unknown method or a value that is not a colour.
    """
    style = settings.style
    cells = read_csv(Path(table))
    looks = looks_of(style, list(dict.fromkeys(c.method for c in cells)))
    with fonts(style):
        save(_draw(cells, style, looks), style, Path(out), "main")


def _draw(cells: list[Cell], style: Style, looks: Looks) -> Figure:
    panels: list[Panel] = list(dict.fromkeys((c.teacher, c.student) for c in cells if c.student))
    names = _column_names(cells)
    tests = list(names)
    methods = list(dict.fromkeys(c.method for c in cells if c.student))
    words = [word for name in names.values() for word in name.split()]
    # As many columns as leave room for every test set's label, without breaking a word.
    columns = max(1, min(len(panels), 3, int(style.width // (0.6 * len(tests) + 0.4))))
    while columns > 1 and _letters(style, columns, len(tests)) < max(map(len, words)):
        columns -= 1
    rows = -(-len(panels) // columns)
    height = style.height if rows == 1 else 0.7 * style.height * rows
    figure = Figure(figsize=(style.width, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    letters = _letters(style, columns, len(tests))
    for axes, (teacher, student) in zip(grid.flat, panels, strict=False):
        shown = [c for c in cells if c.teacher == teacher and c.student in ("", student)]
        _panel(axes, shown, names, methods, looks, letters)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel("ROUGE-L" if all(c.metric == "rougeL" for c in cells) else "score (0 to 100)")
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=looks["teacher"][0], linestyle="--", label=METHOD_NAMES["teacher"])
    ]
    labels = {c.method: c.method_label for c in cells}
    handles += [_key(method, labels[method], looks) for method in methods]
    legend(figure, handles)
    figure.supxlabel(_note(cells, style), fontsize=0.8 * style.font_size)
    return figure


def _column_names(cells: list[Cell]) -> dict[str, str]:
    """Column -> name below its bars, with its metric if any is not ROUGE-L."""
    several = any(c.metric != "rougeL" for c in cells)
    return {c.column: c.test_label + f", {METRIC_NAMES[c.metric]}" * several for c in cells}


def _letters(style: Style, columns: int, tests: int) -> int:
    """How many letters of a tick label (0.9 of the font size, 0.6 of that wide) fit below a group of bars."""
    return max(4, int(72 * style.width / columns / tests / (0.6 * 0.9 * style.font_size)))


def _panel(
    axes: Axes, cells: list[Cell], names: dict[str, str], methods: list[str], looks: Looks, letters: int
) -> None:
    cell_of = {(c.method, c.column): c for c in cells}
    width = GROUP / len(methods)
    # Not every pair has every method.
    present = [method for method in methods if any(c.method == method for c in cells)]
    labels = []
    for x, (column, name) in enumerate(names.items()):
        for i, method in enumerate(present):
            _bar(axes, x + (i + 0.5 - len(present) / 2) * width, width, cell_of.get((method, column)), looks)
        teacher = cell_of.get(("teacher", column))
        if teacher is not None and teacher.mean is not None:
            ends = [x - GROUP / 2 - 0.04, x + GROUP / 2 + 0.04]
            error, colour = teacher.standard_error or 0.0, looks["teacher"][0]
            low, high = teacher.mean - error, teacher.mean + error
            axes.fill_between(ends, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(ends, [teacher.mean] * 2, color=colour, linestyle="--", linewidth=1.0)
        counts = [c.n for c in cells if c.column == column and c.n is not None]
        label = textwrap.fill(name, letters, break_long_words=False, break_on_hyphens=False)
        labels.append(f"{label}\nn={counts[0] if counts else DASH}")
    axes.set_xticks(range(len(names)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(names) - 0.45)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    student = next(c.student_label for c in cells if c.student)
    axes.set_title(f"{student} (teacher: {cells[0].teacher_label})")


def _bar(axes: Axes, x: float, width: float, cell: Cell | None, looks: Looks) -> None:
    if cell is None or cell.mean is None:
        place: dict[str, Any] = {
            "textcoords": "offset points",
            "rotation": 90,
            "ha": "center",
            "va": "bottom",
        }
        axes.annotate("not evaluated", (x, 0), (0, 2), color="0.45", size=5, **place)
        return
    colour, hatch = looks[cell.method]
    axes.bar(x, cell.mean, 0.92 * width, facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.5)
    if cell.standard_error is not None:
        line: dict[str, Any] = {"color": "black", "linewidth": 0.8, "capsize": 1.8, "capthick": 0.8}
        axes.errorbar(x, cell.mean, cell.standard_error, **line)


def _key(method: str, label: str, looks: Looks) -> Patch:
    colour, hatch = looks[method]
    return Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.5, label=label)


def _note(cells: list[Cell], style: Style) -> str:
    """What the error bars and the band around the teacher's line mean, and what is missing."""
    ranges: dict[str, list[str]] = {}
    seeds = max((c.training_seeds for c in cells if c.student), default=0)
    fewer = [c for c in cells if c.student and 0 < c.training_seeds < seeds]
    for c in cells:
        if c.standard_error is not None and c not in fewer:
            who = "teacher" if c.method == "teacher" else "students"
            if who not in ranges.setdefault(c.over, []):
                ranges[c.over].append(who)
    note = "Single runs: no standard error."
    if ranges:
        texts = [over if len(ranges) == 1 else f"{over} ({', '.join(who)})" for over, who in ranges.items()]
        note = f"Error bars, and the band around the teacher's line: standard error over {'; '.join(texts)}."
    if fewer:
        note += f" Bars over fewer than {seeds} training seeds: {len(fewer)}, marked in the table."
    if any(c.method == "teacher" and c.mean is None for c in cells):
        note += " No dashed line: the teacher was not evaluated."
    # A letter is about 0.6 of the font size wide.
    return textwrap.fill(note, int(style.width * 72 / (0.8 * style.font_size * 0.62)))
