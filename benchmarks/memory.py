"""Peak memory of an iteration, in a separate process, above what both models and the training state take.

"above" is the peak of a collection and an update minus the resident size after both models were loaded and
one optimizer step was made (the definition of the targets).  It includes what any step needs: gradients and
the optimizer's temporaries, which grow with the vocabulary since the embeddings do.  So the same process
first makes a step on almost no tokens: "floor" is its peak, and "net" = above - floor is what the method
takes for its tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from benchmarks import child
from benchmarks.meter import Meter
from benchmarks.shapes import Shape
from benchmarks.sides import SIDES
from benchmarks.workload import Setting
from minillm.runtime.processes import start

# The tokens of the floor's step.
SMALL: dict[str, Any] = {"prompt": 2, "response": 2, "text": 4, "real": False}


def run(side: str, shape: Shape, precision: str, warm: bool = False, **changes: Any) -> dict[str, float]:
    """Megabytes of this process: resident, floor, rollout, update, above, net; `changes`: keys of OnPolicy.

    With `warm` the resident size is taken after an iteration of the shape itself, as TRL's is, so that it
    includes kernels made at first use.
    """
    meter, setting = Meter(), Setting(shape, precision, start(0))
    small = dataclasses.replace(shape, **SMALL)
    short = SIDES[side](setting, small, setting.make(small), **changes)
    long = SIDES[side](setting, shape, setting.make(), short.engine, **changes)
    # Creates the optimizer's state.
    short.update(short.rollout())
    if warm:
        long.update(long.rollout())
    resident = meter.held()

    def above(part: Callable[[], Any]) -> tuple[float, Any]:
        meter.begin()
        result = part()
        return meter.peak() - resident, result

    floor, _ = above(lambda: short.update(short.rollout()))
    rollout, rollouts = above(long.rollout)
    update, _ = above(lambda: long.update(rollouts))
    peak = max(rollout, update)
    return {
        "resident": resident,
        "floor": floor,
        "rollout": rollout,
        "update": update,
        "above": peak,
        "net": peak - floor,
    }


if __name__ == "__main__":
    shape, request = child.asked()
    print(json.dumps(run(shape=shape, **request)))
