"""On a CPU: weights that stay unchanged for a while, laid out once as oneDNN multiplies by them.

Otherwise torch lays out a matrix again for each product with few rows, such as those of sampling, and
multiplies in float32 by MKL, which is half as fast on AMD's processors (docs/performance.md).  It costs a
second copy of the weights while it lasts.  torch has the two operators below for its own compiler; if one is
missing, or on any other device, nothing is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minillm.models.logit_product import minus_mean
from minillm.models.tiled_loss import Head

# Rows of the products to expect: a hint to oneDNN.
ROWS = 32
# Features that the output matrix gets in half precision.
PADDED = 32


def possible(weight: Tensor) -> bool:
    """Whether products with this matrix can be computed so."""
    # A matrix without elements is sharded over processes.
    if weight.device.type != "cpu" or not weight.numel() or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x -> x weight^T + bias, without a gradient, with the current values of `weight` (out, in)."""
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)

    def run(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "none", [], "")
        return result

    return run


def packed_head(head: Head) -> Head:
    """The same head with its matrix laid out, if that is possible."""
    if not possible(head.weight):
        return head
    bias = None if head.bias is None else head.bias[: head.vocabulary]
    weight, mean = head.weight[: head.vocabulary], head.mean
    if mean is None:
        return dataclasses.replace(head, product=product(weight, bias))
    # One more feature, 1 in each row; the zeros after it make the product as fast as without.
    ones = torch.zeros(len(weight), PADDED, dtype=weight.dtype)
    ones[:, 0] = 1
    run = product(torch.cat([weight.detach(), ones], 1), bias)

    def without_mean(hidden: Tensor) -> Tensor:
        """As logit_product.half."""
        return run(functional.pad(torch.cat([hidden, minus_mean(hidden, mean)], 1), (0, PADDED - 1)))

    return dataclasses.replace(head, product=without_mean)


@contextmanager
def packed(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Inside, these models' blocks use linear weights laid out once, which must not change; no gradients."""
    replaced: list[Any] = []
    try:
        for module in {id(m): m for model in models for m in _layers(model)}.values():
            weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
            # An attribute of the instance, which shadows the method of its class.
            module.forward = product(weight, module.bias)
            replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward


def _layers(model: PreTrainedModel) -> Iterator[Any]:
    decoder: Any = model.base_model
    for module in decoder.modules():
        if type(module) in (nn.Linear, Conv1D) and possible(module.weight) and "forward" not in vars(module):
            yield module
