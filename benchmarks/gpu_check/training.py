"""On-policy updates that several checks make: always the same samples, so that only the engine differs."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_check.sizes import launch, student
from benchmarks.shapes import Shape
from benchmarks.sides import Ours
from benchmarks.workload import Setting, settings
from minillm.runtime.engine import Engine
from minillm.runtime.processes import start
from minillm.training.rollouts import Rollouts

STEPS = 1000


class Runs:
    """Trainings with the same models and data; the first one's samples are all others'."""

    def __init__(self, shape: Shape, precision: str) -> None:
        self.shape, self.setting = shape, Setting(shape, precision, start(0))
        self.data, self.chosen = self.setting.make(), settings(shape)
        self.rollouts: Rollouts | None = None

    def side(self, name: str, steps: int = STEPS, **launched: Any) -> Ours:
        """A new student under an engine of its own, in the folder `name`, or what is saved there."""
        setting = self.setting
        engine = Engine(
            student(self.shape),
            self.chosen,
            launch(self.shape, **launched),
            setting.world,
            setting.precision,
            setting.folder / name,
            steps,
        )
        engine.frozen(setting.teacher)
        side = Ours(setting, self.shape, self.data, engine)
        if self.rollouts is None:
            self.rollouts = side.rollout()
        return side

    def losses(self, side: Ours, count: int) -> list[float]:
        """Of so many updates on all samples."""
        assert self.rollouts is not None
        return [side.update(self.rollouts) for _ in range(count)]


def furthest(found: list[float], expected: list[float]) -> float:
    """The largest relative difference of two lists of losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def weights(side: Ours) -> torch.Tensor:
    """All of the student's weights as one vector, on the CPU."""
    return torch.cat([p.detach().flatten().cpu() for p in side.engine.model.parameters()])
