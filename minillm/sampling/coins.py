"""Coins that say which of two models draws a token, shared by the rows of a group.

A coin of probability alpha for the teacher, then a draw from p or from q, is a draw from alpha p +
(1 - alpha) q.  Rows that share their coins need the teacher at the same positions.  Each row's law stays what
it is; the rows of a group are no longer independent (docs/estimators.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Coins are tossed with other keys than the numbers that draw tokens.
COINS = 2**43


def coins(seed: int, step: int, groups: Sequence[int], length: int, alpha: float) -> np.ndarray:
    """Whether the teacher draws, (rows, length) bool, true with probability `alpha`; `groups`: of each row.

    Philox with key (seed, step) and the group's number in its counter.
    """
    tossed = {
        group: np.random.Generator(
            np.random.Philox(key=[seed + COINS, step], counter=[0, 0, group, 0])
        ).random(length)
        < alpha
        for group in set(groups)
    }
    return np.stack([tossed[group] for group in groups])


def grouped(lengths: dict[int, int], size: int) -> dict[int, int]:
    """Row -> its group, in order: `size` rows each (0: all in one) with prompts of similar length.

    So they are sampled in one batch.  `lengths`: row -> tokens of its prompt, of all rows of a collection, so
    that groups depend neither on batches nor on the number of processes.
    """
    ordered = sorted(lengths, key=lambda row: (lengths[row], row))
    return {row: place // size if size else 0 for place, row in enumerate(ordered)}
