"""The logits of a batch's responses: the output matrix, applied where a loss or a value needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minillm.data.batching import Batch
from minillm.models import tiled_loss
from minillm.models.tiled_loss import Compilable, Function, Head


def at_head(model: nn.Module, batch: Batch, then: Callable[[Tensor], Tensor]) -> Tensor:
    """Run `model` (wrapped by DeepSpeed or not) up to the output matrix, and apply `then` instead of it.

    `then` gets the hidden states that predict each valid response token, (valid tokens, width) in the order
    of `batch.places`: prompt and padding are already dropped.  It runs inside the forward pass of the module
    that holds the matrix, where ZeRO-3 has gathered the weights and looks for the gradient.
    """
    inner: Any = getattr(model, "module", model)
    head, time = inner.get_output_embeddings(), batch.tokens.shape[1] - batch.start
    cap = getattr(inner.config, "final_logit_softcapping", None)

    def forward(hidden: Tensor) -> Tensor:
        return then(hidden[:, -(time + 1) : -1].flatten(0, 1).index_select(0, batch.places))

    # An attribute of the instance, which shadows the method of its class.
    head.forward = forward
    if cap is not None:
        # `then` caps.
        inner.config.final_logit_softcapping = None
    try:
        output = model(
            input_ids=batch.tokens,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=time + 1,
        )
    finally:
        del head.forward
        if cap is not None:
            inner.config.final_logit_softcapping = cap
    result: Tensor = output.logits
    return result


def head_of(
    model: nn.Module, vocabulary: int, temperature: float = 1.0, swap: tuple[int, int] | None = None
) -> Head:
    """The model's output matrix as tiled_loss.py needs it; its rows past `vocabulary` are never used.

    `swap`: (the student's end token, this model's), if they differ (`Head`).
    """
    inner: Any = getattr(model, "module", model)
    module = inner.get_output_embeddings()
    weight, bias = getattr(inner, "kept_head", (module.weight, getattr(module, "bias", None)))
    cap = getattr(inner.config, "final_logit_softcapping", None)
    return Head(weight, bias, vocabulary, cap, temperature, swap=swap)


def keep_head(model: PreTrainedModel, device: torch.device) -> None:
    """Keep a copy of the output matrix for `head_of`, before the weights of a frozen model are sharded."""
    module: Any = model.get_output_embeddings()
    bias = getattr(module, "bias", None)
    copies = [
        None if values is None else values.detach().to(device, copy=True) for values in (module.weight, bias)
    ]
    model.__dict__["kept_head"] = tuple(copies)


@torch.no_grad()
def response_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """Hidden states that predict each valid response token, (valid tokens, width): all kept of a teacher."""
    return at_head(model, batch, lambda hidden: hidden)


def logits_by_tile(hidden: Tensor, head: Head) -> Callable[[slice], Tensor]:
    """Logits of a model that is not trained: a function of the tile, for functions of tiled_loss.py."""

    @torch.no_grad()
    def logits(part: slice) -> Tensor:
        return head.cheapest(hidden[part])

    return logits


def response_losses(
    model: nn.Module, batch: Batch, parts: Sequence[tuple[slice, Function | Compilable, Head]]
) -> Tensor:
    """Sums of functions (as in tiled_loss.loss) over parts of the valid response tokens, (parts,).

    One forward pass for all parts; each is (which tokens, in the order of `batch.places`; the function;
    `head_of` the model).  The sums have gradients for the model's weights.
    """
    return at_head(
        model,
        batch,
        lambda hidden: torch.stack([tiled_loss.loss(f, hidden[part], head) for part, f, head in parts]),
    )


def response_loss(model: nn.Module, batch: Batch, vocabulary: int, function: Function | Compilable) -> Tensor:
    """Sum of `function` (tiled_loss.loss) over the valid response tokens, a scalar; gradients for weights."""
    return response_losses(model, batch, [(slice(None), function, head_of(model, vocabulary))])[0]


@torch.no_grad()
def response_values(model: nn.Module, batch: Batch, vocabulary: int, function: Function) -> Tensor:
    """`function` (tiled_loss.values) of each valid response token, (valid tokens, ...)."""
    head = head_of(model, vocabulary)
    return at_head(model, batch, lambda hidden: tiled_loss.values(function, hidden, head))


def response_logits(model: nn.Module, batch: Batch, vocabulary: int) -> Tensor:
    """Logits that predict each valid response token, (valid tokens, vocabulary), in `batch.places`' order.

    In float32, and only for few tokens: for many, tiled_loss.py makes them tile by tile.
    """
    return at_head(model, batch, head_of(model, vocabulary).logits)


def response_tokens(batch: Batch) -> Tensor:
    """The valid response tokens in the same order, shape (valid tokens,)."""
    return batch.tokens[:, batch.start :].flatten().index_select(0, batch.places)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token, in the shape of `tokens`, without a second vocabulary-sized copy."""
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)
