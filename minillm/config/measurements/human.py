"""Comparisons by people: the section, and the settings of `human-export`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Count, Seed, must_be_one_of
from minillm.errors import UserError


@dataclass(frozen=True, config=STRICT)
class Human:
    """Blind comparisons of MiniLLM's responses with the others', by annotators (Figure 4)."""

    test: str = Field(
        default="",
        description="Test set to compare on, of `data.tests`; empty makes no pages. The paper: SelfInst.",
    )
    prompts: Count = Field(default=50, description="Number of prompts, drawn with `seed`. The paper: 50.")
    seed: Seed = Field(default=10, description="Seed of the prompts, of their order and of the sides.")
    answers: tuple[str, ...] = Field(
        default=(),
        description="Answer files that annotators sent back, to be counted.",
    )

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        if self.test:
            must_be_one_of(self.test, config.data.tests, where, "human.test")
        for i, path in enumerate(self.answers):
            # Braces would be wildcards for Snakemake, a leading dash an option of the command, and "<" might
            # end the script in which the report lists its inputs.
            if not path or path.startswith("-") or not path.isprintable() or set("{}<") & set(path):
                problem = (
                    "a path cannot be empty, begin with '-', or contain braces, '<' or control characters"
                )
                raise UserError(f"{where}: human.answers.{i}: {path!r}: {problem}; rename the file")

    @property
    def counted(self) -> tuple[str, ...]:
        """The test set whose answers are counted: none until somebody has answered."""
        return (self.test,) if self.test and self.answers else ()


@dataclass(frozen=True, config=STRICT)
class HumanSettings:
    """`human`: which prompts are compared, and the order in which they are shown; not the answers."""

    stage: Literal["human"]
    prompts: Count = 50
    seed: int = 10

    @classmethod
    def of(cls, config: Any, stage: str) -> HumanSettings:
        """The settings in `config` for the page of comparisons."""
        return cls(stage="human", prompts=config.human.prompts, seed=config.human.seed)
