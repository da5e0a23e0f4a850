"""Weights of the tokens of a collection, from what was recorded when they were drawn; docs/method.md.

Each part is a factor, so any of them may be combined; a token's terms of the loss are multiplied by the
product.  All are constants, and the same however a collection is split.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minillm.config.objective_parts import TokenWeights
from minillm.models.loading import special_tokens
from minillm.training.rollouts import Rollouts

# TIP takes entropies above this quantile of the collection as equal.
QUANTILE = 0.98


def token_weights(rollouts: Rollouts, s: TokenWeights, *, eos: int, special: frozenset[int]) -> Tensor:
    """Weights of all tokens of a collection, (rows, time), at least 0, and 0 where masked.

    `eos` ends a finished response; `special` are the ids that `mask_special` masks.
    """
    mask = rollouts.mask.bool()
    position, length = mask.cumsum(1) - 1, mask.sum(1, keepdim=True)
    weights = torch.where(mask, s.discount ** position.clamp(min=0).double(), 0.0)
    weights[position >= torch.ceil(s.first * length)] = 0.0
    if s.prefix_discrepancy:
        weights = weights * (1 + s.prefix_discrepancy * (1 - discrepancy(rollouts)))
    reward = rollouts.teacher_logprobs - rollouts.student_logprobs
    if s.advantage != "any":
        weights = weights * ((reward > 0) == (s.advantage == "positive"))
    for values, above, at_most in (
        (rollouts.entropy, s.student_entropy_above, s.student_entropy_at_most),
        (rollouts.teacher_entropy, s.teacher_entropy_above, s.teacher_entropy_at_most),
        (rollouts.reverse_kl, s.reverse_kl_above, s.reverse_kl_at_most),
    ):
        if above is not None or at_most is not None:
            assert values is not None
            weights = weights * between(values, above, at_most)
    if s.uncertain_or_wrong < 1:
        weights = weights * uncertain_or_wrong(rollouts, s.uncertain_or_wrong)
    for row, response in enumerate(rollouts.responses):
        if s.truncated != 1 and response[-1] != eos:
            weights[row] *= s.truncated
        if s.mask_special:
            places = mask[row].nonzero().squeeze(-1)
            weights[row, [places[i] for i, token in enumerate(response.tolist()) if token in special]] = 0.0
    return weights.to(rollouts.mask.dtype)


def configured(
    rollouts: Rollouts, s: TokenWeights | None, tokenizer: PreTrainedTokenizerBase, rows: list[int]
) -> Tensor | None:
    """The weights of a collection's tokens, (rows, time); None without settings.

    `rows` are those of the mini-batch, over which they are normalised if that is asked for.
    """
    if s is None:
        return None
    special = frozenset(tokenizer.all_special_ids) if s.mask_special else frozenset()
    weights = token_weights(rollouts, s, eos=special_tokens(tokenizer)[0], special=special)
    if s.normalise:
        weights = weights * (rollouts.mask[rows].sum() / weights[rows].sum().clamp(min=1e-8))
    return weights


def discrepancy(rollouts: Rollouts) -> Tensor:
    """sum_{k<t} |r_k| / sum_{k<T} |r_k| in [0, 1], (rows, time): how far each token's prefix has drifted.

    r are the log-ratios of the sampled tokens, T is the last token (IW-OPD, arXiv 2606.22600).
    """
    mask = rollouts.mask
    gaps = (rollouts.teacher_logprobs - rollouts.student_logprobs).abs() * mask
    before = (gaps.cumsum(1) - gaps) * mask
    return before / before.amax(1, keepdim=True).clamp(min=1e-8)


def between(values: Tensor, above: float | None, at_most: float | None) -> Tensor:
    """Which values are above the one bound and at most the other; None is no bound."""
    low = -torch.inf if above is None else above
    high = torch.inf if at_most is None else at_most
    return (values > low) & (values <= high)


def uncertain_or_wrong(rollouts: Rollouts, share: float) -> Tensor:
    """Which tokens are in the `share` of their response with the highest h + d - h d, (rows, time) bool.

    h is the student's entropy, up to its 98th percentile, d the reverse KL to the teacher, each from 0 to 1
    over the tokens of the collection (TIP, arXiv 2604.14084, Eq. 2 to 5).  Their number is rounded up; of
    equal ones the first are taken.
    """
    assert rollouts.entropy is not None
    mask = rollouts.mask.bool()
    cap = rollouts.entropy[mask].quantile(QUANTILE)
    h, d = (scaled(values, mask) for values in (rollouts.entropy.clamp(max=cap), rollouts.reverse_kl))
    score = (h + d - h * d).masked_fill(~mask, -torch.inf)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < torch.ceil(share * mask.sum(1, keepdim=True))) & mask


def scaled(values: Tensor, mask: Tensor) -> Tensor:
    """Values from 0, the least where `mask` is, to 1, the largest."""
    low, high = values[mask].min(), values[mask].max()
    return (values - low) / (high - low).clamp(min=1e-6)
