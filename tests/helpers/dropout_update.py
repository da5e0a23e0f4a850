"""One optimizer step of the on-policy loss under the Engine: without dropout, again without, and with it.

The dropout is GPT-2's 0.1.

dropout_update.py OUT    the weights after each, in this order
"""

import sys
import tempfile
from pathlib import Path

import torch
from onpolicy_case import COUNT, WHOLE, pair, rollouts, settings, task

from minillm.runtime.engine import Engine
from minillm.runtime.processes import start
from minillm.training.rollout_losses import micro_batches


def main(out):
    world = start(0)
    results = []
    for dropout in (False, False, True):
        chosen = settings("paper", dropout=dropout, warmup=0, lr=1e-2)
        student, teacher = (model.float() for model in pair("gpt2"))
        made = rollouts(student, teacher, chosen)
        engine = Engine(student, chosen, WHOLE, world, "fp32", Path(tempfile.mkdtemp()), 1)
        engine.update(*micro_batches(engine, task(teacher, chosen), made, list(range(COUNT))))
        results.append(torch.cat([p.detach().flatten() for p in engine.model.parameters()]))
    torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1])
