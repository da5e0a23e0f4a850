"""Figures over model sizes: students (Figure 1), teachers (Figures 5 and 14), and the gap between the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from minillm.config.sections import Style
from minillm.evaluation.statistics import ratio_error
from minillm.publish.figures.curves import NOT_MEASURED, key, nothing, style_of
from minillm.publish.figures.drawing import Drawing, finished, label_left, legend, line_of, panels
from minillm.publish.item_results import ItemResults, Trained, judge_of, parameters
from minillm.publish.results import Value

Score = Callable[[Trained], Value | None]
# Method -> (x, y, standard error) of each point.
Points = dict[str, list[tuple[float, float, float]]]


def scores(results: ItemResults) -> tuple[Score, str, str, list[str]]:
    """How to score a model, the axis's label, the caption's sentence about it, and the test sets.

    The judge's score if a real one scored anything, else ROUGE-L, which the caption then says.
    """
    judged = results.names("judge")
    metrics = [
        m for model in results.models() for test in judged for m in results.contents("judge", model, test)
    ]
    if metrics and not any(m.get("stand_in", True) for m in metrics):
        names = ", ".join(map(results.label, judged))
        judge = judge_of(metrics[0])
        text = (
            f"Mean over {names} of the judge's score ({judge}), a ratio of totals to those of the references."
        )
        return lambda model: results.average(model, "judge", judged), "judge's score (%)", text, judged
    tests = results.names("rouge")
    why = "a stand-in judge's scores are not shown" if metrics else "no judge scored this run"
    names = ", ".join(map(results.label, tests)) or "no test set"
    text = f"ROUGE-L, not a judge's score as in the paper ({why}): mean over {names}."
    return lambda model: results.average(model, "rouge", tests), "mean ROUGE-L", text, tests


def _bars(results: ItemResults, drawn: Sequence[Trained], tests: Sequence[str], label: str) -> str:
    """The caption's sentence about the error bars of the models `drawn`: what they range over."""
    judged = label.startswith("judge")
    kind, single = ("judge", "prompts (bootstrap)") if judged else ("rouge", "sampling seeds")
    several = {len(results.rows(model, kind, tests[:1])) > 1 for model in drawn}
    single += ", the sets taken as independent" if len(tests) > 1 else ""
    over = [name for name, is_several in (("training seeds", True), (single, False)) if is_several in several]
    text = "No error bars: nothing was repeated."
    if over:
        text = f"Error bars: standard error over {', for models trained once over '.join(over)}."
    return text + " Points of one size are set side by side."


def _n(results: ItemResults, tests: Sequence[str], label: str) -> str:
    """n of each test set, from the scores that are shown."""
    kind = "judge" if label.startswith("judge") else "rouge"
    return "; ".join(results.sizes_text(kind, tests, results.models())) + "."


def _size(results: ItemResults, name: str) -> float | None:
    return parameters(results.settings.models[name].size)


def student_sizes(results: ItemResults) -> Drawing:
    """Figure 1: score against the student's size, one panel per teacher; the teacher as a dashed line."""
    style, methods = style_of(results), results.settings.table.methods
    score, label, text, tests = scores(results)
    models = results.models()
    pages = []
    drawn = []
    for teacher in [m for m in models if not m.student]:
        points: Points = {}
        entries = {}
        students = [m for m in models if m.teacher == teacher.teacher and m.student]
        for model in results.drawn(_of_its_family(results, students)):
            size, value = _size(results, model.student), score(model)
            if size and value:
                points.setdefault(model.method, []).append((size, value[0], value[1] or 0.0))
                entries[model.method] = model
                drawn += [model] if value[1] is not None else []
        if points:
            pages.append((teacher, points, entries))
    if not pages:
        return nothing(results, "not measured: no student with a size was evaluated")
    figure, grid = panels(style, len(pages))
    handles = []
    for axes, (teacher, points, entries) in zip(grid, pages, strict=True):
        _draw(axes, points, style, methods)
        handles += [key(style, methods, entries[method]) for method in points]
        top = score(teacher)
        if top:
            axes.axhline(top[0], **{**line_of(style, methods, "teacher"), "color": "0.4"})
            handles.append(key(style, methods, teacher))
        axes.set_title(f"teacher: {teacher.label}")
        axes.set_xlabel("student's parameters")
    label_left(grid, label)
    legend(figure, handles)
    bars = _bars(results, drawn, tests, label)
    caption = f"Score against the student's size. {text} {bars}{results.drawn_note}"
    return finished(figure, style, caption, _n(results, tests, label))


def _of_its_family(results: ItemResults, models: Sequence[Trained]) -> Sequence[Trained]:
    """Students of their teacher's family, or all if there are none: a line must not join two families."""
    specs = results.settings.models
    same = [m for m in models if specs[m.student].family == specs[m.teacher].family]
    return same or models


def teacher_sizes(results: ItemResults) -> Drawing:
    """Figure 5: students that have teachers of several sizes; OPT students are in Figure 14."""
    return _teacher_sizes(results, lambda family: family != "OPT")


def teacher_sizes_opt(results: ItemResults) -> Drawing:
    """Figure 14: the same for OPT students."""
    return _teacher_sizes(results, lambda family: family == "OPT")


def _teacher_sizes(results: ItemResults, wanted: Callable[[str], bool]) -> Drawing:
    style, methods = style_of(results), results.settings.table.methods
    score, label, text, tests = scores(results)
    specs = results.settings.models
    teachers: dict[str, list[str]] = {}
    for pair in (*results.settings.table.pairs, *results.settings.table.sweeps):
        for student in pair.students:
            family = specs[student].family
            if wanted(family) and _size(results, pair.teacher) and specs[pair.teacher].family == family:
                teachers.setdefault(student, []).append(pair.teacher)
    several = [s for s, names in teachers.items() if len({_size(results, t) for t in names}) > 1]
    if not several:
        why = "no OPT student" if not wanted("") and not teachers else "only one teacher size per student"
        return nothing(results, f"not measured: this configuration has {why}")
    figure, grid = panels(style, len(several))
    handles, drawn = [], []
    for axes, student in zip(grid, several, strict=True):
        points: Points = {}
        trained = [
            m
            for m in results.models()
            if m.student == student and m.teacher in teachers[student] and m.method != "sft"
        ]
        for model in results.drawn(trained):
            value = score(model)
            if value:
                size = _size(results, model.teacher) or 0.0
                points.setdefault(model.method, []).append((size, value[0], value[1] or 0.0))
                handles.append(key(style, methods, model))
                drawn += [model] if value[1] is not None else []
        _draw(axes, points, style, methods)
        axes.set_title(f"student: {trained[0].label}")
        axes.set_xlabel("teacher's parameters")
    if not handles:
        return nothing(results)
    label_left(grid, label)
    legend(figure, handles)
    caption = "One student, teachers of several sizes; SFT, which has no teacher, is left out. "
    caption += f"{text} {_bars(results, drawn, tests, label)}{results.drawn_note}"
    return finished(figure, style, caption, _n(results, tests, label))


def size_gap(results: ItemResults) -> Drawing:
    """The share of the teacher's ROUGE-L that a student reaches, against the ratio of their sizes.

    Next to it, for each student with teachers of several sizes, its methods' own ROUGE-L against that ratio.
    """
    style, methods = style_of(results), results.settings.table.methods
    tests, specs = results.names("rouge"), results.settings.models
    shares: Points = {}
    scored: dict[str, Points] = {}
    handles, labels = [], dict[str, str]()
    for teacher, students in results.pairs():
        top = _size(results, teacher.teacher)
        for model in results.drawn(students):
            size, share = _size(results, model.student), _share(results, model, teacher, tests)
            value = results.average(model, "rouge", tests)
            if not top or not size or not value:
                continue
            # A line must not join two families of teachers.
            if specs[model.student].family == specs[model.teacher].family:
                of_method = scored.setdefault(model.student, {}).setdefault(model.method, [])
                of_method.append((top / size, value[0], value[1] or 0.0))
                labels[model.student] = model.label
            handles.append(key(style, methods, model))
            if share:
                shares.setdefault(model.method, []).append((top / size, *share))
    if len(_positions(shares)) < 2:
        one = "not measured: this configuration has only one ratio of sizes"
        return nothing(results, one if shares else NOT_MEASURED)
    several = {student: points for student, points in scored.items() if len(_positions(points)) > 1}
    figure, (first, *others) = panels(style, 1 + len(several))
    for method, values in shares.items():
        # No line: the pairs are unrelated.
        _errorbar(first, sorted(values), {**line_of(style, methods, method), "linestyle": "none"})
    first.axhline(100, color="0.4", linestyle="--", linewidth=0.8)
    _ticks(first, _positions(shares), _ratio_label)
    first.set_ylabel("share of the teacher's ROUGE-L (%)")
    first.set_title("all pairs" if several else "")
    for axes, (student, points) in zip(others, several.items(), strict=True):
        _draw(axes, points, style, methods, _ratio_label)
        axes.set_title(f"student: {labels[student]}")
        axes.set_ylabel("mean ROUGE-L")
    for axes in (first, *others):
        axes.set_xlabel("teacher's parameters / student's")
    legend(figure, handles)
    caption = (
        "How much of the teacher's score a student reaches, against the gap in size; mean over "
        f"{', '.join(map(results.label, tests))}. Error bars: standard error by bootstrap over prompts, the "
        "same for student and teacher; combined with that over training seeds if there are several."
    )
    if several:
        caption += " Students with several teachers: their own scores too; SFT has no teacher and is flat. "
        models = [m for m in results.drawn(results.models()) if m.student in several]
        caption += _bars(results, models, tests, "mean ROUGE-L")
    caption += results.drawn_note
    return finished(figure, style, caption, _n(results, tests, "ROUGE-L"))


def _share(
    results: ItemResults, model: Trained, teacher: Trained, tests: Sequence[str]
) -> tuple[float, float] | None:
    """The percentage of the teacher's mean ROUGE-L that a student reaches, and its standard error.

    None if a score is missing.
    """
    ours = [_by_prompt(results.contents("rouge", model, test)) for test in tests]
    theirs = [_by_prompt(results.contents("rouge", teacher, test)) for test in tests]
    mean, top = (results.average(m, "rouge", tests) for m in (model, teacher))
    if mean is None or top is None or not top[0]:
        return None
    several = len(results.rows(model, "rouge", tests[:1])) > 1
    trainings = 100 * (mean[1] or 0.0) / top[0] if several else 0.0
    return 100 * mean[0] / top[0], math.hypot(ratio_error(ours, theirs), trainings)


def _by_prompt(metrics: Sequence[dict]) -> list[float]:
    """ROUGE-L of each prompt, averaged over all seeds."""
    columns = zip(*(scores for metric in metrics for scores in metric["scores"].values()), strict=True)
    return [math.fsum(column) / len(column) for column in columns]


def _draw(
    axes: Axes,
    points: Points,
    style: Style,
    methods: Sequence[str],
    label: Callable[[float], str] | None = None,
) -> None:
    """A curve per method, with a tick per position, which `label` writes (default: as a size)."""
    for (method, values), shift in zip(points.items(), _shifts(points), strict=True):
        shifted = sorted((size * shift, y, error) for size, y, error in values)
        _errorbar(axes, shifted, line_of(style, methods, method))
    _ticks(axes, _positions(points), label or _size_label)


def _positions(points: Points) -> list[float]:
    return sorted({x for values in points.values() for x, _, _ in values})


def _shifts(points: Points) -> list[float]:
    """Factors that set the methods' points 1.5% of a logarithmic axis apart, so that none hides another."""
    sizes = _positions(points)
    span = math.log(max(sizes, default=1) / min(sizes, default=1)) or math.log(4)
    return [math.exp(0.015 * span * (i - (len(points) - 1) / 2)) for i in range(len(points))]


def _errorbar(axes: Axes, values: Sequence[tuple[float, float, float]], looks: dict) -> None:
    x, y, errors = zip(*values, strict=True)
    axes.errorbar(x, y, errors if any(errors) else None, capsize=2, **looks)


def _ticks(axes: Axes, positions: Sequence[float], label: Callable[[float], str]) -> None:
    """Make the x axis logarithmic, with a tick per position."""
    axes.set_xscale("log")
    axes.set_xticks(positions, list(map(label, positions)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(positions) == 1:
        axes.set_xlim(positions[0] / 2, positions[0] * 2)


def _size_label(size: float) -> str:
    return f"{size / 1e9:g}B" if size >= 1e9 else f"{size / 1e6:g}M"


def _ratio_label(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"
