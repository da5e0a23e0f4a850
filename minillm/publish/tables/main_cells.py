"""Cells of the main table: what was measured for each model on each test set; which leads are significant.

`collect_cells` turns metric files into cells; `write_csv` and `read_csv` store and load them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minillm.config.measurements.metrics import STAGE_OF, metrics_of
from minillm.config.stage_settings import TableSettings
from minillm.errors import UserError
from minillm.evaluation.statistics import (
    Part,
    bootstrap_error,
    bootstrap_mean,
    components,
    holm,
    mean_and_error,
    paired_bootstrap,
    part,
    pooled,
    t_interval,
    t_test,
)
from minillm.files import check_record, whole_file, without_unset
from minillm.publish.published_numbers import GPT4, Key, Published
from minillm.publish.results import MODEL, frame_of, over_training_seeds, read_json
from minillm.publish.run_models import MetricFile, declared, labels, main_table_asks, models
from minillm.publish.style import METHOD_NAMES
from minillm.publish.tables.sheet import table_of
from minillm.readers import all_are, is_a, read_object, read_text

# Keys of a metric file that count rows which nothing can answer.
WITHOUT = ("without_tokens", "without_number")
# Significance level of all comparisons of a table together.
LEVEL = 0.05


@dataclass(frozen=True)
class Cell:
    """One model on one test set by one metric; `mean` is None if there is no metric file."""

    teacher: str
    student: str  # empty for the teacher itself
    student_label: str
    teacher_label: str
    method: str
    method_label: str
    test: str
    test_label: str
    n: int | None = None
    rows: str = ""  # hash of the test rows' ids: cells with the same hash were tested on the same rows
    mean: float | None = None
    standard_error: float | None = None
    over: str = ""
    low: float | None = None  # 95% interval of the mean (`_interval`)
    high: float | None = None
    between_variance: float | None = None  # of training seeds
    within_variance: float | None = None  # of sampling seeds of one training seed
    best: bool = False  # leads every other method of its student significantly
    sources: str = ""
    published: float | None = None  # the paper's ROUGE-L
    published_status: str = ""  # verified or unverified
    # A real judge's score in percent, if the test set has such a column.
    judged: float | None = None
    judged_error: float | None = None
    judged_n: int | None = None
    judged_published: float | None = None  # the paper's GPT-4 score
    judged_published_status: str = ""
    exact_match: float | None = None  # percentage of responses that equal one of the references
    # Over training seeds if there are several, else over sampling seeds.
    exact_match_error: float | None = None
    # Only for the notes: rows whose references have no word (for numeric no number); how ROUGE counts words.
    without_tokens: int = 0
    tokenizer: str = ""
    metric: str = "rougeL"

    @property
    def column(self) -> str:
        """Test set, and metric if it is not ROUGE-L."""
        return self.test if self.metric == "rougeL" else f"{self.test}/{self.metric}"

    @property
    def training_seeds(self) -> int:
        """How many training seeds the mean is over."""
        return sum(f"metrics/{STAGE_OF[self.metric]}/" in source for source in self.sources.split(";"))


# "metric" is one only if a set has another one than ROUGE-L.
COLUMNS = [
    f.name for f in dataclasses.fields(Cell) if f.name not in ("without_tokens", "tokenizer", "metric")
]
NUMBERS = [
    *("mean", "standard_error", "low", "high", "between_variance", "within_variance", "published"),
    *("judged", "judged_error", "judged_published", "exact_match", "exact_match_error"),
]


def collect_cells(
    settings: TableSettings, run_folder: Path, paper: Mapping[Key, Published] | None = None
) -> list[Cell]:
    """All cells, pair by pair, from the metric files that the table declares and the published numbers.

    `run_folder`: results/<run>.  Raises UserError if a file is damaged, was made with other settings, or if a
    teacher and its students were tested on different rows.  Different teachers may be tested on different
    rows: which prompts are dropped as too long depends on the tokenizer, which only a pair shares.
    """
    contents = _read_contents(settings, run_folder)
    frame = frame_of(run_folder, contents.items())
    rows_of = dict(iter(frame.groupby([*MODEL, "test_set"], sort=False)))
    answers: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for file, content in contents.items():
        whose = (file.teacher, file.student, file.method, file.test_set, file.kind)
        answers.setdefault(whose, []).append(content)
    names = labels(settings)
    cells, scores, trainings = [], [], []
    for teacher, student, method in models(settings):
        label = METHOD_NAMES.get(method) or settings.method_labels[method]
        for test in settings.tests:
            key = (teacher, student, method, test)
            who = (teacher, student, names.get(student, ""), names[teacher], method, label)
            rows = rows_of.get(key, frame[:0])
            for metric in metrics_of(settings.metrics, test):
                cell = Cell(*who, test, settings.test_labels.get(test, test), metric=metric)
                cell = _with_paper(cell, settings, paper or {})
                files = answers.get((*key, STAGE_OF[metric]), [])
                cell, prompt_scores, training = _with_scores(cell, rows, files)
                cells.append(_with_judge(cell, rows) if has_judge(settings, cell) else cell)
                scores.append(prompt_scores)
                trainings.append(training)
    groups = [(cell.teacher, cell.student, cell.column) for cell in cells]
    best = significant_leads(groups, cells, scores, trainings)
    return [dataclasses.replace(cell, best=i in best) for i, cell in enumerate(cells)]


def has_judge(settings: TableSettings, cell: Cell) -> bool:
    """Whether the judge's column of a test set stands before this cell: before its first metric."""
    return cell.test in settings.judged and cell.metric == metrics_of(settings.metrics, cell.test)[0]


def _read_contents(settings: TableSettings, run_folder: Path) -> dict[MetricFile, dict[str, Any]]:
    """The declared metric files that exist; the sets' metrics are checked, and share a teacher's rows."""
    contents: dict[MetricFile, dict[str, Any]] = {}
    first: dict[tuple[str, str], MetricFile] = {}
    for file in declared(settings, main_table_asks(settings)):
        path = run_folder / file.path
        if file.kind != "judge" and path.exists():
            contents[file] = _read_scores(path, settings, file.test_set)
            reference = first.setdefault((file.teacher, file.test_set), file)
            if contents[file]["ids"] != contents[reference]["ids"]:
                where = run_folder / reference.path
                raise UserError(f"{path}: its rows are not those of {where}; generate and score both again")
        elif (content := read_json(path)) is not None:
            contents[file] = content
    return contents


def _with_scores(
    cell: Cell, rows: pd.DataFrame, answers: Sequence[Mapping[str, Any]]
) -> tuple[Cell, list[float], Part | None]:
    """The cell with its value; its mean score over seeds on each prompt; the training seeds' variance.

    `rows`: the cell's rows of the frame.  `answers`: its metric files, which have one score per prompt.
    """
    values = rows[(rows["metric"] == STAGE_OF[cell.metric]) & rows["sampling_seed"].notna()]
    if values.empty or not answers:
        return cell, [], None
    seeds = {
        int(seed): dict(zip(seed_rows["sampling_seed"], seed_rows["value"].tolist(), strict=True))
        for seed, seed_rows in values.groupby("training_seed", sort=False)
    }
    ids = answers[0]["ids"]
    seed_scores = [each for content in answers for each in content["scores"].values()]
    scores = [math.fsum(column) / len(column) for column in zip(*seed_scores, strict=True)]
    training = part([math.fsum(each.values()) / len(each) for each in seeds.values()])
    mean, error, over = pooled(seeds)
    # A single run.
    if error is None and len(scores) > 1:
        error = _error_over_prompts(scores)
        over = f"prompts (bootstrap), {over}"
    exact = rows[(rows["metric"] == "exact_match") & rows["sampling_seed"].isna()]
    exact_match, exact_match_error = over_training_seeds(exact) or (None, None)
    variances = components(seeds)
    name = "/".join((cell.teacher, cell.student, cell.method, cell.column))
    low, high = _interval(mean, scores, training, name)
    cell = dataclasses.replace(
        cell,
        n=len(ids),
        rows=hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8],
        mean=mean,
        standard_error=error,
        over=over,
        low=low,
        high=high,
        between_variance=variances.between,
        within_variance=variances.within,
        exact_match=exact_match if cell.metric == "rougeL" else None,
        exact_match_error=exact_match_error if cell.metric == "rougeL" else None,
        sources=";".join(values["source"].unique()),
        without_tokens=next((answers[0][key]["count"] for key in WITHOUT if key in answers[0]), 0),
        tokenizer=answers[0].get("tokenizer", ""),
    )
    return cell, scores, training


def _error_over_prompts(scores: Sequence[float]) -> float | None:
    values = np.array(scores)
    return bootstrap_error(lambda chosen: float(values[chosen].mean()), len(values))


def _interval(
    mean: float, scores: Sequence[float], training: Part | None, name: str
) -> tuple[float | None, float | None]:
    """95% interval of a mean: percentile bootstrap over prompts; Student's t with several training seeds.

    The latter adds the variances over prompts and over training seeds, which makes it a little too wide:
    their interaction is in both.
    """
    prompts = part(scores)
    if training is None or prompts is None:
        return bootstrap_mean(scores, name) or (None, None)
    return t_interval(mean, [prompts, training])


def _with_paper(cell: Cell, settings: TableSettings, paper: Mapping[Key, Published]) -> Cell:
    """The cell with the paper's numbers for it, from Table 1 or 6."""
    names = (cell.student or cell.teacher, cell.teacher)
    model, teacher = (settings.labels.get(name, name) for name in names)
    changes: dict[str, Any] = {}
    shown = {"published": "rougeL"} if cell.metric == "rougeL" else {}
    shown |= {"judged_published": "gpt4"} if has_judge(settings, cell) or not settings.metrics else {}
    for column, metric in shown.items():
        keys = [(table, model, teacher, cell.method_label, cell.test, metric) for table in ("1", "6")]
        number = next((paper[key] for key in keys if key in paper), None)
        if number and (metric == "rougeL" or GPT4.fullmatch(settings.judge)):
            changes |= {column: number.value, f"{column}_status": number.status}
    return dataclasses.replace(cell, **changes)


def _with_judge(cell: Cell, rows: pd.DataFrame) -> Cell:
    """The cell with a real judge's score, over training seeds that have one; `rows` as in `_with_scores`."""
    judge = rows[rows["metric"] == "judge"]
    if judge.empty or (rows["metric"] == "judge_stand_in").any():
        return cell
    mean, error = over_training_seeds(judge) or (None, None)
    sources = ";".join(filter(None, [cell.sources, *judge["source"]]))
    n = int(judge["n"].iloc[0])
    return dataclasses.replace(cell, judged=mean, judged_error=error, judged_n=n, sources=sources)


def significant_leads(
    groups: Sequence[tuple[str, str, str]],
    cells: Sequence[Cell],
    scores: Sequence[Sequence[float]],
    trainings: Sequence[Part | None],
) -> set[int]:
    """Indices of the cells whose lead over every other student method of their group is significant.

    groups: (teacher, student, test) of each cell.  scores: one per prompt.  trainings: the training seeds'
    part of the variance of a cell's mean, if there are several.

    In each group of students' cells the highest mean is compared with each of the others (`_p`), with Holm's
    correction over the comparisons of the whole table.  Cells over fewer training seeds are compared like the
    rest.
    """
    by_group: dict[tuple[str, str, str], list[int]] = {}
    for i, (group, cell) in enumerate(zip(groups, cells, strict=True)):
        if cell.student and cell.mean is not None and len(scores[i]) > 1:
            by_group.setdefault(group, []).append(i)
    pairs = []
    for members in by_group.values():
        leader = max(members, key=lambda i: math.fsum(scores[i]))
        pairs += [(leader, rival) for rival in members if rival != leader]
    names = ["/".join((*groups[a], cells[a].method, cells[b].method)) for a, b in pairs]
    p = [
        _p(scores[a], scores[b], [training for training in (trainings[a], trainings[b]) if training], name)
        for (a, b), name in zip(pairs, names, strict=True)
    ]
    leads: dict[int, bool] = {}
    for (leader, _), value in zip(pairs, holm(p), strict=True):
        leads[leader] = leads.get(leader, True) and value <= LEVEL
    return {leader for leader, lead in leads.items() if lead}


def _p(first: Sequence[float], second: Sequence[float], trainings: Sequence[Part], name: str) -> float:
    """Two-sided p of the difference of two methods on the same prompts.

    Paired bootstrap, or with `trainings` Student's t, the variances over prompts and training seeds added.
    """
    if not trainings:
        return paired_bootstrap(first, second, name).p
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, _ = mean_and_error(differences)
    prompts = part(differences)
    return t_test(mean, [*trainings, *([prompts] if prompts else [])])


def write_csv(cells: list[Cell], path: Path) -> None:
    """Long form, one line per cell; numbers at full precision, empty if missing."""
    columns = COLUMNS + ["metric"] * any(cell.metric != "rougeL" for cell in cells)
    with whole_file(path) as partial:
        table_of([dataclasses.asdict(cell) for cell in cells], columns).to_csv(partial, index=False)


def read_csv(path: Path) -> list[Cell]:
    """The cells that `write_csv` wrote.  Raises UserError, one line naming file and line."""
    text = read_text(path, "no such table; make it first", "make the table again")
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except ValueError as error:
        raise UserError(f"{path}: {error}; make the table again") from None
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise UserError(f"{path}:1: no column '{missing[0]}'; make the table again")
    if frame.empty:
        raise UserError(f"{path}: no rows; make the table again")
    cells = []
    for line, row in enumerate(frame.to_dict("records"), start=2):
        try:
            cells.append(_cell(row))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{line}: {error}; make the table again") from None
    return cells


def _cell(row: Mapping[Any, Any]) -> Cell:
    values = {key: float(row[key]) if row[key] else None for key in NUMBERS}
    counts = {key: int(row[key]) if row[key] else None for key in ("n", "judged_n")}
    return Cell(**{**row, **values, **counts, "best": row["best"] == "True"})


def _read_scores(path: Path, settings: TableSettings, test: str) -> dict[str, Any]:
    """A metric file, checked against the settings: a table must not mix responses sampled differently."""
    keys = {"dataset": str, "ids": list, "per_seed": dict, "scores": dict, "sampling": dict}
    metric = read_object(
        path, keys, "no such metric file; score the generations", "remove it and score again"
    )
    check_record(metric, path, "remove it and score again")
    numbers = (int, float)
    if not metric["ids"] or not all(is_a(value, numbers) for value in metric["per_seed"].values()):
        raise UserError(f"{path}: no rows, or a score that is not a number; remove it and score again")
    if not all(
        all_are(scores, numbers) and len(scores) == len(metric["ids"]) for scores in metric["scores"].values()
    ):
        raise UserError(f"{path}: not every row has a score; remove it and score again")
    for key in WITHOUT:
        without = metric.get(key, {"count": 0})
        if not isinstance(without, dict) or not is_a(without.get("count"), int):
            raise UserError(f"{path}: '{key}' is of the wrong type; remove it and score again")
    if metric["dataset"] != test:
        problem = f"is for the test set '{metric['dataset']}', not '{test}'; remove it and score again"
        raise UserError(f"{path}: {problem}")
    seeds = sorted(str(seed) for seed in settings.sampling_seeds)
    if sorted(metric["per_seed"]) != seeds:
        problem = f"sampling seeds {', '.join(metric['per_seed'])}, but the table has {', '.join(seeds)}"
        raise UserError(f"{path}: {problem}; generate again")
    if without_unset(metric["sampling"]) != without_unset(dataclasses.asdict(settings.sampling)):
        problem = f"sampled with {metric['sampling']}, not with the table's settings; generate again"
        raise UserError(f"{path}: {problem}")
    return metric
