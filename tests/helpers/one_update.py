"""One optimizer step of the on-policy loss under DeepSpeed, in both presets.

With 1, 2 and 4 accumulated micro-batches, and with as many as a budget of tokens makes.

Started by torchrun with one or two processes; rank 0 saves the weights to the path given. SGD-like: with
Adam's first step a gradient of any size moves a weight by the same amount, which hides wrong factors, so the
optimizer's epsilon is made large.
"""

import sys
import tempfile
from pathlib import Path

import torch
from onpolicy_case import COUNT, pair, rollouts, settings, task

from minillm.config.launch import Launch
from minillm.runtime.engine import Engine
from minillm.runtime.processes import leave, start
from minillm.training.rollout_losses import micro_batches


def flat(model):
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


def main(out):
    world = start(0)
    results = {}
    for preset in ("paper", "released"):
        for accumulation in (1, 2, 4, "budget"):
            chosen = settings(preset, warmup=0, lr=1e-2, clip_norm=1e9)
            student, teacher = (model.float() for model in pair())
            made = rollouts(student, teacher, chosen)
            results["before"] = flat(student)
            if accumulation == "budget":
                launch = Launch(zero=1, micro_batch=COUNT, micro_tokens=40)
            else:
                launch = Launch(
                    zero=1, micro_batch=2 * COUNT // world.size // accumulation
                )  # samples and plain text
            folder = Path(tempfile.mkdtemp())
            engine = Engine(student, chosen, launch, world, "fp32", folder, 1)
            for group in engine.engine.optimizer.param_groups:
                group["eps"] = 1.0
            engine.update(*micro_batches(engine, task(teacher, chosen), made, list(range(COUNT))))
            results[preset, accumulation] = flat(engine.model)
    if world.rank == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1])
    leave(0)
