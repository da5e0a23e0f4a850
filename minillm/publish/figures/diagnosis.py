"""Figure `diagnosis`: what training does to the student's answers and to the signal on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from minillm.publish.figures.curves import nothing, style_of
from minillm.publish.figures.drawing import Drawing, finished, legend, line_of, panels
from minillm.publish.item_results import ItemResults, Trained
from minillm.publish.style import METHOD_NAMES
from minillm.publish.tables.ablations import dev_n

# The lines of metrics.jsonl of one training.
Log = Sequence[Mapping[str, Any]]
# Update, or part of an answer -> value.
Curve = dict[float, float]
# Points of a curve: what is logged more often is averaged over as many stretches of updates.
POINTS = 16
# With more methods only some lines of a panel are in colour.
MANY = 8
COLUMNS = 4
PARTS = 4


def series(keys: Sequence[str], of: Callable[..., float], log: Log) -> Curve:
    """Update -> `of` the values of `keys`, of the lines that have all of them."""
    lines = [line for line in log if all(line.get(key) is not None for key in keys)]
    curve = {}
    for places in np.array_split(np.arange(len(lines)), min(POINTS, len(lines))) if lines else ():
        stretch = [lines[i] for i in places]
        step = float(np.mean([line["step"] for line in stretch]))
        curve[step] = float(np.mean([of(*(line[key] for key in keys)) for line in stretch]))
    return curve


def noise(log: Log) -> Curve:
    """Update -> the share of the squared gradient that is variance; a single estimate may be negative."""
    keys = "grad_variance", "grad_norm"
    variance = series(keys, lambda variance, _: float(variance), log)
    square = series(keys, lambda _, norm: float(norm) ** 2, log)
    return {step: value / square[step] for step, value in variance.items() if square[step]}


def by_position(log: Log) -> Curve:
    """Quarter of the answer -> reward at the last evaluation; empty if it was not logged."""
    keys = [f"dev_reward_{part}_of_{PARTS}" for part in range(1, PARTS + 1)]
    last = next((line for line in reversed(log) if keys[0] in line), {})
    return {float(i): float(last[key]) for i, key in enumerate(keys, 1) if last.get(key) is not None}


def _plain(key: str) -> Callable[[Log], Curve]:
    return partial(series, (key,), float)


BY_POSITION = "reward by quarter (last)"
# Title -> the curve of one training.
PANELS: dict[str, Callable[[Log], Curve]] = {
    "truncated answers (share)": partial(series, ("dev_finished",), lambda finished: 1 - finished),
    "repeated 4-grams (share)": _plain("dev_repetition"),
    "length (tokens)": _plain("dev_length"),
    "KL to initial student (nats)": _plain("dev_init_kl"),
    "entropy, student (nats)": _plain("dev_entropy"),
    "entropy, teacher (nats)": _plain("dev_teacher_entropy"),
    "overlap of top 16 (share)": _plain("dev_overlap"),
    "student's mass on it (share)": _plain("dev_overlap_mass"),
    "reward, repeated - other": partial(
        series, ("dev_reward_repeated", "dev_reward_other"), lambda repeated, other: repeated - other
    ),
    BY_POSITION: by_position,
    "effective samples (share)": _plain("effective_samples"),
    "noise in squared gradient": noise,
}
CAPTION = (
    "On the student's fresh answers to dev prompts, the same prompts and random numbers for every method: "
    "share that ran out of tokens, share of 4-grams that repeat earlier ones, length; KL to the student that "
    "training began with, entropy of student and teacher; the share of their 16 likeliest tokens that they "
    "have in common, and the student's probability of these; the reward, log p - log q of the sampled token, "
    "at tokens that complete a repeated 4-gram minus that at all others, and by quarter of the answer at "
    "the last evaluation. From training: effective samples of a collection, and the share of the squared "
    "gradient that is variance between micro-batches."
)


def diagnosis(results: ItemResults) -> Drawing:
    """Small panels of the first pair that has been trained on-policy, a line for each method."""
    style, methods = style_of(results), results.settings.table.methods
    pairs = [(teacher, _curves(results, students)) for teacher, students in results.pairs()]
    teacher, pages = next(((teacher, pages) for teacher, pages in pairs if pages), (None, {}))
    if teacher is None:
        return nothing(results)
    shown = list(dict.fromkeys(model for curves in pages.values() for model in curves))
    many, small = len(shown) > MANY, 0.75 * style.font_size
    looks = {model: _looks(line_of(style, methods, model.method)) for model in shown}
    figure, grid = panels(style, len(pages), columns=COLUMNS)
    figure.set_figheight(style.height * (0.55 + 0.45 * -(-len(pages) // COLUMNS)))
    for number, (axes, (title, curves)) in enumerate(zip(grid, pages.items(), strict=True)):
        means = {model: mean for model, seeds in curves.items() if (mean := _mean(seeds))}
        ends = _ends(means) if many else []
        for model, mean in means.items():
            pale = many and model not in ends and model.method != "minillm"
            _draw(axes, mean, curves[model], looks[model], shown.index(model) if many else -1, pale)
        _name(axes, means, ends, small)
        axes.set_title(title, fontsize=small)
        axes.tick_params(labelsize=small)
        if title == BY_POSITION:
            axes.set_xticks(range(1, PARTS + 1))
        elif number >= len(pages) - COLUMNS:
            axes.set_xlabel("update", fontsize=small)
    with rc_context({"legend.fontsize": small} if many else {}):
        legend(figure, [Line2D([], [], label=model.method_label, **looks[model]) for model in shown])
    caption = f"{shown[0].label} ({teacher.label})"
    caption += f", the first of {len(pairs)} pairs. " if len(pairs) > 1 else ". "
    caption += CAPTION
    if missing := [title for title in PANELS if title not in pages]:
        caption += f" Not logged in this run: {', '.join(missing)}."
    if many:
        caption += " In colour: the methods that end highest and lowest, which are named, and MiniLLM."
    single = all(len(model.weights) == 1 for model in shown)
    how = "one training seed" if single else "mean over training seeds, bands from least to greatest"
    n = "; ".join(filter(None, [dev_n({results.dev_rows(model) for model in shown}), how]))
    return finished(figure, style, caption, f"{n}.")


def _curves(results: ItemResults, students: Sequence[Trained]) -> dict[str, dict[Trained, list[Curve]]]:
    """Title of a panel -> the curves of each on-policy method's training seeds; only what was logged."""
    logs = {model: _on_policy(results, model) for model in students}
    pages = {}
    for title, curve_of in PANELS.items():
        curves = {model: [c for log in seeds if (c := curve_of(log))] for model, seeds in logs.items()}
        if curves := {model: seeds for model, seeds in curves.items() if seeds}:
            pages[title] = curves
    return pages


def _on_policy(results: ItemResults, model: Trained) -> list[Log]:
    """The logs of a model's trainings; empty if they are not on-policy, or not there."""
    if model.method in METHOD_NAMES and model.method != "minillm":
        return []
    logs = [results.log(weights) for weights in model.weights.values()]
    # Only on-policy training logs it.
    return [log for log in logs if any("dev_reverse_kl" in line for line in log)]


def _looks(looks: dict[str, Any]) -> dict[str, Any]:
    return looks | {"linewidth": 1.0, "markersize": 0.8 * looks["markersize"]}


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean over training seeds, where all of them have a value."""
    places = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {place: math.fsum(curve[place] for curve in curves) / len(curves) for place in places}


def _draw(
    axes: Axes, mean: Curve, curves: Sequence[Curve], looks: dict[str, Any], number: int, pale: bool
) -> None:
    """A method's line, with a band over training seeds if there are several.

    Its one marker is at the end, or (number >= 0) at another place for each number, so that few overlap.
    """
    places = list(mean)
    looks = looks | {"markerfacecolor": looks["color"], "markevery": [number % len(places)]}
    if pale:
        looks |= {"color": "0.8", "linewidth": 0.6, "linestyle": "-", "zorder": 2.0}
    axes.plot(places, list(mean.values()), **{"zorder": 3.0, **looks})
    if len(curves) > 1 and not pale:
        values = [[curve[place] for curve in curves] for place in places]
        low, high = list(map(min, values)), list(map(max, values))
        axes.fill_between(places, low, high, color=looks["color"], alpha=0.12, linewidth=0)


def _ends(means: Mapping[Trained, Curve]) -> list[Trained]:
    """The methods whose lines end lowest and highest; none if all end at one value."""
    last = {model: list(mean.values())[-1] for model, mean in means.items()}
    ends = [min(last, key=last.__getitem__), max(last, key=last.__getitem__)]
    return ends if last[ends[0]] < last[ends[1]] else []


def _name(axes: Axes, means: Mapping[Trained, Curve], ends: Sequence[Trained], size: float) -> None:
    """Write the names of `ends`, the lowest and the highest, at the ends of their lines."""
    if ends:
        axes.margins(y=0.18)
    for model, above in zip(ends, (False, True), strict=False):
        place, value = list(means[model].items())[-1]
        axes.annotate(
            model.method_label.splitlines()[0], (place, value), xytext=(0, 3 if above else -3),
            textcoords="offset points", ha="right", va="bottom" if above else "top", fontsize=size, zorder=4,
        )  # fmt: skip
