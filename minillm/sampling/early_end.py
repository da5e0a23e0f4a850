"""Where student and teacher drift apart while a response is drawn, and when that ends it (Prune-OPD)."""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.config.sampler import EarlyEnd


def agreement(student: Tensor, teacher: Tensor, k: int) -> Tensor:
    """The share of the `k` likeliest entries that two models have in common, (batch,) in [0, 1].

    Logits are (batch, vocabulary); from the vocabulary's size on, `k` is all of it.
    """
    k = min(k, student.shape[-1])
    ours, theirs = student.topk(k).indices, teacher.topk(k).indices
    shared = (ours.unsqueeze(-1) == theirs.unsqueeze(-2)).sum((-2, -1))
    return shared.double() / k


class Drift:
    """How often the models have disagreed on each of `size` rows of a batch (arXiv 2605.07804).

    They disagree at a position if less than `threshold` of their `top_k` likeliest entries are the same; a
    row ends with the token of the position at which that has happened `events` times.  Both depend on nothing
    but the prefix.
    """

    def __init__(self, settings: EarlyEnd, size: int, device: torch.device) -> None:
        self.settings = settings
        self.counts = torch.zeros(size, dtype=torch.long, device=device)

    def seen(self, rows: Tensor, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(whether they disagree at this position, whether the row ends with it), (rows,) each, of `rows`."""
        s = self.settings
        # In float64, so that 7 of 10 are not less than 0.7.
        disagree = agreement(student, teacher, s.top_k) < s.threshold
        self.counts[rows] += disagree
        return disagree, self.counts[rows] >= s.events
