"""One position: a token drawn from probabilities, and the values that are recorded of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Entries of the vocabulary that are summed at once when a token is drawn.
BLOCK = 256


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token per row by inverse transform: the first whose cumulative probability exceeds u; -1 for NaN.

    Never one of probability 0.  `probabilities` (batch, vocabulary), `uniform` (batch,) float64.  First the
    block of entries, then the entry in it, so that one pass over the vocabulary is enough and only block sums
    are in float64.
    """
    blocks = functional.pad(probabilities, (0, -probabilities.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1).double()
    cumulative = sums.cumsum(-1)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, target, right=True).clamp(max=sums.shape[-1] - 1)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1)  # (batch, BLOCK)
    before = cumulative.gather(-1, block) - sums.gather(-1, block)
    place = torch.searchsorted(inside.double().cumsum(-1), target - before, right=True)
    last = torch.where(inside > 0, torch.arange(BLOCK, device=inside.device), -1).amax(-1, keepdim=True)
    # Rounding may overshoot.
    token = block * BLOCK + torch.minimum(place, last)
    return torch.where(target.isnan(), -1, token).squeeze(-1)


def token_values(student: Tensor, teacher: Tensor, q: Tensor, mixture: Tensor, at: Tensor) -> Tensor:
    """The five values of a `Record`, (5, batch), of the tokens `at` (batch, 1).

    Log-probabilities `student` and `teacher` and the student's probabilities `q` are (batch, vocabulary), all
    finite; `mixture` (batch, 1) is the token's probability under the mixture.
    """
    of_token = torch.cat([student.gather(-1, at), teacher.gather(-1, at), mixture.log()], -1).T
    gap = (q * (student - teacher)).sum(-1)
    return torch.cat([of_token, gap[None], -(q * student).sum(-1)[None]])
