"""Which rows are computed at once (those of similar length, for little padding), and how they are batched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

# Positions that a CPU computes at once: the hidden states of more do not fit its cache.  A GPU idles with
# less than a whole batch.
CPU_POSITIONS = 1500
# Cost of one more pass, as a share of the positions that are computed at once (docs/performance.md).
PASS = 1 / 16


def at_once(device: torch.device, budget: int) -> int:
    """Positions to compute at once without gradients: `budget` (0: any), on a CPU at most CPU_POSITIONS."""
    return min(budget or CPU_POSITIONS, CPU_POSITIONS) if device.type == "cpu" else budget


def by_length(items: Sequence[T], length: Callable[[T], int], rows: int, tokens: int = 0) -> list[list[T]]:
    """`items` sorted by length, in batches of at most `rows` rows and `tokens` positions (0: any number).

    Positions include padding.  A row longer than `tokens` is a batch by itself.  Rows of equal length keep
    their order.
    """
    batches: list[list[T]] = []
    for item in sorted(items, key=length):
        full = not batches or len(batches[-1]) == rows
        if full or (tokens and (len(batches[-1]) + 1) * length(item) > tokens):
            batches.append([])
        batches[-1].append(item)
    return batches


def least_padding(
    items: Sequence[T], length: Callable[[T], int], rows: int, tokens: int = 0
) -> list[list[T]]:
    """Like by_length, but cut where it costs least; not for sampling, where every further batch costs steps.

    A batch costs its positions, padding included, and PASS of `tokens` for the pass itself (adding gradients
    to those of earlier batches, starting kernels).  The cheapest cuts of the sorted items are found one item
    at a time: the first n items end in some last batch, after the cheapest cuts of what is before it.
    Without `tokens` a pass costs nothing extra, and batches are full.
    """
    if not tokens:
        return by_length(items, length, rows)
    ordered = sorted(items, key=length)
    # For the first n items: the least cost, and where their last batch starts.
    costs, starts = [0.0], [0]
    for end, item in enumerate(ordered, 1):
        width = length(item)
        first = max(0, end - max(1, min(rows, tokens // width if width else rows)))
        cost, start = min((costs[i] + (end - i) * width + PASS * tokens, i) for i in range(first, end))
        costs.append(cost)
        starts.append(start)
    batches: list[list[T]] = []
    end = len(ordered)
    while end:
        batches.append(ordered[starts[end] : end])
        end = starts[end]
    return batches[::-1]


@dataclass(frozen=True)
class Batch:
    """Left-padded examples: prompt and response end at the right edge; the width is the longest one's.

    tokens, attention (1 on real tokens) and positions are (batch, width) int64; tokens[:, start:] covers the
    longest response; mask is (batch, width - start) float32, 1 on response tokens (the last ones of each
    row); `places` are the places of these tokens in the flattened mask, (response tokens,) int64: computed
    before the batch goes to a GPU, which would have to be waited for otherwise.
    """

    tokens: Tensor
    attention: Tensor
    positions: Tensor
    mask: Tensor
    start: int
    places: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", self.mask.flatten().nonzero().squeeze(1))

    def to(self, device: torch.device) -> Batch:
        batch = copy.copy(self)
        for name in ("tokens", "attention", "positions", "mask", "places"):
            object.__setattr__(batch, name, moved(getattr(self, name), device))
        return batch


def moved(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; to a GPU through pinned memory, so that nobody waits for its earlier work."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def collate(examples: Sequence[tuple[np.ndarray, np.ndarray]], pad: int) -> Batch:
    """Prompts and responses as one batch.  Masks come from lengths, not from token values: EOS may be PAD."""
    width = max(len(prompt) + len(response) for prompt, response in examples)
    start = width - max(len(response) for _, response in examples)
    tokens = torch.full((len(examples), width), pad, dtype=torch.long)
    attention = torch.zeros((len(examples), width), dtype=torch.long)
    mask = torch.zeros((len(examples), width - start))
    for i, (prompt, response) in enumerate(examples):
        first = width - len(prompt) - len(response)
        tokens[i, first:] = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        attention[i, first:] = 1
        mask[i, width - start - len(response) :] = 1.0
    return Batch(tokens, attention, (attention.cumsum(-1) - 1).clamp(min=0), mask, start)
