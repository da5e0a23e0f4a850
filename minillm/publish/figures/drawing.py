"""What all figures share: fonts, looks of methods, pages of panels, captions, saving."""

from __future__ import annotations

import re
import sys
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager

from minillm.config.sections import Style
from minillm.errors import UserError
from minillm.files import whole_file
from minillm.publish.style import COLOURS, HATCHES, LINES, MARKERS, MORE, MORE_LINES, MORE_MARKERS

# Fonts for what matplotlib's own lacks, Chinese, Japanese and Korean above all; those that are installed are
# used, for the missing characters only.
MORE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP",
    "Noto Sans KR", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC",
    "Droid Sans Fallback", "Hiragino Sans", "Microsoft YaHei", "Arial Unicode MS",
)  # fmt: skip

# Method -> colour, hatch.
Looks = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Drawing:
    """A figure, its caption and n in words; `missing` says in one line why nothing could be drawn."""

    figure: Figure
    caption: str
    n: str = ""
    missing: str = ""


@contextmanager
def fonts(style: Style) -> Iterator[None]:
    """matplotlib without a display, with the style's font sizes; `$` is a character like any other."""
    matplotlib.use("Agg")
    size = style.font_size
    installed = {font.name for font in fontManager.ttflist}
    with matplotlib.rc_context(
        {
            "font.size": size,
            "font.family": ["sans-serif", *(name for name in MORE_FONTS if name in installed)],
            "text.parse_math": False,
            "axes.titlesize": size,
            "axes.labelsize": size,
            "xtick.labelsize": 0.9 * size,
            "ytick.labelsize": 0.9 * size,
            "legend.fontsize": size,
            "hatch.linewidth": 0.5,
            "lines.linewidth": 1.2,
            "lines.markersize": 4.5,
            # TrueType: text stays text.
            "pdf.fonttype": 42,
        }
    ):
        yield


def save(figure: Figure, style: Style, out: Path, name: str) -> str:
    """Write NAME.png and NAME.pdf to `out`, without a date: the same input gives the same bytes.

    Returns a sentence about characters that no font here has, for the caption, or nothing.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind in ("png", "pdf"):
            with whole_file(out / f"{name}.{kind}") as partial:
                metadata = {"CreationDate": None} if kind == "pdf" else None
                figure.savefig(partial, format=kind, dpi=style.dpi, metadata=metadata)
    missing: dict[str, None] = {}
    for warning in caught:
        if glyph := re.match(r"Glyph (\d+) .*missing from font", str(warning.message)):
            missing[chr(int(glyph[1]))] = None
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if not missing:
        return ""
    note = f"No font of this machine has {''.join(missing)}, drawn as boxes."
    print(
        f"{out / name}.png: {note} Install one (Noto Sans CJK has most) and make it again.", file=sys.stderr
    )
    return note


def looks_of(style: Style, methods: Sequence[str]) -> Looks:
    """Colour and hatch of each method; variants get theirs by their order in `methods`.

    Raises UserError if the style's palette has an unknown method, or a value that is not a colour.
    """
    looks = {method: (colour, HATCHES.get(method, "")) for method, colour in COLOURS.items()}
    others = [method for method in methods if method not in looks]
    looks |= {method: MORE[i % len(MORE)] for i, method in enumerate(others)}
    for method, colour in style.palette.items():
        if method not in looks:
            raise UserError(f"style.palette: unknown method '{method}'; choose from {', '.join(looks)}")
        if not is_color_like(colour):
            raise UserError(f"style.palette.{method}: '{colour}' is not a colour; write it like '#D55E00'")
        looks[method] = (colour, looks[method][1])
    return looks


def line_of(style: Style, methods: Sequence[str], method: str) -> dict[str, Any]:
    """Colour, marker and line style of a method's curve, distinct in black and white too."""
    others = [m for m in methods if m not in COLOURS]
    i = others.index(method) if method in others else 0
    return {
        "color": looks_of(style, methods)[method][0],
        "marker": MARKERS.get(method, MORE_MARKERS[i % len(MORE_MARKERS)]),
        "linestyle": LINES.get(method, MORE_LINES[i % len(MORE_LINES)]),
        "markersize": 7.0 if method == "minillm" else 4.5,
        "markeredgecolor": "black",
        "markeredgewidth": 0.4,
    }


def panels(style: Style, count: int, share_y: bool = False, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A page of `count` panels, at most `columns` side by side."""
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    figure = Figure(
        figsize=(style.width, style.height * (1.15 if rows == 1 else 0.85 * rows)), layout="constrained"
    )
    grid = list(figure.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[:count]:
        tidy(axes)
    return figure, grid[:count]


def tidy(axes: Axes, grid: str = "y") -> None:
    """Give the axes a light grid and no frame at the top and right."""
    axes.grid(axis=grid, linewidth=0.4, alpha=0.5)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend above all panels, each entry once, in as many columns as fit; more rows add height."""
    unique = {str(handle.get_label()): handle for handle in handles}
    if not unique:
        return
    size = FontProperties(size=matplotlib.rcParams["legend.fontsize"]).get_size_in_points()
    labels = list(unique)

    # In points; in units of the font size a letter is about 0.6 wide, the sample with its gaps 5.
    def width(rows: int) -> float:
        columns = (labels[i : i + rows] for i in range(0, len(labels), rows))
        return sum((0.6 * max(map(_letters, column)) + 5) * size for column in columns)

    room = 72 * figure.get_figwidth()
    rows = next((rows for rows in range(1, len(labels)) if width(rows) <= room), len(labels))
    columns = -(-len(labels) // rows)
    figure.legend(handles=list(unique.values()), loc="outside upper center", ncols=columns, frameon=False)
    figure.set_figheight(figure.get_figheight() + (rows - 1) * 1.6 * size / 72)


def _letters(label: str) -> int:
    """Width of a label in letters: Chinese characters are two wide."""
    lines = label.splitlines() or [""]
    return max(sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line) for line in lines)


def label_left(grid: Sequence[Axes], text: str) -> None:
    """Label the y axes of the leftmost panels."""
    for axes in grid:
        spec = axes.get_subplotspec()
        if spec is None or spec.is_first_col():
            axes.set_ylabel(text)


def finished(figure: Figure, style: Style, caption: str, n: str = "") -> Drawing:
    """The drawing, with caption and n below the panels."""
    text = f"{caption} {n}".strip()
    figure.supxlabel(wrapped(text, style), fontsize=0.8 * style.font_size)
    return Drawing(figure, caption, n)


def wrapped(text: str, style: Style) -> str:
    """`text` in lines as wide as the figure."""
    # A letter is about 0.56 of the font size wide.
    return textwrap.fill(text, int(style.width * 72 / (0.8 * style.font_size * 0.56)))


def absent(style: Style, shows: str, line: str) -> Drawing:
    """A page that says what is missing if there is nothing to draw."""
    figure = Figure(figsize=(style.width, 0.6 * style.height), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    place: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.6, shows, **place)
    axes.text(0.5, 0.35, line, style="italic", color="0.3", **place)
    return Drawing(figure, shows, "", line)
