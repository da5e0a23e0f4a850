"""What each stage that measures something beside ROUGE-L depends on, and nothing else (settings.py has the other stages)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.analyses import Edges, Judge, Task
from minillm.config import Dataset, Experiment, Precision, Sampling
from minillm.strict import STRICT, Count, Natural


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
    task: Task
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


def _samples_settings(config: Experiment) -> SamplesSettings:
    section = config.exposure_bias
    # The published script samples as it does everywhere at test time (D23).
    ngram = 6 if section.semantics == "released" else 0
    return SamplesSettings(
        stage="samples",
        prompts=section.prompts,
        responses=section.responses,
        seed=section.seed,
        precision=config.precision,
        sampling=Sampling(no_repeat_ngram=ngram, max_tokens=section.max_tokens),
    )


def analysis_settings(config: Experiment, stage: str, test: str) -> Any:
    """Settings of what is measured beside ROUGE-L.  Raises ValueError for any other stage."""
    if stage == "samples":
        return _samples_settings(config)
    if stage == "exposure_bias":
        section = config.exposure_bias
        return ExposureBiasSettings(
            stage="exposure_bias",
            samples=_samples_settings(config),
            finished=section.finished,
            semantics=section.semantics,
            resamples=section.resamples,
            level=section.level,
        )
    if stage == "lengths":
        return LengthsSettings(stage="lengths", edges=config.lengths.per_test.get(test, config.lengths.edges))
    if stage == "diversity":
        return DiversitySettings(stage="diversity", ngram=config.diversity.ngram, unit=config.diversity.unit)
    if stage == "reference_loss":
        return ReferenceLossSettings(
            stage="reference_loss",
            loss=config.diversity.loss,
            max_response=config.data.max_response,
            precision=config.precision,
        )
    if stage == "calibration":
        return _calibration_settings(config, test)
    if stage == "judge":
        return JudgeSettings(stage="judge", judge=config.judge, precision=config.precision)
    if stage == "human":
        return HumanSettings(stage="human", prompts=config.human.prompts, seed=config.human.seed)
    raise ValueError(stage)


def _calibration_settings(config: Experiment, name: str) -> CalibrationSettings:
    task = config.calibration.tasks[name]
    return CalibrationSettings(
        stage="calibration",
        name=name,
        task=task,
        dataset=config.datasets[task.dataset],
        template=config.data.template,
        bins=config.calibration.bins,
        max_prompt=config.calibration.max_prompt,
        seed=config.data.seed,
        precision=config.precision,
    )
