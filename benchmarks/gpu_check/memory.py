"""Peak memory of a collection and an update, against what `minillm plan` says of them."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from typing import Any

from benchmarks.gpu_check.result import Result, answer, most
from benchmarks.meter import MB, Meter
from benchmarks.shapes import Shape
from benchmarks.workload import Setting
from minillm.runtime.processes import start

# On a GPU libraries take more than tensors.
MOST = {"cuda": 0.25, "cpu": 0.15}
STAGE, PRECISION = "minillm", "bf16"


def run(shape: Shape) -> Result:
    if importlib.util.find_spec("minillm.fits") is None:
        return Result(skipped="`minillm plan` does not estimate memory in this version")
    plan: Any = importlib.import_module("benchmarks.validate_plan")
    estimate: Any = importlib.import_module("minillm.fits.memory")
    device = start(0).device.type
    changes: dict[str, Any] = {}
    # On a CPU the plan's own small shape, and bytes of tensors followed one by one.
    if device == "cpu":
        _, _, shape, changes = plan.RUNS["minillm, tiny"]
    needed = estimate.memory(plan.planned(STAGE, PRECISION, shape, changes), device)
    if device == "cpu":
        peak = plan.measured(STAGE, PRECISION, shape, changes)["bytes"]
        # Left out on both sides.
        needed = dataclasses.replace(needed, buckets=0)
        planned = needed.peak + needed.store + needed.host
    else:
        peak, planned = _peak(plan, shape, changes), needed.peak
    off = abs(planned / peak - 1)
    parts = {
        f"planned MB of {name}": value / MB for name, value in dataclasses.asdict(needed).items() if value
    }
    values = {"planned MB": planned / MB, "measured MB": peak / MB, **parts}
    return Result([most("planned from measured, relative", off, MOST[device])], values)


def _peak(plan: Any, shape: Shape, changes: dict[str, Any]) -> float:
    """Bytes of the GPU in a second round; the first makes what stays."""
    meter = Meter()
    one = plan.OnPolicyRound(Setting(shape, PRECISION, start(0)), shape, changes)
    one.round()
    meter.begin()
    one.round()
    return meter.peak() * MB


if __name__ == "__main__":
    answer(run)
