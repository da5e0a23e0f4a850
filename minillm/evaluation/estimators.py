"""Which estimators of the gradient of KL[q||p] are biased, by how much, and which variance they save: exact, by enumeration.

A vocabulary and a horizon so small that every sequence can be written down.  Student and teacher are tables: free logits for every
prefix.  Token 0 is the EOS.  The gradient of each sequence's loss is taken by the very functions that train (objectives.py), and its mean
and variance over sequences are summed, not sampled.
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
    """All sequences of a vocabulary and a horizon: (count, horizon) tokens, the prefix that each position stands on, and a mask."""

    tokens: Tensor
    prefixes: Tensor
    mask: Tensor
    rows: int  # number of prefixes, each with logits of its own

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
        """Log-probability of each token of each sequence, (count, horizon), 0 where masked; `table` is (prefixes, vocabulary)."""
        logs = table.log_softmax(-1)[self.prefixes].gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)
        return torch.where(self.mask.bool(), logs, 0.0)


def sequence_kl(family: Family, student: Tensor, teacher: Tensor) -> Tensor:
    """KL[q||p] over whole sequences (Eq. 1), from their probabilities."""
    q, p = (family.logprobs(table).sum(1) for table in (student, teacher))
    return (q.exp() * (q - p)).sum()


@dataclass(frozen=True)
class Trajectories:
    """What an estimator may use of all sequences, constants: log-probabilities, rewards and reverse KL of each position, weights."""

    family: Family
    teacher: Tensor
    rewards: Tensor
    reverse_kl: Tensor
    weights: Tensor  # per token (Eq. 5, approximated)
    products: Tensor  # Eq. 5


Loss = Callable[
    [Tensor, Tensor, Trajectories, int], Tensor
]  # student's table, its log-probabilities, what is known, sequence -> loss


def loss_of(
    credit: Callable[[Trajectories], Tensor],
    *,
    long_weights: Callable[[Trajectories], Tensor] | None = None,
    single: bool = True,
    single_weights: Callable[[Trajectories], Tensor] | None = None,
) -> Loss:
    """The loss of one sequence, summed over its tokens, with this advantage in the long term and these weights."""

    def loss(table: Tensor, logprobs: Tensor, known: Trajectories, i: int) -> Tensor:
        row = slice(i, i + 1)
        mask, prefixes = known.family.mask[row], known.family.prefixes[row]

        def cut(values: Callable[[Trajectories], Tensor] | None) -> Tensor | None:
            return None if values is None else values(known)[row]

        advantages = credit(known)[row]
        new = logprobs[row]
        total = objectives.policy_gradient_loss(
            new, new.detach(), advantages, mask, weights=cut(long_weights), clip=None, denominator=1.0
        )
        if single:
            total = total + objectives.single_step_loss(
                table[prefixes], known.teacher[prefixes], mask, weights=cut(single_weights), denominator=1.0
            )
        return total

    return loss


def following(known: Trajectories, rewards: Tensor | None = None, **options: Any) -> Tensor:
    """R_{t+1} of every token, Eq. 3; options are those of `objectives.returns`."""
    values = known.rewards if rewards is None else rewards
    return objectives.returns(values, known.family.mask, **({"length_norm": False} | options))


def whole(known: Trajectories, **options: Any) -> Tensor:
    """R_t of every token, Eq. 2."""
    return following(known, include_current=True, **options)


def later_products(known: Trajectories) -> Tensor:
    """The exact long term under mixed sampling: each later r_t' with the product of weights up to t', which the long term's own
    weight must not have again."""
    return following(known, rewards=known.rewards * known.products)


def prefix_products(known: Trajectories) -> Tensor:
    """The product of weights before t: exact for the single-step term, whose own token is summed over."""
    return torch.where(known.family.mask.bool(), known.products / known.weights, 0.0)


# Pure student samples (alpha = 0) ...
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
    """One estimator on one pair.  `bias` and `spread` are shares of the exact gradient's norm: |mean - exact| and the square root
    of the summed variances of a single sample; `cosine` is between mean and exact."""

    estimator: str
    distance: str
    alpha: float
    seed: int
    kl: float
    norm: float
    bias: float
    spread: float
    cosine: float


def measure(
    family: Family, student: Tensor, teacher: Tensor, loss: Loss, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(exact gradient, mean, variance summed over the parameters) of an estimator whose samples come from the mixture."""
    table = student.clone().requires_grad_()
    exact = torch.autograd.grad(sequence_kl(family, table, teacher), table)[0]
    q, p = family.logprobs(student), family.logprobs(teacher)
    weights = objectives.importance_weights(q, p, alpha) * family.mask
    reverse = objectives.reverse_kl(student, teacher)[family.prefixes] * family.mask
    known = Trajectories(
        family,
        teacher,
        objectives.token_rewards(q, p, family.mask),
        reverse,
        weights,
        objectives.sequence_weights(weights, family.mask),
    )
    mixture = (alpha * teacher.softmax(-1) + (1 - alpha) * student.softmax(-1)).log()
    probability = family.logprobs(mixture).sum(1).exp()
    gradients = torch.stack(
        [
            torch.autograd.grad(loss(table, family.logprobs(table), known, i), table)[0]
            for i in range(len(family.tokens))
        ]
    )
    mean = (probability[:, None, None] * gradients).sum(0)
    variance = (probability * ((gradients - mean) ** 2).sum((1, 2))).sum()
    return exact, mean, variance


def pair(family: Family, vocabulary: int, distance: str, size: float, seed: int) -> tuple[Tensor, Tensor]:
    """(student, teacher) tables in float64: logits `size` apart in standard deviations; "disjoint": the student's mass lies where
    the teacher has almost none."""
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
    found = []
    for (distance, size), seed in itertools.product(settings.distances.items(), settings.seeds):
        student, teacher = pair(family, settings.vocabulary, distance, size, seed)
        for alpha, losses in ((0.0, OWN), *((alpha, MIXED) for alpha in settings.alphas)):
            for name, loss in losses.items():
                exact, mean, variance = measure(family, student, teacher, loss, alpha)
                norm = exact.norm()
                found.append(
                    Finding(
                        name,
                        distance,
                        alpha,
                        seed,
                        sequence_kl(family, student, teacher).item(),
                        norm.item(),
                        ((mean - exact).norm() / norm).item(),
                        (variance.clamp(min=0).sqrt() / norm).item(),
                        (torch.dot(mean.flatten(), exact.flatten()) / (mean.norm() * norm)).item(),
                    )
                )
    return found
