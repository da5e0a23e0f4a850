"""`launch.compile`: the same losses as without, and what it saves."""

from __future__ import annotations

import importlib.util
import statistics

from benchmarks.gpu_check.result import Result, answer, most
from benchmarks.gpu_check.training import Runs, furthest
from benchmarks.shapes import Shape
from benchmarks.speed import seconds
from minillm.models.compiling import lacking

UPDATES = 4
MOST = 2e-2


def run(shape: Shape) -> Result:
    runs = Runs(shape, "bf16")
    cuda = runs.setting.world.device.type == "cuda"
    if cuda and importlib.util.find_spec("triton") is None:
        return Result(skipped="Triton is not installed")
    if missing := lacking():
        return Result(skipped=f"no {missing} on this machine, which torch needs to compile")
    losses, times = {}, {}
    for compiled in (False, True):
        # On a CPU blocks are only compiled with eager attention.
        side = runs.side(f"compiled-{compiled}", compile=compiled, attention="auto" if cuda else "eager")
        taken = [seconds(lambda side=side: runs.losses(side, 1)[0]) for _ in range(UPDATES)]
        losses[compiled] = [loss for _, loss in taken]
        # Without the first, which compiles.
        times[compiled] = [time for time, _ in taken]
    limits = [most("losses, compiled from not, bf16, relative", furthest(losses[True], losses[False]), MOST)]
    values = {
        "seconds of an update, not compiled": statistics.median(times[False][1:]),
        "seconds of an update, compiled": statistics.median(times[True][1:]),
        "seconds of the first, which compiles": times[True][0],
    }
    return Result(limits, values)


if __name__ == "__main__":
    answer(run)
