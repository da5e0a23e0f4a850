"""Right answers where all of them are known: the section, and the settings of `mode_mass`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.sections import Precision
from minillm.config.strict import STRICT, Count, Name, must_be_one_of


@dataclass(frozen=True, config=STRICT)
class Validity:
    """Precision, coverage and probability of the right answers (table and figure `modes`)."""

    tests: tuple[Name, ...] = Field(
        default=(),
        description="Test sets to measure, whose references must be all right answers of a prompt, as those "
        "of the embedded corpus are; empty measures nothing.",
    )

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        for test in self.tests:
            must_be_one_of(test, config.data.tests, where, "validity.tests", "data.tests")


@dataclass(frozen=True, config=STRICT)
class ModeMassSettings:
    """`mode_mass`: `draws` is the number of responses that the expected coverage is for."""

    stage: Literal["mode_mass"]
    draws: Count
    precision: Precision

    @classmethod
    def of(cls, config: Any, stage: str) -> ModeMassSettings:
        """The settings in `config` for the probability of the right answers."""
        return cls(
            stage="mode_mass",
            draws=len(config.sampling_seeds),
            precision=config.precision,
        )
