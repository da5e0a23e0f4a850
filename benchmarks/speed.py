"""Seconds of a collection, an update and a whole iteration, both sides in alternation."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.shapes import Shape
from benchmarks.sides import SIDES
from benchmarks.workload import Setting
from minillm.runtime.processes import World


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """(wall seconds, result of `action`)."""
    gc.collect()
    synchronize()
    begin = time.perf_counter()
    result = action()
    synchronize()
    return time.perf_counter() - begin, result


def spread(values: list[float]) -> dict[str, Any]:
    """Median, extremes and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def compare(
    shape: Shape,
    precision: str,
    world: World,
    repeats: int,
    updates: int,
    say: Callable[[str], None],
    compiled: bool = False,
) -> dict[str, Any]:
    """Both sides at one shape, `repeats` times in alternation, and the medians' ratios reference / ours.

    An iteration is a collection and `inner_epochs` updates with plain text.  All updates of an iteration make
    the same passes: ours are all timed, of the reference only `updates`, extrapolated.  "samples" means
    without plain text.  With `compiled` our losses are compiled.
    """
    setting = Setting(shape, precision, world, compiled)
    data = setting.make()
    all_times: dict[str, dict[str, list[float]]] = {name: {} for name in SIDES}
    with_text = {name: kind(setting, shape, data) for name, kind in SIDES.items()}
    without = {
        name: SIDES[name](setting, shape, data, side.engine, lm_coef=0.0) for name, side in with_text.items()
    }
    for repeat in range(repeats):
        for name in sorted(SIDES, reverse=bool(repeat % 2)):
            timed = shape.inner_epochs if name == "ours" else updates
            times, tokens = once(with_text[name], without[name], shape.inner_epochs, timed)
            for part, value in times.items():
                all_times[name].setdefault(part, []).append(value)
            say(
                f"{name:9} {repeat + 1}/{repeats}  "
                + "  ".join(f"{part} {value:.2f} s" for part, value in times.items())
            )
    sides = {
        name: {part: spread(values) for part, values in parts.items()} for name, parts in all_times.items()
    }
    parts = sides["ours"]
    ratios = {part: sides["reference"][part]["median"] / parts[part]["median"] for part in parts}
    return {"tokens": tokens, "sides": sides, "ratios": ratios}


def once(side: Any, samples: Any, inner_epochs: int, updates: int) -> tuple[dict[str, float], int]:
    """One repetition of one side: (seconds by part, response tokens of the collection)."""
    rollout, rollouts = seconds(side.rollout)
    update = statistics.mean(seconds(lambda: side.update(rollouts))[0] for _ in range(updates))
    alone = statistics.mean(seconds(lambda: samples.update(rollouts))[0] for _ in range(min(2, updates)))
    times = {
        "rollout": rollout,
        "update": update,
        "iteration": rollout + inner_epochs * update,
        "update_samples": alone,
        "iteration_samples": rollout + inner_epochs * alone,
    }
    return times, side.tokens(rollouts)


def warm_up(shape: Shape, precision: str, world: World, compiled: bool = False) -> None:
    """One collection and update of each side, untimed: libraries choose their kernels at the first call."""
    setting = Setting(shape, precision, world, compiled)
    for kind in SIDES.values():
        side = kind(setting, shape, setting.make())
        side.update(side.rollout())
