"""Table and figure for the study of gradient estimators (docs/estimators.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minillm.config import layout
from minillm.config.sections import Style
from minillm.config.stage_settings import EstimatorSettings
from minillm.evaluation import signal_estimators
from minillm.evaluation.estimators import study
from minillm.files import whole_file
from minillm.publish.style import markdown

MARKERS = "osD^v<>Pxh"
# Okabe and Ito's colours.
INKS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999"]
# A bias below this share of the gradient's norm is rounding error.
EXACT = 1e-9


def run_stage(settings: EstimatorSettings, *, out: Path) -> None:
    """Stage `estimators`: writes tables/estimators.{csv,md} and figures/estimators.{png,pdf} below `out`."""
    findings = pd.DataFrame([*study(settings.study), *signal_estimators.study(settings.study)])
    with whole_file(out / layout.table("estimators", "csv")) as partial:
        findings.to_csv(partial, index=False)
    with whole_file(out / layout.table("estimators", "md")) as partial:
        partial.write_text(as_markdown(settings, findings), encoding="utf-8")
    matplotlib.use("Agg")
    figure = draw(findings[findings["target"] == "sequence"], settings.style)
    for kind in ("png", "pdf"):
        with whole_file(out / layout.figure("estimators", kind)) as partial:
            figure.savefig(
                partial,
                format=kind,
                dpi=settings.style.dpi,
                metadata={"CreationDate": None} if kind == "pdf" else None,
            )


def as_markdown(settings: EstimatorSettings, findings: pd.DataFrame) -> str:
    """One line per estimator: bias and spread at each distance.  `findings` has the columns of `Finding`."""
    distances = list(settings.study.distances)
    lines = ["| Samples | Estimator | " + " | ".join(f"{d}: bias, spread" for d in distances) + " |"]
    lines.append("|:--|:--|" + "--:|" * len(distances))
    for (target, alpha, name), rows in findings.groupby(["target", "alpha", "estimator"], sort=False):
        over_pairs = rows.groupby("distance").agg({"bias": ["min", "max"], "spread": "median"})
        cells = []
        for low, high, spread in over_pairs.loc[distances].itertuples(index=False):
            bias = "0" if high < EXACT else f"{low:.2f} to {high:.2f}"
            cells.append(f"{bias}, {spread:.1f}")
        whose = samples(alpha) + (", discount 0" if target == "position" else "")
        lines.append(f"| {whose} | {markdown(name)} | " + " | ".join(cells) + " |")
    kls = [f"{d} {kl:.2g}" for d, kl in findings.groupby("distance")["kl"].median()[distances].items()]
    s = settings.study
    lines += [
        "",
        f"Vocabulary of {s.vocabulary} including EOS, horizon {s.horizon}, {len(s.seeds)} random pairs per "
        f"distance; KL\\[q||p\\] in nats (median): {', '.join(kls)}. Bias: |mean - exact| as a share of the "
        f"exact gradient's norm, smallest to largest over the pairs; 0 means below {EXACT:g}. Spread: root "
        "of the summed variances of a single sample, in the same unit, median over the pairs. Discount 0: "
        "exact is the gradient of each position's KL, its prefixes taken as fixed.",
        "",
    ]
    return "\n".join(lines)


def samples(alpha: float) -> str:
    """In words, where an estimator's samples come from."""
    return f"mixture, {alpha:g}" if alpha else "student"


def draw(findings: pd.DataFrame, style: Style) -> Figure:
    """Bias and spread at each distance, median and range over the pairs; a row of panels per source."""
    drawn = findings.assign(bias=findings["bias"].where(findings["bias"] >= EXACT))
    alphas = sorted(findings["alpha"].unique())
    with matplotlib.rc_context({"font.size": style.font_size, "pdf.fonttype": 42}):
        figure = Figure(figsize=(style.width, 0.8 * style.height * len(alphas)), layout="constrained")
        grid = figure.subplots(len(alphas), 2, squeeze=False, sharex=True)
        for row, alpha in zip(grid, alphas, strict=True):
            for axes, column in zip(row, ("bias", "spread"), strict=True):
                _panel(axes, drawn[drawn["alpha"] == alpha], column)
            row[0].set_ylabel(f"samples: {samples(alpha)}")
            row[1].legend(
                fontsize=0.7 * style.font_size, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
            )
        grid[0][0].set_title(
            "bias / norm of the gradient\n(exact estimators omitted)", fontsize=style.font_size
        )
        grid[0][1].set_title("spread / norm of the gradient", fontsize=style.font_size)
        for axes in grid[-1]:
            axes.set_xlabel("KL[q||p] in nats")
        return figure


def _panel(axes: Axes, findings: pd.DataFrame, column: str) -> None:
    distances, names = findings["distance"].unique(), findings["estimator"].unique()
    for i, name in enumerate(names):
        values = findings[findings["estimator"] == name].groupby("distance", sort=False)[column]
        medians = values.median()
        xs = [x + 0.5 * (i / len(names) - 0.5) for x in range(len(distances))]
        looks: dict[str, Any] = {
            "fmt": MARKERS[i % len(MARKERS)],
            "color": INKS[i % len(INKS)],
            "markersize": 3.5,
        }
        reach = [medians - values.min(), values.max() - medians]
        axes.errorbar(xs, medians, reach, linewidth=0, elinewidth=0.8, label=name, **looks)
    kls = findings.groupby("distance", sort=False)["kl"].median()
    axes.set_xticks(range(len(distances)), [f"{d}\n{kl:.1g}" for d, kl in kls.items()])
    axes.set_yscale("log")
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
