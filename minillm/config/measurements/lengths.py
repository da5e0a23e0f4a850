"""ROUGE-L by the length of the reference: the section, and the settings of `lengths`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Name, Natural, must_be_one_of
from minillm.errors import UserError

Edges = Annotated[tuple[Natural, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class Lengths:
    """ROUGE-L by the length of the first reference in tokens (Figures 7 and 15)."""

    tests: tuple[Name, ...] = Field(
        default=(),
        description="Entries of `datasets` to measure; they need not be test sets. Figure 7 shows those that "
        "`figure15` does not name (in the paper S-NI). Empty measures nothing.",
    )
    figure15: tuple[Name, ...] = Field(
        default=(),
        description="Those of `tests` that Figure 15 shows (in the paper UnNI).",
    )
    edges: Edges = Field(
        default=(5, 10),
        description="Last length of each bucket but the open one, rising: e1 < e2 give [0, e1], [e1 + 1, e2] "
        "and [e2 + 1, inf). The paper: 5 and 10.",
    )
    per_test: dict[Name, Edges] = Field(
        default_factory=dict,
        description="Edges of single data sets that replace `edges`.",
    )

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        for key in ("tests", "per_test"):
            for name in getattr(self, key):
                must_be_one_of(name, config.datasets, where, f"lengths.{key}", "datasets")
        for name in self.figure15:
            must_be_one_of(name, self.tests, where, "lengths.figure15", "lengths.tests")
        for key, edges in {
            "edges": self.edges,
            **{f"per_test.{name}": e for name, e in self.per_test.items()},
        }.items():
            if list(edges) != sorted(set(edges)):
                raise UserError(
                    f"{where}: lengths.{key}: {list(edges)} do not increase; write them from small to large"
                )


@dataclass(frozen=True, config=STRICT)
class LengthsSettings:
    """`lengths`: where the buckets of one test set end."""

    stage: Literal["lengths"]
    edges: Edges

    @classmethod
    def of(cls, config: Any, stage: str, test: str) -> LengthsSettings:
        """The settings in `config` for the test set `test`."""
        return cls(stage="lengths", edges=config.lengths.per_test.get(test, config.lengths.edges))
