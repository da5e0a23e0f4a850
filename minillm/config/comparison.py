"""The comparison of a run's methods with some of them: table `methods`."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Name, must_be_one_of
from minillm.errors import UserError


@dataclass(frozen=True, config=STRICT)
class Comparison:
    """Table `methods`: every student of the run, training by training, and tests against some methods."""

    against: tuple[Name, ...] = Field(
        default=(),
        description="Methods that every other one is tested against, over training seeds, with Holm's "
        "correction; one that this run does not train has an empty column. Empty: no such table.",
    )
    test: str = Field(
        default="",
        description="Test set of its ROUGE-L, and of its right answers, lengths, repetition and truncation "
        "if `validity.tests` and `diversity.tests` name the set too.",
    )

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        for i, name in enumerate(self.against):
            must_be_one_of(name, config.every_method, where, f"comparison.against.{i}")
        if self.against and not self.test:
            raise UserError(f"{where}: comparison.test: missing; name one of data.tests")
        if self.test:
            must_be_one_of(self.test, config.data.tests, where, "comparison.test", "data.tests")
