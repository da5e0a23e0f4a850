"""Test sets by the length of the reference, from S-NI or UnNI: the section, and the settings of `subsets`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT

# Prefix of the path of a data set that the stage `subsets` makes.
SUBSETS = "subsets:"


@dataclass(frozen=True, config=STRICT)
class Subsets:
    """Rows of S-NI or UnNI, with short references and long ones, which stage `subsets` collects.

    A data set refers to them by its path: `{source: folder, path: "subsets:NAME"}` to all of them,
    `"subsets:NAME/11_"` (or `0_5`, `6_10`) to those of one bucket.
    """

    source: Literal["folder", "hub"] = Field(
        description="A local folder, or a repository of the Hugging Face hub.",
    )
    path: str = Field(
        min_length=1,
        description="The folder or repository, with task files of Super-NaturalInstructions or the published "
        "folders by length (`0_2`, `3_5`, `6_10`, `11_`).",
    )
    revision: str = Field(
        default="",
        description="Commit, tag or branch of the hub repository; empty is its default branch.",
    )


@dataclass(frozen=True, config=STRICT)
class SubsetsSettings:
    """`subsets`: where the rows come from."""

    stage: Literal["subsets"]
    rows: Subsets

    @classmethod
    def of(cls, config: Any, stage: str, subset: str) -> SubsetsSettings:
        """The settings in `config` for the rows of that name."""
        return cls(stage="subsets", rows=config.subsets[subset])
