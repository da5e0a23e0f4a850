"""Exposure bias (docs/evaluation.md): the section, and the settings of `samples` and `exposure_bias`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.sampling import Backend, Sampling
from minillm.config.sections import Precision
from minillm.config.strict import STRICT, Count, Name, Natural, Seed, must_be_one_of
from minillm.errors import UserError


@dataclass(frozen=True, config=STRICT)
class ExposureBias:
    """ExAccErr: excess error that accumulates on a student's own prefixes (docs/evaluation.md, Figure 6)."""

    tests: tuple[Name, ...] = Field(
        default=(),
        description="Test sets to measure; empty measures nothing. The paper: DollyEval.",
    )
    prompts: Natural = Field(
        default=0,
        description="Size of a random subset of each test set's prompts, drawn with `seed`; 0: all.",
    )
    responses: Count = Field(
        default=10,
        description="Responses of student and teacher to each prompt. The paper: 10 (D22 in docs/method.md).",
    )
    max_tokens: Count = Field(default=256, description="Longest response, in tokens, EOS included.")
    backend: Backend = Field(
        default="transformers",
        description="Which program draws the responses, as in `generate`.",
    )
    finished: Literal["alive", "zero"] = Field(
        default="alive",
        description="The mean at a position is over the responses that reach it (`alive`), or over all of "
        "them, those that have ended counting 0 (`zero`).",
    )
    semantics: Literal["paper", "released"] = Field(
        default="paper",
        description="`paper`: from the first token on, samples without filters. `released`: as the published "
        "script computes it, from the second token on, with its 6-gram block (D23).",
    )
    resamples: Count = Field(
        default=1000,
        description="Bootstrap resamples over prompts, for the error band.",
    )
    level: float = Field(default=0.95, gt=0, lt=1, description="Confidence level of the band.")
    seed: Seed = Field(default=0, description="Seed of the prompts, the samples and the bootstrap.")

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        for test in self.tests:
            must_be_one_of(test, config.data.tests, where, "exposure_bias.tests", "data.tests")
        if self.backend == "vllm" and self.semantics == "released":
            raise UserError(
                f"{where}: exposure_bias.backend: vLLM has no 6-gram block, which semantics: released needs"
            )


@dataclass(frozen=True, config=STRICT)
class SamplesSettings:
    """`samples`: a teacher's responses to a test set, `responses` per prompt, for each student's ExAccErr."""

    stage: Literal["samples"]
    prompts: Natural
    responses: Count
    seed: Seed
    precision: Precision
    sampling: Sampling

    @classmethod
    def of(cls, config: Any, stage: str) -> SamplesSettings:
        """The settings in `config` for a teacher's samples."""
        section = config.exposure_bias
        # The published script samples as it does everywhere else at test time (D23).
        ngram = 6 if section.semantics == "released" else 0
        return cls(
            stage="samples",
            prompts=section.prompts,
            responses=section.responses,
            seed=section.seed,
            precision=config.precision,
            sampling=Sampling(no_repeat_ngram=ngram, max_tokens=section.max_tokens, backend=section.backend),
        )


@dataclass(frozen=True, config=STRICT)
class ExposureBiasSettings:
    """`exposure_bias`: ExAccErr of one student under one teacher; `samples`: how the teacher was sampled."""

    stage: Literal["exposure_bias"]
    samples: SamplesSettings
    finished: Literal["alive", "zero"]
    semantics: Literal["paper", "released"]
    resamples: Count
    level: Annotated[float, Field(gt=0, lt=1)]

    @classmethod
    def of(cls, config: Any, stage: str) -> ExposureBiasSettings:
        """The settings in `config` for ExAccErr."""
        section = config.exposure_bias
        return cls(
            stage="exposure_bias",
            samples=SamplesSettings.of(config, "samples"),
            finished=section.finished,
            semantics=section.semantics,
            resamples=section.resamples,
            level=section.level,
        )
