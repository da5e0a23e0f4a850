"""How ROUGE-L counts words: the section, and the settings of `rouge`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT


@dataclass(frozen=True, config=STRICT)
class Rouge:
    """How ROUGE-L counts words."""

    tokenizer: Literal["rouge_score", "unicode"] = Field(
        default="rouge_score",
        description="`rouge_score`: the paper's, which knows only a-z and 0-9, so that text in other scripts "
        "scores 0. `unicode`: words in any script; in scripts without spaces, such as Chinese, each "
        "character is one. ASCII text scores the same with both. Dev sets always have the paper's.",
    )


@dataclass(frozen=True, config=STRICT)
class RougeSettings:
    """`rouge`: how words are counted.  There is a settings file only if it is not the paper's way."""

    stage: Literal["rouge"]
    tokenizer: Literal["rouge_score", "unicode"]

    @classmethod
    def of(cls, config: Any, stage: str) -> RougeSettings:
        """The settings in `config` for ROUGE-L."""
        return cls(stage="rouge", tokenizer=config.rouge.tokenizer)
