"""A run's measurements as one tidy pandas frame, a row per number, from the metric files that a job declares.

Every number in a table or figure comes from here, except for curves and scores of single prompts;
docs/metrics.md lists the columns and the names of the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from minillm import readers
from minillm.errors import UserError
from minillm.evaluation.records import check_scores
from minillm.evaluation.statistics import mean_and_error
from minillm.files import check_record
from minillm.publish.run_models import MetricFile, method_of

MODEL = ["teacher", "student", "method"]
COLUMNS = [*MODEL, "training_seed", "sampling_seed", "test_set", "metric", "value", "error", "n", "source"]
AGAIN = "remove it and make it again"
# A mean and its standard error; None if nothing was repeated.
Value = tuple[float, float | None]


class Measured(NamedTuple):
    """One number of a metric file; `sampling_seed` is None if it is over all of them."""

    metric: str
    value: float | None
    error: float | None = None
    n: int | None = None
    sampling_seed: int | None = None
    # If one file holds several sets; empty is the file's.
    test_set: str = ""


def read_text(path: Path) -> str | None:
    """A file's text; None if there is no such file.  Raises UserError if it is not UTF-8."""
    return readers.read_text(path, again=AGAIN) if path.exists() else None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file.  Raises UserError if it is damaged."""
    if not path.exists():
        return None
    content = readers.read_object(path, {}, "", AGAIN)
    check_record(content, path, AGAIN)
    return content


def read_frame(run_folder: Path, files: Iterable[MetricFile]) -> pd.DataFrame:
    """The frame of those `files` that exist.  Raises UserError, one line, if one is damaged."""
    contents = ((file, read_json(run_folder / file.path)) for file in files)
    return frame_of(run_folder, ((file, content) for file, content in contents if content is not None))


def frame_of(run_folder: Path, contents: Iterable[tuple[MetricFile, Mapping[str, Any]]]) -> pd.DataFrame:
    """Columns `COLUMNS`, a row per number, in the order of `contents` (metric files and their JSON objects).

    `error` is NaN and `n` missing if the file has none; `sampling_seed` is missing if a value is over all of
    them.
    """
    rows = []
    for file, content in contents:
        model = (file.teacher, file.student, file.method, file.training_seed)
        with damage(run_folder / file.path):
            for number in FLATTEN.get(file.kind, _mean)(file.kind, content):
                if number.value is not None and math.isfinite(number.value):
                    _check_types(number)
                    where = (number.sampling_seed, number.test_set or file.test_set, number.metric)
                    error = math.nan if number.error is None else float(number.error)
                    rows.append((*model, *where, float(number.value), error, number.n, file.path))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    integers = {"training_seed": "int64", "sampling_seed": "Int64", "n": "Int64"}
    frame = frame.astype(integers | {"value": "float64", "error": "float64"})
    # ROUGE-L's files have the same number.
    twice = frame.duplicated(COLUMNS[:7]) & (frame["metric"] == "exact_match")
    return frame[~twice] if twice.any() else frame


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """UserError naming the file if what the block reads of its JSON is missing or of the wrong type."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: damaged: {error!r}; {AGAIN}") from None


def _check_types(number: Measured) -> None:
    """TypeError for a float where a count is meant, a text or bool for a number, and what is over 64 bits."""
    for name, kind in (("value", (int, float)), ("error", (int, float)), ("n", int), ("sampling_seed", int)):
        value = getattr(number, name)
        # An error may be infinite, or NaN.
        if value is not None and not isinstance(value, float) and not readers.is_a(value, kind):
            raise TypeError(f"{name} of {number.metric}: {value!r}")
        if isinstance(value, float) and kind is int:
            raise TypeError(f"{name} of {number.metric}: {value!r} is not an integer")


def seeds_pooled(values: Sequence[float], errors: Sequence[float | None]) -> Value | None:
    """Mean and standard error over several training seeds; for a single one, its value and its own error."""
    if not values:
        return None
    if len(values) > 1:
        return mean_and_error(values)
    error = errors[0]
    return values[0], None if error is None or math.isnan(error) else error


def over_training_seeds(rows: pd.DataFrame) -> Value | None:
    """The same for rows of the frame, one per training seed."""
    return seeds_pooled(rows["value"].tolist(), rows["error"].tolist())


def over_sets(rows: pd.DataFrame, names: Sequence[str]) -> Value | None:
    """Unweighted mean over the sets `names` for each training seed that has them all, then over those seeds.

    The sets' errors are treated as independent.
    """
    seeds = []
    for _, seed_rows in rows.groupby("training_seed", sort=False):
        sets = seed_rows.set_index("test_set").reindex(list(names))
        if len(sets) and sets["value"].notna().all():
            errors = sets["error"]
            error = math.sqrt(math.fsum(errors**2)) / len(sets) if errors.notna().all() else None
            seeds.append((math.fsum(sets["value"]) / len(sets), error))
    return seeds_pooled([value for value, _ in seeds], [error for _, error in seeds])


# --- from a metric file to its numbers
def _mean(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """What every kind may have: `mean`, `standard_error`, `n`, `per_seed` (sampling seed -> number)."""
    n = content.get("n")
    yield Measured(kind, content.get("mean"), content.get("standard_error"), n)
    for seed, value in (content.get("per_seed") or {}).items():
        if value is None or isinstance(value, int | float):
            yield Measured(kind, value, None, n, int(seed))


def _rouge(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    yield from _scores(kind, content)
    n = content.get("n")
    yield Measured("exact_match", content.get("exact_match"), content.get("exact_match_error"), n)


def _scores(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    check_scores(content)
    yield from _mean(kind, content)


def _choice(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """The share of right choices, and that of responses without a choice, in percent."""
    yield from _scores(kind, content)
    share = 100 * content["unanswered"] / content["responses"]
    yield Measured(f"{kind}_unanswered", share, None, content.get("n"))


def _harness(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """Every number as lm-eval gives it: `harness_acc`; with its filter, if it is not the plain one."""
    for entry in content["results"]:
        filtered = "" if entry["filter"] == "none" else f"_{entry['filter']}"
        name = f"{kind}_{entry['metric']}{filtered}"
        yield Measured(name, entry["value"], entry["error"], entry["n"], None, entry["task"])


def _judge(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """Scores of the stand-in judge have a separate name: they never appear in a table."""
    return _mean(kind if content.get("stand_in") is False else f"{kind}_stand_in", content)


def _calibration(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    flat = calibration_of(content)
    for name in ("ece", "ece_raw", "accuracy"):
        yield Measured(name, flat[name], flat[f"{name}_error"], content.get("n"))


def _diversity(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """Each value per sampling seed, and over the seeds that have it; `dist<n>` and the shares in percent."""
    names: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
        f"dist{content['ngram']}": _distinct_percent,
        "distinct": lambda seed: seed["distinct"],
        "total": lambda seed: seed["total"],
        "repetition": lambda seed: seed.get("repetition"),
        "response_tokens": lambda seed: seed.get("response_tokens"),
        "finished": lambda seed: seed.get("finished"),
    }
    n = content.get("n")
    seeds = {int(seed): {**values, **ngram_counts(values)} for seed, values in content["per_seed"].items()}
    for name, value_of in names.items():
        scale = 100.0 if name in ("repetition", "finished") else 1.0
        values = {seed: value for seed, counts in seeds.items() if (value := value_of(counts)) is not None}
        if values:
            mean, error = mean_and_error(values.values())
            yield Measured(name, mean * scale, error and error * scale, n)
        yield from (Measured(name, value * scale, None, n, seed) for seed, value in values.items())


def _distinct_percent(seed: Mapping[str, Any]) -> float | None:
    return 100 * seed["distinct"] / seed["total"] if seed["total"] else None


def _reference_loss(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """The loss that the published script prints is a different one, so it has a different name."""
    yield from _mean(f"{kind}_released" if content.get("loss") == "released" else kind, content)
    yield Measured("reference_tokens", content.get("reference_tokens"), None, content.get("n"))


def _lengths(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """ROUGE-L of each bucket of reference lengths: `lengths_0_5`, `lengths_11_`."""
    for bucket in content["buckets"]:
        end = "" if bucket["high"] is None else bucket["high"]
        yield from _mean(f"{kind}_{bucket['low']}_{end}", bucket)


def _human(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """Shares of the judgements, in percent: `human_win_sft`, `human_tie_sft`, `human_loss_sft`."""
    for comparison in content["comparisons"]:
        for outcome in ("win", "tie", "loss"):
            name = f"{kind}_{outcome}_{method_of(comparison['against'])}"
            yield Measured(name, comparison[outcome]["share"], None, comparison["n"])


def _validity(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """Precision, coverage, and the share of each other verdict, in percent: `validity_wrong_fact`."""
    yield from _mean(kind, content)
    n = content.get("n")
    for name in ("coverage", "coverage_uniform"):
        yield Measured(f"{kind}_{name}", content[name], content.get(f"{name}_error"), n)
    for verdict, count in content["verdicts"].items():
        if verdict != "right":
            yield Measured(f"{kind}_{verdict.replace(' ', '_')}", 100 * count / content["responses"], None, n)


def _mode_mass(kind: str, content: Mapping[str, Any]) -> Iterator[Measured]:
    """The mass of the right answers, the coverage expected of it, and their effective number."""
    yield from _mean(kind, content)
    for name in ("coverage", "forms"):
        yield Measured(f"{kind}_{name}", content[name], content[f"{name}_error"], content.get("n"))


FLATTEN: dict[str, Callable[[str, Mapping[str, Any]], Iterator[Measured]]] = {
    "rouge": _rouge,
    **dict.fromkeys(("rouge1", "rouge2", "exact_match", "numeric"), _scores),
    "choice": _choice,
    "harness": _harness,
    "judge": _judge,
    "calibration": _calibration,
    "diversity": _diversity,
    "reference_loss": _reference_loss,
    "lengths": _lengths,
    "validity": _validity,
    "mode_mass": _mode_mass,
    "human": _human,
}


def calibration_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration metric, flattened: accuracy, ece (normalised) and ece_raw, each with its error; bins.

    Each bin has its edges as `low` and `high`.
    """
    if "normalised" not in content:
        return dict(content)
    bins = [{**b, "low": b["from"], "high": b["to"]} for b in content["normalised"]["bins"]]
    flat = {**content, "bins": bins}
    for key, part in (("ece", "normalised"), ("ece_raw", "raw")):
        flat |= {key: content[part]["ece"], f"{key}_error": content[part]["standard_error"]}
    accuracy = content["accuracy"]
    return flat | {"accuracy": accuracy["mean"], "accuracy_error": accuracy["standard_error"]}


def ngram_counts(values: Mapping[str, Any]) -> dict[str, int]:
    """The counts of all and of distinct n-grams of one sampling seed (N and C in older files)."""
    names = ("total", "distinct") if "total" in values else ("N", "C")
    return dict(zip(("total", "distinct"), (values[name] for name in names), strict=True))
