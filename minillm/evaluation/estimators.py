"""Bias and variance of estimators of the gradient of KL[q||p], exact by enumeration.

Vocabulary and horizon are so small that every sequence can be enumerated.  Student and teacher are tables:
free logits for every prefix.  Token 0 is the EOS.  The gradient of each sequence's loss comes from the same
functions as in training (objectives.py); its mean and variance over sequences are summed, not sampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm import objectives
from minillm.config.estimators import Estimators

EOS = 0


@dataclass(frozen=True)
class Family:
    """All sequences of a vocabulary and a horizon, (count, horizon): tokens, their prefixes and a mask."""

    tokens: Tensor
    prefixes: Tensor
    mask: Tensor
    # Number of prefixes, each with its own logits.
    rows: int

    @classmethod
    def of(cls, vocabulary: int, horizon: int) -> Family:
        """Sequences that end with their first EOS or at the horizon; padding is token 0 under a mask of 0."""
        words = [
            (*body, EOS) for n in range(horizon) for body in itertools.product(range(1, vocabulary), repeat=n)
        ] + list(itertools.product(range(1, vocabulary), repeat=horizon))
        index: dict[tuple[int, ...], int] = {}
        tokens = torch.zeros(len(words), horizon, dtype=torch.long)
        prefixes, mask = torch.zeros_like(tokens), torch.zeros(len(words), horizon, dtype=torch.float64)
        for i, word in enumerate(words):
            for t, token in enumerate(word):
                tokens[i, t], mask[i, t] = token, 1.0
                prefixes[i, t] = index.setdefault(tuple(word[:t]), len(index))
        return cls(tokens, prefixes, mask, len(index))

    def logprobs(self, table: Tensor) -> Tensor:
        """Log-probability of each token, (count, horizon), 0 if masked; `table` is (prefixes, vocabulary)."""
        logs = table.log_softmax(-1)[self.prefixes].gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)
        return torch.where(self.mask.bool(), logs, 0.0)


def sequence_kl(family: Family, student: Tensor, teacher: Tensor) -> Tensor:
    """KL[q||p] over whole sequences (Eq. 1), from their probabilities."""
    q, p = (family.logprobs(table).sum(1) for table in (student, teacher))
    return (q.exp() * (q - p)).sum()


@dataclass(frozen=True)
class Trajectories:
    """Constants that an estimator may use: both tables, and rewards, reverse KL and weights of all tokens."""

    family: Family
    student: Tensor
    teacher: Tensor
    rewards: Tensor
    reverse_kl: Tensor
    # Per token (Eq. 5, approximated).
    weights: Tensor
    # Eq. 5.
    products: Tensor


# Student's table, its log-probabilities, constants, sequence -> loss.
Loss = Callable[[Tensor, Tensor, Trajectories, int], Tensor]


def loss_of(
    credit: Callable[[Trajectories], Tensor],
    *,
    long_weights: Callable[[Trajectories], Tensor] | None = None,
    single: bool = True,
    single_weights: Callable[[Trajectories], Tensor] | None = None,
) -> Loss:
    """The loss of one sequence, summed over its tokens, from this advantage and these weights."""

    def loss(table: Tensor, logprobs: Tensor, constants: Trajectories, i: int) -> Tensor:
        row = slice(i, i + 1)
        mask, prefixes = constants.family.mask[row], constants.family.prefixes[row]

        def cut(values: Callable[[Trajectories], Tensor] | None) -> Tensor | None:
            return None if values is None else values(constants)[row]

        advantages = credit(constants)[row]
        new = logprobs[row]
        total = objectives.policy_gradient_loss(
            new, new.detach(), advantages, mask, weights=cut(long_weights), clip=None, denominator=1.0
        )
        if single:
            total = total + objectives.single_step_loss(
                table[prefixes],
                constants.teacher[prefixes],
                mask,
                weights=cut(single_weights),
                denominator=1.0,
            )
        return total

    return loss


def following(constants: Trajectories, rewards: Tensor | None = None, **options: Any) -> Tensor:
    """R_{t+1} of every token, Eq. 3; options are those of `objectives.returns`."""
    values = constants.rewards if rewards is None else rewards
    return objectives.returns(values, constants.family.mask, **({"length_norm": False} | options))


def whole(constants: Trajectories, **options: Any) -> Tensor:
    """R_t of every token, Eq. 2."""
    return following(constants, include_current=True, **options)


def later_products(constants: Trajectories) -> Tensor:
    """The exact long term under mixed sampling: each later r_t' times the product of weights up to t'.

    The long term's own weight must not repeat that product.
    """
    return following(constants, rewards=constants.rewards * constants.products)


def prefix_products(constants: Trajectories) -> Tensor:
    """The product of weights before t: exact for the single-step term, which sums over its own token."""
    return torch.where(constants.family.mask.bool(), constants.products / constants.weights, 0.0)


# Samples of only the student (alpha = 0) ...
OWN: dict[str, Loss] = {
    "Eq. 2": loss_of(whole, single=False),
    "Eq. 2 with its -1": loss_of(lambda k: whole(k) - 1.0, single=False),
    "Eq. 3": loss_of(following),
    "Eq. 3, expected rewards": loss_of(lambda k: following(k, rewards=-k.reverse_kl)),
    "reward + KL, no single-step": loss_of(lambda k: whole(k) + k.reverse_kl, single=False),
    "single-step alone": loss_of(lambda k: torch.zeros_like(k.rewards)),
    "Eq. 3, gamma 0.95": loss_of(lambda k: following(k, gamma=0.95)),
    "Eq. 6 (length norm.)": loss_of(lambda k: following(k, length_norm=True)),
    "released (R_t, gamma, length norm.)": loss_of(lambda k: whole(k, gamma=0.95, length_norm=True)),
}
# ... and samples of the mixture.
MIXED: dict[str, Loss] = {
    "products up to each reward": loss_of(later_products, single_weights=prefix_products),
    "Eq. 5, products": loss_of(
        following, long_weights=lambda k: k.products, single_weights=lambda k: k.products
    ),
    "Eq. 5, last factors": loss_of(
        following, long_weights=lambda k: k.weights, single_weights=lambda k: k.weights
    ),
    "last factors, single-step unweighted": loss_of(following, long_weights=lambda k: k.weights),
    "Eq. 7 (last factors, length norm.)": loss_of(
        lambda k: following(k, length_norm=True),
        long_weights=lambda k: k.weights,
        single_weights=lambda k: k.weights,
    ),
    "no weights": loss_of(following),
}


@dataclass(frozen=True)
class Finding:
    """One estimator on one pair.

    `bias` and `spread` are relative to the exact gradient's norm: |mean - exact|, and the square root of a
    single sample's summed variances.  `cosine` is between mean and exact.  `target` says what is exact: the
    gradient of the KL of whole "sequence"s, or (signal_estimators.py) of each "position"'s.
    """

    estimator: str
    distance: str
    alpha: float
    seed: int
    kl: float
    norm: float
    bias: float
    spread: float
    cosine: float
    target: str = "sequence"


def measure(
    family: Family, student: Tensor, teacher: Tensor, loss: Loss, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(exact gradient, mean, variance summed over parameters) of an estimator on samples of the mixture."""
    table = student.clone().requires_grad_()
    exact = torch.autograd.grad(sequence_kl(family, table, teacher), table)[0]
    probability = sequence_probabilities(family, student, teacher, alpha)
    return exact, *moments(probability, gradient_of_each(family, student, teacher, loss, alpha))


def moments(probability: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, variance summed over parameters) of gradients (count, ...) with these probabilities (count,)."""
    mean = (probability[:, None, None] * gradients).sum(0)
    return mean, (probability * ((gradients - mean) ** 2).sum((1, 2))).sum()


def finding(
    name: str,
    distance: str,
    alpha: float,
    seed: int,
    kl: float,
    exact: Tensor,
    mean: Tensor,
    variance: Tensor,
    target: str = "sequence",
) -> Finding:
    """The finding from an exact gradient and an estimator's moments."""
    norm = exact.norm()
    return Finding(
        name,
        distance,
        alpha,
        seed,
        kl,
        norm.item(),
        ((mean - exact).norm() / norm).item(),
        (variance.clamp(min=0).sqrt() / norm).item(),
        (torch.dot(mean.flatten(), exact.flatten()) / (mean.norm() * norm)).item(),
        target,
    )


def sequence_probabilities(family: Family, student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """Of each sequence under the mixture, (count,)."""
    mixture = (alpha * teacher.softmax(-1) + (1 - alpha) * student.softmax(-1)).log()
    return family.logprobs(mixture).sum(1).exp()


def constants_of(family: Family, student: Tensor, teacher: Tensor, alpha: float) -> Trajectories:
    """What an estimator may use of every sequence, if samples come from the mixture."""
    q, p = family.logprobs(student), family.logprobs(teacher)
    weights = objectives.importance_weights(q, p, alpha) * family.mask
    reverse = objectives.reverse_kl(student, teacher)[family.prefixes] * family.mask
    return Trajectories(
        family,
        student,
        teacher,
        objectives.token_rewards(q, p, family.mask),
        reverse,
        weights,
        objectives.sequence_weights(weights, family.mask),
    )


def gradient_of_each(family: Family, student: Tensor, teacher: Tensor, loss: Loss, alpha: float) -> Tensor:
    """The gradient of every sequence's loss, (count, prefixes, vocabulary)."""
    table = student.clone().requires_grad_()
    constants = constants_of(family, student, teacher, alpha)
    return torch.stack(
        [
            torch.autograd.grad(loss(table, family.logprobs(table), constants, i), table)[0]
            for i in range(len(family.tokens))
        ]
    )


def pair(family: Family, vocabulary: int, distance: str, size: float, seed: int) -> tuple[Tensor, Tensor]:
    """(student, teacher) tables in float64 whose logits are `size` standard deviations apart.

    "disjoint": the student's mass is where the teacher has almost none.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher, noise = (
        torch.randn(family.rows, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    if distance == "disjoint":
        likely = teacher.argmax(-1, keepdim=True)
        away = torch.zeros_like(teacher).scatter_(-1, likely, size)
        return noise - away, teacher + away
    return teacher + size * noise, teacher


def study(settings: Estimators) -> list[Finding]:
    """Every estimator on every pair."""
    family = Family.of(settings.vocabulary, settings.horizon)
    findings = []
    for (distance, size), seed in itertools.product(settings.distances.items(), settings.seeds):
        student, teacher = pair(family, settings.vocabulary, distance, size, seed)
        for alpha, losses in ((0.0, OWN), *((alpha, MIXED) for alpha in settings.alphas)):
            for name, loss in losses.items():
                kl = sequence_kl(family, student, teacher).item()
                moments_of = measure(family, student, teacher, loss, alpha)
                findings.append(finding(name, distance, alpha, seed, kl, *moments_of))
    return findings
