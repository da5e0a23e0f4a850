"""A batch of prompts and of what has been sampled of their responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """A batch that is being sampled: its tensors are filled in place.

    history, attention and places (a token's position in its row) are (size, width + horizon): prompts end
    and responses begin at column `width`; lengths (of responses) and finished are (size,); records, the
    values of a `Record`, (5, size, horizon).
    """

    prompts: Sequence[np.ndarray]
    width: int
    pad: int
    history: Tensor
    attention: Tensor
    places: Tensor
    lengths: Tensor
    finished: Tensor
    records: Tensor

    @classmethod
    def of(cls, prompts: Sequence[np.ndarray], horizon: int, pad: int, device: torch.device) -> Progress:
        """Before the first token, with room for `horizon` of them."""
        size, width = len(prompts), max(map(len, prompts))
        history, attention = (values.to(device) for values in left_padded(prompts, width + horizon, pad))
        return cls(
            prompts,
            width,
            pad,
            history,
            attention,
            (attention.cumsum(-1) - 1).clamp(min=0),
            torch.zeros(size, dtype=torch.long, device=device),
            torch.zeros(size, dtype=torch.bool, device=device),
            torch.zeros((5, size, horizon), device=device),
        )

    def put(self, t: int, rows: Tensor, tokens: Tensor, eos: int) -> Tensor:
        """Store the tokens of position `t` of those `rows` that have not ended; who still have not."""
        running = ~self.finished[rows]
        self.history[rows, self.width + t] = torch.where(running, tokens, self.pad)
        still = running & (tokens != eos)
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
