"""Divergences of each token against explicit sums over probabilities.

At their ends, and under every mask layout.
"""

import math

import pytest
import torch
from objectives_case import each_token, gradient_is_right, kl, logits, mask_layouts, mean_of_valid, same

from minillm import objectives as o


def skew(a, b, alpha):
    return kl(a, [alpha * x + (1 - alpha) * y for x, y in zip(a, b, strict=True)])


def jensen_shannon(a, b, beta):
    m = [beta * y + (1 - beta) * x for x, y in zip(a, b, strict=True)]
    return beta * kl(b, m) + (1 - beta) * kl(a, m)


def alpha_beta(a, b, alpha, beta):
    """Alpha is the exponent of b, the teacher's."""
    both = alpha + beta
    return -sum(
        y**alpha * x**beta - alpha / both * y**both - beta / both * x**both for x, y in zip(a, b, strict=True)
    ) / (alpha * beta)


# Each with its value for a token's two distributions, the student's first.
ALL = {
    o.forward_kl: lambda a, b: kl(b, a),
    o.reverse_kl: kl,
    o.jensen_shannon: lambda a, b: jensen_shannon(a, b, 0.5),
    o.skew_forward_kl: lambda a, b: skew(b, a, 0.1),
    o.skew_reverse_kl: lambda a, b: skew(a, b, 0.1),
    o.total_variation: lambda a, b: 0.5 * sum(abs(x - y) for x, y in zip(a, b, strict=True)),
    o.alpha_beta: lambda a, b: alpha_beta(a, b, 0.2, 0.7),
}
every = pytest.mark.parametrize("divergence", ALL, ids=lambda function: function.__name__)


@every
def test_each_equals_explicit_sums(divergence):
    q, p = logits()
    same(divergence(q, p), each_token(q, p, ALL[divergence]))


@every
def test_gradients_in_student_and_teacher_equal_finite_differences(divergence):
    q, p = logits()
    gradient_is_right(divergence, q[:, :2], p[:, :2])


@mask_layouts
@every
def test_under_every_mask(divergence, mask):
    """The mean over valid tokens, as the losses take it, and its gradient with the padding in it."""
    q, p = logits()
    same(o.masked_mean(divergence(q, p), mask), mean_of_valid(each_token(q, p, ALL[divergence]), mask))
    gradient_is_right(lambda x: o.masked_mean(divergence(x, p[:2]), mask[:2]), q[:2])


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_jensen_shannon_of_other_shares(beta):
    q, p = logits()
    same(o.jensen_shannon(q, p, beta), each_token(q, p, lambda a, b: jensen_shannon(a, b, beta)))
    gradient_is_right(lambda x, y: o.jensen_shannon(x, y, beta), q[:1], p[:1])


def test_jensen_shannon_ends_in_forward_and_reverse_kl():
    q, p = logits()
    assert torch.equal(o.jensen_shannon(q, p, 0.0), o.forward_kl(q, p))
    assert torch.equal(o.jensen_shannon(q, p, 1.0), o.reverse_kl(q, p))


@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_skew_divergences_of_other_shares(alpha):
    q, p = logits()
    same(o.skew_forward_kl(q, p, alpha), each_token(q, p, lambda a, b: skew(b, a, alpha)))
    same(o.skew_reverse_kl(q, p, alpha), each_token(q, p, lambda a, b: skew(a, b, alpha)))
    gradient_is_right(lambda x, y: o.skew_forward_kl(x, y, alpha), q[:1], p[:1])
    gradient_is_right(lambda x, y: o.skew_reverse_kl(x, y, alpha), q[:1], p[:1])


@pytest.mark.parametrize(
    ("exponents", "value"),
    [
        ((0.5, 1.5), lambda a, b: alpha_beta(a, b, 0.5, 1.5)),
        ((1, 0), lambda a, b: kl(b, a)),
        ((0, 1), kl),
        ((0.5, 0), lambda a, b: alpha_beta(a, b, 0.5, 1e-7)),
        ((0, 2), lambda a, b: alpha_beta(a, b, 1e-7, 2)),
        ((0, 0), lambda a, b: 0.5 * sum(math.log(x / y) ** 2 for x, y in zip(a, b, strict=True))),
    ],
)
def test_alpha_beta_of_other_exponents_and_its_limits(exponents, value):
    q, p = logits()
    limit = 0 in exponents and sum(exponents) not in (0, 1)
    torch.testing.assert_close(
        o.alpha_beta(q, p, *exponents), each_token(q, p, value), rtol=1e-5 if limit else 0, atol=1e-9
    )
    gradient_is_right(lambda x, y: o.alpha_beta(x, y, *exponents), q[:1, :2], p[:1, :2])


@every
def test_zero_between_equals_and_positive_otherwise(divergence):
    q, p = logits()
    same(divergence(q, q), torch.zeros(3, 5))
    assert (divergence(q, p) > 0).all()


@every
def test_finite_at_extremes(divergence):
    """Values and gradients are finite.

    For logits of bf16's range, certain tokens, and a token that neither can draw.
    """
    student = torch.tensor(
        [[[80.0, -80.0, 0.0, -torch.inf], [3e4, -3e4, 0.0, -torch.inf]]], requires_grad=True
    )
    teacher = torch.tensor([[[-80.0, 80.0, 0.0, -torch.inf], [-3e4, 3e4, 0.0, -torch.inf]]])
    value = divergence(student, teacher)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()


@every
def test_a_shift_of_the_logits_is_ignored(divergence):
    q, p = logits()
    shift = torch.randn(3, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    same(divergence(q + shift, p - 2 * shift), divergence(q, p))


def test_reverse_kl_is_finite_where_the_student_has_no_mass():
    q, p = logits()
    q[..., 3] = -torch.inf
    q.requires_grad_()
    value = o.reverse_kl(q, p)
    value.sum().backward()
    assert value.isfinite().all() and q.grad.isfinite().all()

    def expected(a, b):
        return sum(
            x * (math.log(x) - math.log(y)) for v, (x, y) in enumerate(zip(a, b, strict=True)) if v != 3
        )

    same(value, each_token(q, p, expected))


@every
def test_unequal_vocabularies_are_refused(divergence):
    q, p = logits()
    with pytest.raises(ValueError, match="student 7, teacher 6"):
        divergence(q, p[..., :6])


@every
def test_low_precision_is_computed_in_float32(divergence):
    q, p = (x.bfloat16() for x in logits())
    value = divergence(q, p)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), divergence(q.double(), p.double()), rtol=0, atol=1e-5)
    assert divergence(q.double(), p.double()).dtype == torch.float64
