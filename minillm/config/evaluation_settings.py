"""What each stage that measures something beside ROUGE-L depends on, and nothing else (settings.py has the other stages)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.evaluation_sections import ClassificationTask, Edges, Judge, Subsets
from minillm.config.sections import Dataset, Precision, Sampling
from minillm.config.strict import STRICT, Count, Natural


@dataclass(frozen=True, config=STRICT)
class SamplesSettings:
    """`samples`: a teacher's responses to a test set, `responses` a prompt, for every student's exposure bias."""

    stage: Literal["samples"]
    prompts: Natural
    responses: Count
    seed: Natural
    precision: Precision
    sampling: Sampling


@dataclass(frozen=True, config=STRICT)
class ExposureBiasSettings:
    """`exposure_bias`: ExAccErr of one student under one teacher; `samples` is what the teacher's samples were drawn with."""

    stage: Literal["exposure_bias"]
    samples: SamplesSettings
    finished: Literal["alive", "zero"]
    semantics: Literal["paper", "released"]
    resamples: Count
    level: Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class SubsetsSettings:
    """`subsets`: where the rows come from."""

    stage: Literal["subsets"]
    rows: Subsets


@dataclass(frozen=True, config=STRICT)
class LengthsSettings:
    """`lengths`: where the buckets of one test set end."""

    stage: Literal["lengths"]
    edges: Edges


@dataclass(frozen=True, config=STRICT)
class DiversitySettings:
    """`diversity`: which n-grams are counted."""

    stage: Literal["diversity"]
    ngram: Count
    unit: Literal["tokens", "words"]


@dataclass(frozen=True, config=STRICT)
class ReferenceLossSettings:
    """`reference_loss`: how the loss on the references is taken; they are cut to `max_response` tokens."""

    stage: Literal["reference_loss"]
    loss: Literal["tokens", "released"]
    max_response: Count
    precision: Precision


@dataclass(frozen=True, config=STRICT)
class CalibrationSettings:
    """`calibration`: one classification task, for every model."""

    stage: Literal["calibration"]
    name: str
    task: ClassificationTask
    dataset: Dataset
    template: str
    bins: Count
    max_prompt: int
    seed: int
    precision: Precision


@dataclass(frozen=True, config=STRICT)
class JudgeSettings:
    """`judge`: who judges, and which rows."""

    stage: Literal["judge"]
    judge: Judge
    precision: Precision


@dataclass(frozen=True, config=STRICT)
class HumanSettings:
    """`human`: which prompts are compared, and the order in which they are shown; not the answers."""

    stage: Literal["human"]
    prompts: Count = 50
    seed: int = 10
