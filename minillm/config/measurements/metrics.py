"""Metrics of test sets: which there are, and which a set asks for; the settings of `rouge1` and `rouge2`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, must_be_one_of
from minillm.errors import UserError

Metric = Literal["rouge1", "rouge2", "rougeL", "exact_match", "numeric", "choice"]
Metrics = Annotated[tuple[Metric, ...], Field(min_length=1)]
# Metric -> the stage that computes it, which is also the folder of its files and its name in metrics.csv.
STAGE_OF: dict[str, str] = {
    "rouge1": "rouge1",
    "rouge2": "rouge2",
    "rougeL": "rouge",
    "exact_match": "exact_match",
    "numeric": "numeric",
    "choice": "choice",
}
# Of a set that asks for nothing.
DEFAULT = ("rougeL",)


def metrics_of(metrics: Mapping[str, tuple[str, ...]] | None, test: str) -> tuple[str, ...]:
    """The metrics of a test set, in the order of its columns; `metrics`: those that sets ask for."""
    return (metrics or {}).get(test, DEFAULT)


def sets_by_metric(config: Any) -> dict[str, tuple[str, ...]]:
    """Metric -> the test sets of `config` that have it."""
    tests = config.data.tests
    return {m: tuple(t for t in tests if m in metrics_of(config.metrics, t)) for m in STAGE_OF}


def check_metrics(config: Any, where: str) -> None:
    """Raises UserError, one line naming `where` and the key, for what the types do not say."""
    for test, metrics in config.metrics.items():
        must_be_one_of(test, config.data.tests, where, f"metrics.{test}", "data.tests")
        if "choice" in metrics and "options" not in config.datasets[test].fields:
            raise UserError(
                f"{where}: metrics.{test}: choice needs the options of each question; name their column in "
                f"datasets.{test}.fields, as options"
            )


@dataclass(frozen=True, config=STRICT)
class RougeNSettings:
    """`rouge1`, `rouge2`: how words are counted."""

    stage: Literal["rouge1", "rouge2"]
    tokenizer: Literal["rouge_score", "unicode"]

    @classmethod
    def of(cls, config: Any, stage: str) -> RougeNSettings:
        """The settings in `config` for ROUGE-1 or ROUGE-2."""
        return cls(stage=stage, tokenizer=config.rouge.tokenizer)  # type: ignore[arg-type]
