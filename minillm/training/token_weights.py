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
# SOD's epsilon.
DRIFT_EPS = 1e-6


def token_weights(
    rollouts: Rollouts, s: TokenWeights, *, eos: int, special: frozenset[int], progress: float = 0.0
) -> Tensor:
    """Weights of all tokens of a collection, (rows, time), at least 0, and 0 where masked.

    `eos` ends a finished response; `special` are the ids that `mask_special` masks; `progress` is the share
    of the collections that are done, for `switch`.
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
    first = s.switch is None or progress < s.switch
    if s.log_ratio_at_least is not None and first:
        weights = weights * (reward >= s.log_ratio_at_least)
    if s.most_uncertain is not None and not (s.switch is not None and first):
        weights = weights * most_uncertain(rollouts, s.most_uncertain)
    if s.drift is not None and s.drift_block is not None:
        weights = weights * drift(rollouts, s.drift_block, s.drift)
    if s.per_response:
        weights = weights / length.clamp(min=1)
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
    rollouts: Rollouts,
    s: TokenWeights | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[int],
    progress: float = 0.0,
) -> Tensor | None:
    """The weights of a collection's tokens, (rows, time); None without settings.

    `rows` are those of the mini-batch, over which they are normalised if that is asked for; `progress` as in
    `token_weights`.
    """
    if s is None:
        return None
    special = frozenset(tokenizer.all_special_ids) if s.mask_special else frozenset()
    eos = special_tokens(tokenizer)[0]
    weights = token_weights(rollouts, s, eos=eos, special=special, progress=progress)
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


def most_uncertain(rollouts: Rollouts, share: float) -> Tensor:
    """Which tokens are in the `share` of the collection with the student's highest entropy, (rows, time).

    At least the quantile 1 - share (REOPOLD, arXiv 2603.11137, Eq. 8).
    """
    assert rollouts.entropy is not None
    mask = rollouts.mask.bool()
    return (rollouts.entropy >= rollouts.entropy[mask].quantile(1 - share)) & mask


def drift(rollouts: Rollouts, block: int, delta: float) -> Tensor:
    """min(prod_{u<k} (d_u + e) / (d_{u+1} + e), 1 + delta) of each token, (rows, time); k is its block.

    d_u is the mean |log-ratio| of block u, so the product is (d_1 + e) / (d_k + e) (SOD, arXiv 2605.07725,
    Eq. 6 and 7, whose steps end with a tool's answer; here they are blocks of tokens).  The first block
    has 1.
    """
    mask = rollouts.mask
    gaps = (rollouts.teacher_logprobs - rollouts.student_logprobs).abs() * mask
    # Of each token; positions count the valid ones.
    number = ((mask.cumsum(1) - 1).clamp(min=0) // block).long()
    blocks = int(number.max()) + 1
    sums, counts = (mask.new_zeros(len(mask), blocks).scatter_add_(1, number, x) for x in (gaps, mask))
    means = sums / counts.clamp(min=1)
    factor = ((means[:, :1] + DRIFT_EPS) / (means + DRIFT_EPS)).clamp(max=1 + delta)
    return factor.gather(1, number) * mask


def scaled(values: Tensor, mask: Tensor) -> Tensor:
    """Values from 0, the least where `mask` is, to 1, the largest."""
    low, high = values[mask].min(), values[mask].max()
    return (values - low) / (high - low).clamp(min=1e-6)
