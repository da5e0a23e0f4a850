"""The configured divergence of each token: which function, of which two distributions, over which set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minillm import objectives
from minillm.config.objective_parts import AlphaBeta
from minillm.config.onpolicy import OnPolicy
from minillm.models.head import token_logprobs
from minillm.token_sets import on_set

# Divergences without a parameter; "minillm" minimises the reverse KL.
PLAIN: dict[str, Callable[..., Tensor]] = {
    "minillm": objectives.reverse_kl,
    "forward_kl": objectives.forward_kl,
    "reverse_kl": objectives.reverse_kl,
    "total_variation": objectives.total_variation,
    "token_wise_kl": objectives.token_wise_kl,
    "teacher_token": objectives.teacher_token,
}


def divergence_of(settings: OnPolicy) -> Callable[..., Tensor]:
    """The function of student and teacher logits (or log-probabilities) that `objective` names."""
    s = settings
    if s.objective == "jensen_shannon":
        return partial(objectives.jensen_shannon, beta=s.beta)
    if s.objective == "skew_forward_kl":
        return partial(objectives.skew_forward_kl, alpha=s.skew)
    if s.objective == "skew_reverse_kl":
        return partial(objectives.skew_reverse_kl, alpha=s.skew)
    if s.objective == "alpha_beta":
        exponents = s.alpha_beta or AlphaBeta()
        return partial(objectives.alpha_beta, alpha=exponents.alpha, beta=exponents.beta)
    if s.objective == "squared_log_ratio":
        return partial(objectives.squared_log_ratio, weight=s.signal.weight if s.signal else "student")
    return PLAIN[s.objective]


def top_k_baseline(settings: OnPolicy, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The reverse KL over the student's top k of each token, renormalised there, (n,), a constant.

    What vOPD (arXiv 2605.07865) adds to the reward of the token that was drawn: it depends on the prefix, not
    on that token, so it changes no expectation.
    """
    k = settings.baseline_top_k or student_logits.shape[-1]
    with torch.no_grad():
        chosen = on_set(student_logits, teacher_logits, "student_topk", k, renormalise=True)
        return objectives.reverse_kl(*chosen, normalised=True)


def token_divergence(
    settings: OnPolicy,
    student_logits: Tensor,
    teacher_logits: Tensor,
    sampled: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """The configured divergence of each token, (n,), from logits (n, vocabulary).

    `sampled`, (n,), are the tokens that were drawn; without them, as on the dev set, a signal at the sampled
    token is its mean: the reverse KL.  `cross_entropy`, which has no teacher, is that of `sampled`.  `target`
    is the moving target's t; without it, the target is the teacher.
    """
    s = settings
    if s.objective == "cross_entropy":
        if sampled is None:
            raise ValueError("cross-entropy needs the tokens")
        return -token_logprobs(student_logits, sampled)
    if target is not None:
        teacher_logits = objectives.moving_target(student_logits, teacher_logits, target)
    if s.assistant is not None:
        mixed = objectives.assistant(student_logits, teacher_logits, s.assistant.alpha, s.assistant.share)
        if s.assistant.replaces == "student":
            student_logits = mixed
        else:
            teacher_logits = mixed
    if s.signal is None or s.signal.tokens == "all":
        return divergence_of(s)(student_logits, teacher_logits)
    if s.signal.tokens == "sampled" and sampled is None:
        return objectives.reverse_kl(student_logits, teacher_logits)
    chosen = on_set(
        student_logits,
        teacher_logits,
        s.signal.tokens,
        s.signal.top_k,
        sampled,
        renormalise=s.signal.renormalise,
    )
    return divergence_of(s)(*chosen, normalised=True)
