"""HPD's loss (hybrid policy distillation): on fixed texts, with one token of the student at each prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm.models.tiled_loss import Compilable, Terms
from minillm.sampling.draw import draw
from minillm.sampling.sample import uniforms

# Tokens are drawn with other keys than everything else.
DRAWS = 2**45


@dataclass(frozen=True)
class HybridPolicyLoss:
    """-A1 log q(y) - A2 log q(y') 1[y' != y], summed over tokens y and draws y' ~ q; A1, A2 are constants.

    k(v) = (log p(v) - log q(v)) q(v).  A1 = k(y), plus p(y) where k(y) > 0, and p(y) once more where also
    k(y') < 0; A2 = min(k(y'), 0).  HPD (arXiv 2604.20244), its released code: LlamaFactory's train/hpd.py,
    function compute_hpd_loss.
    """

    def __call__(self, logits: Tensor, tokens: Tensor, teacher_logits: Tensor, uniform: Tensor) -> Terms:
        """Logits (n, vocabulary), tokens (n,), and the numbers in [0, 1) that draw y', (n,) float64."""
        with torch.no_grad():
            # Where nothing can be drawn because of NaN, the loss is NaN anyway.
            drawn = draw(logits.softmax(-1), uniform).clamp(min=0)
        at = torch.stack([tokens, drawn], -1)
        ours = logits.gather(-1, at) - logits.logsumexp(-1, keepdim=True)
        of_token, of_drawn = ours.unbind(-1)
        with torch.no_grad():
            full = teacher_logits.to(logits.dtype)
            theirs = full.gather(-1, at) - full.logsumexp(-1, keepdim=True)
            k, k_drawn = ((theirs - ours) * ours.exp()).unbind(-1)
            second = k_drawn.clamp(max=0.0)
            first = k + (k > 0) * theirs[:, 0].exp() * (1.0 + (second < 0))
        values = first * of_token + torch.where(drawn == tokens, 0.0, second * of_drawn)
        return {"loss": -values.sum()}, {}


def hybrid_policy_loss(
    tokens: Tensor, teacher: Callable[[slice], Tensor], uniform: Tensor, compiled: bool = False
) -> Compilable:
    """HybridPolicyLoss of `tokens`, (tokens,); `teacher` returns its logits by tile."""
    return Compilable(
        HybridPolicyLoss(),
        lambda part: (tokens[part], teacher(part), uniform[part]),
        lambda _: None,
        compiled,
    )


def numbers(seed: int, step: int, rows: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """The numbers that draw a token at each response token of these rows, (tokens,) float64.

    From (seed, step, row, position), so whatever the batch.
    """
    drawn = uniforms(seed + DRAWS, step, rows, max(lengths))
    return torch.from_numpy(np.concatenate([x[:length] for x, length in zip(drawn, lengths, strict=True)]))
