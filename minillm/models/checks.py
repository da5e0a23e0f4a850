"""What sampling and the losses need of every model, checked once when it is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from minillm.errors import UserError
from minillm.models.head import head_of


def check_model(model: PreTrainedModel, where: object) -> None:
    """Raises UserError, one line that begins with `where`, if the model cannot be used.

    Costs one pass over the weights in memory and two forward passes of one token, where the weights are.
    """
    check_finite(model, where)
    check_cache(model, where)
    check_head(model, where)


@torch.no_grad()
def check_finite(model: nn.Module, where: object) -> None:
    """Raises UserError if weights are infinite or NaN: how many, and in which tensors."""
    broken = {
        name: values
        for name, values in model.named_parameters()
        # NaN is both the smallest and the largest: one pass, and no second tensor of its size.
        if values.numel() and not torch.stack(torch.aminmax(values)).isfinite().all()
    }
    if broken:
        count = sum(int((~values.isfinite()).sum()) for values in broken.values())
        kind = str(next(iter(broken.values())).dtype).removeprefix("torch.")
        raise UserError(
            f"{where}: {count} weights are not finite numbers in {kind} ({some(broken)}); "
            "it has diverged, is damaged or needs another precision"
        )


def check_cache(model: PreTrainedModel, where: object) -> None:
    """Raises UserError unless the model reads left to right and rows of its KV cache can be chosen.

    Each layer must keep keys and values, of all positions or of a sliding window.
    """
    name = type(model).__name__
    kinds = {"a state of its own"}
    if "past_key_values" in inspect.signature(model.base_model.forward).parameters:
        kinds = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    kinds -= {layer.__name__ for layer in (DynamicLayer, DynamicSlidingWindowLayer)}
    if "chunked_attention" in (getattr(model.config, "layer_types", None) or ()):
        kinds.add("chunks of positions, which padding shifts")
    if kinds:
        raise UserError(
            f"{where}: {name} is not supported: instead of keys and values of each position it keeps "
            f"{', '.join(sorted(kinds))}, from which finished rows cannot be taken"
        )
    if any(getattr(part, "is_causal", True) is False for part in model.modules()):
        raise UserError(
            f"{where}: {name} reads later tokens too (an encoder) and cannot generate; take another model"
        )


@torch.no_grad()
def check_head(model: PreTrainedModel, where: object) -> None:
    """Raises UserError if logits are not what `head_of` makes of the last hidden states.

    Some families scale them again.
    """
    tokens = torch.ones((1, 1), dtype=torch.long, device=model.device)
    training = model.training
    model.eval()
    try:
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, -1]
        ours = head_of(model, model.get_output_embeddings().weight.shape[0]).logits(hidden)
        theirs = model(input_ids=tokens, use_cache=False).logits[:, -1].to(ours.dtype)
    except Exception as error:
        # A shape in the configuration that no file contradicts, or a family built in another way.
        raise UserError(f"{where}: {type(model).__name__} cannot be used ({in_one_line(error)})") from None
    finally:
        model.train(training)
    tolerance = 0.02 * theirs.abs().max().item()
    # What all logits share is not compared: in half precision ours are without it.
    ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs))
    if not torch.allclose(ours, theirs, rtol=0.02, atol=tolerance):
        raise UserError(
            f"{where}: {type(model).__name__} does more to its logits than a matrix, a bias and a cap; "
            "not supported"
        )


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first few of these names, in order, and how many more there are."""
    every = sorted(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more


def in_one_line(error: Exception, limit: int = 200) -> str:
    """What a library's error says, in one line of readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."
