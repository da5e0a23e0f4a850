"""Steps whose gradients are NaN or infinite, under each ZeRO stage and precision.

`skipped_steps.py OUT`, run by one process or by those of torchrun, writes one JSON object, {"zero precision":
what was seen}.  The last rank alone has the broken loss.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from onpolicy_case import pair
from zero_case import supervised
from zero_steps import supervised_parts

from minillm.config.launch import Launch
from minillm.errors import UserError
from minillm.runtime.engine import Engine
from minillm.runtime.metrics_log import MetricsLog
from minillm.runtime.processes import leave, start

ROWS = list(range(100, 108))


def weights(engine):
    with engine.whole():
        return torch.cat([p.detach().float().flatten() for p in engine.model.parameters()])


def step(engine, factor):
    """One step whose loss is multiplied by `factor` on the last rank."""
    parts, loss = supervised_parts(engine, None)
    last = engine.world.rank == engine.world.size - 1

    def broken(part):
        value, terms = loss(part)
        return value * (factor if last else 1.0), terms

    return engine.update(parts, broken, rows=ROWS)


def case(world, folder, zero, precision):
    """Bad steps between good ones, saved after a bad one and resumed, then bad ones until the end."""
    launch = Launch(zero=zero, micro_batch=4, log_every=1)
    engine = Engine(pair()[0].float(), supervised(), launch, world, precision, folder, 40)
    log = MetricsLog(engine, "test")
    seen = {"moved": []}
    for factor in (1.0, float("nan"), 1.0, float("inf")):
        before = weights(engine)
        log.write(engine.summed(step(engine, factor)))
        seen["moved"].append(not torch.equal(before, weights(engine)))
    engine.save({})
    again = Engine(pair()[0].float(), supervised(), launch, world, precision, folder, 40)
    again.resume()
    seen["resumed"] = again.skipped.total()
    before = weights(again)
    try:
        while again.step < 40:
            step(again, float("nan"))
    except UserError as error:
        seen["error"] = world.gather(str(error))
    seen["unchanged"] = torch.equal(before, weights(again))
    seen["finite"] = bool(torch.isfinite(before).all())
    if world.rank == 0:
        seen["metrics"] = (folder / "metrics.jsonl").read_text()
    return seen


def main(out):
    world, found = start(0), {}
    with TemporaryDirectory() as folder:
        folder = world.gather(folder)[0]
        for zero in range(4):
            for precision in ("fp32", "bf16"):
                place = Path(folder) / f"{zero}-{precision}"
                found[f"{zero} {precision}"] = case(world, place, zero, precision)
        world.barrier()
    if world.rank == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
