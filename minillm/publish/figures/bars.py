"""Bar charts: ROUGE-L by length of the reference (Figures 7 and 15), and the human comparison (Figure 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from minillm.evaluation.statistics import paired_bootstrap, sign_test
from minillm.publish.figures.curves import nothing, style_of
from minillm.publish.figures.drawing import Drawing, Looks, finished, legend, looks_of, panels
from minillm.publish.item_results import ItemResults, Trained

# Width of a bucket's group of bars.
GROUP = 0.8
# Fewest prompts for which an interval is drawn: a bootstrap over fewer says little about the spread.
FEWEST = 5
OUTCOMES = {"win": ("#0072B2", ""), "tie": ("0.85", "////"), "loss": ("#D55E00", "....")}


# (low, high) of a bucket of reference lengths -> row id -> score.
Buckets = dict[tuple[int, int | None], dict[int, float]]
# A panel of `lengths`: teacher, set, SFT's scores, and the scores of each other model.
Page = tuple[Trained, str, Buckets, dict[Trained, Buckets]]


def lengths(results: ItemResults) -> Drawing:
    """Figures 7 and 15: the sets that the configuration's `lengths` names for the figure."""
    style, tests = style_of(results), results.names("lengths")
    if not tests:
        key = "lengths.figure15" if results.settings.name == "figure15" else "lengths.tests"
        return nothing(results, f"not measured: this configuration names no set for it in {key}")
    pages = _pages(results, tests)
    if not pages:
        return nothing(results)
    looks = looks_of(style, results.settings.table.methods)
    figure, grid = panels(style, len(pages), columns=2)
    handles: list[Patch] = []
    for axes, (teacher, test, sft, others) in zip(grid, pages, strict=True):
        handles += _bucket_bars(axes, test, sft, others, looks)
        axes.set_xticks(
            range(len(sft)), [f"{_range(*bucket)}\nn={len(scores)}" for bucket, scores in sft.items()]
        )
        axes.axhline(0, color="black", linewidth=0.8)
        model = next(iter(others))
        axes.set_title(f"{model.label} ({teacher.label})\n{results.label(test)}")
        axes.set_xlabel("length of the reference (tokens)")
        axes.set_ylabel("ROUGE-L − SFT's")
    legend(figure, handles)
    sizes = (f"{results.label(test)}: n = {sum(map(len, sft.values()))}" for _, test, sft, _ in pages)
    n = "; ".join(dict.fromkeys(sizes))
    caption = (
        "ROUGE-L (× 100) minus that of SFT w/o KD, by the length of the first reference in tokens. Error "
        "bars: 95% intervals of the difference by paired bootstrap over prompts, scores averaged over "
        f"sampling seeds; none for fewer than {FEWEST} prompts. First training seed.{results.drawn_note}"
    )
    return finished(figure, style, caption, n + ".")


def _pages(results: ItemResults, tests: Sequence[str]) -> list[Page]:
    """One page per pair and set on which SFT and another model were measured."""
    pages = []
    for teacher, students in results.pairs():
        for test in tests:
            buckets = {model: _buckets(results, model, test) for model in students}
            sft = next((scores for model, scores in buckets.items() if model.method == "sft"), {})
            others = {
                model: buckets[model]
                for model in results.drawn(students)
                if model.method != "sft" and buckets[model]
            }
            if sft and others:
                pages.append((teacher, test, sft, others))
    return pages


def _bucket_bars(
    axes: Axes, test: str, sft: Buckets, others: dict[Trained, Buckets], looks: Looks
) -> list[Patch]:
    """Draw each model's differences from SFT; returns the legend's entries."""
    width = GROUP / len(others)
    handles = []
    for i, (model, scores) in enumerate(others.items()):
        colour, hatch = looks[model.method]
        bar: dict[str, Any] = {"facecolor": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5}
        for x, bucket in enumerate(sft):
            if bucket not in scores:
                continue
            name = f"{test}/{model.student}/{model.method}/{bucket}"
            difference, interval = _compared(scores[bucket], sft[bucket], name)
            at = x - GROUP / 2 + (i + 0.5) * width
            axes.bar(at, difference, 0.92 * width, **bar)
            if interval:
                reach = [[difference - interval[0]], [interval[1] - difference]]
                axes.errorbar(at, difference, reach, color="black", linewidth=0.8, capsize=1.8)
        handles.append(Patch(label=model.method_label, **bar))
    return handles


def _compared(
    ours: dict[int, float], theirs: dict[int, float], name: str
) -> tuple[float, tuple[float, float] | None]:
    """Difference of a bucket's mean scores, and its interval, None for fewer than `FEWEST` prompts."""
    ids = sorted(ours.keys() & theirs.keys())
    first, second = [ours[i] for i in ids], [theirs[i] for i in ids]
    if len(ids) < FEWEST:
        return (math.fsum(first) - math.fsum(second)) / max(1, len(ids)), None
    comparison = paired_bootstrap(first, second, name)
    return comparison.difference, (comparison.low, comparison.high)


def _buckets(results: ItemResults, model: Trained, test: str) -> Buckets:
    """A model's scores on a set, first training seed, without empty buckets."""
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
    return {bucket: scores for bucket, scores in buckets.items() if scores}


def _range(low: int, high: int | None) -> str:
    return f"≥ {low}" if high is None else f"{low}–{high}"


def human(results: ItemResults) -> Drawing:
    """Figure 4: MiniLLM's wins, ties and losses against each other model; intervals of wins and losses."""
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
        "Blind pairwise comparison by people: MiniLLM wins, ties or loses. Error bars: 95% intervals of the "
        "shares of wins (left) and losses (right). Exact sign tests of wins against losses, without ties, "
        "each on its own:"
    )
    for name, comparisons in pages.items():
        tests = ", ".join(_sign_test(results, comparison) for comparison in comparisons)
        caption += (f" {name}: " if len(pages) > 1 else " ") + f"{tests}."
    if any(c["annotators"] > 1 for comparisons in pages.values() for c in comparisons):
        caption += (
            " Several annotators judged, so judgements of one prompt are not independent: the intervals are "
            "too narrow and the p-values too small."
        )
    n = ", ".join(sorted({str(c["n"]) for comparisons in pages.values() for c in comparisons}))
    return finished(figure, style, caption, f"n = {n} judgements per comparison.")


def _against(results: ItemResults, name: str) -> str:
    label = next((model.method_label for model in results.models() if model.method == name), name)
    return "the teacher" if name == "teacher" else label


def _sign_test(results: ItemResults, comparison: dict[str, Any]) -> str:
    """ "against SeqKD 27 to 10, p = 0.0076"."""
    wins, losses = comparison["win"], comparison["loss"]
    rival = _against(results, comparison["against"])
    return f"against {rival} {wins} to {losses}, p = {sign_test(wins, losses):.2g}"


def _stack(axes: Axes, y: int, comparison: dict[str, Any]) -> None:
    total = sum(comparison[outcome] for outcome in OUTCOMES)
    left = 0.0
    for outcome, (colour, hatch) in OUTCOMES.items():
        share = 100 * comparison[outcome] / total
        axes.barh(y, share, 0.6, left=left, facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.5)
        if share >= 6:
            box = {"facecolor": "white", "pad": 1, "linewidth": 0}
            axes.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center", bbox=box)
        if outcome != "tie":
            # In percent.
            low, high = comparison["intervals"][outcome]
            at, ends = (share, (low, high)) if outcome == "win" else (100 - share, (100 - high, 100 - low))
            reach = [[max(0.0, at - ends[0])], [max(0.0, ends[1] - at)]]
            axes.errorbar(at, y + 0.36, xerr=reach, color=colour, capsize=2.5, linewidth=1.2)
        left += share
