"""A batch of prompts and of what has been sampled of their responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """What one model reads: its rendering of the prompts, and the responses, filled in place.

    history, attention and places (a token's position in its row) are (size, width + horizon): prompts end
    and responses begin at column `width`.
    """

    prompts: Sequence[np.ndarray]
    width: int
    history: Tensor
    attention: Tensor
    places: Tensor

    @classmethod
    def of(cls, prompts: Sequence[np.ndarray], horizon: int, pad: int, device: torch.device) -> Context:
        """Before the first token, with room for `horizon` of them."""
        width = max(map(len, prompts))
        history, attention = (values.to(device) for values in left_padded(prompts, width + horizon, pad))
        return cls(prompts, width, history, attention, (attention.cumsum(-1) - 1).clamp(min=0))


@dataclass(frozen=True)
class Progress:
    """A batch that is being sampled: its tensors are filled in place.

    `student` and `teacher` are the same if both models read the same prompts (or there is one model);
    lengths (of responses) and finished are (size,); records, the values of a `Record`, (5, size, horizon).
    marks, by name, are the `Record`'s booleans, (size, horizon) each; cut, (size,), says which rows had an
    early end made to them (None: none can).
    """

    student: Context
    teacher: Context
    pad: int
    lengths: Tensor
    finished: Tensor
    records: Tensor
    marks: dict[str, Tensor] = field(default_factory=dict)
    cut: Tensor | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[np.ndarray],
        horizon: int,
        pad: int,
        device: torch.device,
        teacher_prompts: Sequence[np.ndarray] | None = None,
        marks: Sequence[str] = (),
        cut: bool = False,
    ) -> Progress:
        """Before the first token, with room for `horizon` of them; `teacher_prompts`: None if the same.

        `marks`: their names; `cut`: whether early ends can be made.
        """
        size, student = len(prompts), Context.of(prompts, horizon, pad, device)
        return cls(
            student,
            student if teacher_prompts is None else Context.of(teacher_prompts, horizon, pad, device),
            pad,
            torch.zeros(size, dtype=torch.long, device=device),
            torch.zeros(size, dtype=torch.bool, device=device),
            torch.zeros((5, size, horizon), device=device),
            {name: torch.zeros((size, horizon), dtype=torch.bool, device=device) for name in marks},
            torch.zeros(size, dtype=torch.bool, device=device) if cut else None,
        )

    def put(
        self, t: int, rows: Tensor, tokens: Tensor, ends: Sequence[int], stop: Tensor | None = None
    ) -> Tensor:
        """Store the tokens of position `t` of those `rows` that have not ended; who still have not.

        Any of the tokens `ends` ends a response; `stop` (rows,) ends others, with this token as their last.
        """
        running = ~self.finished[rows]
        stored = torch.where(running, tokens, self.pad)
        for context in {id(c): c for c in (self.student, self.teacher)}.values():
            context.history[rows, context.width + t] = stored
        still = running
        for end in ends:
            still = still & (tokens != end)
        if stop is not None and self.cut is not None:
            self.cut[rows] = self.cut[rows] | (still & stop)
            still = still & ~stop
        self.lengths[rows] += running
        self.finished[rows] = ~still
        return still


def left_padded(prompts: Sequence[np.ndarray], width: int, pad: int) -> tuple[Tensor, Tensor]:
    """(tokens, attention), (batch, width) each: prompts end at one column.

    The room after it is for the responses, which are attended to.
    """
    history = torch.full((len(prompts), width), pad, dtype=torch.long)
    attention = torch.zeros((len(prompts), width), dtype=torch.long)
    end = max(map(len, prompts))
    for i, prompt in enumerate(prompts):
        history[i, end - len(prompt) : end] = torch.from_numpy(prompt.astype(np.int64))
        attention[i, end - len(prompt) :] = 1
    return history, attention
