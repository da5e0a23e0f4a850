"""How much a step's gradient varies, estimated from its micro-batches, without a copy of any gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minillm.runtime.processes import World


def variance(squares: Sequence[float], rows: Sequence[int], norm: float) -> float:
    """Estimate of E ||G - E G||^2, the sum of the variances of a batch's gradient G over all weights.

    `squares` are ||g_k||^2 of its micro-batches' gradients, which sum to G, `rows` their numbers of rows n_k,
    `norm` is ||G||: N / (K - 1) (sum_k ||g_k||^2 / n_k - ||G||^2 / N), with N rows in K micro-batches.
    Unbiased if rows are drawn independently and the split does not look at them; NaN for one micro-batch.
    """
    return _variance(math.fsum(s / n for s, n in zip(squares, rows, strict=True)), len(rows), sum(rows), norm)


def _variance(per_row: float, batches: int, rows: int, norm: float) -> float:
    if batches < 2:
        return math.nan
    return rows / (batches - 1) * (per_row - norm**2 / rows)


class GradientVariance:
    """Squared gradients of the micro-batches of one step of a DeepSpeed engine, summed on the device.

    Hooks see the gradient of each weight before it is added to earlier ones and reduced over the ranks, so
    that every ZeRO stage has the same; the norm of their sum is that which clipping takes.
    """

    def __init__(self, engine: Any, world: World) -> None:
        self.engine, self.world = engine, world
        self._per_row: list[Tensor] = []
        self._rows = 0

    def begin(self) -> None:
        """Forget the last step."""
        self._per_row, self._rows = [], 0

    @contextmanager
    def of(self, rows: int) -> Iterator[None]:
        """Count the backward pass inside as that of one micro-batch with so many rows."""
        squares: list[Tensor] = []

        def look(gradient: Tensor) -> None:
            wide = gradient.dtype if gradient.dtype == torch.float64 else torch.float32
            squares.append(torch.linalg.vector_norm(gradient, dtype=wide).double() ** 2)

        # Scaled as Engine.update and, in fp16, DeepSpeed do.
        scale = float(self.world.size)
        if self.engine.fp16_enabled():
            scale *= self.engine.optimizer.loss_scale
        hooks = [p.register_hook(look) for p in self.engine.module.parameters() if p.requires_grad]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._per_row.append(torch.stack(squares).sum() / (rows * scale**2))
        self._rows += rows

    def estimate(self, norm: float) -> dict[str, float]:
        """By the name that is logged, if the last step was looked at; every rank must call it."""
        if not self._per_row:
            return {}
        mine = torch.stack(self._per_row).tolist()
        parts = self.world.gather((mine, self._rows))
        per_row = math.fsum(value for values, _ in parts for value in values)
        batches, rows = sum(len(values) for values, _ in parts), sum(rows for _, rows in parts)
        return {"grad_variance": _variance(per_row, batches, rows, norm)}
