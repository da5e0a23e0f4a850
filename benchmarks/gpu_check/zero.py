"""ZeRO 0 to 3: the same losses, whatever is sharded; on two GPUs if there are two."""

from __future__ import annotations

import gc

from benchmarks.gpu_check.result import Result, answer, most
from benchmarks.gpu_check.training import Runs, furthest
from benchmarks.shapes import Shape

UPDATES = 4
# The order of sums in float32; in bf16 gradients are rounded before they are summed.
MOST = {"fp32": 1e-4, "bf16": 2e-2}


def run(shape: Shape) -> Result:
    limits, values = [], {}
    for precision, limit in MOST.items():
        runs = Runs(shape, precision)
        losses: dict[int, list[float]] = {}
        for stage in range(4):
            losses[stage] = runs.losses(runs.side(f"zero{stage}", zero=stage), UPDATES)
            gc.collect()
        limits += [
            most(
                f"ZeRO {stage} from ZeRO 0, {precision}, relative", furthest(losses[stage], losses[0]), limit
            )
            for stage in range(1, 4)
        ]
        values[f"losses under ZeRO 0, {precision}"] = losses[0]
        values["processes"] = runs.setting.world.size
    return Result(limits, values)


if __name__ == "__main__":
    answer(run)
