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


def draw_and_record(
    logits: list[Tensor], alpha: float, uniform: Tensor, record: bool
) -> tuple[Tensor, Tensor | None]:
    """(a token per row (batch,), on request the five values of a `Record` (5, batch)).

    `logits` are the student's, and the teacher's if there is one.
    """
    if not record and (len(logits) == 1 or not alpha):
        return draw(logits[0].softmax(-1), uniform), None
    student = logits[0].log_softmax(-1)
    teacher = logits[1].log_softmax(-1) if len(logits) > 1 else student
    q = student.exp()
    mixed = torch.lerp(q, teacher.exp(), alpha) if alpha else q
    chosen = draw(mixed, uniform)
    if not record:
        return chosen, None
    # -1 if nothing could be drawn because of NaN, which the caller reports.
    at = chosen.clamp(min=0).unsqueeze(-1)
    # All logits are finite: filters are refused here.
    return chosen, token_values(student, teacher, q, mixed.gather(-1, at), at)
