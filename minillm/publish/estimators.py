"""Table and figure of the study of gradient estimators (docs/estimators.md)."""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minillm.config.sections import Style
from minillm.config.stage_settings import EstimatorSettings
from minillm.evaluation.estimators import Finding, study
from minillm.files import whole_file
from minillm.publish.style import markdown

MARKERS = "osD^v<>Pxh"
INKS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999"]  # Okabe and Ito's
EXACT = 1e-9  # a bias below this share of the gradient is rounding


def run_stage(settings: EstimatorSettings, out: Path) -> None:
    """Stage estimators: tables/estimators.{csv,md} and figures/estimators.{png,pdf} below `out`."""
    findings = study(settings.study)
    with whole_file(out / "tables" / "estimators.csv") as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Finding)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(finding) for finding in findings)
    with whole_file(out / "tables" / "estimators.md") as partial:
        partial.write_text(as_markdown(settings, findings))
    matplotlib.use("Agg")
    figure = draw(findings, settings.style)
    for kind in ("png", "pdf"):
        with whole_file(out / "figures" / f"estimators.{kind}") as partial:
            figure.savefig(
                partial, format=kind, dpi=settings.style.dpi, metadata={"CreationDate": None} if kind == "pdf" else None
            )


def as_markdown(settings: EstimatorSettings, findings: list[Finding]) -> str:
    """One line an estimator: bias and spread at each distance."""
    distances = list(settings.study.distances)
    lines = ["| Samples | Estimator | " + " | ".join(f"{d}: bias, spread" for d in distances) + " |"]
    lines.append("|:--|:--|" + "--:|" * len(distances))
    for alpha, name in dict.fromkeys((f.alpha, f.estimator) for f in findings):
        cells = []
        for distance in distances:
            own = [f for f in findings if (f.alpha, f.estimator, f.distance) == (alpha, name, distance)]
            spread = statistics.median(f.spread for f in own)
            low, high = min(f.bias for f in own), max(f.bias for f in own)
            bias = "0" if high < EXACT else f"{low:.2f} to {high:.2f}"
            cells.append(f"{bias}, {spread:.1f}")
        lines.append(f"| {samples(alpha)} | {markdown(name)} | " + " | ".join(cells) + " |")
    s = settings.study
    kls = [f"{d} {statistics.median(f.kl for f in findings if f.distance == d):.2g}" for d in distances]
    lines += [
        "",
        f"Vocabulary {s.vocabulary} with EOS, horizon {s.horizon}, {len(s.seeds)} random pairs a distance; KL\\[q||p\\] in nats (median): "
        f"{', '.join(kls)}. Bias: |mean - exact| as a share of the exact gradient's norm, smallest to largest over the pairs, 0: below "
        f"{EXACT:g}. Spread: root of the summed variances of a single sample, in the same unit, median over the pairs.",
        "",
    ]
    return "\n".join(lines)


def samples(alpha: float) -> str:
    """Where an estimator's samples come from, in words."""
    return f"mixture, {alpha:g}" if alpha else "student"


def draw(findings: list[Finding], style: Style) -> Figure:
    """Bias and spread at each distance, median and range over the pairs; one row of panels for each source of samples."""
    alphas = sorted({f.alpha for f in findings})
    with matplotlib.rc_context({"font.size": style.font_size, "pdf.fonttype": 42}):
        figure = Figure(figsize=(style.width, 0.8 * style.height * len(alphas)), layout="constrained")
        grid = figure.subplots(len(alphas), 2, squeeze=False, sharex=True)
        for row, alpha in zip(grid, alphas, strict=True):
            own = [f for f in findings if f.alpha == alpha]
            _panel(row[0], own, lambda f: f.bias if f.bias >= EXACT else float("nan"))
            _panel(row[1], own, lambda f: f.spread)
            row[0].set_ylabel(f"samples: {samples(alpha)}")
            row[1].legend(fontsize=0.7 * style.font_size, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        grid[0][0].set_title("bias / norm of the gradient\n(exact ones not drawn)", fontsize=style.font_size)
        grid[0][1].set_title("spread / norm of the gradient", fontsize=style.font_size)
        for axes in grid[-1]:
            axes.set_xlabel("KL[q||p] in nats")
        return figure


def _panel(axes: Axes, findings: list[Finding], value: Callable[[Finding], float]) -> None:
    distances = list(dict.fromkeys(f.distance for f in findings))
    names = list(dict.fromkeys(f.estimator for f in findings))
    for i, name in enumerate(names):
        middles, errors = [], []
        for distance in distances:
            found = [value(f) for f in findings if (f.estimator, f.distance) == (name, distance)]
            middles.append(statistics.median(found))
            errors.append((middles[-1] - min(found), max(found) - middles[-1]))
        places = [x + 0.5 * (i / len(names) - 0.5) for x in range(len(distances))]
        axes.errorbar(
            places, middles, list(zip(*errors, strict=True)), fmt=MARKERS[i % len(MARKERS)], color=INKS[i % len(INKS)],
            markersize=3.5, linewidth=0, elinewidth=0.8, label=name,
        )  # fmt: skip
    kls = [statistics.median(f.kl for f in findings if f.distance == d) for d in distances]
    axes.set_xticks(range(len(distances)), [f"{d}\n{kl:.1g}" for d, kl in zip(distances, kls, strict=True)])
    axes.set_yscale("log")
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
