"""Diversity of the responses: the section, and the settings of `diversity` and `reference_loss`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.sections import Precision
from minillm.config.strict import STRICT, Count, Name, must_be_one_of


@dataclass(frozen=True, config=STRICT)
class Diversity:
    """Distinct n-grams of the responses, and the model's loss on the references (Tables 3 and 5)."""

    tests: tuple[Name, ...] = Field(
        default=(),
        description="Test sets to measure; empty measures nothing. The paper: DollyEval and SelfInst.",
    )
    ngram: Count = Field(default=4, description="Length n of the n-grams of Dist-n. The paper: 4.")
    unit: Literal["tokens", "words"] = Field(
        default="tokens",
        description="What n-grams consist of: the model's tokens, or words (what white space separates). The "
        "paper does not say which.",
    )
    loss: Literal["tokens", "released"] = Field(
        default="tokens",
        description="`tokens`: mean over all tokens of the references, their EOS included. `released`: as "
        "the published script computes it, whose values Table 3 of the paper has (D21).",
    )

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        for test in self.tests:
            must_be_one_of(test, config.data.tests, where, "diversity.tests", "data.tests")


@dataclass(frozen=True, config=STRICT)
class DiversitySettings:
    """`diversity`: which n-grams are counted."""

    stage: Literal["diversity"]
    ngram: Count
    unit: Literal["tokens", "words"]

    @classmethod
    def of(cls, config: Any, stage: str) -> DiversitySettings:
        """The settings in `config` for distinct n-grams."""
        return cls(stage="diversity", ngram=config.diversity.ngram, unit=config.diversity.unit)


@dataclass(frozen=True, config=STRICT)
class ReferenceLossSettings:
    """`reference_loss`: how the loss on the references is taken; they are cut to `max_response` tokens."""

    stage: Literal["reference_loss"]
    loss: Literal["tokens", "released"]
    max_response: Count
    precision: Precision

    @classmethod
    def of(cls, config: Any, stage: str) -> ReferenceLossSettings:
        """The settings in `config` for the loss on the references."""
        return cls(
            stage="reference_loss",
            loss=config.diversity.loss,
            max_response=config.data.max_response,
            precision=config.precision,
        )
