"""Objectives from hidden states and the output matrix, tile by tile: logits of shape [batch, time, vocabulary] are never built.

A tile is as many tokens as `TILE` logits allow, with the whole vocabulary, so that its size depends on neither batch, time nor
vocabulary; a block, as many as `BLOCK` allows, is what the slopes of the loss by the logits are kept of, until they go into the matrix
products.  What is computed of a tile's logits is any function of objectives.py, unchanged: nothing of the mathematics is written twice.
`loss` takes each tile's slopes while its logits are there, so that the backward pass makes no logits again: three products with the
output matrix a token, as without tiles.  Hidden states are (tokens, width), of the valid tokens of a batch, without prompt and padding.
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

# Logits: 16 MB in float32, a few of which are alive at once.  With half as many, float32 products are slower (docs/performance.md).
TILE = 2**22
# Fewer tokens than some hundreds leave a GPU waiting: for the matrix, which is read anew for each tile, and for the host.
TILE_GPU = 2**24
# Slopes: 64 MB in half precision.  Adding a block's gradient to that of the whole matrix costs as much as the product itself.
BLOCK = 2**25
Function = Callable[
    [Tensor, slice], Tensor
]  # logits of a tile (n, vocabulary), and which tokens they are -> (n,) or (n, ...)
# Sums over a tile's tokens by name: those that make the loss, and those that are only noted.
Terms = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Compilable:
    """What `loss` takes beside a Function: a function of tensors alone, which torch can compile into one pass over a tile's logits.

    `value` gets the logits of a tile (n, vocabulary) and the tensors that `given` has of its tokens; two that are equal share what
    was compiled.  `note` gets each tile's terms, detached.  Compiling takes some ten seconds, once for a size of tile and precision.
    """

    value: Callable[..., Terms]
    given: Callable[[slice], tuple[Tensor | None, ...]]
    note: Callable[[Terms], None]
    compile: bool


@dataclass(frozen=True)
class Head:
    """What makes logits out of hidden states: a matrix (rows, width), perhaps a bias (rows,), and the cap of the families that have one.

    Rows past `vocabulary` are padding of the embedding: they are cut off, so that a softmax over the rest is renormalised.
    `product`, where there is one, makes the product with them that is left (onednn_layout.py).
    """

    weight: Tensor
    bias: Tensor | None
    vocabulary: int
    softcap: float | None = None
    temperature: float = 1.0
    product: Callable[[Tensor], Tensor] | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(tokens, vocabulary) in float32 (float64 stays float64), capped, divided by the temperature."""
        return self.finish(self.project(hidden))

    def cheapest(self, hidden: Tensor) -> Tensor:
        """The same for objectives.py, which makes float32 of them itself: in the weights' precision where nothing else is to be done."""
        return (
            self.project(hidden) if self.softcap is None and self.temperature == 1.0 else self.logits(hidden)
        )

    def project(self, hidden: Tensor) -> Tensor:
        """The matrix product, in the weights' precision."""
        if self.product is not None:
            return self.product(hidden)
        bias = None if self.bias is None else self.bias[: self.vocabulary]
        return functional.linear(hidden, self.weight[: self.vocabulary], bias)

    def finish(self, product: Tensor) -> Tensor:
        """Logits from the matrix product."""
        return finish(product, self.softcap, self.temperature)


def finish(product: Tensor, softcap: float | None, temperature: float) -> Tensor:
    """Logits in float32 (float64 stays float64) from the matrix product, capped, divided by the temperature."""
    logits = product if product.dtype == torch.float64 else product.float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits if temperature == 1.0 else logits / temperature


def tiles(tokens: int, vocabulary: int, logits: int, first: int = 0) -> Iterator[slice]:
    """Tokens `first` to `tokens` in order, as many at a time as there may be `logits`, at least one."""
    rows = max(1, logits // vocabulary)
    yield from (slice(start, min(start + rows, tokens)) for start in range(first, tokens, rows))


def tile_of(device: torch.device) -> int:
    """Logits of a tile there."""
    return TILE_GPU if device.type == "cuda" else TILE


def tokens_of_tile(device: torch.device, vocabulary: int) -> int:
    """Tokens of a whole tile there, at least one."""
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
def _compiled(value: Callable[..., Terms], softcap: float | None, temperature: float) -> Callable[..., Terms]:
    """Static shapes: only full tiles go there, which all have one.  Where nothing can be compiled, `value` as it is, and a warning."""

    def run(product: Tensor, *given: Tensor | None) -> Terms:
        return value(finish(product, softcap, temperature), *given)

    if not possible("losses are computed"):
        return run
    compiled: Callable[..., Terms] = torch.compile(run, dynamic=False)
    return compiled


def _of_tile(function: Function | Compilable, product: Tensor, part: slice, head: Head) -> Tensor:
    """The loss of a tile's tokens, a scalar."""
    if not isinstance(function, Compilable):
        return function(head.finish(product), part).sum()
    if function.compile and len(product) == tokens_of_tile(product.device, head.vocabulary):
        summed, noted = _compiled(function.value, head.softcap, head.temperature)(
            product, *function.given(part)
        )
    else:
        summed, noted = function.value(head.finish(product), *function.given(part))
    function.note(({name: value.detach() for name, value in summed.items()}, noted))
    return torch.stack(list(summed.values())).sum()


def loss(function: Function | Compilable, hidden: Tensor, head: Head) -> Tensor:
    """The sum of `function` over all tokens, a scalar with gradients for `hidden` and for the head's weight and bias.

    `function` gives (n,) values of order 1: under fp16 their gradients are taken before the loss is scaled up, so a normaliser
    belongs outside.  Gradients of weight and bias are added up over the tiles in float32.
    """
    total: Tensor = _Loss.apply(hidden, head.weight, head.bias, head, function)  # type: ignore[no-untyped-call]
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
        for block in tiles(len(hidden), head.vocabulary, max(1, BLOCK // tile) * tile):  # of whole tiles
            slopes = (
                hidden.new_empty(block.stop - block.start, head.vocabulary)
                if any(ctx.needs_input_grad[:3])
                else None
            )
            for part in tiles(block.stop, head.vocabulary, tile_of(hidden.device), block.start):
                product = head.project(hidden[part]).requires_grad_(slopes is not None)
                with torch.enable_grad():
                    found = _of_tile(function, product, part, head)
                total += found.detach()
                if slopes is not None:
                    (slopes[part.start - block.start : part.stop - block.start],) = torch.autograd.grad(
                        found, product
                    )
            if slopes is not None:
                gradients = _added(gradients, slopes, hidden, block, head, ctx.needs_input_grad)
        if not len(hidden):  # no token, but a gradient all the same: ZeRO waits for one of every weight
            inputs = (hidden, weight, bias)
            gradients = tuple(
                None if x is None or not n else torch.zeros_like(x)
                for x, n in zip(inputs, ctx.needs_input_grad, strict=False)
            )
        ctx.save_for_backward(*gradients)
        # Not the weight itself: ZeRO-3 takes its values away before the backward pass.
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            None if gradient is None else _scaled(gradient, above[0], dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*found, None, None)


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`gradient` x `factor` in `dtype`, some rows at a time where it is in another one: no second matrix in float32."""
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
    slopes: Tensor,
    hidden: Tensor,
    block: slice,
    head: Head,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden states, weight and bias with those of one more block, whose gradients by logits are `slopes`.

    A single block leaves the product as it is, rounded once; more of them are added up in float32.
    """
    to_hidden, to_weight, to_bias = before
    if needed[0]:
        if to_hidden is None:
            to_hidden = torch.empty_like(hidden)
        torch.mm(slopes, head.weight[: head.vocabulary], out=to_hidden[block])
    if needed[1]:
        whole = block.stop - block.start == len(hidden)
        if to_weight is None:
            to_weight = torch.zeros_like(head.weight, dtype=hidden.dtype if whole else _wide(hidden.dtype))
        used = to_weight[: head.vocabulary]
        if used.dtype == slopes.dtype:
            used.addmm_(slopes.t(), hidden[block])
        else:  # row by row of the matrix, so that there is no second one, of the products
            for rows in tiles(len(used), used.shape[1], tile_of(used.device)):
                used[rows] += slopes[:, rows].t() @ hidden[block]
    if needed[2] and head.bias is not None:
        if to_bias is None:
            to_bias = torch.zeros_like(head.bias, dtype=_wide(hidden.dtype))
        to_bias[: head.vocabulary] += slopes.sum(0, dtype=to_bias.dtype)
    return to_hidden, to_weight, to_bias
