"""The main table: every model on every test set by the set's metrics, as CSV, Markdown and LaTeX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minillm.config.measurements.metrics import metrics_of
from minillm.config.stage_settings import TableSettings
from minillm.files import whole_file
from minillm.publish.published_numbers import BRACKETS, Published, bracketed, numbers
from minillm.publish.style import (
    DASH,
    FEWER,
    METRIC_NAMES,
    bold,
    latex,
    latex_row,
    markdown,
    number,
    sampling_text,
)
from minillm.publish.tables.main_cells import LEVEL, Cell, collect_cells, has_judge, write_csv

# Of metrics that are no ROUGE.
DEFINITIONS = {
    "exact_match": "% of responses that equal a reference in lower case and without punctuation",
    "numeric": "% of responses whose number, as math-verify reads it, equals that of a reference",
    "choice": "% of responses that name the right option before any other; naming none is wrong",
}


def run_stage(settings: TableSettings, *, run_folder: Path, out: Path, paper: Path | None = None) -> None:
    """Write main.csv (long form), main.md and main.tex to `out`, from the metric files of a run.

    run_folder: results/<run>.  paper: the folder of published numbers (config/paper), which are shown next to
    those measured for the same model.  A missing metric file gives a dash.  Raises UserError if one is
    damaged or was made with other settings.
    """
    cells = collect_cells(settings, Path(run_folder), numbers(Path(paper or "config/paper")))
    notes = footnotes(settings, cells)
    write_csv(cells, Path(out) / "main.csv")
    texts = {"main.md": _markdown(settings, cells, notes), "main.tex": _latex(settings, cells, notes)}
    for name, text in texts.items():
        with whole_file(Path(out) / name) as partial:
            partial.write_text(text, encoding="utf-8")


def footnotes(settings: TableSettings, cells: list[Cell]) -> list[str]:
    """The table's notes: what the numbers are, what standard errors range over, how responses were drawn."""
    notes = [f"{_definitions(settings)}mean{_ranges(settings, cells)}."]
    notes += _words(cells)
    notes += _leads(settings, cells)
    if any(c.standard_error is not None and c.training_seeds == 1 for c in cells):
        notes.append(
            "A standard error over sampling seeds or prompts says nothing about training again with another "
            "seed."
        )
    if settings.judged:
        nobody = "no judge scored this run; a stand-in's scores are not shown"
        who = f"judge: {settings.judge}" if settings.judge else nobody
        notes.append(
            f"Columns judge (the paper's GPT4): the judge's scores in % of those of the references ({who})."
        )
        if any(c.judged_error is not None for c in cells):
            notes.append(
                "± in these columns: over prompts (bootstrap) for a single training, over training seeds if "
                "there are several."
            )
    if any(c.published is not None and c.mean is not None for c in cells):
        notes.append(BRACKETS)
    if any(_fewer(settings, c) for c in cells):
        notes.append(
            f"{FEWER}: over fewer training seeds than the {len(settings.training_seeds)} of this table, not "
            "comparable with the other cells; main.csv says what its mean and its standard error range over."
        )
    seeds = ", ".join(map(str, settings.sampling_seeds))
    notes.append(
        f"Sampling: {sampling_text(settings.sampling)}; sampling seeds {seeds}. {_training(settings)}"
    )
    differing = [label for label, hashes in _rows_by_test(cells).items() if len(hashes) > 1]
    if differing:
        notes.append(
            f"Not every teacher's block was tested on the same rows of {', '.join(differing)} (prompts too "
            "long in the block's tokenizer are dropped); compare within a block."
        )
    if any(c.mean is None or (c.judged is None and has_judge(settings, c)) for c in cells):
        notes.append(f"{DASH}: not evaluated.")
    return notes


def _definitions(settings: TableSettings) -> str:
    """What the numbers of the columns are."""
    if not settings.metrics:
        return "ROUGE-L F-measure × 100, best of the references; "
    used = dict.fromkeys(m for test in settings.tests for m in metrics_of(settings.metrics, test))
    rouge = ", ".join(METRIC_NAMES[metric] for metric in used if metric.startswith("rouge"))
    texts = [f"{rouge}: F-measure × 100, best of the references."] if rouge else []
    texts += [f"{METRIC_NAMES[metric]}: {text}." for metric, text in DEFINITIONS.items() if metric in used]
    return " ".join([*texts, "All: "])


def _words(cells: list[Cell]) -> list[str]:
    """What counts as a word, if it is not what the paper counts; test sets that hold text without any."""
    notes = []
    if any(c.tokenizer == "unicode" for c in cells):
        notes.append(
            "ROUGE-L counts words of all scripts (rouge.tokenizer: unicode), not only a-z and 0-9 as in the "
            "paper."
        )
    if sets := _without([c for c in cells if c.metric.startswith("rouge")]):
        notes.append(
            f"In {sets} no reference has a word that ROUGE-L's tokenizer knows: they score 0 whatever the "
            "response (docs/evaluation.md, rouge.tokenizer)."
        )
    if sets := _without([c for c in cells if c.metric == "numeric"]):
        notes.append(f"In {sets} no reference has a number: by numeric they score 0 whatever the response.")
    return notes


def _without(cells: list[Cell]) -> str:
    """The test sets with rows that nothing can answer, and how many these are."""
    rows = {c.test_label: (c.without_tokens, c.n) for c in cells if c.without_tokens}
    return ", ".join(f"{label} ({count} of {n} rows)" for label, (count, n) in rows.items())


def _leads(settings: TableSettings, cells: list[Cell]) -> list[str]:
    """What bold means; empty if there is nothing to compare."""
    groups = {(c.teacher, c.student, c.column) for c in cells if c.student and c.mean is not None}
    count = sum(c.student != "" and c.mean is not None for c in cells) - len(groups)
    if not count:
        return []
    how = "paired bootstrap over prompts, scores averaged over seeds"
    if any(c.student and c.training_seeds > 1 for c in cells):
        how = "Student's t of the paired difference, variances over prompts and over training seeds added"
    ahead, column = ("ahead", "column") if settings.metrics else ("ROUGE-L ahead", "test set")
    text = (
        f"Bold: {ahead} of every other method of that student and {column} ({how}, Holm's correction "
        f"over the table's {count} comparison{'s' * (count > 1)}, p ≤ {LEVEL:g})"
    )
    text += "." if "training" in how else "; it compares these models, not trainings."
    return [text if any(c.best for c in cells) else f"No cell is bold. {text}"]


def _training(settings: TableSettings) -> str:
    first, *more = settings.training_seeds
    if not more:
        return f"Training seed {first}."
    return f"Training seeds {', '.join(map(str, settings.training_seeds))}; teachers only {first}."


def _fewer(settings: TableSettings, cell: Cell) -> bool:
    """Whether a student's cell lacks training seeds (a teacher has only one by design)."""
    return cell.student != "" and 0 < cell.training_seeds < len(settings.training_seeds)


def _rows_by_test(cells: list[Cell]) -> dict[str, set[str]]:
    hashes: dict[str, set[str]] = {}
    for c in cells:
        if c.rows:
            hashes.setdefault(c.test_label, set()).add(c.rows)
    return hashes


def _ranges(settings: TableSettings, cells: list[Cell]) -> str:
    """What standard errors range over, by method; cells that lack training seeds are marked instead."""
    methods: dict[str, list[str]] = {}
    for c in cells:
        if c.mean is not None and not _fewer(settings, c):
            names = methods.setdefault(c.over if c.standard_error is not None else "", [])
            if c.method_label not in names:
                names.append(c.method_label)
    texts = [
        f"± standard error over {where}" if where else "no standard error from a single run"
        for where in methods
    ]
    if len(texts) == 1:
        return " " + texts[0] if next(iter(methods)) else "; " + texts[0]
    return "".join(
        f"; {text} ({', '.join(names)})" for text, names in zip(texts, methods.values(), strict=True)
    )


def headings(settings: TableSettings) -> list[str]:
    """Column headings: the metrics of each test set, preceded by its judge column if it has one."""
    heads = []
    for test in settings.tests:
        label = settings.test_labels.get(test, test)
        heads += [f"{label}, judge"] if test in settings.judged else []
        for metric in metrics_of(settings.metrics, test):
            heads.append(f"{label}, {METRIC_NAMES[metric]}" if settings.metrics else label)
    return heads


def texts(settings: TableSettings, cell: Cell) -> list[tuple[str, bool]]:
    """The text in each column of a cell, with the published number if any, and whether it is bold."""
    score = number(cell.mean, cell.standard_error) + FEWER * _fewer(settings, cell)
    paper = _published(cell.published, cell.published_status)
    shown = [(bracketed(score, cell.mean, paper), cell.best)]
    if has_judge(settings, cell):
        judged = number(cell.judged, cell.judged_error)
        paper = _published(cell.judged_published, cell.judged_published_status)
        shown.insert(0, (bracketed(judged, cell.judged, paper), False))
    return shown


def _published(value: float | None, status: str) -> Published | None:
    return None if value is None else Published(value, status, "")


@dataclass(frozen=True)
class _Block:
    """A teacher and its students, as texts."""

    # "n = 500" for each column; a dash for n if nothing was evaluated.
    counts: list[str]
    # Model label, method label, and for each column the text and whether it is bold.
    lines: list[tuple[str, str, list[tuple[str, bool]]]]


def _blocks(settings: TableSettings, cells: list[Cell]) -> list[_Block]:
    """One block per teacher."""
    blocks = []
    for teacher in dict.fromkeys(c.teacher for c in cells):
        block = [c for c in cells if c.teacher == teacher]
        counts = {c.column: c.n for c in block if c.n is not None}
        judged = {c.test: c.judged_n for c in block if c.judged_n is not None}
        lines: dict[tuple[str, str], list[Cell]] = {}
        for c in block:
            lines.setdefault((c.student, c.method), []).append(c)
        first = next(iter(lines.values()))
        column_counts = [
            f"n = {n}"
            for c in first
            for n in ([judged.get(c.test, DASH)] if has_judge(settings, c) else [])
            + [counts.get(c.column, DASH)]
        ]
        column_texts = [
            (
                line[0].student_label or line[0].teacher_label,
                line[0].method_label,
                [text for c in line for text in texts(settings, c)],
            )
            for line in lines.values()
        ]
        blocks.append(_Block(column_counts, column_texts))
    return blocks


def _markdown(settings: TableSettings, cells: list[Cell], notes: list[str]) -> str:
    lines = []
    for block in _blocks(settings, cells):
        heads = [
            f"{markdown(label)}<br>{n}" for label, n in zip(headings(settings), block.counts, strict=True)
        ]
        lines += [f"**Teacher: {markdown(block.lines[0][0])}**", ""]
        lines += ["| " + " | ".join(["Model", "Method", *heads]) + " |", "|:--|:--|" + "--:|" * len(heads)]
        for label, method, values in block.lines:
            shown = [f"**{text}**" if best else text for text, best in values]
            lines.append("| " + " | ".join([markdown(label), markdown(method), *shown]) + " |")
        lines.append("")
    return "\n".join(lines + ["  \n".join(map(markdown, notes)), ""])


def _latex(settings: TableSettings, cells: list[Cell], notes: list[str]) -> str:
    labels = headings(settings)
    blocks = _blocks(settings, cells)
    # If they differ, each block shows its own n.
    same_counts = all(block.counts == blocks[0].counts for block in blocks)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{ll{'r' * len(labels)}}}",
        r"\toprule",
        latex_row(["Model", "Method", *map(latex, labels)]),
        *([_latex_counts(blocks[0])] if same_counts else []),
    ]
    for block in blocks:
        lines += [r"\midrule", *([] if same_counts else [_latex_counts(block)])]
        before = ""
        for label, method, values in block.lines:
            if before and label != before:
                lines.append(r"\addlinespace")
            shown = latex(label) if label != before else ""
            columns = (bold(latex(text), best) for text, best in values)
            lines.append(latex_row([shown, latex(method), *columns]))
            before = label
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\smallskip", r"\parbox{\linewidth}{\footnotesize"]
    lines += [latex(note) for note in notes]
    return "\n".join(lines + ["}", r"\end{table}", ""])


def _latex_counts(block: _Block) -> str:
    counts = (f"${n}$" if DASH not in n else f"$n$ = {latex(DASH)}" for n in block.counts)
    return " & ".join(["", "", *counts]) + r" \\"
