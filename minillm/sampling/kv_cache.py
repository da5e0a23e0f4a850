"""One model and its KV cache, one position at a time, on unmodified transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from minillm.data.batching import least_padding
from minillm.models.head import head_of
from minillm.models.onednn_layout import packed_head


class RoomyLayer(DynamicLayer):
    """A layer's cache with room for later positions: transformers' own copies all of it at every one."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states (batch, heads, positions, width) and return all of them, views of the room."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.room is None:
            self.room = (
                self._moved(key_states, self.keys, start),
                self._moved(value_states, self.values, start),
            )
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[..., start:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values

    def _moved(self, states: Tensor, held: Tensor | None, start: int) -> Tensor:
        batch, heads, positions, width = states.shape
        room = states.new_empty(batch, heads, max(self.length, start + positions), width)
        if start and held is not None:
            room[..., :start, :] = held
        return room

    def put(self, rows: Tensor, batch: int, key_states: Tensor, value_states: Tensor, end: int) -> None:
        """Store prompts of some rows of the batch, which end at position `end`; before them is padding."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.room is None:
            # Zeros, because padding has weight 0, and 0 times whatever memory happens to hold may be NaN.
            rooms = [
                s.new_zeros(batch, s.shape[1], max(self.length, end), s.shape[-1])
                for s in (key_states, value_states)
            ]
            self.room = rooms[0], rooms[1]
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[rows, :, end - states.shape[-2] : end] = states
        self.keys, self.values = (room[..., :end, :] for room in self.room)

    def keep(self, rows: Tensor, first: int) -> None:
        """Keep only these rows, and no position before `first`: a copy, with the same room after it."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows, :, first:], self.values[rows, :, first:]
            self.length, self.room = self.length - first, None


# Finished rows are dropped once at most this share is alive: each drop copies the KV cache.
COMPACT_AT = 0.75


class Decoder:
    """A model that reads a batch position by position, at most `length` positions."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: int,
        temperature: float,
        length: int,
        swap: tuple[int, int] | None = None,
    ) -> None:
        self.model: Any = model.base_model
        self.head = packed_head(head_of(model, vocabulary, temperature, swap))
        self.cache = DynamicCache(config=model.config)
        self.cache.layers = [
            RoomyLayer(length) if type(layer) is DynamicLayer else layer for layer in self.cache.layers
        ]
        self.croppable = all(isinstance(layer, RoomyLayer) for layer in self.cache.layers)

    def hidden(self, tokens: Tensor, attention: Tensor, positions: Tensor, last: int = 1) -> Tensor:
        """Hidden states after each of the `last` tokens, (batch, last, width), that predict the next ones.

        `tokens` and `positions` (batch, tokens) follow what the cache holds; `attention` covers both.
        """
        output = self.model(
            input_ids=tokens,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        states: Tensor = output.last_hidden_state[:, -last:]
        # Not a view: it is kept, and the tensor behind a view would be too.
        return states.contiguous()

    def prompts(
        self,
        tokens: Tensor,
        attention: Tensor,
        positions: Tensor,
        lengths: Sequence[int],
        budget: int,
        last: int = 1,
    ) -> Tensor:
        """`hidden` of the prompts, which end at the right edge, at most `budget` positions at once (0: all).

        `lengths` are those of the prompts.  Prompts of similar length are read together, without the padding
        of the whole batch.
        """
        groups = least_padding(range(len(lengths)), lengths.__getitem__, len(lengths), budget)
        if len(groups) == 1 or not self.croppable:
            return self.hidden(tokens, attention, positions, last)
        whole, states = self.cache, []
        for group in groups:
            rows, width = torch.tensor(group, device=tokens.device), max(lengths[i] for i in group)
            self.cache = DynamicCache(config=self.model.config)
            read, visible, places = (values[rows, -width:] for values in (tokens, attention, positions))
            states.append(self.hidden(read, visible, places, last))
            for layer, part in zip(whole.layers, self.cache.layers, strict=True):
                assert isinstance(layer, RoomyLayer) and isinstance(part, DynamicLayer)
                assert part.keys is not None and part.values is not None
                layer.put(rows, len(lengths), part.keys, part.values, tokens.shape[1])
        self.cache = whole
        order = torch.tensor([i for group in groups for i in group], device=tokens.device)
        return torch.cat(states)[order.argsort()]

    def keep(self, rows: Tensor, first: int) -> None:
        """Continue with only these rows, without the positions before `first`, padding in all of them.

        `first` is 0 unless the cache is `croppable`: a layer with a sliding window drops positions itself.
        """
        assert self.croppable or not first
        for layer in self.cache.layers:
            if isinstance(layer, RoomyLayer):
                layer.keep(rows, first)
            else:
                # The only other kind that models/checks.py lets in.
                assert isinstance(layer, DynamicSlidingWindowLayer)
                layer.batch_select_indices(rows)
