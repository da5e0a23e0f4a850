"""A model that one of two processes loads and both shard, as student (ZeRO 3) or as teacher.

load_once_steps.py OUT MODEL PRECISION    rank 0 saves what the weights are, and the files that each rank read
"""

import sys
import tempfile
from pathlib import Path

import torch
from zero_case import supervised

from minillm.config.launch import Launch
from minillm.models.head import head_of
from minillm.runtime import load_once
from minillm.runtime.engine import Engine
from minillm.runtime.processes import leave, start


def main(out, folder, precision):
    world = start(0)
    read, load = [], load_once.load_model
    load_once.load_model = lambda *arguments: read.append(str(arguments[0])) or load(*arguments)
    launch = Launch(zero=3, shard_teacher=True)
    place = Path(tempfile.gettempdir()) / world.gather(Path(tempfile.mkdtemp()).name)[0]

    def loaded():
        return load_once.load_once(Path(folder), precision, world, sharded=True)

    engine = Engine(loaded(), supervised(), launch, world, precision, place, 2)
    teacher = engine.frozen(loaded())
    kept = head_of(teacher, 1).weight.clone()
    with engine.whole():
        found = {
            kind: {name: value.detach().clone() for name, value in model.state_dict().items()}
            for kind, model in (("student", engine.model), ("teacher", teacher))
        }
        pairs = zip(engine.model.parameters(), teacher.parameters(), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
    ranks = world.gather((read, found, kept, same))
    try:
        load_once.load_once(Path(folder) / "none", precision, world, sharded=True)
    except Exception as error:
        errors = world.gather(f"{type(error).__name__}: {error}")
    if world.rank == 0:
        torch.save((ranks, errors), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
