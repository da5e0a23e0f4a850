"""HPD's loss of one response, token by token, from log-probabilities (length, vocabulary)."""

from __future__ import annotations

import numpy as np
import torch

DRAWS = 2**45


def numbers_by_hand(seed, step, row, length):
    """The row's numbers, by the generator's own arguments."""
    generator = np.random.Generator(np.random.Philox(key=[seed + DRAWS, step], counter=[0, 0, row, 0]))
    return generator.random(length)


def hpd_by_hand(q, p, response, seed, step, row):
    """The sum over the response's tokens; `q` may need gradients, which the advantages do not pass."""
    total = torch.zeros((), dtype=torch.float64)
    for t, (y, u) in enumerate(zip(response, numbers_by_hand(seed, step, row, len(response)), strict=True)):
        y = int(y)
        ours, theirs = q[t].detach().exp().tolist(), p[t].exp().tolist()
        # The first entry whose cumulative probability exceeds the number.
        other, sum_ = 0, ours[0]
        while sum_ <= u * sum(ours):
            other += 1
            sum_ += ours[other]

        def k(v, ours=ours, theirs=theirs):
            return np.log(theirs[v] / ours[v]) * ours[v]

        if k(y) <= 0:
            first = k(y)
        elif k(other) < 0:
            first = k(y) + 2 * theirs[y]
        else:
            first = k(y) + theirs[y]
        total = total - first * q[t, y]
        if other != y and k(other) < 0:
            total = total - k(other) * q[t, other]
    return total
