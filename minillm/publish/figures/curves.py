"""Curves: exposure bias (Figure 6), reverse KL (8), the mixing ratio (16), divergences, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from minillm.config.sections import Style
from minillm.publish.figures.drawing import Drawing, absent, finished, label_left, legend, line_of, panels
from minillm.publish.item_results import ItemResults, Trained
from minillm.publish.registry import ITEMS
from minillm.publish.tables.ablations import STRATEGIES, dev_n

NOT_MEASURED = "not measured in this run"
# Key of an exposure-bias metric, its value other than the default, and the caption's sentence about it.
NOT_DEFAULT = (
    (
        "semantics",
        "released",
        " As the published script computes it (semantics: released): l counts from the second token.",
    ),
    ("finished", "zero", " Finished responses count 0 (finished: zero)."),
)


def style_of(results: ItemResults) -> Style:
    """The figure's style, which tables do not have."""
    assert results.settings.style is not None
    return results.settings.style


def nothing(results: ItemResults, line: str = NOT_MEASURED) -> Drawing:
    """The page that says why this item shows nothing."""
    return absent(style_of(results), ITEMS[results.settings.name].shows, line)


def key(style: Style, methods: Sequence[str], model: Trained) -> Line2D:
    """The legend's entry for a model's method."""
    return Line2D([], [], label=model.method_label, **line_of(style, methods, model.method))


def exposure_bias(results: ItemResults) -> Drawing:
    """ExAccErr(l) of each student's methods, in percent, with the interval as a band."""
    style, methods = style_of(results), results.settings.table.methods
    pages = []
    for teacher, students in results.pairs():
        for test in results.names("exposure_bias"):
            curves = {
                m: c for m in results.drawn(students) if (c := results.contents("exposure_bias", m, test))
            }
            if curves:
                pages.append((teacher, test, curves))
    if not pages:
        return nothing(results)
    figure, grid = panels(style, len(pages), share_y=True)
    handles, texts = [], []
    compared: list[str] = []
    for axes, (teacher, test, curves) in zip(grid, pages, strict=True):
        for model, metrics in curves.items():
            looks = line_of(style, methods, model.method)
            _error_curve(axes, metrics[0], looks)
            handles.append(key(style, methods, model))
        model, first = next(iter(curves.items()))[0], next(iter(curves.values()))[0]
        axes.set_title(f"{model.label} ({teacher.label})\n{results.label(test)}")
        axes.set_xlabel("length l (tokens)")
        axes.axhline(0, color="black", linewidth=0.6)
        texts.append(
            f"{results.label(test)}: n = {first['n']} prompts × {first.get('responses', '?')} responses"
        )
        compared += _compared(
            f"{model.label} on {results.label(test)}", {m: metrics[0] for m, metrics in curves.items()}
        )
    label_left(grid, "ExAccErr(l) (%)")
    legend(figure, handles)
    caption = (
        "Excess accumulated error by exposure bias against the length generated; lower is better. Bands: "
        f"{_level(first):.3g}% intervals over prompts. Pale: fewer than a tenth of the responses of either "
        "kind are left."
    )
    caption += "".join(text for key, value, text in NOT_DEFAULT if first.get(key) == value)
    caption += results.drawn_note + "".join(compared)
    if any(len(m.weights) > 1 for _, _, curves in pages for m in curves):
        caption += " First training seed."
    return finished(figure, style, caption, "; ".join(dict.fromkeys(texts)) + ".")


def _level(metric: dict[str, Any]) -> float:
    """The confidence level of the metric's intervals, in percent."""
    return 100 * metric.get("level", 0.95)


def _error_curve(axes: Axes, metric: dict[str, Any], looks: dict[str, Any]) -> None:
    """ExAccErr(l) with its band, pale beyond the last length that enough responses reach."""
    lengths, values = np.array(metric["lengths"]), _numbers(metric["ex_acc_err"])
    enough = lengths <= (metric.get("mean_at") or 0)
    axes.plot(lengths, np.where(enough, values, np.nan), markevery=max(1, len(lengths) // 8), **looks)
    # Includes the last point with enough responses, so that the two parts of the curve meet.
    pale = np.where(~enough | np.append(~enough[1:], False), values, np.nan)
    axes.plot(lengths, pale, color=looks["color"], linestyle=looks["linestyle"], linewidth=0.8, alpha=0.35)
    if metric.get("low"):
        low, high = _numbers(metric["low"]), _numbers(metric["high"])
        axes.fill_between(lengths, low, high, where=enough, color=looks["color"], alpha=0.15, linewidth=0)


def _compared(where: str, curves: dict[Trained, dict[str, Any]]) -> list[str]:
    """MiniLLM's ExAccErr minus each other method's, with intervals by paired bootstrap over prompts.

    Taken at the longest length whose bootstrap draws are kept and that enough responses of all methods reach.
    """
    ours = next((metric for model, metric in curves.items() if model.method == "minillm"), None)
    reach = min((metric.get("mean_at") or 0 for metric in curves.values()), default=0)
    common = set.intersection(*(set(metric.get("draws") or {}) for metric in curves.values()))
    at = max((int(length) for length in common if int(length) <= reach), default=0)
    if ours is None or not at:
        return []
    texts, level = [], _level(ours)
    for model, metric in curves.items():
        values = [compared["ex_acc_err"][at - 1] for compared in (ours, metric)]
        if metric is not ours and None not in values and metric.get("ids") == ours.get("ids"):
            draws = _numbers(ours["draws"][str(at)]) - _numbers(metric["draws"][str(at)])
            draws = draws[np.isfinite(draws)]
            # A single prompt cannot be resampled.
            if not len(draws):
                continue
            low, high = np.percentile(draws, [50 - level / 2, 50 + level / 2])
            texts.append(f"{model.method_label} {values[0] - values[1]:+.1f} ({low:+.1f} to {high:+.1f})")
    how = f"{level:.3g}%, paired bootstrap over prompts."
    return [f" {where}, l = {at}: MiniLLM minus {', '.join(texts)}; {how}"] if texts else []


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """The values, with NaN, which leaves a gap in a curve, in place of None."""
    return np.array([np.nan if value is None else value for value in values])


def _dev_curve(entries: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key of the dev evaluations."""
    points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _training(
    results: ItemResults, methods: Sequence[str], names: dict[str, str], caption: str
) -> Drawing | None:
    """Dev curves of on-policy methods, one panel per student and key of `names`; None if there are no logs.

    names: key of the dev evaluations -> label of the y axis.
    """
    style, all_methods = style_of(results), results.settings.table.methods
    pairs = [(teacher, [m for m in students if m.method in methods]) for teacher, students in results.pairs()]
    most = max((len(students) for _, students in pairs), default=0)
    pages = []
    for teacher, students in pairs:
        # A single line compares nothing.
        for name, label in names.items() if len(students) > 1 or most == 1 else ():
            curves = []
            for model in students:
                logs = {weights: results.log(weights) for weights in model.weights.values()}
                curves += [(model, points) for log in logs.values() if (points := _dev_curve(log, name))[0]]
            if curves:
                pages.append((teacher, label, curves))
    if not pages:
        return None
    figure, grid = panels(style, len(pages), columns=2 if len(names) > 1 else 3)
    handles, rows = [], set()
    for axes, (teacher, label, curves) in zip(grid, pages, strict=True):
        for model, (steps, values) in curves:
            axes.plot(steps, values, **line_of(style, all_methods, model.method))
            handles.append(key(style, all_methods, model))
            rows.add(results.dev_rows(model))
        axes.set_title(f"{curves[0][0].label} ({teacher.label})")
        axes.set_xlabel("update")
        axes.set_ylabel(label)
    legend(figure, handles)
    n = "; ".join(filter(None, [dev_n(rows), "one line per training seed."]))
    return finished(figure, style, caption, n)


def reverse_kl(results: ItemResults) -> Drawing:
    """Figure 8: dev reverse KL and answer length against the update, of MiniLLM and without each strategy."""
    methods = ("minillm", *STRATEGIES)
    caption = (
        "Reverse KL between student and teacher on the student's fresh answers to dev prompts, exact over "
        "the vocabulary, mean over tokens (the paper: an estimate on training samples, smoothed); lower "
        "means nearer to the teacher, not better answers. Next to it, the mean length of these answers."
    )
    absent = [label for method, label in STRATEGIES.items() if method not in results.settings.table.methods]
    if absent:
        caption += f" Not in this configuration: {', '.join(absent)}."
    names = {
        "dev_reverse_kl": "dev reverse KL (nats per token)",
        "dev_length": "length of dev answers (tokens)",
    }
    return _training(results, methods, names, caption) or nothing(results)


def divergences(results: ItemResults) -> Drawing:
    """Dev reverse and forward KL of two methods that differ only in their divergence."""
    methods = {
        method
        for chosen in results.settings.chosen.values()
        for method, value in chosen.items()
        if value in ("forward_kl", "reverse_kl")
    }
    if not methods:
        why = "this configuration has no two variants that differ only in forward and reverse KL"
        return nothing(results, f"not measured: {why}")
    names = {
        "dev_reverse_kl": "dev reverse KL (nats per token)",
        "dev_forward_kl": "dev forward KL (nats per token)",
    }
    caption = (
        "The same on-policy training with forward and with reverse KL as its loss, measured by both on the "
        "student's fresh dev answers."
    )
    return _training(results, sorted(methods), names, caption) or nothing(results)


def mixing(results: ItemResults) -> Drawing:
    """Figure 16: dev ROUGE-L of the chosen checkpoint against alpha, one line per student."""
    style, chosen = style_of(results), results.settings.chosen
    if not any(len(values) > 1 for values in chosen.values()):
        return nothing(results, "not measured: this configuration has only one alpha")
    lines = []
    for teacher, students in results.pairs():
        points = []
        for model in students:
            score = results.dev_rouge(model) if model.method in chosen.get(model.student, {}) else None
            if score is not None:
                points.append((float(chosen[model.student][model.method]), *score))
        if len(points) > 1:
            lines.append((f"{students[0].label} ({teacher.label})", sorted(points)))
    if not lines:
        return nothing(results)
    figure, (axes,) = panels(style, 1)
    for i, (label, points) in enumerate(lines):
        x, y, errors = zip(*points, strict=True)
        bars = [error or 0.0 for error in errors]
        looks: dict[str, Any] = {"marker": "osD^v"[i % 5], "linestyle": ("-", "--", "-.", ":")[i % 4]}
        grey = f"{0.65 * i / len(lines):.2f}"
        axes.errorbar(x, y, bars if any(bars) else None, label=label, color=grey, capsize=2, **looks)
    axes.set_xlabel("α, the teacher's share in the sampling mixture")
    axes.set_ylabel("dev ROUGE-L")
    legend(figure, axes.get_legend_handles_labels()[0])
    caption = (
        "Dev ROUGE-L of the chosen checkpoint, for MiniLLM and variants that differ only in α. Error bars: "
        "standard error over training seeds if there are several."
    )
    models = [m for _, students in results.pairs() for m in students if m.method in chosen.get(m.student, {})]
    n = dev_n({results.dev_rows(model) for model in models})
    settings = sum(len(points) for _, points in lines)
    return finished(figure, style, caption, f"{n}; {settings} settings." if n else f"{settings} settings.")


def reliability(results: ItemResults) -> Drawing:
    """Accuracy against confidence, bin by bin; one panel per task and teacher."""
    style, methods = style_of(results), results.settings.table.methods
    pages = []
    for task in results.names("calibration"):
        for teacher in dict.fromkeys(m.teacher for m in results.models()):
            drawn = results.drawn([m for m in results.models() if m.teacher == teacher])
            calibrations = {m: c for m in drawn if (c := results.calibration(m, task))}
            if calibrations:
                pages.append((task, calibrations))
    if not pages:
        return nothing(results)
    figure, grid = panels(style, len(pages), share_y=True)
    handles: list[Line2D] = [Line2D([], [], color="0.6", linewidth=0.8, label="perfect calibration")]
    texts = []
    for axes, (task, models) in zip(grid, pages, strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
        for model, metrics in models.items():
            _reliability_curve(axes, metrics[0], line_of(style, methods, model.method))
            handles.append(key(style, methods, model))
        axes.set_title(f"{results.label(task)} ({next(iter(models)).teacher_label})")
        axes.set_xlabel("confidence (normalised)")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        sizes = results.sizes("calibration", list(models), task)
        texts.append(f"{results.label(task)}: n = {', '.join(map(str, sizes))}")
    label_left(grid, "accuracy")
    legend(figure, handles)
    caption = (
        "Accuracy against mean confidence of each bin that holds examples; below the diagonal: overconfident."
        f" First training seed.{results.drawn_note}"
    )
    return finished(figure, style, caption, "; ".join(dict.fromkeys(texts)) + ".")


def _reliability_curve(axes: Axes, metric: dict[str, Any], looks: dict[str, Any]) -> None:
    bins = [b for b in metric["bins"] if b["n"]]
    marker = {**looks, "marker": looks["marker"] or "P"}
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], **marker)
