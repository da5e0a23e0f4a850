"""The loss of examples: cross-entropy, mixed with the forward KL to a teacher, or HPD's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm import objectives
from minillm.data.batching import Batch
from minillm.models.head import (
    head_of,
    logits_by_tile,
    response_hidden,
    response_loss,
    response_tokens,
    token_logprobs,
)
from minillm.models.tiled_loss import Compilable, Terms
from minillm.training.hybrid_policy import hybrid_policy_loss


@dataclass(frozen=True)
class TokenLoss:
    """(1 - kd_ratio) cross-entropy + kd_ratio KL(p || q), summed over tokens.

    Without a teacher, only cross-entropy.
    """

    kd_ratio: float

    def __call__(self, logits: Tensor, tokens: Tensor, teacher_logits: Tensor | None) -> Terms:
        """`logits` and `teacher_logits` are (n, vocabulary), `tokens` (n,)."""
        ratio = 0.0 if teacher_logits is None else self.kd_ratio
        values = torch.zeros_like(logits[:, 0])
        if ratio < 1:
            values = values - (1 - ratio) * token_logprobs(logits, tokens)
        if teacher_logits is not None:
            values = values + ratio * objectives.forward_kl(logits, teacher_logits)
        return {"loss": values.sum()}, {}


def token_loss(
    tokens: Tensor, teacher: Callable[[slice], Tensor] | None, kd_ratio: float, compiled: bool = False
) -> Compilable:
    """TokenLoss of `tokens`, (tokens,); `teacher` returns its logits by tile."""
    return Compilable(
        TokenLoss(kd_ratio),
        lambda part: (tokens[part], teacher(part) if teacher else None),
        lambda _: None,
        compiled,
    )


def example_loss(
    model: torch.nn.Module,
    batch: Batch,
    vocabulary: int,
    denominator: float,
    teacher: PreTrainedModel | None,
    kd_ratio: float,
    hidden: Tensor | None = None,
    compiled: bool = False,
    teacher_batch: Batch | None = None,
    swap: tuple[int, int] | None = None,
    drawn_by: Tensor | None = None,
) -> Tensor:
    """(1 - kd_ratio) cross-entropy + kd_ratio KL(p || q) on response tokens, as a share of a mean.

    The mean is over `denominator` tokens.  `hidden` are the teacher's hidden states, (valid tokens, width),
    if they are there already; `compiled` as in launch.compile.  `teacher_batch`: the same responses to the
    teacher's prompts, if these are others; `swap`: the end tokens of student and teacher (`head_of`).
    `drawn_by`, (tokens,): the numbers that draw a token at each place, for HPD in place of all this.
    """
    theirs = None
    if teacher is not None and kd_ratio > 0:
        states = response_hidden(teacher, teacher_batch or batch) if hidden is None else hidden
        theirs = logits_by_tile(states, head_of(teacher, vocabulary, swap=swap))
    function = token_loss(response_tokens(batch), theirs, kd_ratio, compiled)
    if drawn_by is not None and theirs is not None:
        function = hybrid_policy_loss(response_tokens(batch), theirs, drawn_by, compiled)
    return response_loss(model, batch, vocabulary, function) / denominator
