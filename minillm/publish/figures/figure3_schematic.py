"""Figure 3: SeqKD and MiniLLM side by side: who writes the answers, and which divergence is taken on them."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from minillm.publish.figures.drawing import Drawing, finished, panels
from minillm.publish.item_results import ItemResults

BOX = {"teacher": ("0.85", "-"), "student": ("#FBE0CF", "-"), "text": ("white", "--")}


def schematic(results: ItemResults) -> Drawing:
    """Two panels of boxes and arrows; their texts are ours, with formulas."""
    with matplotlib.rc_context({"text.parse_math": True}):
        return _drawn(results)


def _drawn(results: ItemResults) -> Drawing:
    style = results.settings.style
    assert style is not None
    figure, (left, right) = panels(style, 2)
    for axes in (left, right):
        axes.axis("off")
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 7)
    _box(left, 1.6, 5.4, "prompt x", "text")
    _box(left, 1.6, 3.4, "teacher p", "teacher")
    _box(left, 7.0, 3.4, "answer y ~ p(·|x)", "text")
    _box(left, 7.0, 1.2, "student q$_\\theta$", "student")
    _arrow(left, (1.6, 4.85), (1.6, 3.95))
    _arrow(left, (2.9, 3.4), (4.9, 3.4), "answers")
    _arrow(left, (7.0, 2.85), (7.0, 1.75), "learns by cross-entropy", right=True)
    left.set_title("SeqKD: minimises forward KL[p||q$_\\theta$]")
    left.text(7.0, 4.1, "made once, before training", fontsize="small", ha="center", va="bottom")

    _box(right, 1.6, 5.4, "prompt x", "text")
    _box(right, 1.6, 1.2, "student q$_\\theta$", "student")
    _box(right, 7.0, 1.2, "answer y ~ q$_\\theta$(·|x)", "text")
    _box(right, 7.0, 5.4, "teacher p", "teacher")
    _arrow(right, (1.6, 4.85), (1.6, 1.75))
    _arrow(right, (2.9, 1.2), (4.9, 1.2), "answers")
    _arrow(right, (7.0, 1.75), (7.0, 4.85), "is judged", right=True)
    _arrow(right, (5.7, 5.0), (2.4, 1.8))
    right.text(4.2, 2.6, "reward log p/q$_\\theta$\nof each token", fontsize="small", va="center")
    right.set_title("MiniLLM: minimises reverse KL[q$_\\theta$||p]")
    caption = (
        "Solid boxes are models, dashed ones texts. SeqKD learns from the teacher's answers; MiniLLM learns "
        "from its own, which change as it learns, by how likely the teacher finds them. (MiniLLM's answers "
        "are drawn from a mixture with the teacher and corrected by importance weights.)"
    )
    return finished(figure, style, caption)


def _box(axes: Axes, x: float, y: float, text: str, kind: str) -> None:
    colour, line = BOX[kind]
    width = 4.0 if "answer" in text else 2.5
    looks: dict[str, Any] = {"facecolor": colour, "edgecolor": "black", "linestyle": line, "linewidth": 0.9}
    corner = (x - width / 2, y - 0.45)
    axes.add_patch(FancyBboxPatch(corner, width, 0.9, boxstyle="round,pad=0.08", **looks))
    axes.text(x, y, text, ha="center", va="center")


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", right: bool = False
) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "linewidth": 1.0, "color": "black"})
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        if right:
            y = 0.3 * start[1] + 0.7 * end[1]
            axes.text(x - 0.15, y, text, fontsize="small", ha="right", va="center")
        else:
            axes.text(x, y + 0.15, text, fontsize="small", ha="center", va="bottom")
