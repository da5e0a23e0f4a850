"""What the tests of the mathematics share: values, mask layouts, and reference implementations.

The references loop over explicit probabilities, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

MASKS = {
    "none": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
    "left": [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]],
    "holes": [[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 0, 1, 1]],
    "one token": [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]],
}
mask_layouts = pytest.mark.parametrize(
    "mask", [torch.tensor(m, dtype=torch.float64) for m in MASKS.values()], ids=MASKS
)


def logits() -> tuple[Tensor, Tensor]:
    """Of student and teacher, (3, 5, 7)."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (
        3 * torch.randn((3, 5, 7), generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher


def uniform(seed: int, low: float, high: float) -> Tensor:
    """Values of (3, 5)."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand((3, 5), generator=generator, dtype=torch.float64)


def logprobs() -> tuple[Tensor, Tensor]:
    """Of student and teacher, (3, 5)."""
    return uniform(2, -3, 0), uniform(3, -3, 0)


def probabilities(row: Sequence[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / sum(weights) for w in weights]


def kl(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True))


def each_token(
    student: Tensor, teacher: Tensor, value: Callable[[list[float], list[float]], float]
) -> Tensor:
    """`value` of the two distributions of each token."""
    return torch.tensor(
        [
            [value(probabilities(s), probabilities(t)) for s, t in zip(a, b, strict=True)]
            for a, b in zip(student.tolist(), teacher.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


def mean_of_valid(values: Tensor, mask: Tensor) -> float:
    """Mean over valid tokens, by a loop."""
    places = [(i, t) for i in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[i, t]]
    return sum(values[i, t].item() for i, t in places) / len(places)


def same(found: Tensor, expected: Tensor | float) -> None:
    """Equal to 1e-9, whatever the size."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert_close(found.detach(), expected, rtol=0, atol=1e-9)


def gradient_is_right(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Its gradient in every input equals finite differences to 1e-6."""
    points = [x.detach().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(function, points, atol=1e-6, rtol=1e-6)


def untouched_by_the_mask(function: Callable[[Tensor], Tensor], values: Tensor, mask: Tensor) -> None:
    """NaN and infinities under the mask change neither the value nor the gradient, which is 0 there."""
    results = []
    for filling in (0.0, math.nan, math.inf, -math.inf):
        hidden = ~mask.bool().reshape(mask.shape + (1,) * (values.ndim - mask.ndim)).expand_as(values)
        point = values.masked_fill(hidden, filling).requires_grad_()
        value = function(point).sum()
        value.backward()
        assert point.grad is not None and point.grad.isfinite().all() and (point.grad[hidden] == 0).all(), (
            filling
        )
        results.append((value.detach(), point.grad))
    for value, gradient in results[1:]:
        same(value, results[0][0])
        same(gradient, results[0][1])
