"""One position: a token drawn from probabilities, and the values that are recorded of it."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Replacement:
    """The teacher's `k` likeliest tokens are let through; `uniform` (batch,) float64 draws for the others."""

    k: int
    uniform: Tensor


@dataclass(frozen=True)
class Drawn:
    """A token per row, (batch,), -1 if NaN; on request the values of a `Record`, (5, batch); who replaced it.

    `replaced` (batch,) bool is None if no token could be.
    """

    tokens: Tensor
    values: Tensor | None = None
    replaced: Tensor | None = None


def draw_and_record(
    logits: list[Tensor],
    alpha: float,
    uniform: Tensor,
    record: bool,
    filtered: Tensor | None = None,
    replacement: Replacement | None = None,
) -> Drawn:
    """A token per row, and what is to be recorded of it.

    `logits` are the student's, and the teacher's if there is one.  Where `filtered` logits of the student are
    given, tokens are drawn from those, and recorded is what the whole distributions say.
    """
    proposal = logits[0] if filtered is None else filtered
    if replacement is None and not record and (len(logits) == 1 or not alpha):
        return Drawn(draw(proposal.softmax(-1), uniform))
    student = logits[0].log_softmax(-1)
    teacher = logits[1].log_softmax(-1) if len(logits) > 1 else student
    q, replaced = student.exp(), None
    mixed = torch.lerp(q, teacher.exp(), alpha) if alpha else q
    drawn_from = mixed if filtered is None else filtered.softmax(-1)
    if replacement is None:
        chosen = draw(drawn_from, uniform)
    else:
        chosen, replaced, mixed = corrected(drawn_from, teacher.exp(), uniform, replacement)
    if not record:
        return Drawn(chosen, replaced=replaced)
    # -1 if nothing could be drawn because of NaN, which the caller reports.
    at = chosen.clamp(min=0).unsqueeze(-1)
    # All of `logits` are finite: only a copy of them is filtered.
    return Drawn(chosen, token_values(student, teacher, q, mixed.gather(-1, at), at), replaced)


def corrected(
    student: Tensor, teacher: Tensor, uniform: Tensor, replacement: Replacement
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens (batch,), which of them the teacher drew, the distribution that they are draws of).

    From probabilities (batch, vocabulary).  The student draws; what is not among the teacher's k likeliest is
    drawn again from all of the teacher's distribution (SKD, arXiv 2410.11325, Algorithm 1).  So a token v has
    the probability q(v) 1[v in K] + (1 - q(K)) p(v).  Entries that tie with the k-th belong to K.
    """
    least = teacher.topk(min(replacement.k, teacher.shape[-1])).values[:, -1:]
    inside = teacher >= least
    proposed = draw(student, uniform)
    replaced = ~inside.gather(-1, proposed.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    again = draw(teacher, replacement.uniform)
    chosen = torch.where(replaced & (proposed >= 0), again, proposed)
    # Not 1 - q(K), which rounding may make 0 or less.
    outside = student.masked_fill(inside, 0.0).sum(-1, keepdim=True)
    return chosen, replaced, student.masked_fill(~inside, 0.0) + outside * teacher
