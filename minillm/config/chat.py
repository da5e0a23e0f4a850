"""Chat templates, one renderer a tokenizer: the section, and which renderers have to keep the same rows."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT


@dataclass(frozen=True, config=STRICT)
class Chat:
    """How `data.template: chat` renders rows for the models of one tokenizer (docs/data.md)."""

    template: str = Field(
        default="",
        description="A file with a Jinja chat template; empty is the tokenizer's own.",
    )
    system: str = Field(
        default="",
        description="System prompt of the rows that bring none; empty: none but what the template adds.",
    )
    thinking: bool | None = Field(
        default=None,
        description="The template's variable `enable_thinking`; empty leaves it to the template. `false` is "
        "how Qwen3 answers at once: the empty block of thoughts is then part of the prompt.",
    )
    end: str = Field(
        default="",
        description="The token that ends an answer, such as `<|im_end|>`; empty is the one with which the "
        "template closes the assistant's turn, or the tokenizer's EOS if it closes it with none.",
    )


def linked(config: Any, tokenizer: str) -> tuple[str, ...]:
    """The other tokenizers that are linked to `tokenizer` by pairs of teacher and student, sorted.

    A row that one of them drops is dropped for all, so that teacher and student are given the same rows.
    """
    found, todo = set[str](), [tokenizer]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        for pair in (*config.pairs, *config.sweeps):
            names = {config.models[model].tokenizer for model in (pair.teacher, *pair.students)}
            todo += names if name in names else ()
    return tuple(sorted(found - {tokenizer}))
