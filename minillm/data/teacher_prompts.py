"""A teacher with a chat template of its own: its prompts for the student's rows, and the two end tokens.

Both models are given the same rows, each rendered by its own template, and share the response's tokens.
Where the student's end token is scored, the teacher is asked for its own: two columns of its logits are
exchanged (tiled_loss.Head).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillm.data.rows import AGAIN, Example, Rows
from minillm.errors import UserError
from minillm.files import CARD
from minillm.readers import read_object


@dataclass(frozen=True)
class TeacherPrompts:
    """The teacher's prompts by split and row id, and the end tokens of student and teacher."""

    prompts: Mapping[str, Mapping[int, np.ndarray]]
    ends: tuple[int, int]

    @classmethod
    def open(cls, data: Path, teacher_data: Path | None) -> TeacherPrompts | None:
        """From the data folders of student and teacher; None if they share one.

        Raises UserError if the two have not kept the same rows.
        """
        if teacher_data is None:
            return None
        prompts = {}
        for split in ("train", "dev"):
            ours, theirs = Rows.open(data, split), Rows.open(teacher_data, split)
            if ours.ids != theirs.ids:
                raise UserError(f"{teacher_data}: its {split} rows are not those of {data}; {AGAIN}")
            prompts[split] = {id_: theirs.prompt(i) for i, id_ in enumerate(theirs.ids)}
        return cls(prompts, (end_of(data), end_of(teacher_data)))

    @property
    def swap(self) -> tuple[int, int] | None:
        """The columns of the teacher's logits to exchange; None if both models end alike."""
        return None if self.ends[0] == self.ends[1] else self.ends

    def of(self, split: str, ids: Sequence[int], examples: Sequence[Example]) -> list[Example]:
        """The teacher's prompts of these rows, with the responses of `examples`."""
        return [
            (self.prompts[split][id_], response) for id_, (_, response) in zip(ids, examples, strict=True)
        ]


def exchanged(tokens: np.ndarray, ends: tuple[int, int]) -> np.ndarray:
    """Tokens (n,) that one model sampled as the other's, whose end is the other of `ends`."""
    result = tokens.copy()
    result[tokens == ends[0]], result[tokens == ends[1]] = ends[1], ends[0]
    return result


def end_of(data: Path) -> int:
    """The token that ends a response in a data folder; UserError if its card does not say."""
    card = read_object(data / CARD, {"tokenizer": dict}, "no data folder here", AGAIN)
    end = card["tokenizer"].get("eos")
    if not isinstance(end, int):
        raise UserError(f"{data / CARD}: does not say which token ends a response; {AGAIN}")
    return end
