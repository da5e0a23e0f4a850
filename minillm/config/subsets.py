"""Test sets by the length of the reference, from S-NI or UnNI: the section, and the settings of `subsets`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT

SUBSETS = "subsets:"  # begins the path of a data set that the stage `subsets` makes


@dataclass(frozen=True, config=STRICT)
class Subsets:
    """Where the rows of S-NI or UnNI come from, short references and long (stage `subsets`): a folder, or a repository of the hub.

    In it lie task files, or the published folders by length. A data set takes the rows up by its path: {source: folder, path:
    "subsets:NAME"} all of them, "subsets:NAME/11_" (or 0_5, 6_10) those of one bucket.
    """

    source: Literal["folder", "hub"]
    path: Annotated[str, Field(min_length=1)]
    revision: str = ""


@dataclass(frozen=True, config=STRICT)
class SubsetsSettings:
    """`subsets`: where the rows come from."""

    stage: Literal["subsets"]
    rows: Subsets

    @classmethod
    def of(cls, config: Any, stage: str, subset: str) -> SubsetsSettings:
        """The settings that `config` has for the rows of that name."""
        return cls(stage="subsets", rows=config.subsets[subset])
