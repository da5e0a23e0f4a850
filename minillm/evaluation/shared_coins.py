"""What it costs that rows share the coins they are sampled by: exact, on the vocabulary of estimators.py.

Rows with the same coins are drawn independently given them.  With V the variance of a row's gradient, and C
the covariance of two rows' mean gradients given the coins, the mean of B rows in groups of n has the variance
(V + (n - 1) C) / B.  Rows of one prompt have the largest C; the tables of two seeds stand for two prompts
that have nothing in common but the parameters.  Whitening over the batch is not linear in its rows: with it,
batches of one prompt are drawn, not enumerated.

`python -m minillm.evaluation.shared_coins` prints the table of docs/estimators.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm.config.estimators import Estimators
from minillm.evaluation.estimators import (
    MIXED,
    Family,
    Loss,
    constants_of,
    following,
    gradient_of_each,
    loss_of,
    pair,
    sequence_probabilities,
)

# Rows of a batch, and batches that are drawn.
BATCH, DRAWS = 64, 2000
GROUPS = (8, BATCH)
SHOWN = ("products up to each reward", "Eq. 7 (last factors, length norm.)")


def given_coins(family: Family, student: Tensor, teacher: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Probabilities: of each sequence of coins, (coins,), and given it of each of tokens, (coins, count)."""
    tossed = list(itertools.product((False, True), repeat=family.tokens.shape[1]))
    heads = torch.tensor(tossed)
    chances = torch.tensor([[alpha if head else 1 - alpha for head in row] for row in tossed]).double()
    q, p = family.logprobs(student), family.logprobs(teacher)
    return chances.prod(1), torch.where(heads[:, None], p, q).sum(-1).exp()


def shared_part(
    family: Family, student: Tensor, teacher: Tensor, loss: Loss, alpha: float
) -> tuple[float, Tensor]:
    """(V, summed over parameters; how the mean gradient given the coins deviates from its mean).

    Deviations (coins * parameters,) are weighted so that the product of two prompts' is their C: its own with
    itself is the variance of one prompt's mean gradient given the coins.
    """
    gradients = gradient_of_each(family, student, teacher, loss, alpha).flatten(1)
    chance, given = given_coins(family, student, teacher, alpha)
    means = given @ gradients
    mean = chance @ means
    probability = sequence_probabilities(family, student, teacher, alpha)
    variance = (probability * ((gradients - mean) ** 2).sum(1)).sum()
    return variance.item(), (chance.sqrt()[:, None] * (means - mean)).flatten()


@dataclass(frozen=True)
class Whitened:
    """Eq. 7 with advantages whitened over the tokens of a batch, and its mean over these tokens.

    What a batch's gradient is made of, of each sequence: gradients (count, parameters) of the long term with
    its advantages and with advantages of 1, and of the single-step term; the sums over tokens (count,) of the
    advantages and of their squares; tokens.
    """

    long: Tensor
    ones: Tensor
    single: Tensor
    sums: Tensor
    squares: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, family: Family, student: Tensor, teacher: Tensor, alpha: float) -> Whitened:
        def parts(loss: Loss) -> Tensor:
            return gradient_of_each(family, student, teacher, loss, alpha).flatten(1)

        credit = following(constants_of(family, student, teacher, alpha), length_norm=True)
        return cls(
            parts(loss_of(lambda k: credit, long_weights=lambda k: k.weights, single=False)),
            parts(loss_of(lambda k: k.family.mask, long_weights=lambda k: k.weights, single=False)),
            parts(loss_of(lambda k: torch.zeros_like(k.rewards), single_weights=lambda k: k.weights)),
            (credit * family.mask).sum(1),
            (credit**2 * family.mask).sum(1),
            family.mask.sum(1),
        )

    def gradients(self, counts: Tensor) -> Tensor:
        """Of batches, (batches, parameters), that hold each sequence so often: (batches, count)."""
        tokens = counts @ self.tokens
        mean = counts @ self.sums / tokens
        deviation = (counts @ self.squares / tokens - mean**2 + 1e-8).sqrt()
        long = (counts @ self.long - mean[:, None] * (counts @ self.ones)) / deviation[:, None]
        return (long + counts @ self.single) / tokens[:, None]


def drawn_batches(chance: Tensor, given: Tensor, size: int, generator: np.random.Generator) -> Tensor:
    """How often each sequence is in each of DRAWS batches, (DRAWS, count), whose groups have `size` rows."""
    coins = generator.choice(len(chance), (DRAWS, BATCH // size), p=(chance / chance.sum()).numpy())
    laws = (given / given.sum(1, keepdim=True)).numpy()
    return torch.from_numpy(generator.multinomial(size, laws[coins]).sum(1)).double()


def whitened_variances(
    family: Family, student: Tensor, teacher: Tensor, alpha: float, seed: int
) -> list[float]:
    """Variance of a batch's gradient, summed over parameters: one coin a row, then groups of GROUPS."""
    parts = Whitened.of(family, student, teacher, alpha)
    chance, given = given_coins(family, student, teacher, alpha)
    generator = np.random.Generator(np.random.Philox(seed))
    return [
        parts.gradients(drawn_batches(chance, given, size, generator)).var(0).sum().item()
        for size in (1, *GROUPS)
    ]


def exact(
    family: Family, pairs: Sequence[tuple[Tensor, Tensor]], loss: Loss, alpha: float
) -> list[list[float]]:
    """For rows of one prompt, and for rows of unrelated ones: 1 + (n - 1) C / V for each of GROUPS."""
    found = [shared_part(family, *models, loss, alpha) for models in pairs]
    own, parts = sum(variance for variance, _ in found), torch.stack([part for _, part in found])
    one = float((parts**2).sum())
    two = (float((parts.sum(0) ** 2).sum()) - one) / (len(pairs) - 1)
    return [[1 + (size - 1) * shared / own for size in GROUPS] for shared in (one, two)]


def table(settings: Estimators) -> list[str]:
    """Lines of markdown: variance of a batch's gradient relative to that of one coin a row."""
    family = Family.of(settings.vocabulary, settings.horizon)
    lines = ["| alpha | estimator | rows | " + " | ".join(settings.distances) + " |"]
    lines.append("|:--|:--|:--|" + "--:|" * len(settings.distances))

    def add(alpha: float, name: str, rows: str, ratios: Sequence[Sequence[float]]) -> None:
        cells = [", ".join(f"{value:.2f}" for value in values) for values in ratios]
        lines.append(f"| {alpha:g} | {name} | {rows} | " + " | ".join(cells) + " |")

    for alpha in settings.alphas:
        pairs = [
            [pair(family, settings.vocabulary, distance, size, seed) for seed in settings.seeds]
            for distance, size in settings.distances.items()
        ]
        for name in SHOWN:
            ratios = [exact(family, of_distance, MIXED[name], alpha) for of_distance in pairs]
            add(alpha, name, "one prompt", [one for one, _ in ratios])
            add(alpha, name, "unrelated prompts", [two for _, two in ratios])
        drawn = []
        for of_distance in pairs:
            by_seed = zip(of_distance, settings.seeds, strict=True)
            alone, *groups = np.sum(
                [whitened_variances(family, *models, alpha, seed) for models, seed in by_seed], axis=0
            )
            drawn.append([value / alone for value in groups])
        add(alpha, "Eq. 7, whitened (drawn)", "one prompt", drawn)
    return lines


if __name__ == "__main__":
    print("\n".join(table(Estimators(seeds=tuple(range(1, 9))))))
