"""Means, rewards, returns, weights and the two losses against references in another style.

The references are loops over tokens, in float64. Each is compared under every mask layout, in value (1e-9)
and in gradient (finite differences, 1e-6).
"""

import math

import pytest
import torch
from objectives_case import (
    MASKS,
    each_token,
    gradient_is_right,
    kl,
    logits,
    logprobs,
    mask_layouts,
    mean_of_valid,
    same,
    uniform,
    untouched_by_the_mask,
)

from minillm import objectives as o

PLACES = [(i, t) for i in range(3) for t in range(5)]


# --- means
@mask_layouts
def test_masked_mean(mask):
    values = uniform(4, -3, 3)
    same(o.masked_mean(values, mask), mean_of_valid(values, mask))
    gradient_is_right(lambda x: o.masked_mean(x, mask), values)
    untouched_by_the_mask(lambda x: o.masked_mean(x, mask), values, mask)


@mask_layouts
def test_masked_means_of_parts_add_up_with_the_denominator_of_the_whole(mask):
    values = uniform(4, -3, 3)
    parts = [o.masked_mean(values[i : i + 1], mask[i : i + 1], denominator=mask.sum()) for i in range(3)]
    same(torch.stack(parts).sum(), mean_of_valid(values, mask))
    gradient_is_right(lambda x: o.masked_mean(x, mask, denominator=4.5), values)


def test_masked_mean_of_nothing_is_zero_whatever_lies_under_the_mask():
    values = torch.tensor([[torch.nan, torch.inf]], requires_grad=True)
    mean = o.masked_mean(values, torch.zeros(1, 2))
    mean.backward()
    assert mean.item() == 0.0 and (values.grad == 0).all()


@pytest.mark.parametrize("mask_type", [torch.bfloat16, torch.float32, torch.bool])
def test_masked_mean_of_bf16_is_a_float32_mean(mask_type):
    """A sum in bf16 stands still at 256: neither values nor mask may be added up in it."""
    values = (1.0 + torch.arange(1000).remainder(7) / 64).bfloat16()[None]  # exact in bf16
    mean = o.masked_mean(values, torch.ones(1, 1000, dtype=mask_type))
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(values.double().mean().item(), rel=1e-6)


# --- rewards and returns
@mask_layouts
@pytest.mark.parametrize(("scale", "clip"), [(1.0, None), (0.5, 1.0)])
def test_token_rewards(mask, scale, clip):
    q, p = logprobs()
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for i, t in PLACES:
        if mask[i, t]:
            reward = (p[i, t].item() - q[i, t].item()) / scale
            expected[i, t] = reward if clip is None else min(clip, max(-clip, reward))
    same(o.token_rewards(q, p, mask, scale=scale, clip=clip), expected)
    gradient_is_right(lambda x, y: o.token_rewards(x, y, mask, scale=scale, clip=clip), q, p)
    untouched_by_the_mask(lambda x: o.token_rewards(x, p, mask, scale=scale, clip=clip), q, mask)


@mask_layouts
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("length_norm", [True, False])
@pytest.mark.parametrize("include_current", [True, False])
def test_returns_equal_explicit_sums(mask, gamma, length_norm, include_current):
    rewards = uniform(5, -2, 2) * mask
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        valid = [t for t in range(5) if mask[i, t]]
        for k, t in enumerate(valid):
            following = valid[k if include_current else k + 1 :]
            total = sum(
                gamma**distance * rewards[i, later].item() for distance, later in enumerate(following)
            )
            expected[i, t] = total / max(1, len(following)) if length_norm else total

    def function(values):
        return o.returns(values, mask, gamma=gamma, length_norm=length_norm, include_current=include_current)

    same(function(rewards), expected)
    gradient_is_right(function, rewards)
    untouched_by_the_mask(function, rewards, mask)


# --- whitening
def whitened_by_loops(values, valid, eps):
    chosen = [values[i, t].item() for i, t in PLACES if valid[i][t]]
    mean = sum(chosen) / len(chosen)
    variance = sum((x - mean) ** 2 for x in chosen) / len(chosen)
    rows = [
        [(values[i, t].item() - mean) / math.sqrt(variance + eps) if valid[i][t] else 0.0 for t in range(5)]
        for i in range(3)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@mask_layouts
@pytest.mark.parametrize("eps", [1e-8, 0.3])
def test_whiten(mask, eps):
    values = uniform(6, -1, 2)
    same(o.whiten(values, mask, eps=eps), whitened_by_loops(values, mask.tolist(), eps))
    gradient_is_right(lambda x: o.whiten(x, mask, eps=eps), values)
    untouched_by_the_mask(lambda x: o.whiten(x, mask, eps=eps), values, mask)


def test_whiten_over_all_positions():
    values = uniform(6, -1, 2)
    same(o.whiten(values, None), whitened_by_loops(values, [[1] * 5] * 3, 1e-8))
    gradient_is_right(lambda x: o.whiten(x, None), values)


@mask_layouts
def test_whiten_with_given_statistics(mask):
    values, (mean, variance) = uniform(6, -1, 2), torch.tensor([0.7, 2.5], dtype=torch.float64)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for i, t in PLACES:
        if mask[i, t]:
            expected[i, t] = (values[i, t].item() - 0.7) / math.sqrt(2.5 + 0.1)
    same(o.whiten(values, mask, eps=0.1, statistics=(mean, variance)), expected)
    gradient_is_right(lambda x, m, v: o.whiten(x, mask, statistics=(m, v)), values, mean, variance)


@mask_layouts
def test_whitening_of_parts_with_the_statistics_of_the_whole(mask):
    values = uniform(6, -1, 2)
    mean = o.masked_mean(values, mask)
    statistics = mean, o.masked_mean((values - mean) ** 2, mask)
    parts = torch.cat([o.whiten(values[i : i + 1], mask[i : i + 1], statistics=statistics) for i in range(3)])
    same(parts, whitened_by_loops(values, mask.tolist(), 1e-8))


# --- weights
@mask_layouts
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.9])
def test_importance_weights(mask, alpha):
    q, p = logprobs()
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for i, t in PLACES:
        student, teacher = math.exp(q[i, t].item()), math.exp(p[i, t].item())
        expected[i, t] = student / (alpha * teacher + (1 - alpha) * student)
    found = o.importance_weights(q, p, alpha)
    same(found, expected)
    assert (found <= 1 / (1 - alpha) + 1e-12).all()
    gradient_is_right(lambda x, y: o.importance_weights(x, y, alpha), q, p)
    gradient_is_right(lambda x: o.masked_mean(o.importance_weights(x, p, alpha), mask), q)


def test_importance_weights_do_not_overflow():
    q, p = torch.tensor([[-500.0, -0.1]], requires_grad=True), torch.tensor([[-0.1, -500.0]])
    found = o.importance_weights(q, p, 0.2)
    found.sum().backward()
    assert found.isfinite().all() and q.grad.isfinite().all()


@mask_layouts
def test_sequence_weights(mask):
    weights = uniform(7, 0.5, 1.5)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        product = 1.0
        for t in range(5):
            if mask[i, t]:
                product *= weights[i, t].item()
                expected[i, t] = product
    same(o.sequence_weights(weights, mask), expected)
    gradient_is_right(lambda x: o.sequence_weights(x, mask), weights)
    untouched_by_the_mask(lambda x: o.sequence_weights(x, mask), weights, mask)


# --- the long term
@mask_layouts
@pytest.mark.parametrize("surrogate", ["ppo", "paper"])
@pytest.mark.parametrize("clip", [0.2, None])
@pytest.mark.parametrize("weighted", [True, False])
def test_policy_gradient_loss(mask, surrogate, clip, weighted):
    new, old = logprobs()
    advantages, weights = uniform(8, -2, 2), uniform(9, 0.1, 1.2)
    terms = []
    for i, t in PLACES:
        if mask[i, t]:
            a, w = advantages[i, t].item(), weights[i, t].item() if weighted else 1.0
            ratio = math.exp(new[i, t].item() - old[i, t].item()) * w
            cut = ratio if clip is None else min(max(ratio, 1 - clip), 1 + clip)
            terms.append(max(-a * ratio, -a * cut) if surrogate == "ppo" else -a * min(ratio, cut))
    arguments = {"weights": weights if weighted else None, "clip": clip, "surrogate": surrogate}

    def loss(values, **more):
        return o.policy_gradient_loss(values, old, advantages, mask, **arguments, **more)

    same(loss(new), sum(terms) / len(terms))
    same(loss(new, denominator=40.0), sum(terms) / 40)
    gradient_is_right(loss, new)
    gradient_is_right(lambda x: loss(x, denominator=torch.tensor(40.0)), new)
    untouched_by_the_mask(loss, new, mask)


@mask_layouts
def test_nothing_under_the_mask_reaches_the_long_terms_gradient(mask):
    new, old = logprobs()
    hidden = ~mask.bool()
    point, expected = new.clone().requires_grad_(), new.clone().requires_grad_()
    o.policy_gradient_loss(expected, old, old, mask, weights=old.exp()).backward()
    spoilt = [
        x.masked_fill(hidden, value) for x, value in ((old, math.nan), (old, math.inf), (old.exp(), math.nan))
    ]
    o.policy_gradient_loss(point, spoilt[0], spoilt[1], mask, weights=spoilt[2]).backward()
    same(point.grad, expected.grad)


def test_an_unknown_surrogate_is_refused():
    new, old = logprobs()
    with pytest.raises(ValueError, match="'ppo' or 'paper', not 'pppo'"):
        o.policy_gradient_loss(new, old, old, torch.ones(3, 5), surrogate="pppo")


def test_old_values_are_constants():
    new, old, advantages, weights = (uniform(seed, 0.1, 1).requires_grad_() for seed in range(4))
    o.policy_gradient_loss(new, old, advantages, torch.ones(3, 5), weights=weights).backward()
    assert new.grad is not None and old.grad is None and advantages.grad is None and weights.grad is None


@mask_layouts
def test_long_term_gradient_is_equation_2_without_the_ratio(mask):
    """At theta = theta_old the surrogate's gradient is -A grad log q: the REINFORCE form of Eqs. 2 and 3."""
    advantages, point = uniform(8, -2, 2), logprobs()[0].requires_grad_()
    o.policy_gradient_loss(point, point.detach(), advantages, mask).backward()
    same(point.grad, -advantages * mask / mask.sum())


@pytest.mark.parametrize("surrogate", ["ppo", "paper"])
def test_a_ratio_whose_factors_overflow_is_right(surrogate):
    """The student learns a token that it nearly never drew.

    exp(new - old) is infinite in float32, the ratio with its weight is e^-3.
    """
    new = torch.tensor([[-5.0, -1.0]], requires_grad=True)
    old, weights = torch.tensor([[-100.0, -1.0]]), torch.tensor([[-98.0, 0.0]]).double().exp().float()
    advantages = torch.tensor([[1.0, 1.0]])
    loss = o.policy_gradient_loss(
        new,
        old,
        advantages,
        torch.ones(1, 2),
        weights=weights,
        surrogate=surrogate,
        denominator=1.0,
        clip=None,
    )
    loss.backward()
    assert loss.item() == pytest.approx(
        -math.exp(-3) - 1.0, rel=1e-3
    )  # a weight of e^-98 has few digits in float32
    assert new.grad[0].tolist() == pytest.approx([-math.exp(-3), -1.0], rel=1e-2)


@pytest.mark.parametrize("weights", [None, torch.tensor([[1.0, 1.0, 1.0]])])
@pytest.mark.parametrize("surrogate", ["ppo", "paper"])
@pytest.mark.parametrize("clip", [0.2, None])
def test_a_ratio_that_overflows_leaves_loss_and_gradient_finite(weights, surrogate, clip):
    new = torch.tensor([[-1.0, -1.0, -2.0]], requires_grad=True)
    old, advantages = torch.tensor([[-95.0, -400.0, -2.5]]), torch.tensor([[-1.0, -1000.0, 1.0]])
    loss = o.policy_gradient_loss(
        new, old, advantages, torch.ones(1, 3), weights=weights, surrogate=surrogate, clip=clip
    )
    loss.backward()
    assert loss.isfinite() and new.grad.isfinite().all()
    assert new.grad.square().sum().isfinite(), "the norm that is clipped"
    assert clip or new.grad[0, 2] != 0


@pytest.mark.parametrize("old", [-2.0, -torch.inf])
def test_a_weight_of_zero_is_a_ratio_of_zero(old):
    """Also where the student could not have drawn the token at all."""
    new = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    arguments = {"weights": torch.tensor([[0.0, 1.0]]), "clip": None, "denominator": 1.0}
    loss = o.policy_gradient_loss(
        new, torch.tensor([[old, -1.0]]), torch.tensor([[3.0, 5.0]]), torch.ones(1, 2), **arguments
    )
    loss.backward()
    assert loss.item() == pytest.approx(-5.0) and new.grad.tolist() == [[0.0, pytest.approx(-5.0)]]


# --- the single-step term
@mask_layouts
@pytest.mark.parametrize("weighted", [True, False])
def test_single_step_loss(mask, weighted):
    q, p = logits()
    weights = uniform(10, 0.2, 1.2) if weighted else None
    values = each_token(q, p, kl) * (weights if weighted else 1.0)
    same(o.single_step_loss(q, p, mask, weights=weights), mean_of_valid(values, mask))
    same(
        o.single_step_loss(q, p, mask, weights=weights, denominator=40.0),
        mean_of_valid(values, mask) * mask.sum().item() / 40,
    )
    gradient_is_right(lambda x, y: o.single_step_loss(x, y, mask, weights=weights), q, p)
    gradient_is_right(lambda x: o.single_step_loss(x, p, mask, weights=weights, denominator=40.0), q)


@mask_layouts
def test_nothing_under_the_mask_reaches_the_single_steps_gradient(mask):
    q, p = logits()
    weights = uniform(10, 0.2, 1.2)
    spoilt = weights.masked_fill(~mask.bool(), math.nan)
    untouched_by_the_mask(lambda x: o.single_step_loss(x, p, mask, weights=spoilt), q, mask)
    same(o.single_step_loss(q, p, mask, weights=spoilt), o.single_step_loss(q, p, mask, weights=weights))
    untouched_by_the_mask(lambda x: o.single_step_loss(q, x, mask), p, mask)


def test_weights_are_constants_in_the_single_step_term():
    q, p = (x.requires_grad_() for x in logits())
    weights = uniform(10, 0.2, 1.2).requires_grad_()
    o.single_step_loss(q, p, torch.tensor(MASKS["holes"]), weights=weights).backward()
    assert q.grad is not None and p.grad is not None and weights.grad is None
