"""Exact resume: a run that is interrupted ends with the weights of one that is not.

A GPU's kernels may sum in another order each time: allowed is as much as two undisturbed runs differ.
"""

from __future__ import annotations

from benchmarks.gpu_check.result import Result, answer, most
from benchmarks.gpu_check.training import Runs, furthest, weights
from benchmarks.shapes import Shape

UPDATES = 6


def run(shape: Shape) -> Result:
    runs, half = Runs(shape, "bf16"), UPDATES // 2
    first, second = runs.side("first", UPDATES), runs.side("second", UPDATES)
    losses, again = runs.losses(first, UPDATES), runs.losses(second, UPDATES)
    expected = weights(first)
    apart = float((weights(second) - expected).abs().max())
    interrupted = runs.side("interrupted", UPDATES)
    runs.losses(interrupted, half)
    interrupted.engine.save({"of": "the loop"})
    del first, second, interrupted
    resumed = runs.side("interrupted", UPDATES)
    saved = resumed.engine.resume()
    assert saved == {"of": "the loop"} and resumed.engine.step == half, "the checkpoint was not found"
    rest = runs.losses(resumed, UPDATES - half)
    gap = float((weights(resumed) - expected).abs().max())
    limits = [
        most("weights, resumed from undisturbed, largest difference", gap, 2 * apart),
        most("losses, the same, relative", furthest(rest, losses[half:]), 2 * furthest(again, losses)),
    ]
    return Result(limits, {"weights, two undisturbed runs, largest difference": apart})


if __name__ == "__main__":
    answer(run)
