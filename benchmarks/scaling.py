"""How the cost of an iteration grows with processes, tokens and vocabulary.

Each point runs in a fresh process (or several, by torchrun), whose first iteration is not counted.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from functools import partial

from benchmarks import child
from benchmarks.shapes import FIXED, Shape
from benchmarks.sides import Ours
from benchmarks.speed import seconds
from benchmarks.workload import Setting
from minillm.runtime.processes import start


def points(full: bool) -> list[tuple[str, Shape, int]]:
    """(what, shape, processes) of every measurement."""
    shapes = [("processes", FIXED, count) for count in (1, 2)]
    shapes += [
        ("vocabulary", dataclasses.replace(FIXED, vocabulary=v), 1)
        for v in ((2048, 152064) if full else (2048,))
    ]
    for side in (32, 128) if full else (32,):
        shapes.append(("tokens", dataclasses.replace(FIXED, prompt=side, response=side, text=2 * side), 1))
    return shapes


def run(shape: Shape, precision: str, repeats: int) -> None:
    """Print the median seconds of rollout, update and iteration."""
    world = start(0)
    setting = Setting(shape, precision, world)
    side = Ours(setting, shape, setting.make())
    times: dict[str, list[float]] = {"rollout": [], "update": [], "iteration": []}
    for repeat in range(repeats + 1):
        rollout, rollouts = seconds(side.rollout)
        updates = [seconds(partial(side.update, rollouts))[0] for _ in range(2)]
        if repeat:
            update = statistics.mean(updates)
            for name, value in {
                "rollout": rollout,
                "update": update,
                "iteration": rollout + shape.inner_epochs * update,
            }.items():
                times[name].append(value)
    if world.rank == 0:
        print(json.dumps({name: statistics.median(values) for name, values in times.items()}))


if __name__ == "__main__":
    shape, request = child.asked()
    run(shape, **request)
