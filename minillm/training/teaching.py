"""Who teaches: teachers by row, the student itself, and an exponential mean of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minillm.config.onpolicy import OnPolicy

T = TypeVar("T")
# The share of the student in the mean, as in SDPO.
RATE = 0.05


@contextmanager
def as_teacher(model: nn.Module, settings: OnPolicy) -> Iterator[None]:
    """Inside, a student that teaches itself reads without dropout, also in an update."""
    if settings.teacher is None or settings.teacher.who != "self" or not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


class MeanTeacher:
    """A model whose trained weights are an exponential mean of the student's; in every checkpoint.

    After each optimizer step m <- (1 - rate) m + rate w, from the initial weights on.  m is kept in float32
    (float64 stays float64), since half precision would lose most of such a step; `model` computes with m as
    rounded to its own precision, and w are the weights that the student computes with.
    """

    def __init__(
        self, model: PreTrainedModel, student: nn.Module, rate: float, saved: Mapping[str, Any] | None = None
    ) -> None:
        """`model` and `student` hold the same weights now, unless `saved` has the means."""
        self.model, self.rate = model, rate
        held = dict(model.named_parameters())
        self.pairs = {
            name: (held[name], weight) for name, weight in student.named_parameters() if weight.requires_grad
        }
        self.means = {name: _precise(mine.detach()) for name, (mine, _) in self.pairs.items()}
        if saved is not None:
            for name, (mine, _) in self.pairs.items():
                self.means[name].copy_(saved[name])
                _write(mine, self.means[name])

    @classmethod
    def of(
        cls, settings: OnPolicy, model: PreTrainedModel, student: nn.Module, saved: Mapping[str, Any] | None
    ) -> MeanTeacher | None:
        """As it starts, or as `saved`; None if another teaches."""
        t = settings.teacher
        return cls(model, student, t.rate or RATE, saved) if t is not None and t.who == "ema" else None

    @torch.no_grad()
    def move(self) -> None:
        """After an optimizer step; the same on every rank, since each has the whole weights."""
        for name, (mine, weight) in self.pairs.items():
            mean = self.means[name]
            mean.lerp_(weight.detach().to(mean.dtype), self.rate)
            _write(mine, mean)

    @property
    def bytes(self) -> int:
        """What the means take in a checkpoint."""
        return sum(mean.numel() * mean.element_size() for mean in self.means.values())


def _precise(weight: Tensor) -> Tensor:
    """The weight itself if it is precise enough, else a copy in float32."""
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()


def _write(weight: Tensor, mean: Tensor) -> None:
    if mean.data_ptr() != weight.data_ptr():
        weight.detach().copy_(mean)


@dataclass(frozen=True)
class Panel:
    """Several teachers; a row's is found by its category (the models; split -> row id -> which of them)."""

    models: Sequence[PreTrainedModel]
    rows: Mapping[str, Mapping[int, int]]

    def teacher_of(self, split: str, row: int) -> int:
        """The number of a row's teacher."""
        return self.rows[split][row]

    def grouped(
        self, split: str, items: Sequence[T], id_of: Callable[[T], int]
    ) -> list[tuple[PreTrainedModel, list[T]]]:
        """Each teacher of `items` with its own, which must be next to each other."""
        by_number = groupby(items, lambda item: self.teacher_of(split, id_of(item)))
        return [(self.models[number], list(part)) for number, part in by_number]


def by_segment(parts: Sequence[tuple[Callable[[slice], Tensor], int]]) -> Callable[[slice], Tensor]:
    """Logits of tokens of which each of `parts` makes the next so many, a tile at a time."""

    def logits(tile: slice) -> Tensor:
        found, first = [], 0
        for make, count in parts:
            inside = slice(max(tile.start - first, 0), min(tile.stop - first, count))
            if inside.start < inside.stop:
                found.append(make(inside))
            first += count
        return torch.cat(found) if len(found) > 1 else found[0]

    return logits
