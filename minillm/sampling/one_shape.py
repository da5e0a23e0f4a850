"""One model whose step has one shape: its cache has a fixed size, with a row's token at place i in column i.

Nothing is padded on the left: rows begin at column 0, each may be at another place, and a mask of our own
hides the columns that a row has not reached.  So a step's shapes say how many rows and columns are looked at,
not where rows are: on a GPU it is captured as a CUDA graph, and a row can be replaced by another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from minillm.data.batching import least_padding, moved
from minillm.models.tiled_loss import Head
from minillm.sampling.cuda_graphs import Graphs

# Families by how they take a mask (transformers' `config.model_type`): one for all layers, which attend to
# all positions or, if the configuration says so, to those in a window; or one for each kind of layer.
WHOLE = {"falcon", "gemma", "gpt2", "gpt_neox", "gptj", "llama", "opt", "phi"}
WINDOWED = {"mistral", "mixtral", "phi3"}
BY_LAYER = {"gemma2", "gemma3_text", "qwen2", "qwen3"}
# On a GPU a step looks at a multiple of so many columns: one graph for each.
COLUMNS = 128


def possible(model: PreTrainedModel) -> bool:
    """Whether the model's step can have one shape: kv_cache.py has all others.

    Not with ALiBi (BLOOM, MPT, some Falcons), which wants a mask of left padding, nor GPT-Neo, whose window
    ends at the last column of the cache, nor with attention that takes no mask (flash attention).
    """
    config: Any = model.config
    return (
        config.model_type in WHOLE | WINDOWED | BY_LAYER
        and not getattr(config, "alibi", False)
        and config._attn_implementation in ("sdpa", "eager")
    )


class Place:
    """What the layers of one cache share: its shape, and what is read just now."""

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        self.rows, self.length = rows, length
        # Of the prompts that rows began with.
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        # While prompts are read: the rows that they belong to.
        self.prompts: Tensor | None = None
        # Otherwise the columns of the tokens, (rows, tokens), and how many columns are looked at.
        self.columns: Tensor | None = None
        self.seen = 0


class FixedLayer(DynamicLayer):
    """A layer's keys and values, (rows, heads, length, width) each, allocated once."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store states where they belong; the keys and values to attend to."""
        place = self.place
        if self.keys is None or self.values is None:
            # Zeros, because what is hidden has weight 0, and 0 times whatever memory holds may be NaN.
            self.keys, self.values = (
                s.new_zeros(place.rows, s.shape[1], place.length, s.shape[-1])
                for s in (key_states, value_states)
            )
            self.is_initialized = True
        if place.prompts is not None:
            for kept, states in ((self.keys, key_states), (self.values, value_states)):
                kept[place.prompts, :, : states.shape[2]] = states
            return key_states, value_states
        assert place.columns is not None
        rows = torch.arange(place.rows, device=key_states.device).unsqueeze(-1)
        for kept, states in ((self.keys, key_states), (self.values, value_states)):
            kept[rows, :, place.columns] = states.transpose(1, 2)
        return self.keys[:, :, : place.seen], self.values[:, :, : place.seen]

    def get_seq_length(self) -> int:
        """What transformers counts as read: nothing, for prompts are read first, and later masks are ours."""
        return 0

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class OneShape:
    """A model that reads `rows` rows of at most `length` positions each; `graphs`: as CUDA graphs on a GPU.

    `head` makes logits of its hidden states.
    Its `hidden`, `prompts` and `keep` are those of kv_cache.Decoder; `read_prompts` and `step` need no left
    padding.
    """

    # What is before the first token of all rows is not held.
    croppable = True

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head,
        rows: int,
        length: int,
        graphs: bool = True,
    ) -> None:
        self.model: Any = model.base_model
        self.head = head
        self.place = Place(rows, length, model.device)
        self.cache = DynamicCache(config=model.config)
        self.cache.layers = [FixedLayer(self.place) for _ in self.cache.layers]
        config: Any = model.config
        self.kind, self.eager = config.model_type, config._attn_implementation == "eager"
        self.window: int | None = None
        if self.kind not in WHOLE:
            self.window = getattr(config, "sliding_window", None)
        self.graphs = Graphs() if graphs and Graphs.possible(model.device) else None

    def read_prompts(self, rows: Tensor, tokens: Tensor, lengths: Tensor, last: int = 1) -> Tensor:
        """Hidden states after the `last` tokens of prompts, (prompts, last, width); rows (prompts,) get them.

        `tokens` (prompts, positions) begin at column 0; what follows their `lengths` is not looked at later:
        a row's own tokens take its place.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        self.place.prompts = rows
        self.place.lengths[rows] = lengths
        # Causal attention hides what follows. Where transformers would look for padding (which waits for a
        # GPU) and warn, a mask says the same.
        mask = self._mask(positions, tokens.shape[1]) if self.kind == "gpt2" else None
        states = self._states(tokens, positions, mask)
        self.place.prompts = None
        at = lengths.unsqueeze(-1) - last + torch.arange(last, device=tokens.device)
        return states.gather(1, at.unsqueeze(-1).expand(-1, -1, states.shape[-1]))

    def step(self, tokens: Tensor, columns: Tensor, seen: int) -> Tensor:
        """Hidden states after `tokens` (rows, n) at `columns` (rows, n), (rows, n, width).

        `seen`: one more than the last of the columns.
        """
        if self.graphs is None or tokens.shape[1] != 1:
            return self._read(tokens, columns, seen)
        seen = min(-(-seen // COLUMNS) * COLUMNS, self.place.length)
        return self.graphs.run(seen, lambda t, c: self._read(t, c, seen), tokens, columns)

    def _read(self, tokens: Tensor, columns: Tensor, seen: int) -> Tensor:
        self.place.columns, self.place.seen = columns, seen
        return self._states(tokens, columns, self._mask(columns, seen))

    def _states(self, tokens: Tensor, positions: Tensor, mask: Any) -> Tensor:
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        states: Tensor = output.last_hidden_state
        return states

    def _mask(self, columns: Tensor, seen: int) -> Any:
        """What transformers takes as it is: (rows, 1, tokens, seen), for families of BY_LAYER one a kind."""
        distance = columns[:, None, :, None] - torch.arange(seen, device=columns.device)
        whole = distance >= 0
        inside = whole if self.window is None else whole & (distance < self.window)
        if self.eager:
            whole, inside = self._added(whole), self._added(inside)
        if self.kind in BY_LAYER:
            return {"full_attention": whole, "sliding_attention": inside}
        return inside

    def _added(self, visible: Tensor) -> Tensor:
        """The mask as eager attention adds it to its scores."""
        dtype = self.model.dtype
        zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return zeros.masked_fill(~visible, torch.finfo(dtype).min)

    def hidden(self, tokens: Tensor, attention: Tensor, positions: Tensor, last: int = 1) -> Tensor:
        """Hidden states after each of the `last` tokens, (batch, last, width), that predict the next ones.

        `attention` is only asked for its width: that of the longest row.
        """
        return self.step(tokens, positions, attention.shape[1])[:, -last:].contiguous()

    def prompts(
        self,
        tokens: Tensor,
        attention: Tensor,
        positions: Tensor,
        lengths: Sequence[int],
        budget: int,
        last: int = 1,
    ) -> Tensor:
        """`hidden` of prompts that end at the right edge, at most `budget` positions at once (0: all)."""
        device, edge, states = tokens.device, tokens.shape[1], []
        groups = least_padding(range(len(lengths)), lengths.__getitem__, len(lengths), budget)
        for group in groups:
            rows, sizes = (moved(torch.tensor(x), device) for x in (group, [lengths[i] for i in group]))
            at = edge - sizes.unsqueeze(-1) + torch.arange(max(lengths[i] for i in group), device=device)
            read = tokens[rows].gather(1, at.clamp(max=edge - 1))
            states.append(self.read_prompts(rows, read, sizes, last))
        order = moved(torch.tensor([i for group in groups for i in group]), device)
        return torch.cat(states)[order.argsort()]

    def keep(self, rows: Tensor, first: int = 0) -> None:
        """Continue with only these rows; `first`, the columns of padding in all of them, are not held."""
        self.place.rows, self.place.lengths = len(rows), self.place.lengths[rows]
        for layer in self.cache.layers:
            assert isinstance(layer, FixedLayer)
            layer.keep(rows)
        if self.graphs is not None:
            self.graphs.clear()
