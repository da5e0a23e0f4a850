"""results/<run>/curves.html: the curves of every training, also while it runs, on a page without network."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from minillm.config import layout
from minillm.errors import UserError
from minillm.files import whole_file
from minillm.publish.svg import Line, chart
from minillm.publish.training_logs import Log, read_logs

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
# Title, keys of metrics.jsonl from training (solid), from the dev set (dashed): the same for every method.
PANELS = (
    ("Reverse KL to the teacher, nats per token", ("rollout_reverse_kl",), ("dev_reverse_kl",)),
    ("Length of responses, tokens", ("response_length",), ("dev_length",)),
    ("Entropy of the model, nats per token", ("entropy",), ("dev_entropy",)),
    ("Share of responses that end", ("finished",), ("dev_finished",)),
    ("Share of 4-grams that repeat earlier ones", ("repetition",), ("dev_repetition",)),
    ("Share of the 16 likeliest tokens that student and teacher share", (), ("dev_overlap",)),
    ("Dev set: ROUGE-L", (), ("dev_rouge",)),
    ("Dev set: cross-entropy, nats per token", (), ("dev_loss",)),
)
READING = (
    "Solid: from training. Dashed: from the dev set. The loss is what a method minimises, so compare it only "
    "between the seeds of one method; all other curves mean the same for every method. A gap is a value that "
    "was not a finite number. The keys are explained in docs/running.md."
)


def write_curves(run: Path, out: Path | None = None) -> Path:
    """Write the page of results/<run>, `run`, and return its path (`out`, or curves.html in that folder).

    Raises UserError, one line, if there is no such run or a log is damaged.
    """
    if not (run / "configs").is_dir():
        raise UserError(f"{run}: no run here (no folder configs); name one like results/demo")
    logs = read_logs(run)
    running = any(log.running for log in logs)
    title = f"Training curves of the run {run.resolve().name}"
    body = [f"<h1>{_text(title)}</h1>", f'<p class="reading">{_text(READING)}</p>']
    if running:
        body.append(f"<p class='notes'>Written {_clock(time.time())}, while the run was not finished.</p>")
    if not logs:
        body.append("<p>No training has logged a step.</p>")
    # Apart, since their numbers of steps differ by an order of magnitude.
    for (model, sampled), of_model in groupby(sorted(logs, key=_part), key=_part):
        kind = "on its own samples" if sampled else "on fixed rows"
        body.append(_section(f"{model}, {kind}", list(of_model)))
    style = "".join(
        files("minillm.publish").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "curves.css")
    )
    refresh = '<meta http-equiv="refresh" content="30">' if running else ""
    head = f'<meta charset="utf-8">{refresh}<title>{_text(title)}</title><style>\n{style}</style>'
    page = f"<!doctype html>\n<html lang='en'><head>{head}</head>\n<body>\n" + "\n".join(body)
    path = out or run / layout.curves()
    with whole_file(path) as partial:
        partial.write_text(page + "\n</body></html>\n", encoding="utf-8")
    return path


def _part(log: Log) -> tuple[str, bool]:
    return log.model, bool(log.series("sampled_tokens"))


def _section(heading: str, logs: Sequence[Log]) -> str:
    """Legend and panels of a model's trainings of one kind: the loss of each method, then what they share."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(logs))]
    legend = [
        f'<li><b style="background: {colour}"></b>{_text(_name(log))}: {_text(_state(log))}</li>'
        for log, colour in zip(logs, colours, strict=True)
    ]
    coloured = list(zip(logs, colours, strict=True))
    panels = []
    for method in dict.fromkeys(map(_method, logs)):
        alike = [(log, colour) for log, colour in coloured if _method(log) == method]
        panels.append(_panel(f"Loss: {method}", ("loss",), ("dev_objective",), alike))
    panels += [_panel(title, solid, dashed, coloured) for title, solid, dashed in PANELS]
    return "\n".join(
        [
            f"<h2>{_text(heading)}</h2>",
            f'<ul class="legend">{"".join(legend)}</ul>',
            f'<div class="panels">{"".join(filter(None, panels))}</div>',
        ]
    )


def _panel(title: str, solid: Sequence[str], dashed: Sequence[str], logs: Sequence[tuple[Log, str]]) -> str:
    """A chart; "" if no training has logged such a number."""
    lines = [
        Line(f"{_name(log)}: {key}", colour, log.series(key), key in dashed)
        for log, colour in logs
        for key in (*solid, *dashed)
        if any(value is not None for _, value in log.series(key))
    ]
    return chart(title, lines) if lines else ""


def _name(log: Log) -> str:
    """The training below its model: method, teacher, seed."""
    name = log.weights.partition("/")[2] or log.weights
    return f"{name}{' (not finished)' if log.running else ''}"


def _method(log: Log) -> str:
    """What the training seeds share."""
    name = log.weights.partition("/")[2] or log.weights
    place, _, last = name.rpartition("/")
    return place if place and last.startswith("seed") else name


def _state(log: Log) -> str:
    missing = sum(value is None for line in log.lines for value in line.values())
    notes = f"; {missing} values not finite" if missing else ""
    if log.also:
        notes += f"; also {', '.join(w.partition('/')[2] for w in log.also)}"
    if log.running:
        of = f" of {log.steps}" if log.steps else ""
        return f"step {log.step}{of}, last line {_clock(log.changed)}{notes}"
    return f"{log.step} steps{notes}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _text(text: str) -> str:
    return html.escape(text)
