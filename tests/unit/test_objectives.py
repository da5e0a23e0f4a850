"""The mathematics against independent references in another style: loops over tokens, explicit probabilities, float64."""

import math

import pytest
import torch

from minillm import objectives as o

torch.manual_seed(0)
MASKS = {
    "none": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
    "left": [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]],
    "holes": [[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 0, 1, 1]],
}
mask_layouts = pytest.mark.parametrize("mask", [torch.tensor(m, dtype=torch.float64) for m in MASKS.values()], ids=MASKS)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(1)
    shape = (3, 5, 7)
    return (
        3 * torch.randn(shape, generator=generator, dtype=torch.float64),
        3 * torch.randn(shape, generator=generator, dtype=torch.float64),
    )


@pytest.fixture
def logprobs():
    generator = torch.Generator().manual_seed(2)
    return tuple(-3 * torch.rand((3, 5), generator=generator, dtype=torch.float64) for _ in range(2))


def probabilities(row):
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / sum(weights) for w in weights]


def kl(a, b):
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True))


def each_token(student, teacher, value):
    return torch.tensor(
        [
            [value(probabilities(s), probabilities(t)) for s, t in zip(a, b, strict=True)]
            for a, b in zip(student.tolist(), teacher.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


def test_divergences_equal_explicit_sums(logits):
    q, p = logits
    assert torch.allclose(o.forward_kl(q, p), each_token(q, p, lambda a, b: kl(b, a)), atol=1e-12)
    assert torch.allclose(o.reverse_kl(q, p), each_token(q, p, lambda a, b: kl(a, b)), atol=1e-12)


def skew(a, b, alpha):
    return kl(a, [alpha * x + (1 - alpha) * y for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_jensen_shannon_equals_explicit_sums(logits, beta):
    q, p = logits

    def value(a, b):  # student, teacher
        if beta in (0.0, 1.0):
            return kl(a, b) if beta else kl(b, a)
        m = [beta * y + (1 - beta) * x for x, y in zip(a, b, strict=True)]
        return beta * kl(b, m) + (1 - beta) * kl(a, m)

    assert torch.allclose(o.jensen_shannon(q, p, beta), each_token(q, p, value), atol=1e-10)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_skew_divergences_and_total_variation_equal_explicit_sums(logits, alpha):
    q, p = logits
    assert torch.allclose(o.skew_forward_kl(q, p, alpha), each_token(q, p, lambda a, b: skew(b, a, alpha)), atol=1e-10)
    assert torch.allclose(o.skew_reverse_kl(q, p, alpha), each_token(q, p, lambda a, b: skew(a, b, alpha)), atol=1e-10)
    expected = each_token(q, p, lambda a, b: 0.5 * sum(abs(x - y) for x, y in zip(a, b, strict=True)))
    assert torch.allclose(o.total_variation(q, p), expected, atol=1e-12)


ALL = [o.forward_kl, o.reverse_kl, o.jensen_shannon, o.skew_forward_kl, o.skew_reverse_kl, o.total_variation]


@pytest.mark.parametrize("divergence", ALL)
def test_divergences_are_zero_between_equals_and_positive_otherwise(logits, divergence):
    q, p = logits
    assert torch.allclose(divergence(q, q), torch.zeros(3, 5, dtype=torch.float64), atol=1e-12)
    assert (divergence(q, p) > 0).all()


@pytest.mark.parametrize("divergence", ALL)
def test_divergences_stay_finite_at_extremes(divergence):
    """Logits of bf16's range, certain tokens, and a token that neither can draw: values and gradients are finite."""
    student = torch.tensor([[[80.0, -80.0, 0.0, -torch.inf], [3e4, -3e4, 0.0, -torch.inf]]], requires_grad=True)
    teacher = torch.tensor([[[-80.0, 80.0, 0.0, -torch.inf], [-3e4, 3e4, 0.0, -torch.inf]]])
    value = divergence(student, teacher)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()


@mask_layouts
def test_sequence_weights(mask):
    weights = 0.5 + torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    found = o.sequence_weights(weights, mask)
    for i in range(3):
        product = 1.0
        for t in range(5):
            product *= weights[i, t].item() if mask[i, t] else 1.0
            assert found[i, t].item() == pytest.approx(product if mask[i, t] else 0.0, abs=1e-12)


@pytest.mark.parametrize("divergence", ALL)
def test_divergences_ignore_a_shift_of_the_logits(logits, divergence):
    q, p = logits
    shift = torch.randn(3, 5, 1, dtype=torch.float64)
    assert torch.allclose(divergence(q + shift, p - 2 * shift), divergence(q, p), atol=1e-12)


@pytest.mark.parametrize("divergence", ALL)
def test_divergence_gradients_equal_finite_differences(logits, divergence):
    q, p = logits
    assert torch.autograd.gradcheck(lambda x: divergence(x, p), q.clone().requires_grad_())


def test_reverse_kl_is_finite_where_the_student_has_no_mass(logits):
    q, p = logits
    q = q.clone()
    q[..., 3] = -torch.inf
    q.requires_grad_()
    value = o.reverse_kl(q, p)
    value.sum().backward()
    assert value.isfinite().all() and q.grad.isfinite().all()
    keep = [0, 1, 2, 4, 5, 6]
    p_kept = p.log_softmax(-1)[..., keep]
    expected = (q.detach()[..., keep].softmax(-1) * (q.detach()[..., keep].log_softmax(-1) - p_kept)).sum(-1)
    assert torch.allclose(value.detach(), expected, atol=1e-12)


def test_unequal_vocabularies_are_refused(logits):
    q, p = logits
    with pytest.raises(ValueError, match="student 7, teacher 6"):
        o.reverse_kl(q, p[..., :6])


def test_low_precision_is_computed_in_float32(logits):
    q, p = logits
    value = o.reverse_kl(q.bfloat16(), p.bfloat16())
    assert value.dtype == torch.float32
    assert torch.allclose(value.double(), o.reverse_kl(q.bfloat16().double(), p.bfloat16().double()), atol=1e-5)
    assert o.reverse_kl(q, p).dtype == torch.float64


@mask_layouts
def test_masked_mean(mask, logprobs):
    values = logprobs[0]
    valid = [v for row, keep in zip(values.tolist(), mask.tolist(), strict=True) for v, k in zip(row, keep, strict=True) if k]
    assert o.masked_mean(values, mask).item() == pytest.approx(sum(valid) / len(valid), abs=1e-12)
    parts = sum(o.masked_mean(values[i : i + 1], mask[i : i + 1], denominator=mask.sum()) for i in range(3))
    assert parts.item() == pytest.approx(sum(valid) / len(valid), abs=1e-12)


def test_masked_mean_of_nothing_is_zero_whatever_lies_under_the_mask():
    values = torch.tensor([[torch.nan, torch.inf]])
    assert o.masked_mean(values, torch.zeros(1, 2)).item() == 0.0


@mask_layouts
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("length_norm", [True, False])
@pytest.mark.parametrize("include_current", [True, False])
def test_returns_equal_explicit_sums(mask, logprobs, gamma, length_norm, include_current):
    rewards = o.token_rewards(*logprobs, mask)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        valid = [t for t in range(5) if mask[i, t]]
        for k, t in enumerate(valid):
            following = valid[k if include_current else k + 1 :]
            total = sum(gamma**distance * rewards[i, later].item() for distance, later in enumerate(following))
            expected[i, t] = total / max(1, len(following)) if length_norm else total
    found = o.returns(rewards, mask, gamma=gamma, length_norm=length_norm, include_current=include_current)
    assert torch.allclose(found, expected, atol=1e-12)


@mask_layouts
def test_token_rewards(mask, logprobs):
    q, p = logprobs
    found = o.token_rewards(q, p, mask, scale=0.5, clip=1.0)
    for i in range(3):
        for t in range(5):
            expected = min(1.0, max(-1.0, (p[i, t].item() - q[i, t].item()) / 0.5)) if mask[i, t] else 0.0
            assert found[i, t].item() == pytest.approx(expected, abs=1e-12)


@mask_layouts
def test_whitening_has_mean_zero_and_variance_one_over_valid_tokens(mask, logprobs):
    found = o.whiten(logprobs[0], mask)
    valid = found[mask.bool()]
    assert valid.mean().item() == pytest.approx(0, abs=1e-9)
    assert valid.var(unbiased=False).item() == pytest.approx(1, abs=1e-6)
    assert (found[~mask.bool()] == 0).all()


def test_whitening_of_parts_with_the_statistics_of_the_whole(logprobs):
    values, mask = logprobs[0], torch.tensor(MASKS["holes"], dtype=torch.float64)
    mean = o.masked_mean(values, mask)
    statistics = mean, o.masked_mean((values - mean) ** 2, mask)
    parts = torch.cat([o.whiten(values[i : i + 1], mask[i : i + 1], statistics=statistics) for i in range(3)])
    assert torch.allclose(parts, o.whiten(values, mask), atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.9])
def test_importance_weights(logprobs, alpha):
    q, p = logprobs
    expected = q.exp() / (alpha * p.exp() + (1 - alpha) * q.exp())
    found = o.importance_weights(q, p, alpha)
    assert torch.allclose(found, expected, atol=1e-12)
    assert (found <= 1 / (1 - alpha) + 1e-12).all()


def test_importance_weights_do_not_overflow():
    q, p = torch.tensor([[-500.0, -0.1]]), torch.tensor([[-0.1, -500.0]])
    assert o.importance_weights(q, p, 0.2).isfinite().all()


@mask_layouts
@pytest.mark.parametrize("surrogate", ["ppo", "paper"])
@pytest.mark.parametrize("clip", [0.2, None])
def test_policy_gradient_loss(mask, logprobs, surrogate, clip):
    new, old = logprobs
    advantages = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    terms = []
    for i in range(3):
        for t in range(5):
            if mask[i, t]:
                a = advantages[i, t].item()
                ratio = math.exp(new[i, t].item() - old[i, t].item()) * weights[i, t].item()
                cut = ratio if clip is None else min(max(ratio, 1 - clip), 1 + clip)
                terms.append(max(-a * ratio, -a * cut) if surrogate == "ppo" else -a * min(ratio, cut))
    arguments = {"weights": weights, "clip": clip, "surrogate": surrogate}
    found = o.policy_gradient_loss(new, old, advantages, mask, **arguments)
    assert found.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)
    point = new.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: o.policy_gradient_loss(x, old, advantages, mask, **arguments), point)


def test_old_values_are_constants(logprobs):
    new, old, advantages, weights = (torch.rand(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(4))
    o.policy_gradient_loss(new, old, advantages, torch.ones(3, 5), weights=weights).backward()
    assert new.grad is not None and old.grad is None and advantages.grad is None and weights.grad is None


def test_long_term_gradient_is_equation_2_without_the_ratio(logprobs):
    """At theta = theta_old the gradient of the surrogate is -A grad log q: the REINFORCE form of Eqs. 2 and 3."""
    old, mask = logprobs[0], torch.tensor(MASKS["right"], dtype=torch.float64)
    advantages = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    point = old.clone().requires_grad_()
    o.policy_gradient_loss(point, old, advantages, mask).backward()
    assert torch.allclose(point.grad, -advantages * mask / mask.sum(), atol=1e-12)


@mask_layouts
def test_single_step_loss(mask, logits):
    q, p = logits
    one = q[:1].clone().requires_grad_()  # finite differences of the masked mean, with the padding in it
    assert torch.autograd.gradcheck(lambda x: o.single_step_loss(x, p[:1], mask[:1]), one)
    weights = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    values = each_token(q, p, lambda a, b: kl(a, b)) * weights
    expected = (values * mask).sum().item() / mask.sum().item()
    assert o.single_step_loss(q, p, mask, weights=weights).item() == pytest.approx(expected, abs=1e-12)
