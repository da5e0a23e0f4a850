"""Figures of bars: ROUGE-L by the length of the reference (7, 15), and the human comparison (4)."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from minillm.evaluation.statistics import paired_bootstrap, sign_test
from minillm.publish.figures.curves import nothing, style_of
from minillm.publish.figures.drawing import Drawing, finished, legend, looks_of, panels
from minillm.publish.item_results import ItemResults, Trained

GROUP = 0.8  # width of a bucket's group of bars
FEWEST = 5  # prompts of which an interval is drawn: a bootstrap over fewer hardly knows any spread
OUTCOMES = {"win": ("#0072B2", ""), "tie": ("0.85", "////"), "loss": ("#D55E00", "....")}


def lengths(results: ItemResults) -> Drawing:
    """Figures 7 and 15: the sets that the configuration's `lengths` names for it."""
    style, methods, tests = style_of(results), results.settings.table.methods, results.names("lengths")
    if not tests:
        key = "lengths.figure15" if results.settings.name == "figure15" else "lengths.tests"
        return nothing(results, f"not measured: this configuration names no set for it in {key}")
    pages = []
    for teacher, students in results.pairs():
        for test in tests:
            buckets = {m: _buckets(results, m, test) for m in students}
            sft = next((values for model, values in buckets.items() if model.method == "sft"), {})
            others = {
                model: buckets[model]
                for model in results.drawn(students)
                if model.method != "sft" and buckets[model]
            }
            if sft and others:
                pages.append((teacher, test, sft, others))
    if not pages:
        return nothing(results)
    looks = looks_of(style, methods)
    figure, grid = panels(style, len(pages), columns=2)
    handles = []
    for axes, (teacher, test, sft, others) in zip(grid, pages, strict=True):
        places = list(sft)
        width = GROUP / len(others)
        for i, (model, values) in enumerate(others.items()):
            colour, hatch = looks[model.method]
            for x, place in enumerate(places):
                if place not in values:
                    continue
                difference, ends = _compared(
                    values[place], sft[place], f"{test}/{model.student}/{model.method}/{place}"
                )
                at = x - GROUP / 2 + (i + 0.5) * width
                axes.bar(
                    at,
                    difference,
                    0.92 * width,
                    facecolor=colour,
                    hatch=hatch,
                    edgecolor="black",
                    linewidth=0.5,
                )
                if ends:
                    reach = [[difference - ends[0]], [ends[1] - difference]]
                    axes.errorbar(at, difference, reach, color="black", linewidth=0.8, capsize=1.8)
            handles.append(
                Patch(
                    facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.5, label=model.method_label
                )
            )
        axes.set_xticks(range(len(places)), [f"{_range(*place)}\nn={len(sft[place])}" for place in places])
        axes.axhline(0, color="black", linewidth=0.8)
        model = next(iter(others))
        axes.set_title(f"{model.label} ({teacher.label})\n{results.label(test)}")
        axes.set_xlabel("length of the reference (tokens)")
        axes.set_ylabel("ROUGE-L − SFT's")
    legend(figure, handles)
    n = "; ".join(
        dict.fromkeys(
            f"{results.label(test)}: n = {sum(map(len, sft.values()))}" for _, test, sft, _ in pages
        )
    )
    caption = (
        "ROUGE-L (× 100) minus that of SFT w/o KD, by the length of the first reference in tokens. Error bars: 95% intervals of the "
        f"difference by paired bootstrap over prompts, scores averaged over sampling seeds; none for fewer than {FEWEST}. First training seed."
        + results.drawn_note
    )
    return finished(figure, style, caption, n + ".")


def _compared(
    ours: dict[int, float], theirs: dict[int, float], name: str
) -> tuple[float, tuple[float, float] | None]:
    """Difference of the mean scores of a bucket, and its interval; None for the interval of fewer than `FEWEST` prompts."""
    ids = sorted(ours.keys() & theirs.keys())
    first, second = [ours[i] for i in ids], [theirs[i] for i in ids]
    if len(ids) < FEWEST:
        return (math.fsum(first) - math.fsum(second)) / max(1, len(ids)), None
    comparison = paired_bootstrap(first, second, name)
    return comparison.difference, (comparison.low, comparison.high)


def _buckets(
    results: ItemResults, model: Trained, test: str
) -> dict[tuple[int, int | None], dict[int, float]]:
    """(low, high) -> the score of each prompt of the bucket by its id, first training seed; empty buckets are left out."""
    metric = next(iter(results.contents("lengths", model, test)), None)
    if metric is None:
        return {}
    rows = list(zip(metric["ids"], metric["reference_tokens"], metric["scores"], strict=True))
    buckets = {
        (b["low"], b["high"]): {
            i: score
            for i, length, score in rows
            if length >= b["low"] and (b["high"] is None or length <= b["high"])
        }
        for b in metric["buckets"]
    }
    return {place: scores for place, scores in buckets.items() if scores}


def _range(low: int, high: int | None) -> str:
    return f"≥ {low}" if high is None else f"{low}–{high}"


def human(results: ItemResults) -> Drawing:
    """Figure 4: MiniLLM's wins, ties and losses against each other model, with intervals of wins and of losses."""
    style = style_of(results)
    pages = results.comparisons()
    if not pages:
        return nothing(results, "no annotations")
    figure, grid = panels(style, len(pages), columns=2)
    for axes, (name, comparisons) in zip(grid, pages.items(), strict=True):
        for y, comparison in enumerate(reversed(comparisons)):
            _stack(axes, y, comparison)
        labels = [f"against {_against(results, c['against'])}\nn={c['n']}" for c in reversed(comparisons)]
        axes.set_yticks(range(len(comparisons)), labels)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the judgements (%)")
        axes.grid(False)
        if len(pages) > 1:
            axes.set_title(name)
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.5, label=outcome)
        for outcome, (colour, hatch) in OUTCOMES.items()
    ]
    legend(figure, handles)
    caption = (
        "Blind pairwise comparison by people: MiniLLM wins, ties or loses. Bars: 95% intervals of the shares of wins (left) and of "
        "losses (right). Exact sign tests of wins against losses, ties left out, each by itself:"
    )
    for name, comparisons in pages.items():
        tests = ", ".join(_sign_test(results, comparison) for comparison in comparisons)
        caption += (f" {name}: " if len(pages) > 1 else " ") + f"{tests}."
    if any(c["annotators"] > 1 for comparisons in pages.values() for c in comparisons):
        caption += (
            " Several annotators judged: judgements of one prompt are then not independent, so that the intervals are too narrow and the p "
            "too small."
        )
    n = ", ".join(sorted({str(c["n"]) for comparisons in pages.values() for c in comparisons}))
    return finished(figure, style, caption, f"n = {n} judgements a comparison.")


def _against(results: ItemResults, name: str) -> str:
    label = next((model.method_label for model in results.models() if model.method == name), name)
    return "the teacher" if name == "teacher" else label


def _sign_test(results: ItemResults, comparison: dict[str, Any]) -> str:
    """ "against SeqKD 27 to 10, p = 0.0076"."""
    wins, losses = comparison["win"], comparison["loss"]
    return f"against {_against(results, comparison['against'])} {wins} to {losses}, p = {sign_test(wins, losses):.2g}"


def _stack(axes: Axes, y: int, comparison: dict[str, Any]) -> None:
    total = sum(comparison[outcome] for outcome in OUTCOMES)
    left = 0.0
    for outcome, (colour, hatch) in OUTCOMES.items():
        share = 100 * comparison[outcome] / total
        axes.barh(y, share, 0.6, left=left, facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.5)
        if share >= 6:
            axes.text(
                left + share / 2,
                y,
                f"{share:.0f}",
                ha="center",
                va="center",
                bbox={"facecolor": "white", "pad": 1, "linewidth": 0},
            )
        if outcome != "tie":
            low, high = comparison["intervals"][outcome]  # in percent
            at, ends = (share, (low, high)) if outcome == "win" else (100 - share, (100 - high, 100 - low))
            axes.errorbar(
                at,
                y + 0.36,
                xerr=[[max(0.0, at - ends[0])], [max(0.0, ends[1] - at)]],
                color=colour,
                capsize=2.5,
                linewidth=1.2,
            )
        left += share
