"""Bias and variance of signals that look at one position: the part of the gradient without what follows.

Their target is the gradient of the reverse KL of each position on the student's own prefixes, taken as fixed
(discount 0), which "single-step alone" in estimators.py has exactly; how far that is from the gradient of the
whole KL is said there.  Exact by enumeration, as everything of estimators.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm import objectives
from minillm.config.estimators import Estimators
from minillm.evaluation.estimators import (
    Family,
    Finding,
    Loss,
    Trajectories,
    finding,
    gradient_of_each,
    loss_of,
    moments,
    pair,
    sequence_kl,
    sequence_probabilities,
)
from minillm.token_sets import on_set
from minillm.training.rollouts import Rollouts
from minillm.training.token_weights import discrepancy

# Entries of a set, of a vocabulary of three.
TOP_K = 2
# REOPOLD's at its lambda 0.2, and IW-OPD's gamma.
FLOOR, GAMMA = math.log(0.2 / 0.8), 0.5


def on_entries(
    divergence: Callable[..., Tensor],
    tokens: str,
    renormalise: bool = False,
    weights: Callable[[Trajectories], Tensor] | None = None,
) -> Loss:
    """The sum over a sequence's tokens of a divergence on a set of entries, perhaps weighted."""

    def loss(table: Tensor, logprobs: Tensor, constants: Trajectories, i: int) -> Tensor:
        valid = constants.family.mask[i].bool()
        at = constants.family.prefixes[i][valid]
        student, teacher = table[at], constants.teacher[at]
        if tokens == "all":
            values = divergence(student, teacher)
        else:
            values = divergence(
                *on_set(student, teacher, tokens, TOP_K, renormalise=renormalise), normalised=True
            )
        return (values if weights is None else values * weights(constants)[i][valid]).sum()

    return loss


def sampled(credit: Callable[[Trajectories], Tensor]) -> Loss:
    """-A_t log q(y_t), summed over a sequence's tokens."""
    return loss_of(credit, single=False)


def top_k_kl(constants: Trajectories) -> Tensor:
    """The reverse KL over the student's top entries, renormalised, at each token."""
    student, teacher = constants.student, constants.teacher
    values = objectives.reverse_kl(
        *on_set(student, teacher, "student_topk", TOP_K, renormalise=True), normalised=True
    )
    return values[constants.family.prefixes] * constants.family.mask


def prefix_weights(constants: Trajectories) -> Tensor:
    """IW-OPD's weights of every token, from 1 + gamma at the first to 1 at the last."""
    mask = constants.family.mask
    zero = torch.zeros_like(mask)
    made = Rollouts([], [], [], mask, zero, constants.rewards, zero, {})
    return (1 + GAMMA * (1 - discrepancy(made))) * mask


REVERSE: dict[str, Any] = {"divergence": objectives.reverse_kl}
# Samples of the student.
SIGNALS: dict[str, Loss] = {
    "whole vocabulary": on_entries(**REVERSE, tokens="all"),
    "sampled token": sampled(lambda k: k.rewards),
    "sampled token, baseline of all (vOPD)": sampled(lambda k: k.rewards + k.reverse_kl),
    "sampled token, baseline of the top 2 (vOPD)": sampled(lambda k: k.rewards + top_k_kl(k)),
    "sampled token, floor (REOPOLD)": sampled(lambda k: k.rewards.clamp(min=FLOOR)),
    "student's top 2": on_entries(**REVERSE, tokens="student_topk"),
    "student's top 2, renormalised": on_entries(**REVERSE, tokens="student_topk", renormalise=True),
    "student's top 2, squared log-ratio": on_entries(objectives.squared_log_ratio, "student_topk"),
    "teacher's top 2": on_entries(**REVERSE, tokens="teacher_topk"),
    "teacher's top 2, renormalised": on_entries(**REVERSE, tokens="teacher_topk", renormalise=True),
    "whole vocabulary, prefix weights": on_entries(**REVERSE, tokens="all", weights=prefix_weights),
    "sampled token, prefix weights": sampled(lambda k: k.rewards * prefix_weights(k)),
}


def position_gradient(family: Family, student: Tensor, teacher: Tensor) -> Tensor:
    """sum over prefixes of q(prefix) grad KL_prefix[q||p], (prefixes, vocabulary)."""
    visits = torch.zeros(family.rows, dtype=student.dtype)
    probability = sequence_probabilities(family, student, teacher, 0.0)
    visits.index_add_(0, family.prefixes.flatten(), (probability[:, None] * family.mask).flatten())
    table = student.clone().requires_grad_()
    return torch.autograd.grad((visits * objectives.reverse_kl(table, teacher)).sum(), table)[0]


def study(settings: Estimators) -> list[Finding]:
    """Every signal on every pair of estimators.study."""
    family = Family.of(settings.vocabulary, settings.horizon)
    findings = []
    for (distance, size), seed in itertools.product(settings.distances.items(), settings.seeds):
        student, teacher = pair(family, settings.vocabulary, distance, size, seed)
        exact, kl = (f(family, student, teacher) for f in (position_gradient, sequence_kl))
        for name, loss in SIGNALS.items():
            each = gradient_of_each(family, student, teacher, loss, 0.0)
            mean, variance = moments(sequence_probabilities(family, student, teacher, 0.0), each)
            about = (name, distance, 0.0, seed, kl.item())
            findings.append(finding(*about, exact, mean, variance, target="position"))
    return findings
