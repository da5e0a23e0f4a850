"""Figure `modes`: precision against coverage, one point a method."""

from __future__ import annotations

import math
from typing import Any

from minillm.publish.figures.curves import key, nothing, style_of
from minillm.publish.figures.drawing import Drawing, finished, label_left, legend, line_of, panels
from minillm.publish.item_results import ItemResults

CAPTION = (
    "Share of the responses that are right answers, against the share of a prompt's right answers that they "
    "reach; up and to the right is better. Dashed: what as many responses would reach if the right ones were "
    "uniform over the right answers. A method that drops answers lies left of it. Bars: standard error over "
    "sampling seeds (precision) and prompts (coverage), over training seeds if there are several."
)


def modes(results: ItemResults) -> Drawing:
    """Precision against coverage of each teacher with its students' methods, a panel for each test set."""
    style, methods = style_of(results), results.settings.table.methods
    tests = [t for t in results.names("validity") if results.sizes("validity", results.models(), t)]
    pages = [(test, teacher, students) for test in tests for teacher, students in results.pairs()]
    if not pages:
        return nothing(results)
    figure, grid = panels(style, len(pages), share_y=True)
    handles = []
    for axes, (test, teacher, students) in zip(grid, pages, strict=True):
        uniform: list[float] = []
        for model in (teacher, *results.drawn(students)):
            precision = results.value(model, "validity", test)
            coverage = results.value(model, "validity_coverage", test)
            if precision is None or coverage is None:
                continue
            looks = line_of(style, methods, model.method) | {"linestyle": "none"}
            looks["marker"] = looks["marker"] or "P"
            axes.errorbar(
                coverage[0], precision[0], precision[1], coverage[1], elinewidth=0.8, capsize=2, **looks
            )
            handles.append(key(style, methods, model))
            uniform = uniform or _uniform(results.contents("validity", model, test)[0])
        axes.plot(uniform, range(101), color="0.6", linewidth=0.8, linestyle="--")
        axes.set_title(f"{students[0].label} ({teacher.label})\n{results.label(test)}")
        axes.set_xlabel("coverage (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 102)
    label_left(grid, "precision (%)")
    legend(figure, handles)
    n = "; ".join(results.sizes_text("validity", tests, results.models()))
    return finished(figure, style, CAPTION + results.drawn_note, f"{n}.")


def _uniform(metric: dict[str, Any]) -> list[float]:
    """Expected coverage, in percent, at a precision of 0 to 100%, if right responses are uniform.

    Of d draws, each of K right answers with probability p / K, a share 1 - (1 - p / K)^d is reached.
    """
    draws, answers = len(metric["seeds"]), metric["right_answers"]
    return [
        100 * math.fsum(1 - (1 - p / 100 / k) ** draws for k in answers) / len(answers) for p in range(101)
    ]
