"""One model alone: as many rows as fit are sampled at once, and new ones take the places of those that ended.

The numbers that draw a token belong to its row and position, so who is sampled when changes nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.data.batching import at_once, least_padding, moved
from minillm.models.head import head_of
from minillm.models.onednn_layout import packed_head
from minillm.models.tiled_loss import Head
from minillm.sampling.draw import draw_and_record
from minillm.sampling.kv_cache import compact_at, look_every
from minillm.sampling.logit_filters import Filters
from minillm.sampling.one_shape import OneShape
from minillm.sampling.response import How, Mixture, Record, Response, broken
from minillm.sampling.scored import scored

# The numbers that draw the tokens of these items, (items, horizon).
Numbers = Callable[[Sequence[int]], np.ndarray]
# Free slots are filled once they are this share, or nothing runs: each filling is one more pass.
REFILL_AT = 0.125


def queues(lengths: Sequence[int], rows: int, budget: int) -> list[tuple[int, list[int]]]:
    """(slots, items in order of length) of each queue, of which one is sampled after the other.

    Items whose `lengths`, response included, leave room for half as many slots within `budget` positions (0:
    any number) are in the next queue.
    """
    made: dict[int, list[int]] = {}
    for item in sorted(range(len(lengths)), key=lengths.__getitem__):
        slots = rows
        while budget and slots > 1 and slots * lengths[item] > budget:
            slots = (slots + 1) // 2
        made.setdefault(slots, []).append(item)
    return [(min(slots, len(items)), items) for slots, items in made.items()]


class Slots:
    """Rows that are being sampled, each at a place of its own; tensors are (slots,) or (slots, horizon).

    A slot is free before its first prompt and after its row has ended; what is computed for it is not used.
    """

    def __init__(
        self, model: PreTrainedModel, head: Head, size: int, length: int, how: How, keep: bool
    ) -> None:
        self.model, self.how, self.device = model, how, model.device
        device = self.device
        self.length, self.horizon = length, how.sampling.max_tokens
        self.decoder = OneShape(model, head, size, length, how.graphs)
        self.filters = Filters(how.sampling, ())
        # On the host: the item in each slot, its prompt's length, how many steps had been made when it began,
        # and whether it runs, as far as is known.
        self.items, self.sizes, self.begun = (np.zeros(size, dtype=np.int64) for _ in range(3))
        self.busy, self.steps = np.zeros(size, dtype=bool), 0
        # The same items; tokens sampled; whether a slot runs, has ended, has had NaN.
        self.rows, self.lengths = torch.zeros(2, size, dtype=torch.long, device=device)
        self.running, self.ended, self.nan = torch.zeros(3, size, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(size, self.horizon, dtype=torch.long, device=device)
        self.uniform = torch.zeros(size, self.horizon, dtype=torch.float64, device=device)
        self.records = torch.zeros(5, size if how.record else 0, self.horizon, device=device)
        # Hidden states that predict the next tokens, (slots, width), once there are any.
        self.states = torch.zeros(0, device=device)
        # Those of the tokens that were drawn, (slots, horizon, width), if they are to be kept.
        self.kept, self.keep = torch.zeros(0, device=device), keep

    def fill(self, items: Sequence[int], prompts: Sequence[np.ndarray], uniform: np.ndarray) -> None:
        """Begin these prompts, at most as many as slots are free; `uniform` (prompts, horizon)."""
        slots = np.flatnonzero(~self.busy)[: len(items)]
        sizes = np.array([len(prompt) for prompt in prompts])
        before = self.items[slots].tolist()
        self.items[slots], self.sizes[slots], self.begun[slots] = items, sizes, self.steps
        self.busy[slots] = True
        self.filters.replace(before, items, prompts)
        where, rows, numbers = (
            moved(torch.from_numpy(np.asarray(x)), self.device) for x in (slots, items, uniform)
        )
        # A new tensor: the filters read it once.
        self.rows, self.uniform[where] = self.rows.index_copy(0, where, rows), numbers
        for values, first in ((self.lengths, 0), (self.running, True), (self.ended, False)):
            values.index_fill_(0, where, first)
        budget = at_once(self.device, 0)
        for group in least_padding(range(len(slots)), lambda i: len(prompts[i]), len(slots), budget):
            self._read_prompts(slots[group], [prompts[i] for i in group])

    def _read_prompts(self, slots: np.ndarray, prompts: Sequence[np.ndarray]) -> None:
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        tokens = torch.zeros(len(prompts), int(sizes.max()), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
        where, tokens, sizes = (moved(x, self.device) for x in (torch.from_numpy(slots), tokens, sizes))
        states = self.decoder.read_prompts(where, tokens, sizes)[:, 0]
        if not len(self.states):
            self.states = states.new_zeros(len(self.items), states.shape[1])
            if self.keep:
                self.kept = states.new_zeros(len(self.items), self.horizon, states.shape[1])
        self.states[where] = states

    def draw(self) -> Tensor:
        """Draw a token for every slot, (slots,), and keep those of slots that run."""
        at = self.lengths.clamp(max=self.horizon - 1).unsqueeze(-1)
        logits = self.decoder.head.logits(self.states)
        filtered = self.filters(self.rows, logits) if self.filters else None
        uniform = self.uniform.gather(1, at).squeeze(-1)
        drawn = draw_and_record([logits], 0.0, uniform, self.how.record, filtered)
        chosen, values = drawn.tokens, drawn.values
        if self.filters:
            self.filters.add(self.rows, chosen)
        running = self.running
        self.nan = self.nan | (running & (chosen < 0))
        chosen = chosen.clamp(min=0)
        store(self.tokens, at, chosen, running)
        if self.keep:
            where = torch.arange(len(at), device=self.device), at.squeeze(-1)
            self.kept[where] = torch.where(running.unsqueeze(-1), self.states, self.kept[where])
        if values is not None:
            for kept, value in zip(self.records, values, strict=True):
                store(kept, at, value.to(kept.dtype), running)
        for end in self.how.ends:
            self.ended = self.ended | (running & (chosen == end))
        self.lengths = self.lengths + running
        self.running = running & ~self.ended & (self.lengths < self.horizon)
        return chosen

    def read(self, tokens: Tensor) -> None:
        """Read the tokens that were drawn last."""
        seen = min(int((self.sizes + self.steps - self.begun)[self.busy].max()) + 1, self.length)
        # Slots that have ended read at their last place again, or before: with nothing to attend to they
        # would leave NaN behind.
        columns = (self.decoder.place.lengths + self.lengths - 1).clamp(min=0, max=seen - 1)
        states = self.decoder.step(tokens.unsqueeze(-1), columns.unsqueeze(-1), seen)
        self.states, self.steps = states[:, 0], self.steps + 1

    def full(self) -> bool:
        """Whether all responses that are known to run have the most tokens, the last draw's included."""
        return bool((self.steps - self.begun[self.busy] + 1 >= self.horizon).all())

    def taken(self) -> list[tuple[int, Response, Tensor]]:
        """(item, response, its kept states) of slots that have ended and are now free.  Waits for a GPU."""
        running, nan = torch.stack([self.running, self.nan]).cpu().numpy()
        if nan.any():
            raise broken(self.model)
        done = np.flatnonzero(self.busy & ~running)
        self.busy &= running
        if not len(done):
            return []
        where = moved(torch.from_numpy(done), self.device)
        facts = torch.cat([self.lengths[where, None], self.ended[where, None], self.tokens[where]], 1)
        values = self.records[:, where].cpu().numpy() if self.how.record else None
        made = []
        for i, (item, row) in enumerate(zip(self.items[done].tolist(), facts.cpu().numpy(), strict=True)):
            tokens = row[2 : 2 + row[0]].astype(np.int32)
            record = None if values is None else Record(*values[:, i, : len(tokens)].copy())
            # A copy: the slot takes another row.
            states = self.kept[done[i], : len(tokens)].clone() if self.keep else self.kept
            made.append((item, Response(tokens, bool(row[1]), record), states))
        return made

    def shrink(self) -> None:
        """Drop the free slots if they are many: nothing is left to fill them."""
        if self.busy.sum() > compact_at(self.device) * len(self.busy):
            return
        slots = np.flatnonzero(self.busy)
        where = moved(torch.from_numpy(slots), self.device)
        self.decoder.keep(where)
        for name in ("rows", "lengths", "running", "ended", "nan", "tokens", "uniform", "states"):
            setattr(self, name, getattr(self, name)[where])
        if self.how.record:
            self.records = self.records[:, where]
        if self.keep:
            self.kept = self.kept[where]
        for name in ("items", "sizes", "begun", "busy"):
            setattr(self, name, getattr(self, name)[slots])


def store(kept: Tensor, at: Tensor, values: Tensor, running: Tensor) -> None:
    """Store `values` (slots,) in column `at` (slots, 1) of `kept` (slots, horizon), for slots that run."""
    kept.scatter_(1, at, torch.where(running.unsqueeze(-1), values.unsqueeze(-1), kept.gather(1, at)))


def refilled(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    numbers: Numbers,
    how: How,
    mixture: Mixture | None = None,
) -> Iterator[tuple[int, Response]]:
    """(item, response) of each prompt as it ends; a teacher has no share in sampling, only in the records."""
    head = packed_head(head_of(model, how.vocabulary, how.sampling.temperature))
    if mixture is None or not how.record:
        yield from (made[:2] for made in _sampled(model, head, prompts, numbers, how, False))
        return
    plain = dataclasses.replace(how, record=False)
    theirs = prompts if mixture.prompts is None else mixture.prompts
    yield from scored(_sampled(model, head, prompts, numbers, plain, True), head, mixture, theirs, how)


def _sampled(
    model: PreTrainedModel,
    head: Head,
    prompts: Sequence[np.ndarray],
    numbers: Numbers,
    how: How,
    keep: bool,
) -> Iterator[tuple[int, Response, Tensor]]:
    """And the hidden states of its tokens, (length, width), if they are kept."""
    horizon = how.sampling.max_tokens
    for size, items in queues([len(prompt) + horizon for prompt in prompts], how.batch, how.budget):
        slots = Slots(model, head, size, len(prompts[items[-1]]) + horizon, how, keep)
        left = deque(items)
        for turn in itertools.count():
            free = len(slots.busy) - int(slots.busy.sum())
            if left and free >= min(REFILL_AT * size, len(slots.busy)):
                new = [left.popleft() for _ in range(min(free, len(left)))]
                slots.fill(new, [prompts[i] for i in new], numbers(new))
            if not slots.busy.any():
                break
            if not left:
                slots.shrink()
            tokens = slots.draw()
            if (turn + 1) % look_every(slots.device) == 0 or slots.full():
                yield from slots.taken()
            if slots.busy.any():
                slots.read(tokens)
