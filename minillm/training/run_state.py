"""What on-policy training keeps from step to step: made, saved and restored in one place.

A checkpoint holds weights, optimizer and step (runtime/engine.py); all else that a next step depends on is
here, and a part that has a state of its own is added here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from minillm.data.rows import Rows
from minillm.runtime.engine import Engine
from minillm.training.drawn_ahead import OnDisk, Queue
from minillm.training.mini_batch import Task
from minillm.training.moving_target import MovingTarget
from minillm.training.rollouts import Memory, Rollouts, collect_rollouts
from minillm.training.teaching import MeanTeacher
from minillm.training.vllm_rollouts import VllmRollouts


def drawing(
    engine: Engine, task: Task, rows: Rows, memory: Memory, vllm: VllmRollouts | None
) -> Callable[[int], Rollouts]:
    """Draws a collection, named by its number, from the student as it then is."""

    def draw(collection: int) -> Rollouts:
        return collect_rollouts(
            engine, task.teacher, rows, task.dev, task.settings, memory, collection, task.seed, vllm
        )

    return draw


class RunState:
    """A run's dev evaluations (`history`), samples, and what moves at each step, if the settings ask for it.

    `memory` is what the choice of samples remembers, `source` where collections come from, `rollouts` the one
    that is trained on, `target` TAID's, `mean` the mean of the student that teaches.
    """

    def __init__(self, engine: Engine, task: Task, rows: Rows, precision: str) -> None:
        """As in the newest checkpoint, which the engine resumes from, or as a run starts.

        Every rank must call.
        """
        s, saved = task.settings, engine.resume() or {}
        self.engine, self.task = engine, task
        self.mean = MeanTeacher.of(s, task.teacher, engine.model, saved.get("mean"))
        engine.checkpoint_bytes += self.mean.bytes if self.mean else 0
        self.history: list[dict[str, Any]] = saved.get("history", [])
        self.memory = Memory.restored(saved["memory"]) if saved else Memory(s.student_share)
        self.target = MovingTarget.of(s.taid, saved.get("target"))
        # Taken at the first step of each collection.
        self.rollouts: Any = None
        if saved.get("rollouts"):
            self.rollouts = Rollouts.restored(saved["rollouts"], engine.world)
        vllm = VllmRollouts(engine, s, precision) if s.backend == "vllm" else None
        draw = drawing(engine, task, rows, self.memory, vllm)
        self.source: Queue | OnDisk
        collection, place = divmod(engine.step, s.steps_of_collection)
        if s.sampler and s.sampler.cached:
            self.source = OnDisk(draw, s.collections, engine)
            if place:
                self.take(collection)
        else:
            lag, following = s.sampler.lag if s.sampler else 0, collection + bool(place)
            ahead = saved.get("ahead", [])
            self.source = Queue(draw, s.collections, lag, following, ahead, engine.world)

    def draw_ahead(self) -> None:
        """Before the first step: what only the initial student can draw."""
        if isinstance(self.source, OnDisk):
            self.source.fill(self.engine.step // self.task.settings.steps_of_collection)

    def take(self, collection: int) -> None:
        """Before a collection's first step."""
        self.rollouts = self.source.take(collection)

    def move(self, sums: dict[str, Tensor]) -> None:
        """After an optimizer step, whose loss has these terms on this rank; every rank must call."""
        if self.mean:
            self.mean.move()
        if self.target:
            loss = math.fsum(self.engine.world.gather(float(sums[self.task.settings.objective])))
            self.target.move(loss, (self.engine.step - 1) / self.engine.steps)

    def saved(self) -> dict[str, Any]:
        """As plain values and tensors, for a checkpoint."""
        # After a collection's last step its samples are not needed again; those on the disk stay there.
        within = self.engine.step % self.task.settings.steps_of_collection
        again = within and isinstance(self.source, Queue)
        values: dict[str, Any] = {
            "history": self.history,
            "rollouts": vars(self.rollouts) if again else None,
            "memory": self.memory.saved(),
            "ahead": self.source.saved(),
        }
        if self.target:
            values["target"] = self.target.saved()
        if self.mean:
            values["mean"] = self.mean.means
        return values
