"""Responses of planned lengths from a model with random weights: EOS comes exactly where it is planned.

GPT-2's last layer norm ends in a bias b.  With an EOS embedding along -b its logit is about -40 nats
everywhere, and a hidden state along -b gives +100: sampling code is unchanged, and no sampler would notice.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.sampling.one_shape import Place

# Norms of b and of EOS's embedding: its logit is -SCALE (SIZE + a standard normal number).
SIZE, SCALE = 8.0, 5.0


@torch.no_grad()
def silence(model: PreTrainedModel, eos: int) -> None:
    """Set a GPT-2's last bias and its embedding of `eos` so that `eos` is never drawn."""
    bias = model.base_model.get_parameter("ln_f.bias")
    direction = torch.nn.functional.normalize(torch.randn(len(bias)), dim=0)
    bias.copy_(SIZE * direction)
    model.get_output_embeddings().get_parameter("weight")[eos] = -SCALE * direction


class Stops:
    """While entered, a silenced model that samples ends each response with `eos` at its planned length.

    `lengths` maps a prompt's length to its response's, EOS included; prompts of one batch differ in length.
    Of a cache of fixed size (minillm/sampling/one_shape.py) the prompt's length is known.  Of others: a pass
    of several tokens starts a batch and each pass of one token advances it by one position, whichever rows
    are left, so a row's prompt length is its position minus the passes so far.
    """

    def __init__(self, model: PreTrainedModel, eos: int, lengths: dict[int, int]) -> None:
        self.model, self.passes = model, 0
        # The last entry is for all longer prompts.
        table = torch.zeros(max(lengths) + 2, dtype=torch.long)
        for prompt, response in lengths.items():
            table[prompt] = response
        weight = model.get_output_embeddings().get_parameter("weight")
        self.table = table.to(weight.device)
        direction = torch.nn.functional.normalize(weight[eos].detach().float(), dim=0)
        # Logit of EOS: 20 SCALE.
        self.hidden = (20.0 * direction).to(weight.dtype)

    def __enter__(self) -> Stops:
        self.handle = self.model.base_model.register_forward_hook(self._force, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.handle.remove()

    def _force(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        # Not sampling.
        if kwargs.get("past_key_values") is None and not kwargs.get("use_cache"):
            return output
        # (rows, tokens, width)
        hidden: Tensor = output.last_hidden_state
        place = getattr(next(iter(getattr(kwargs.get("past_key_values"), "layers", [])), None), "place", None)
        if place is not None:
            self._force_fixed(hidden, kwargs["position_ids"], place)
            return output
        self.passes = 0 if hidden.shape[1] > 1 else self.passes + 1
        prompts = kwargs["position_ids"][:, -1] + 1 - self.passes
        ends = self.table[prompts.clamp(max=len(self.table) - 1)] == self.passes + 1
        hidden[:, -1] = torch.where(ends.unsqueeze(-1), self.hidden, hidden[:, -1])
        return output

    def _force_fixed(self, hidden: Tensor, positions: Tensor, place: Place) -> None:
        """The same with a cache of fixed size, whose prompts are padded on the right."""
        rows = torch.arange(place.rows, device=hidden.device) if place.prompts is None else place.prompts
        lengths = place.lengths[rows]
        at = lengths - 1 if place.prompts is not None else torch.full_like(lengths, hidden.shape[1] - 1)
        batch = torch.arange(len(rows), device=hidden.device)
        read = positions[batch, at] + 1 - lengths
        ends = self.table[lengths.clamp(max=len(self.table) - 1)] == read + 1
        hidden[batch, at] = torch.where(ends.unsqueeze(-1), self.hidden, hidden[batch, at])
