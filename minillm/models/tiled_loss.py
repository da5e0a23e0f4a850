"""Objectives from hidden states and the output matrix, tile by tile: never all logits at once.

Logits of shape [batch, time, vocabulary] are never built.  A tile is as many tokens as `TILE` logits allow,
with the whole vocabulary, so its size depends on neither batch, time nor vocabulary.  The gradient of the
loss with respect to the logits is buffered for one block, as many tokens as `BLOCK` allows, then multiplied
in.

What is computed from a tile's logits is any function of objectives.py, unchanged: none of the mathematics is
written twice.  `loss` takes the gradient of each tile while its logits exist, so the backward pass does not
compute logits again: three products with the output matrix per token, as without tiles.  Hidden states are
(tokens, width), of the valid tokens of a batch, without prompt and padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minillm.models.compiling import possible
from minillm.models.logit_product import ALIGNED, half, in_float32, is_wide, mean_row

# Logits: 16 MB in float32, a few of which are alive at once.  Half as many slow down float32 products
# (docs/performance.md).
TILE = 2**22
# With fewer than a few hundred tokens a GPU waits: for the matrix, which is read again for each tile, and for
# the host.
TILE_GPU = 2**24
# Gradients with respect to logits: 64 MB in half precision.  Adding a block's gradient to that of the whole
# matrix costs as much as the product itself.
BLOCK = 2**25
# Logits of a tile (n, vocabulary), and which tokens they belong to -> (n,) or (n, ...).
Function = Callable[[Tensor, slice], Tensor]
# Sums over a tile's tokens by name: those that make up the loss, and those that are only recorded.
Terms = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Compilable:
    """An alternative to a Function: one of tensors only, which torch can compile into one pass over a tile.

    `value` gets the logits of a tile (n, vocabulary) and the tensors that `given` has for its tokens; equal
    ones share what was compiled.  `note` gets each tile's terms, detached.  Compiling takes some ten seconds,
    once per size of tile and precision.
    """

    value: Callable[..., Terms]
    given: Callable[[slice], tuple[Tensor | None, ...]]
    note: Callable[[Terms], None]
    compile: bool


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: a matrix (rows, width), perhaps a bias (rows,), perhaps a cap.

    Rows past `vocabulary` are padding of the embedding: they are cut off, so that a softmax over the rest is
    renormalised.  `product`, if there is one, computes the product with the remaining rows
    (onednn_layout.py).  With `swap` two columns of the logits are exchanged: what a teacher that ends its
    responses with another token than the student says of its end is then read as that of the student's end.
    A permutation, so the softmax stays normalised.  Raises ValueError if one of them is cut off.
    """

    weight: Tensor
    bias: Tensor | None
    vocabulary: int
    softcap: float | None = None
    temperature: float = 1.0
    product: Callable[[Tensor], Tensor] | None = None
    swap: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.swap is not None and not all(0 <= token < self.vocabulary for token in self.swap):
            raise ValueError(f"tokens {self.swap} are exchanged, but the vocabulary has {self.vocabulary}")

    def logits(self, hidden: Tensor) -> Tensor:
        """(tokens, vocabulary) in float32 (float64 stays float64), capped, divided by the temperature.

        In half precision without a cap, all of a token's logits may be off by one and the same number.
        """
        return self.finish(self.project(hidden))

    def cheapest(self, hidden: Tensor) -> Tensor:
        """The same for objectives.py, which converts to float32 itself.

        So they stay in the precision of the product if there is no cap and no temperature.
        """
        if self.softcap is None and self.temperature == 1.0:
            return exchanged(self.project(hidden), self.swap)
        return self.logits(hidden)

    @functools.cached_property
    def mean(self) -> Tensor | None:
        """What is subtracted before logits are rounded to half precision, if anything (logit_product.py).

        A cap sees it.  Computed on first use: under ZeRO-3 the matrix is only there in a forward pass.
        """
        return mean_row(self.weight, self.vocabulary) if self.softcap is None else None

    def project(self, hidden: Tensor) -> Tensor:
        """The matrix product, minus a number for each token if it is rounded to half precision."""
        if self.product is not None:
            return self.product(hidden)
        if is_wide(hidden, self.weight):
            return in_float32(hidden, self.weight, self.bias, self.vocabulary)
        bias = None if self.bias is None else self.bias[: self.vocabulary]
        if self.mean is not None:
            return half(hidden, self.weight[: self.vocabulary], bias, self.mean)
        return functional.linear(hidden, self.weight[: self.vocabulary], bias)

    def finish(self, product: Tensor) -> Tensor:
        """Logits from the matrix product."""
        return finish(product, self.softcap, self.temperature, self.swap)


def exchanged(logits: Tensor, swap: tuple[int, int] | None) -> Tensor:
    """A copy with these two columns exchanged, differentiable; without `swap` the logits themselves."""
    if swap is None:
        return logits
    first, second = swap
    result = logits.clone()
    # Not by a list of columns, which would have to be sent to a GPU.
    result[..., first], result[..., second] = logits[..., second], logits[..., first]
    return result


def finish(
    product: Tensor, softcap: float | None, temperature: float, swap: tuple[int, int] | None = None
) -> Tensor:
    """Logits from the matrix product.

    In float32 (float64 stays float64), capped, divided by the temperature, two columns exchanged.
    """
    logits = product if product.dtype == torch.float64 else product.float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return exchanged(logits if temperature == 1.0 else logits / temperature, swap)


def tiles(tokens: int, vocabulary: int, logits: int, first: int = 0) -> Iterator[slice]:
    """Tokens `first` to `tokens` in order, in slices of at most `logits` logits, but at least one token."""
    rows = max(1, logits // vocabulary)
    yield from (slice(start, min(start + rows, tokens)) for start in range(first, tokens, rows))


def tile_of(device: torch.device) -> int:
    """Logits of a tile on this device."""
    return TILE_GPU if device.type == "cuda" else TILE


def tokens_of_tile(device: torch.device, vocabulary: int) -> int:
    """Tokens of a full tile on this device, at least one."""
    return max(1, tile_of(device) // vocabulary)


@torch.no_grad()
def values(function: Function, hidden: Tensor, head: Head) -> Tensor:
    """`function` of all tokens, (tokens, ...), without a gradient."""
    parts = [
        function(head.logits(hidden[part]), part)
        for part in tiles(len(hidden), head.vocabulary, tile_of(hidden.device))
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


@functools.cache
def _compiled(
    value: Callable[..., Terms], softcap: float | None, temperature: float, swap: tuple[int, int] | None
) -> Callable[..., Terms]:
    """Static shapes: only full tiles come here.  If it cannot be compiled, a warning, and plain `value`."""

    def run(product: Tensor, *tensors: Tensor | None) -> Terms:
        return value(finish(product, softcap, temperature, swap), *tensors)

    if not possible("losses are computed"):
        return run
    compiled: Callable[..., Terms] = torch.compile(run, dynamic=False)
    return compiled


def _of_tile(function: Function | Compilable, product: Tensor, part: slice, head: Head) -> Tensor:
    """The loss of a tile's tokens, a scalar."""
    if not isinstance(function, Compilable):
        return function(head.finish(product), part).sum()
    if function.compile and len(product) == tokens_of_tile(product.device, head.vocabulary):
        run = _compiled(function.value, head.softcap, head.temperature, head.swap)
        summed, noted = run(product, *function.given(part))
    else:
        summed, noted = function.value(head.finish(product), *function.given(part))
    function.note(({name: value.detach() for name, value in summed.items()}, noted))
    return torch.stack(list(summed.values())).sum()


def loss(function: Function | Compilable, hidden: Tensor, head: Head) -> Tensor:
    """The sum of `function` over all tokens, a scalar; gradients for `hidden` and the head's weight and bias.

    `function` returns (n,) values of order 1: under fp16 their gradients are taken before the loss is scaled
    up, so a normaliser belongs outside.  Gradients of weight and bias are summed over the tiles in float32.
    """
    arguments = (hidden, head.weight, head.bias, head, function)
    total: Tensor = _Loss.apply(*arguments)  # type: ignore[no-untyped-call]
    return total


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        function: Function | Compilable,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=_wide(hidden.dtype))
        gradients: tuple[Tensor | None, ...] = None, None, None
        tile = tokens_of_tile(hidden.device, head.vocabulary) * head.vocabulary
        # Blocks of whole tiles.
        for block in tiles(len(hidden), head.vocabulary, max(1, BLOCK // tile) * tile):
            logit_grads = (
                _aligned(hidden, block.stop - block.start, head.vocabulary)
                if any(ctx.needs_input_grad[:3])
                else None
            )
            for part in tiles(block.stop, head.vocabulary, tile_of(hidden.device), block.start):
                product = head.project(hidden[part]).requires_grad_(logit_grads is not None)
                with torch.enable_grad():
                    tile_loss = _of_tile(function, product, part, head)
                total += tile_loss.detach()
                if logit_grads is not None:
                    (logit_grads[part.start - block.start : part.stop - block.start],) = torch.autograd.grad(
                        tile_loss, product
                    )
            if logit_grads is not None:
                gradients = _added(gradients, logit_grads, hidden, block, head, ctx.needs_input_grad)
        # Without tokens, a gradient all the same: ZeRO waits for one of every weight.
        if not len(hidden):
            inputs = (hidden, weight, bias)
            gradients = tuple(
                None if x is None or not n else torch.zeros_like(x)
                for x, n in zip(inputs, ctx.needs_input_grad, strict=False)
            )
        ctx.save_for_backward(*gradients)
        # Not the weight itself: ZeRO-3 frees its values before the backward pass.
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            None if gradient is None else _scaled(gradient, above[0], dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None)


def _aligned(hidden: Tensor, tokens: int, vocabulary: int) -> Tensor:
    """Room for logits in the precision of `hidden`; on a GPU each token's begin at a multiple of 16 bytes."""
    spare = -vocabulary % ALIGNED if hidden.is_cuda else 0
    return hidden.new_empty(tokens, vocabulary + spare)[:, :vocabulary]


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`gradient` x `factor` in `dtype`; if that differs, some rows at a time: no second matrix in float32."""
    if gradient.dtype == dtype:
        return gradient * factor
    scaled = torch.empty_like(gradient, dtype=dtype)
    for rows in tiles(len(gradient), gradient[:1].numel(), tile_of(gradient.device)):
        scaled[rows] = gradient[rows] * factor
    return scaled


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _added(
    before: tuple[Tensor | None, ...],
    logit_grads: Tensor,
    hidden: Tensor,
    block: slice,
    head: Head,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden states, weight and bias, with those of one more block added.

    `logit_grads` are the block's gradients with respect to the logits.  The product of a single block stays
    as it is, rounded once; those of several are summed in float32.
    """
    to_hidden, to_weight, to_bias = before
    if needed[0]:
        if to_hidden is None:
            to_hidden = torch.empty_like(hidden)
        torch.mm(logit_grads, head.weight[: head.vocabulary], out=to_hidden[block])
    if needed[1]:
        whole = block.stop - block.start == len(hidden)
        if to_weight is None:
            to_weight = torch.zeros_like(head.weight, dtype=hidden.dtype if whole else _wide(hidden.dtype))
        used = to_weight[: head.vocabulary]
        if used.dtype == logit_grads.dtype:
            used.addmm_(logit_grads.t(), hidden[block])
        else:
            # Some rows of the matrix at a time, so that the products take no second one.
            for rows in tiles(len(used), used.shape[1], tile_of(used.device)):
                used[rows] += logit_grads[:, rows].t() @ hidden[block]
    if needed[2] and head.bias is not None:
        if to_bias is None:
            to_bias = torch.zeros_like(head.bias, dtype=_wide(hidden.dtype))
        to_bias[: head.vocabulary] += logit_grads.sum(0, dtype=to_bias.dtype)
    return to_hidden, to_weight, to_bias
