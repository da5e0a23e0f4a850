"""Credit of each sampled token in the long term: importance weights, advantages and their whitening."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minillm import objectives
from minillm.config.onpolicy import OnPolicy
from minillm.training import token_weights
from minillm.training.rollouts import Rollouts


def importance(rollouts: Rollouts, settings: OnPolicy) -> Tensor:
    """w_t of every token, (rows, time): last factor of Eq. 5 ("token"), all ("product"), or 1 ("none").

    Where the teacher may have replaced tokens, the denominator is the probability with which that draws them.
    """
    if settings.importance == "none":
        return rollouts.mask
    if rollouts.mixture_logprobs is None:
        weights = objectives.importance_weights(
            rollouts.student_logprobs, rollouts.teacher_logprobs, settings.alpha
        )
    else:
        weights = (rollouts.student_logprobs - rollouts.mixture_logprobs).exp()
    if settings.importance == "product":
        return objectives.sequence_weights(weights, rollouts.mask)
    return weights * rollouts.mask


def advantages(rollouts: Rollouts, settings: OnPolicy) -> Tensor:
    """What multiplies grad log q of every token in the long term, (rows, time), before whitening."""
    s, mask = settings, rollouts.mask
    rewards = objectives.token_rewards(
        rollouts.student_logprobs,
        rollouts.teacher_logprobs,
        mask,
        scale=s.reward_scale,
        clip=s.reward_clip or None,
        floor=None if s.reward_floor is None else math.log(s.reward_floor / (1 - s.reward_floor)),
    )
    # The mean of r_t given its prefix.
    expected = -rollouts.reverse_kl * mask / s.reward_scale
    if s.advantage == "expected":
        rewards = expected
    # r_t minus its mean, then the rewards that follow; another baseline is subtracted in the loss.
    if s.advantage == "centred" and s.baseline_top_k is not None:
        return objectives.returns(
            rewards, mask, gamma=s.gamma, length_norm=s.length_norm, include_current=True
        )
    if s.advantage == "centred":
        baseline = objectives.returns(
            expected, mask, gamma=0.0, length_norm=s.length_norm, include_current=True
        )
        return (
            objectives.returns(rewards, mask, gamma=s.gamma, length_norm=s.length_norm, include_current=True)
            - baseline
        )
    return objectives.returns(
        rewards, mask, gamma=s.gamma, length_norm=s.length_norm, include_current=s.include_current
    )


def whitened(values: Tensor, mask: Tensor, settings: OnPolicy) -> Tensor:
    """Advantages of one global mini-batch, (rows, time), whitened as `settings` say.

    "positions" counts `max_tokens` positions per row, absent ones as zeros, as the released code does with
    its padding, but here whatever the actual padding; "tokens" counts the response tokens.
    """
    if settings.whiten == "none":
        return values
    if settings.whiten == "tokens":
        return objectives.whiten(values, mask)
    total = len(values) * settings.max_tokens
    mean = objectives.masked_mean(values, mask, denominator=total)
    present = objectives.masked_mean(torch.ones_like(values), mask, denominator=total)
    # Squares of differences: a difference of squares can be negative in float32.
    variance = objectives.masked_mean((values - mean) ** 2, mask, denominator=total) + (1 - present) * mean**2
    return objectives.whiten(values, mask, statistics=(mean, variance))


def effective_samples(
    rollouts: Rollouts, settings: OnPolicy, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Kish's effective sample size as a share of the tokens: 1 for equal weights.

    A token's weight is that of importance (only "minillm" has one) times its token weight, if there are any.
    """
    s = settings
    weights = importance(rollouts, s) if s.objective == "minillm" else rollouts.mask
    factors = token_weights.configured(rollouts, s.token_weights, tokenizer, list(range(len(rollouts.ids))))
    weights = (weights if factors is None else weights * factors)[rollouts.mask.bool()]
    return {"effective_samples": (weights.sum() ** 2 / (weights**2).sum() / len(weights)).item()}


def credit_summary(
    rollouts: Rollouts, settings: OnPolicy, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """A collection's logged effective samples, and MiniLLM's rewards and advantages before whitening."""
    effective = effective_samples(rollouts, settings, tokenizer)
    if settings.objective != "minillm":
        return effective
    mask = rollouts.mask
    rewards = (rollouts.teacher_logprobs - rollouts.student_logprobs)[mask.bool()]
    credit = advantages(rollouts, settings)[mask.bool()]
    return {
        "reward": rewards.mean().item(),
        "advantage_mean": credit.mean().item(),
        "advantage_std": credit.std(correction=0).item(),
        "advantage_min": credit.min().item(),
        "advantage_max": credit.max().item(),
        **effective,
    }
