"""The figures of docs/referee.md: means over training seeds with their standard errors, and each seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from minillm.evaluation.statistics import mean_and_error
from minillm.publish.style import COLOURS

Row = Mapping[str, Any]
# Piece, student, teacher.
Place = tuple[str, str, str]
# Key in a picture's metadata: what was drawn.
DRAWN = "Source"

LOOKS = {
    "sft": ("SFT", COLOURS["sft"]),
    "kd": ("KD", COLOURS["kd"]),
    "seqkd": ("SeqKD", COLOURS["seqkd"]),
    "minillm": ("MiniLLM", COLOURS["minillm"]),
    "on-policy-reverse-kl": ("reverse KL, own samples", "#0072B2"),
    "on-policy-forward-kl": ("forward KL, own samples", "#CC79A7"),
    "gold-reverse-kl": ("reverse KL, gold answers", "#999999"),
    "supervised-kd": ("forward KL, gold answers", "#000000"),
}


@dataclass(frozen=True)
class Panel:
    """One measure of these methods; `places` are named along the axis, or are numbers on it (`line`)."""

    measure: str
    label: str
    methods: Sequence[str]
    places: Mapping[Any, Place]
    across: str = ""
    line: bool = False


SIZES = {2.0: "t2", 4.0: "t4", 8.0: "t8", 16.0: "t16", 35.0: "teacher", 62.0: "t62"}
OVER_SIZES = {size: ("gaps", "small", teacher) for size, teacher in SIZES.items()}
GAP = "teacher's size / student's"
FAMILIES = {"LLaMA-shaped": ("gaps", "small", "teacher"), "GPT-2-shaped": ("gaps", "gpt2-small", "teacher")}


def _cells(*pieces: str) -> dict[str, Place]:
    return {
        f"K = {piece[1:]}\n{student}": (piece, student, "teacher")
        for piece in pieces
        for student in ("small", "large")
    }


ON_POLICY = ("minillm", "on-policy-reverse-kl", "on-policy-forward-kl")
BOTH = ("on-policy-reverse-kl", "on-policy-forward-kl", "gold-reverse-kl", "supervised-kd")
FIGURES: dict[str, list[Panel]] = {
    "referee_gaps": [
        Panel("noise", "gradient's variance / squared norm", ON_POLICY, OVER_SIZES, GAP, line=True),
        Panel("clip_fraction", "share of clipped ratios", ("minillm",), OVER_SIZES, GAP, line=True),
        Panel("effective_samples", "effective share of samples", ("minillm",), OVER_SIZES, GAP, line=True),
    ],
    "referee_sweep": [
        Panel("precision", "right answers, %", ("sft", *ON_POLICY), OVER_SIZES, GAP, line=True),
        Panel("precision", "right answers, %", ("sft", *ON_POLICY), FAMILIES),
    ],
    "referee_errors": [
        Panel("rouge", "ROUGE-L", ("sft", "kd", "seqkd", *ON_POLICY), _cells("k1", "k4", "k16")),
    ],
    "referee_divergences": [
        Panel("precision", "right answers, %", BOTH, _cells("k4", "k16")),
        Panel("forms", "effective number of right answers", BOTH, _cells("k4", "k16")),
    ],
}


def values(rows: Sequence[Row], panel: Panel) -> dict[str, dict[Any, list[float]]]:
    """Method -> place along the axis -> the training seeds' values; places without any are left out."""
    found: dict[str, dict[Any, list[float]]] = {}
    for method in panel.methods:
        for x, (piece, student, teacher) in panel.places.items():
            place = {"piece": piece, "student": student, "teacher": "" if method == "sft" else teacher}
            own = [row for row in rows if row["method"] == method and place.items() <= row.items()]
            measured = [row[panel.measure] for row in own if row.get(panel.measure) is not None]
            if measured:
                found.setdefault(method, {})[x] = measured
    return found


def fingerprint(rows: Sequence[Row], panels: Sequence[Panel]) -> str:
    """A hash of all numbers that a figure shows."""
    shown = [[panel.label, panel.across, list(values(rows, panel).items())] for panel in panels]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def draw(rows: Sequence[Row], panels: Sequence[Panel], out: Path) -> None:
    """Write one picture, a panel next to the other; what was drawn is in its metadata."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(3.6 * max(len(panels), 2), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _panel(axis, panel, values(rows, panel))
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(out, dpi=110, metadata={"Software": None, DRAWN: fingerprint(rows, panels)})


def _panel(axis: Axes, panel: Panel, shown: Mapping[str, Mapping[Any, Sequence[float]]]) -> None:
    names = list(panel.places)
    for i, (method, measured) in enumerate(shown.items()):
        name, colour = LOOKS[method]
        # Methods next to each other, so that their error bars can be told apart.
        shift = (i - (len(shown) - 1) / 2) * (0.03 if panel.line else 0.12)
        xs = [x * 2**shift if panel.line else names.index(x) + shift for x in measured]
        means, errors = zip(*(mean_and_error(seeds) for seeds in measured.values()), strict=True)
        axis.errorbar(
            xs,
            means,
            [error or 0.0 for error in errors],
            fmt="o-" if panel.line else "o",
            color=colour,
            label=name,
            markersize=4,
            capsize=2,
        )
        for x, seeds in zip(xs, measured.values(), strict=True):
            axis.plot([x] * len(seeds), seeds, ".", color=colour, alpha=0.5, markersize=3)
    axis.set_ylabel(panel.label)
    axis.set_xlabel(panel.across)
    if panel.line:
        axis.set_xscale("log", base=2)
        axis.set_xticks(names, [f"{name:g}" for name in names])
    else:
        axis.set_xticks(range(len(names)), names, fontsize=8)
        axis.set_xlim(-0.6, len(names) - 0.4)


def is_current(rows: Sequence[Row], panels: Sequence[Panel], path: Path) -> bool:
    """Whether the picture shows these rows."""
    with Image.open(path) as picture:
        return picture.info.get(DRAWN) == fingerprint(rows, panels)
