"""What shared coins cost: against sums over all batches of two rows, and against batches that are drawn."""

import itertools

import numpy as np
import pytest
import torch

from minillm import objectives
from minillm.evaluation.estimators import (
    MIXED,
    Family,
    constants_of,
    following,
    gradient_of_each,
    pair,
    sequence_probabilities,
)
from minillm.evaluation.shared_coins import (
    BATCH,
    Whitened,
    drawn_batches,
    exact,
    given_coins,
    shared_part,
)

FAMILY, ALPHA, LOSS = Family.of(3, 3), 0.3, MIXED["Eq. 5, last factors"]
PROMPTS = [pair(FAMILY, 3, "far", 2.0, seed) for seed in (1, 2)]


def test_coins_and_draws_given_them_are_draws_from_the_mixture():
    chance, given = given_coins(FAMILY, *PROMPTS[0], ALPHA)
    assert chance.sum().item() == pytest.approx(1) and torch.allclose(given.sum(1), torch.ones(8).double())
    assert torch.allclose(chance @ given, sequence_probabilities(FAMILY, *PROMPTS[0], ALPHA))
    # Heads everywhere are the teacher's samples, tails the student's.
    student, teacher = (FAMILY.logprobs(x).sum(1).exp() for x in PROMPTS[0])
    assert torch.allclose(given[0], student) and torch.allclose(given[-1], teacher)


@pytest.mark.parametrize("prompts", [(0, 0), (0, 1)])
def test_the_variance_of_two_rows_that_share_their_coins(prompts):
    """Over all coins and all pairs of sequences given them."""
    chance = given_coins(FAMILY, *PROMPTS[0], ALPHA)[0]
    gradients = [gradient_of_each(FAMILY, *PROMPTS[i], LOSS, ALPHA).flatten(1) for i in prompts]
    laws = [given_coins(FAMILY, *PROMPTS[i], ALPHA)[1] for i in prompts]
    mean, square = 0.0, 0.0
    for c, (a, b) in itertools.product(range(8), itertools.product(range(len(FAMILY.tokens)), repeat=2)):
        weight, batch = chance[c] * laws[0][c, a] * laws[1][c, b], (gradients[0][a] + gradients[1][b]) / 2
        mean, square = mean + weight * batch, square + weight * (batch**2).sum()
    variance = (square - (mean**2).sum()).item()
    (one, x), (two, y) = (shared_part(FAMILY, *PROMPTS[i], LOSS, ALPHA) for i in prompts)
    assert variance == pytest.approx((one + two) / 4 + (x @ y).item() / 2, rel=1e-6)
    assert variance != pytest.approx((one + two) / 4, rel=1e-4)


def test_groups_of_a_batch():
    """One prompt's rows, drawn; the mean over unrelated prompts is that over their pairs."""
    (one, x), (two, y) = (shared_part(FAMILY, *models, LOSS, ALPHA) for models in PROMPTS)
    same, other = exact(FAMILY, PROMPTS, LOSS, ALPHA)
    assert same[1] == pytest.approx(1 + 63 * (x @ x + y @ y).item() / (one + two))
    assert other[0] == pytest.approx(1 + 7 * 2 * (x @ y).item() / (one + two))
    gradients = gradient_of_each(FAMILY, *PROMPTS[0], LOSS, ALPHA).flatten(1)
    chance, given = given_coins(FAMILY, *PROMPTS[0], ALPHA)
    generator = np.random.default_rng(0)
    for size in (1, 8, BATCH):
        counts = drawn_batches(chance, given, size, generator)
        assert (counts.sum(1) == BATCH).all()
        drawn = (counts @ gradients / BATCH).var(0).sum().item()
        assert drawn == pytest.approx((one + (size - 1) * (x @ x).item()) / BATCH, rel=0.15), size


def test_the_whitened_gradient_is_that_of_the_objectives():
    student, teacher = PROMPTS[0]
    rows = torch.tensor([0, 3, 3, 5, 9, 14, 14, 14])
    table = student.clone().requires_grad_()
    constants, mask = constants_of(FAMILY, student, teacher, ALPHA), FAMILY.mask[rows]
    new, weights, tokens = FAMILY.logprobs(table)[rows], constants.weights[rows], mask.sum().item()
    credit = objectives.whiten(following(constants, length_norm=True)[rows], mask)
    loss = objectives.policy_gradient_loss(
        new, new.detach(), credit, mask, weights=weights, clip=None, denominator=tokens
    ) + objectives.single_step_loss(
        table[FAMILY.prefixes[rows]],
        teacher[FAMILY.prefixes[rows]],
        mask,
        weights=weights,
        denominator=tokens,
    )
    (expected,) = torch.autograd.grad(loss, table)
    counts = torch.bincount(rows, minlength=len(FAMILY.tokens)).double()[None]
    found = Whitened.of(FAMILY, student, teacher, ALPHA).gradients(counts)[0]
    torch.testing.assert_close(found, expected.flatten(), atol=1e-8, rtol=1e-6)
