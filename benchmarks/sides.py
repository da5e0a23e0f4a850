"""Both sides of a comparison: `rollout` is one collection, `update` one optimizer step on all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.reference import Reference, Samples
from benchmarks.shapes import Shape
from benchmarks.stops import Stops
from benchmarks.workload import EOS, PAD, Data, Setting, settings
from minillm.config.sections import Sampling
from minillm.runtime.engine import Engine, Losses
from minillm.training.dev_set import Dev
from minillm.training.mini_batch import Task
from minillm.training.rollout_losses import micro_batches
from minillm.training.rollouts import Memory, Rollouts, collect_rollouts


class Ours:
    """The package.  `changes` are keys of OnPolicy; an existing `engine` can be reused with other data."""

    def __init__(
        self, setting: Setting, shape: Shape, data: Data, engine: Engine | None = None, **changes: Any
    ) -> None:
        # It also keeps the folder of data and checkpoints.
        self.setting, self.chosen, self.data = setting, settings(shape, **changes), data
        self.engine = engine or setting.engine("ours", self.chosen, compiled=setting.compiled)
        sampling = Sampling(max_tokens=self.chosen.max_tokens)
        dev = Dev([], [], data.tokenizer, sampling, shape.vocabulary, shape.batch, 0)
        self.task = Task(setting.teacher, None, data.corpus, dev, self.chosen, 0)
        self.collection = 0

    def rollout(self) -> Rollouts:
        with stopping([self.engine.model, self.task.teacher], self.data.stops):
            rollouts = collect_rollouts(
                self.engine,
                self.task.teacher,
                self.data.rows,
                self.task.dev,
                self.chosen,
                Memory(1.0),
                self.collection,
                0,
            )
        self.collection += 1
        return rollouts

    def update(self, rollouts: Rollouts) -> float:
        """Returns the loss."""
        rows = list(range(len(rollouts.responses)))
        return total(self.engine, micro_batches(self.engine, self.task, rollouts, rows))

    @staticmethod
    def tokens(rollouts: Rollouts) -> int:
        """Response tokens of a collection."""
        return int(rollouts.mask.sum())


class Released:
    """The reference, stepped by the same engine; collections go through in chunks of `micro_batch` rows."""

    def __init__(
        self, setting: Setting, shape: Shape, data: Data, engine: Engine | None = None, **changes: Any
    ) -> None:
        self.chosen, self.shape, self.data = settings(shape, **changes), shape, data
        self.engine = engine or setting.engine("reference", self.chosen)
        self.model = Reference(
            self.engine.model, setting.teacher, self.chosen, shape.prompt, shape.response, EOS, PAD
        )
        self.generator = torch.Generator(setting.world.device).manual_seed(0)

    def rollout(self) -> list[Samples]:
        prompts = [self.data.rows.prompt(i) for i in range(len(self.data.rows))]
        size = self.shape.micro_batch
        with stopping([self.model.student, self.model.teacher], self.data.stops):
            return [
                self.model.rollout(prompts[i : i + size], self.generator)
                for i in range(0, len(prompts), size)
            ]

    def update(self, chunks: list[Samples]) -> float:
        """Returns the loss."""
        count = self.shape.batch if self.chosen.lm_coef else 0
        texts = [
            self.data.corpus.chunk((self.engine.step * count + i) % len(self.data.corpus))
            for i in range(count)
        ]
        return total(self.engine, self.model.losses(self.engine.engine, chunks, texts))

    @staticmethod
    def tokens(chunks: list[Samples]) -> int:
        """Response tokens of a collection."""
        return sum(int(chunk.mask.sum()) for chunk in chunks)


def total(engine: Engine, step: tuple[list[Any], Callable[[Any], Losses]]) -> float:
    """The loss of one optimizer step."""
    return engine.summed(engine.update(*step))["loss"]


@contextlib.contextmanager
def stopping(both: Sequence[PreTrainedModel], stops: dict[int, int]) -> Iterator[None]:
    """Make responses end at their planned lengths; without `stops`, nothing is hooked."""
    with contextlib.ExitStack() as stack:
        if stops:
            for model in both:
                stack.enter_context(Stops(model, EOS, stops))
        yield


SIDES: dict[str, Any] = {"ours": Ours, "reference": Released}
