"""Sections of the configuration for what is measured beside ROUGE-L; a section whose `tests` are empty asks for nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.errors import UserError
from minillm.strict import STRICT, Count, Name, Natural, hint

Edges = Annotated[tuple[Natural, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class ExposureBias:
    """ExAccErr (docs/evaluation.md): `responses` to each of `prompts` prompts of a test set (0: all), from student and teacher.

    `finished`: the mean at a position is over the responses that reach it ("alive"), or over all, those that have ended counting 0
    ("zero").  `semantics` "released" computes as the published script does (D23).  The band is a bootstrap over prompts.
    """

    tests: tuple[Name, ...] = ()
    prompts: Natural = 0
    responses: Count = 10
    max_tokens: Count = 256
    finished: Literal["alive", "zero"] = "alive"
    semantics: Literal["paper", "released"] = "paper"
    resamples: Count = 1000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Natural = 0


@dataclass(frozen=True, config=STRICT)
class Lengths:
    """ROUGE-L by the length of the first reference in tokens: edges e1 < e2 give [0, e1], [e1 + 1, e2], [e2 + 1, inf)."""

    tests: tuple[Name, ...] = ()
    edges: Edges = (5, 10)
    per_test: dict[Name, Edges] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Diversity:
    """Dist-n of the responses, and the model's loss on the references.

    `unit`: n-grams of the model's tokens, or of words (what white space separates).  `loss`: mean over all tokens of the
    references, their EOS included ("tokens"), or as the published script computes it (D21, "released").
    """

    tests: tuple[Name, ...] = ()
    ngram: Count = 4
    unit: Literal["tokens", "words"] = "tokens"
    loss: Literal["tokens", "released"] = "tokens"


def check_analyses(
    exposure_bias: ExposureBias, lengths: Lengths, diversity: Diversity, tests: Sequence[str], where: str
) -> None:
    """Test sets that these sections name are among `tests`, and edges rise.  Raises UserError, one line naming the key."""
    named = {
        "exposure_bias.tests": exposure_bias.tests,
        "lengths.tests": lengths.tests,
        "lengths.per_test": tuple(lengths.per_test),
        "diversity.tests": diversity.tests,
    }
    for key, names in named.items():
        for name in names:
            if name not in tests:
                raise UserError(f"{where}: {key}: '{name}' is not among data.tests; {hint(name, tests)}")
    for key, edges in {"edges": lengths.edges, **{f"per_test.{name}": e for name, e in lengths.per_test.items()}}.items():
        if list(edges) != sorted(set(edges)):
            raise UserError(f"{where}: lengths.{key}: {list(edges)} do not rise; write them from small to large")
