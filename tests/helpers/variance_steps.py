"""One update of MiniLLM with micro-batches of several sizes, with and without its gradient's variance.

    variance_steps.py OUT ZERO...    by one process or by those of torchrun

Rank 0 saves {zero: (logged, logged without, weights, weights without)}, and under "parts" each micro-batch's
rows of each rank, in order.
"""

import sys
import tempfile
from pathlib import Path

import torch
from onpolicy_case import COUNT, pair, rollouts, settings, task
from zero_steps import Spread

from minillm.config.launch import Launch
from minillm.runtime.processes import leave, start
from minillm.training.rollout_losses import micro_batches


def update(world, zero, measured):
    """(what is logged, weights, this rank's micro-batches)."""
    chosen = settings("paper", warmup=0, lr=1e-2)
    student, teacher = (model.float() for model in pair())
    made = rollouts(student, teacher, chosen)
    launch = Launch(zero=zero, micro_tokens=50, micro_batch=COUNT, gradient_variance=measured)
    engine = Spread(student, chosen, launch, world, "fp32", Path(tempfile.mkdtemp()), 1)
    parts, loss = micro_batches(engine, task(teacher, chosen), made, list(range(COUNT)))
    sums = engine.update(parts, loss, sizes=list(map(len, parts)))
    logged = engine.summed(sums)
    with engine.whole():
        return logged, torch.cat([p.detach().flatten().clone() for p in engine.model.parameters()]), parts


def main(out, *stages):
    world = start(0)
    results = {}
    for zero in map(int, stages):
        with_it, without = (update(world, zero, measured) for measured in (True, False))
        results[zero] = with_it[0], without[0], with_it[1], without[1]
        results["parts"] = world.gather(with_it[2])
    if world.rank == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
